"""Pascal-Part: which classes a fold has, crops to objects, and damaged folders."""

import json

import numpy as np
import pytest
from PIL import Image

from diffews.data.registry import load_benchmark

pytest_plugins = ("benchmark_fixtures",)

VOC = "VOCdevkit/VOC2010"
FOLD_NAMES = ["animals", "indoor", "person", "vehicles"]


@pytest.fixture(scope="module")
def lists(bench):
    return json.loads((bench / "Pascal-Part" / VOC / "all_obj_part_to_image.json").read_text())


@pytest.mark.parametrize("fold", range(4))
def test_classes_are_the_parts_of_the_fold_in_turn(bench, lists, fold):
    data = load_benchmark("pascal_part", bench, fold=fold)
    parts = {
        f"{name}+{part}": pictures
        for name, content in lists[FOLD_NAMES[fold]]["object"].items()
        for part, pictures in content["part"].items()
    }
    usable = [
        name for name, p in parts.items() if p["train"] and p["val"] and name != "aeroplane+TAIL"
    ]
    assert list(data.class_names.items()) == list(enumerate(usable))
    assert len(data) == sum(len(pictures["val"]) for pictures in parts.values())
    assert ("aeroplane+TAIL" in parts) == (fold == 3)  # left out, but counted
    assert [episode.class_id for episode in data.episodes] == [
        i % len(usable) for i in range(len(data))
    ]


def test_a_crop_is_the_box_of_the_object(bench):
    data = load_benchmark("pascal_part", bench, shots=3)
    folder = bench / "Pascal-Part" / VOC
    for episode in data.episodes[:12]:
        samples = (episode.query, *episode.supports)
        assert len({sample.name for sample in samples}) == 4
        for sample in samples:
            file = folder / "Annotations_Part_json_merged_part_classes" / f"{sample.name}.json"
            found = json.loads(file.read_text())["object"][sample.object_id]
            box = [int(found["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")]
            with Image.open(folder / "JPEGImages" / f"{sample.name}.jpg") as image:
                whole = np.asarray(image.convert("RGB"))
            picture = data.benchmark.decode(sample, episode.class_id)
            assert np.array_equal(picture.image, whole[box[1] : box[3], box[0] : box[2]])
            assert picture.mask.shape == picture.image.size[::-1]
            object_name, part = data.class_names[episode.class_id].split("+")
            assert found["name"] == object_name and part in {p["name"] for p in found["parts"]}


# ---- damaged folders ----


@pytest.fixture
def root(own_bench):
    return own_bench("Pascal-Part") / VOC


@pytest.fixture
def table(root):
    return root / "all_obj_part_to_image.json"


@pytest.fixture
def annotation(root, bench):
    """The annotation file of the first query."""
    name = load_benchmark("pascal_part", bench).episodes[0].query.name
    return root / "Annotations_Part_json_merged_part_classes" / f"{name}.json"


@pytest.fixture
def data(root):
    return root.parents[2]


def head_of_birds(content):
    return content["animals"]["object"]["bird"]["part"]["head"]


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda content: content.pop("animals"), "animals"),
        (lambda content: content["animals"].pop("object"), "object"),
        (lambda content: content["animals"]["object"]["bird"].pop("part"), "part"),
        (lambda content: head_of_birds(content).pop("train"), "train"),
        (lambda content: head_of_birds(content).pop("val"), "val"),
        (lambda content: content.update(animals=[]), ""),
        (lambda content: head_of_birds(content).update(val=5), ""),
    ],
)
def test_lists_that_lack_a_key_are_refused(refused_list, change, table, data, damage, key):
    change(table, damage)
    message = refused_list("pascal_part", data)
    assert str(table) in message and key in message


def test_a_list_that_names_a_picture_without_annotations_is_refused(
    refused_list, change, table, data
):
    change(table, lambda content: head_of_birds(content)["val"].append("2010_999999"))
    assert "2010_999999.json does not exist" in refused_list("pascal_part", data)


def test_a_part_without_pictures_is_no_class_and_leaves_no_gap_in_the_ids(change, table, data):
    before = load_benchmark("pascal_part", data).class_names
    change(table, lambda content: head_of_birds(content).update(val=[]))
    after = load_benchmark("pascal_part", data).class_names
    assert list(after.items()) == list(
        enumerate(name for name in before.values() if name != "bird+head")
    )


@pytest.mark.parametrize(("kept", "shots"), [(1, 1), (3, 3)])
def test_a_class_with_too_few_pictures_is_refused(refused_list, change, table, data, kept, shots):
    change(
        table,
        lambda content: head_of_birds(content).update(val=head_of_birds(content)["val"][:kept]),
    )
    message = refused_list("pascal_part", data, f"shots={shots}")
    assert (
        "class 0 (bird+head)" in message
        and str(table) in message
        and f"needs {shots + 1}" in message
    )


def test_a_fold_of_empty_classes_is_refused(refused_list, change, table, data):
    def edit(content):
        for found in content["animals"]["object"].values():
            for pictures in found["part"].values():
                pictures["val"] = []

    change(table, edit)
    assert str(table) in refused_list("pascal_part", data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("object"),
        lambda content: content.update(object=None),
        lambda content: content.update(object=["bird"]),
        lambda content: content.update(object=[]),
        lambda content: [found.pop("name") for found in content["object"]],
        lambda content: [found.update(parts=None) for found in content["object"]],
        lambda content: [found.update(parts=["head"]) for found in content["object"]],
    ],
)
def test_an_annotation_file_without_proper_objects_is_refused(
    refused_list, change, annotation, data, damage
):
    change(annotation, damage)
    assert str(annotation) in refused_list("pascal_part", data)


@pytest.mark.parametrize("kept", [0, 50])
def test_a_truncated_annotation_file_is_refused(refused_list, annotation, data, kept):
    annotation.write_text(annotation.read_text()[:kept])
    assert f"{annotation} cannot be read" in refused_list("pascal_part", data)


def box(**changes):
    return lambda found: found["bndbox"].update(changes)


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda found: found.pop("bndbox"), "bndbox"),
        (lambda found: found["bndbox"].pop("xmin"), "xmin"),
        (box(ymax="abc"), "bndbox"),
        (box(xmin="900", xmax="950"), "bndbox"),
        (lambda found: found["bndbox"].update(xmax=found["bndbox"]["xmin"]), "bndbox"),
        (box(xmin="-20"), "bndbox"),
        (lambda found: [part.pop("mask") for part in found["parts"]], "mask"),
        (lambda found: [part.update(mask=7) for part in found["parts"]], "mask"),
        (
            lambda found: [
                part.update(mask=[{"size": [3, 3], "counts": "9"}]) for part in found["parts"]
            ],
            "size",
        ),
        (
            lambda found: [part.update(mask=[[[1, 2, 3, 4]]]) for part in found["parts"]],
            "three points",
        ),
    ],
)
def test_an_object_without_box_or_mask_is_refused(
    refused_eval, change, annotation, data, damage, key
):
    change(annotation, lambda content: [damage(found) for found in content["object"]])
    message = refused_eval("pascal_part", data)
    assert f"{annotation}: object " in message and key in message
