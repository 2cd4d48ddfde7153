"""Cross-domain sets, ADE20K and mixes: lists, draws, masks, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from training_runs import SIDE, log_lines, reset_accelerate

from diffews.data.mix import STRIDE, Mix, parse_mix
from diffews.data.registry import load_benchmark, open_benchmark
from diffews.data.training import TrainingEpisodes

pytest_plugins = ("training_fixtures",)

CROSS = {"deepglobe": 6, "isic": 3, "chest_xray": 1}  # number of classes
GREY = np.repeat(
    np.array([0, 1, 100, 127, 128, 129, 200, 255], np.uint8)[None], 8, 0
)  # (8, 8), a value a column
FOREGROUND = np.repeat(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8)[None], 8, 0)


def save_grey(file, values=GREY):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


@pytest.fixture(scope="session")
def cross(tmp_path_factory, picture):
    """Tiny folders in the three layouts, four pictures a class; never written to."""
    root = tmp_path_factory.mktemp("cross")
    for number in (2, 10, 1, 33):
        photo = picture(number, 8, 8)
        for k in range(6):
            folder = root / "Deepglobe" / str(k + 1) / "test"
            save_grey(folder / "groundtruth" / f"{k}_{number}.png")
            (folder / "origin").mkdir(exist_ok=True)
            photo.save(folder / "origin" / f"{k}_{number}.jpg")
        for k in range(3):
            folder = root / "ISIC" / "ISIC2018_Task1-2_Training_Input" / str(k + 1)
            folder.mkdir(parents=True, exist_ok=True)
            photo.save(folder / f"ISIC_{k}{number:03d}.jpg")
            truth = root / "ISIC" / "ISIC2018_Task1_Training_GroundTruth"
            save_grey(truth / f"ISIC_{k}{number:03d}_segmentation.png")
        save_grey(root / "LungSegmentation" / "masks" / f"CHNCXR_{number}_mask.png")
        (root / "LungSegmentation" / "CXR_png").mkdir(exist_ok=True)
        photo.convert("L").save(root / "LungSegmentation" / "CXR_png" / f"CHNCXR_{number}.png")
    return root


# ---- cross-domain ----


@pytest.mark.parametrize("name, classes", CROSS.items())
def test_600_episodes_take_the_classes_in_turn(cross, name, classes):
    for shots in (1, 3):
        episodes = load_benchmark(name, cross, shots=shots).episodes
        assert [episode.class_id for episode in episodes] == [i % classes for i in range(600)]
        assert all(
            episode.query not in episode.supports and len(episode.supports) == shots
            for episode in episodes
        )


@pytest.mark.parametrize("name", CROSS)
def test_draws_are_numpys_legacy_choices_with_seed_0(cross, name):
    images = open_benchmark(name, cross, 0, "test").images
    draws = np.random.RandomState(0)
    for index, episode in enumerate(load_benchmark(name, cross, shots=2).episodes):
        names = [sample.name for sample in images[index % len(images)]]
        query = draws.choice(names, 1, replace=False)[0]
        supports: list[str] = []
        while len(supports) < 2:
            support = draws.choice(names, 1, replace=False)[0]
            supports += [support] if support != query else []
        assert episode.names()[1:] == [query, supports]


def test_lists_are_sorted_as_texts(cross):
    listed = {
        name: [s.name for s in open_benchmark(name, cross, 0, "test").images[0]] for name in CROSS
    }
    assert listed["deepglobe"] == [f"1/test/origin/0_{n}.jpg" for n in (1, 10, 2, 33)]
    assert listed["chest_xray"] == [
        f"masks/CHNCXR_{n}_mask.png" for n in (10, 1, 2, 33)
    ]  # "0" < "_"
    folder = "ISIC2018_Task1-2_Training_Input/1"
    assert listed["isic"] == [f"{folder}/ISIC_0{n:03d}.jpg" for n in (1, 2, 10, 33)]


@pytest.mark.parametrize("name", CROSS)
def test_grey_from_128_on_is_foreground(cross, name, run):
    data = load_benchmark(name, cross, image_size=8, episodes=4)
    for i in range(4):
        np.testing.assert_array_equal(data[i].query_mask, FOREGROUND)
        np.testing.assert_array_equal(data[i].support_masks[0], FOREGROUND)
        assert data[i].query_rgb.shape == (3, 8, 8)
    assert run("check", f"benchmark={name}", f"data={cross}", "workers=1").code == 0


def test_a_mask_of_another_mode_is_read_as_grey(cross, tmp_path, picture):
    palette = Image.fromarray((GREY >= 128).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    for number, mask in enumerate([palette, Image.fromarray(GREY >= 128)]):
        (tmp_path / "LungSegmentation" / "masks").mkdir(parents=True, exist_ok=True)
        (tmp_path / "LungSegmentation" / "CXR_png").mkdir(exist_ok=True)
        mask.save(tmp_path / "LungSegmentation" / "masks" / f"{number}_mask.png")
        picture(number, 8, 8).save(tmp_path / "LungSegmentation" / "CXR_png" / f"{number}.png")
    benchmark = open_benchmark("chest_xray", tmp_path, 0, "test")
    for sample in benchmark.images[0]:
        np.testing.assert_array_equal(benchmark.decode(sample, 0).mask, FOREGROUND)


@pytest.mark.parametrize("name", CROSS)
def test_cross_domain_sets_are_not_trained_on(cross, name, refused, tiny_base, tmp_path):
    words = [f"data={cross}", f"base={tiny_base}", f"out={tmp_path / 'out'}", f"image_size={SIDE}"]
    assert "is for testing only" in refused("train", f"benchmark={name}", *words)
    assert "is for testing only" in refused("train", f"mix={name}", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CROSS)
def test_a_folder_that_is_not_there_is_named(name, refused, tmp_path):
    message = refused("episodes", f"benchmark={name}", f"data={tmp_path}")
    assert str(tmp_path) in message and "see datasets/README.md" in message


def test_a_class_with_one_picture_is_refused(refused, tmp_path):
    save_grey(tmp_path / "LungSegmentation" / "masks" / "one_mask.png")
    assert "class 0 (lung) has 1 image" in refused(
        "episodes", "benchmark=chest_xray", f"data={tmp_path}"
    )


# ---- ADE20K ----


@pytest.fixture
def ade(tmp_path, picture):
    """Six training, three validation images; class k is the left half of image k and the next."""
    root = tmp_path / "ADEChallengeData2016"
    for part, count in (("training", 6), ("validation", 3)):
        for number in range(count):
            class_map = np.zeros((20, 20), np.uint8)
            class_map[:, :10] = number + 1
            class_map[:10, 10:] = (number - 1) % count + 1
            class_map[0, 19] = 150  # a pixel, which is too little to be listed
            name = f"ADE_{part}_{number:04d}"
            save_grey(root / "annotations" / part / f"{name}.png", class_map)
            (root / "images" / part).mkdir(parents=True, exist_ok=True)
            picture(number, 20, 20).save(root / "images" / part / f"{name}.jpg")
    return root


def test_ade20k_lists_what_covers_enough_of_a_picture(ade):
    benchmark = open_benchmark("ade20k", ade.parent, None, "train")
    assert benchmark.class_ids == list(range(6))
    for class_id in range(6):
        numbers = sorted({class_id, (class_id + 1) % 6})
        assert [s.name for s in benchmark.images[class_id]] == [
            f"ADE_training_{n:04d}.jpg" for n in numbers
        ]
        for sample in benchmark.images[class_id]:
            with Image.open(ade / "annotations" / "training" / f"{sample.name[:-4]}.png") as file:
                np.testing.assert_array_equal(
                    benchmark.decode(sample, class_id).mask, np.asarray(file) == class_id + 1
                )
    assert benchmark.classes_in(benchmark.images[2][0]) == [1, 2, 149]
    assert open_benchmark("ade20k", ade.parent, 0, "test").class_ids == list(range(3))


def test_ade20k_reads_its_masks_once(ade):
    first = open_benchmark("ade20k", ade.parent, None, "train").images
    stamp = (ade / "lists_training.json").stat().st_mtime_ns
    for mask in (ade / "annotations" / "training").iterdir():
        mask.write_bytes(b"not read again")
    assert open_benchmark("ade20k", ade.parent, None, "train").images == first
    assert (ade / "lists_training.json").stat().st_mtime_ns == stamp


def test_a_value_above_150_is_refused_and_no_list_is_kept(ade):
    file = ade / "annotations" / "validation" / "ADE_validation_0001.png"
    save_grey(file, np.full((20, 20), 151, np.uint8))
    with pytest.raises(
        ValueError, match=f"{file} holds the value 151; ADE20K's masks hold 0 to 150"
    ):
        open_benchmark("ade20k", ade.parent, 0, "test")
    assert not (ade / "lists_validation.json").exists()


def test_a_mask_that_is_missing_is_named_and_no_list_is_kept(ade):
    file = ade / "annotations" / "validation" / "ADE_validation_0001.png"
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        open_benchmark("ade20k", ade.parent, 0, "test")
    assert not (ade / "lists_validation.json").exists()


@pytest.mark.parametrize("content", [b"[1]", b'{"0": 5}', b"{", b"\xff"])
def test_a_damaged_list_is_refused_by_its_name(ade, refused, content):
    (ade / "lists_validation.json").write_bytes(content)
    message = refused("episodes", "benchmark=ade20k", f"data={ade.parent}")
    assert str(ade / "lists_validation.json") in message


def test_ade20k_of_no_place_is_refused(refused, tmp_path):
    assert "see datasets/README.md" in refused("episodes", "benchmark=ade20k", f"data={tmp_path}")


# ---- mixes ----


@pytest.fixture
def mixed(few_shapes, ade):
    """COCO-20i with 80 classes at weight 3, ADE20K with 6 at weight 1."""
    roots = {"coco20i": few_shapes, "ade20k": ade.parent}
    return Mix(
        [
            (n, w, open_benchmark(n, roots[n], None, "train"))
            for n, w in parse_mix(["coco20i:3", "ade20k"])
        ]
    )


def test_a_mix_holds_no_class_out(mixed, few_shapes):
    own = open_benchmark("coco20i", few_shapes, None, "train")
    assert mixed.class_ids == [*range(80), *(STRIDE + c for c in range(6))]
    assert (
        mixed.class_names[5] == f"coco20i: {own.class_names[5]}"
        and mixed.class_names[STRIDE + 5] == "ade20k: 6"
    )
    assert mixed.images.keys() == set(mixed.class_ids)


def test_weights_are_the_shares_of_the_episodes_whatever_the_number_of_classes(mixed):
    drawn = TrainingEpisodes(mixed, seed=1)
    count = 4000
    classes = [drawn.draw(index, 1).class_id for index in range(count)]
    share = np.mean([class_id >= STRIDE for class_id in classes])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)  # four standard deviations
    counts = np.bincount([c - STRIDE for c in classes if c >= STRIDE], minlength=6)
    assert (
        np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())
    ).all()  # classes of one set are even
    assert len(set(classes)) == 86


def test_an_episode_stays_within_its_set(mixed):
    drawn = TrainingEpisodes(mixed, seed=2)
    for index in range(200):
        episode = drawn.draw(index, 2)
        sets = {sample.name.partition(":")[0] for sample in (episode.query, *episode.supports)}
        assert sets == {str(episode.class_id // STRIDE)}
        assert all(
            sample in mixed.images[episode.class_id]
            for sample in (episode.query, *episode.supports)
        )


def test_a_mix_decodes_as_its_sets_do(mixed):
    for k, part in enumerate(mixed.parts):
        class_id = part.class_ids[3]
        for sample, own in zip(
            mixed.images[k * STRIDE + class_id], part.images[class_id], strict=True
        ):
            ours, theirs = mixed.decode(sample, k * STRIDE + class_id), part.decode(own, class_id)
            np.testing.assert_array_equal(ours.mask, theirs.mask)
            assert ours.image.tobytes() == theirs.image.tobytes() and ours.mask.any()
            assert mixed.files(sample) == part.files(own)
            assert mixed.classes_in(sample) == [k * STRIDE + c for c in part.classes_in(own)]


def test_pairs_ask_for_two_classes_of_one_picture(mixed):
    drawn = TrainingEpisodes(mixed, seed=3, pairs=True)
    pairs = [(drawn.draw(2 * i, 1), drawn.draw(2 * i + 1, 1)) for i in range(60)]
    assert all(one.query == other.query for one, other in pairs)
    assert any(one.class_id != other.class_id for one, other in pairs)


def test_training_on_a_mix_takes_steps_on_all_its_sets(run, tiny_base, few_shapes, ade, tmp_path):
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "COCO2014").symlink_to(few_shapes / "COCO2014")
    (data / "ADEChallengeData2016").symlink_to(ade)
    out = tmp_path / "out"
    words = [
        f"data={data}",
        f"base={tiny_base}",
        f"out={out}",
        f"image_size={SIDE}",
        "steps=2",
        "batch=2",
    ]
    words += ["accumulate=1", "device=cpu", "dtype=fp32", "workers=0", "checkpointing=false"]
    reset_accelerate()
    outcome = run("train", "mix=coco20i:1,ade20k:2", *words)
    assert outcome.code == 0, outcome
    assert [line.step for line in log_lines(out)] == [1, 2]
    assert (out / "unet" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_weights_are_read_from_the_words():
    assert parse_mix(["coco20i:2", "ade20k", "pascal5i:.5"]) == [
        ("coco20i", 2.0),
        ("ade20k", 1.0),
        ("pascal5i", 0.5),
    ]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "two", "1:2"])
def test_a_weight_that_is_no_positive_number_is_refused(refused, tiny_base, tmp_path, weight):
    words = [f"base={tiny_base}", f"out={tmp_path / 'out'}", f"image_size={SIDE}"]
    message = refused("train", f"mix=ade20k:{weight}", *words)
    assert f"mix=ade20k:{weight}: the weight is not a positive number" in message
    assert not (tmp_path / "out").exists()


def test_a_set_that_is_not_known_or_not_there_is_refused(refused, tiny_base, tmp_path):
    words = [
        f"base={tiny_base}",
        f"out={tmp_path / 'out'}",
        f"image_size={SIDE}",
        f"data={tmp_path}",
    ]
    assert "did you mean 'ade20k'?" in refused("train", "mix=ade20:1", *words)
    assert "ADEChallengeData2016" in refused("train", "mix=coco20i:1,ade20k:1", *words)
    assert not (tmp_path / "out").exists()


def test_a_set_of_which_nothing_can_be_drawn_is_refused(ade):
    for mask in sorted((ade / "annotations" / "training").iterdir())[1:]:
        save_grey(mask, np.zeros((20, 20), np.uint8))
    (ade / "lists_training.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="mix=ade20k: no class has two pictures"):
        Mix([("ade20k", 1.0, open_benchmark("ade20k", ade.parent, None, "train"))])


def test_a_mix_has_no_episodes_of_its_own(mixed):
    with pytest.raises(ValueError, match="mix= is for training"):
        mixed.draw(1)


def test_names_of_two_sets_never_meet(ade):
    part = open_benchmark("ade20k", ade.parent, None, "train")
    twice = Mix(
        [
            ("ade20k", 1.0, part),
            ("ade20k", 1.0, open_benchmark("ade20k", ade.parent, None, "train")),
        ]
    )
    names = [{s.name for s in twice.images[k * STRIDE]} for k in range(2)]
    assert not names[0] & names[1] and len(names[0]) == len(names[1]) == 2
