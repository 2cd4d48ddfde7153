"""The command line: help, episodes as JSON, exit codes; nothing waits for torch without need."""

import json
import os
import subprocess
import sys

import pytest

import diffews
from diffews.cli.commands import COMMANDS
from diffews.cli.keys import CHECKOUT, load
from diffews.cli.settings import EpisodesConfig
from diffews.data.registry import load_benchmark


def test_help_names_every_command(run):
    for words in (["--help"], ["-h"], ["help"], []):
        outcome = run(*words)
        assert outcome.code == 0 and outcome.err == ""
        for command in COMMANDS:
            assert f"\n  {command} " in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_its_keys(run, command):
    for words in ((command, "--help"), (command, "-h"), (command, "out=x", "--help")):
        outcome = run(*words)
        assert outcome.code == 0 and outcome.err == ""
        assert outcome.out.startswith(f"diffews {command} [config=FILE] [key=value ...]")
        for key in COMMANDS[command][0].__dataclass_fields__:
            assert f"\n  {key}=" in outcome.out


@pytest.mark.parametrize("words", [("--help",), *((command, "--help") for command in COMMANDS)])
def test_help_fits_into_a_hundred_columns(run, words):
    assert max(map(len, run(*words).out.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_two_examples_that_the_command_takes(run, command):
    config_class = COMMANDS[command][0]
    shown = run(command, "--help").out.split("Examples:\n")[1].splitlines()
    assert len(shown) == 2
    for example in shown:
        words = example.replace("config=", f"config={CHECKOUT}/").split()
        assert words[:2] == ["diffews", command]
        load(config_class, words[2:])


def test_the_version(run):
    assert run("--version").out == f"diffews {diffews.__version__}\n"


def test_an_unknown_command_names_the_nearest(refused):
    message = refused("evaluate")
    assert "'evaluate'" in message and "did you mean 'eval'?" in message
    message = refused("xyzzy")
    assert "'xyzzy'" in message and "did you mean" not in message


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_key_is_refused_by_every_command(refused, command):
    message = refused(command, "xyzzy=1")
    assert "command line" in message and "'xyzzy'" in message


def test_a_misspelt_key_of_a_file_is_refused(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("shot: 5\n")
    message = refused("eval", f"config={tmp_path / 'mine.yaml'}")
    assert "mine.yaml" in message and "'shot'" in message and "'shots'" in message


# ---- episodes ----


def test_episodes_are_json_and_nothing_else(run, coco):
    outcome = run("episodes", f"data={coco}", "fold=2", "shots=3", "episodes=5")
    assert outcome.code == 0
    drawn = load_benchmark("coco20i", coco, fold=2, shots=3).episodes[:5]
    assert json.loads(outcome.out) == [episode.names() for episode in drawn]


def test_episodes_need_no_pictures(run, expected, tmp_path):
    outcome = run("episodes", f"data={tmp_path}", "benchmark=coco20i", "fold=1", "shots=5")
    golden = expected("real_episodes").json["coco_fold1_5shot"]
    episodes = json.loads(outcome.out)
    assert (
        len(episodes) == 1000
        and episodes[:5] == golden["first"]
        and episodes[-1:] == golden["last"]
    )


def test_episodes_of_lists_that_are_not_there_are_refused(refused, tmp_path):
    assert "splits=folder" in refused("episodes", f"data={tmp_path}", "splits=folder")
    message = refused("episodes", "fold=4")
    assert "fold=4" in message and "coco20i" in message and "0 to 3" in message


# ---- folds ----


def test_the_fold_is_read_from_the_name_of_a_linked_weight_dir(run, golden_words, weight, tmp_path):
    (tmp_path / "coco_fold1").symlink_to(weight)
    out = tmp_path / "out"
    assert (
        run(*golden_words, f"weight={tmp_path / 'coco_fold1'}", "episodes=1", f"out={out}").code
        == 0
    )
    assert json.loads((out / "result.json").read_text())["fold"] == 1


@pytest.mark.parametrize("name", ["mine_fold2", "coco_fold2_5shot", "checkpoint"])
def test_the_fold_comes_from_the_name_or_from_the_record(
    run, golden_words, own_weight, tmp_path, name
):
    folder = own_weight.rename(own_weight.with_name(name))
    if "fold" not in name:
        (folder / "diffews.json").write_text(json.dumps({"fold": 2}))
    out = tmp_path / "out"
    assert run(*golden_words, f"weight={folder}", "episodes=1", f"out={out}").code == 0
    assert json.loads((out / "result.json").read_text())["fold"] == 2


def test_a_given_fold_wins_over_the_name(run, golden_words, tmp_path):
    assert run(*golden_words, "fold=3", "episodes=1", f"out={tmp_path / 'out'}").code == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["fold"] == 3


# ---- the package ----


def test_interrupted_runs_say_so(run, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "episodes", (EpisodesConfig, interrupted))
    outcome = run("episodes")
    assert outcome.code == 130 and outcome.err.startswith("diffews: interrupted")


def test_names_are_exported_when_they_are_used():
    for name in diffews.__all__:
        assert getattr(diffews, name) is not None
    assert set(diffews.__all__) <= set(dir(diffews))
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = diffews.Pipeline


QUICK = """
import contextlib, io, sys
import diffews
from diffews.cli.main import main
for line in sys.stdin:
    *words, code = line.split()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        got = main(words)
    assert got == int(code), (words, got)
    loaded = {"torch", "diffusers", "transformers"} & set(sys.modules)
    assert not loaded, (words, loaded)
"""


def test_help_episodes_and_mistakes_do_not_wait_for_torch(weight, base, coco, tmp_path):
    commands = [
        "--help 0",
        *(f"{command} --help 0" for command in COMMANDS),
        "episodes fold=3 shots=5 0",
        f"episodes data={coco} 0",
        "evul 2",
        "eval shot=1 2",
        "eval shots=0 2",
        "eval fold=4 2",
        f"eval config={tmp_path}/none.yaml 2",
        f"eval weight={tmp_path}/none 2",
        f"eval weight={weight} 2",
        f"eval weight={weight} base={base} image_size=60 2",
        f"eval weight={weight} base={base} data={tmp_path}/none 2",
        "segment 2",
        "init-base 2",
    ]
    process = subprocess.run(
        [sys.executable, "-c", QUICK],
        input="\n".join(commands),
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert process.returncode == 0, process.stderr


def test_python_m_diffews_is_the_command(tmp_path):
    def call(*words):
        return subprocess.run(
            [sys.executable, "-m", "diffews", *words],
            text=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            cwd=tmp_path,
        )

    assert call("--version").stdout == f"diffews {diffews.__version__}\n"
    bad = call("eval", "shot=1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("diffews: error: ") and "'shot'" in bad.stderr
    assert bad.stderr.count("\n") == 1


def test_control_characters_and_newlines_of_names_are_shown_as_text(refused, tmp_path):
    """A newline in a name makes no second line, an escape sequence colours nothing."""
    for name in ("red\x1b[31m", "two\nlines", "back\u202ewards", "bell\x07"):
        message = refused("eval", f"weight={tmp_path / name}", "fold=0")
        shown = name.encode("unicode_escape").decode()
        assert shown in message and name not in message
