"""Figures of finished runs: which episodes, what stands where, and only what the run predicted."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from diffews.data.registry import load_benchmark
from diffews.evaluation.figures import pick
from diffews.images.drawing import PREDICTION_COLOUR, SUPPORT_COLOUR, TRUTH_COLOUR, tint

SIZE = 64  # pixels of the golden pictures
TILE, GAP, LINE = 192, 8, 32  # pixels, of a figure of such small ones
STEP = TILE + GAP


def read(file):
    return np.asarray(Image.open(file))


def tile(figure, row, column):
    """The tile of a figure without headings."""
    top, left = GAP + 2 * LINE + row * (LINE + TILE), 2 * GAP + column * STEP
    return figure[top : top + TILE, left : left + TILE]


def enlarged(mask):
    return mask.repeat(TILE // SIZE, 0).repeat(TILE // SIZE, 1)


@pytest.fixture
def copied_run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def draw(run, finished, tmp_path):
    """draw(*words): the figure that the command makes of the golden run, as an array."""

    def call(*words, folder=finished, out=tmp_path / "figure.png"):
        outcome = run("figure", f"run={folder}", f"out={out}", *words)
        assert outcome.code == 0 and outcome.out == f"wrote {out}\n", outcome
        return read(out)

    return call


def change(file, **values):
    content = json.loads(file.read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


# ---- which episodes ----


def records(*iou):
    return [{"inter": [0, round(10 * value)], "union": [10, 1000]} for value in iou]


def every(index):
    return True


@pytest.mark.parametrize(
    ("order", "count", "want"),
    [
        ("list", 3, {"": [0, 1, 2]}),
        ("best", 3, {"": [2, 0, 3]}),
        ("worst", 3, {"": [1, 4, 0]}),
        ("both", 2, {"highest IoU": [2, 0], "lowest IoU": [1, 4]}),
        ("both", 3, {"highest IoU": [2, 0, 3], "lowest IoU": [1, 4]}),  # none stands in both
        ("spread", 1, {"": [3]}),  # the median
        ("spread", 2, {"": [0, 4]}),
        ("spread", 5, {"": [2, 0, 3, 4, 1]}),
        ("list", 9, {"": [0, 1, 2, 3, 4]}),
        ("best", 9, {"": [2, 0, 3, 4, 1]}),
        ("worst", 9, {"": [1, 4, 0, 3, 2]}),
        ("spread", 9, {"": [2, 0, 3, 4, 1]}),
    ],
)
def test_the_order_says_which_episodes(order, count, want):
    assert pick(records(60, 0, 90, 60, 30), count, order, every) == want


def test_the_spread_is_even_over_the_quantiles():
    picked = pick(records(*range(100)), 4, "spread", every)[""]
    assert picked == [87, 62, 37, 12]


@pytest.mark.parametrize(("order", "want"), [("worst", [[2, 0]]), ("both", [[3, 0], [2]])])
def test_an_episode_without_truth_is_no_failure(order, want):
    picked = pick(records(50, 0, 10, 80), 2, order, lambda index: index != 1)
    assert list(picked.values()) == want


# ---- what is drawn ----


def test_a_row_shows_support_query_prediction_and_truth(draw, finished, coco):
    figure = draw("count=3")
    assert figure.shape == (GAP + LINE + 3 * (LINE + TILE) + 2 * GAP, 3 * GAP + 4 * STEP, 3)
    dataset = load_benchmark("coco20i", coco, fold=0, image_size=SIZE)
    for row in range(3):
        episode = dataset[row]
        queries = [rgb.transpose(1, 2, 0) for rgb in (episode.query_rgb, episode.support_rgb[0])]
        query, support = (
            cv2.resize(rgb, (TILE, TILE), interpolation=cv2.INTER_CUBIC) for rgb in queries
        )
        predicted = enlarged(read(finished / "masks" / f"{row:05d}.png"))
        want = [
            tint(support, enlarged(episode.support_masks[0]), SUPPORT_COLOUR),
            query,
            tint(query, predicted, PREDICTION_COLOUR),
            tint(query, enlarged(episode.query_mask), TRUTH_COLOUR),
        ]
        for column, expected in enumerate(want):
            assert np.array_equal(tile(figure, row, column), expected), (row, column)


def test_chosen_episodes_come_in_the_order_given(draw):
    listed, chosen = draw("count=4"), draw("index=3,1", "order=best")
    for row, index in enumerate((3, 1)):
        assert np.array_equal(tile(chosen, row, 2), tile(listed, index, 2))


def test_the_best_and_the_worst_stand_under_headings(draw, finished):
    lines = (finished / "episodes.jsonl").read_text().splitlines()
    iou = [r["inter"][1] / max(r["union"][1], 1) for r in map(json.loads, lines)]
    both = draw("order=both", "count=1")
    assert both.shape[0] == GAP + LINE + 2 * (2 * LINE + TILE) + 2 * GAP
    worst = int(np.argmin(iou))
    chosen = draw(f"index={np.argmax(iou)},{worst}")
    for row, lines_before in enumerate((3, 5)):  # titles, then heading and caption of each
        top = GAP + lines_before * LINE + row * TILE
        assert np.array_equal(both[top : top + TILE, 2 * GAP :][:, :TILE], tile(chosen, row, 0))


def test_supports_stand_side_by_side_and_settings_are_those_of_the_run(
    run, golden_words, draw, tmp_path
):
    out = tmp_path / "two"
    words = ["shots=2", "episodes=6", "batch=4", "kv_sampling=1", "save_masks=true", f"out={out}"]
    assert run(*golden_words, *words).code == 0
    figure = draw("index=5,2", folder=out)  # the last group is padded
    assert figure.shape[1] == 3 * GAP + 5 * STEP
    for row, index in enumerate((5, 2)):
        predicted = enlarged(read(out / "masks" / f"{index:05d}.png"))
        assert np.array_equal(
            tile(figure, row, 3), tint(tile(figure, row, 2), predicted, PREDICTION_COLOUR)
        )


def test_the_figure_is_the_only_thing_that_a_run_gains(run, copied_run):
    before = {file: file.read_bytes() for file in copied_run.rglob("*") if file.is_file()}
    change(copied_run / "result.json", config={"colour": "a key of another version"})
    before[copied_run / "result.json"] = (copied_run / "result.json").read_bytes()
    assert (
        run("figure", f"run={copied_run}", "count=1").out == f"wrote {copied_run / 'figure.png'}\n"
    )
    after = {file: file.read_bytes() for file in copied_run.rglob("*") if file.is_file()}
    assert after.pop(copied_run / "figure.png") and after == before


# ---- what is refused ----


def test_a_run_that_is_not_there_or_not_finished_is_refused(refused, copied_run, tmp_path):
    assert "run=" in refused("figure")
    assert str(tmp_path / "none" / "result.json") in refused("figure", f"run={tmp_path / 'none'}")
    lines = (copied_run / "episodes.jsonl").read_text().splitlines(keepends=True)
    (copied_run / "episodes.jsonl").write_text("".join(lines[:-1]))
    assert str(copied_run) in refused("figure", f"run={copied_run}")
    (copied_run / "episodes.jsonl").unlink()
    assert str(copied_run) in refused("figure", f"run={copied_run}")


@pytest.mark.parametrize("index", ["16", "-1", "0,99"])
def test_an_episode_that_the_run_does_not_have_is_refused(refused, copied_run, index):
    message = refused("figure", f"run={copied_run}", f"index={index}")
    assert f"index={index.split(',')[-1]}:" in message
    assert str(copied_run) in message and "0 to 15" in message


@pytest.mark.parametrize("word", ["index=x", "order=wurst", "count=0", "out=figure.txt"])
def test_wrong_keys_are_refused(refused, copied_run, word):
    message = refused("figure", f"run={copied_run}", word)
    key, value = word.split("=")
    assert f"{key}=" in message and value in message


def test_a_nearly_right_order_is_guessed(refused, copied_run):
    assert "'worst'" in refused("figure", f"run={copied_run}", "order=wurst")


def test_other_weights_are_refused(run, refused, golden_words, own_weight, tmp_path):
    out = tmp_path / "out"
    assert run(*golden_words, f"weight={own_weight}", "episodes=1", f"out={out}").code == 0
    file = next(own_weight.rglob("*.safetensors"))
    tensors = load_file(file)
    tensors["conv_out.bias"] += 1
    save_file(tensors, file)
    message = refused("figure", f"run={out}")
    assert all(part in message for part in (str(out), f"weight={own_weight} ", "(weight_sha256)"))
    assert not (out / "figure.png").exists()


def test_another_list_is_refused(refused, copied_run):
    change(copied_run / "result.json", config={"drawn_shots": 5})
    assert "(list_sha256, episodes_sha256)" in refused("figure", f"run={copied_run}")


def test_counts_that_do_not_come_again_are_refused(refused, copied_run):
    lines = [json.loads(line) for line in (copied_run / "episodes.jsonl").open()]
    first, second = next(
        (a, b)
        for b in lines
        for a in lines[: b["index"]]
        if a["class_id"] == b["class_id"] and a["inter"] != b["inter"]
    )
    for part in ("inter", "union"):  # their class's IoU stays as it is
        first[part], second[part] = second[part], first[part]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied_run / "episodes.jsonl").write_text(text)
    result = json.loads((copied_run / "result.json").read_text())
    del result["mean_episode_iou"]
    (copied_run / "result.json").write_text(json.dumps(result))
    message = refused("figure", f"run={copied_run}", f"index={second['index']}")
    assert str(copied_run) in message and f"episode {second['index']} " in message
    assert not (copied_run / "figure.png").exists()


def test_a_run_without_a_single_truth_has_no_failures(
    run, refused, golden_words, own_coco, tmp_path
):
    out = tmp_path / "out"
    data = load_benchmark("coco20i", own_coco, fold=0, episodes=1)
    file = (own_coco / "COCO2014" / "annotations" / data.episodes[0].query.name).with_suffix(".png")
    Image.fromarray(np.zeros_like(read(file))).save(file)
    assert run(*golden_words, f"data={own_coco}", "episodes=1", f"out={out}").code == 0
    message = refused("figure", f"run={out}", "order=worst")
    assert str(out) in message and "order=" in message
    assert run("figure", f"run={out}", "order=best").code == 0
