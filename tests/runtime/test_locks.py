"""One folder, one writer: real processes, one of which holds a folder, lives, ends or is killed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import diffews
from diffews import InputError
from diffews.runtime.files import new_folder, write_atomic
from diffews.runtime.locks import one_writer

HOLD = """
import sys, time
from pathlib import Path
from diffews.runtime.locks import one_writer
with one_writer(Path(sys.argv[1]), new=sys.argv[2] == "new"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """hold(out, new): another process that has the folder; it ends when its input does."""
    started = []

    def call(out, new=False):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(out), "new" if new else ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(diffews.__file__).parent.parent)},
        )
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("new", [False, True])
def test_a_second_writer_is_told_who_writes_and_leaves_everything(tmp_path, hold, new):
    out = tmp_path / "a" / "out"
    first = hold(out, new)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):  # what the refused one does at its end frees nothing
        with pytest.raises(InputError) as error, one_writer(out, new):
            pass
        assert str(first.pid) in str(error.value) and socket.gethostname() in str(error.value)
        assert str(out) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before

    first.communicate()
    with one_writer(out, new):
        pass
    assert not any(tmp_path.iterdir())  # nothing was written, so nothing is left


def test_the_lock_of_a_killed_process_is_taken_over_and_its_half_files_removed(tmp_path, hold):
    out = tmp_path / "out"
    first = hold(out)
    (out / "masks").mkdir()
    for name in (".run.json.7.partial", "masks/.0.png.7.partial", "kept"):
        (out / name).write_text("half")
    (out / ".checkpoint-3.7.partial").mkdir()
    (out / ".checkpoint-3.7.partial" / "file").write_text("half")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with one_writer(out):
        assert sorted(path.name for path in out.iterdir()) == [".lock", "kept", "masks"]
        assert not any((out / "masks").iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["kept", "masks"]


def test_a_folder_to_be_made_is_kept_until_it_is_there(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.7.partial").mkdir()
    (tmp_path / ".output.7.partial").mkdir()  # of another
    with one_writer(out, new=True), new_folder(out) as folder:
        assert str(os.getpid()) in folder.name
        (folder / "file").write_text("words")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".output.7.partial", "out"]
    with pytest.raises(InputError, match=f"out={out} exists"), one_writer(out, new=True):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("words")
    with pytest.raises(InputError, match="is a file"), one_writer(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "words"


def test_names_may_be_as_long_as_the_system_lets_them(tmp_path):
    name = "ä" * 125  # 250 bytes
    write_atomic(tmp_path / name, "words")
    assert (tmp_path / name).read_text() == "words"
    with one_writer(tmp_path / f"{name}b", new=True), new_folder(tmp_path / f"{name}b") as folder:
        (folder / "file").write_text("words")
    assert len(list(tmp_path.iterdir())) == 2


def test_files_may_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "file", "words")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
