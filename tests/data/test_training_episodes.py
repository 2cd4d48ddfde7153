"""Training episodes are a function of (seed, index), for any workers and ranks; none is novel."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from training_runs import pixel_reader

from diffews import InputError
from diffews.data.episodes import Episode, Sample
from diffews.data.prefetch import stream
from diffews.data.registry import open_benchmark
from diffews.data.training import PixelReader, Renderings, TrainingEpisodes
from diffews.images.paint import BLENDED, WHITE_ON_BLACK

pytest_plugins = ("training_fixtures",)

BY_FIELD = ("query", "target", "supports", "painted")  # of a batch of the released model


@pytest.fixture(scope="module")
def shapes_train(few_shapes):
    return open_benchmark("coco20i", few_shapes, 0, "train")


@pytest.fixture(scope="module")
def coco_train(tmp_path_factory):
    """The built-in lists of the real COCO-20i; drawing needs no picture."""
    return open_benchmark("coco20i", tmp_path_factory.mktemp("empty"), 0, "train", "builtin")


def listed(images):
    """A benchmark of these lists alone: what drawing needs."""
    samples = {c: [Sample(name) for name in names] for c, names in images.items()}
    return SimpleNamespace(class_ids=sorted(images), images=samples, groups=())


# ---- a function of (seed, index) ----


def test_an_episode_depends_on_seed_and_index_alone(coco_train):
    one, other = TrainingEpisodes(coco_train, seed=7), TrainingEpisodes(coco_train, seed=7)
    forwards = [one.draw(index, 3) for index in range(40)]
    backwards = [other.draw(index, 3) for index in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 40
    assert TrainingEpisodes(coco_train, seed=8).draw(0, 3) != forwards[0]
    assert one.draw(0, 3, attempt=1) != forwards[0]


def test_more_shots_add_supports_and_change_nothing_else(coco_train):
    episodes = TrainingEpisodes(coco_train, seed=7)
    for index in range(20):
        few, many = episodes.draw(index, 2), episodes.draw(index, 7)
        assert (few.class_id, few.query) == (many.class_id, many.query)
        assert few.supports == many.supports[:2]


@pytest.mark.parametrize(
    ("fold", "pairs"), [(0, False), (1, False), (2, False), (3, False), (1, True)]
)
def test_no_novel_class_is_ever_a_training_episodes_class(tmp_path, fold, pairs):
    benchmark = open_benchmark("coco20i", tmp_path, fold, "train", "builtin")
    episodes = TrainingEpisodes(benchmark, seed=42, pairs=pairs)
    drawn = [episodes.draw(index, 1) for index in range(2000)]
    assert {episode.class_id for episode in drawn} == {c for c in range(80) if c % 4 != fold}
    images = {c: set(samples) for c, samples in benchmark.images.items()}
    for episode in drawn:
        assert {episode.query, *episode.supports} <= images[episode.class_id]
        assert episode.query.name.startswith("train2014/")


def test_classes_are_drawn_evenly_and_pictures_of_a_class_too(shapes_train):
    episodes = TrainingEpisodes(shapes_train, seed=1)
    classes = [episodes.draw(index, 1).class_id for index in range(6000)]
    counts = np.bincount(classes, minlength=80)[shapes_train.class_ids]
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, standard deviation 10
    images = listed({5: ["a", "b", "c", "d"]})
    drawn = [TrainingEpisodes(images, seed=1).draw(index, 1) for index in range(400)]
    for names in ([e.query.name for e in drawn], [e.supports[0].name for e in drawn]):
        assert min(names.count(name) for name in "abcd") > 70


def test_a_support_is_never_the_query():
    episodes = TrainingEpisodes(listed({0: ["a", "b", "a"]}), seed=0)
    for index in range(50):
        episode = episodes.draw(index, 4)
        assert episode.query not in episode.supports and len(episode.supports) == 4


def test_the_number_of_shots_is_a_function_of_seed_and_micro_step(shapes_train):
    one, other = TrainingEpisodes(shapes_train, seed=3), TrainingEpisodes(shapes_train, seed=3)
    drawn = [one.shots(step, 7) for step in range(700)]
    assert drawn == [other.shots(step, 7) for step in reversed(range(700))][::-1]
    assert set(drawn) == set(range(1, 8)) and all(type(n) is int for n in drawn)
    assert min(drawn.count(n) for n in range(1, 8)) > 60  # 100 expected
    assert drawn != [TrainingEpisodes(shapes_train, seed=4).shots(step, 7) for step in range(700)]
    assert {one.shots(step, 1) for step in range(50)} == {1}


def test_noise_is_gaussian_and_a_function_of_seed_and_index(shapes_train):
    one, other = TrainingEpisodes(shapes_train, seed=3), TrainingEpisodes(shapes_train, seed=3)
    noise = one.noise(5, (6, 4, 32, 32))
    assert torch.equal(noise, other.noise(5, (6, 4, 32, 32))) and noise.dtype == torch.float32
    assert noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03
    assert not torch.equal(noise, one.noise(6, (6, 4, 32, 32)))
    assert not torch.equal(noise, TrainingEpisodes(shapes_train, seed=4).noise(5, (6, 4, 32, 32)))


# ---- workers and ranks ----


def same_batches(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.episodes, a.indices, a.shots) == (b.episodes, b.indices, b.shots)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in BY_FIELD)


def test_any_number_of_workers_gives_the_same_batches(trainer):
    run = trainer("accumulate=2")
    read = run.batch_reader(pixel_reader(run)).read
    want = [read(micro_step) for micro_step in range(5)]
    for workers in (0, 1, 2):
        same_batches(list(stream(read, range(5), workers)), want)
    same_batches(list(stream(read, range(2, 5), 2)), want[2:])  # a run that goes on


def read_as(run, rank, ranks, batch, micro_steps):
    run.accelerator = SimpleNamespace(process_index=rank, num_processes=ranks)
    run.config = replace(run.config, batch=batch)
    reader = run.batch_reader(pixel_reader(run))
    return [reader.read(micro_step) for micro_step in range(micro_steps)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_no_index_and_together_read_what_one_process_reads(trainer, ranks):
    run = trainer()
    whole = read_as(run, 0, 1, 2 * ranks, 4)
    parts = [read_as(run, rank, ranks, 2, 4) for rank in range(ranks)]
    assert [index for batch in whole for index in batch.indices] == list(range(8 * ranks))
    for step, batch in enumerate(whole):
        joined = [part[step] for part in parts]
        assert {part.shots for part in joined} == {batch.shots}
        assert sum((part.indices for part in joined), []) == batch.indices
        assert sum((part.episodes for part in joined), []) == batch.episodes
        for name in BY_FIELD:
            parts_of = torch.cat([getattr(part, name) for part in joined])
            assert torch.equal(parts_of, getattr(batch, name)), name


# ---- pairs ----


def test_pairs_share_the_query_and_ask_for_two_of_its_classes(shapes_train):
    episodes = TrainingEpisodes(shapes_train, seed=2, pairs=True)
    classes_of = {}
    for class_id, samples in shapes_train.images.items():
        for sample in samples:
            classes_of.setdefault(sample, set()).add(class_id)
    differ = 0
    for k in range(150):
        one, other = episodes.draw(2 * k, 2), episodes.draw(2 * k + 1, 2)
        assert one.query == other.query
        assert {one.class_id, other.class_id} <= classes_of[one.query]
        assert (one.class_id != other.class_id) == (len(classes_of[one.query]) > 1)
        assert set(other.supports) <= set(shapes_train.images[other.class_id]) - {other.query}
        differ += one.class_id != other.class_id
    assert 50 < differ < 150  # both kinds are there


def test_a_pair_of_one_class_has_supports_of_its_own():
    lone = listed({0: [f"{i}" for i in range(50)]})
    episodes = TrainingEpisodes(lone, seed=0, pairs=True)
    one, other = episodes.draw(0, 5), episodes.draw(1, 5)
    assert (one.query, one.class_id) == (other.query, other.class_id)
    assert one.supports != other.supports


def test_without_pairs_neighbours_have_nothing_in_common(coco_train):
    episodes = TrainingEpisodes(coco_train, seed=2)
    pairs = [(episodes.draw(2 * k, 1), episodes.draw(2 * k + 1, 1)) for k in range(100)]
    assert not any(one.query == other.query for one, other in pairs)


# ---- classes and masks that cannot be used ----


def test_a_class_with_a_single_picture_is_skipped():
    episodes = TrainingEpisodes(listed({1: ["a"], 2: ["b", "c"], 3: [], 5: ["d", "d"]}), seed=0)
    assert episodes.skipped == [1, 3, 5]
    assert {episodes.draw(index, 3).class_id for index in range(30)} == {2}


def test_skipped_classes_are_told(train, run, train_words, few_shapes, tmp_path):
    data = shutil.copytree(few_shapes, tmp_path / "data")
    file = data / "COCO2014" / "splits" / "trn" / "fold0.json"
    lists = json.loads(file.read_text())
    lists["1"], lists["7"] = lists["1"][:1], []
    file.write_text(json.dumps(lists))
    outcome = run(*train_words, f"data={data}", f"out={tmp_path / 'out'}")
    assert outcome.code == 0
    for class_id in (1, 7):
        assert f"class {class_id} (" in outcome.err
    assert outcome.err.count("has fewer than two pictures and is skipped") == 2


def test_no_class_with_two_pictures_is_an_error():
    with pytest.raises(InputError, match="two pictures"):
        TrainingEpisodes(listed({1: ["a"], 2: []}), seed=0)


@pytest.fixture
def vanishing(few_shapes, tmp_path):
    """Shapes where class 1 is one pixel in every picture, which the resize to 32 px leaves out."""
    data = shutil.copytree(few_shapes, tmp_path / "vanishing")
    for file in (data / "COCO2014" / "annotations" / "train2014").iterdir():
        class_map = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if (class_map == 2).any():
            class_map[class_map == 2] = 0
            class_map[33, 33] = 2
            cv2.imwrite(str(file), class_map)
    return open_benchmark("coco20i", data, 0, "train")


def test_an_episode_whose_mask_vanishes_is_drawn_again(vanishing):
    episodes, reader = TrainingEpisodes(vanishing, seed=0), reader_of(vanishing)
    indices = [index for index in range(400) if episodes.draw(index, 1).class_id == 1]
    assert indices
    for index in indices[:3]:
        assert reader.read(episodes.draw(index, 1)) is None
        batch = episodes.batch(reader, [index], 1)
        again = next(e for a in range(1, 9) if (e := episodes.draw(index, 1, a)).class_id != 1)
        assert batch.episodes == [again] and batch.indices == [index]
        assert (batch.target == 255).any() and (batch.painted == 255).any()
    kept = reader_of(vanishing, 64).read(episodes.draw(indices[0], 1))["target"]
    assert (kept == 255).sum() == 3  # one pixel, three channels: at the images' own size


def test_masks_that_always_vanish_are_an_error(vanishing):
    vanishing.class_ids, vanishing.images = [1], {1: vanishing.images[1]}
    with pytest.raises(InputError, match="empty mask"):
        TrainingEpisodes(vanishing, seed=0).batch(reader_of(vanishing), [0], 1)


# ---- images ----


def reader_of(benchmark, image_size=32, **renderings):
    return PixelReader(benchmark, image_size, Renderings(**renderings))


def decoded_by_hand(benchmark, sample, class_id):
    """Pixels [3, H, W] and mask [H, W] of a sample of the shapes, by OpenCV."""
    image_file, mask_file = benchmark.files(sample)
    image = cv2.cvtColor(cv2.imread(str(image_file)), cv2.COLOR_BGR2RGB).transpose(2, 0, 1)
    return image.astype(int), cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE) == class_id + 1


def test_each_field_holds_what_its_name_says(shapes_train):
    episode = TrainingEpisodes(shapes_train, seed=0).draw(0, 2)
    fields = reader_of(shapes_train, 64).read(episode)
    assert fields.keys() == set(BY_FIELD)
    assert all(tensor.dtype == torch.uint8 for tensor in fields.values())
    assert fields["query"].shape == fields["target"].shape == (3, 64, 64)
    assert fields["supports"].shape == fields["painted"].shape == (2, 3, 64, 64)

    images = torch.cat([fields["query"][None], fields["supports"]]).numpy()
    masks = torch.cat([fields["target"][None], fields["painted"]]).numpy()
    samples = (episode.query, *episode.supports)
    for image, painted, sample in zip(images, masks, samples, strict=True):
        want, mask = decoded_by_hand(shapes_train, sample, episode.class_id)
        assert np.abs(image.astype(int) - want).max() <= 3  # two JPEG decoders
        assert (painted == np.where(mask, 255, 0)).all() and mask.any()


def test_only_what_the_injection_takes_is_there(shapes_train):
    episode = TrainingEpisodes(shapes_train, seed=0).draw(0, 2)
    masks = reader_of(shapes_train, 64, painted=None).read(episode)
    assert masks.keys() == {"query", "target", "supports", "masks"}
    assert masks["masks"].shape == (2, 64, 64) and masks["masks"].dtype == torch.uint8
    for mask, sample in zip(masks["masks"].numpy(), episode.supports, strict=True):
        assert (mask == decoded_by_hand(shapes_train, sample, episode.class_id)[1]).all()

    blended = reader_of(shapes_train, 64, painted=BLENDED, images=False).read(episode)
    assert blended.keys() == {"query", "target", "painted"}
    assert torch.equal(blended["target"], masks["target"])
    want = masks["supports"].int() + 255 * masks["masks"][:, None].int()
    assert torch.equal(blended["painted"].int(), want // 2)


def test_a_mask_becomes_black_and_white_pixels():
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    picture = np.full((3, 2, 2), 7, np.uint8)  # of which nothing shows
    assert WHITE_ON_BLACK(picture, mask).tolist() == [[[0, 255], [255, 0]]] * 3


def test_an_episode_prints_its_names():
    assert Episode(3, Sample("q"), (Sample("a"), Sample("b"))).names() == [3, "q", ["a", "b"]]
