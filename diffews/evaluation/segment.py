"""Segments people's pictures: the support is encoded once, every query reads it."""

import hashlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from diffews.errors import InputError, printable
from diffews.evaluation.presence_list import PresenceList
from diffews.evaluation.queries import NO_NAME, Queries, Query, class_names, is_clip
from diffews.evaluation.supports import open_supports
from diffews.evaluation.video import FrameMemory, Supports, stamp_frames
from diffews.images.files import open_image
from diffews.images.masks import GATE
from diffews.images.photos import open_photo
from diffews.models.find import EXPORT, PRESENCE, WeightDir
from diffews.runtime.files import hash_files, write_atomic

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig
    from diffews.onnx import OnnxPipeline

SETTINGS = "diffews"  # text in a mask's PNG: the hash of what it was made with
PRESENCE_LIST = "presence.csv"
SHOWN = 20  # names that a line shows
WITH_TORCH = (  # keys that say how torch is to run a weight dir
    "base", "encoder", "decoder", "denoising_steps", "ensemble", "dtype", "channels_last",
    "compile", "low_memory", "tf32", "presence", "video")


@dataclass
class Opened:
    """A pipeline that is ready, and how it is run.

    Attributes:
        pipeline: DiffewsPipeline or OnnxPipeline.
        batch: queries computed at once; None where `fit` says it.
        fit: runs so many black queries, the side of a picture -> how many to compute at once, and
            why.
        advice: turns a lack of memory into one line.

    """

    pipeline: Any
    batch: int | None
    fit: Callable[[Callable[[int], object], int], tuple[int, str]]
    advice: AbstractContextManager[None]


def open_export(config: "SegmentConfig", folder: Path) -> "OnnxPipeline":
    """Opens graphs that `diffews export format=onnx` wrote, without torch.

    Raises:
        InputError: for a folder that is not whole, and for keys that graphs do not take.

    """
    from diffews.models.graphs import find_providers
    from diffews.onnx import OnnxPipeline

    for item in fields(config):
        if item.name in WITH_TORCH and getattr(config, item.name) != item.default:
            raise InputError(f"{item.name}= is for weights that torch runs; {folder} holds graphs "
                             f"({EXPORT}), leave it out")
    clip = next((word for word in config.query if is_clip(word)), None)
    if clip is not None:
        raise InputError(f"query={clip}: the frames of a clip are remembered by weights that torch "
                         f"runs; {folder} holds graphs ({EXPORT})")
    return OnnxPipeline(folder, find_providers(config.device), config.threads)


def segment(
    config: "SegmentConfig", source: WeightDir, queries: Queries,
    graphs: "OnnxPipeline | None" = None,
) -> int:
    """Writes each query's mask and overlay into config.out, at the query's size.

    One class: <query>_mask.png (0 and 255). Several: <query>_labels.png (0 none, then 1, 2, ... as
    labels.json says). What is there of the same settings, supports and query is not done again.

    Args:
        config: the keys of `diffews segment`.
        source: where the weights lie.
        queries: as `find_queries` gives them; `unreadable` takes what cannot be decoded.
        graphs: what `open_export` opened, where the weights are such graphs.

    Returns:
        The number of queries whose results were written.

    Raises:
        InputError: for a support that cannot be decoded, or a mask that does not fit it or is
            empty at the size that the model works at.

    """
    # bad input is refused before the weights are read
    supports, masks = open_supports(config)
    out, several = Path(config.out), len(class_names(config)) > 1

    # what is done already, and what a killed run had begun
    made_with, places = hash_settings(config, source), _places(config, queries)
    for partial in {p for files in places.values() for p in files[0].parent.glob(".*.partial")}:
        partial.unlink(missing_ok=True)
    stamp: Callable[[Query], str] = lambda query: made_with + hash_files([query.file])  # noqa: E731
    if config.video:
        stamp = stamp_frames(made_with, queries.found).__getitem__
    todo = list(queries.found) if config.overwrite else _not_done(places, stamp, queries)
    if not todo and not config.save_bank:
        return 0
    opened = _open(config, source, graphs)
    pipeline, listed = opened.pipeline, PresenceList(out / PRESENCE_LIST)
    settings: dict[str, Any] = {
        "image_size": config.image_size, "threshold": config.threshold,
        "threshold_rule": config.threshold_rule,
        "min_presence": settle_gate(config, pipeline.presence.kind if graphs is None else None)}

    with opened.advice, tqdm(total=len(todo), unit="image") as bar:
        banks = _encode_supports(config, pipeline, supports, masks)
        memory = Supports(list(banks.values()))
        if config.video:
            memory = _remember_frames(config, pipeline, memory.banks, places)
        batch = 1 if config.video else opened.batch or _fit(opened, memory.banks[0], settings)

        # the queries, in batches; a mask is bool, a label map holds 0, 1, 2, ...
        written = 0
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            bar.update(len(part))
            decoded = {query: image for query in part
                       if (image := _open_query(query, queries)) is not None}
            if not decoded:
                continue
            found = _answer(
                pipeline, list(decoded.values()), memory.recall(next(iter(decoded))), several,
                settings)
            if found.presence:
                list_presence(listed, list(decoded), list(banks), found.presence, found.masks)

            for row, (query, image) in enumerate(decoded.items()):
                _write(places[query], image, found, row, several, stamp(query))
                memory.remember(query, image, found.masks[row])
                written += 1
    listed.close()
    return written


@dataclass(frozen=True)
class Found:
    """What was found in B pictures.

    Attributes:
        masks: bool (H, W) of each, or label maps uint8 of 0 and 1 .. C.
        presence: of each of C classes in each picture, B times C; None where nobody was asked.
        scores: float (H, W) of each, of one class.

    """

    masks: list[np.ndarray]
    presence: list[list[float]] | None
    scores: list[np.ndarray]


def _places(config: "SegmentConfig", queries: Queries) -> dict[Query, list[Path]]:
    """Returns the files of each query: mask or label map, overlay, and scores if asked for."""
    out, kind = Path(config.out), "labels" if len(class_names(config)) > 1 else "mask"
    places = {query: [out / f"{query.name}_{kind}.png", out / f"{query.name}_overlay.jpg"]
              for query in queries.found}
    if "scores" in config.format:
        for query, files in places.items():
            files.append(out / "scores" / f"{query.name}.png")
    return places


def _encode_supports(
    config: "SegmentConfig", pipeline: Any, supports: Sequence[Image.Image], masks: Sequence[Any]
) -> dict[str, Any]:
    """Reads or encodes the bank of each class, once for all queries, and writes what is asked."""
    banks = {Path(file).stem: pipeline.load_bank(file) for file in config.bank}
    classes = config.classes or [""] * len(supports)
    for name in dict.fromkeys(classes):
        shots = [i for i in range(len(classes)) if classes[i] == name]
        pairs = [supports[i] for i in shots], [masks[i] for i in shots]
        banks[name] = pipeline.encode_support(*pairs, config.image_size, weak=config.weak)

    if len(banks) > 1:
        labels = dict(enumerate(banks, start=1))
        write_atomic(Path(config.out) / "labels.json", json.dumps(labels, indent=1) + "\n")
    if config.save_bank:
        place = Path(config.save_bank)
        for name, bank in banks.items():
            file = place / f"{name}.safetensors" if len(banks) > 1 else place
            pipeline.save_bank(bank, file)
    return banks


def _remember_frames(
    config: "SegmentConfig", pipeline: Any, banks: Sequence[Any], places: dict[Query, list[Path]]
) -> FrameMemory:
    """Returns the memory of a video whose frames are the queries."""
    pipeline.method.interaction.check_bank_use("a video")
    size = int(config.image_size or 0)
    return FrameMemory(
        banks, list(places), config.memory, size,
        lambda image, mask: pipeline.encode_support(image, mask, size),
        lambda frame: _read_again(frame, places[frame][0], len(banks) > 1))


def _fit(opened: Opened, bank: Any, settings: dict[str, Any]) -> int:
    """Finds out how many queries to compute at once, and says it."""
    size = settings["image_size"]
    black = np.zeros((size, size, 3), np.uint8)
    batch, why = opened.fit(
        lambda count: opened.pipeline([black] * count, bank, batch=count, **settings), size)
    if why:
        print(f"diffews: batch={batch}: {why}", file=sys.stderr)
    return batch


def _answer(
    pipeline: Any, images: list[Image.Image], banks: Sequence[Any], several: bool,
    settings: dict[str, Any],
) -> Found:
    """Segments pictures together: one class as a mask, several as a label map."""
    if several:
        maps = pipeline.label(images, banks, batch=len(images), **settings)
        return Found(maps, maps.presence, [])
    output = pipeline(images, banks[0], batch=len(images), **settings)
    alone = output.presence
    presence = None if alone is None else [[share] for share in alone]
    return Found(output.masks, presence, output.scores)


def _write(
    files: list[Path], image: Image.Image, found: Found, row: int, several: bool, made: str
) -> None:
    """Writes what was found in a picture; the mask comes last: where it is, all is."""
    from diffews.images.drawing import overlay, save_image

    mask, overlaid, *scores = files
    save_image(overlaid, overlay(np.array(image), found.masks[row]))
    for file in scores:
        write_atomic(file, _encode_mask(np.rint(found.scores[row] * 65535), made, np.uint16))
    write_atomic(mask, _encode_mask(found.masks[row] * (1 if several else 255), made))


def settle_gate(config: "SegmentConfig", kind: str | None) -> float | None:
    """Returns the presence below which a mask is emptied: as asked, else GATE with a trained head.

    kind: of who is asked, None for nobody.
    """
    if config.min_presence is None:
        return GATE if kind not in (None, "cosine") else None
    if kind is None:
        raise InputError(
            f"min_presence={config.min_presence:g} needs weights with a presence head; train one "
            "with `diffews train-presence`, or give presence=cosine")
    return config.min_presence


def list_presence(
    listed: PresenceList, queries: Sequence[Query], classes: Sequence[str],
    sure: Sequence[Sequence[float]], found: Sequence[np.ndarray]
) -> None:
    """Adds to presence.csv what was found of some queries.

    Args:
        listed: the list.
        queries: B of them.
        classes: names, C of them.
        sure: presence of each class in each query, B times C.
        found: B masks, or label maps of 1 .. C.

    """
    for query, shares, mask in zip(queries, sure, found, strict=True):
        for number, (name, share) in enumerate(zip(classes, shares, strict=True), start=1):
            listed.add(list_name(query), name or NO_NAME, share, mask == number)


def list_name(query: Query) -> str:
    """Returns what presence.csv calls a query."""
    return f"{query.name}{query.file.suffix}"


def _open(config: "SegmentConfig", source: WeightDir, graphs: "OnnxPipeline | None") -> Opened:
    """Opens the weights with torch, unless graphs are open already."""
    if graphs is not None:
        auto = config.batch == "auto" or (config.fast and config.batch == 1)
        batch = None if auto else int(config.batch)
        return Opened(graphs, batch, lambda *_: (1, ""), nullcontext())

    from diffews.runtime.device import auto_batch, memory_advice, pick_device
    from diffews.runtime.loading import open_pipeline, settle_fast

    device = pick_device(config.device)
    config = settle_fast(config, device)
    batch = None if config.batch == "auto" else int(config.batch)
    pipeline = open_pipeline(config, source, device, config.threads)
    return Opened(
        pipeline, batch, lambda run, size: auto_batch(run, device, size), memory_advice())


def report(queries: Queries) -> None:
    """Says on stderr what was left out, why, and what could not be read."""
    for reason, files in queries.left_out.items():
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        shown = printable(", ".join(files[:SHOWN]))
        print(f"diffews: left out {len(files)} ({reason}): {shown}{more}", file=sys.stderr)
    if queries.unreadable:
        print(f"diffews: {len(queries.unreadable)} could not be read:", file=sys.stderr)
    for error in queries.unreadable.values():
        print(f"  {printable(error.strip())}", file=sys.stderr)


def hash_settings(config: "SegmentConfig", source: WeightDir) -> str:
    """Returns a hash of what changes every mask: supports, weights (by name and age), settings."""
    names = ("image_size", "threshold", "threshold_rule", "dtype", "denoising_steps", "ensemble",
             "encoder", "decoder", "classes", "mask_value", "mask_colour")
    weights = sorted(file for file in source.path.rglob("*") if file.is_file())
    ages = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    given = [Path(file) for file in (*config.support, *config.mask, *config.bank)]
    content = [hash_files([file]) for file in given]
    values = [getattr(config, name) for name in names]
    settings: list[Any] = [ages, str(source.base), content, values]
    if (source.path / PRESENCE).is_dir() or config.presence != "auto":
        settings += [config.presence, config.min_presence]
    if not (config.mask or config.bank):
        scribbles = [hash_files([Path(file)]) for file in config.scribble]
        settings.append([config.box, config.point, scribbles, config.weak])
    if config.video:
        settings.append(config.memory)
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _not_done(
    places: dict[Query, list[Path]], stamp: Callable[[Query], str], queries: Queries
) -> list[Query]:
    """Returns the queries whose results are missing, or are of other settings."""
    todo, other = [], 0
    for query, files in places.items():
        if not all(file.is_file() for file in files):
            todo.append(query)
            continue
        try:
            found = open_image(files[0]).info.get(SETTINGS)
            wanted = stamp(query)
            if found == wanted and len(files) > 2:  # scores may be of an earlier run
                found = open_image(files[2]).info.get(SETTINGS, "")
        except InputError:
            found, wanted = "", "whole"  # a mask that is broken is made again
        if found is None:
            queries.leave_out(files[0], "there already, from elsewhere; overwrite=true replaces it")
        elif found == wanted:
            queries.leave_out(query.file, "done already; overwrite=true does it again")
        else:
            other += 1
            todo.append(query)
    if other:
        print(f"diffews: {other} results of other settings or pictures are written again",
              file=sys.stderr)
    return todo


def _open_query(query: Query, queries: Queries) -> Image.Image | None:
    """Decodes a query; one that cannot be decoded is noted, and does not stop the others."""
    try:
        return open_photo(query.file)[0]
    except InputError as error:
        if len(queries.found) == 1:
            raise
        queries.unreadable[str(query.file)] = str(error)
        return None


def _read_again(
    frame: Query, mask_file: Path, several: bool
) -> tuple[Image.Image, np.ndarray] | None:
    """Reads a frame of an earlier run, and its mask or label map (H, W); None for neither."""
    try:
        labels, image = np.asarray(open_image(mask_file)), open_photo(frame.file)[0]
    except InputError:
        return None
    fits = labels.shape == (image.height, image.width)  # somebody may have painted another
    return (image, labels if several else labels > 0) if fits else None


def _encode_mask(mask: np.ndarray, made_with: str, dtype: type = np.uint8) -> bytes:
    """Encodes a mask, or scores, as PNG that says what it was made with."""
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text(SETTINGS, made_with)
    Image.fromarray(mask.astype(dtype)).save(file, "PNG", pnginfo=text, compress_level=1)
    return file.getvalue()
