"""Shapes: a procedural benchmark of 80 classes, written in the layout of COCO-20i.

A class is a shape in a material: class = shape * 20 + pattern * 10 + hue. A fold holds out every
fourth class, which is five of the twenty materials in all four shapes; novel classes are unseen
combinations of colour, pattern and shape.
"""

import colorsys
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from diffews.errors import InputError
from diffews.runtime.files import new_folder, write_atomic

SIZE = 64  # side of an image in pixels
SHAPES = ("disc", "star", "ring", "cross")
PATTERNS = ("plain", "striped")
HUES = {  # name -> degrees
    **{"red": 0, "orange": 28, "yellow": 55, "lime": 85, "green": 140},
    **{"cyan": 178, "azure": 205, "blue": 235, "purple": 280, "pink": 325},
}
MATERIALS = [(pattern, hue) for pattern in PATTERNS for hue in HUES]
CLASS_NAMES = [f"{pattern} {hue} {shape}" for shape in SHAPES for pattern, hue in MATERIALS]
FOLDS = 4
PARTS = {"train2014": 70, "val2014": 30}  # images for each class as the main object
LEAST_PIXELS = 40  # visible pixels of every object
JPEG = [
    cv2.IMWRITE_JPEG_QUALITY, 98,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """One image: RGB uint8 (H, W, 3), and its class map uint8 (H, W): 0 or class + 1."""

    image: np.ndarray
    classes: np.ndarray


def make_shapes(out: Path, seed: int = 0) -> None:
    """Writes out/COCO2014: images, class maps, lists of all folds, instances_*.json, class names.

    seed: changes the images, never the classes or folds; the same seed gives the same bytes.
    """
    if (out / "COCO2014").exists():
        raise InputError(f"out={out}: COCO2014 is there already; remove it or give another folder")
    with new_folder(out / "COCO2014") as folder:
        for part, per_class in PARTS.items():
            write_part(folder, part, per_class, seed)
        write_atomic(folder / "classes.json", json.dumps(CLASS_NAMES))


def write_part(folder: Path, part: str, per_class: int, seed: int) -> None:
    """Writes the images of one part, their class maps, annotations, and lists of all folds."""
    for name in (part, f"annotations/{part}"):
        (folder / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    lists: dict[int, list[str]] = {class_id: [] for class_id in range(len(CLASS_NAMES))}

    scenes = make_scenes(part, per_class, seed)
    for image_id, scene in tqdm(scenes, part, len(CLASS_NAMES) * per_class, unit="image"):
        name = f"COCO_{part}_{image_id:012d}"
        jpeg = cv2.imencode(".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), JPEG)[1]
        (folder / part / f"{name}.jpg").write_bytes(jpeg.tobytes())
        png = cv2.imencode(".png", scene.classes)[1]
        (folder / "annotations" / part / f"{name}.png").write_bytes(png.tobytes())
        images.append({"id": image_id, "file_name": f"{name}.jpg", "width": SIZE, "height": SIZE})

        # one annotation for each object; there is one object of a class at most
        for class_id in np.unique(scene.classes[scene.classes > 0]).tolist():
            lists[class_id - 1].append(f"{part}/{name}.jpg")
            run_lengths = coco_mask.encode(np.asfortranarray(scene.classes == class_id))
            counts = run_lengths["counts"].decode()
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": class_id,
                "iscrowd": 0, "area": int(coco_mask.area(run_lengths)),
                "bbox": coco_mask.toBbox(run_lengths).tolist(),
                "segmentation": {"size": run_lengths["size"], "counts": counts}})

    categories = [{"id": class_id + 1, "name": name} for class_id, name in enumerate(CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_atomic(folder / "annotations" / f"instances_{part}.json", json.dumps(content))

    # the validation part holds a fold's novel classes, the training part all others
    is_val = part == "val2014"
    for fold in range(FOLDS):
        kept = {c: names for c, names in lists.items() if (c % FOLDS == fold) == is_val}
        file = folder / "splits" / ("val" if is_val else "trn") / f"fold{fold}.json"
        write_atomic(file, json.dumps(kept))


def make_scenes(part: str, per_class: int, seed: int) -> Iterator[tuple[int, Scene]]:
    """Makes up the images of a part with their ids; each depends on (seed, id) alone."""
    first_id = 0 if part == "train2014" else 100_000
    for index in range(len(CLASS_NAMES) * per_class):
        image_id = first_id + index
        generator = np.random.default_rng([seed, image_id])
        classes = _choose_classes(generator, index % len(CLASS_NAMES))
        yield image_id, make_scene(generator, classes)


def make_scene(generator: np.random.Generator, classes: list[int]) -> Scene:
    """Paints one object of each class, in this order, onto a muted background."""
    while True:
        image, class_map = _background(generator), np.zeros((SIZE, SIZE), np.uint8)
        placed: list[tuple[float, float, float]] = []
        for class_id in classes:
            position = _place(generator, placed)
            if position is None:
                break
            placed.append(position)
            inside = _shape(generator, SHAPES[class_id // len(MATERIALS)], *position)
            image[inside] = _material(generator, *MATERIALS[class_id % len(MATERIALS)])[inside]
            class_map[inside] = class_id + 1

        # try again where an object found no place, or others hide it
        if len(placed) == len(classes) and all(
                (class_map == c + 1).sum() > LEAST_PIXELS for c in classes):
            break

    image = image * generator.uniform(0.85, 1.1) + generator.normal(0, 0.02, image.shape)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), class_map)


def _choose_classes(generator: np.random.Generator, main: int) -> list[int]:
    """The main class and one or two distractors, in any order.

    15 % of the distractors are of the same material, 15 % of the same shape, the rest of any.
    """
    classes, count = [main], len(MATERIALS)
    for _ in range(generator.integers(1, 3)):
        kind = generator.random()
        pool = [other for other in range(len(CLASS_NAMES)) if other not in classes]
        if kind < 0.15:
            pool = [other for other in pool if other % count == main % count]
        elif kind < 0.3:
            pool = [other for other in pool if other // count == main // count]
        classes.append(int(generator.choice(pool)))
    return [classes[i] for i in generator.permutation(len(classes))]


def _background(generator: np.random.Generator) -> np.ndarray:
    base = generator.random(3) * 0.5 + 0.25
    base = base.mean() + 0.35 * (base - base.mean())  # muted
    coarse = _noise(generator, int(generator.integers(2, 7)), 3) - 0.5
    fine = _noise(generator, int(generator.integers(12, 33)), 1)[..., None] - 0.5
    image = base + 0.22 * coarse + 0.10 * fine

    if generator.random() < 0.3:  # two regions
        angle, offset = generator.random() * 2 * np.pi, 0.3 * (generator.random() - 0.5)
        across, down = np.cos(angle) * (COLUMNS / SIZE - 0.5), np.sin(angle) * (ROWS / SIZE - 0.5)
        side = across + down + offset > 0
        image[side] += (generator.random(3) - 0.5) * 0.3
    return image.astype(np.float32)


def _noise(generator: np.random.Generator, cells: int, channels: int) -> np.ndarray:
    coarse = generator.random((cells, cells, channels)).astype(np.float32)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _place(
        generator: np.random.Generator,
        placed: list[tuple[float, float, float]]) -> tuple[float, float, float] | None:
    """Finds a centre (x, y) and a radius in pixels that overlap the placed objects little.

    Returns None if 40 trials found no place.
    """
    for _ in range(40):
        radius = generator.uniform(0.15, 0.27) * SIZE
        x, y = generator.uniform(radius * 0.7, SIZE - radius * 0.7, 2)
        if all(np.hypot(x - a, y - b) > 0.85 * (radius + r) for a, b, r in placed):
            return x, y, radius
    return None


def _shape(
        generator: np.random.Generator, shape: str, x: float, y: float,
        radius: float) -> np.ndarray:
    """Pixels (H, W) bool inside a turned and stretched shape."""
    # u, v: its own coordinates, in radii
    angle, aspect = generator.random() * 2 * np.pi, generator.uniform(0.8, 1.2)
    dx, dy = COLUMNS - x, ROWS - y
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * aspect)
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / (radius / aspect)
    distance = np.sqrt(u * u + v * v)

    if shape == "disc":
        return distance < 0.9
    if shape == "star":  # five points
        spoke = np.abs((np.arctan2(v, u) * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 0 .. 1
        return distance < 0.52 + 0.68 * spoke
    if shape == "ring":
        return (distance > 0.5) & (distance < 1)
    arm, reach = 0.36, 1.05
    return ((np.abs(u) < arm) & (np.abs(v) < reach)) | ((np.abs(v) < arm) & (np.abs(u) < reach))


def _material(generator: np.random.Generator, pattern: str, hue: str) -> np.ndarray:
    """Texture (H, W, 3) in [0, 1]: a slightly varying colour, or the colour striped with white."""
    turned = (HUES[hue] / 360 + generator.uniform(-0.015, 0.015)) % 1
    saturation, value = generator.uniform(0.75, 1), generator.uniform(0.75, 1)
    colour = np.array(colorsys.hsv_to_rgb(turned, saturation, value))
    angle, phase = generator.random() * np.pi, generator.random() * 6
    along = np.cos(angle) * COLUMNS + np.sin(angle) * ROWS
    if pattern == "plain":
        return colour * (1 + 0.12 * np.sin(along / 14 + phase))[..., None]
    stripe = np.sin(2 * np.pi * along / generator.uniform(6, 8.5) + phase) > 0
    return np.where(stripe[..., None], colour, np.ones(3) * generator.uniform(0.85, 1))
