"""Own data: a folder of images with masks beside them, class by class."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from diffews.data.episodes import Benchmark, DecodedSample, Sample
from diffews.errors import InputError, nearest
from diffews.images.drawn_masks import Pick
from diffews.images.files import IMAGE_SUFFIXES
from diffews.images.photos import open_photo, open_photo_mask


class OwnClasses(Benchmark):
    """A benchmark of anybody's own classes, which are split as its keys say.

    folds: every `folds`-th class from `fold` on is novel,
    novel: unless the novel classes are named.
    """

    def split_classes(self, names: Sequence[str], folds: int, novel: Sequence[str]) -> None:
        """Sets class_names, and class_ids to those of the split.

        Raises:
            InputError: for an unknown name or fold, or a split without classes.

        """
        unknown = [name for name in novel if name not in names]
        if unknown:
            raise InputError(f"novel={unknown[0]} is no class{nearest(unknown[0], names)}")
        if not novel and self.holds_out and not 0 <= self.fold < folds:
            raise InputError(
                f"fold={self.fold}: with folds={folds} there are the folds 0 to {folds - 1}")

        # named classes are held out of training without a fold, too
        self.set_classes(names, [
            c for c, name in enumerate(names)
            if (name in novel if novel else self.holds_out and c % folds == self.fold)])
        if not self.class_ids:
            raise InputError(f"no class is left for the {self.split} split: "
                             f"{len(names)} classes, folds={folds}, fold={self.fold}")

    def tell(self, what: str) -> None:
        """Says a thing once on stderr, however many pictures it is true of."""
        warnings.warn(what, stacklevel=2)  # of equal texts, the first is shown


class FolderBenchmark(OwnClasses):
    """data/<class>/<name>.jpg with data/<class>/<name>.png, the mask ({0, 1} or {0, 255}).

    An image saved as PNG has its mask as <name>_mask.png. Links are followed.
    """

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
        self.split_classes(names, folds, novel)
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

    def _find_samples(self, name: str) -> list[Sample]:
        """Finds the images of a class, and notes the mask of each."""
        files = sorted(file for file in (self.root / name).iterdir()
                       if file.suffix.lower() in IMAGE_SUFFIXES)
        photos = {file.stem for file in files if file.suffix.lower() != ".png"}
        samples = []
        for file in files:
            is_png = file.suffix.lower() == ".png"
            if file.stem.endswith("_mask") or is_png and file.stem in photos:
                continue  # itself a mask
            if str(file).encode(errors="ignore").decode() != str(file):
                raise InputError(f"{str(file)!a}: the name is not UTF-8 text; rename the file")

            # <name>.png, or <name>_mask.png where that is missing or the image itself
            places = [file.with_suffix(".png"), file.with_name(f"{file.stem}_mask.png")][is_png:]
            mask = next((place for place in places if place.is_file()), None)
            if mask is None:
                raise InputError(f"{file} has no mask; put it beside as {places[0].name}")
            samples.append(Sample(f"{name}/{file.name}"))
            self.masks[samples[-1].name] = mask
        return samples
