"""Cross-domain sets, 600 episodes each, in the protocol of PATNet (ECCV 2022) and later papers.

Established from PATNet's published loaders: folder layouts, classes in turn (episode index modulo
their number), query and supports by choice from numpy's legacy generator seeded with 0, lists
sorted by path, mask = grey >= 128. There the images are 400 x 400; here they are `image_size`.
Not established: whether copies of the data that were cut or filtered otherwise give the same
lists, so that no list is built in and none can be checked.
"""

from pathlib import Path

import numpy as np

from diffews.data.episodes import Benchmark, DecodedSample, Sample
from diffews.errors import InputError
from diffews.images.files import open_image, open_rgb
from diffews.images.masks import foreground

FOREGROUND = 128  # least grey value


class CrossDomain(Benchmark):
    """Classes 0, 1, ... with a sorted list of images each; for testing only."""

    test_episodes, classes_in_turn = 600, True
    labels_all = False  # a picture is listed under one class
    names: tuple[str, ...]
    listed: tuple[str, str]  # folder of a class's images, with its {number}, and their ending

    def read_lists(self) -> None:
        if self.split != "test":
            raise InputError(f"split={self.split!r}: {self.folder} is for testing only")
        self.set_classes(self.names)
        self.images = {}
        for class_id in self.class_ids:
            folder, suffix = self.root / self.listed[0].format(number=class_id + 1), self.listed[1]
            paths = sorted(str(path.relative_to(self.root)) for path in folder.glob(f"*{suffix}"))
            if not paths:
                raise InputError(f"{folder} holds no *{suffix}; see datasets/README.md")
            self.images[class_id] = [Sample(path) for path in paths]
        self.check_classes(self.class_ids)

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        image_file, mask_file = self.files(sample)
        # whatever the mode: PATNet's masks are grey values
        grey = np.asarray(open_image(mask_file).convert("L"))
        return DecodedSample(open_rgb(image_file), foreground(grey, FOREGROUND))


class DeepGlobe(CrossDomain):
    """DeepGlobe land cover in tiles: Deepglobe/<1..6>/test/{origin/*.jpg, groundtruth/*.png}."""

    folder, names = "Deepglobe", ("1", "2", "3", "4", "5", "6")
    listed = ("{number}/test/origin", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        image = self.root / sample.name
        return [image, image.parent.parent / "groundtruth" / f"{image.stem}.png"]


class Isic(CrossDomain):
    """ISIC 2018 skin lesions: ISIC/ISIC2018_Task1-2_Training_Input/<1..3>/*.jpg and the truth."""

    folder, names = "ISIC", ("nevus", "seborrheic keratosis", "melanoma")
    listed = ("ISIC2018_Task1-2_Training_Input/{number}", ".jpg")

    def files(self, sample: Sample) -> list[Path]:
        image, truth = self.root / sample.name, self.root / "ISIC2018_Task1_Training_GroundTruth"
        return [image, truth / f"{image.stem}_segmentation.png"]


class ChestXray(CrossDomain):
    """Chest X-rays: LungSegmentation/{masks/*_mask.png, CXR_png/*.png}; masks are listed."""

    folder, names = "LungSegmentation", ("lung",)
    listed = ("masks", "_mask.png")

    def files(self, sample: Sample) -> list[Path]:
        mask = self.root / sample.name
        return [self.root / "CXR_png" / f"{mask.stem.removesuffix('_mask')}.png", mask]
