"""What the training tests share: few shapes, a tiny random base, a run of a few steps."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from training_runs import (
    SIDE,
    STEPS,
    list_few_pictures,
    make_few_shapes,
    reset_accelerate,
    write_tiny_base,
)

from diffews.cli.commands import run_train
from diffews.cli.keys import load
from diffews.cli.opening import find_start
from diffews.cli.training_settings import TrainConfig
from diffews.data.registry import open_benchmark
from diffews.models.weights import start_unet
from diffews.training.train import Trainer


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    reset_accelerate()
    yield
    reset_accelerate()


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory) -> Path:
    """Never written to."""
    return make_few_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def train_shapes(few_shapes, tmp_path_factory) -> Path:
    """The same pictures with short lists of training pictures; never written to."""
    return list_few_pictures(few_shapes, tmp_path_factory.mktemp("train_shapes"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """Never written to."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def weighted_base(tiny_base, tmp_path) -> Path:
    """The tiny base with UNet weights to start from."""
    folder = shutil.copytree(tiny_base, tmp_path / "weighted_base")
    start_unet(tiny_base, torch.float32, seed=3).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def train_words(tiny_base, train_shapes) -> list[str]:
    """The command line of a run of four steps, two episodes each; `out` is still to be said."""
    words = [
        "fold=0",
        "shots=2",
        f"image_size={SIDE}",
        f"steps={STEPS}",
        "batch=2",
        "accumulate=1",
        "lr=1e-3",
    ]
    words += ["device=cpu", "dtype=fp32", "workers=0", "checkpointing=false"]
    return ["train", f"base={tiny_base}", f"data={train_shapes}", *words]


@pytest.fixture
def train(run, train_words, tmp_path) -> Callable[..., Path]:
    """train(*words): the run with more words, which must succeed -> its folder."""

    def call(*words: object, out: Path | None = None) -> Path:
        folder = out or tmp_path / "out"
        reset_accelerate()
        outcome = run(*train_words, f"out={folder}", *words)
        assert outcome.code == 0, outcome
        return folder

    return call


@pytest.fixture(scope="session")
def trained(train_words, tmp_path_factory) -> Path:
    """The folder of the finished run; never written to."""
    out = tmp_path_factory.mktemp("trained") / "out"
    reset_accelerate()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_train(load(TrainConfig, [*train_words[1:], f"out={out}"]))
    return out


@pytest.fixture
def trainer(train_words, tmp_path) -> Callable[..., Trainer]:
    """trainer(*words): what the command would train with, before its first step."""

    def make(*words: str, out: str = "trainer") -> Trainer:
        reset_accelerate()
        config = load(TrainConfig, [*train_words[1:], f"out={tmp_path / out}", *words])
        benchmark = open_benchmark(
            config.benchmark, config.data, config.fold or 0, "train", config.splits
        )
        init = None if config.init is None else find_start(config)
        return Trainer(config, benchmark, Path(str(config.base)), init)

    return make
