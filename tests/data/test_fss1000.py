"""FSS-1000: every test picture is a query once; two folder layouts; damaged folders."""

import numpy as np
import pytest
from PIL import Image

from diffews.data.registry import load_benchmark, open_benchmark

pytest_plugins = ("benchmark_fixtures",)


@pytest.fixture
def fss(own_bench):
    return own_bench("FSS-1000")


def test_the_built_in_lists_are_those_of_the_1000_categories(tmp_path):
    parts = {
        split: open_benchmark("fss1000", tmp_path, 0, split) for split in ("train", "val", "test")
    }
    names = {split: list(benchmark.class_names.values()) for split, benchmark in parts.items()}
    assert {split: len(listed) for split, listed in names.items()} == {
        "train": 520,
        "val": 240,
        "test": 240,
    }
    assert len({name for listed in names.values() for name in listed}) == 1000
    assert parts["test"].class_ids == list(range(760, 1000))
    assert parts["val"].class_ids == list(range(520, 760)) and parts["train"].class_ids == list(
        range(520)
    )


def test_every_picture_is_a_query_once_in_the_order_of_its_path_as_text(tmp_path):
    episodes = load_benchmark("fss1000", tmp_path, shots=5).episodes
    queries = [episode.query.name for episode in episodes]
    assert len(queries) == 2400 == len(set(queries))
    assert [name.rsplit("/", 1)[1] for name in queries[:4]] == ["1.jpg", "10.jpg", "2.jpg", "3.jpg"]
    assert all(
        episode.query not in episode.supports and len(episode.supports) == 5 for episode in episodes
    )


def test_there_are_no_folds(bench):
    assert (
        len({load_benchmark("fss1000", bench, fold=fold).episodes.sha256 for fold in (0, 3)}) == 1
    )


def test_a_copy_without_the_data_level_gives_the_same_episodes_and_pixels(bench, fss):
    for category in (fss / "data").iterdir():
        category.rename(fss / category.name)
    (fss / "data").rmdir()
    want, found = (
        load_benchmark("fss1000", root, shots=2, image_size=48, episodes=12)
        for root in (bench, fss)
    )
    found.check_files()
    for i in (0, 11):
        assert np.array_equal(found[i].query_rgb, want[i].query_rgb)
        assert np.array_equal(found[i].support_masks, want[i].support_masks)
    assert found.published.sha256 == want.published.sha256


def test_foreground_is_half_grey_and_lighter(fss):
    data = load_benchmark("fss1000", fss.parent, image_size=32, episodes=1)
    image, mask = data.benchmark.files(data.episodes[0].query)
    width, height = Image.open(image).size
    grey = np.zeros((height, width), np.uint8)
    grey[0], grey[1], grey[2] = 127, 128, 255
    for mode in ("L", "RGB"):  # some copies hold grey masks saved as RGB
        Image.fromarray(grey).convert(mode).save(mask)
        found = data.benchmark.decode(data.episodes[0].query, 760).mask
        assert np.array_equal(found, grey >= 128)


# ---- damaged folders ----


def test_an_empty_list_is_refused(refused_list, fss):
    file = fss / "splits" / "test.txt"
    file.write_text("\n")
    assert str(file) in refused_list("fss1000", fss.parent)


def test_more_categories_than_there_are_is_refused(refused_list, fss):
    file = fss / "splits" / "test.txt"
    file.write_text("\n".join(f"category{i}" for i in range(241)))
    assert f"{file} lists 241 categories, FSS-1000 has 240" in refused_list("fss1000", fss.parent)


def test_a_category_that_has_no_folder_is_refused(refused_eval, fss):
    file = fss / "splits" / "test.txt"
    file.write_text("aaa\n" + file.read_text())
    assert f"{fss / 'data' / 'aaa'} does not exist" in refused_eval("fss1000", fss.parent)


@pytest.fixture
def first_mask(fss):
    data = load_benchmark("fss1000", fss.parent)
    return data.benchmark.files(data.episodes[0].query)[1]


def test_a_missing_mask_is_refused(refused_eval, fss, first_mask):
    first_mask.unlink()
    assert f"{first_mask} does not exist (1 of" in refused_eval("fss1000", fss.parent)


def test_a_mask_of_another_size_than_its_picture_is_refused(refused_eval, fss, first_mask):
    Image.new("L", (9, 5), 255).save(first_mask)
    assert f"{first_mask}: the mask is 9 x 5, its picture" in refused_eval("fss1000", fss.parent)


def test_a_truncated_mask_is_refused(refused_eval, fss, first_mask):
    first_mask.write_bytes(first_mask.read_bytes()[:90])
    assert str(first_mask) in refused_eval("fss1000", fss.parent)
