"""What an evaluation left behind, for the tests that read it."""

import json

import numpy as np
from PIL import Image


def lines(out):
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def result(out):
    return json.loads((out / "result.json").read_text())


def mask(out, index):
    return np.asarray(Image.open(out / "masks" / f"{index:05d}.png")) > 0
