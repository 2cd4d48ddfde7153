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

TEST_EPISODES = 600
FOREGROUND = 128  # least grey value


class _CrossDomain(Benchmark):
    """Classes 0, 1, ... with a sorted list of pictures each; for testing only."""

    folder: str
    names: tuple[str, ...]

    def __init__(self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1) -> None:
        if split != "test":
            raise InputError(f"split={split!r}: {self.folder} is for testing only")
        self.root, self.fold = self.find_root(root, self.folder), 0
        self.class_ids = list(range(len(self.names)))
        self.class_names = dict(enumerate(self.names))
        self.images = {c: [Sample(str(path)) for path in self.list_pictures(c)] for c in self.class_ids}
        self.check_classes(self.class_ids)

    def list_pictures(self, class_id: int) -> list[Path]:
        """Returns the pictures of a class, relative to the root, sorted by path."""
        raise NotImplementedError

    def draw(self, shots: int) -> EpisodeList:
        """Draws 600 episodes: classes in turn, then query and supports by choice."""
        return draw_in_turn(self, shots, TEST_EPISODES)

    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads the picture and its mask."""
        image_file, mask_file = self.files(sample)
        grey = np.asarray(open_image(mask_file).convert("L"))  # whatever the mode: PATNet's masks are grey values
        return Picture(open_rgb(image_file), (grey >= FOREGROUND).astype(np.uint8))

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the class that the picture is listed under."""
        return [class_id for class_id, samples in self.images.items() if sample in samples]

    def _sorted(self, folder: str, suffix: str) -> list[Path]:
        found = list((self.root / folder).glob(f"*{suffix}"))
        if not found:
            raise InputError(f"{self.root / folder} holds no *{suffix}; see datasets/README.md")
        return sorted((path.relative_to(self.root) for path in found), key=str)


class DeepGlobe(_CrossDomain):
    """DeepGlobe land cover, cut into tiles: Deepglobe/<1..6>/test/{origin/*.jpg, groundtruth/*.png}."""

    folder = "Deepglobe"
    names = ("1", "2", "3", "4", "5", "6")

    def list_pictures(self, class_id: int) -> list[Path]:
        """Returns the tiles of a class."""
        return self._sorted(f"{self.names[class_id]}/test/origin", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        """Returns the tile and its mask."""
        image = self.root / sample.name
        return [image, image.parent.parent / "groundtruth" / f"{image.stem}.png"]


class Isic(_CrossDomain):
    """ISIC 2018 skin lesions: ISIC/ISIC2018_Task1-2_Training_Input/<1..3>/*.jpg and the ground truth beside it."""

    folder = "ISIC"
    names = ("nevus", "seborrheic keratosis", "melanoma")

    def list_pictures(self, class_id: int) -> list[Path]:
        """Returns the photos of a class, whose folder is 1, 2 or 3."""
        return self._sorted(f"ISIC2018_Task1-2_Training_Input/{class_id + 1}", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        """Returns the photo and its mask."""
        image = self.root / sample.name
        return [image, self.root / "ISIC2018_Task1_Training_GroundTruth" / f"{image.stem}_segmentation.png"]


class ChestXray(_CrossDomain):
    """Chest X-rays: LungSegmentation/masks/*_mask.png and CXR_png/*.png; listed by mask, as PATNet does."""

    folder = "LungSegmentation"
    names = ("lung",)

    def list_pictures(self, class_id: int) -> list[Path]:
        """Returns the masks, which name the episodes."""
        return self._sorted("masks", "_mask.png")

    def files(self, sample: Sample) -> list[Path]:
        """Returns the X-ray and its mask."""
        mask = self.root / sample.name
        return [self.root / "CXR_png" / f"{mask.stem.removesuffix('_mask')}.png", mask]
