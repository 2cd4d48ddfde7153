"""Makes benchmarks from the official downloads, and says whether the result is right."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from diffews.data.benchmarks.coco20i import CLASS_NAMES, FOLDS, Coco20i
from diffews.data.benchmarks.coco_json import CocoContent
from diffews.data.episodes import Benchmark
from diffews.data.lists import read_json_file
from diffews.data.polygons import check_segmentation, segmentation_mask
from diffews.errors import InputError, refuse, result_or_error, unwrap
from diffews.images.files import open_mask
from diffews.runtime.files import check_run, hash_files, open_run, write_atomic
from diffews.runtime.locks import one_writer
from diffews.runtime.workers import begin_worker, watched, worker_advice

SHOWN = 20  # bad annotations that are listed
GOOD = 0.999  # share of pairs that agree, from which a self-check calls masks right
Pairs = set[tuple[str, int]]  # (picture, class id)


@dataclass(frozen=True)
class SelfCheck:
    """How masks agree with the lists."""

    part: str
    names: dict[int, str]  # of the classes
    agree: Pairs
    missing: Pairs  # listed, but the class is too small in the mask
    extra: Pairs  # large enough in the mask, but not listed

    @property
    def share(self) -> float:
        """Share of all pairs that agree, 0..1."""
        return len(self.agree) / max(len(self.agree) + len(self.missing) + len(self.extra), 1)

    @property
    def good(self) -> bool:
        """Whether the masks may be called right."""
        return self.share >= GOOD

    def summary(self) -> str:
        """Returns the counts, those of every class that does not agree, and a verdict."""
        lines = [f"{self.part}: {len(self.agree)} (picture, class) pairs agree with the lists, "
                 f"{len(self.missing)} are missing, {len(self.extra)} are too many"]
        for class_id in sorted({c for _, c in self.missing | self.extra}):
            missing, extra = (sum(c == class_id for _, c in pairs)
                              for pairs in (self.missing, self.extra))
            name = self.names.get(class_id, class_id)
            lines.append(f"  {name}: {missing} missing, {extra} too many")

        verdict = "right" if self.good else "NOT right"
        lines.append(f"{self.part}: the masks are {verdict}, {self.share:.2%} of the pairs agree")
        if not self.good:
            picture, class_id = min(self.missing or self.extra)
            lines[-1] += f"; look at {picture}, class {class_id}"
        return "\n".join(lines)


def prepare_and_check_coco(data: Path, part: str, workers: int, rasterizer: str,
                           least: int) -> SelfCheck:
    """Writes a part's masks (see `prepare_coco`) and compares them with the lists.

    data: the folder that holds COCO2014/.
    least: a (picture, class) pair belongs into the lists if the class covers so many pixels.
    """
    root, split = Benchmark.find_root(data, "COCO2014"), {"train2014": "train", "val2014": "test"}
    if part not in split:
        raise InputError(f"parts={part} is not one of {', '.join(split)}")
    lists: dict[int, list[str]] = {}
    for fold in range(FOLDS):  # together they list every class
        benchmark = Coco20i(data, fold, split[part])
        lists |= {c: [sample.name for sample in s] for c, s in benchmark.images.items()}
    prepare_coco(root, part, rasterizer, workers)

    # pictures without a mask count as holding nothing
    masks = sorted((root / "annotations" / part).glob("*.png"))
    classes = run_all(functools.partial(_large_classes, least=least), masks, workers, "check")
    found = {(f"{part}/{mask.stem}.jpg", c)
             for mask, ids in zip(masks, classes, strict=True) for c in ids}
    listed = {(name, c) for c, names in lists.items() for name in names}
    return SelfCheck(part, benchmark.class_names, listed & found, listed - found, found - listed)


def prepare_coco(root: Path, part: str, rasterizer: str, workers: int) -> None:
    """Writes annotations/<part>/COCO_*.png from annotations/instances_<part>.json.

    Annotations with iscrowd=0 in the file's order, later over earlier; a picture without any is
    skipped. A run that was stopped goes on.
    """
    file, folder = root / "annotations" / f"instances_{part}.json", root / "annotations" / part
    content = CocoContent(read_json_file(file), file, shapes=False)
    if len(content.categories) != len(CLASS_NAMES):
        raise InputError(
            f"{file} has {len(content.categories)} categories, not COCO's {len(CLASS_NAMES)}")

    value = {category: place for place, category in enumerate(content.categories, start=1)}
    todo, names = [], dict[Path, str]()
    for image_id, image in content.images.items():
        name = image["file_name"]
        target = folder / f"{Path(name).stem}.png"
        if (other := names.setdefault(target, name)) != name:
            raise InputError(f"{file}: the masks of {other!r} and {name!r} would be one file, "
                             f"{target.name}; rename one")
        shapes = [(value[a["category_id"]], a["segmentation"], a["id"])
                  for a in content.of_image.get(image_id, []) if not a.get("iscrowd")]
        if shapes and not target.is_file():
            todo.append((target, image["height"], image["width"], shapes))

    with one_writer(folder):
        identity = {"rasterizer": rasterizer, "annotations_sha256": hash_files([file])}
        check_run(folder, identity)

        # all that is bad is said at once, and before anything is written
        faults = [fault for found in run_all(_find_faults, todo, workers, f"read {part}")
                  for fault in found]
        if faults:
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise InputError(f"{file}: {len(faults)} bad annotation(s): "
                             f"{'; '.join(faults[:SHOWN])}{more}; correct or remove them")

        open_run(folder, identity)
        write = functools.partial(_write_mask, rasterizer=rasterizer, where=str(file))
        run_all(write, todo, workers, f"masks of {part}")


def prepare_lvis(root: Path, part: str) -> Path:
    """Writes lvis_<part>.json (class -> picture -> annotations) from lvis_v1_<part>.json.

    Classes in the order of their ids, pictures in the order of the annotations. The order of the
    published pickles is not known, so that episodes cannot be checked against the published ones.
    """
    file = root / f"lvis_v1_{part}.json"
    content = read_json_file(file)
    with refuse(f"{file} lacks a key", KeyError, TypeError, AttributeError, cure="is it LVIS v1?"):
        images = [{**image, "file_name": "/".join(image["coco_url"].split("/")[-2:])}
                  for image in content["images"]]  # LVIS v1 names pictures by their address
    checked = CocoContent({**content, "images": images}, file)

    table: dict[str, dict[str, Any]] = {}
    for category, name in checked.categories.items():
        if name in table:
            raise InputError(f"{file}: category {category} has the name {name!r} of another; "
                             "rename one")
        table[name] = {}
    for annotation in content["annotations"]:
        of_class = table[checked.categories[annotation["category_id"]]]
        name = checked.images[annotation["image_id"]]["file_name"]
        entry = of_class.setdefault(name, {"annotations": []})
        entry["annotations"].append({"segmentation": annotation["segmentation"]})
    target = root / f"lvis_{part}.json"
    with one_writer(root):
        write_atomic(target, json.dumps({name: found for name, found in table.items() if found}))
    return target


def prepare_pascal(root: Path, sbd: Path, workers: int) -> int:
    """Writes SegmentationClassAug from VOC 2012's SegmentationClass and SBD's cls/*.mat.

    A picture that VOC itself annotates takes VOC's mask, with its boundary (255); the others take
    SBD's, without. Returns the number of masks.
    """
    with refuse("SBD's .mat files need scipy", ImportError,
                cure="install it with pip install 'diffews[sbd]'"):
        import scipy.io  # noqa: F401  (asked for before anything is written)
    sources: dict[str, Path] = {}
    for place, suffix in ((sbd / "cls", ".mat"), (root / "SegmentationClass", ".png")):
        found = {path.stem: path for path in place.glob(f"*{suffix}")}
        if not found:
            raise InputError(f"{place}: nothing in it; see datasets/README.md")
        sources |= found

    folder = root / "SegmentationClassAug"
    pairs = [(sources[name], folder / f"{name}.png") for name in sorted(sources)]
    with one_writer(folder):
        run_all(_write_class_map, [p for p in pairs if not p[1].is_file()], workers, "masks")
    return len(pairs)


def run_all(function: Callable[[Any], Any], items: Sequence[Any], workers: int,
            name: str) -> list[Any]:
    """Returns function(item) of every item in order, on `workers` processes, with a bar `name`."""
    if not items:
        return []
    if workers < 2 or len(items) < 2:
        return [function(item) for item in tqdm(items, unit="image", desc=name)]

    cure, chunk, results = "workers=1 does without", max(1, min(64, len(items) // workers)), []
    with worker_advice(cure):
        pool = ProcessPoolExecutor(workers, initializer=begin_worker, initargs=(os.getpid(),))
    with pool, tqdm(total=len(items), unit="image", desc=name) as bar:
        try:
            with worker_advice(cure):
                caught = functools.partial(result_or_error, function)
                found = pool.map(caught, items, chunksize=chunk)
            for result in watched(found, cure):
                results.append(unwrap(result))
                bar.update()
        except BaseException:  # else the error would be shown when all else is done
            pool.shutdown(cancel_futures=True)
            for worker in active_children():  # of a pool that did not start whole
                worker.kill()
            raise
    return results


def _find_faults(item: tuple[Path, int, int, list[tuple[int, Any, Any]]]) -> list[str]:
    """Says which of a picture's shapes cannot be filled, and why; see `_write_mask`."""
    _, height, width, shapes = item
    faults = []
    for _, segmentation, annotation_id in shapes:
        try:
            check_segmentation(segmentation, height, width, f"annotation {annotation_id}")
        except InputError as error:
            faults.append(str(error))
    return faults


def _write_mask(item: tuple[Path, int, int, list[tuple[int, Any, Any]]], rasterizer: str,
                where: str) -> None:
    """Fills shapes (value, segmentation, annotation id) in order -> PNG (height, width)."""
    target, height, width, shapes = item
    class_map = np.zeros((height, width), np.uint8)

    for value, segmentation, annotation_id in shapes:
        place = f"{where}: annotation {annotation_id}"
        mask = segmentation_mask(segmentation, height, width, place)
        if rasterizer == "fillpoly" and isinstance(segmentation, list):
            for polygon in segmentation:
                points = np.array(polygon).reshape(-1, 2).astype(np.int32)
                cv2.fillPoly(class_map, [points], value)
        else:
            class_map[mask > 0] = value
    _save_png(target, class_map)


def _write_class_map(item: tuple[Path, Path]) -> None:
    source, target = item
    if source.suffix == ".mat":
        from scipy.io import loadmat

        with refuse(f"{source} holds no GTcls.Segmentation"):  # scipy raises many kinds
            class_map = np.asarray(loadmat(source)["GTcls"]["Segmentation"][0, 0])
    else:
        class_map = open_mask(source)

    # a cast would wrap what a byte does not hold: 256 to background
    is_map = class_map.ndim == 2 and class_map.size and class_map.dtype.kind in "buif"
    if not is_map:
        raise InputError(f"{source} holds {class_map.dtype} of shape {class_map.shape}, no mask")
    wrong = class_map[~((class_map >= 0) & (class_map <= 255) & (class_map % 1 == 0))]
    if wrong.size:
        raise InputError(f"{source} holds the value {wrong[0]}; masks hold whole numbers up to 255")
    _save_png(target, class_map.astype(np.uint8))


def _save_png(target: Path, mask: np.ndarray) -> None:
    write_atomic(target, cv2.imencode(".png", mask)[1].tobytes())


def _large_classes(mask: Path, least: int) -> list[int]:
    counts = np.bincount(open_mask(mask).ravel())
    return [int(value) - 1 for value in np.flatnonzero(counts >= least) if value > 0]
