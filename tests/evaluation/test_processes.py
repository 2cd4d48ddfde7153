"""Real processes under torchrun: the same files from any number, whichever is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_runs import reset_accelerate

import diffews

pytest_plugins = ("training_fixtures",)
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes in /proc"
)

CHECKOUT = Path(diffews.__file__).parent.parent
DEADLINE = 240  # seconds for what takes 20 where nothing hangs
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone"]  # on a free port
SECOND_QUERY = "COCO_val2014_000000000116.jpg"


# ---- processes ----


class Launched:
    """A command under torchrun in the background; its output goes to files."""

    def __init__(self, words, processes, out, logs):
        self.out, self.logs = out, logs
        logs.mkdir(exist_ok=True)
        with (logs / "out").open("w") as stdout, (logs / "err").open("w") as stderr:
            self.launcher = subprocess.Popen(
                [
                    *LAUNCHER,
                    f"--nproc_per_node={processes}",
                    "-m",
                    "diffews",
                    *map(str, words),
                    f"out={out}",
                ],
                stdout=stdout,
                stderr=stderr,
                cwd=logs,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
            )

    def ranks(self):
        """The pid of each rank that runs, data workers left out."""
        found = {}
        for pid in self.pids():
            rank = environment(pid).get("RANK")
            if rank is not None and parent(pid) == self.launcher.pid:
                found[int(rank)] = pid
        return found

    def pids(self):
        """All processes of the command: the launcher, the ranks, their data workers."""
        word = f"out={self.out}".encode()
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if word in split(folder / "cmdline")
        ]

    def wait_until(self, condition):
        """Waits until the condition holds, or the command has ended; returns whether it runs."""
        end = time.monotonic() + DEADLINE
        while self.launcher.poll() is None and not condition():
            assert time.monotonic() < end, self.errors()
            time.sleep(0.005)
        return self.launcher.poll() is None

    def kill(self, rank):
        """SIGKILL to one rank; returns whether it was there."""
        pid = self.ranks().get(rank)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def end(self):
        """Waits for the end, which must leave no process behind; returns the exit code."""
        try:
            code = self.launcher.wait(DEADLINE)
            assert not self.pids(), self.errors()
            return code
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)

    def output(self):
        return (self.logs / "out").read_text()

    def errors(self):
        return (self.logs / "err").read_text()


def split(file):
    try:
        return file.read_bytes().split(b"\0")
    except OSError:  # the process has ended
        return []


def environment(pid):
    return dict(
        item.decode(errors="replace").partition("=")[::2]
        for item in split(Path(f"/proc/{pid}/environ"))
    )


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.fixture
def launch(tmp_path):
    """launch(words, processes, out): the command under torchrun; killed at the test's end."""
    started = []

    def call(words, processes, out):
        started.append(Launched(words, processes, out, tmp_path / "logs"))
        return started[-1]

    yield call
    for launched in started:
        for pid in launched.pids():
            os.kill(pid, signal.SIGKILL)
        launched.launcher.wait()


# ---- files ----


@pytest.fixture
def words(golden_words):
    """The golden evaluation on the CPU; `out` is still to be said."""
    return [*golden_words, "device=cpu"]


@pytest.fixture
def alone(run, tmp_path):
    """alone(*words): the command in one process, which must succeed -> its folder."""

    def call(*words, out=None):
        out = out or tmp_path / "alone"
        reset_accelerate()
        outcome = run(*words, f"out={out}")
        assert outcome.code == 0, outcome
        return out

    return call


def count_lines(file):
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def count_masks(out):
    return len(list((out / "masks").glob("[0-9]*.png")))


def files(out):
    """Name and bytes of every file but result.json, which holds the speed and the folder's name."""
    found = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    return {name: content for name, content in found.items() if name != "result.json"}


def figures(out):
    """result.json without the speed, and the keys that say how it was run."""
    content = json.loads((out / "result.json").read_text())
    del content["episodes_per_second"]
    content["config"] = {
        k: v for k, v in content["config"].items() if k not in ("out", "workers", "episodes")
    }
    return content


def assert_same_run(one, other):
    assert files(one).keys() == files(other).keys()
    assert [name for name, content in files(one).items() if files(other)[name] != content] == []
    assert figures(one) == figures(other)


def assert_said_once(launched):
    lines = launched.output().splitlines()
    assert [line for line in lines if "mIoU" in line] == lines[-1:]
    assert launched.errors().count("100%|") <= 2  # tqdm draws the end of its one bar twice


# ---- evaluation ----


def test_three_processes_go_on_where_one_stopped(words, alone, launch, tmp_path):
    """Groups of three on three processes: of five left the last is padded, one process idles."""
    words = [*words, "episodes=16", "batch=3", "save_masks=true", "pictures=2"]
    whole = alone(*words)
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "run.json", out)
    lines = (whole / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (out / "episodes.jsonl").write_bytes(
        b"".join(lines[:5]) + lines[5][:40]
    )  # one group and a torn one
    (out / "masks").mkdir()
    for index in range(3):
        shutil.copy(whole / "masks" / f"{index:05d}.png", out / "masks")
    (out / "pictures").mkdir()
    for index in range(2):
        shutil.copy(whole / "pictures" / f"{index:05d}.png", out / "pictures")

    launched = launch([*words, "workers=1"], 3, out)
    assert launched.end() == 0, launched.errors()
    assert_same_run(whole, out)
    assert_said_once(launched)


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(words, alone, launch, tmp_path):
    out = tmp_path / "out"
    launched = launch([*words, "episodes=500", "save_masks=true"], 2, out)
    assert launched.wait_until(lambda: count_lines(out / "episodes.jsonl") >= 4), launched.errors()
    assert launched.kill(1)
    assert launched.end() != 0
    assert not (out / "result.json").exists()
    done = count_lines(out / "episodes.jsonl")
    assert done % 2 == 0  # what a round gave is written at once
    episodes = max(16, count_masks(out))

    whole = alone(*words, f"episodes={episodes}", "save_masks=true")
    alone(*words, f"episodes={episodes}", "save_masks=true", out=out)
    assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_files(
    words, alone, launch, tmp_path, processes, batch
):
    words = [*words, "episodes=16", f"batch={batch}", "save_masks=true", "pictures=2"]
    launched = launch(words, processes, tmp_path / "out")
    assert launched.end() == 0, launched.errors()
    assert_same_run(alone(*words), tmp_path / "out")
    assert_said_once(launched)


@pytest.mark.slow
def test_ten_kills_of_any_process_change_no_byte(words, alone, launch, tmp_path):
    words = [*words, "episodes=100", "save_masks=true"]
    whole, out = alone(*words), tmp_path / "out"
    moments, hits = random.Random(0), 0
    for attempt in range(10):
        processes = moments.choice([2, 3])
        wanted = count_masks(out) + moments.randrange(1, 10)
        launched = launch(words, processes, out)
        if attempt % 3 == 0:  # while it loads
            launched.wait_until(
                lambda started=launched, count=processes: len(started.ranks()) == count
            )
            time.sleep(2 * moments.random())
        else:  # in the loop: between a mask and its record, or anywhere else
            launched.wait_until(lambda least=wanted: count_masks(out) >= least)
            time.sleep(moments.random() / 10)
        hit = launched.kill(moments.randrange(processes))
        hits += hit
        assert (launched.end() != 0) >= hit, launched.errors()
        for mask in (out / "masks").glob("[0-9]*.png"):
            with Image.open(mask) as image:
                image.load()
        lines = (
            (out / "episodes.jsonl").read_text().splitlines()
            if (out / "episodes.jsonl").is_file()
            else []
        )
        assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    assert hits >= 8
    launched = launch(words, 2, out)
    assert launched.end() == 0, launched.errors()
    assert_same_run(whole, out)


# ---- bad input ----


def refusals(launched):
    """The lines that say what is wrong; every process may say it, none with a traceback of ours."""
    assert launched.end() != 0
    errors = launched.errors()
    assert f'File "{CHECKOUT / "diffews"}' not in errors, (
        errors
    )  # the launcher's own may lie in the checkout's .venv
    assert launched.output() == ""
    return {part.splitlines()[0] for part in errors.split("diffews: error: ")[1:]}


@pytest.mark.slow
def test_a_wrong_key_is_one_line(words, launch, tmp_path):
    launched = launch([*words, "shot=5"], 2, tmp_path / "out")
    assert refusals(launched) == {"command line: unknown key 'shot'; did you mean 'shots'?"}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_picture_that_one_process_cannot_read_is_one_line(words, own_coco, launch, tmp_path):
    file = own_coco / "COCO2014" / "val2014" / SECOND_QUERY
    file.write_bytes(b"")  # the second episode, which the second process reads
    out = tmp_path / "out"
    (message,) = refusals(launch([*words, f"data={own_coco}", "episodes=4"], 2, out))
    assert str(file) in message and "replace the file" in message
    assert set(files(out)) <= {"run.json", "episodes.jsonl"}
    assert count_lines(out / "episodes.jsonl") == 0


@pytest.mark.slow
def test_a_folder_of_another_run_is_one_line_and_stays_as_it_is(words, finished, launch, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (message,) = refusals(launch([*words, "episodes=16", "threshold=0.3"], 2, out))
    assert f"{out} holds another run (threshold: 0.25 there, 0.3 now)" in message
    assert files(out) == files(finished)
    assert (out / "result.json").read_bytes() == (finished / "result.json").read_bytes()


# ---- the latent cache ----


def rows_done(cache):
    file = cache / "state.npy"
    return int((np.load(file) > 0).sum()) if file.is_file() and file.stat().st_size > 128 else 0


@pytest.mark.slow
def test_two_processes_fill_the_cache_with_the_same_bytes(train_words, alone, launch, tmp_path):
    words = [*train_words, "steps=1"]
    alone(*words, "batch=2", f"cache={tmp_path / 'cache_alone'}")
    launched = launch([*words, "batch=1", f"cache={tmp_path / 'cache'}"], 2, tmp_path / "two")
    assert launched.end() == 0, launched.errors()
    assert files(tmp_path / "cache") == files(tmp_path / "cache_alone")
    assert rows_done(tmp_path / "cache") == len(np.load(tmp_path / "cache" / "state.npy")) > 100


@pytest.mark.slow
def test_a_cache_whose_filling_was_killed_ends_in_the_same_bytes(
    train_words, alone, launch, tmp_path
):
    words, cache = [*train_words, "steps=1"], tmp_path / "cache"
    alone(*words, "batch=2", f"cache={tmp_path / 'cache_alone'}")
    words += ["batch=1", f"cache={cache}"]
    moments, hits = random.Random(1), 0
    for _ in range(3):
        wanted = rows_done(cache) + moments.randrange(1, 30)
        launched = launch(words, 2, tmp_path / "two")
        launched.wait_until(lambda least=wanted: rows_done(cache) >= least)
        hits += launched.kill(moments.randrange(2))
        launched.end()
    assert hits > 0
    launched = launch([*words, "resume=latest"], 2, tmp_path / "two")
    assert launched.end() == 0, launched.errors()
    assert files(cache) == files(tmp_path / "cache_alone")
