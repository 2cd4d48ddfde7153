"""COCO-20i: the published episodes, the loader interface, and damaged folders."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from diffews import InputError
from diffews.data.benchmarks.coco20i import CLASS_NAMES
from diffews.data.registry import load_benchmark


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("shots", [1, 5])
def test_the_real_test_episodes_are_the_references(expected, tmp_path, fold, shots):
    golden = expected("real_episodes").json[f"coco_fold{fold}_{shots}shot"]
    names = [
        episode.names()
        for episode in load_benchmark("coco20i", tmp_path, fold=fold, shots=shots).episodes
    ]
    assert names[:5] == golden["first"]
    assert names[-1:] == golden["last"]
    assert hashlib.sha256(json.dumps(names).encode()).hexdigest() == golden["sha256"]


@pytest.mark.parametrize(
    ("name", "fold", "shots"), [("eval_coco_fold0_1shot", 0, 1), ("eval_coco_fold3_5shot", 3, 5)]
)
def test_episodes_of_a_folders_own_lists_are_the_references(expected, coco, name, fold, shots):
    episodes = load_benchmark("coco20i", coco, fold=fold, shots=shots).episodes
    for episode, golden in zip(episodes, expected(name).json["episodes"], strict=False):
        assert episode.names() == [golden["class_id"], golden["query"], golden["supports"]]


def test_the_loader_keeps_its_interface(coco):
    data = load_benchmark("coco20i", coco, fold=0, split="test", shots=3, image_size=48, episodes=3)
    assert len(data) == 3 and data.fold == 0
    assert data.class_ids == list(range(0, 80, 4))
    assert data.class_names[16] == "dog" and list(data.class_names) == data.class_ids
    for episode, names in ((data[i], data.episodes[i].names()) for i in range(3)):
        assert type(episode.class_id) is int
        assert [episode.class_id, episode.query_name, episode.support_names] == names
        query, supports = np.asarray(episode.query_image), np.asarray(episode.support_images)
        assert (query.shape, query.dtype) == ((3, 48, 48), np.float32)
        assert (supports.shape, supports.dtype) == ((3, 3, 48, 48), np.float32)
        assert query.min() >= -1 and query.max() <= 1 and np.ptp(query) > 0.5
        mask, masks = np.asarray(episode.query_mask), np.asarray(episode.support_masks)
        assert (mask.shape, mask.dtype) == ((48, 48), np.uint8)
        assert (masks.shape, masks.dtype) == ((3, 48, 48), np.uint8)
        assert set(np.unique(mask)) <= {0, 1} and masks.any() and masks.max() == 1
        assert episode.query_ignore is None


def test_pixels_are_those_of_the_files(coco):
    data = load_benchmark("coco20i", coco, fold=0, image_size=64, episodes=8)
    for i, drawn in enumerate(data.episodes):
        episode = data[i]
        with Image.open(coco / "COCO2014" / drawn.query.name) as image:
            resized = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(
            episode.query_image, resized.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6
        )

        with Image.open(
            (coco / "COCO2014" / "annotations" / drawn.query.name).with_suffix(".png")
        ) as file:
            classes = np.asarray(file)
        rows, columns = (np.arange(64) * side // 64 for side in classes.shape)
        assert np.array_equal(
            episode.query_mask, classes[np.ix_(rows, columns)] == drawn.class_id + 1
        )
        assert episode.query_mask.any()


@pytest.mark.parametrize("fold", range(4))
def test_a_fold_tests_every_fourth_class(coco, fold):
    data = load_benchmark("coco20i", coco, fold=fold)
    assert data.class_ids == list(range(fold, 80, 4))
    assert {episode.class_id for episode in data.episodes} == set(data.class_ids)


@pytest.mark.parametrize("fold", range(4))
def test_training_never_sees_a_class_of_the_fold(coco, fold):
    data = load_benchmark("coco20i", coco, fold=fold, split="train")
    assert data.class_ids == [c for c in range(80) if c % 4 != fold]
    assert {episode.class_id for episode in data.episodes} == set(data.class_ids)
    assert all(episode.query.name.startswith("train2014/") for episode in data.episodes)


def test_class_names_are_the_80_of_coco():
    assert len(set(CLASS_NAMES)) == 80
    assert (CLASS_NAMES[0], CLASS_NAMES[39], CLASS_NAMES[79]) == ("person", "bottle", "toothbrush")


def test_the_root_may_be_the_benchmarks_own_folder(coco):
    outer, inner = (
        load_benchmark("coco20i", root, fold=0, episodes=2) for root in (coco, coco / "COCO2014")
    )
    inner.check_files()
    assert inner.episodes.sha256 == outer.episodes.sha256


def test_lists_of_the_folder_built_in_or_as_it_comes(coco, tmp_path):
    sha = {
        (root, splits): load_benchmark("coco20i", root, fold=2, splits=splits).episodes.sha256
        for root, splits in (
            (coco, "auto"),
            (coco, "folder"),
            (coco, "builtin"),
            (tmp_path, "auto"),
        )
    }
    assert sha[coco, "auto"] == sha[coco, "folder"] != sha[coco, "builtin"] == sha[tmp_path, "auto"]
    with pytest.raises(InputError, match="splits=folder"):
        load_benchmark("coco20i", tmp_path, fold=2, splits="folder")


def test_a_json_list_gives_the_episodes_of_the_pickle_it_was_made_from(own_coco):
    want = load_benchmark("coco20i", own_coco, fold=0).episodes.sha256
    file = own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl"
    file.with_suffix(".json").write_text(json.dumps(pickle.loads(file.read_bytes())))
    file.unlink()
    assert load_benchmark("coco20i", own_coco, fold=0, splits="folder").episodes.sha256 == want


# ---- damaged folders ----


@pytest.fixture
def first_query(own_coco):
    """The data set of one episode, and the files of its query, which a test may damage."""
    data = load_benchmark("coco20i", own_coco, fold=0, image_size=32, episodes=1)
    name = data.episodes[0].query.name
    return (
        data,
        own_coco / "COCO2014" / name,
        (own_coco / "COCO2014" / "annotations" / name).with_suffix(".png"),
    )


def test_a_mask_of_another_size_than_its_picture_is_refused(first_query):
    data, image, mask = first_query
    Image.open(mask).resize((9, 5), Image.Resampling.NEAREST).save(mask)
    with Image.open(image) as opened:
        size = f"{opened.width} x {opened.height}"
    with pytest.raises(InputError, match=rf"{mask.name}: the mask is 9 x 5, its picture {size}"):
        data[0]


def test_a_mask_value_above_80_is_refused(first_query):
    data, _, mask = first_query
    classes = np.array(Image.open(mask))
    classes[0, 0] = 81
    Image.fromarray(classes).save(mask)
    with pytest.raises(InputError, match=rf"{mask.name} holds the value 81; .*at most 80"):
        data[0]
    classes[0, 0] = 80
    Image.fromarray(classes).save(mask)
    assert data[0].query_mask.any()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_pictures_just_work(first_query, mode):
    data, image, _ = first_query
    with Image.open(image) as opened:
        converted = opened.convert(mode)
    converted.save(image)
    rgb = data[0].query_rgb
    assert rgb.shape == (3, 32, 32)
    assert np.array_equal(rgb[0], rgb[1]) == (mode == "L")


@pytest.mark.parametrize("content", [b"", b"not a picture"])
@pytest.mark.parametrize("which", [1, 2])
def test_an_empty_picture_or_mask_is_refused_by_name(first_query, content, which):
    first_query[which].write_bytes(content)
    with pytest.raises(InputError, match=rf"{first_query[which].name} is no picture"):
        first_query[0][0]


@pytest.mark.parametrize("names", [[], ["val2014/one.jpg"], ["val2014/one.jpg", "val2014/one.jpg"]])
def test_a_class_without_two_images_stops_instead_of_drawing_forever(own_coco, names):
    file = own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl"
    lists = pickle.loads(file.read_bytes())
    lists[16] = names
    file.write_bytes(pickle.dumps(lists))
    with pytest.raises(
        InputError, match=r"class 16 \(dog\) has [01] image.* fold 0; an episode needs"
    ):
        load_benchmark("coco20i", own_coco, fold=0)


def test_more_shots_than_images_repeat_supports(own_coco):
    file = own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl"
    lists = pickle.loads(file.read_bytes())
    lists[16] = lists[16][:2]
    file.write_bytes(pickle.dumps(lists))
    data = load_benchmark("coco20i", own_coco, fold=0, shots=5)
    dogs = [episode for episode in data.episodes if episode.class_id == 16]
    assert dogs and all(
        len(set(dog.supports)) == 1 and dog.query not in dog.supports for dog in dogs
    )
