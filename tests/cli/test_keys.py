"""Settings: defaults, then YAML, then key=value; a mistake is one line before anything loads."""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from diffews import InputError
from diffews.cli.commands import COMMANDS
from diffews.cli.keys import CHECKOUT, REQUIRED, describe, key, load
from diffews.cli.settings import EpisodesConfig, EvalConfig, SegmentConfig
from diffews.data.lists import read_json_file
from diffews.runtime.files import read_json

CONFIG_CLASSES = [config_class for config_class, _ in COMMANDS.values()]


def required(config_class):
    return [item.name for item in dataclasses.fields(config_class) if item.default == REQUIRED]


def test_the_defaults_are_the_published_protocol():
    config = load(EvalConfig, [])
    assert (config.benchmark, config.shots, config.splits) == ("coco20i", 1, "auto")
    assert (config.threshold, config.threshold_rule) == (None, "reference")  # the weights say
    assert (config.dtype, config.batch, config.device) == ("fp32", 1, "auto")
    assert (config.fold, config.image_size, config.base) == (None, None, None)
    assert Path(config.data) == CHECKOUT / "datasets"


def test_words_win_over_the_file_and_later_ones_over_earlier(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("shots: 5  # supports\nfold: 2\nthreshold: 0.5\n")
    second.write_text("fold: 3\n")
    config = load(
        EvalConfig,
        ["shots=2", f"config={first}", f"config={second}", "threshold=0.1", "threshold=0.3"],
    )
    assert (config.shots, config.fold, config.threshold) == (2, 3, 0.3)


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(EvalConfig, [f"config={tmp_path / 'empty.yaml'}"]) == load(EvalConfig, [])


def test_each_type_is_read_as_what_it_is():
    words = [
        "weight=weight/1",
        "save_masks=true",
        "threshold=1e-1",
        "fold=null",
        "out=a=b",
        "episodes=null",
    ]
    config = load(EvalConfig, words)
    assert (config.weight, config.out) == ("weight/1", "a=b")
    assert (config.save_masks, config.threshold, config.fold, config.episodes) == (
        True,
        0.1,
        None,
        None,
    )


def test_a_path_of_digits_stays_a_path():
    assert load(EvalConfig, ["weight=0123"]).weight == "0123"


@pytest.mark.parametrize(
    "text", ["${HOME}/x", "${oc.env:HOME}", r"\${oc.env:HOME}", r"a\\${x}\$", "${", "${x", "$$"]
)
def test_a_text_with_dollars_stays_that_text(tmp_path, text):
    assert load(EvalConfig, [f"out={text}"]).out == text
    assert load(SegmentConfig, [f"query={text},b.jpg"]).query == [text, "b.jpg"]
    file = tmp_path / "mine.yaml"
    file.write_text(f"out: '{text}'\nnovel: ['{text}', b]\n")
    config = load(EvalConfig, [f"config={file}"])
    assert (config.out, config.novel) == (text, [text, "b"])
    with pytest.raises(InputError, match="shots") as error:
        load(EvalConfig, [f"shots={text}"])
    assert repr(text) in str(error.value)


def test_a_config_is_a_value():
    config = load(EvalConfig, [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.shots = 2
    assert dataclasses.replace(config, shots=2) == load(EvalConfig, ["shots=2"])


def test_a_list_that_is_a_default_is_not_shared():
    @dataclasses.dataclass(frozen=True)
    class Config:
        names: list[str] = key(["a"], "names")

    load(Config, []).names.append("b")
    assert load(Config, []).names == ["a"]


def test_lists_are_separated_by_commas():
    config = load(SegmentConfig, ["support=a.jpg,b.jpg", "mask=a.png", "query=pictures"])
    assert (config.support, config.mask, config.query) == (
        ["a.jpg", "b.jpg"],
        ["a.png"],
        ["pictures"],
    )
    assert load(SegmentConfig, ["query=pictures"]).support == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"cup, mug",plate', ["cup, mug", "plate"]),
        ('plate,"cup, mug"', ["plate", "cup, mug"]),
        ('5" disk,"a', ['5" disk', '"a']),
        (',"",,a,', ["a"]),
    ],
)
def test_a_comma_inside_double_quotes_separates_nothing(text, names):
    assert load(SegmentConfig, [f"classes={text}", "query=pictures"]).classes == names


def test_lists_come_from_a_file_too(tmp_path):
    (tmp_path / "a.yaml").write_text("support: [a.jpg, b.jpg]\n")
    config = load(SegmentConfig, [f"config={tmp_path / 'a.yaml'}", "query=pictures"])
    assert config.support == ["a.jpg", "b.jpg"]


def test_a_misspelt_key_names_the_nearest():
    with pytest.raises(InputError, match="'shot'.*'shots'"):
        load(EvalConfig, ["shot=5"])
    with pytest.raises(InputError, match="'xyzzy'$"):
        load(EvalConfig, ["xyzzy=5"])


def test_a_misspelt_key_of_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("treshold: 0.5\n")
    with pytest.raises(InputError, match=r"mine.yaml: .*'treshold'.*'threshold'"):
        load(EvalConfig, [f"config={file}"])


def test_a_key_of_another_command_is_unknown():
    with pytest.raises(InputError, match="'query'"):
        load(EvalConfig, ["query=a.jpg"])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("shots=five", "shots='five' .*integer"),
        ("shots=1.5", "shots='1.5' .*integer"),
        ("threshold=high", "threshold='high' .*number"),
        ("save_masks=maybe", "save_masks='maybe' .*true or false"),
        ("shots=0", "shots=0 .*1"),
        ("shots=-1", "shots=-1 .*1"),
        ("fold=-1", "fold=-1"),
        ("fold=4", "fold=4.*coco20i.*0 to 3"),
        ("batch=0", "batch=0 .*1"),
        ("workers=-1", "workers=-1 .*0"),
        ("threads=0", "threads=0 .*1"),
        ("episodes=0", "episodes=0 .*1"),
        ("image_size=0", "image_size=0 .*1"),
        ("threshold=1", r"threshold=1.0 .*\[0, 1\)"),
        ("threshold=nan", "threshold=nan"),
        ("dtype=fp8", "dtype='fp8' .*fp32, bf16, fp16"),
        ("benchmark=coco20", "benchmark='coco20' .*did you mean 'coco20i'"),
        ("splits=none", "splits='none' .*auto, folder, builtin"),
        ("threshold_rule=relative", "threshold_rule='relative' "),
        ("batch=all", "batch='all' .*an integer, auto"),
        ("shots", "'shots' .*key=value"),
        ("--shots", "'--shots' .*key=value"),
        ("shots=", "shots='' .*integer"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_and_value(word, says):
    with pytest.raises(InputError, match=says) as error:
        load(EvalConfig, [word])
    assert "\n" not in str(error.value)


def test_options_in_other_programs_ways_are_read_as_key_value():
    words = ["--shots", "5", "--out=a=b", "--image-size", "64", "--save_masks", "true", "fold=1"]
    config = load(EvalConfig, words)
    assert (config.shots, config.out, config.image_size) == (5, "a=b", 64)
    assert config.save_masks and config.fold == 1


@pytest.mark.parametrize("words", [["fast"], ["--fast"], ["--fast", "out=x"], ["--fast", "--tf32"]])
def test_a_switch_alone_is_answered_with_what_to_say(words):
    with pytest.raises(InputError, match="fast' is not key=value; say fast=true"):
        load(EvalConfig, words)


@pytest.mark.parametrize("word", ["shots", "batch", "threshold", "fold", "out", "benchmark"])
def test_numbers_of_5000_digits_and_nul_are_one_line(word, tmp_path):
    for text in ("9" * 5000, "a\0b", "-" * 5000):
        if word != "out" or "\0" in text:
            with pytest.raises(InputError, match=f"{word}=") as error:
                load(EvalConfig, [f"{word}={text}"])
            assert "\n" not in str(error.value)
    file = tmp_path / "mine.yaml"
    file.write_text(f"{word}: {'9' * 5000}")
    with pytest.raises(InputError, match=f"{word}|is no YAML file"):
        load(EvalConfig, [f"config={file}"])


@pytest.mark.parametrize("deep", ["[" * 10_000, "[" * 10_000 + "]" * 10_000])
def test_yaml_and_json_that_are_nested_deep_are_one_line(deep, tmp_path):
    file = tmp_path / "deep.json"
    file.write_text(deep)
    for read in (read_json, read_json_file):
        with pytest.raises(InputError, match=f"{file.name} cannot be read") as error:
            read(file)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="deep.json"):
        load(EvalConfig, [f"config={file}"])


def test_wrong_types_in_a_file_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    for content, says in (
        ("shots: five", "is not an integer"),
        ("weight: [a, b]", "is not a text"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=rf"mine.yaml: .*{says}"):
            load(EvalConfig, [f"config={file}"])


@pytest.mark.parametrize("content", ["- shots\n- fold\n", "just words", "shots: [1"])
def test_a_file_that_holds_no_keys_is_refused(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="mine.yaml") as error:
        load(EvalConfig, [f"config={file}"])
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml: no such file"):
        load(EvalConfig, [f"config={tmp_path / 'none.yaml'}"])
    with pytest.raises(InputError, match="is no YAML file"):
        load(EvalConfig, [f"config={tmp_path}"])


def test_a_key_that_must_be_given_is_asked_for():
    with pytest.raises(InputError, match="query= is missing; "):
        load(SegmentConfig, ["support=a.jpg", "mask=a.png"])


@pytest.mark.parametrize("config_class", CONFIG_CLASSES, ids=lambda c: c.__name__)
def test_help_shows_every_key_with_its_meaning_and_default(config_class):
    text = describe(config_class)
    words = " ".join(text.split())
    for item in dataclasses.fields(config_class):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {item.name}=")]
        shown = line.split()[0]
        assert f"{shown} {item.metadata['text']}" in words
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            assert shown == f"{item.name}={item.default}"
    assert text.startswith(config_class.__doc__.splitlines()[0])


def test_help_shows_keys_in_groups():
    text = describe(EvalConfig)
    groups = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert groups == ["What", "Data", "Model", "Speed and memory", "Output", "Examples"]
    assert text.index("Model:") < text.index("  threshold=") < text.index("Speed and memory:")


def test_help_wraps_words_and_keeps_them_whole():
    @dataclasses.dataclass(frozen=True)
    class Config:
        """Does something."""

        a_name_that_is_longer_than_its_column: str = key("x", "the word that is meant " * 9)
        other: str = key("x", "/" * 120)

    lines = describe(Config).splitlines()
    assert "  a_name_that_is_longer_than_its_column=x" in lines
    assert [line for line in lines if len(line) > 100] == [f"  {'other=x':<26}" + "/" * 120]


@pytest.mark.parametrize("config_class", CONFIG_CLASSES, ids=lambda c: c.__name__)
def test_required_keys_are_asked_for_and_other_defaults_are_valid(config_class):
    names = required(config_class)
    if names:
        with pytest.raises(InputError, match=f"{names[0]}= is missing; "):
            load(config_class, [])
    assert isinstance(load(config_class, [f"{name}=x" for name in names]), config_class)


def test_help_shows_paths_of_the_checkout_without_where_it_lies():
    assert "  data=datasets " in describe(EpisodesConfig)
    assert str(CHECKOUT) not in describe(EpisodesConfig)


@pytest.mark.parametrize(
    "file", sorted((CHECKOUT / "configs").glob("*.yaml")), ids=lambda file: file.name
)
def test_every_file_of_configs_is_valid_for_a_command(file):
    accepted = []
    for config_class in CONFIG_CLASSES:
        words = [f"{name}=x" for name in required(config_class)]
        try:
            accepted.append(load(config_class, [f"config={file}", *words]))
        except InputError:
            continue
    assert accepted


@pytest.mark.parametrize("command", ["eval", "train", "prepare", "check"])
def test_more_workers_than_any_use_is_refused(refused, command):
    words = ["base=b", "out=o"] if command == "train" else []
    assert "workers=500 must be at most" in refused(command, *words, "workers=500")


def test_a_config_that_is_a_fifo_is_not_waited_for(refused, tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    assert f"{tmp_path / 'a.yaml'} is no file" in refused("eval", f"config={tmp_path / 'a.yaml'}")
