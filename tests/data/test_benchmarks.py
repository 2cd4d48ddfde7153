"""What all benchmarks keep: the reference's episodes and pixels, training, lists, evaluation."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffews import InputError
from diffews.data.episodes import EpisodeList
from diffews.data.registry import BENCHMARKS, load_benchmark, open_benchmark
from diffews.data.training import PixelReader, Renderings, TrainingEpisodes

pytest_plugins = ("benchmark_fixtures",)

GOLDEN = json.loads((Path(__file__).parent / "expected" / "loaders.json").read_text())
NAMES = {
    **{"pascal": "pascal5i", "fss": "fss1000", "lvis": "lvis92i"},
    **{"paco_part": "paco_part", "pascal_part": "pascal_part"},
}
FOLDERS = {
    **{"pascal5i": "VOC2012", "coco2pascal": "VOC2012", "fss1000": "FSS-1000", "lvis92i": "LVIS"},
    **{"paco_part": "PACO-Part", "pascal_part": "Pascal-Part"},
}
PARTS = ("paco_part", "pascal_part")
FOLDS = [(name, fold) for name in FOLDERS for fold in range(max(1, BENCHMARKS[name][2]))]


def sha(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def pixels(dataset, count):
    """Hashes of everything that the first episodes hold."""
    decoded = [dataset[i] for i in range(count)]
    return [
        [sha(getattr(e, k)) for k in ("query_rgb", "query_mask", "support_rgb", "support_masks")]
        for e in decoded
    ]


# ---- the reference's episodes ----


@pytest.mark.parametrize("setting", GOLDEN)
def test_classes_names_and_pixels_are_the_references(bench, setting):
    golden = GOLDEN[setting]
    name, fold, shots = setting.rsplit("_", 2)
    data = load_benchmark(
        NAMES[name], bench, fold=int(fold[4:]), shots=int(shots[0]), image_size=64
    )
    assert len(data) == golden["length"]
    assert data.class_ids == golden["class_ids"]
    assert len(golden["episodes"]) == 12
    for index, want in enumerate(golden["episodes"]):
        episode = data[index]
        found = {
            "class_id": episode.class_id,
            "query": episode.query_name,
            "supports": episode.support_names,
            "query_rgb": sha(episode.query_rgb),
            "query_mask": sha(episode.query_mask),
            "query_fg": int(episode.query_mask.sum()),
            "support_rgb": [sha(rgb) for rgb in episode.support_rgb],
            "support_masks": [sha(mask) for mask in episode.support_masks],
        }
        if episode.query_ignore is not None:
            found["query_ignore"] = int(episode.query_ignore.sum())
        assert found == want, index


def test_all_five_benchmarks_have_golden_settings():
    assert len(GOLDEN) == 18
    assert {NAMES[setting.rsplit("_", 2)[0]] for setting in GOLDEN} == set(FOLDERS) - {
        "coco2pascal"
    }
    assert set(FOLDERS) < set(BENCHMARKS)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_root_may_be_the_benchmarks_own_folder(bench, name):
    outer, inner = (load_benchmark(name, root, shots=2) for root in (bench, bench / FOLDERS[name]))
    inner.check_files()
    assert inner.episodes.sha256 == outer.episodes.sha256


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("lvis92i", ["lvis_train.pkl", "lvis_val.pkl"]),
        ("paco_part", ["paco/paco_part_train.pkl", "paco/paco_part_val.pkl"]),
    ],
)
def test_json_tables_give_what_the_pickles_give(bench, own_bench, to_json, name, files):
    root = own_bench(FOLDERS[name])
    for file in files:
        to_json(root / file)
    for split in ("test", "train"):
        want, found = (open_benchmark(name, data, 1, split) for data in (bench, root.parent))
        assert found.class_names == want.class_names and len(want.class_ids) > 0
        assert [[s.name for s in v] for v in found.images.values()] == [
            [s.name for s in v] for v in want.images.values()
        ]
    want, found = (
        load_benchmark(name, data, 1, shots=2, image_size=48) for data in (bench, root.parent)
    )
    assert found.episodes.sha256 == want.episodes.sha256
    assert pixels(found, 6) == pixels(want, 6)


@pytest.mark.parametrize("name", [*PARTS, "lvis92i"])
def test_the_classes_in_a_sample_are_those_that_list_it(bench, name):
    benchmark = open_benchmark(name, bench, 0, "test")
    for sample in list(dict.fromkeys(s for samples in benchmark.images.values() for s in samples))[
        :8
    ]:
        listed = [c for c in benchmark.class_ids if sample in benchmark.images[c]]
        assert benchmark.classes_in(sample) == listed != []


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_pictures_just_work(own_bench, name, mode):
    root = own_bench(FOLDERS[name])
    data = load_benchmark(name, root.parent, image_size=32, episodes=1)
    before = data[0]
    file = data.benchmark.files(data.episodes[0].query)[0]
    with Image.open(file) as image:
        converted = image.convert(mode)
    converted.save(file)
    after = data[0]
    assert np.array_equal(after.query_mask, before.query_mask)
    assert np.array_equal(after.query_rgb[0], after.query_rgb[1]) == (mode == "L")
    assert np.abs(after.query_rgb.mean((1, 2)) - before.query_rgb.mean((1, 2))).max() < 60


# ---- training ----


def class_names(benchmark):
    return {benchmark.class_names[c] for c in benchmark.class_ids}


@pytest.mark.parametrize(("name", "fold"), FOLDS)
def test_training_never_sees_a_class_of_the_fold(bench, name, fold):
    benchmark = open_benchmark(name, bench, fold, "train")
    assert benchmark.class_ids
    for shots in (1, 5):
        novel = open_benchmark(name, bench, fold, "test", shots=shots)
        assert novel.class_ids and not class_names(benchmark) & class_names(novel), shots


@pytest.mark.parametrize("name", FOLDERS)
def test_training_episodes_are_drawn_and_decoded(bench, name):
    benchmark = open_benchmark(name, bench, 1, "train")
    benchmark.check_files(sample for samples in benchmark.images.values() for sample in samples)
    reader = PixelReader(benchmark, 64, Renderings())
    batch = TrainingEpisodes(benchmark, seed=0).batch(reader, list(range(6)), shots=2)
    images = torch.cat([batch.query[:, None], batch.supports], dim=1)
    painted = torch.cat([batch.target[:, None], batch.painted], dim=1)
    assert images.shape == painted.shape == (6, 3, 3, 64, 64)
    for episode, pictures, masks in zip(batch.episodes, images, painted, strict=True):
        assert episode.class_id in benchmark.class_ids
        assert {episode.query, *episode.supports} <= set(benchmark.images[episode.class_id])
        assert episode.query not in episode.supports
        assert set(masks.unique().tolist()) == {0, 255} and masks.flatten(1).any(1).all()
        assert all(picture.float().std() > 1 for picture in pictures)


@pytest.mark.parametrize("name", FOLDERS)
def test_validation_takes_the_training_classes_on_the_pictures_of_the_test(bench, name):
    seen, validation, test = (
        open_benchmark(name, bench, 0, split) for split in ("train", "val", "test")
    )
    assert not class_names(validation) & class_names(test)

    def files(benchmark):
        return {
            f
            for samples in benchmark.images.values()
            for s in samples
            for f in benchmark.files(s)[:1]
        }

    assert files(validation) and not files(validation) & files(seen)
    assert load_benchmark(name, bench, 0, "val", image_size=32, episodes=2)[1].query_mask.shape == (
        32,
        32,
    )


# ---- lists ----


@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_prints_the_list_and_nothing_else(run, bench, name):
    outcome = run(
        "episodes", f"benchmark={name}", f"data={bench}", "fold=1", "shots=2", "episodes=20"
    )
    assert (outcome.code, outcome.err) == (0, "")
    want = load_benchmark(name, bench, fold=1, shots=2, episodes=20).episodes
    assert json.loads(outcome.out) == [episode.names() for episode in want] and len(want) == 20


def save(run, name, data, file, *words):
    outcome = run("episodes", f"benchmark={name}", f"data={data}", "fold=0", f"save={file}", *words)
    assert outcome.code == 0, outcome
    return file


@pytest.mark.parametrize("name", FOLDERS)
def test_a_saved_list_is_the_list_that_was_drawn(run, bench, tmp_path, name):
    file = save(run, name, bench, tmp_path / "list.json", "shots=2", "episodes=9")
    data = load_benchmark(name, bench, shots=2, image_size=32, episodes=9)
    content = json.loads(file.read_text())
    assert content["episodes"] == [episode.names() for episode in data.episodes]
    assert content["sha256"] == data.episodes.sha256
    again = load_benchmark(name, bench, shots=2, image_size=32, episodes_file=file)
    assert list(again.episodes) == list(data.episodes)  # objects of part benchmarks, too
    assert pixels(again, 9) == pixels(data, 9)


@pytest.mark.parametrize("name", ["pascal5i", *PARTS])
def test_evaluation_takes_exactly_the_saved_list(run, bench, bench_words, tmp_path, name):
    drawn = load_benchmark(name, bench, shots=1)
    chosen = EpisodeList([drawn.episodes[5], drawn.episodes[2], drawn.episodes[5]])
    file = tmp_path / "list.json"
    chosen.save(file)
    words = [
        *bench_words(name, bench)[:-1],
        f"episodes_file={file}",
        f"out={tmp_path / 'out'}",
    ]  # without episodes=2
    assert run(*words).code == 0
    records = [
        json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    ]
    assert [[r["class_id"], r["query"], r["supports"]] for r in records] == [
        e.names() for e in chosen
    ]
    assert records[0]["union"] == records[2]["union"] != records[1]["union"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["episodes_sha256"] == result["list_sha256"] == chosen.sha256


@pytest.mark.parametrize("name", PARTS)
def test_another_object_of_the_same_picture_is_another_list(
    run, refused, bench, bench_words, tmp_path, name
):
    drawn = load_benchmark(name, bench)
    for episode in drawn.episodes:
        objects = [
            s for s in drawn.benchmark.images[episode.class_id] if s.name == episode.query.name
        ]
        if len(objects) > 1:
            break
    other = next(sample for sample in objects if sample != episode.query)
    boxes = [
        drawn.benchmark.decode(sample, episode.class_id).mask for sample in (episode.query, other)
    ]
    assert boxes[0].shape != boxes[1].shape or (boxes[0] != boxes[1]).any()

    first, second = tmp_path / "first.json", tmp_path / "second.json"
    EpisodeList([episode]).save(first)
    EpisodeList([replace(episode, query=other)]).save(second)
    words = [*bench_words(name, bench)[:-1], f"out={tmp_path / 'out'}"]
    assert run(*words, f"episodes_file={first}").code == 0
    assert "sha256: " in refused(*words, f"episodes_file={second}")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_changed_list_is_refused(run, refused_eval, bench, change, tmp_path, name):
    file = save(run, name, bench, tmp_path / "saved.json", "episodes=4")

    def edit(content):
        first = content["episodes"][0]
        first[2] = [
            next(
                names[1] for names in content["episodes"] if names[1] not in (first[1], first[2][0])
            )
        ]

    change(file, edit)
    assert f"{file}: the episodes do not have the hash" in refused_eval(
        name, bench, f"episodes_file={file}"
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_list_whose_objects_were_changed_is_refused(
    run, refused_eval, bench, change, tmp_path, name
):
    file = save(run, name, bench, tmp_path / "saved.json", "episodes=4")

    def edit(content):
        content["objects"][0][0] += 1

    change(file, edit)
    assert f"{file}: " in refused_eval(name, bench, f"episodes_file={file}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("sha256"),
        lambda content: content.pop("episodes"),
        lambda content: content.pop("objects"),
        lambda content: content["objects"].pop(),
        lambda content: content["episodes"][0].pop(),
        lambda content: content["episodes"][0][2].append("2007_000001"),
        lambda content: content.update(episodes=[], objects=[]),
    ],
)
def test_a_damaged_list_is_refused(run, refused_eval, bench, change, tmp_path, damage):
    file = save(run, "pascal5i", bench, tmp_path / "saved.json", "episodes=4")
    change(file, damage)
    assert str(file) in refused_eval("pascal5i", bench, f"episodes_file={file}")


def test_a_truncated_or_missing_list_is_refused(run, refused_eval, bench, tmp_path):
    file = save(run, "pascal5i", bench, tmp_path / "saved.json", "episodes=4")
    file.write_text(file.read_text()[:-9])
    assert f"{file} cannot be read" in refused_eval("pascal5i", bench, f"episodes_file={file}")
    file.unlink()
    assert f"{file} does not exist" in refused_eval("pascal5i", bench, f"episodes_file={file}")


def test_a_list_of_other_classes_or_too_few_shots_is_refused(run, refused_eval, bench, tmp_path):
    file = save(run, "pascal5i", bench, tmp_path / "saved.json", "fold=2", "episodes=4")
    message = refused_eval("pascal5i", bench, f"episodes_file={file}")
    assert f"{file}: class 1" in message and "fold 0" in message
    file = save(run, "pascal5i", bench, tmp_path / "saved.json", "shots=2", "episodes=4")
    assert "shots=3, but the episodes are drawn for 2" in refused_eval(
        "pascal5i", bench, f"episodes_file={file}", "shots=3"
    )


@pytest.mark.parametrize("name", ["lvis92i", *PARTS])
def test_a_list_that_names_what_the_tables_do_not_hold_is_refused(
    refused_eval, bench, tmp_path, name
):
    drawn = load_benchmark(name, bench)
    episode, benchmark = drawn.episodes[0], drawn.benchmark
    if name == "lvis92i":  # a picture without the class
        others = [s for samples in benchmark.images.values() for s in samples]
        wrong = next(s for s in others if s not in benchmark.images[episode.class_id])
    else:  # an object that the picture does not have
        wrong = replace(episode.query, object_id=99_999)
    file = tmp_path / "saved.json"
    EpisodeList([replace(episode, query=wrong)]).save(file)
    message = refused_eval(name, bench, f"episodes_file={file}", "episodes=1")
    assert wrong.name in message


def test_the_hash_of_the_list_is_that_of_its_names(run, bench, tmp_path):
    file = save(run, "paco_part", bench, tmp_path / "saved.json", "episodes=7")
    content = json.loads(file.read_text())
    assert content["sha256"] == hashlib.sha256(json.dumps(content["episodes"]).encode()).hexdigest()


# ---- evaluation ----


@pytest.mark.parametrize("name", ["pascal5i", "pascal_part"])
def test_counts_are_those_of_the_masks_without_ignored_pixels(
    run, bench, bench_words, tmp_path, name
):
    out = tmp_path / "out"
    outcome = run(*bench_words(name, bench, "shots=2", "save_masks=true", f"out={out}"))
    assert outcome.code == 0, outcome
    data = load_benchmark(name, bench, shots=2, image_size=64, episodes=2)
    records = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(records) == 2
    for index, record in enumerate(records):
        episode = data[index]
        predicted = np.asarray(Image.open(out / "masks" / f"{index:05d}.png")) > 0
        counted = (
            np.ones((64, 64), bool) if episode.query_ignore is None else episode.query_ignore == 0
        )
        assert counted.all() == (name == "pascal_part")
        truth = episode.query_mask > 0
        for side, (p, t) in enumerate([(~predicted, ~truth), (predicted, truth)]):
            assert record["inter"][side] == (p & t & counted).sum()
            assert record["union"][side] == ((p | t) & counted).sum()
    result = json.loads((out / "result.json").read_text())
    assert result["class_ids"] == data.class_ids
    ious = [100 * record["inter"][1] / record["union"][1] for record in records]
    assert len({record["class_id"] for record in records}) == 2
    assert result["miou"] == pytest.approx(sum(ious) / len(data.class_ids))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_list_that_names_a_missing_file_is_refused(refused_eval, own_bench, name):
    root = own_bench(FOLDERS[name])
    data = load_benchmark(name, root.parent, episodes=2)
    file = data.benchmark.files(data.episodes[1].query)[0]
    file.unlink()
    assert f"{file} does not exist (1 of " in refused_eval(name, root.parent)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_truncated_picture_is_refused_by_name(refused_eval, own_bench, name):
    root = own_bench(FOLDERS[name])
    data = load_benchmark(name, root.parent, episodes=1)
    file = data.benchmark.files(data.episodes[0].query)[0]
    file.write_bytes(file.read_bytes()[:300])
    message = refused_eval(name, root.parent)
    assert str(file) in message and "replace the file" in message


# ---- lists and tables that cannot be read ----

TABLES = [
    ("lvis92i", "lvis_val.pkl"),
    ("paco_part", "paco/paco_part_val.pkl"),
    ("paco_part", "paco/paco_part_train.pkl"),
    ("pascal_part", "VOCdevkit/VOC2010/all_obj_part_to_image.json"),
]


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_truncated_or_missing_table_is_refused(refused_list, own_bench, name, table):
    file = own_bench(FOLDERS[name]) / table
    data = file.parents[len(Path(table).parts)]
    content = file.read_bytes()
    for kept in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:kept])
        assert str(file) in refused_list(name, data), kept
    file.unlink()
    assert str(file) in refused_list(name, data)


@pytest.mark.parametrize(("name", "table"), TABLES[:3])
def test_a_truncated_json_table_is_refused(refused_list, own_bench, to_json, name, table):
    file = to_json(own_bench(FOLDERS[name]) / table)
    file.write_text(file.read_text()[:-1])
    assert f"{file} cannot be read" in refused_list(name, file.parents[len(Path(table).parts)])


@pytest.mark.parametrize(("name", "table"), TABLES)
@pytest.mark.parametrize("content", [[], "text", None])
def test_a_table_that_is_no_dictionary_is_refused(refused_list, own_bench, name, table, content):
    file = own_bench(FOLDERS[name]) / table
    file.write_bytes(
        json.dumps(content).encode() if file.suffix == ".json" else pickle.dumps(content)
    )
    assert str(file) in refused_list(name, file.parents[len(Path(table).parts)])


@pytest.mark.parametrize(("name", "table"), TABLES[:3])
@pytest.mark.parametrize("where", ["whole", "inside"])
def test_a_table_that_would_run_code_is_refused_and_does_not_run(
    refused_list, runs_code, own_bench, tmp_path, name, table, where
):
    file, marker = own_bench(FOLDERS[name]) / table, tmp_path / "it ran"
    bomb = runs_code(marker)
    content = pickle.dumps(
        bomb if where == "whole" else {**pickle.loads(file.read_bytes()), "bomb": [bomb]}
    )
    pickle.loads(content)
    assert marker.exists()  # the bomb is live ...
    marker.unlink()

    file.write_bytes(content)
    message = refused_list(name, file.parents[len(Path(table).parts)])
    assert f"{file} is refused" in message and "could run code" in message
    assert not marker.exists()  # ... and did not go off here


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_lists_is_refused(refused, refused_eval, tmp_path, name):
    if name in (
        "pascal5i",
        "coco2pascal",
        "fss1000",
    ):  # their lists are built in, the pictures are not
        assert str(tmp_path / "none" / FOLDERS[name]) in refused_eval(name, tmp_path / "none")
        message = refused("episodes", f"benchmark={name}", f"data={tmp_path}", "splits=folder")
        assert "splits=folder" in message and FOLDERS[name] in message
    else:
        assert str(tmp_path / "none" / FOLDERS[name]) in refused(
            "episodes", f"benchmark={name}", f"data={tmp_path / 'none'}"
        )


def test_a_fold_that_does_not_exist_is_refused(bench):
    for name in FOLDERS:
        if folds := BENCHMARKS[name][2]:
            with pytest.raises(
                InputError, match=f"fold={folds}: {name} has the folds 0 to {folds - 1}"
            ):
                load_benchmark(name, bench, fold=folds)
