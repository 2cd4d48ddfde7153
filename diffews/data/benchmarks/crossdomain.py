"""Cross-domain sets, 600 episodes each, in the protocol that PATNet (ECCV 2022) set and later papers share.

Established from PATNet's published loaders: folder layouts, classes in turn (episode index modulo their number), query
and supports by choice from numpy's legacy generator seeded with 0, lists sorted by path, mask = grey >= 128. There the
pictures are 400 x 400; here they are `image_size`. Not established: whether copies of the data that were cut or
filtered otherwise give the same lists, so that no list is built in and none can be checked.
"""

from pathlib import Path

import numpy as np

from diffews.data.episodes import Benchmark, EpisodeList, Picture, Sample, draw_in_turn
from diffews.errors import InputError
from diffews.images.files import open_image, open_rgb

FOREGROUND = 128  # least grey value


class _CrossDomain(Benchmark):
    """Classes 0, 1, ... with a sorted list of pictures each; for testing only."""

    folds, test_episodes = 0, 600
    names: tuple[str, ...]
    listed: tuple[str, str]  # folder of a class's pictures, with its {number} or {name}, and their ending

    def read(self) -> None:
        if self.split != "test":
            raise InputError(f"split={self.split!r}: {self.folder} is for testing only")
        self.class_ids = list(range(len(self.names)))
        self.class_names = dict(enumerate(self.names))
        self.images = {c: self._samples(self.listed[0].format(number=c + 1), self.listed[1]) for c in self.class_ids}
        self.check_classes(self.class_ids)

    def draw(self, shots: int) -> EpisodeList:
        return draw_in_turn(self, shots, self.test_episodes)

    def decode(self, sample: Sample, class_id: int) -> Picture:
        image_file, mask_file = self.files(sample)
        grey = np.asarray(open_image(mask_file).convert("L"))  # whatever the mode: PATNet's masks are grey values
        return Picture(open_rgb(image_file), (grey >= FOREGROUND).astype(np.uint8))

    def _samples(self, folder: str, suffix: str) -> list[Sample]:
        found = sorted(str(path.relative_to(self.root)) for path in (self.root / folder).glob(f"*{suffix}"))
        if not found:
            raise InputError(f"{self.root / folder} holds no *{suffix}; see datasets/README.md")
        return [Sample(name) for name in found]


class DeepGlobe(_CrossDomain):
    """DeepGlobe land cover, cut into tiles: Deepglobe/<1..6>/test/{origin/*.jpg, groundtruth/*.png}."""

    folder, names = "Deepglobe", ("1", "2", "3", "4", "5", "6")
    listed = ("{number}/test/origin", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        image = self.root / sample.name
        return [image, image.parent.parent / "groundtruth" / f"{image.stem}.png"]


class Isic(_CrossDomain):
    """ISIC 2018 skin lesions: ISIC/ISIC2018_Task1-2_Training_Input/<1..3>/*.jpg and the ground truth beside it."""

    folder, names = "ISIC", ("nevus", "seborrheic keratosis", "melanoma")
    listed = ("ISIC2018_Task1-2_Training_Input/{number}", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        image = self.root / sample.name
        return [image, self.root / "ISIC2018_Task1_Training_GroundTruth" / f"{image.stem}_segmentation.png"]


class ChestXray(_CrossDomain):
    """Chest X-rays: LungSegmentation/masks/*_mask.png and CXR_png/*.png; listed by mask, as PATNet does."""

    folder, names = "LungSegmentation", ("lung",)
    listed = ("masks", "_mask.png")

    def files(self, sample: Sample) -> list[Path]:
        mask = self.root / sample.name
        return [self.root / "CXR_png" / f"{mask.stem.removesuffix('_mask')}.png", mask]
