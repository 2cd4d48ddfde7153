"""Optimizer steps that float16's scaler leaves out, and when activations are computed again."""

import json
from types import SimpleNamespace

import pytest
import torch
from training_runs import batches_of

from diffews.cli.keys import load
from diffews.cli.training_settings import TrainConfig
from diffews.errors import InputError
from diffews.training import engine
from diffews.training.memory import settle_checkpointing, training_bytes

pytest_plugins = ("training_fixtures",)
GB = 10**9


@pytest.fixture
def scaled(trainer):
    """A trainer with float16's scaler, which works on a CPU, too."""
    run = trainer("ema=0.9", "steps=40")
    scaler = torch.amp.GradScaler("cpu")
    run.accelerator.scaler = scaler
    run.optimizer.__setstate__({"scaler": scaler})
    return run


def state(run) -> list:
    """What a step changes beside the weights."""
    return [run.schedule.last_epoch, run.ema.optimization_step]


def overflow(run, monkeypatch) -> None:
    """Lets the next losses be infinite, as float16 makes those that are too large."""
    loss = run.module.loss
    monkeypatch.setattr(run.module, "loss", lambda *a: loss(*a) * float("inf"))


def test_a_step_that_overflowed_moves_neither_weights_nor_schedule_nor_average(scaled, monkeypatch):
    batches = batches_of(scaled)[:3]
    weights = [weight.detach().clone() for weight in scaled.parameters]
    with monkeypatch.context() as patch:
        overflow(scaled, patch)
        assert not torch.tensor(scaled.optimizer_step(iter(batches))).isfinite()
    assert all(map(torch.equal, weights, scaled.parameters))
    assert (state(scaled), scaled.step, scaled.stepper.skipped) == ([0, 0], 1, 1)

    scaled.optimizer_step(iter(batches[1:]))
    assert not all(map(torch.equal, weights, scaled.parameters))
    assert (state(scaled), scaled.step, scaled.stepper.skipped) == ([1, 1], 2, 0)


def test_what_overflows_in_every_step_is_refused(scaled, monkeypatch):
    monkeypatch.setattr(engine, "MOST_SKIPPED", 3)
    overflow(scaled, monkeypatch)
    batch = batches_of(scaled)[0]
    scaled.optimizer_step(iter([batch]))
    scaled.optimizer_step(iter([batch]))
    with pytest.raises(InputError, match=r"3 steps in a row.*dtype=bf16"):
        scaled.optimizer_step(iter([batch]))


def test_the_log_says_null_where_a_loss_overflowed(tmp_path):
    from diffews.training.log import StepLog

    file = tmp_path / "log.jsonl"
    log = StepLog(file, 0)
    log.add(1, float("nan"), 1e-5)
    log.add(2, 0.5, 1e-5)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, 0.5]
    assert StepLog(file, 2).losses == [0.5]
    StepLog(file, 2).save_curve(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").is_file()


# ---- checkpointing=auto ----


def ask(run, monkeypatch, free: float, device: str = "cuda", **keys: object) -> bool:
    """What a run says of checkpointing on a GPU with so many bytes free."""
    accelerator = SimpleNamespace(
        device=torch.device(device), mixed_precision="fp16", is_main_process=True
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    config = SimpleNamespace(**{**vars(run.config), **keys})
    return settle_checkpointing(config, run.unet, 8, accelerator)


def test_auto_is_on_where_a_gpu_would_be_too_small(trainer, monkeypatch, capsys):
    run = trainer("checkpointing=auto", "shots=2")
    need = training_bytes(run.config, run.unet, 8, "fp16")
    assert not ask(run, monkeypatch, 1.2 * need)
    assert capsys.readouterr().err == ""
    assert ask(run, monkeypatch, 0.9 * need)
    assert "checkpointing=true" in capsys.readouterr().err

    # what is said is done, and a CPU's memory is not asked for
    assert not ask(run, monkeypatch, 0, checkpointing=False)
    assert ask(run, monkeypatch, 1.2 * need, checkpointing=True)
    assert not ask(run, monkeypatch, 0, device="cpu")


def test_more_shots_and_an_average_need_more(trainer):
    run = trainer()

    def need(**keys: object) -> int:
        config = SimpleNamespace(**{**vars(run.config), **keys})
        return training_bytes(config, run.unet, 8, "fp16")

    weights = sum(weight.numel() for weight in run.unet.parameters())
    assert need(ema=0.9) - need() == 4 * weights
    assert need() - need(optimizer="adamw8bit") == 6 * weights
    assert need(shots=7) - need(shots=4) == need(shots=4) - need(shots=1) > 0


@pytest.mark.parametrize("word", ["auto", "true", "false"])
def test_checkpointing_takes_a_truth_value_or_auto(word):
    config = load(TrainConfig, ["base=b", "out=o", f"checkpointing={word}"])
    assert config.checkpointing == {"true": True, "false": False}.get(word, word)
    assert load(TrainConfig, ["base=b", "out=o", "--checkpointing", word]) == config


def test_checkpointing_takes_no_other_word(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("checkpointing: false\n")
    assert load(TrainConfig, ["base=b", "out=o", f"config={file}"]).checkpointing is False
    with pytest.raises(InputError, match=r"checkpointing='maybe'.*true, false, auto"):
        load(TrainConfig, ["base=b", "out=o", "checkpointing=maybe"])


def test_a_run_goes_on_with_another_checkpointing(train, tmp_path):
    """Also one that wrote the key into its identity, as runs did before."""
    out = train("stop_at=1", "checkpointing=false")
    run = json.loads((out / "run.json").read_text())
    assert "checkpointing" not in run
    (out / "run.json").write_text(json.dumps({**run, "checkpointing": False}))
    train("resume=latest", "stop_at=2", "checkpointing=true", out=out)
    assert (out / "checkpoint-2").is_dir()
