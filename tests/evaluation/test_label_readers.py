"""Readers that we did not write read our labels. They live in an environment of their own.

LABEL_READERS names its Python: `bash scripts/label_readers.sh` makes one and runs this.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_labels import CLASSES, noise, rings, two_classes

from diffews.evaluation.labels.picture import Picture
from diffews.evaluation.labels.write import WRITERS, write_labels

READER = Path(__file__).with_name("label_readers.py")
READERS = ("pycocotools", "supervision coco", "supervision yolo", "label studio", "labelme")
LABELS = {
    "two": two_classes(60, 80),
    "rings": rings(50, 40, 2),
    "none": np.zeros((20, 30), np.uint8),
    "noise": noise(1, 0.6),
    "holes": noise(2, 0.95),
}


@pytest.mark.slow
@pytest.mark.skipif("LABEL_READERS" not in os.environ, reason="LABEL_READERS= names no Python")
@pytest.mark.parametrize("parts", [True, False])
def test_outside_readers_find_the_masks_again(picture, tmp_path, parts):
    photos, out, result = tmp_path / "photos", tmp_path / "out", tmp_path / "found.npz"
    photos.mkdir()
    pictures = []
    for name, labels in LABELS.items():
        file = photos / f"{name}.png"
        picture(1, *labels.shape[::-1]).save(file)
        pictures.append(Picture(file, name, file.name, labels, [0.75, 0.5]))
    write_labels(out, pictures, CLASSES, list(WRITERS), parts)

    words = [os.environ["LABEL_READERS"], READER, out, photos, result]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(list(map(str, words)), check=True, env=clean)
    with np.load(result) as found:
        for reader in READERS:
            for name, labels in LABELS.items():
                if reader != "label studio" or labels.any():  # without a brush there is no size
                    assert np.array_equal(found[f"{reader}/{name}"], labels), (reader, name)
