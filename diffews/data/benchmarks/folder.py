"""Own data: a folder of pictures with masks beside them, class by class."""

from collections.abc import Sequence
from pathlib import Path

from diffews.data.episodes import Benchmark, Picture, Sample
from diffews.errors import InputError, nearest
from diffews.images.files import IMAGE_SUFFIXES, open_mask, open_rgb
from diffews.images.masks import binary_mask


def split_classes(names: Sequence[str], fold: int | None, folds: int, novel: Sequence[str], split: str) -> list[int]:
    """Returns the class ids of a split: novel classes are those named, else every `folds`-th from `fold` on.

    fold None without named classes holds none out: all are for training.
    """
    unknown = [name for name in novel if name not in names]
    if unknown:
        raise InputError(f"novel={unknown[0]} is no class{nearest(unknown[0], names)}")
    if not novel and fold is not None and not 0 <= fold < folds:
        raise InputError(f"fold={fold}: with folds={folds} there are the folds 0 to {folds - 1}")
    held_out = {c for c, n in enumerate(names) if (n in novel if novel else fold is not None and c % folds == fold)}
    chosen = [c for c in range(len(names)) if (c in held_out) == (split == "test")]
    if not chosen:
        raise InputError(f"no class is left for the {split} split: {len(names)} classes, folds={folds}, fold={fold}")
    return chosen


class FolderBenchmark(Benchmark):
    """data/<class>/<name>.jpg with data/<class>/<name>.png, the mask ({0, 1} or {0, 255}).

    A picture saved as PNG has its mask as <name>_mask.png.
    """

    folds = None

    def read(self, folds: int = 4, novel: Sequence[str] = ()) -> None:
        root = self.root
        if not root.is_dir():
            raise InputError(f"data={root}: no such folder")
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not names:
            raise InputError(f"data={root}: no class folders in it; put pictures and masks into <class>/")
        self.class_ids = split_classes(names, self.fold if self.holds_out else None, folds, novel, self.split)
        self.class_names = dict(enumerate(names))
        self.masks: dict[str, Path] = {}
        self.images = {c: self._samples(names[c]) for c in self.class_ids}

    def files(self, sample: Sample) -> list[Path]:
        return [self.root / sample.name, self.masks[sample.name]]

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and its mask, upright as people see them."""
        image_file, mask_file = self.files(sample)
        mask = binary_mask(open_mask(mask_file, upright=True), str(mask_file))
        return Picture(open_rgb(image_file, upright=True), mask)

    def classes_in(self, sample: Sample) -> list[int]:  # the folder that it lies in; others are not known
        return [c for c, name in self.class_names.items() if Path(sample.name).parts[0] == name]

    def _samples(self, name: str) -> list[Sample]:
        samples = []
        files = sorted(file for file in (self.root / name).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        photos = {file.stem for file in files if file.suffix.lower() != ".png"}
        for file in files:
            is_png = file.suffix.lower() == ".png"
            if file.stem.endswith("_mask") or is_png and file.stem in photos:
                continue  # itself a mask
            if str(file).encode(errors="ignore").decode() != str(file):
                raise InputError(f"{str(file)!a}: the name is not UTF-8 text; rename the file")
            named = f"{file.stem}_mask.png"
            mask = file.with_suffix(".png")
            if is_png or not mask.is_file():
                mask = file.with_name(named)
            if not mask.is_file():
                raise InputError(f"{file} has no mask; put it beside as {named if is_png else f'{file.stem}.png'}")
            for used in (file, mask):
                if not used.resolve().is_relative_to(self.root.resolve()):
                    raise InputError(f"{used} is a link out of the folder; put the file itself there")
            sample = Sample(f"{name}/{file.name}")
            self.masks[sample.name] = mask
            samples.append(sample)
        return samples
