"""LVIS-92i: a fold's classes, masks from polygons and run-length codes, damaged tables."""

import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from diffews.data.polygons import segmentation_mask
from diffews.data.registry import load_benchmark

pytest_plugins = ("benchmark_fixtures",)


def test_a_fold_takes_every_tenth_class_that_has_more_pictures_than_shots(bench):
    table = pickle.loads((bench / "LVIS" / "lvis_val.pkl").read_bytes())
    for shots in (1, 3):
        usable = [name for name, pictures in table.items() if len(pictures) > shots]
        assert len(usable) < len(table)
        for fold in (0, 4, 9):
            data = load_benchmark("lvis92i", bench, fold=fold, shots=shots)
            count = len(usable) // 10
            assert list(data.class_names.values()) == [
                str(name) for name in usable[fold::10][:count]
            ]
            assert data.class_ids == list(range(count)) and len(data) == 2300
            assert [episode.class_id for episode in data.episodes] == [
                i % count for i in range(2300)
            ]


# ---- segmentations ----


def test_a_polygon_a_code_of_counts_and_a_compressed_code_give_the_same_mask():
    square = np.zeros((20, 30), np.uint8)
    square[5:15, 10:20] = 1
    code = coco_mask.encode(np.asfortranarray(square))
    counts = [10 * 20 + 5, *([10, 10] * 10)[:-1], 9 * 20 + 5 + 20 - 20 + 20]
    counts[-1] += 600 - sum(counts)  # columns first, background first
    text = {**code, "counts": code["counts"].decode()}
    corners = [[10, 5, 20, 5, 20, 15, 10, 15]]
    for segmentation in (corners, code, text, {"size": [20, 30], "counts": counts}):
        assert np.array_equal(segmentation_mask(segmentation, 20, 30, "here"), square)
    two = segmentation_mask([*corners, [0, 0, 4, 0, 4, 4, 0, 4]], 20, 30, "here")
    assert two.dtype == np.uint8 and two.sum() == square.sum() + 16  # the union


# ---- damaged tables ----


@pytest.fixture
def lvis(own_bench):
    return own_bench("LVIS")


@pytest.fixture
def table(lvis):
    return lvis / "lvis_val.pkl"


@pytest.fixture
def first(lvis):
    """Class (as the table names it), picture, and size (height, width) of the first query."""
    data = load_benchmark("lvis92i", lvis.parent)
    name = data.episodes[0].query.name
    with Image.open(lvis / "coco" / name) as image:
        return data.benchmark.names[data.episodes[0].class_id], name, (image.height, image.width)


@pytest.mark.parametrize(
    "annotations",
    [
        None,
        7,
        [None],
        [{}],
        [{"segmentation": None}],
        [{"segmentation": []}],
        [{"segmentation": "a"}],
    ],
)
def test_an_annotation_without_a_segmentation_is_refused(
    refused_eval, change, table, first, annotations
):
    class_name, picture, _ = first
    change(
        table, lambda content: content[class_name].update({picture: {"annotations": annotations}})
    )
    message = refused_eval("lvis92i", table.parents[1])
    assert message.startswith(f"{table}: class {class_name!r}, {picture}: no ")


def test_a_picture_without_the_key_annotations_is_refused(refused_eval, change, table, first):
    class_name, picture, _ = first
    change(table, lambda content: content[class_name].update({picture: {}}))
    message = refused_eval("lvis92i", table.parents[1])
    assert (
        message.startswith(f"{table}: class {class_name!r}, {picture}: ")
        and "annotations" in message
    )


@pytest.mark.parametrize(
    "polygon", [[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], ["a"] * 6, [None] * 6, 5]
)
def test_a_polygon_that_is_none_is_refused(refused_eval, change, table, first, polygon):
    class_name, picture, _ = first
    annotations = [{"segmentation": [polygon]}]
    change(
        table, lambda content: content[class_name].update({picture: {"annotations": annotations}})
    )
    message = refused_eval("lvis92i", table.parents[1])
    assert (
        message.startswith(f"{table}: class {class_name!r}, {picture}: ") and "polygon" in message
    )


@pytest.mark.parametrize(
    "damage", ["size", "no size", "no counts", "number", "short", "long", "cut"]
)
def test_a_run_length_code_of_another_size_is_refused(refused_eval, change, table, first, damage):
    class_name, picture, (height, width) = first
    code = coco_mask.encode(np.ones((height, width), np.uint8, order="F"))
    code = {
        "size": {"size": [width + 1, height], "counts": code["counts"]},
        "no size": {"counts": code["counts"]},
        "no counts": {"size": [height, width]},
        "number": {"size": [height, width], "counts": 5},
        "short": {"size": [height, width], "counts": [3, 4]},
        "long": {"size": [height, width], "counts": [3, height * width]},
        "cut": {"size": [height, width], "counts": b"34"},
    }[damage]
    annotations = [{"segmentation": code}]
    change(
        table, lambda content: content[class_name].update({picture: {"annotations": annotations}})
    )
    message = refused_eval("lvis92i", table.parents[1])
    assert (
        message.startswith(f"{table}: class {class_name!r}, {picture}: ")
        and "run-length" in message
    )


def test_a_class_that_holds_no_pictures_by_name_is_refused(refused_list, change, table, first):
    class_name, _, _ = first
    for pictures in (
        ["val2017/000000000001.jpg"],
        {1: {"annotations": []}, 2: {"annotations": []}},
    ):
        change(table, lambda content, pictures=pictures: content.update({class_name: pictures}))
        assert str(table) in refused_list("lvis92i", table.parents[1])


def test_a_table_with_too_few_classes_for_ten_folds_is_refused(refused_list, change, table):
    change(table, lambda content: [content.pop(name) for name in list(content)[9:]])
    assert str(table) in refused_list("lvis92i", table.parents[1])


def test_a_table_of_empty_classes_is_refused(refused_list, change, table):
    change(table, lambda content: content.update({name: {} for name in content}))
    assert str(table) in refused_list("lvis92i", table.parents[1])


@pytest.mark.parametrize("kept", [0, 1])
def test_a_class_with_fewer_pictures_than_an_episode_needs_is_no_class(change, table, first, kept):
    class_name, _, _ = first
    before = load_benchmark("lvis92i", table.parents[1]).class_names
    change(
        table,
        lambda content: content.update(
            {class_name: dict(list(content[class_name].items())[:kept])}
        ),
    )
    after = load_benchmark("lvis92i", table.parents[1])
    assert str(class_name) in before.values() and str(class_name) not in after.class_names.values()


def test_a_table_that_names_a_missing_picture_is_refused(refused_eval, change, table, first):
    class_name, _, _ = first
    change(
        table,
        lambda content: content.update({class_name: {f"val2017/no{i}.jpg": {} for i in range(2)}}),
    )
    message = refused_eval("lvis92i", table.parents[1])
    assert "val2017/no" in message and "does not exist" in message
