"""PACO-Part: which classes a fold has, crops to objects, and damaged tables."""

import pickle

import numpy as np
import pytest
from PIL import Image

from diffews.data.registry import load_benchmark

pytest_plugins = ("benchmark_fixtures",)


@pytest.fixture(scope="module")
def tables(bench):
    folder = bench / "PACO-Part" / "paco"
    return {
        part: pickle.loads((folder / f"paco_part_{part}.pkl").read_bytes())
        for part in ("train", "val")
    }


def test_a_fold_takes_every_fourth_class_of_the_training_file_that_has_enough_pictures(
    bench, tables
):
    pictures = {
        c: {i for entry in entries for i in entry}
        for c, entries in tables["val"]["cid2img"].items()
    }
    assert len(tables["train"]["cid2img"]) == 448
    for fold, shots in ((0, 1), (2, 3)):
        data = load_benchmark("paco_part", bench, fold=fold, shots=shots)
        listed = [c for i, c in enumerate(tables["train"]["cid2img"]) if i % 4 == fold]
        assert list(data.class_names.values()) == [
            str(c) for c in listed if len(pictures[c]) > shots
        ]
        assert data.class_ids == list(range(len(data.class_ids))) and len(data) == 2500


def test_a_crop_is_the_box_of_the_object_and_its_mask_the_union_of_its_parts(bench, tables):
    data = load_benchmark("paco_part", bench, shots=2)
    for episode in data.episodes[:20]:
        for sample in (episode.query, *episode.supports):
            annotations = tables["val"]["img2anno"][int(sample.name[-16:-4])]
            category = int(data.class_names[episode.class_id])
            own = [
                a
                for a in annotations
                if (a["obj_ann_id"], a["category_id"]) == (sample.object_id, category)
            ]
            x, y, w, h = own[0]["obj_bbox"]
            with Image.open(bench / "PACO-Part" / "coco" / sample.name) as image:
                whole = np.asarray(image.convert("RGB"))
            found = data.benchmark.decode(sample, episode.class_id)
            assert np.array_equal(found.image, whole[int(y) : int(y + h), int(x) : int(x + w)])
            assert found.mask.shape == found.image.size[::-1]


def test_supports_are_other_pictures_than_the_query(bench):
    for episode in load_benchmark("paco_part", bench, shots=3).episodes:
        assert episode.query.name not in {support.name for support in episode.supports}


# ---- damaged tables ----


@pytest.fixture
def paco(own_bench):
    return own_bench("PACO-Part")


@pytest.fixture
def table(paco):
    return paco / "paco" / "paco_part_val.pkl"


@pytest.fixture(scope="module")
def first(bench):
    """Image id, category, name, object of the first query."""
    data = load_benchmark("paco_part", bench)
    query, class_id = data.episodes[0].query, data.episodes[0].class_id
    return int(query.name[-16:-4]), int(data.class_names[class_id]), query.name, query.object_id


@pytest.fixture
def change_first(change, table, first):
    """change_first(edit): edits the annotations of the first query's class."""
    image_id, category, _, _ = first

    def call(edit):
        def edit_all(content):
            for annotation in content["img2anno"][image_id]:
                if annotation["category_id"] == category:
                    edit(annotation)

        change(table, edit_all)

    return call


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    "damage", [lambda table: table.pop("cid2img"), lambda table: table.update(cid2img=[1, 2])]
)
def test_a_table_without_its_lists_is_refused(refused_list, change, paco, part, damage):
    file = paco / "paco" / f"paco_part_{part}.pkl"
    change(file, damage)
    message = refused_list("paco_part", paco.parent)
    assert str(file) in message and "cid2img" in message


@pytest.mark.parametrize(
    "damage", [lambda table: table.pop("img2anno"), lambda table: table.update(img2anno=[1, 2])]
)
def test_a_table_without_annotations_is_refused(refused_list, change, table, damage):
    change(table, damage)
    message = refused_list("paco_part", table.parents[2])
    assert str(table) in message and "img2anno" in message


@pytest.mark.parametrize("annotations", [None, 7, [7], []])
def test_an_image_without_annotations_is_refused(refused_list, change, table, first, annotations):
    image_id = first[0]
    change(table, lambda content: content["img2anno"].update({image_id: annotations}))
    message = refused_list("paco_part", table.parents[2])
    assert str(table) in message and str(image_id) in message


def test_an_image_id_that_has_no_annotations_is_refused(refused_list, change, table, first):
    image_id = first[0]
    change(table, lambda content: content["img2anno"].pop(image_id))
    assert f"{table}: image {image_id} " in refused_list("paco_part", table.parents[2])


def test_an_image_without_an_object_of_its_class_is_refused(
    refused_list, change_first, table, first
):
    change_first(lambda annotation: annotation.update(category_id=-1))
    message = refused_list("paco_part", table.parents[2])
    assert str(table) in message and str(first[0]) in message


@pytest.mark.parametrize("key", ["category_id", "obj_ann_id"])
def test_an_annotation_that_names_no_class_or_object_is_refused(
    refused_list, change_first, table, first, key
):
    change_first(lambda annotation: annotation.pop(key))
    message = refused_list("paco_part", table.parents[2])
    assert str(table) in message and str(first[0]) in message and key in message


@pytest.mark.parametrize("entries", [["a", "b"], [{1: 1}, {2: 2}], [7], None])
def test_a_class_that_lists_no_pictures_by_id_is_refused(
    refused_list, change, table, first, entries
):
    change(table, lambda content: content["cid2img"].update({first[1]: entries}))
    message = refused_list("paco_part", table.parents[2])
    assert str(table) in message and "cid2img" in message


@pytest.mark.parametrize("kept", [0, 1])
def test_a_class_with_fewer_pictures_than_an_episode_needs_is_no_class(change, table, first, kept):
    change(
        table,
        lambda content: content["cid2img"].update({first[1]: content["cid2img"][first[1]][:kept]}),
    )
    data = load_benchmark("paco_part", table.parents[2])
    assert str(first[1]) not in data.class_names.values()
    assert data.class_ids == list(range(100))  # of 101


def test_a_table_of_empty_classes_is_refused(refused_list, change, table):
    change(table, lambda content: content.update(cid2img={c: [] for c in content["cid2img"]}))
    assert str(table) in refused_list("paco_part", table.parents[2])


@pytest.mark.parametrize("key", ["obj_bbox", "segmentation"])
def test_an_annotation_without_box_or_segmentation_is_refused(
    refused_eval, change_first, table, first, key
):
    change_first(lambda annotation: annotation.pop(key))
    message = refused_eval("paco_part", table.parents[2])
    assert str(table) in message and first[2] in message and key in message


BOXES = [None, [1, 2, 3], ["a", 1, 2, 3], [1, 1, 0, 5], [-9, -9, 20, 20]]


@pytest.mark.parametrize("box", BOXES)
def test_a_box_that_holds_no_pixel_is_refused(refused_eval, change_first, table, first, box):
    change_first(lambda annotation: annotation.update(obj_bbox=box))
    message = refused_eval("paco_part", table.parents[2])
    assert str(table) in message and first[2] in message and "obj_bbox" in message


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[1, 2, 3, 4]], "a polygon needs at least three points"),
        ({"size": [3, 3], "counts": b"9"}, "the run-length code is not of size"),
        (None, "no polygon and no run-length code"),
    ],
)
def test_a_bad_segmentation_is_refused(
    refused_eval, change_first, table, first, segmentation, says
):
    change_first(lambda annotation: annotation.update(segmentation=segmentation))
    message = refused_eval("paco_part", table.parents[2])
    assert f"{table}: {first[2]}, object {first[3]}: {says}" in message
