"""The package on a GPU that does not exist: no mismatch, no new wait, no more memory than counted.

Small shapes by default, with a planted device bug, dtype bug and wait, which must be found. Stable
Diffusion 2.1's shapes at 512 px are slow: minutes. The table that they are held to is in
docs/performance.md.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffews.cli.keys import CHECKOUT

TOOL = Path(__file__).parent / "dry_run.py"
TABLE = re.compile(r"^\| `((?:eval|train) [^`]+)` \| ([\d.]+) \|", re.MULTILINE)
MOVED = 3  # its exit code where torch's private parts are elsewhere

# what is waited for: of an episode nothing; of a step its loss and the scale, at its end
WAITS_OF_EVAL: dict[str, int] = {}
WAITS_OF_TRAINING = {"_to_copy engine.py finish": 1, "item engine.py _was_skipped": 1}


@pytest.fixture(scope="session")
def dry_run(request):
    """dry_run(shapes, *names) -> what was seen of each, by name."""
    folder = request.config.cache.mkdir("fake_cuda")  # the shim is compiled once

    def call(shapes: str, *names: str) -> dict[str, dict]:
        if shutil.which("g++") is None:
            pytest.skip("no g++, which compiles the device's guard")
        words = [sys.executable, str(TOOL), str(folder), shapes, *names]
        done = subprocess.run(words, text=True, capture_output=True, cwd=CHECKOUT)
        if done.returncode == MOVED:
            pytest.skip(f"torch's private parts have moved: {done.stdout.strip()}")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {row.pop("name"): row for row in rows}

    return call


def counted() -> dict[str, float]:
    """The peaks of docs/performance.md in GB, by row."""
    text = (CHECKOUT / "docs" / "performance.md").read_text()
    return {name: float(peak) for name, peak in TABLE.findall(text)}


def assert_clean(name: str, row: dict) -> None:
    assert row["refused"] == "", name
    if name.endswith("low_memory"):  # weights come and go
        return
    expected = WAITS_OF_TRAINING if name.startswith("train") else WAITS_OF_EVAL
    assert row["waits"].items() <= expected.items(), name


def test_the_small_model_is_clean_and_planted_mistakes_are_found(dry_run):
    planted = ["planted device", "planted dtype", "planted wait"]
    found = dry_run("tiny", "eval 1-shot bf16, batch 8", *planted)
    assert len(found) == 4
    assert_clean("eval", found["eval 1-shot bf16, batch 8"])

    assert "device" in found["planted device"]["refused"]
    assert "Half" in found["planted dtype"]["refused"]
    assert found["planted wait"]["refused"] == ""
    assert [wait for wait in found["planted wait"]["waits"] if wait.startswith("item ")]


@pytest.mark.slow
def test_every_variant_and_a_training_step_are_clean_at_small_shapes(dry_run):
    found = dry_run("tiny")
    assert len(found) > 20
    for name, row in found.items():
        if not name.startswith("variant multi_step"):  # a scheduler asks for its timestep
            assert_clean(name, row)
        assert row["refused"] == "", name


@pytest.mark.slow
def test_stable_diffusion_takes_the_memory_that_the_table_says(dry_run):
    table = counted()
    assert {"eval 1-shot fp32", "train 7 shots, checkpointing"} <= table.keys()
    for name, row in dry_run("sd21", *table).items():
        assert_clean(name, row)
        assert row["gb"] == pytest.approx(table[name], rel=0.02), name
