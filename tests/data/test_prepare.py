"""`diffews prepare`: masks equal to an independent filling, resumable, a self-check of faults."""

import builtins
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from diffews.data.benchmarks.coco20i import CLASS_NAMES
from diffews.data.prepare import prepare_coco
from diffews.data.registry import __file__ as lists_file

PICTURES = 36
EMPTY, CROWD_ONLY = (
    1035,
    1034,
)  # ids of a picture without annotations, and of one with crowd regions alone
LEAST = 150  # pixels; what 2048 are to real pictures
IDS = sorted(
    np.random.default_rng(7).permutation(np.arange(1, 91))[:80].tolist()
)  # with gaps, as COCO's


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def blob(draws, height, width):
    """A star-shaped polygon with fractional corners, some of them outside the picture."""
    angles = np.sort(draws.uniform(0, 2 * np.pi, 9))
    radius = draws.uniform(0.12, 0.42, 9) * min(height, width)
    centre = draws.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return [round(float(number), 2) for number in points.clip(-3).ravel()]


def ring_code(height, width):
    """An uncompressed run-length code of a ring: a class with a hole."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2) / min(height, width)
    flat = ((distance < 0.45) & (distance > 0.25)).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [height, width], "counts": np.diff([0, *edges.tolist(), flat.size]).tolist()}


def make_instances():
    """COCO 2014's JSON with polygons, both run-length codes, crowds, overlaps; classes 0 to 7."""
    draws = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(PICTURES):
        image_id = 1000 + number
        height, width = int(draws.integers(48, 72)), int(draws.integers(48, 72))
        name = f"COCO_val2014_{image_id:012d}.jpg"
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for position in range(0 if image_id in (EMPTY, CROWD_ONLY) else 3):
            segmentation = [blob(draws, height, width) for _ in range(1 + position % 2)]
            if position == 1 and number % 3 == 0:
                segmentation = ring_code(height, width)
            if position == 2 and number % 4 == 0:
                code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
                segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            category = IDS[(number + 3 * position) % 8]
            annotations.append(
                {"image_id": image_id, "category_id": category, "segmentation": segmentation}
            )
        if number % 5 == 0 or image_id == CROWD_ONLY:
            crowd = {
                "size": [height, width],
                "counts": [0, height * width // 2, height * width - height * width // 2],
            }
            category = IDS[(number + 5) % 8]
            annotations.append(
                {"image_id": image_id, "category_id": category, "segmentation": crowd, "iscrowd": 1}
            )
    order = draws.permutation(len(annotations))  # COCO's are not sorted by picture
    annotations = [{"iscrowd": 0, **annotations[i], "id": 50_000 - int(i)} for i in order]
    categories = [{"id": i, "name": name} for i, name in zip(IDS, CLASS_NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def own_class_map(content, picture, rasterizer, *, crowd=False, holes=False):
    """The mask by hand: annotations in the file's order, later over earlier."""
    class_map = np.zeros((picture["height"], picture["width"]), np.uint8)
    for annotation in content["annotations"]:
        if annotation["image_id"] != picture["id"] or (annotation["iscrowd"] and not crowd):
            continue
        value, segmentation = IDS.index(annotation["category_id"]) + 1, annotation["segmentation"]
        if isinstance(segmentation, list) and rasterizer == "fillpoly":
            for polygon in segmentation:
                corners = np.array(
                    [[int(x), int(y)] for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
                )
                cv2.fillPoly(class_map, [corners.astype(np.int32)], value)
            continue
        if isinstance(segmentation, list):
            parts = [
                coco_mask.decode(coco_mask.frPyObjects([p], *class_map.shape))[..., 0]
                for p in segmentation
            ]
            filled = np.any(parts, 0)
        elif isinstance(segmentation["counts"], list):
            runs = segmentation["counts"]
            flat = np.repeat(np.arange(len(runs)) % 2, runs)
            filled = flat.reshape(class_map.shape, order="F") > 0
        else:
            filled = coco_mask.decode(segmentation) > 0
        if holes:
            contours, _ = cv2.findContours(
                filled.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            filled = cv2.drawContours(np.zeros_like(class_map), contours, -1, 1, cv2.FILLED) > 0
        class_map[filled] = value
    return class_map


def own_class_maps(content, rasterizer, **faults):
    """The masks of all pictures that have one, by file name."""
    wanted = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    return {
        f"{picture['file_name'][:-4]}.png": own_class_map(content, picture, rasterizer, **faults)
        for picture in content["images"]
        if picture["id"] in wanted
    }


def large(class_map):
    return {int(v) - 1 for v in np.unique(class_map) if v > 0 and (class_map == v).sum() >= LEAST}


def write_coco(root, content):
    """The JSON, and lists of what is large in the masks made by hand; returns the listed pairs."""
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    pairs = set()
    for name, class_map in own_class_maps(content, "pycocotools").items():
        pairs |= {(f"val2014/{name[:-4]}.jpg", c) for c in large(class_map)}
    folder = root / "splits" / "val"
    folder.mkdir(parents=True)
    for fold in range(4):
        lists = {
            c: sorted(name for name, listed in pairs if listed == c) for c in range(fold, 80, 4)
        }
        (folder / f"fold{fold}.json").write_text(json.dumps(lists))
    return pairs


@pytest.fixture
def coco2014(tmp_path):
    """root, content of the JSON, listed pairs, folder of the masks, and the command's words."""
    root, content = tmp_path / "COCO2014", make_instances()
    pairs = write_coco(root, content)
    words = [
        "prepare",
        "benchmark=coco20i",
        f"data={tmp_path}",
        "parts=val2014",
        f"least_pixels={LEAST}",
        "workers=1",
    ]
    masks = root / "annotations" / "val2014"
    return SimpleNamespace(root=root, content=content, pairs=pairs, masks=masks, words=words)


def rewrite(coco2014, edit):
    """Edits the JSON file; `edit` changes its content in place."""
    edit(coco2014.content)
    (coco2014.root / "annotations" / "instances_val2014.json").write_text(
        json.dumps(coco2014.content)
    )


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- masks ----


@pytest.mark.parametrize("rasterizer", ["pycocotools", "fillpoly"])
def test_masks_equal_an_independent_rasterisation(coco2014, run, rasterizer):
    run(*coco2014.words, f"rasterizer={rasterizer}")
    expected = own_class_maps(coco2014.content, rasterizer)
    assert {path.name for path in coco2014.masks.glob("*.png")} == expected.keys()
    assert (
        len(expected) == PICTURES - 2
    )  # nothing for the picture without annotations, nor for crowd alone
    for name, class_map in expected.items():
        np.testing.assert_array_equal(pixels(coco2014.masks / name), class_map)


def test_the_rasterisers_differ_at_borders_only(coco2014):
    ours, other = (own_class_maps(coco2014.content, r) for r in ("pycocotools", "fillpoly"))
    share = np.mean([(ours[name] != other[name]).mean() for name in ours])
    assert 0 < share < 0.1


def test_later_annotations_lie_over_earlier_ones(coco2014, run):
    square, whole = [[10, 10, 30, 10, 30, 30, 10, 30]], [[0, 0, 90, 0, 90, 90, 0, 90]]

    def two(content):
        common = {"image_id": 1000, "iscrowd": 0}
        first = {**common, "id": 9, "category_id": IDS[5], "segmentation": whole}
        second = {
            **common,
            "id": 3,
            "category_id": IDS[2],
            "segmentation": square,
        }  # the file's order, not the ids'
        content["annotations"] = [first, second]

    rewrite(coco2014, two)
    run(*coco2014.words)
    class_map = pixels(coco2014.masks / "COCO_val2014_000000001000.png")
    assert set(np.unique(class_map)) == {3, 6} and class_map[20, 20] == 3 and class_map[5, 5] == 6


def test_two_processes_write_the_same_bytes_as_one(coco2014, run):
    run(*coco2014.words)
    first = read_bytes(coco2014.masks)
    for path in coco2014.masks.iterdir():
        path.unlink()
    assert run(*coco2014.words, "workers=2").code == 0
    assert read_bytes(coco2014.masks) == first


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_identical_files(coco2014, run):
    def many(content):  # 30 times the pictures, so that the kill comes in the middle
        images, annotations = content["images"], content["annotations"]
        for copy in range(1, 30):
            shift = 10_000 * copy
            content["images"] = content["images"] + [
                {
                    **i,
                    "id": i["id"] + shift,
                    "file_name": f"COCO_val2014_{i['id'] + shift:012d}.jpg",
                }
                for i in images
            ]
            content["annotations"] = content["annotations"] + [
                {**a, "id": a["id"] + 10 * shift, "image_id": a["image_id"] + shift}
                for a in annotations
            ]

    run(*coco2014.words)
    uninterrupted = {path.name: path.read_bytes() for path in coco2014.masks.glob("*.png")}
    shutil.rmtree(coco2014.masks)
    rewrite(coco2014, many)
    command = [sys.executable, "-m", "diffews", *coco2014.words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(coco2014.masks.glob("*.png"))) < 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survivors = {path.name: path.stat().st_mtime_ns for path in coco2014.masks.glob("*.png")}
    assert 20 <= len(survivors) < 30 * (PICTURES - 2)
    (coco2014.masks / ".COCO_val2014_000000001000.png.1.partial").write_bytes(
        b"half"
    )  # what a kill may leave
    run(*coco2014.words)
    for name, changed in survivors.items():
        assert (coco2014.masks / name).stat().st_mtime_ns == changed  # not written again
    again = {path.name: path.read_bytes() for path in coco2014.masks.glob("*.png")}
    assert (
        again
        == {  # copies have their original's bytes
            f"COCO_val2014_{int(name[-16:-4]) + 10_000 * copy:012d}.png": content
            for name, content in uninterrupted.items()
            for copy in range(30)
        }
    )


def test_masks_that_went_missing_are_written_again_and_no_other(coco2014, run):
    run(*coco2014.words)
    first = read_bytes(coco2014.masks)
    gone = sorted(coco2014.masks.glob("*.png"))[::3]
    for path in gone:
        path.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in coco2014.masks.iterdir()}
    assert run(*coco2014.words).code == 0
    assert read_bytes(coco2014.masks) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_another_rasteriser_in_the_same_folder_is_refused(coco2014, run, refused):
    run(*coco2014.words)
    first = read_bytes(coco2014.masks)
    message = refused(*coco2014.words, "rasterizer=fillpoly")
    assert (
        str(coco2014.masks) in message and "rasterizer: pycocotools there, fillpoly now" in message
    )
    assert read_bytes(coco2014.masks) == first


def test_masks_of_unknown_origin_are_not_added_to(coco2014, refused):
    coco2014.masks.mkdir()
    (coco2014.masks / "COCO_val2014_000000001000.png").write_bytes(b"from somewhere")
    assert str(coco2014.masks) in refused(*coco2014.words)
    assert len(list(coco2014.masks.iterdir())) == 1


def test_a_full_disk_ends_in_one_line_and_leaves_no_half_of_a_mask(coco2014, refused, largest_file):
    with largest_file(150):
        message = refused(*coco2014.words)
    assert "free some space" in message
    for path in coco2014.masks.glob("*.png"):
        pixels(path)
    assert not list(coco2014.masks.glob(".*"))


# ---- the self-check ----


def test_right_masks_agree_with_every_listed_pair(coco2014, run):
    outcome = run(*coco2014.words)
    assert outcome.code == 0
    assert (
        f"val2014: {len(coco2014.pairs)} (picture, class) pairs agree with the lists, 0 are missing"
        in outcome.out
    )
    assert outcome.out.rstrip().endswith("the masks are right, 100.00% of the pairs agree")
    assert len(coco2014.pairs) > 40


def test_the_built_in_lists_are_what_masks_without_lists_of_their_own_are_compared_with(
    coco2014, run
):
    for file in (coco2014.root / "splits" / "val").iterdir():
        file.unlink()
    outcome = run(*coco2014.words)
    assert outcome.code == 1
    with np.load(Path(lists_file).parent / "splits" / "coco20i.npz") as arrays:
        published = int(arrays["val2014_counts"].sum())
    missing = int(re.search(r"(\d+) are missing", outcome.out)[1])
    assert published - len(coco2014.pairs) < missing <= published
    assert "the masks are NOT right, 0.00%" in outcome.out


def save(file, class_map):
    Image.fromarray(class_map.astype(np.uint8)).save(file)


def shift_classes(coco2014):
    for file in coco2014.masks.glob("*.png"):
        class_map = pixels(file)
        save(file, np.where(class_map > 0, class_map + 1, 0))


def keep_crowd(coco2014):
    for name, class_map in own_class_maps(coco2014.content, "pycocotools", crowd=True).items():
        save(coco2014.masks / name, class_map)


def drop_a_picture(content):
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1003]


def fill_holes(coco2014):
    for name, class_map in own_class_maps(coco2014.content, "pycocotools", holes=True).items():
        save(coco2014.masks / name, class_map)


def take_the_other_part(content):
    for picture in content["images"]:
        picture["file_name"] = picture["file_name"].replace("val2014", "train2014")


def take_masks_of_other_pictures(coco2014):
    files = sorted(coco2014.masks.glob("*.png"))
    maps = [pixels(file) for file in files]
    for file, class_map in zip(files, [*maps[1:], maps[0]], strict=True):
        save(file, class_map)


def lose_a_class(coco2014):
    for file in coco2014.masks.glob("*.png"):
        class_map = pixels(file)
        save(file, np.where(class_map == 4, 0, class_map))


def resize_a_mask(coco2014):
    file = sorted(coco2014.masks.glob("*.png"))[0]
    class_map = pixels(file)
    save(file, class_map[::4, ::4])


def empty_all(coco2014):
    for file in coco2014.masks.glob("*.png"):
        save(file, np.zeros_like(pixels(file)))


def shift_picture_ids(content):
    for picture in content["images"]:
        picture["file_name"] = f"COCO_val2014_{picture['id'] + 1:012d}.jpg"


FAULTS_OF_THE_FILE = [drop_a_picture, take_the_other_part, shift_picture_ids]
FAULTS_OF_MASKS = [shift_classes, keep_crowd, fill_holes, take_masks_of_other_pictures]
FAULTS_OF_MASKS += [lose_a_class, resize_a_mask, empty_all]


@pytest.mark.parametrize(
    "plant", [*FAULTS_OF_THE_FILE, *FAULTS_OF_MASKS], ids=lambda plant: plant.__name__
)
def test_the_self_check_finds_a_planted_fault_and_names_what_it_is_in(coco2014, run, plant):
    if plant in FAULTS_OF_THE_FILE:
        rewrite(coco2014, plant)
    else:
        assert run(*coco2014.words).code == 0
        plant(coco2014)
    outcome = run(*coco2014.words)
    assert outcome.code == 1
    masks = {file.name: pixels(file) for file in coco2014.masks.glob("*.png")}
    found = {
        (f"val2014/{name[:-4]}.jpg", c)
        for name, class_map in masks.items()
        for c in large(class_map)
    }
    missing, extra = coco2014.pairs - found, found - coco2014.pairs
    counts = f"{len(coco2014.pairs & found)} (picture, class) pairs agree with the lists, "
    counts += f"{len(missing)} are missing, {len(extra)} are too many"
    assert f"val2014: {counts}" in outcome.out
    for class_id in {c for _, c in missing | extra}:
        of_class = [sum(c == class_id for _, c in pairs) for pairs in (missing, extra)]
        assert (
            f"  {CLASS_NAMES[class_id]}: {of_class[0]} missing, {of_class[1]} too many"
            in outcome.out
        )
    name, class_id = min(missing or extra)
    verdict = outcome.out.rstrip().splitlines()[-1]
    assert "the masks are NOT right" in verdict and verdict.endswith(
        f"look at {name}, class {class_id}"
    )


def test_the_planted_faults_are_told_apart_by_what_is_missing_and_what_is_too_many(coco2014, run):
    assert run(*coco2014.words).code == 0
    whole = {file: file.read_bytes() for file in coco2014.masks.glob("*.png")}

    def report(plant):
        plant(coco2014)
        out = run(*coco2014.words).out
        for file, content in whole.items():
            file.write_bytes(content)
        return out

    lost = [line for line in report(lose_a_class).splitlines() if line.startswith("  ")]
    assert (
        len(lost) == 1 and lost[0].startswith("  motorcycle: ") and lost[0].endswith(" 0 too many")
    )
    assert (
        f"0 (picture, class) pairs agree with the lists, {len(coco2014.pairs)} are missing"
        in report(empty_all)
    )
    assert "  boat: 0 missing, " in report(
        shift_classes
    )  # the ninth class, where the pictures have eight
    assert run(*coco2014.words).code == 0


# ---- bad COCO ----


def bad(key, value, index=0, part="annotations"):
    return lambda content: content[part][index].update({key: value})


BAD_CONTENT = {
    "a missing list": (lambda c: c.pop("annotations"), "lacks the list 'annotations'"),
    "a missing key": (
        lambda c: c["annotations"][3].pop("category_id"),
        "annotations[3] lacks the key 'category_id'",
    ),
    "no size": (lambda c: c["images"][2].pop("width"), "images[2] lacks the key 'width'"),
    "a size that is none": (bad("height", 0, part="images"), "image 1000 has the width and height"),
    "a size that no picture has": (
        bad("height", 65_501, part="images"),
        "image 1000 has the width and height",
    ),
    "more pixels than are read": (
        lambda c: c["images"][0].update(height=60_000, width=60_000),
        "image 1000 has the width and height",
    ),
    "a size that is true": (bad("height", True, part="images"), "image 1000 has the width"),
    "ids of mixed type": (bad("id", "7", part="categories"), "others are of another type ('7')"),
    "an id that is null": (bad("id", None, part="categories"), "categories[0] has the id None"),
    "no name": (bad("file_name", "", part="images"), "image 1000 has the file_name ''"),
    "a name that is too long": (bad("file_name", "x" * 300, part="images"), "image 1000 has the"),
    "one stem in two folders": (
        lambda c: c["images"][1].update(file_name=f"b/{c['images'][0]['file_name']}"),
        "would be one file, COCO_val2014_000000001000.png",
    ),
    "a dangling picture": (bad("image_id", 77), "image_id 77, which is not there"),
    "a dangling class": (bad("category_id", 777), "category_id 777, which is not there"),
    "an id that is a list": (bad("image_id", [1]), "image_id [1], which is not there"),
    "annotation ids twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "stands twice in annotations",
    ),
    "picture ids twice": (
        lambda c: c["images"].append(c["images"][0]),
        "the id 1000 stands twice in images",
    ),
    "one category too few": (
        lambda c: (c.update(annotations=[]), c["categories"].pop()),
        "79 categories, not COCO's 80",
    ),
    "a line": (bad("segmentation", [[1, 1, 9, 9]]), "a polygon needs at least three points"),
    "an odd polygon": (bad("segmentation", [[1, 1, 9, 9, 4, 4, 5]]), "x and y in turn"),
    "a polygon of words": (bad("segmentation", [["a"] * 6]), "holds what is no coordinate"),
    "a polygon without end": (
        bad("segmentation", [[float("nan"), 1, 9, 9, 4, 4]]),
        "holds what is no coordinate",
    ),
    "no segmentation": (bad("segmentation", []), "no polygon and no run-length code"),
    "a code of another size": (
        bad("segmentation", {"size": [5, 5], "counts": [25]}),
        "is not of size",
    ),
}


@pytest.mark.parametrize("edit, words", BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_a_wrong_entry_is_refused_by_file_and_key(coco2014, refused, edit, words):
    def change(content):
        content["annotations"] = [{**a, "iscrowd": 0} for a in content["annotations"]]
        edit(content)

    rewrite(coco2014, change)
    message = refused(*coco2014.words, "rasterizer=fillpoly")
    assert (
        str(coco2014.root / "annotations" / "instances_val2014.json") in message
        and words in message
    )
    for path in coco2014.masks.glob("*.png"):  # what came before it is complete
        pixels(path)
    assert not list(coco2014.masks.glob(".*"))


@pytest.mark.parametrize("counts", [[3, 2], [3, 20_000], [-3, 20_000], ["a"], 5, "", "zzzz"])
def test_a_run_length_code_that_does_not_fill_the_picture_is_refused(coco2014, refused, counts):
    def change(content):
        picture = content["images"][0]
        code = {"size": [picture["height"], picture["width"]], "counts": counts}
        annotation = {
            "id": 1,
            "image_id": 1000,
            "category_id": IDS[0],
            "iscrowd": 0,
            "segmentation": code,
        }
        content["annotations"] = [annotation]

    rewrite(coco2014, change)
    assert "annotation 1: the run-length code's counts do not fill" in refused(*coco2014.words)


def test_bad_annotations_are_listed_at_once_and_the_corrected_file_goes_through(
    coco2014, refused, run
):
    file = coco2014.root / "annotations" / "instances_val2014.json"
    good = file.read_bytes()
    for index in range(23):
        rewrite(coco2014, bad("segmentation", [[1, 1, 9, 9]], index=index))
        rewrite(coco2014, bad("iscrowd", 0, index=index))
    message = refused(*coco2014.words)
    assert "23 bad annotation(s)" in message and "and 3 more" in message
    assert message.count("three points") == 20 and str(file) in message
    assert not coco2014.masks.exists()
    file.write_bytes(good)
    assert run(*coco2014.words).code == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_one_line_too(coco2014, refused, workers):
    rewrite(coco2014, bad("segmentation", [[1, 1, 9, 9]], index=-1))
    rewrite(coco2014, bad("iscrowd", 0, index=-1))
    assert "a polygon needs at least three points" in refused(*coco2014.words, f"workers={workers}")


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe{}", b"[]"])
def test_a_file_that_is_no_coco_json_is_refused_before_anything_is_written(
    coco2014, refused, content
):
    file = coco2014.root / "annotations" / "instances_val2014.json"
    file.write_bytes(content)
    assert str(file) in refused(*coco2014.words)
    assert not coco2014.masks.exists()


def test_what_is_not_there_is_refused_by_its_name(coco2014, refused):
    assert "instances_train2014.json" in refused(*coco2014.words, "parts=train2014")
    assert "parts=val2017" in refused(*coco2014.words, "parts=val2017")
    assert "rasterizer='pil'" in refused(*coco2014.words, "rasterizer=pil")


def test_damaged_lists_are_found_before_masks_are_made(coco2014, refused):
    file = coco2014.root / "splits" / "val" / "fold2.json"
    file.write_text('{"2": 5}')
    assert str(file) in refused(*coco2014.words)
    assert not coco2014.masks.exists()


def test_the_file_name_of_a_picture_leads_nowhere_else(coco2014, refused, tmp_path):
    rewrite(coco2014, bad("file_name", "../../out.jpg", part="images"))
    assert "'../../out.jpg', which leads out of the folder" in refused(*coco2014.words)
    assert not list(tmp_path.rglob("out.png"))


# ---- the pictures of COCO 2017 ----


@pytest.mark.parametrize("place", [".", "COCO2014"])
def test_images_2017_finds_the_pictures_in_a_2017_folder(coco2014, run, tmp_path, picture, place):
    run(*coco2014.words)
    for number, image in enumerate(coco2014.content["images"]):
        folder = (
            tmp_path / place / ("train2017", "val2017")[number % 2]
        )  # COCO 2017 cut the same pictures otherwise
        folder.mkdir(exist_ok=True)
        picture(number, image["width"], image["height"]).save(folder / f"{image['id']:012d}.jpg")
    words = ["check", "benchmark=coco20i", f"data={tmp_path}", "workers=1"]
    assert run(*words).code == 1
    outcome = run(*words, "images=2017")
    assert outcome.code == 0, outcome.out
    listed = {name for name, c in coco2014.pairs if c % 4 == 0}
    assert f"{len(listed)} pictures" in outcome.out


def test_the_same_function_prepares_a_folder_from_python(coco2014):
    prepare_coco(coco2014.root, "val2014", "pycocotools", workers=1)
    assert len(list(coco2014.masks.glob("*.png"))) == PICTURES - 2


# ---- LVIS ----


def lvis_content(part):
    """As lvis_v1_{train,val}.json: class ids out of order, images of both parts, no file_name."""
    triangle = [[2, 2, 20, 2, 11, 20]]
    images, annotations = [], []
    for number in range(8):
        place = ("train2017", "val2017")[number % 2]
        url = f"http://images.cocodataset.org/{place}/{number:012d}.jpg"
        images.append({"id": number, "height": 24, "width": 24, "coco_url": url})
    for number, (category, image) in enumerate(
        (c, (5 * k + c) % 8) for k in range(6) for c in range(1, 21)
    ):
        annotations.append(
            {
                "id": 900 - number,
                "image_id": image,
                "category_id": category,
                "segmentation": triangle,
                "area": 9.0,
            }
        )
    categories = [{"id": c, "name": f"{part}_class_{c:02d}"} for c in (*range(20, 0, -1), 21)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def lvis(tmp_path):
    (tmp_path / "LVIS").mkdir()
    for part in ("train", "val"):
        (tmp_path / "LVIS" / f"lvis_v1_{part}.json").write_text(json.dumps(lvis_content(part)))
    return tmp_path / "LVIS"


def test_lvis_lists_have_classes_by_id_and_pictures_in_the_annotations_order(lvis, run, tmp_path):
    outcome = run("prepare", "benchmark=lvis92i", f"data={tmp_path}")
    assert outcome.code == 0 and "not checked" in outcome.out
    content, table = lvis_content("val"), json.loads((lvis / "lvis_val.json").read_text())
    assert list(table) == [f"val_class_{c:02d}" for c in range(1, 21)]  # class 21 has no picture
    for category in range(1, 21):
        listed = [a["image_id"] for a in content["annotations"] if a["category_id"] == category]
        names = [f"{('train2017', 'val2017')[i % 2]}/{i:012d}.jpg" for i in dict.fromkeys(listed)]
        pictures = table[f"val_class_{category:02d}"]
        assert list(pictures) == names
        assert sum(len(entry["annotations"]) for entry in pictures.values()) == len(listed)


def test_episodes_run_on_the_prepared_lvis(lvis, run, tmp_path, picture):
    run("prepare", "benchmark=lvis92i", f"data={tmp_path}")
    words = ["benchmark=lvis92i", f"data={tmp_path}", "fold=3"]
    episodes = json.loads(run("episodes", *words).out)
    assert len(episodes) == 2300 and {class_id for class_id, _, _ in episodes} == {
        0,
        1,
    }  # classes 4 and 14 of 20
    for number in range(8):
        folder = lvis / "coco" / ("train2017", "val2017")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number, 24, 24).save(folder / f"{number:012d}.jpg")
    outcome = run("check", *words, "workers=1")
    assert outcome.code == 0, outcome.out


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c["images"][2].pop("coco_url"), "'coco_url'"),
        (
            lambda c: c["annotations"][2].pop("segmentation"),
            "annotations[2] lacks the key 'segmentation'",
        ),
        (
            lambda c: c["annotations"][2].update(category_id=99),
            "category_id 99, which is not there",
        ),
        (lambda c: c["annotations"][2].update(image_id=99), "image_id 99, which is not there"),
        (lambda c: c["images"].append(c["images"][1]), "the id 1 stands twice in images"),
        (
            lambda c: c["categories"].append(c["categories"][0]),
            "the id 20 stands twice in categories",
        ),
        (lambda c: c["categories"][0].update(name="train_class_01"), "'train_class_01'"),
    ],
)
def test_a_wrong_lvis_file_is_refused_and_nothing_is_written(lvis, refused, tmp_path, edit, words):
    content = lvis_content("train")
    edit(content)
    file = lvis / "lvis_v1_train.json"
    file.write_text(json.dumps(content))
    message = refused("prepare", "benchmark=lvis92i", f"data={tmp_path}")
    assert str(file) in message and words in message
    assert not (lvis / "lvis_train.json").exists()


# ---- PASCAL VOC and SBD ----


@pytest.fixture
def voc(tmp_path, picture):
    """VOC 2012 has masks of 2007_000033 and 2007_000061; SBD of the latter and 2008_000002."""
    scipy_io = pytest.importorskip("scipy.io")
    root, sbd = tmp_path / "VOC2012", tmp_path / "SBD" / "dataset"
    maps = {}
    for number, (source, name) in enumerate(
        [
            ("voc", "2007_000033"),
            ("voc", "2007_000061"),
            ("sbd", "2007_000061"),
            ("sbd", "2008_000002"),
        ]
    ):
        class_map = np.zeros((30, 40), np.uint8)
        class_map[4:20, 6:30] = number + 1
        if source == "voc":
            class_map[4, 6:30] = 255
            (root / "SegmentationClass").mkdir(parents=True, exist_ok=True)
            file = Image.fromarray(class_map, "P")
            file.putpalette(
                np.random.default_rng(0).integers(0, 256, 768).tolist()
            )  # VOC's are palette pictures
            file.save(root / "SegmentationClass" / f"{name}.png")
        else:
            (sbd / "cls").mkdir(parents=True, exist_ok=True)
            truth = {
                "Boundaries": np.zeros((20, 1)),
                "Segmentation": class_map,
                "CategoriesPresent": [[number + 1]],
            }
            scipy_io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": truth}, do_compression=True)
        maps[source, name] = class_map
        (root / "JPEGImages").mkdir(exist_ok=True, parents=True)
        picture(number, 40, 30).save(root / "JPEGImages" / f"{name}.jpg")
    words = ["prepare", "benchmark=pascal5i", f"data={tmp_path}", f"sbd={sbd}", "workers=1"]
    return SimpleNamespace(
        root=root, sbd=sbd, maps=maps, words=words, masks=root / "SegmentationClassAug"
    )


def test_vocs_masks_win_over_sbds_and_keep_their_boundary(voc, run):
    outcome = run(*voc.words)
    assert outcome.code == 0 and "3 masks" in outcome.out
    expected = {
        "2007_000033.png": voc.maps["voc", "2007_000033"],
        "2007_000061.png": voc.maps["voc", "2007_000061"],
        "2008_000002.png": voc.maps["sbd", "2008_000002"],
    }
    assert {path.name for path in voc.masks.iterdir()} == expected.keys()
    for name, class_map in expected.items():
        np.testing.assert_array_equal(pixels(voc.masks / name), class_map)
    assert 255 in pixels(voc.masks / "2007_000061.png")


def test_masks_of_sbd_that_are_there_already_are_not_written_again(voc, run):
    run(*voc.words)
    first = read_bytes(voc.masks)
    stamp = (voc.masks / "2007_000033.png").stat().st_mtime_ns
    (voc.masks / "2008_000002.png").unlink()
    run(*voc.words, "workers=2")
    assert read_bytes(voc.masks) == first
    assert (voc.masks / "2007_000033.png").stat().st_mtime_ns == stamp


def test_without_scipy_the_extra_is_named_and_nothing_is_written(voc, refused, monkeypatch):
    real = builtins.__import__

    def without_scipy(name, *rest):
        if name.split(".")[0] == "scipy":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    assert "pip install 'diffews[sbd]'" in refused(*voc.words)
    assert not voc.masks.exists()


def test_damaged_sbd_is_refused_by_file(voc, refused):
    file = voc.sbd / "cls" / "2008_000002.mat"
    whole = file.read_bytes()
    for content in (b"no mat file", whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert f"{file} holds no GTcls.Segmentation" in refused(*voc.words)
        assert not (voc.masks / "2008_000002.png").exists()


def test_a_mat_file_of_something_else_is_refused(voc, refused):
    from scipy.io import savemat

    savemat(voc.sbd / "cls" / "2008_000002.mat", {"GTinst": {"Segmentation": np.zeros((3, 3))}})
    assert "2008_000002.mat holds no GTcls.Segmentation ('GTcls')" in refused(*voc.words)


def test_an_empty_download_is_named(voc, refused, tmp_path):
    assert f"{tmp_path / 'nowhere' / 'cls'}: nothing in it" in refused(
        *voc.words, f"sbd={tmp_path / 'nowhere'}"
    )
    assert "sbd= is missing" in refused(
        *[word for word in voc.words if not word.startswith("sbd=")]
    )
    assert not voc.masks.exists()


def test_a_folder_that_cannot_be_written_is_one_line(coco2014, refused):
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    (coco2014.root / "annotations").chmod(0o500)
    assert str(coco2014.masks) in refused(*coco2014.words)


@pytest.mark.parametrize("value", [256, -1, 1.5, np.nan])
def test_values_that_are_no_class_are_refused_by_file(voc, refused, value):
    from scipy.io import savemat

    file, truth = voc.sbd / "cls" / "2008_000002.mat", np.full((30, 40), value)
    savemat(file, {"GTcls": {"Segmentation": truth}})
    assert f"{file} holds the value {value}" in refused(*voc.words)
    assert not (voc.masks / file.with_suffix(".png").name).exists()


def test_a_mask_png_of_16_bits_is_refused_where_it_holds_more_than_255(voc, refused):
    file = voc.root / "SegmentationClass" / "2007_000033.png"
    Image.fromarray(np.full((30, 40), 300, np.uint16)).save(file)
    assert f"{file} holds the value 300" in refused(*voc.words)
