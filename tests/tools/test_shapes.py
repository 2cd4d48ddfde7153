"""Shapes: the same bytes from a seed; masks, lists and annotations of COCO-20i that agree."""

import colorsys
import hashlib
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from training_runs import make_few_shapes

from diffews.data.registry import load_benchmark, open_benchmark
from diffews.tools import shapes
from diffews.tools.shapes import CLASS_NAMES, HUES, LEAST_PIXELS, MATERIALS, SHAPES, make_scenes

pytest_plugins = ("training_fixtures",)
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation"
)  # pycocotools with numpy 2

PARTS = ("train2014", "val2014")


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def class_maps(folder, part):
    """File name -> class map, read from the PNGs."""
    files = sorted((folder / "COCO2014" / "annotations" / part).iterdir())
    return {file.stem: cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files}


def annotations(folder, part):
    return json.loads((folder / "COCO2014" / "annotations" / f"instances_{part}.json").read_text())


def lists(folder, part, fold):
    return json.loads((folder / "COCO2014" / "splits" / part / f"fold{fold}.json").read_text())


# ---- the seed ----


def test_the_same_seed_gives_the_same_bytes(few_shapes, tmp_path):
    again = hashes(make_few_shapes(tmp_path / "again"))
    assert again == hashes(few_shapes)
    assert (
        len(again) == 2 * 160 * 2 + 2 + 8 + 1
    )  # pictures and masks, instances, lists, class names


def test_another_seed_changes_every_picture_and_no_class(few_shapes, tmp_path):
    one, other = hashes(few_shapes), hashes(make_few_shapes(tmp_path / "other", seed=1))
    assert one.keys() == other.keys()
    same = {name for name in one if one[name] == other[name]}
    assert same == {"COCO2014/classes.json"}
    for fold in range(4):
        for part in ("trn", "val"):
            assert (
                lists(few_shapes, part, fold).keys() == lists(tmp_path / "other", part, fold).keys()
            )
    for part in PARTS:
        assert (
            annotations(few_shapes, part)["categories"]
            == annotations(tmp_path / "other", part)["categories"]
        )


def test_a_picture_depends_on_the_seed_and_its_id_alone():
    few, many = dict(make_scenes("val2014", 1, seed=3)), dict(make_scenes("val2014", 2, seed=3))
    assert list(few) == list(many)[:80] == list(range(100_000, 100_080))
    for image_id, scene in few.items():
        assert np.array_equal(scene.image, many[image_id].image)
    train = dict(make_scenes("train2014", 1, seed=3))
    assert not set(train) & set(few)
    assert not np.array_equal(train[0].image, few[100_000].image)


# ---- classes and folds ----


def test_a_class_is_a_shape_in_a_material():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 80
    assert (CLASS_NAMES[0], CLASS_NAMES[15], CLASS_NAMES[79]) == (
        "plain red disc",
        "striped cyan disc",
        "striped pink cross",
    )
    for class_id, name in enumerate(CLASS_NAMES):
        pattern, hue, shape = name.split()
        assert class_id == SHAPES.index(shape) * 20 + (pattern == "striped") * 10 + list(
            HUES
        ).index(hue)


@pytest.mark.parametrize("fold", range(4))
def test_a_fold_holds_out_five_materials_in_all_four_shapes(few_shapes, fold):
    novel = {int(class_id) for class_id in lists(few_shapes, "val", fold)}
    assert novel == set(range(fold, 80, 4)) and len(novel) == 20
    assert {int(class_id) for class_id in lists(few_shapes, "trn", fold)} == set(range(80)) - novel
    materials = {class_id % len(MATERIALS) for class_id in novel}
    assert len(materials) == 5 and novel == {
        shape * 20 + m for shape in range(4) for m in materials
    }


# ---- scenes ----


@pytest.fixture(scope="module")
def scenes():
    return [scene for _, scene in make_scenes("train2014", 2, seed=0)]


def test_a_scene_holds_two_or_three_objects_and_its_main_class(scenes):
    counts = []
    for index, scene in enumerate(scenes):
        ids, pixels = np.unique(scene.classes, return_counts=True)
        assert ids[0] == 0 and index % 80 + 1 in ids
        assert pixels[1:].min() > LEAST_PIXELS
        counts.append(len(ids) - 1)
    assert set(counts) == {2, 3} and 40 < counts.count(2) < 120


def test_objects_have_the_colour_of_their_class(scenes):
    checked = 0
    for scene in scenes:
        for value in np.unique(scene.classes)[1:]:
            pattern, hue, _ = CLASS_NAMES[value - 1].split()
            if pattern == "plain":
                red, green, blue = np.median(scene.image[scene.classes == value], axis=0) / 255
                degrees = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
                assert abs((degrees - HUES[hue] + 180) % 360 - 180) < 12, CLASS_NAMES[value - 1]
                checked += 1
    assert checked > 100


def test_stripes_are_half_white(scenes):
    shares = []
    for scene in scenes:
        for value in np.unique(scene.classes)[1:]:
            if CLASS_NAMES[value - 1].startswith("striped"):
                pixels = scene.image[scene.classes == value].astype(int)
                shares.append(np.mean(pixels.max(1) - pixels.min(1) < 60))  # grey or white
    assert 0.4 < np.mean(shares) < 0.6 and min(shares) > 0.2


# ---- files ----


@pytest.mark.parametrize("part", PARTS)
def test_pictures_keep_their_colours(few_shapes, part):
    folder = few_shapes / "COCO2014" / part
    for image_id, scene in list(make_scenes(part, 2, seed=0))[::16]:
        with Image.open(folder / f"COCO_{part}_{image_id:012d}.jpg") as picture:
            assert picture.size == (64, 64)
            assert [component[1:3] for component in picture.layer] == [
                (1, 1)
            ] * 3  # colours at full resolution
            difference = np.abs(np.asarray(picture).astype(int) - scene.image)
        assert difference.mean() < 2 and difference.max() < 40


@pytest.mark.parametrize("part", PARTS)
def test_masks_agree_with_the_annotations(few_shapes, part):
    content, maps = annotations(few_shapes, part), class_maps(few_shapes, part)
    assert [c["name"] for c in content["categories"]] == CLASS_NAMES
    assert [c["id"] for c in content["categories"]] == list(range(1, 81))
    names = {image["id"]: image["file_name"].removesuffix(".jpg") for image in content["images"]}
    assert sorted(names.values()) == sorted(maps) and len(names) == 160
    rebuilt = {name: np.zeros((64, 64), np.uint8) for name in maps}
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        rebuilt[names[annotation["image_id"]]][mask] = annotation["category_id"]
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box and annotation["area"] == mask.sum()
    for name, class_map in maps.items():
        assert np.array_equal(rebuilt[name], class_map), name
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(
        content["annotations"]
    )


@pytest.mark.parametrize("fold", range(4))
def test_lists_hold_exactly_the_classes_of_the_masks(few_shapes, fold):
    for part, short in zip(PARTS, ("trn", "val"), strict=True):
        held = {}
        for name, class_map in class_maps(few_shapes, part).items():
            for value in np.unique(class_map)[1:].tolist():
                held.setdefault(str(value - 1), []).append(f"{part}/{name}.jpg")
        wanted = {c: names for c, names in held.items() if (int(c) % 4 == fold) == (short == "val")}
        assert lists(few_shapes, short, fold) == wanted


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_loader_of_coco_reads_them(few_shapes, fold, split):
    benchmark = open_benchmark("coco20i", few_shapes, fold, split, "folder")
    assert len(benchmark.class_ids) == (20 if split == "test" else 60)
    assert all((class_id % 4 == fold) == (split == "test") for class_id in benchmark.class_ids)
    assert benchmark.class_names == dict(enumerate(CLASS_NAMES))
    benchmark.check_files(sample for samples in benchmark.images.values() for sample in samples)
    dataset = load_benchmark(
        "coco20i", few_shapes, fold, split, shots=2, image_size=64, splits="folder", episodes=3
    )
    for index in range(3):
        episode = dataset[index]
        assert episode.class_id in benchmark.class_ids
        assert episode.query_mask.any() and all(mask.any() for mask in episode.support_masks)
        assert episode.class_id in benchmark.classes_in(dataset.episodes[index].query)


# ---- complete or not there ----


def test_a_folder_that_is_there_is_left_alone(refused, few_shapes):
    before = hashes(few_shapes)
    assert "COCO2014 exists" in refused("make-shapes", f"out={few_shapes}")
    assert hashes(few_shapes) == before


def test_what_must_be_given_is_asked_for(refused):
    assert "out=" in refused("make-shapes")


def test_a_folder_that_cannot_be_made_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("make-shapes", f"out={tmp_path / 'file' / 'shapes'}")


def test_a_half_made_folder_is_never_seen(tmp_path, monkeypatch):
    made = 0

    def interrupted(*_):
        nonlocal made
        made += 1
        assert not (tmp_path / "COCO2014").exists()
        if made == 30:
            raise KeyboardInterrupt
        return cv2_imencode(*_)

    cv2_imencode = cv2.imencode
    monkeypatch.setattr(shapes.cv2, "imencode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_few_shapes(tmp_path)
    assert made == 30 and list(tmp_path.iterdir()) == []


def test_the_command_writes_them(run, tmp_path, few_shapes, monkeypatch):
    monkeypatch.setattr(shapes, "PARTS", {"train2014": 2, "val2014": 2})
    outcome = run("make-shapes", f"out={tmp_path / 'new'}", "seed=0")
    assert outcome.code == 0 and outcome.out == f"wrote {tmp_path / 'new'}/COCO2014\n"
    assert hashes(tmp_path / "new") == hashes(few_shapes)
