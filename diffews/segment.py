"""Segments people's own pictures: the support is encoded once, every query reads it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffews.config import SegmentConfig
from diffews.errors import InputError
from diffews.images import check_image, list_images, open_mask, open_rgb
from diffews.masks import binary_mask
from diffews.models.weights import WeightSource


def find_queries(config: SegmentConfig) -> list[Path]:
    """Checks that supports pair with masks and that all files are there; returns the queries, folders listed."""
    if len(config.support) != len(config.mask):
        raise InputError(
            f"{len(config.support)} support pictures for {len(config.mask)} masks; give mask= for each support="
        )
    queries: list[Path] = []
    for name in config.query:
        found = _photos(Path(name), config.mask) if Path(name).is_dir() else [Path(name)]
        if not found:
            raise InputError(f"query={name}: no pictures in this folder")
        queries += found
    for file in (*map(Path, config.support), *map(Path, config.mask), *queries):
        check_image(file)
    names = [query.stem for query in queries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two queries are named {twice!r}, their masks would be one file; rename one")
    return queries


def _photos(folder: Path, masks: Sequence[str]) -> list[Path]:
    """Lists a folder's pictures, but for masks, earlier results, and PNGs beside a photo of that name."""
    files, named = list_images(folder), {Path(mask).resolve() for mask in masks}
    photos = {file.stem for file in files if file.suffix.lower() != ".png"}
    kept = [file for file in files if file.resolve() not in named and not file.stem.endswith(("_mask", "_overlay"))]
    return [file for file in kept if file.suffix.lower() != ".png" or file.stem not in photos]


def segment(config: SegmentConfig, source: WeightSource, queries: Sequence[Path]) -> None:
    """Writes <query>_mask.png (0 and 255) and <query>_overlay.jpg, both at the query's own size, into config.out."""
    from diffews.device import exact_arithmetic, memory_advice, pick_device, torch_dtype
    from diffews.pipeline import build_pipeline
    from diffews.report import overlay, save_image

    supports = [open_rgb(file, upright=True) for file in config.support]
    masks = [_open_support_mask(file, image.size) for file, image in zip(config.mask, supports, strict=True)]
    exact_arithmetic(config.threads)
    device = pick_device(config.device)
    pipeline = build_pipeline(source, torch_dtype(config.dtype), device, config.allow_bin)
    with memory_advice(), tqdm(total=len(queries), unit="image") as bar:
        bank = pipeline.encode_support(supports, masks, config.image_size)
        for start in range(0, len(queries), config.batch):
            files = queries[start : start + config.batch]
            images = [open_rgb(file, upright=True) for file in files]
            output = pipeline(
                images,
                bank,
                threshold=config.threshold,
                threshold_rule=config.threshold_rule,
                image_size=config.image_size,
                batch=config.batch,
            )
            for file, image, mask in zip(files, images, output.masks, strict=True):
                save_image(Path(config.out) / f"{file.stem}_mask.png", mask.astype(np.uint8) * 255)
                save_image(Path(config.out) / f"{file.stem}_overlay.jpg", overlay(np.array(image), mask))
            bar.update(len(files))


def _open_support_mask(file: str, size: tuple[int, int]) -> np.ndarray:
    mask = open_mask(file, upright=True)
    if mask.shape != size[::-1]:
        raise InputError(
            f"mask={file} is {mask.shape[1]} x {mask.shape[0]}, its support picture {size[0]} x {size[1]}"
        )
    return binary_mask(mask, f"mask={file}")
