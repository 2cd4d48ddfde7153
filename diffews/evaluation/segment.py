"""Segments people's own pictures: the support is encoded once, every query reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diffews.cli.settings import SegmentConfig
from diffews.errors import InputError
from diffews.images.files import check_image, list_images, open_mask, open_rgb
from diffews.images.masks import binary_mask
from diffews.models.find import WeightSource
from diffews.runtime.files import write_atomic

if TYPE_CHECKING:
    from diffews.pipeline import DiffewsPipeline


def find_queries(config: SegmentConfig) -> list[Path]:
    """Checks that supports pair with masks and that all files are there; returns the queries, folders listed."""
    if config.bank and (config.support or config.mask):
        raise InputError("give either bank= or support= with mask=")
    if len(config.support) != len(config.mask):
        raise InputError(
            f"{len(config.support)} support pictures for {len(config.mask)} masks; give mask= for each support="
        )
    if config.classes and len(config.classes) != len(config.support):
        raise InputError(
            f"{len(config.classes)} classes for {len(config.support)} support pictures; name the class of each"
        )
    banks = [Path(file).stem for file in config.bank]
    if len(set(banks)) < len(banks):
        raise InputError(f"two banks are named {next(b for b in banks if banks.count(b) > 1)!r}; rename one")
    missing = next((file for file in config.bank if not Path(file).is_file()), None)
    if missing is not None:
        raise InputError(f"bank={missing}: no such file; save_bank= writes one")
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
    kept = [
        file
        for file in files
        if file.resolve() not in named and not file.stem.endswith(("_mask", "_labels", "_overlay"))
    ]
    return [file for file in kept if file.suffix.lower() != ".png" or file.stem not in photos]


def segment(config: SegmentConfig, source: WeightSource, queries: Sequence[Path]) -> None:
    """Writes each query's mask and overlay into config.out, at the query's own size.

    One class: <query>_mask.png (0 and 255). Several: <query>_labels.png (0 none, then 1, 2, ... as labels.json says).
    """
    from diffews.images.drawing import label_overlay, overlay, save_image
    from diffews.runtime.device import auto_batch, memory_advice, pick_device
    from diffews.runtime.loading import open_pipeline, settle_fast

    supports = [open_rgb(file, upright=True) for file in config.support]
    masks = [_open_support_mask(file, image.size) for file, image in zip(config.mask, supports, strict=True)]
    device, out = pick_device(config.device), Path(config.out)
    config = settle_fast(config, device)
    pipeline = open_pipeline(config, source, device, config.threads)
    with memory_advice(), tqdm(total=len(queries), unit="image") as bar:
        if config.bank:
            banks = {Path(file).stem: pipeline.load_bank(file) for file in config.bank}
        else:
            banks = {}
            for name in dict.fromkeys(config.classes or [""]):
                own = [i for i in range(len(supports)) if not config.classes or config.classes[i] == name]
                pairs = [supports[i] for i in own], [masks[i] for i in own]
                banks[name] = pipeline.encode_support(*pairs, config.image_size)
        if config.save_bank:
            several = len(banks) > 1
            for name, bank in banks.items():
                place = Path(config.save_bank)
                pipeline.save_bank(bank, place / f"{name}.safetensors" if several else place)
        if config.batch == "auto":
            size, first = config.image_size or pipeline.config.image_size, next(iter(banks.values()))
            config.batch = auto_batch(lambda count: _try(pipeline, first, count, size), device, size)
        if len(banks) > 1:
            write_atomic(out / "labels.json", json.dumps(dict(enumerate(banks, start=1)), indent=1) + "\n")
        settings: dict[str, Any] = {
            name: getattr(config, name) for name in ("threshold", "threshold_rule", "image_size", "batch")
        }
        batch = int(config.batch)
        for start in range(0, len(queries), batch):
            files = queries[start : start + batch]
            images = [open_rgb(file, upright=True) for file in files]
            if len(banks) > 1:
                labels = pipeline.label(images, list(banks.values()), **settings)
                for file, image, label in zip(files, images, labels, strict=True):
                    save_image(out / f"{file.stem}_labels.png", label)
                    save_image(out / f"{file.stem}_overlay.jpg", label_overlay(np.array(image), label))
            else:
                output = pipeline(images, *banks.values(), **settings)
                for file, image, mask in zip(files, images, output.masks, strict=True):
                    save_image(out / f"{file.stem}_mask.png", mask.astype(np.uint8) * 255)
                    save_image(out / f"{file.stem}_overlay.jpg", overlay(np.array(image), mask))
            bar.update(len(files))


def _try(pipeline: "DiffewsPipeline", bank: Any, count: int, size: int) -> None:
    import torch

    with torch.no_grad():
        pipeline.predict_rgb(torch.zeros(count, 3, size, size), bank)


def _open_support_mask(file: str, size: tuple[int, int]) -> np.ndarray:
    mask = open_mask(file, upright=True)
    if mask.shape != size[::-1]:
        raise InputError(
            f"mask={file} is {mask.shape[1]} x {mask.shape[0]}, its support picture {size[0]} x {size[1]}"
        )
    return binary_mask(mask, f"mask={file}")
