"""Checkpoints: a run that stops anywhere ends in the same bits, and nothing is ever half there."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import (
    checkpoints,
    differing,
    log_lines,
    reset_accelerate,
    weights,
    write_tiny_base,
)

import diffews
from diffews.models.find import find_weights, hash_weights
from diffews.training.checkpoints import list_checkpoints

pytest_plugins = ("training_fixtures",)

CHECKOUT = Path(diffews.__file__).parent.parent


def averages_and_moments(out, step):
    """Everything of a checkpoint but its weights, as one dict of tensors and values."""
    state = torch.load(out / f"checkpoint-{step}" / "training.pt", weights_only=True)
    flat = {}

    def walk(prefix, value):
        items = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else None
        )
        if items is None:
            flat[prefix] = value
        for name, inner in items or ():
            walk(f"{prefix}.{name}", inner)

    walk("", state)
    return flat


def assert_same_run(one, other, step):
    assert differing(weights(one), weights(other)) == []
    mine, theirs = averages_and_moments(one, step), averages_and_moments(other, step)
    assert mine.keys() == theirs.keys() and len(mine) > 100
    for name, value in mine.items():
        same = (
            torch.equal(value, theirs[name])
            if isinstance(value, torch.Tensor)
            else value == theirs[name]
        )
        assert same, name
    assert log_lines(one) == log_lines(other)


# ---- stop and resume ----


@pytest.mark.parametrize(
    "words",
    [
        ["sample_posterior=false", "pairs=true", "schedule=one_cycle", "warmup=0.5"],
        ["ema=0.9", "checkpointing=true", "batch=1"],
        ["lora=2", "ema=0.9"],
        ["lora=2", "accumulate=2", "batch=1", "workers=1"],
        ["dtype=bf16", "batch=1"],
    ],
    ids=" ".join,
)
def test_a_run_that_stops_and_goes_on_ends_in_the_same_bits(train, tmp_path, words):
    if "lora=2" in words:
        pytest.importorskip("peft")
    whole = train(*words, out=tmp_path / "whole")
    parts = train(*words, "checkpoint_every=2", "stop_at=1", out=tmp_path / "parts")
    assert checkpoints(parts) == ["checkpoint-1"] and not (parts / "unet").exists()
    assert [line.step for line in log_lines(parts)] == [1]
    train(*words, "checkpoint_every=2", "stop_at=3", "resume=latest", out=parts)
    assert checkpoints(parts) == ["checkpoint-2", "checkpoint-3"]
    train(*words, "resume=latest", out=parts)
    assert_same_run(whole, parts, step=4)


def test_a_weighted_base_goes_on_in_the_same_bits_too(train, weighted_base, tmp_path):
    whole = train(f"base={weighted_base}", out=tmp_path / "whole")
    parts = train(f"base={weighted_base}", "stop_at=2", out=tmp_path / "parts")
    train(f"base={weighted_base}", "resume=latest", out=parts)
    assert_same_run(whole, parts, step=4)


def test_what_a_run_did_after_its_last_checkpoint_is_done_again(train, trained, tmp_path):
    out = train("checkpoint_every=1", "stop_at=3", "keep=9", out=tmp_path / "out")
    shutil.rmtree(out / "checkpoint-3")
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    train("resume=latest", out=out)
    assert differing(weights(out), weights(trained)) == []
    assert log_lines(out) == log_lines(trained)


def test_a_run_with_nothing_to_go_on_from_starts(train, trained):
    assert differing(weights(train("resume=latest")), weights(trained)) == []


def test_a_finished_run_stays_as_it_is(train, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "out")
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.safetensors"))}
    train("resume=latest", out=out)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.safetensors"))} == before
    assert log_lines(out) == log_lines(trained)


# ---- killed ----


LONG = ["steps=30", "batch=1", "checkpoint_every=2", "seed=9"]


def start(words):
    return subprocess.Popen(
        [sys.executable, "-m", "diffews", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
    )


def kill_at_some_moment(process, out, after_lines, seconds):
    """SIGKILL a while after the log has so many lines, or after the run's end."""
    while process.poll() is None:
        log = out / "log.jsonl"
        if log.is_file() and log.read_bytes().count(b"\n") >= after_lines:
            time.sleep(seconds)
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def test_a_killed_run_goes_on_to_the_same_bits(train, train_words, tmp_path):
    whole = train(*LONG, out=tmp_path / "whole")
    out, moments = tmp_path / "killed", random.Random()
    process = start([*train_words, *LONG, f"out={out}"])
    ended = kill_at_some_moment(process, out, moments.randrange(3, 12), moments.random() / 10)
    assert ended == -signal.SIGKILL and not (out / "unet").exists()
    train(*LONG, "resume=latest", out=out)
    assert_same_run(whole, out, step=30)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(train, train_words, tmp_path):
    whole = train(*LONG, out=tmp_path / "whole")
    out, moments = tmp_path / "killed", random.Random()
    for _ in range(20):
        done = (
            len((out / "log.jsonl").read_bytes().splitlines())
            if (out / "log.jsonl").is_file()
            else 0
        )
        process = start([*train_words, *LONG, "resume=latest", f"out={out}"])
        kill_at_some_moment(
            process, out, min(done + moments.randrange(3), 29), moments.random() / 5
        )
        for folder in list_checkpoints(out):
            torch.load(folder / "training.pt", weights_only=True)
            assert len(weights(folder)) > 100
    train(*LONG, "resume=latest", out=out)
    assert_same_run(whole, out, step=30)


# ---- complete or not there ----


@pytest.fixture
def stopped(train, tmp_path):
    """A run with checkpoints of the steps 1 and 2."""
    return train("checkpoint_every=1", "stop_at=2", out=tmp_path / "stopped")


@pytest.mark.parametrize(
    "name", ["training.pt", "unet/diffusion_pytorch_model.safetensors", "unet/config.json"]
)
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_checkpoint_that_was_cut_short_is_named(
    refused, train, train_words, trained, stopped, name, left
):
    file = stopped / "checkpoint-2" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * left)])
    message = refused(*train_words, "resume=latest", f"out={stopped}")
    assert str(stopped / "checkpoint-2") in message and Path(name).name in message
    shutil.rmtree(stopped / "checkpoint-2")  # as the message says
    train("resume=latest", out=stopped)
    assert differing(weights(stopped), weights(trained)) == []


def test_a_half_written_checkpoint_is_ignored(train, trained, stopped):
    shutil.copytree(stopped / "checkpoint-2", stopped / ".checkpoint-3.partial")
    (stopped / ".checkpoint-3.partial" / "training.pt").write_bytes(b"half")
    (stopped / "checkpoint-9.old").mkdir()
    assert [path.name for path in list_checkpoints(stopped)] == ["checkpoint-1", "checkpoint-2"]
    train("checkpoint_every=1", "resume=latest", out=stopped)
    assert differing(weights(stopped), weights(trained)) == []
    assert not list(stopped.glob(".*.partial"))


def test_a_checkpoint_that_cannot_be_written_is_not_there(run, train_words, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    outcome = run(*train_words, f"out={tmp_path / 'out'}")
    assert (
        outcome.code == 2
        and "No space left on device" in outcome.err
        and "free some space" in outcome.err
    )
    assert not [path.name for path in (tmp_path / "out").iterdir() if "checkpoint" in path.name]


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path):
    for step in (900, 1000, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "training.pt").touch()
    (tmp_path / "checkpoint-2000").mkdir()  # without training.pt
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-20",
        "checkpoint-900",
        "checkpoint-1000",
    ]


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_only_the_last_checkpoints_are_kept(train, keep, left):
    out = train("checkpoint_every=1", f"keep={keep}")
    assert checkpoints(out) == [f"checkpoint-{step}" for step in left]


# ---- whose checkpoints ----


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["seed=1"], "seed: 42 there, 1 now"),
        (["shots=1"], "shots: 2 there, 1 now"),
        (["steps=8"], "steps: 4 there, 8 now"),
        (["lr=1e-4", "fold=1"], "lr: 0.001 there, 0.0001 now"),
        (["fold=1"], "fold: 0 there, 1 now"),
        (["image_size=64"], "image_size: 32 there, 64 now"),
        (["batch=4"], "global_batch: 2 there, 4 now"),
        (["accumulate=2"], "accumulate: 1 there, 2 now"),
        (["ema=0.5"], "ema: 0.0 there, 0.5 now"),
        (["pairs=true"], "pairs: False there, True now"),
        (["schedule=one_cycle"], "schedule: polynomial there, one_cycle now"),
        (["dtype=bf16"], "dtype: fp32 there, bf16 now"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_resume_with_another_config_names_what_differs(refused, train_words, trained, words, key):
    message = refused(*train_words, *words, "resume=latest", f"out={trained}")
    assert str(trained) in message and key in message
    assert ("fold: " in message) == ("fold=1" in words)


@pytest.mark.parametrize(
    "part", ["vae/diffusion_pytorch_model.safetensors", "text.safetensors", "vae/config.json"]
)
def test_a_resume_with_another_base_is_refused(
    refused, train_words, stopped, tiny_base, tmp_path, part
):
    other = shutil.copytree(tiny_base, tmp_path / "base")
    if part == "vae/config.json":
        config = json.loads((other / part).read_text())
        (other / part).write_text(json.dumps({**config, "scaling_factor": 0.5}))
    else:
        shutil.copy(write_tiny_base(tmp_path / "fresh", seed=5) / part, other / part)
    message = refused(*train_words, f"base={other}", "resume=latest", f"out={stopped}")
    assert str(stopped) in message and "another run" in message


def test_keys_that_change_no_result_may_differ(
    train, trained, tiny_base, train_shapes, stopped, tmp_path
):
    moved = stopped.rename(tmp_path / "moved")
    base, data = (
        shutil.copytree(tiny_base, tmp_path / "b"),
        shutil.copytree(train_shapes, tmp_path / "d"),
    )
    words = [
        "workers=1",
        "stop_at=4",
        "checkpoint_every=3",
        "keep=1",
        "validate_every=2",
        "validate_episodes=1",
    ]
    train(
        *words,
        f"base={base}",
        f"data={data}",
        f"cache={tmp_path / 'c'}",
        "resume=latest",
        out=moved,
    )
    assert differing(weights(moved), weights(trained)) == []


def test_a_folder_with_checkpoints_is_gone_on_with_only_when_asked(refused, train_words, stopped):
    message = refused(*train_words, f"out={stopped}")
    assert f"out={stopped}" in message and "resume=latest" in message
    assert len(log_lines(stopped)) == 2


def test_the_folder_of_an_evaluation_is_no_training_run(refused, train_words, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "finished")
    assert f"{out} holds another run" in refused(*train_words, f"out={out}", "resume=latest")


# ---- what comes out ----


def evaluated(run, weight, out, *words):
    outcome = run(
        "eval",
        f"weight={weight}",
        "episodes=4",
        "workers=0",
        f"out={out}",
        "save_masks=true",
        *words,
    )
    assert outcome.code == 0, outcome
    return json.loads((out / "result.json").read_text())


def test_the_folder_of_a_run_and_its_checkpoints_are_weight_dirs(run, train, few_shapes, tmp_path):
    out = train("checkpoint_every=2", "fold=1", out=tmp_path / "out")
    last = evaluated(run, out, tmp_path / "last", f"data={few_shapes}")
    same = evaluated(run, out / "checkpoint-4", tmp_path / "same", f"data={few_shapes}")
    other = evaluated(run, out / "checkpoint-2", tmp_path / "other", f"data={few_shapes}")
    assert (last["fold"], last["image_size"], last["shots"]) == (
        1,
        32,
        1,
    )  # fold and size as recorded
    assert last["weight_sha256"] == same["weight_sha256"] != other["weight_sha256"]
    assert (tmp_path / "last" / "episodes.jsonl").read_bytes() == (
        tmp_path / "same" / "episodes.jsonl"
    ).read_bytes()
    source = find_weights(out)
    assert source.unet == out / "unet" / "unet"  # the released layout


def test_the_base_is_recorded_relative_so_that_both_can_move(train, tiny_base, tmp_path):
    place = tmp_path / "here"
    base = shutil.copytree(tiny_base, place / "some_base")
    out = train(f"base={base}", "steps=1", out=place / "runs" / "out")
    assert json.loads((out / "diffews.json").read_text())["base"] == "../../some_base"
    assert (
        json.loads((out / "checkpoint-1" / "diffews.json").read_text())["base"]
        == "../../../some_base"
    )
    moved = place.rename(tmp_path / "there")
    for weight in (moved / "runs" / "out", moved / "runs" / "out" / "checkpoint-1"):
        assert find_weights(weight).base.resolve() == moved / "some_base"


def test_config_and_versions_lie_beside_the_weights(trained, tiny_base):
    for folder in (trained, trained / "checkpoint-4"):
        record = json.loads((folder / "diffews.json").read_text())
        named = {key: record[key] for key in ("image_size", "benchmark", "fold", "shots", "steps")}
        assert named == {
            "image_size": 32,
            "benchmark": "coco20i",
            "fold": 0,
            "shots": 2,
            "steps": 4,
        }
        assert record["config"]["lr"] == 1e-3 and record["config"]["base"] == str(tiny_base)
        assert {"torch", "diffusers", "diffews"} <= set(record["versions"])
    config = json.loads((trained / "unet" / "unet" / "config.json").read_text())
    assert config["_class_name"] == "DiffewsUNet"
    assert "conv_in_ref.weight" in weights(trained)


@pytest.mark.parametrize("words", [["ema=0.5"], ["lora=2"]], ids=" ".join)
def test_a_checkpoint_publishes_what_the_end_publishes(train, words):
    if words == ["lora=2"]:
        pytest.importorskip("peft")
    out = train(*words)
    assert differing(weights(out), weights(out / "checkpoint-4")) == []
    assert not [name for name in weights(out) if "lora" in name or "base_layer" in name]


def test_export_halves_the_file_and_keeps_the_masks(run, train, tmp_path, few_shapes):
    out = train("steps=6", out=tmp_path / "out")
    reset_accelerate()
    small = tmp_path / "elsewhere" / "small_fold0"
    assert run("export", f"weight={out}", f"out={small}").code == 0
    sizes = [
        file.stat().st_size
        for folder in (out, small)
        for file in folder.glob("unet/unet/*.safetensors")
    ]
    assert 0.45 < sizes[1] / sizes[0] < 0.55
    assert {tensor.dtype for tensor in weights(small).values()} == {torch.float16}
    assert sorted(path.name for path in small.iterdir()) == ["diffews.json", "unet"]

    full = evaluated(run, out, tmp_path / "full", f"data={few_shapes}")
    half = evaluated(run, small, tmp_path / "half", f"data={few_shapes}")
    assert half["miou"] == pytest.approx(full["miou"], abs=1)
    assert half["base_sha256"] == full["base_sha256"] and half["image_size"] == 32


def test_an_exported_folder_finds_its_base_from_anywhere_and_may_hold_it(
    run, train, tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "here" / "some_base")
    out = train(f"base={base}", "steps=1", out=tmp_path / "here" / "out")
    small, whole = tmp_path / "here" / "small", tmp_path / "here" / "whole"
    assert run("export", f"weight={out}", f"out={small}").code == 0
    assert run("export", f"weight={out}", f"out={whole}", "include_base=true").code == 0
    (tmp_path / "far" / "away").mkdir(parents=True)
    moved = [folder.rename(tmp_path / "far" / "away" / folder.name) for folder in (small, whole)]
    assert find_weights(moved[0]).base.resolve() == base.resolve()

    own = find_weights(moved[1])
    assert own.base == moved[1] / "base" and hash_weights(own) == hash_weights(
        find_weights(moved[0])
    )
    modes = {path.stat().st_mode & 0o777 for path in moved[1].rglob("*") if path.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_export_leaves_an_existing_folder_alone(refused, trained, tmp_path):
    (tmp_path / "small").mkdir()
    out = f"out={tmp_path / 'small'}"
    assert out in refused("export", f"weight={trained}", out)
    assert "out=" in refused("export", f"weight={trained}")
