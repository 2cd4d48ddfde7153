"""`diffews benchmark`: a table, JSON in a file, the protocol's counts; fp16 in range."""

import contextlib
import io
import json
import os
import resource
from importlib.metadata import version

import numpy as np
import pytest
import torch

from diffews.cli.keys import CHECKOUT
from diffews.cli.main import main
from diffews.cli.tool_settings import BenchmarkConfig
from diffews.evaluation.groups import segment_group
from diffews.runtime.loading import load_pipeline
from diffews.tools.arithmetic import count_parts, count_tflop, make_twin
from diffews.tools.timing import missing_memory, random_group, random_pipeline

CPU = torch.device("cpu")
SETUPS = {"plain", "fast"}
ROW = {"ms", "all_ms", "batch", "tflop", "tflops", "matrix_tflops", "share_of_matrix", "peak_bytes"}


@pytest.fixture(scope="module")
def results(weight, base, tmp_path_factory) -> dict:
    """What the command measured of the golden model, and the lines that it printed as `table`."""
    file = tmp_path_factory.mktemp("benchmark") / "out" / "measured.json"
    words = [f"weight={weight}", f"base={base}", "image_size=64", "device=cpu"]
    words += ["repeats=1", "seconds=0", "batch=2", f"json={file}"]
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        # busy cores: two threads are slower
        patch.setattr("diffews.runtime.loading.all_cores", lambda: 1)
        assert main(["benchmark", *words]) == 0
    table = printed.getvalue().splitlines()
    assert not any(line.startswith("{") for line in table)
    return {**json.loads(file.read_text()), "table": table}


def test_the_ratios_follow_from_the_times(results):
    measured = results["measured"]
    assert measured.keys() == {"1-shot episode", "5-shot episode", "cached query", "training step"}
    for title, timed in measured.items():
        rows = {name: row for name, row in timed.items() if name != "ratio"}
        assert rows.keys() == ({"plain"} if title == "training step" else SETUPS)
        for row in rows.values():
            assert row.keys() == ROW and row["ms"] in row["all_ms"] and len(row["all_ms"]) == 1
            assert row["tflops"] == pytest.approx(row["tflop"] / row["ms"] * 1e3)
            assert row["share_of_matrix"] == pytest.approx(row["tflops"] / row["matrix_tflops"])
            largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            assert 0 < row["peak_bytes"] <= largest
        if len(rows) == 2:
            assert timed["ratio"] == pytest.approx(timed["plain"]["ms"] / timed["fast"]["ms"])
            assert (timed["plain"]["batch"], timed["fast"]["batch"]) == (1, 2)
    assert results["skipped"] == {}
    named = [results[key] for key in ("device", "image_size", "cores")]
    assert named == ["cpu", 64, os.cpu_count()]
    assert results["versions"]["torch"] == version("torch")
    plain = {"dtype": "fp32", "batch": 1, "channels_last": False, "tf32": False}
    fast = {"dtype": "fp32", "batch": 2, "channels_last": True, "fast": False}
    assert results["keys"]["plain"].items() >= plain.items()
    assert results["keys"]["fast"].items() >= fast.items()


def test_the_table_shows_each_ratio_with_its_two_times(results):
    text = "\n".join(results["table"])
    for title, timed in results["measured"].items():
        assert f"{title:20}plain " in text
        if "ratio" in timed:
            times = [f"{timed[name]['ms']:.2f} ms" for name in ("plain", "fast")]
            assert f"{timed['ratio']:.2f} = {times[0]} / {times[1]}" in text
        for row in (timed[name] for name in timed if name != "ratio"):
            assert f"{row['ms']:.2f} " in text and f"{1e3 / row['ms']:.2f} " in text


@torch.no_grad()
def test_the_work_of_an_episode_is_what_one_counts(results, pipe):
    parts, measured = results["tflop_of_parts"], results["measured"]
    episode, twin = random_group(1, 1, 64), make_twin(pipe)
    counted = count_tflop(lambda: segment_group(twin, episode, 1))
    assert measured["1-shot episode"]["plain"]["tflop"] == pytest.approx(counted)
    more = 2 * parts["vae_encode"] + parts["support_pass"]
    more += (parts["query_pass_5"] - parts["query_pass_1"]) / 4
    assert measured["5-shot episode"]["plain"]["tflop"] == pytest.approx(counted + 4 * more)
    cached = parts["vae_encode"] + parts["query_pass_1"] + parts["vae_decode"]
    assert measured["cached query"]["fast"]["tflop"] == pytest.approx(cached)
    forward = 4 * parts["vae_encode"] + parts["support_pass"] + parts["query_pass_1"]
    assert forward < measured["training step"]["plain"]["tflop"] < 5 * forward


def test_the_counted_work_of_stable_diffusion_is_the_protocols():
    """What the protocol's page counts at 512 px, on shapes alone."""
    config = BenchmarkConfig(image_size=512, device="cpu")
    meta = random_pipeline(config, torch.device("meta"))
    assert meta.unet.num_parameters() == 865_910_724 + 23_360
    assert meta.vae.config.scaling_factor == 0.18215
    parts = count_parts(meta, 512)
    assert parts["vae_encode"] == pytest.approx(1.117, rel=0.01)
    assert parts["query_pass_1"] == pytest.approx(0.797 + 0.122, rel=0.01)
    # the last attention, which nobody reads, is left out
    assert 0.96 * 0.797 < parts["support_pass"] < 0.98 * 0.797
    assert parts["vae_decode"] == pytest.approx(2.515, rel=0.01)
    assert parts["query_pass_5"] - parts["query_pass_1"] == pytest.approx(4 * 0.122, rel=0.01)


def test_it_counts_two_for_a_multiply_add():
    left, right = torch.zeros(30, 40), torch.zeros(40, 50)
    assert count_tflop(lambda: left @ right) == pytest.approx(2 * 30 * 40 * 50 / 1e12)


def test_random_weights_are_the_default_and_training_can_be_left_out(run):
    words = ["fast=false", "image_size=32", "batch=1", "repeats=1", "seconds=0", "train=false"]
    outcome = run("benchmark", *words, "device=cpu")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("tiny, random weights, 32 px, on cpu")
    assert "training step: not measured, train=false" in outcome.out


def test_training_needs_the_memory_that_the_reason_names():
    assert missing_memory(1000, CPU) is None
    assert missing_memory(10**13, CPU).endswith("GB are free, weights and Adam need 180000.0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shapes=sd15"], ["shapes='sd15'", "sd21, tiny"]),
        (["image_size=100"], ["image_size=100", "multiple of 8"]),
        (["shapes=tiny", "image_size=62"], ["image_size=62", "multiple of 4"]),
        (["base=x"], ["base=", "weight="]),
        (["repeats=0"], ["repeats=0", "1"]),
        (["weight=nowhere"], ["weight=nowhere"]),
        (["shapes=tiny", "device=tpu0"], ["device=tpu0"]),
    ],
)
def test_bad_input_is_refused(refused, words, says):
    message = refused("benchmark", *words)
    assert all(part in message for part in says), message


def test_a_size_that_the_weights_cannot_take_is_refused(refused, weight, base):
    message = refused("benchmark", f"weight={weight}", f"base={base}", "image_size=100")
    assert "image_size=100" in message and "multiple of 8" in message


# ---- half precision ----


def test_a_vae_that_would_overflow_in_fp16_gives_the_same_masks_under_it(picture, square_mask):
    """Stable Diffusion's VAE overflows in fp16, so it stays in fp32; the tiny one is made to."""

    def load(dtype: torch.dtype, factor: float = 2.0**30):
        pipeline = load_pipeline(CHECKOUT / "weight" / "tiny" / "shapes_fold0", dtype=dtype)
        # before a norm, which takes the factor out again
        inner = pipeline.vae.decoder.mid_block.resnets[0].conv1
        inner.weight.mul_(factor)
        inner.bias.mul_(factor)
        return pipeline

    def masks(pipeline):
        queries = [picture(seed) for seed in range(1, 5)]
        out = pipeline(queries, support_images=[picture(0)], support_masks=[square_mask()], batch=4)
        assert all(np.isfinite(scores).all() for scores in out.scores)
        return np.stack(out.masks)

    half = load(torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    found = masks(half)
    assert 0 < found.mean() < 1
    assert (found == masks(load(torch.float16, factor=1))).mean() > 0.9999
    assert (found == masks(load(torch.float32))).mean() > 0.999

    # what is avoided
    latents = torch.randn(1, 4, 16, 16, dtype=torch.float16)
    assert not half.vae.to(torch.float16).decode(latents).sample.isfinite().all()
