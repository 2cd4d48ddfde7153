"""Makes benchmarks from the official downloads, and says whether the result is right."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from diffews.data.benchmarks.coco20i import CLASS_NAMES, FOLDS, Coco20i
from diffews.data.benchmarks.coco_json import CocoContent, read_coco
from diffews.data.episodes import Benchmark
from diffews.data.lists import read_json_file
from diffews.data.polygons import segmentation_mask
from diffews.errors import InputError, raised, returned
from diffews.images.files import open_mask
from diffews.runtime.files import hash_files, open_run, write_atomic

GOOD = 0.999  # share of (picture, class) pairs that agree, from which a self-check calls masks right


@dataclass
class SelfCheck:
    """How masks agree with the lists: sets of (picture, class id)."""

    part: str
    agree: set[tuple[str, int]] = field(default_factory=set)
    missing: set[tuple[str, int]] = field(default_factory=set)  # listed, but the class is too small in the mask
    extra: set[tuple[str, int]] = field(default_factory=set)  # large enough in the mask, but not listed

    @property
    def share(self) -> float:
        """Share of all pairs that agree."""
        return len(self.agree) / max(len(self.agree) + len(self.missing) + len(self.extra), 1)

    @property
    def good(self) -> bool:
        """Whether the masks may be called right."""
        return self.share >= GOOD

    def report(self, names: dict[int, str]) -> str:
        """Returns the counts, the classes that agree least, and a verdict in one sentence."""
        lines = [
            f"{self.part}: {len(self.agree)} (picture, class) pairs agree with the lists, "
            f"{len(self.missing)} are missing, {len(self.extra)} are too many"
        ]
        classes = sorted({c for pairs in (self.missing, self.extra) for _, c in pairs})
        for class_id in classes:
            missing, extra = (sum(c == class_id for _, c in pairs) for pairs in (self.missing, self.extra))
            lines.append(f"  {names.get(class_id, class_id)}: {missing} missing, {extra} too many")
        verdict = f"{self.share:.2%} of the pairs agree"
        if self.good:
            return "\n".join([*lines, f"{self.part}: the masks are right, {verdict}"])
        name, class_id = min(self.missing or self.extra)
        return "\n".join(
            [*lines, f"{self.part}: the masks are NOT right, {verdict}; look at {name}, class {class_id}"]
        )


def prepare_coco(root: Path, part: str, rasterizer: str, workers: int) -> None:
    """Writes annotations/<part>/COCO_*.png from annotations/instances_<part>.json; goes on where it was stopped.

    Annotations with iscrowd=0 in the file's order, later over earlier; a picture without any is skipped.
    """
    file, folder = root / "annotations" / f"instances_{part}.json", root / "annotations" / part
    content = read_coco(file)
    if len(content.categories) != len(CLASS_NAMES):
        raise InputError(f"{file} has {len(content.categories)} categories, not COCO's {len(CLASS_NAMES)}")
    open_run(folder, {"rasterizer": rasterizer, "annotations_sha256": hash_files([file])})
    index = {category: position + 1 for position, category in enumerate(content.categories)}
    todo = []
    for image_id, picture in content.images.items():
        annotations = [a for a in content.of_image.get(image_id, []) if not a.get("iscrowd")]
        target = folder / f"{Path(picture['file_name']).stem}.png"
        if annotations and not target.is_file():
            todo.append(
                (target, picture, [(index[a["category_id"]], a["segmentation"], a["id"]) for a in annotations])
            )
    write = functools.partial(_write_mask, rasterizer=rasterizer, where=str(file))
    run_all(write, todo, workers, f"masks of {part}")


def prepare_and_check_coco(
    data: Path, part: str, workers: int, rasterizer: str, least: int
) -> tuple[SelfCheck, dict[int, str]]:
    """Writes a part's masks and compares them with the lists; returns the self-check and the names of the classes."""
    root, split = Benchmark.find_root(data, "COCO2014"), {"train2014": "train", "val2014": "test"}
    if part not in split:
        raise InputError(f"parts={part} is not one of {', '.join(split)}")
    lists: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for fold in range(FOLDS):  # together they list every class
        benchmark = Coco20i(data, fold, split[part])
        lists.update({c: [sample.name for sample in samples] for c, samples in benchmark.images.items()})
        names.update(benchmark.class_names)
    prepare_coco(root, part, rasterizer, workers)
    return check_masks(root, part, lists, workers, least), names


def run_all(function: Callable[[Any], Any], items: Sequence[Any], workers: int, name: str) -> list[Any]:
    """Returns function(item) of every item in order, on `workers` processes, with a progress bar."""
    if workers < 2 or len(items) < 2:
        return [function(item) for item in tqdm(items, unit="image", desc=name)]
    chunk, results = max(1, min(64, len(items) // workers)), []
    with ProcessPoolExecutor(workers) as pool, tqdm(total=len(items), unit="image", desc=name) as bar:
        try:
            for result in pool.map(functools.partial(returned, function), items, chunksize=chunk):
                results.append(raised(result))
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else the error would be shown when all else is done
            raise
    return results


def rasterize(
    annotations: Iterable[tuple[int, Any, Any]], height: int, width: int, rasterizer: str, where: str
) -> np.ndarray:
    """Paints (value, segmentation, annotation id) in order -> class map uint8 (height, width)."""
    class_map = np.zeros((height, width), np.uint8)
    for value, segmentation, annotation_id in annotations:
        place = f"{where}: annotation {annotation_id}"
        if rasterizer == "fillpoly" and isinstance(segmentation, list):
            segmentation_mask(segmentation, height, width, place)  # refuses what is no polygon
            for polygon in segmentation:
                cv2.fillPoly(class_map, [np.array(polygon).reshape(-1, 2).astype(np.int32)], value)
        else:
            class_map[segmentation_mask(segmentation, height, width, place) > 0] = value
    return class_map


def check_masks(folder: Path, part: str, lists: dict[int, list[str]], workers: int, least: int) -> SelfCheck:
    """Compares the masks of a part with the lists: a pair belongs there iff the class covers `least` pixels.

    lists: class id -> picture names; pictures without a mask count as holding nothing.
    """
    listed = {(name, class_id) for class_id, names in lists.items() for name in names}
    masks = sorted((folder / "annotations" / part).glob("*.png"))
    found: set[tuple[str, int]] = set()
    for mask, classes in zip(
        masks, run_all(functools.partial(_large_classes, least=least), masks, workers, "check"), strict=True
    ):
        found |= {(f"{part}/{mask.stem}.jpg", class_id) for class_id in classes}
    return SelfCheck(part, agree=listed & found, missing=listed - found, extra=found - listed)


def prepare_lvis(root: Path, part: str) -> Path:
    """Writes lvis_<part>.json (class -> picture -> annotations) from the official lvis_v1_<part>.json.

    Classes in the order of their ids, pictures in the order of the annotations. The order of the published pickles
    is not known, so that the episodes cannot be checked against the published ones.
    """
    file = root / f"lvis_v1_{part}.json"
    content = read_json_file(file)
    try:  # LVIS v1 names pictures by their address
        images = [{**i, "file_name": "/".join(i["coco_url"].split("/")[-2:])} for i in content["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: the key {error} is missing; is it LVIS v1?") from None
    checked = CocoContent({**content, "images": images}, file)
    table: dict[str, dict[str, Any]] = {name: {} for name in checked.categories.values()}
    for annotation in content["annotations"]:
        of_class = table[checked.categories[annotation["category_id"]]]
        entry = of_class.setdefault(checked.images[annotation["image_id"]]["file_name"], {"annotations": []})
        entry["annotations"].append({"segmentation": annotation["segmentation"]})
    target = root / f"lvis_{part}.json"
    write_atomic(target, json.dumps({name: found for name, found in table.items() if found}))
    return target


def prepare_pascal(root: Path, sbd: Path, workers: int) -> int:
    """Writes SegmentationClassAug from VOC 2012's SegmentationClass and SBD's cls/*.mat; returns the number of masks.

    A picture that VOC itself annotates takes VOC's mask, with its boundary (255); the others take SBD's, without.
    """
    try:
        import scipy.io  # noqa: F401  (asked for before anything is written)
    except ImportError:
        raise InputError("SBD's .mat files need scipy; install it with pip install 'diffews[sbd]'") from None
    voc = {path.stem: path for path in sorted((root / "SegmentationClass").glob("*.png"))}
    mats = {path.stem: path for path in sorted((sbd / "cls").glob("*.mat"))}
    for found, place in ((voc, root / "SegmentationClass"), (mats, sbd / "cls")):
        if not found:
            raise InputError(f"{place}: nothing in it; see datasets/README.md")
    folder = root / "SegmentationClassAug"
    folder.mkdir(exist_ok=True)
    todo = [(path, folder / f"{name}.png") for name, path in {**mats, **voc}.items()]
    run_all(_write_class_map, [(a, b) for a, b in todo if not b.is_file()], workers, "masks")
    return len(todo)


def _write_mask(item: tuple[Path, dict[str, Any], list[tuple[int, Any, Any]]], rasterizer: str, where: str) -> None:
    target, picture, annotations = item
    _save_png(target, rasterize(annotations, picture["height"], picture["width"], rasterizer, where))


def _write_class_map(item: tuple[Path, Path]) -> None:
    source, target = item
    if source.suffix == ".mat":
        from scipy.io import loadmat

        try:
            class_map = loadmat(source)["GTcls"]["Segmentation"][0, 0]
        except Exception as error:  # scipy raises many kinds for a damaged file
            raise InputError(f"{source} holds no GTcls.Segmentation ({error})") from None
    else:
        class_map = open_mask(source)
    _save_png(target, class_map.astype(np.uint8))


def _save_png(target: Path, mask: np.ndarray) -> None:
    write_atomic(target, cv2.imencode(".png", mask)[1].tobytes())


def _large_classes(mask: Path, least: int) -> list[int]:
    counts = np.bincount(open_mask(mask).ravel())
    return [int(value) - 1 for value in np.flatnonzero(counts >= least) if value > 0]
