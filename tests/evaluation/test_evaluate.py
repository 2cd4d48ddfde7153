"""Evaluation, count for count as the reference's, whatever interrupts it; refusals leave none."""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from eval_runs import lines, mask, result
from PIL import Image
from safetensors.torch import load_file, save_file

import diffews.pipeline
from diffews.cli.settings import EvalConfig
from diffews.data.registry import load_benchmark
from diffews.evaluation.groups import make_groups
from diffews.evaluation.metrics import Scores

CHECKOUT = Path(diffews.__file__).parent.parent


@pytest.fixture
def evaluate(run, golden_words, caplog, tmp_path):
    """evaluate(*words): the golden evaluation with more words, which must succeed -> its folder."""

    def call(*words, out=tmp_path / "out"):
        outcome = run(*golden_words, f"out={out}", *words)
        assert outcome.code == 0, outcome
        assert not caplog.messages
        return out

    return call


@pytest.fixture(scope="module")
def records(finished):
    """The bytes of the finished golden evaluation: records(n) is the first n lines."""
    content = (finished / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    return lambda count: b"".join(content[:count])


# ---- the reference's numbers ----


@pytest.mark.parametrize(
    ("name", "fold"), [("eval_coco_fold0_1shot", 0), ("eval_coco_fold3_5shot", 3)]
)
def test_the_golden_evaluation_count_for_count(name, fold, finished, expected, evaluate):
    golden = expected(name)
    out = finished if fold == 0 else evaluate("fold=3", "shots=5", "episodes=8", "save_masks=true")
    got = lines(out)
    assert len(got) == len(golden.json["episodes"]) == golden.json["n"]
    for index, (record, want) in enumerate(zip(got, golden.json["episodes"], strict=True)):
        assert record["index"] == index
        assert [record[k] for k in ("class_id", "query", "supports")] == [
            want["class_id"],
            want["query"],
            want["supports"],
        ]
        reference_mask = np.unpackbits(golden.npz["masks"][index]).reshape(64, 64) > 0
        assert (mask(out, index) != reference_mask).sum() <= 2, index
        for part in ("inter", "union"):
            assert all(type(count) is int for count in record[part])
            assert np.abs(np.subtract(record[part], want[part])).max() <= 2, (index, part)
    assert result(out)["miou"] == pytest.approx(golden.json["miou"], abs=0.01)
    assert result(out)["fb_iou"] == pytest.approx(golden.json["fb_iou"], abs=0.01)


# ---- what is written ----


def test_the_result_is_computed_from_the_records(finished):
    got, written = lines(finished), result(finished)
    scores = Scores(range(0, 80, 4))
    for record in got:
        assert set(record) == {"index", "class_id", "query", "supports", "inter", "union"}
        scores.add(record["class_id"], record["inter"], record["union"])
    assert written["miou"] == pytest.approx(scores.miou())
    assert written["fb_iou"] == pytest.approx(scores.fb_iou())
    assert list(written["per_class"].values()) == pytest.approx(list(scores.per_class().values()))
    assert (
        list(written["per_class"])[:3] == ["person", "airplane", "boat"]
        and len(written["per_class"]) == 20
    )
    low, high = written["miou_interval"]
    assert 0 <= low < high <= 100

    names = json.dumps(
        [[record["class_id"], record["query"], record["supports"]] for record in got]
    )
    assert written["episodes_sha256"] == hashlib.sha256(names.encode()).hexdigest()
    assert (written["episodes"], written["fold"], written["shots"]) == (16, 0, 1)
    assert (written["batch"], written["threads"], written["dtype"], written["device"]) == (
        1,
        1,
        "fp32",
        "cpu",
    )
    assert written["episodes_per_second"] > 0


def test_the_result_says_what_it_was_made_with(finished, weight, coco):
    written = result(finished)
    assert set(written["config"]) == {item.name for item in dataclasses.fields(EvalConfig)}
    assert written["config"]["weight"] == str(weight) and written["config"]["data"] == str(coco)
    assert written["versions"]["diffews"] == diffews.__version__
    assert {"python", "torch", "diffusers", "numpy", "pillow"} <= set(written["versions"])
    assert len(written["weight_sha256"]) == len(written["base_sha256"]) == 64
    file = weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    assert written["weight_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_masks_are_black_and_white_pngs_that_give_the_counts(finished):
    for record in lines(finished):
        with Image.open(finished / "masks" / f"{record['index']:05d}.png") as image:
            pixels = np.asarray(image)
        assert pixels.shape == (64, 64) and set(np.unique(pixels)) <= {0, 255}
        background_union, foreground_inter = record["union"][0], record["inter"][1]
        assert (
            foreground_inter + background_union == 64 * 64
        )  # what is not common foreground touches background
        assert record["inter"][1] <= (pixels > 0).sum() <= record["union"][1]
    assert len(list((finished / "masks").iterdir())) == 16


def test_pictures_show_support_query_prediction_and_truth(finished):
    files = sorted((finished / "pictures").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png"]
    with Image.open(files[0]) as image:
        panel = np.asarray(image)
    assert panel.shape == (64, 4 * 64 + 3 * 2, 3)
    query, prediction = panel[:, 66:130], panel[:, 132:196]
    predicted = mask(finished, 0)
    darkened = (prediction == (query * 0.4).astype(np.uint8)).all(2)
    assert darkened[~predicted].all() and not darkened[predicted].any()


def test_nothing_else_is_left_in_the_folder(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "episodes.jsonl",
        "result.json",
        "run.json",
        "masks",
        "pictures",
        "pictures.png",
    }


def test_the_last_line_printed_is_the_miou(run, golden_words, tmp_path):
    outcome = run(*golden_words, f"out={tmp_path / 'out'}", "episodes=1")
    last = outcome.out.splitlines()[-1]
    assert last.startswith("coco20i fold 0, 1-shot, 1 episodes: mIoU ")
    assert f"mIoU {result(tmp_path / 'out')['miou']:.2f} " in last


def test_the_default_folder_is_named_after_weights_and_settings(
    run, golden_words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(*golden_words, "episodes=1").code == 0
    assert (tmp_path / "results" / "coco_fold0" / "coco20i_fold0_1shot" / "result.json").is_file()


# ---- the same bytes ----


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(evaluate, records, workers):
    out = evaluate(f"workers={workers}", "episodes=6")
    assert (out / "episodes.jsonl").read_bytes() == records(6)


@pytest.mark.parametrize(
    ("whole_lines", "more_bytes"),
    [
        (0, 0),
        (0, 1),
        (0, 90),
        (1, 0),
        (2, -1),
        (2, 1),
        (5, 60),
        (6, -1),
    ],  # -1: the line without its end
)
def test_a_run_that_stopped_anywhere_goes_on_to_the_same_bytes(
    finished, evaluate, records, tmp_path, whole_lines, more_bytes
):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(finished / "run.json", out)
    (out / "episodes.jsonl").write_bytes(records(6)[: len(records(whole_lines)) + more_bytes])
    evaluate("episodes=6")
    assert (out / "episodes.jsonl").read_bytes() == records(6)
    assert result(out)["episodes"] == 6


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(golden_words, evaluate, records, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "diffews", *golden_words, f"out={out}", "episodes=1000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
    )
    try:
        while (
            not (out / "episodes.jsonl").is_file()
            or (out / "episodes.jsonl").read_bytes().count(b"\n") < 3
        ):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "result.json").exists()
    done = (out / "episodes.jsonl").read_bytes().count(b"\n")
    evaluate(f"episodes={max(12, done + 1)}")
    content = (out / "episodes.jsonl").read_bytes()
    assert b"".join(content.splitlines(keepends=True)[:12]) == records(12)


def test_a_batch_gives_what_single_episodes_give(finished, evaluate):
    out = evaluate("batch=4", "episodes=6", "save_masks=true")  # the second group is padded
    for index, record in enumerate(lines(out)):
        assert record["index"] == index
        assert (mask(out, index) != mask(finished, index)).sum() <= 4


def test_four_episodes_grow_to_ten(evaluate, records):
    out = evaluate("episodes=4")
    assert (out / "episodes.jsonl").read_bytes() == records(4)
    evaluate("episodes=10")
    assert (out / "episodes.jsonl").read_bytes() == records(10)
    assert result(out)["episodes"] == 10


def test_four_episodes_grow_to_ten_in_groups_of_three(evaluate, tmp_path):
    whole = evaluate("batch=3", "episodes=10", out=tmp_path / "whole")
    grown = evaluate("batch=3", "episodes=4", out=tmp_path / "grown")
    evaluate("batch=3", "episodes=10", out=grown)
    assert (grown / "episodes.jsonl").read_bytes() == (whole / "episodes.jsonl").read_bytes()


def test_fewer_episodes_of_a_finished_run_are_a_result_of_their_own(
    run, finished, golden_words, records, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "out")
    outcome = run(*golden_words, "episodes=5", f"out={out}")
    assert outcome.code == 0 and "result_first_5.json" in outcome.out
    assert (out / "episodes.jsonl").read_bytes() == records(16)  # what was computed is kept
    assert (out / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    fewer = json.loads((out / "result_first_5.json").read_text())
    assert fewer["episodes"] == 5 and len(fewer["class_ids"]) == 20
    by_hand = Scores(range(0, 80, 4))
    for record in lines(finished)[:5]:
        by_hand.add(record["class_id"], record["inter"], record["union"])
    assert fewer["miou"] == pytest.approx(by_hand.miou())
    assert fewer["fb_iou"] == pytest.approx(by_hand.fb_iou())


def test_a_decoded_picture_that_is_not_finite_is_named_and_nothing_is_written(
    refused, golden_words, coco, monkeypatch, tmp_path
):
    decode = diffews.pipeline.decode_latents

    def overflow(vae, latents):
        return decode(vae, latents) * float("nan")

    monkeypatch.setattr("diffews.pipeline.decode_latents", overflow)
    message = refused(*golden_words, "episodes=2", f"out={tmp_path / 'out'}", "workers=0")
    first = load_benchmark("coco20i", coco, fold=0, episodes=1).episodes[0]
    assert first.query.name in message and "decoded" in message and "float32" in message
    assert not (tmp_path / "out" / "result.json").exists()
    assert not (tmp_path / "out" / "episodes.jsonl").exists()


@pytest.mark.parametrize(
    ("fold", "trained", "seen"),
    [(0, {}, 0), (1, {}, 20), (None, {}, 20), (0, {"mix": ["coco20i:1"]}, 20), (None, None, None)],
)
def test_weights_that_were_trained_on_the_novel_classes_are_marked(
    run, finished, golden_words, own_weight, tmp_path, fold, trained, seen
):
    record = {"benchmark": "coco20i", "fold": fold, "config": trained, "image_size": 64}
    (own_weight / "diffews.json").write_text(json.dumps(record if seen is not None else {}))
    out = shutil.copytree(finished, tmp_path / "out")
    outcome = run(*golden_words, f"weight={own_weight}", "episodes=16", f"out={out}")
    assert outcome.code == 0
    assert ("20 of the 20 novel classes of fold 0" in outcome.err) == bool(seen)
    found = result(out)["seen_classes"]
    assert found is None if seen is None else len(found) == seen


def test_a_finished_run_is_not_computed_again(finished, evaluate, own_coco, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    want = result(out)
    for folder in ("val2014", "annotations"):
        for file in (own_coco / "COCO2014" / folder).rglob("*.*"):
            file.write_bytes(b"")  # there, but no picture: decoding any would be an error
    evaluate("episodes=16", f"data={own_coco}")
    again = result(out)
    assert again["episodes_per_second"] is None
    assert {k: v for k, v in again.items() if k not in ("episodes_per_second", "config")} == {
        k: v for k, v in want.items() if k not in ("episodes_per_second", "config")
    }


def test_masks_and_pictures_appear_on_a_finished_run(finished, evaluate, records):
    out = evaluate("episodes=4")
    assert not (out / "masks").exists() and not (out / "pictures").exists()
    evaluate("episodes=4", "save_masks=true", "pictures=2")
    assert (out / "episodes.jsonl").read_bytes() == records(4)
    for index in range(4):
        name = f"{index:05d}.png"
        assert (out / "masks" / name).read_bytes() == (finished / "masks" / name).read_bytes()
        if index < 2:
            assert (out / "pictures" / name).read_bytes() == (
                finished / "pictures" / name
            ).read_bytes()
    assert len(list((out / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    ("count", "batch", "groups"),
    [
        (4, 1, [[0], [1], [2], [3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (4, 3, [[0, 1, 2], [3, 3, 3]]),
        (1, 4, [[0, 0, 0, 0]]),
    ],
)
def test_groups_are_fixed_by_the_list_and_the_batch(count, batch, groups):
    assert make_groups(count, batch) == groups


# ---- folders of another run ----


def test_a_run_that_is_older_than_a_key_goes_on_where_the_key_changes_nothing(
    evaluate, golden_words, refused
):
    out = evaluate("episodes=2")
    file = out / "run.json"
    earlier = {k: v for k, v in json.loads(file.read_text()).items() if k != "prompt"}
    file.write_text(json.dumps(earlier))
    evaluate("episodes=3")
    assert len(lines(out)) == 3
    message = refused(*golden_words, f"out={out}", "episodes=4", "prompt=box")
    assert "another run" in message and "prompt: None there, box now" in message


@pytest.mark.parametrize(
    "word",
    [
        "threshold=0.3",
        "threshold_rule=paper",
        "shots=2",
        "fold=1",
        "batch=2",
        "dtype=bf16",
        "threads=2",
    ],
)
def test_a_folder_of_another_run_is_refused_naming_the_key(
    finished, refused, golden_words, tmp_path, word
):
    out = shutil.copytree(finished, tmp_path / "out")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    message = refused(*golden_words, f"out={out}", "episodes=16", word)
    assert "another run" in message and f"{word.split('=')[0]}: " in message
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_folder_of_other_weights_is_refused(
    finished, refused, golden_words, own_weight, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "out")
    file = own_weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] += 1
    save_file(tensors, file)
    assert "weight_sha256: " in refused(
        *golden_words, f"out={out}", "episodes=16", f"weight={own_weight}"
    )


def test_a_folder_of_other_lists_is_refused(finished, refused, golden_words, own_coco, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    file = own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl"
    file.write_bytes(
        pickle.dumps({c: names[::-1] for c, names in pickle.loads(file.read_bytes()).items()})
    )
    assert "list_sha256: " in refused(
        *golden_words, f"out={out}", "episodes=16", f"data={own_coco}"
    )


def test_a_folder_that_is_no_run_is_refused(refused, golden_words, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    assert "not empty" in refused(*golden_words, f"out={tmp_path}", "episodes=1")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(refused, golden_words, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "out is a file; give a folder" in refused(
        *golden_words, f"out={tmp_path / 'out'}", "episodes=1"
    )


def test_a_damaged_run_file_is_refused(finished, refused, golden_words, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "run.json").write_text('{"weight')
    assert "run.json" in refused(*golden_words, f"out={out}", "episodes=16")


def test_records_of_another_list_are_refused(finished, refused, golden_words, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    content = (out / "episodes.jsonl").read_text()
    second = content.splitlines(keepends=True)[1]
    renamed, uncounted = (
        content.replace("00123.jpg", "00124.jpg", 1),
        content.replace('"union"', '"onion"', 1),
    )
    for damaged in ("hello\n", second, renamed, uncounted):
        (out / "episodes.jsonl").write_text(damaged)
        assert "line 1 is no record of this list" in refused(
            *golden_words, f"out={out}", "episodes=16"
        )


# ---- bad input ----


@pytest.fixture
def refused_eval(refused, golden_words, tmp_path):
    """refused_eval(*words): the refusal of a bad evaluation, which must not leave a folder."""

    def call(*words):
        out = tmp_path / "bad"
        message = refused(*golden_words, f"out={out}", "episodes=4", *words)
        assert not out.exists()
        return message

    return call


def test_missing_folders_are_named(refused_eval, tmp_path):
    none = tmp_path / "none"
    assert f"weight={none}: no such folder" in refused_eval(f"weight={none}")
    assert f"base={none}: no such folder" in refused_eval(f"base={none}")
    assert f"{none}/COCO2014/val2014 does not exist" in refused_eval(f"data={none}")


@pytest.mark.parametrize("which", ["val2014", "annotations/val2014"])
def test_a_missing_picture_or_mask_is_named_before_anything_loads(refused_eval, own_coco, which):
    suffix = ".png" if "annotations" in which else ".jpg"
    file = own_coco / "COCO2014" / which / f"COCO_val2014_000000000116{suffix}"
    file.unlink()
    assert f"{file} does not exist (1 of 16 files are missing)" in refused_eval(f"data={own_coco}")


SECOND_QUERY = "COCO_val2014_000000000116"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_an_empty_or_truncated_picture_is_named_and_the_run_goes_on_when_it_is_mended(
    refused, golden_words, evaluate, records, own_coco, tmp_path, workers, kept
):
    file = own_coco / "COCO2014" / "val2014" / f"{SECOND_QUERY}.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    words = [f"data={own_coco}", "episodes=4", f"workers={workers}"]
    message = refused(*golden_words, f"out={tmp_path / 'out'}", *words)
    assert str(file) in message and "replace the file" in message
    assert not (tmp_path / "out" / "result.json").exists()
    file.write_bytes(content)
    assert (evaluate(*words) / "episodes.jsonl").read_bytes() == records(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mask_of_another_size_is_named(refused, golden_words, own_coco, tmp_path, workers):
    file = own_coco / "COCO2014" / "annotations" / "val2014" / f"{SECOND_QUERY}.png"
    Image.open(file).resize((9, 5), Image.Resampling.NEAREST).save(file)
    words = [f"data={own_coco}", "episodes=4", f"workers={workers}", f"out={tmp_path / 'out'}"]
    assert f"{file}: the mask is 9 x 5, its picture" in refused(*golden_words, *words)


def test_a_mask_value_above_80_is_named(refused, golden_words, own_coco, tmp_path):
    file = own_coco / "COCO2014" / "annotations" / "val2014" / f"{SECOND_QUERY}.png"
    Image.fromarray(np.full_like(Image.open(file), 255)).save(file)
    message = refused(*golden_words, f"data={own_coco}", "episodes=4", f"out={tmp_path / 'out'}")
    assert f"{file} holds the value 255" in message


def test_grey_and_cmyk_pictures_just_work(evaluate, own_coco):
    for mode, file in zip(
        ["L", "CMYK"], sorted((own_coco / "COCO2014" / "val2014").iterdir()), strict=False
    ):
        with Image.open(file) as image:
            converted = image.convert(mode)
        converted.save(file)
    assert len(lines(evaluate(f"data={own_coco}", "episodes=2"))) == 2


def test_corrupt_weights_are_refused_and_the_run_starts_when_they_are_mended(
    refused_eval, evaluate, records, own_weight, tmp_path
):
    file = own_weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    assert str(file.parent) in refused_eval(f"weight={own_weight}")
    file.write_bytes(content)
    out = evaluate(f"weight={own_weight}", "episodes=1", out=tmp_path / "bad")
    assert (out / "episodes.jsonl").read_bytes() == records(1)


@pytest.mark.parametrize(
    "keys",
    [{"_class_name": "UNet2DModel"}, {"block_out_channels": [32] * 4}, {"layers_per_block": 2}],
)
def test_a_config_of_another_architecture_is_refused(refused_eval, own_weight, keys):
    file = own_weight / "unet" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    assert str(file.parent) in refused_eval(f"weight={own_weight}")


def test_a_plain_stable_diffusion_unet_is_refused_in_one_line(refused_eval, own_weight):
    file = own_weight / "unet" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("conv_in_ref")}, file)
    assert "diffews init-base" in refused_eval(f"weight={own_weight}")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("shot=5", "unknown key 'shot'; did you mean 'shots'?"),
        ("shots=five", "shots='five' is not an integer"),
        ("shots=0", "shots=0 must be at least 1"),
        ("fold=4", "fold=4: coco20i has the folds 0 to 3"),
        ("image_size=60", "image_size=60 is not a multiple of 8"),
        ("episodes=1001", "episodes=1001: coco20i has 1000"),
        ("device=cuda:99", "device=cuda:99 cannot be used"),
        ("device=abacus", "device=abacus cannot be used"),
    ],
)
def test_a_wrong_setting_is_refused(refused_eval, word, says):
    assert says in refused_eval(word)


def test_a_class_with_a_single_image_is_refused(refused_eval, own_coco):
    file = own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl"
    content = pickle.loads(file.read_bytes())
    content[16] = content[16][:1]
    file.write_bytes(pickle.dumps(content))
    assert "class 16 (dog) has 1 image" in refused_eval(f"data={own_coco}")


def test_a_list_that_would_run_code_is_refused_and_does_not_run(
    refused_eval, runs_code, own_coco, tmp_path
):
    marker = tmp_path / "it ran"
    (own_coco / "COCO2014" / "splits" / "val" / "fold0.pkl").write_bytes(
        pickle.dumps(runs_code(marker))
    )
    assert "fold0.pkl is refused" in refused_eval(f"data={own_coco}")
    assert not marker.exists()


def test_weights_without_a_fold_in_their_name_ask_for_one(refused_eval, own_weight, tmp_path):
    unnamed = own_weight.rename(own_weight.with_name("incontext"))
    message = refused_eval(f"weight={unnamed}")
    assert "_fold<N>" in message and "fold=N" in message


# ---- a full disk ----


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    refused, golden_words, evaluate, records, largest_file, tmp_path
):
    out = tmp_path / "out"
    with largest_file(len(records(5)) + 30):  # the sixth record does not fit
        message = refused(*golden_words, f"out={out}", "episodes=10")
    assert "File too large; free some space" in message
    assert (out / "episodes.jsonl").read_bytes().startswith(records(5))
    assert {path.name for path in out.iterdir()} == {"episodes.jsonl", "run.json"}
    evaluate("episodes=10")
    assert (out / "episodes.jsonl").read_bytes() == records(10)


def test_a_disk_that_is_full_from_the_start_leaves_no_half_file(
    refused, golden_words, largest_file, tmp_path
):
    out = tmp_path / "out"
    with largest_file(100):
        assert "free some space" in refused(*golden_words, f"out={out}", "episodes=1")
    assert not out.exists() or not any(out.iterdir())


def test_a_disk_that_fills_up_leaves_no_half_picture(
    refused, golden_words, evaluate, records, largest_file, tmp_path
):
    out = tmp_path / "out"
    with largest_file(2000):  # run.json fits, a panel of 64 x 262 pixels does not
        assert "free some space" in refused(*golden_words, f"out={out}", "episodes=2", "pictures=2")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["run.json"]
    evaluate("episodes=2", "pictures=2")
    assert (out / "episodes.jsonl").read_bytes() == records(2)
    assert len(list((out / "pictures").iterdir())) == 2


def test_episodes_whose_masks_vanish_at_the_models_size_are_counted(
    run, weight, base, picture, tmp_path
):
    """Of four pictures two hold an object of one pixel, which 16 x 16 does not keep."""
    (tmp_path / "own" / "dot").mkdir(parents=True)
    for number in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[1:2, 1:2] = 255
        mask[32:, 32:] = 255 * (number > 1)
        picture(number).save(tmp_path / "own" / "dot" / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "own" / "dot" / f"{number}.png")
    words = [f"data={tmp_path / 'own'}", "image_size=16", "episodes=6", "workers=0", "fold=0"]
    outcome = run("eval", "benchmark=folder", f"weight={weight}", f"base={base}", *words,
                  f"out={tmp_path / 'out'}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").open()]
    small = {f"dot/{number}.jpg" for number in (0, 1)}
    empty = {}
    for record in records:
        found = (("query", {record["query"]}), ("support", set(record["supports"])))
        if where := [name for name, names in found if small & names]:
            empty[str(record["index"])] = where
    assert set(records[0]) == {"index", "class_id", "query", "supports", "inter", "union"}
    assert json.loads((tmp_path / "out" / "empty_masks.json").read_text()) == empty
    assert 0 < len(empty) == result["empty_episodes"]
    assert f"{len(empty)} of 6 episodes" in outcome.out

    # a run that goes on counts them, too
    again = [word.replace("episodes=6", "episodes=3") for word in words]
    for listed in (again, words):
        outcome = run("eval", "benchmark=folder", f"weight={weight}", f"base={base}", *listed,
                      f"out={tmp_path / 'parts'}")  # fmt: skip
        assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["empty_episodes"] == len(
        empty
    )
