"""Segments people's pictures: the support is encoded once, every query reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffews.errors import InputError
from diffews.images.files import check_image, list_images, open_mask, open_rgb
from diffews.images.masks import binary_mask
from diffews.models.find import WeightDir
from diffews.runtime.files import write_atomic

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig


def find_queries(config: "SegmentConfig") -> list[Path]:
    """Returns the queries that a config names, the pictures of its folders among them.

    Raises:
        InputError: for supports, masks, classes and banks that do not go together; for a file that
            is missing or no picture; for queries whose masks would be one file.

    """
    supports, masks, classes = len(config.support), len(config.mask), len(config.classes)
    if config.bank and (supports or masks):
        raise InputError("give either bank= or support= with mask=")
    if supports != masks:
        cure = "give mask= for each support="
        raise InputError(f"{supports} support pictures for {masks} masks; {cure}")
    if classes and classes != supports:
        cure = "name the class of each"
        raise InputError(f"{classes} classes for {supports} support pictures; {cure}")

    if (name := _shared_name(config.bank)) is not None:
        raise InputError(f"two banks are named {name!r}; rename one")
    for bank in config.bank:
        if not Path(bank).is_file():
            raise InputError(f"bank={bank}: no such file; save_bank= writes one")

    if not config.query:
        raise InputError("query= is missing; query picture(s), or folders of them")
    queries: list[Path] = []
    for query in config.query:
        found = _photos(Path(query), config.mask) if Path(query).is_dir() else [Path(query)]
        if not found:
            raise InputError(f"query={query}: no pictures in this folder")
        queries += found
    for file in (*map(Path, config.support), *map(Path, config.mask), *queries):
        check_image(file)
    if (name := _shared_name(queries)) is not None:
        cure = "their masks would be one file; rename one"
        raise InputError(f"two queries are named {name!r}, {cure}")
    return queries


def _shared_name(files: Sequence[str | Path]) -> str | None:
    """Returns a name that two of the files have, their endings left out."""
    names = [Path(file).stem for file in files]
    return next((name for name in names if names.count(name) > 1), None)


def _photos(folder: Path, masks: Sequence[str]) -> list[Path]:
    """Lists a folder's pictures, but no masks, no earlier results, no PNG of a photo's name."""
    results, given = ("_mask", "_labels", "_overlay"), {Path(mask).resolve() for mask in masks}
    files = list_images(folder)
    photos = {file.stem for file in files if file.suffix.lower() != ".png"}
    return [
        file for file in files
        if file.resolve() not in given and not file.stem.endswith(results)
        and (file.suffix.lower() != ".png" or file.stem not in photos)]


def segment(config: "SegmentConfig", source: WeightDir, queries: Sequence[Path]) -> None:
    """Writes each query's mask and overlay into config.out, at the query's size.

    One class: <query>_mask.png (0 and 255). Several: <query>_labels.png (0 none, then 1, 2, ... as
    labels.json says).

    Args:
        config: the keys of `diffews segment`.
        source: where the weights lie.
        queries: as `find_queries` gives them.

    Raises:
        InputError: for a picture that cannot be decoded, or a mask that does not fit its support.

    """
    from diffews.images.drawing import overlay, save_image
    from diffews.runtime.device import auto_batch, memory_advice, pick_device
    from diffews.runtime.loading import open_pipeline, settle_fast

    # bad input is refused before the weights are read
    supports = [open_rgb(file, upright=True) for file in config.support]
    masks = [_open_support_mask(*pair) for pair in zip(config.mask, supports, strict=True)]
    device, out = pick_device(config.device), Path(config.out)
    config = settle_fast(config, device)
    pipeline = open_pipeline(config, source, device, config.threads)

    with memory_advice(), tqdm(total=len(queries), unit="image") as bar:
        # the support of each class is read once, whatever the number of queries
        banks = {Path(file).stem: pipeline.load_bank(file) for file in config.bank}
        classes = config.classes or [""] * len(supports)
        for name in dict.fromkeys(classes):
            shots = [i for i in range(len(classes)) if classes[i] == name]
            pairs = [supports[i] for i in shots], [masks[i] for i in shots]
            banks[name] = pipeline.encode_support(*pairs, config.image_size)
        several = len(banks) > 1
        if several:
            labels = dict(enumerate(banks, start=1))
            write_atomic(out / "labels.json", json.dumps(labels, indent=1) + "\n")
        if config.save_bank:
            place = Path(config.save_bank)
            for name, bank in banks.items():
                pipeline.save_bank(bank, place / f"{name}.safetensors" if several else place)

        size, first = config.image_size or pipeline.config.image_size, next(iter(banks.values()))
        settings: dict[str, Any] = {
            "image_size": size, "threshold": config.threshold,
            "threshold_rule": config.threshold_rule}
        batch = config.batch
        if batch == "auto":
            black = np.zeros((size, size, 3), np.uint8)
            batch = auto_batch(
                lambda count: pipeline([black] * count, first, batch=count, **settings),
                device, size)

        # the queries, in batches; a mask is bool, a label map holds 0, 1, 2, ...
        kind, white = ("labels", 1) if several else ("mask", 255)
        for start in range(0, len(queries), int(batch)):
            files = queries[start : start + int(batch)]
            images = [open_rgb(file, upright=True) for file in files]
            if several:
                found = pipeline.label(images, list(banks.values()), batch=len(files), **settings)
            else:
                found = pipeline(images, first, batch=len(files), **settings).masks
            for file, image, mask in zip(files, images, found, strict=True):
                save_image(out / f"{file.stem}_{kind}.png", mask.astype(np.uint8) * white)
                save_image(out / f"{file.stem}_overlay.jpg", overlay(np.array(image), mask))
            bar.update(len(files))


def _open_support_mask(file: str, support: Image.Image) -> np.ndarray:
    """Reads a support's mask -> uint8 (H, W) of {0, 1}, of the support's size."""
    mask = open_mask(file, upright=True)
    if mask.shape != support.size[::-1]:
        theirs = f"{support.width} x {support.height}"
        raise InputError(
            f"mask={file} is {mask.shape[1]} x {mask.shape[0]}, its support picture {theirs}")
    return binary_mask(mask, f"mask={file}")
