"""Shapes that move over 60 frames, with the shipped weights: J with and without memory."""

import numpy as np
import pytest
from PIL import Image

from diffews.runtime.files import CHECKOUT
from diffews.tools import shapes

COUNT = 60  # frames
FOLD, CLASSES = 2, (26, 3, 71)  # the first is novel and asked for; the others are in its way


def film(folder):
    """Three shapes on straight ways, which turn back at the edge; returns where the first is."""
    draws = np.random.default_rng(7)
    background = shapes._background(draws)
    start, speed = draws.uniform(16, 48, (3, 2)), draws.uniform(-1, 1, (3, 2))
    truth = []
    for time in range(COUNT):
        image, seen = background.copy(), np.zeros((64, 64), bool)
        for number in (2, 1, 0):
            own = np.random.default_rng([9, number])  # the same shape in each frame
            x, y = 8 + np.abs((start[number] + speed[number] * time - 8) % 96 - 48)
            shape, material = divmod(CLASSES[number], len(shapes.MATERIALS))
            inside = shapes._shape(own, shapes.SHAPES[shape], x, y, 12)
            image[inside] = shapes._material(own, *shapes.MATERIALS[material])[inside]
            seen[inside] = number == 0
        light = 1 + 0.2 * np.sin(time / 15)
        pixels = (np.clip(image * light, 0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{time}.png")
        truth.append(seen)
    return truth


@pytest.mark.slow
def test_shapes_that_move(run, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    truth = film(frames)
    scene = shapes.make_scene(np.random.default_rng(5), [CLASSES[0], 40])
    Image.fromarray(scene.image).save(tmp_path / "support.png")
    mask = (scene.classes == CLASSES[0] + 1).astype(np.uint8) * 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    scores = {}
    for memory in (0, 5):
        out = tmp_path / f"memory{memory}"
        words = ["segment", f"weight={CHECKOUT / 'weight' / 'tiny' / f'shapes_fold{FOLD}'}"]
        words += [f"support={tmp_path / 'support.png'}", f"mask={tmp_path / 'mask.png'}"]
        words += [f"query={frames}", "video=true", f"memory={memory}", f"out={out}", "threads=1"]
        assert run(*words).code == 0
        found = [np.asarray(Image.open(out / f"{i}_mask.png")) > 0 for i in range(COUNT)]
        ious = [(a & b).sum() / (a | b).sum() for a, b in zip(found, truth, strict=True)]
        scores[memory] = 100 * float(np.mean(ious))
    print(f"J without memory {scores[0]:.1f}, with 5 frames {scores[5]:.1f}")

    # what the first frames find holds for all; memory may help or hurt (docs/own-photos.md)
    assert scores[0] > 50 and scores[5] > 25 and scores[0] != scores[5]
