"""100 cases of the fuzzer; `bash scripts/fuzz.sh` runs 2,000, of all commands."""

import pytest
from fuzz_cases import Guard, Outcome, faults, make_case, remove_case, run_here
from fuzz_world import make_world

from diffews.runtime.files import write_atomic

SEED = "tests"


@pytest.fixture(scope="session")
def guard():
    return Guard()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("fuzz") / "world")


@pytest.mark.parametrize("tens", range(10))
def test_damaged_files_and_odd_words_end_in_one_line(tens, world, guard, tmp_path):
    for index in range(10 * tens, 10 * tens + 10):
        case = make_case(f"{SEED}/{index}", world, tmp_path / str(index), light=True)
        outcome = run_here(case, guard)
        assert not faults(case, outcome), (index, case, outcome)
        remove_case(case)


def test_faults_are_found(world, guard, tmp_path):
    case = make_case(f"{SEED}/0", world, tmp_path / "case", light=True)
    good = Outcome(2, "", "diffews: error: x\n")
    assert not faults(case, good)
    bad = {
        "exit code 3": Outcome(3, "", "diffews: error: x\n"),
        "a traceback": Outcome(2, "", "diffews: error: Traceback (most\n"),
        "2 error lines": Outcome(2, "", "diffews: error: x\ndiffews: error: y\n"),
        "0 error lines": Outcome(2, "", ""),
        "not ours": Outcome(0, "", "some library speaks\n"),
        "control characters": Outcome(0, "\x1b[31m", ""),
        "a network call": Outcome(0, "", "", ["a network call: x"]),
    }
    for says, outcome in bad.items():
        assert any(says in fault for fault in faults(case, outcome)), says
    write_atomic(case.folder / "out" / "result.json", "{")
    assert any("half-written" in fault for fault in faults(case, good))
    (case.folder / "out" / ".x.1.partial").write_text("")
    assert any("left behind" in fault for fault in faults(case, good))


def test_the_guard_sees_the_network_and_files_outside_the_case(guard, tmp_path):
    import socket

    (tmp_path / "secret").mkdir()
    guard.noted, guard.allowed = [], str(tmp_path / "case")
    try:
        with pytest.raises(OSError):
            socket.create_connection(("192.0.2.1", 80), timeout=0.1)
        with pytest.raises(PermissionError):
            (tmp_path / "outside.txt").write_text("x")
        with pytest.raises(OSError):
            open(tmp_path / "secret" / "x").close()
    finally:
        guard.allowed = None
    for word in ("network", "outside.txt was written", "secret/x was opened"):
        assert any(word in note for note in guard.noted), word
