"""PASCAL-5i and COCO-to-PASCAL: the published lists, the boundary, and damaged folders."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from diffews.data.benchmarks.coco20i import CLASS_NAMES as COCO_NAMES
from diffews.data.benchmarks.pascal5i import CLASS_NAMES
from diffews.data.registry import load_benchmark, open_benchmark

pytest_plugins = ("benchmark_fixtures",)

SHIFTED = [
    [1, 4, 9, 11, 12, 15],
    [2, 6, 13, 18],
    [3, 7, 16, 17, 19, 20],
    [5, 8, 10, 14],
]  # VOC classes, from 1
IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "sofa": "couch",
}
IN_COCO |= {"pottedplant": "potted plant", "tvmonitor": "tv"}


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("shots", [1, 5])
def test_the_real_test_episodes_are_the_references(expected, tmp_path, fold, shots):
    golden = expected("real_episodes").json[f"pascal_fold{fold}_{shots}shot"]
    names = [
        episode.names()
        for episode in load_benchmark("pascal5i", tmp_path, fold=fold, shots=shots).episodes
    ]
    assert len(names) == 1000
    assert names[:5] == golden["first"]
    assert names[-1:] == golden["last"]
    assert hashlib.sha256(json.dumps(names).encode()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize("fold", range(4))
def test_a_fold_tests_five_classes_in_a_row(bench, fold):
    data = load_benchmark("pascal5i", bench, fold=fold)
    assert data.class_ids == list(range(5 * fold, 5 * fold + 5))
    assert {episode.class_id for episode in data.episodes} == set(data.class_ids)
    assert open_benchmark("pascal5i", bench, fold, "train").class_ids == [
        c for c in range(20) if c // 5 != fold
    ]


def test_class_names_are_the_20_of_voc_in_alphabetical_order():
    assert len(set(CLASS_NAMES)) == 20 and list(CLASS_NAMES) == sorted(CLASS_NAMES)


@pytest.mark.parametrize("fold", range(4))
def test_the_domain_shift_tests_the_classes_that_the_coco_fold_holds_out(tmp_path, fold):
    data = load_benchmark("coco2pascal", tmp_path, fold=fold)
    assert [c + 1 for c in data.class_ids] == SHIFTED[fold]
    in_coco = [COCO_NAMES.index(IN_COCO.get(name, name)) for name in data.class_names.values()]
    assert all(c % 4 == fold for c in in_coco)
    assert {episode.class_id for episode in data.episodes} == set(data.class_ids)
    assert len(data) == 1000


def test_the_domain_shift_draws_from_the_published_lists_of_all_folds(tmp_path):
    listed = {
        (sample.name, c)
        for fold in range(4)
        for c, samples in open_benchmark("pascal5i", tmp_path, fold, "test").images.items()
        for sample in samples
    }
    shifted = [open_benchmark("coco2pascal", tmp_path, fold, "test").images for fold in range(4)]
    assert {
        (s.name, c) for images in shifted for c, samples in images.items() for s in samples
    } == listed


def test_folder_lists_are_taken_unless_the_built_in_ones_are_asked_for(bench, tmp_path):
    sha = {
        (root, splits): load_benchmark("pascal5i", root, splits=splits).episodes.sha256
        for root, splits in (
            (bench, "auto"),
            (bench, "folder"),
            (bench, "builtin"),
            (tmp_path, "auto"),
        )
    }
    assert (
        sha[bench, "auto"] == sha[bench, "folder"] != sha[bench, "builtin"] == sha[tmp_path, "auto"]
    )


def test_the_boundary_is_ignored_and_other_classes_are_background(bench):
    data = load_benchmark("pascal5i", bench, image_size=48, episodes=6)
    assert any(data[i].query_ignore.any() for i in range(6))
    for i, drawn in enumerate(data.episodes):
        with Image.open(
            bench / "VOC2012" / "SegmentationClassAug" / f"{drawn.query.name}.png"
        ) as file:
            classes = np.asarray(file)
        rows, columns = (np.arange(48) * side // 48 for side in classes.shape)
        resized = classes[np.ix_(rows, columns)]
        assert np.array_equal(data[i].query_mask, resized == drawn.class_id + 1)
        assert np.array_equal(data[i].query_ignore, resized == 255)


# ---- damaged folders ----


@pytest.fixture
def voc(own_bench):
    return own_bench("VOC2012")


def without(text, voc_class):
    return [line for line in text.splitlines() if not line.endswith(f"__{voc_class:02d}")]


@pytest.mark.parametrize(
    "line", ["hello", "2008_000000__", "2008_000000__00", "2008_000000__21", "2008_000000_1"]
)
def test_a_line_that_is_no_name_and_class_is_refused(refused_list, voc, line):
    file = voc / "splits" / "val" / "fold0.txt"
    file.write_text(file.read_text() + line + "\n")
    message = refused_list("pascal5i", voc.parent)
    assert f"{file}: the line {line!r} is not NAME__CLASS" in message


def test_a_list_that_is_no_text_is_refused(refused_list, voc):
    file = voc / "splits" / "val" / "fold0.txt"
    file.write_bytes(b"\xff\xfe\x00")
    assert f"{file} cannot be read" in refused_list("pascal5i", voc.parent)


@pytest.mark.parametrize("kept", [[], ["2008_000000__02"], ["2008_000000__02", "2008_000000__02"]])
def test_a_class_without_two_images_is_refused(refused_list, voc, kept):
    file = voc / "splits" / "val" / "fold0.txt"
    file.write_text("\n".join(without(file.read_text(), 2) + kept))
    message = refused_list("pascal5i", voc.parent)
    assert "class 1 (bicycle)" in message and "fold 0" in message


def test_an_empty_list_is_refused(refused_list, voc):
    (voc / "splits" / "val" / "fold0.txt").write_text("\n")
    assert "fold 0" in refused_list("pascal5i", voc.parent)


@pytest.fixture
def first_mask(voc):
    name = load_benchmark("pascal5i", voc.parent).episodes[0].query.name
    return voc / "SegmentationClassAug" / f"{name}.png"


def test_a_list_that_names_a_missing_picture_is_refused(refused_eval, voc):
    file = voc / "splits" / "val" / "fold0.txt"
    file.write_text("2001_999999__01\n" + file.read_text())
    assert f"{voc / 'JPEGImages' / '2001_999999.jpg'} does not exist (2 of" in refused_eval(
        "pascal5i", voc.parent
    )


def test_a_missing_mask_is_refused(refused_eval, voc, first_mask):
    first_mask.unlink()
    assert f"{first_mask} does not exist (1 of" in refused_eval("pascal5i", voc.parent)


def test_a_mask_of_another_size_than_its_picture_is_refused(refused_eval, voc, first_mask):
    Image.open(first_mask).resize((9, 5), Image.Resampling.NEAREST).save(first_mask)
    assert f"{first_mask}: the mask is 9 x 5, its picture" in refused_eval("pascal5i", voc.parent)


@pytest.mark.parametrize("value", [21, 254])
def test_a_mask_value_that_is_no_class_is_refused(refused_eval, voc, first_mask, value):
    classes = np.array(Image.open(first_mask))
    classes[0, :2] = value, 255  # the boundary is no excuse
    Image.fromarray(classes).save(first_mask)
    assert f"{first_mask} holds the value {value}" in refused_eval("pascal5i", voc.parent)


def test_a_colour_picture_in_the_place_of_a_mask_is_refused(refused_eval, voc, first_mask, picture):
    picture(0).save(first_mask)
    assert f"{first_mask} is a colour picture" in refused_eval("pascal5i", voc.parent)
