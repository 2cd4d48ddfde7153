"""The script that proves that a change changed no number."""

import subprocess
import sys
from pathlib import Path

import pytest
import same

import diffews

CHECKOUT = Path(diffews.__file__).parent.parent


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([b"1\n", b"2\n"], [b"1\n", b"2\n"], ""),
        ([b"1\n", b"2\n"], [b"1\n", b"3\n"], "line 2"),
        ([b"1\n", b"2\n"], [b"1\n"], "2 lines there, 1 here"),
        ([], [], "nothing was written"),
    ],
)
def test_the_first_difference_is_named(before, after, said):
    found = same.first_difference(before, after)
    assert said in found and bool(found) == bool(said)


def test_an_unknown_commit_is_refused_before_anything_runs():
    words = [sys.executable, str(CHECKOUT / "scripts" / "same.py"), "no-such-commit"]
    outcome = subprocess.run(words, text=True, capture_output=True)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert "no-such-commit" in outcome.stderr or "not a git repository" in outcome.stderr


@pytest.mark.slow
def test_a_commit_equals_itself():
    if not (CHECKOUT / ".git").exists():
        pytest.skip("needs the repository")
    words = [sys.executable, str(CHECKOUT / "scripts" / "same.py"), "HEAD", "--quick"]
    outcome = subprocess.run(words, text=True, capture_output=True)
    assert outcome.returncode in (0, 1), outcome.stderr  # 1 if the working tree holds changes
    assert outcome.stdout.count("lines") == 3
