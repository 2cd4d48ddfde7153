"""What changes the result is said at the key, and read by eval, train and table."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from diffews.cli.keys import (
    BYTES,
    data_key,
    entries_of_scores,
    fields_of,
    key,
    list_key,
    load,
    model_key,
    output_key,
    rounding_key,
    speed_key,
    training_key,
)
from diffews.cli.settings import BenchmarkKeys, EvalConfig
from diffews.cli.training_settings import TrainConfig
from diffews.data.registry import BENCHMARKS, load_benchmark, open_benchmark, option_names
from diffews.evaluation.evaluate import run_identity
from diffews.evaluation.tables import BY_FOLD
from diffews.models.find import find_weights
from diffews.runtime.files import counted_values
from diffews.training.train import Trainer

HARMLESS = {  # what a run that goes on may change; the keys that lead to files count by the files
    EvalConfig: "out episodes workers pictures save_masks allow_bin fast",
    TrainConfig: "out stop_at resume checkpoint_every checkpointing keep workers device allow_bin "
    "tracker cache validate_every validate_episodes validate_on",
}


def harmless(config_class):
    keys = fields_of(config_class).items()
    return {name for name, item in keys if item.metadata["changes_result"] is False}


@pytest.fixture
def identity(weight, base, coco):
    """identity(config): what `eval` writes into run.json."""

    def read(config):
        dataset = load_benchmark("coco20i", coco, image_size=64, shots=config.shots)
        return run_identity(config, dataset, find_weights(weight, base), torch.device("cpu"))

    return read


@pytest.fixture
def training_identity(base, coco):
    """training_identity(config): what `train` writes into run.json."""

    def read(config):
        run = SimpleNamespace(
            config=config,
            base=base,
            init=None,
            benchmark=open_benchmark("coco20i", coco, 0, "train"),
            method=SimpleNamespace(interaction=SimpleNamespace(reads_pixels=False)),
            accelerator=SimpleNamespace(mixed_precision="no", num_processes=3),
        )
        return Trainer.identity.func(run)

    return read


@pytest.mark.parametrize("config_class", HARMLESS, ids=lambda c: c.__name__)
def test_the_harmless_keys_are_those_of_the_protocol(config_class):
    assert harmless(config_class) == set(HARMLESS[config_class].split())


def test_every_key_of_eval_is_in_the_identity_or_declared_harmless(identity):
    entries = identity(EvalConfig(absent=True, presence="cosine"))
    for name, item in fields_of(EvalConfig).items():
        if item.metadata["changes_result"]:
            assert (item.metadata["counted_as"] or name) in entries
        else:
            assert name not in entries


def test_every_key_of_train_is_in_the_identity_or_declared_harmless(training_identity):
    entries = training_identity(load(TrainConfig, ["base=b", "out=o", "batch=2"]))
    for name, item in fields_of(TrainConfig).items():
        if item.metadata["changes_result"]:
            assert (item.metadata["counted_as"] or name) in entries
        else:
            assert name not in entries
    assert entries["global_batch"] == 6


def test_the_identity_holds_what_was_found_not_what_was_asked_for(identity):
    entries = identity(EvalConfig(shots=2, relative_thresholds=[0.5]))
    assert (entries["fold"], entries["image_size"], entries["device"]) == (0, 64, "cpu")
    assert (entries["shots"], entries["sweep"]) == (2, ["relative 0.5"])
    assert "data" not in entries and "weight" not in entries


def test_an_identity_is_that_of_earlier_versions(identity):
    """A run that an earlier version began can be gone on with."""
    names = (
        "weight_sha256 base_sha256 encoder_sha256 decoder_sha256 variant benchmark fold shots "
        "image_size list_sha256 objects_sha256 device dtype batch threads threshold threshold_rule "
        "channels_last compile low_memory tf32 kv_sampling denoising_steps ensemble extra_metrics "
        "sweep prompt flips"
    )
    assert set(identity(EvalConfig())) == set(names.split())


@pytest.mark.parametrize(
    "kind", [key, data_key, list_key, model_key, training_key, speed_key, rounding_key]
)
def test_a_new_key_counts_unless_it_says_otherwise(identity, training_identity, kind):
    for config_class, read in ((EvalConfig, identity), (TrainConfig, training_identity)):

        @dataclasses.dataclass(frozen=True)
        class Config(config_class):
            new: int = kind(7, "a new key")

        entries = read(load(Config, ["base=b", "out=o"]))
        assert entries.get("new") == (None if kind is list_key else 7)
        assert "new" not in harmless(Config)
        assert ("new" in entries_of_scores(Config)) == (kind not in (list_key, rounding_key))


def test_a_key_that_says_so_does_not_count():
    @dataclasses.dataclass(frozen=True)
    class Config:
        rounds: int = key(1, "rounds otherwise", changes_result=BYTES)
        hashed: str = key("a", "a folder", counted_as="hashed_sha256")
        free: int = key(1, "free", changes_result=False)
        written: str = output_key("out", "a folder")

    assert counted_values(Config()) == {"rounds": 1}
    assert entries_of_scores(Config()) == ["hashed_sha256"]


def test_a_table_row_compares_what_changes_scores_but_for_what_a_fold_brings():
    names = (
        "image_size threshold threshold_rule dtype encoder_sha256 decoder_sha256 denoising_steps "
        "ensemble kv_sampling prompt flips negatives fs_cs"
    )
    assert set(entries_of_scores(EvalConfig)) == {*names.split(), *BY_FOLD}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_a_benchmark_takes_is_a_key(name):
    assert option_names(name) <= BenchmarkKeys().options().keys()
