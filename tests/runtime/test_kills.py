"""Every command that writes: killed at any moment, started twice at once, it loses nothing.

The commands run in forks of this process, where torch is loaded: a kill meets the work, and not
the start of Python.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import reset_accelerate

import diffews
from diffews.cli.main import main
from diffews.tools import shapes

pytest_plugins = ("training_fixtures",)
pytestmark = pytest.mark.slow

TIMES = 20
TINY = Path(diffews.__file__).parent.parent / "weight" / "tiny" / "base"
# what a file says of the run that wrote it, and not of the result
ABOUT_THE_RUN = {"config", "episodes_per_second", "out", "seconds", "time", "resume"}


@pytest.fixture
def queries(picture, square_mask, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "queries").mkdir(parents=True)
    picture(1).save(folder / "support.png")
    Image.fromarray(square_mask()).save(folder / "mask.png")
    for number in range(12):
        picture(number + 2, 60 + number, 50).save(folder / "queries" / f"{number}.png")
    return folder


@pytest.fixture
def commands(golden_words, train_words, queries, weight, base, own_base, few_shapes, monkeypatch):
    """The command lines of what writes a folder, by name; `out` is still to be said."""
    monkeypatch.setattr(shapes, "PARTS", {"train2014": 2, "val2014": 2})  # pictures of a class
    shutil.copytree(weight / "unet" / "unet", own_base / "unet", dirs_exist_ok=True)
    pair = [f"support={queries / 'support.png'}", f"mask={queries / 'mask.png'}"]
    made = ["image_size=32", "steps=40", "batch=4", "device=cpu"]
    return {
        "eval": [*golden_words, "episodes=12", "save_masks=true", "pictures=3"],
        "eval with workers": [*golden_words, "episodes=12", "save_masks=true", "workers=2"],
        "train": [*train_words, "steps=12", "checkpoint_every=3", "resume=latest"],
        "segment": [
            *("segment", f"weight={weight}", f"base={base}", "image_size=64", "threads=1"),
            *(*pair, f"query={queries / 'queries'}"),
        ],
        "distill-decoder": ["distill-decoder", f"base={TINY}", *made],
        "make-tiny-base": ["make-tiny-base", f"data={few_shapes}", "steps=4", "batch=4"],
        "make-shapes": ["make-shapes"],
        "init-base": ["init-base", f"sd={own_base}"],
        "export": ["export", f"weight={weight}", f"base={base}", "include_base=true"],
    }


def start(words, log):
    """Runs the command in a fork, in a session of its own -> its process id."""
    child = os.fork()
    if child:
        return child

    code = 70
    try:
        os.setsid()
        sys.stdout = sys.stderr = log.open("w", buffering=1)
        for stream in (1, 2):  # what no Python object writes
            os.dup2(sys.stderr.fileno(), stream)
        reset_accelerate()
        code = main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def wait(child):
    """Waits -> exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def members(session):
    """Processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(its_session) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def tree(folder):
    """What a folder holds, by name; JSON without what differs from run to run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "loss.png":
            found[name] = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                lines = found[name].splitlines() if path.suffix == ".jsonl" else [found[name]]
                found[name] = [_without(json.loads(line)) for line in lines]
    return found


def _without(content):
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if key not in ABOUT_THE_RUN}


def finish(words, log):
    assert wait(start(words, log)) == 0, log.read_text()


# train has twenty kills of its own, in tests/training/test_checkpoints.py
GOES_ON = ["eval", "eval with workers", "segment"]
MADE_WHOLE = ["distill-decoder", "make-tiny-base", "make-shapes", "init-base", "export"]


@pytest.mark.parametrize("name", [*GOES_ON, *MADE_WHOLE])
def test_a_killed_command_goes_on_or_starts_again(name, commands, tmp_path):
    words, log = commands[name], tmp_path / "log"
    began = time.perf_counter()
    finish([*words, f"out={tmp_path / 'whole' / 'out'}"], log)
    seconds, whole = time.perf_counter() - began, tree(tmp_path / "whole" / "out")

    moments, killed = random.Random(), 0
    for number in range(TIMES):
        out = tmp_path / f"{number}" / "out"
        child = start([*words, f"out={out}"], log)
        time.sleep(moments.random() * seconds)
        os.kill(child, signal.SIGKILL)
        killed += wait(child) == -signal.SIGKILL

        # its workers end with it
        deadline = time.monotonic() + 5
        while members(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert members(child) == []

        # a folder that is made whole, or not at all, may be there already
        made = out / "COCO2014" if name == "make-shapes" else out
        if name in GOES_ON or not made.exists():
            finish([*words, f"out={out}"], log)
        assert tree(out) == whole, f"{name}, killed the {number}th time"
        # nothing half-made; a lock stays where the kill came between the last two steps
        assert {path.name for path in out.parent.iterdir()} in ({"out"}, {"out", ".out.lock"})
    assert killed > TIMES // 2


@pytest.mark.parametrize("name", ["eval", "train", "distill-decoder"])
def test_of_two_that_start_at_once_one_runs_and_one_says_so(name, commands, tmp_path):
    words, logs = commands[name], [tmp_path / "one", tmp_path / "other"]
    finish([*words, f"out={tmp_path / 'whole'}"], logs[0])
    for number in range(TIMES):
        out = tmp_path / f"{number}"
        children = [start([*words, f"out={out}"], log) for log in logs]
        codes = [wait(child) for child in children]
        assert sorted(codes) == [0, 2], [log.read_text() for log in logs]

        lines = logs[codes.index(2)].read_text().splitlines()
        errors = [line for line in lines if line.startswith("diffews: error: ")]
        assert len(errors) == 1
        # who, too, unless that one had not yet written its name; tests of locks ask for it
        assert f"{out} is being written by" in errors[0]
        assert tree(out) == tree(tmp_path / "whole")


def test_pictures_that_a_killed_segment_left_are_whole(commands, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    moments = random.Random()
    for _ in range(TIMES):
        child = start([*commands["segment"], f"out={out}", "overwrite=true"], log)
        time.sleep(moments.random())
        os.kill(child, signal.SIGKILL)
        wait(child)
        for file in out.glob("[!.]*.png"):
            with Image.open(file) as image:
                assert set(np.unique(np.asarray(image))) <= {0, 255}
