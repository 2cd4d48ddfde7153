"""Own data: a folder of images with masks beside them, class by class."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from diffews.data.episodes import Benchmark, DecodedSample, Sample
from diffews.errors import InputError, nearest
from diffews.images.drawn_masks import Pick
from diffews.images.files import IMAGE_SUFFIXES
from diffews.images.photos import open_photo, open_photo_mask


SHOWN = 20  # names that a line shows


class OwnClasses(Benchmark):
    """A benchmark of anybody's own classes, which are split as its keys say.

    folds: every `folds`-th class from `fold` on is novel,
    novel: unless the novel classes are named.
    """

    def split_classes(self, names: Sequence[str], folds: int, novel: Sequence[str],
                      counts: Sequence[int], where: str) -> None:
        """Sets class_names, and class_ids to those of the split.

        A class of fewer than two pictures has no episode: it is left out aloud, and the folds are
        made of the others.

        counts: pictures of each class.
        where: what to name in the line that says so.

        Raises:
            InputError: for an unknown name or fold, or a split without classes.

        """
        novel = join_names(novel, names)
        unknown = [name for name in novel if name not in names]
        if unknown:
            raise InputError(f"novel={unknown[0]} is no class{nearest(unknown[0], names)}")
        if not novel and self.holds_out and not 0 <= self.fold < folds:
            raise InputError(
                f"fold={self.fold}: with folds={folds} there are the folds 0 to {folds - 1}")

        kept = [c for c, count in enumerate(counts) if count > 1]
        few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 2]
        # named classes are held out of training without a fold, too
        self.set_classes(names, [
            c for place, c in enumerate(kept)
            if (names[c] in novel if novel else self.holds_out and place % folds == self.fold)])
        self.class_ids = [c for c in self.class_ids if c in kept]
        if not self.class_ids:
            raise InputError(
                f"no class is left for the {self.split} split: {len(names)} classes, "
                f"folds={folds}, fold={self.fold}"
                + (f"; left out, with fewer than two pictures: {', '.join(few[:SHOWN])}" * bool(few)
                   ))
        if few:
            said = ", ".join(few[:SHOWN]) + (f" and {len(few) - SHOWN} more" * (len(few) > SHOWN))
            self.tell(f"{where}: classes of fewer than two pictures are left out: {said}")

    def tell(self, what: str) -> None:
        """Says a thing once on stderr, however many pictures it is true of."""
        warnings.warn(what, stacklevel=2)  # of equal texts, the first is shown


class FolderBenchmark(OwnClasses):
    """data/<class>/<name>.jpg with data/<class>/<name>.png, the mask ({0, 1} or {0, 255}).

    An image saved as PNG has its mask as <name>_mask.png. Links are followed.
    """

    labels_all = False  # a picture lies in the folder of one class

    def read_lists(self, folds: int = 4, novel: Sequence[str] = (), mask_value: int | None = None,
                   mask_colour: Sequence[int] = ()) -> None:
        self.pick = Pick.of(mask_value, mask_colour)
        given = {"mask_value": mask_value, "mask_colour": list(mask_colour) or None}
        self.reading = {key: value for key, value in given.items() if value is not None}
        if not self.root.is_dir():
            raise InputError(f"data={self.root}: no such folder")
        names = sorted(path.name for path in self.root.iterdir()
                       if path.is_dir() and not path.name.startswith("."))
        if not names:
            raise InputError(f"data={self.root}: no class folders in it; "
                             "put pictures and masks into <class>/")
        counts = [len(self._find_photos(name)) for name in names]
        self.split_classes(names, folds, novel, counts, f"data={self.root}")
        self.masks: dict[str, Path] = {}
        self.images = {c: self._find_samples(names[c]) for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / sample.name, self.masks[sample.name]]

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image_file, mask_file = self.files(sample)  # upright, as people see them
        image, turned = open_photo(image_file)
        mask, notes = open_photo_mask(mask_file, image.size, turned, pick=self.pick)
        for note in notes:
            self.tell(f"data={self.root}: a mask {note}")
        return DecodedSample(image, mask)

    def classes_in(self, sample: Sample) -> list[int]:
        # the folder that it lies in; others are not known
        return [c for c, name in self.class_names.items() if Path(sample.name).parts[0] == name]

    def _find_photos(self, name: str) -> list[Path]:
        """Finds the pictures of a class, masks left out."""
        files = sorted(file for file in (self.root / name).iterdir()
                       if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))
        photos = {file.stem for file in files if file.suffix.lower() != ".png"}
        stems = {file.stem for file in files}

        # <name>_mask is a mask where <name> is there: there are photos of gas masks, too; where
        # `diffews segment` wrote it, <name>_overlay lies beside
        overlays = {f"{stem}_overlay" for stem in stems if f"{stem}_mask" in stems}
        return [file for file in files if not (
            file.stem.endswith("_mask") and file.stem.removesuffix("_mask") in stems
            or file.stem in overlays
            or file.suffix.lower() == ".png" and file.stem in photos)]

    def _find_samples(self, name: str) -> list[Sample]:
        """Lists the pictures of a class, and notes the mask of each."""
        samples = []
        for file in self._find_photos(name):
            if str(file).encode(errors="ignore").decode() != str(file):
                raise InputError(f"{str(file)!a}: the name is not UTF-8 text; rename the file")

            # <name>.png, or <name>_mask.png where that is missing or the image itself
            is_png = file.suffix.lower() == ".png"
            places = [file.with_suffix(".png"), file.with_name(f"{file.stem}_mask.png")][is_png:]
            mask = next((place for place in places if place.is_file()), None)
            if mask is None:
                raise InputError(f"{file} has no mask; put it beside as {places[0].name}")
            samples.append(Sample(f"{name}/{file.name}"))
            self.masks[samples[-1].name] = mask
        return samples


def join_names(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Puts names together that hold the comma at which a list was cut: cup, mug."""
    joined: list[str] = []
    rest = list(words)
    while rest:
        parts = [",".join(rest[:count]).strip() for count in range(len(rest), 0, -1)]
        count = next((len(rest) - i for i, part in enumerate(parts) if part in names), 1)
        joined.append(",".join(rest[:count]).strip())
        rest = rest[count:]
    return joined
