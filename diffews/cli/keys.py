"""The machinery of settings: what a key is, and how a config is read, checked and explained.

The keys themselves, with their defaults and meanings, stand in `settings.py`. A config is a frozen
dataclass of keys: defaults, then a YAML file, then key=value; later ones win, unknown keys are
errors.
"""

import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffews.errors import InputError, nearest, shorten
from diffews.runtime.files import CHECKOUT as CHECKOUT
from diffews.runtime.files import check_regular
from diffews.runtime.workers import check_workers

BYTES: Literal["bytes"] = "bytes"
GROUPS = ("What", "Data", "Model", "Training", "Speed and memory", "Output")  # of keys, in --help
SWITCH = ("true", "false")
WIDTH, COLUMN = 100, 28  # of --help, and where the meanings start
DOLLAR = "\ue000"  # stands for $ inside omegaconf, which would take ${...} for a reference
Config = TypeVar("Config")


def key(
    default: Any, text: str, choices: Iterable[str | None] = (), least: float | None = None,
    group: str = "What", changes_result: bool | Literal["bytes"] = True,
    counted_as: str | None = None,
) -> Any:
    """Declares one setting.

    Arguments:
        default: its value if none is given; REQUIRED if one must be.
        text: its meaning, with the unit.
        choices: the words that it takes; any where there are none.
        least: the smallest number that it takes.
        group: the heading under which --help shows it, one of GROUPS.
        changes_result: whether runs that differ in it are different runs. True: they are, and
            do not go into one row of a table. BYTES: they are, but only rounding or what is
            counted beside differs, so that a table may join them. False: they are not, and a run
            that goes on may change it. Read by `counted_values`, for the identity of a run, and by
            `entries_of_scores`, for the rows of a table.
        counted_as: the entry of a run's identity that is compared instead of the value, such as
            the hash of the files that a path leads to.

    """
    metadata = {
        "text": text, "choices": tuple(choices), "least": least, "group": group,
        "changes_result": changes_result, "counted_as": counted_as}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


# the kinds of keys: their group, and what they change
data_key = partial(key, group="Data")
list_key = partial(data_key, counted_as="list_sha256")  # leads to a list of episodes or pictures
model_key = partial(key, group="Model")
training_key = partial(key, group="Training")
speed_key = partial(key, group="Speed and memory")
rounding_key = partial(speed_key, changes_result=BYTES)
output_key = partial(key, group="Output", changes_result=False)  # what is written, when and where


def fields_of(config: object) -> dict[str, Field]:
    """Returns the keys of a config or config class by name."""
    return {item.name: item for item in fields(config)}  # type: ignore[arg-type]


def entries_of_scores(config: object) -> list[str]:
    """Returns the entries of a run's identity in which runs of one table row must agree."""
    return list(dict.fromkeys(
        item.metadata["counted_as"] or name for name, item in fields_of(config).items()
        if item.metadata["changes_result"] is True))


# ---- reading ----


def load(config_class: type[Config], arguments: Sequence[str]) -> Config:
    """Builds a config from `key=value` words; `config=FILE` names a YAML file that comes before.

    Raises:
        InputError: for an unknown key (naming the nearest one), a wrong type, a value out of
            range, or a required key that is not given.

    """
    known = fields_of(config_class)
    files: list[str] = []
    words: dict[str, Any] = {}
    for name, text in _pairs(arguments, known):
        if name == "config":
            files.append(text)
        else:
            words[name] = _parse(text, known.get(name))

    return build(
        config_class, [*((file, _read_yaml(file)) for file in files), ("command line", words)])


def build(
    config_class: type[Config], sources: Sequence[tuple[str, Mapping[str, Any]]]
) -> Config:
    """Builds a config from values, each source of which has a name; see `load`."""
    known = fields_of(config_class)

    # one value after the other, so that an error can say where the value stands
    merged = OmegaConf.structured(config_class)
    OmegaConf.set_readonly(merged, False)  # the configs themselves are frozen
    for source, values in sources:
        for name, value in values.items():
            if name not in known:
                close = nearest(name, known)
                raise InputError(f"{source}: unknown key {shorten(repr(name))}{close}")
            try:
                OmegaConf.update(merged, name, _without_dollars(value), merge=False)
            except OmegaConfBaseException:
                wrong = f"{name}={shorten(repr(_plain(value)))} is not {_type_name(known[name])}"
                raise InputError(f"{source}: {wrong}") from None

    for name, item in known.items():
        if OmegaConf.is_missing(merged, name):
            raise InputError(f"{name}= is missing; {item.metadata['text']}")
    config = config_class(**{str(k): _plain(v) for k, v in OmegaConf.to_container(merged).items()})
    _check(config, known)
    return config


def _pairs(arguments: Sequence[str], known: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    """Yields key and text of `key=value`, `--key=value` and `--key value`."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            name = name.replace("-", "_")

        # a switch takes no other word than a truth value
        is_switch = name in known and _types(known[name])[0] is bool
        takes_next = bool(words) and not words[0].startswith("--") and (
            not is_switch or words[0].lower() in (*SWITCH, *known[name].metadata["choices"]))
        if not equals and word.startswith("--") and takes_next:
            equals, text = "=", words.pop(0)
        if not equals:
            cure = f"; say {name}={'true' if is_switch else '...'}" if name in known else ""
            raise InputError(f"{shorten(repr(word))} is not key=value{cure}")
        yield name, text


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        check_regular(file)
        content = OmegaConf.create(Path(file).read_text().replace("$", DOLLAR))
    except FileNotFoundError:
        raise InputError(f"config={file}: no such file") from None
    except Exception as error:  # yaml's errors have no common base with omegaconf's
        reason = " ".join(str(error).replace(DOLLAR, "$").split())
        raise InputError(f"config={file} is no YAML file ({reason})") from None
    values = OmegaConf.to_container(content)
    if not isinstance(values, dict):
        raise InputError(f"config={file} holds no keys")
    return {str(_plain(name)): value for name, value in values.items()}


def _without_dollars(value: Any) -> Any:
    """Hides a text's dollars from omegaconf, which would take ${...} for a reference."""
    if isinstance(value, list):
        return [_without_dollars(item) for item in value]
    return value.replace("$", DOLLAR) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Gives texts their dollars back, which omegaconf must not see."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.replace(DOLLAR, "$") if isinstance(value, str) else value


def _types(item: Field) -> tuple[Any, ...]:
    hint = item.type
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _type_name(item: Field) -> str:
    names = {
        int: "an integer", float: "a number", bool: "true or false", str: "a text",
        list[int]: "integers"}
    return names.get(_types(item)[0], "a list")


def _parse(text: str, item: Field | None) -> Any:
    """Reads a command-line value as the key's type says; texts are taken as they stand."""
    kinds = _types(item) if item is not None else (str,)
    if text == "null" and type(None) in kinds:
        return None
    if kinds[0] is int and str in kinds and re.fullmatch(r"-?\d{1,18}", text):  # or a word: auto
        return int(text)
    if kinds[0] is bool and str in kinds and text.lower() in SWITCH:  # or a word: auto
        return text.lower() == "true"
    if typing.get_origin(kinds[0]) is list:
        # a comma inside double quotes is part of a name: classes='"cup, mug",plate'
        words = re.findall(r'"([^"]*)"(?=,|$)|([^,]+)', text)
        return [quoted or plain for quoted, plain in words if quoted or plain]
    return text


def _check(config: Any, known: dict[str, Field]) -> None:
    """Raises InputError for a value that its key or the config's own checks do not take."""
    for name, item in known.items():
        value, kinds = getattr(config, name), _types(item)
        if any("\0" in str(text) for text in (value if isinstance(value, list) else [value])):
            raise InputError(f"{name}={value!r} holds a NUL character")
        choices, least = item.metadata["choices"], item.metadata["least"]
        is_other = isinstance(value, int) and type(value) in kinds  # than the choices' words
        if choices and value not in choices and not is_other:
            words = ["an integer"] * (int in kinds) + list(SWITCH) * (bool in kinds)
            words += [word for word in choices if word]
            allowed = ", ".join(words) + nearest(str(value), words)
            raise InputError(f"{name}={value!r} is not one of {allowed}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}={value} is not a finite number")
        if least is not None and isinstance(value, int | float) and value < least:
            raise InputError(f"{name}={value} must be at least {least}")
    check_workers(getattr(config, "workers", 0))

    # each class checks its keys, and those that it inherits are checked by their class
    for part in type(config).__mro__:
        if "check" in vars(part):
            vars(part)["check"](config)


# ---- --help ----


def describe(config_class: type) -> str:
    """Returns the --help text: what the command does, every key in its group, and examples.

    The first line of the class's docstring says what the command does, the others are examples.
    """
    known = fields_of(config_class).items()
    file = _entry("config=FILE", "YAML file of the keys below; key=value wins")
    parts = [summary(config_class), file]
    for group in GROUPS:
        entries = [
            _entry(f"{name}={_default(item)}", item.metadata["text"] + _choices(item))
            for name, item in known if item.metadata["group"] == group]
        if entries:
            parts.append("\n".join([f"{group}:", *entries]))
    parts.append("\n".join(["Examples:", *(f"  {example}" for example in examples(config_class))]))
    return "\n\n".join(parts)


def summary(config_class: type) -> str:
    """Returns the line that says what a command does."""
    return (config_class.__doc__ or "").splitlines()[0]


def examples(config_class: type) -> list[str]:
    """Returns the command lines that a config's docstring shows."""
    return [line.strip() for line in (config_class.__doc__ or "").splitlines()[1:] if line.strip()]


def _entry(shown: str, text: str) -> str:
    """A key with its default, and its meaning beside it; below, where the key is long."""
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False)
    if len(shown) <= COLUMN - 4:
        lines[0] = f"  {shown:<{COLUMN - 2}}" + lines[0]
    else:
        lines.insert(0, f"  {shown}")
    return f"\n{'':<{COLUMN}}".join(lines)


def _default(item: Field) -> str:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    if isinstance(default, list):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default in (None, REQUIRED) else str(default).removeprefix(f"{CHECKOUT}/")


def _choices(item: Field) -> str:
    words = [word for word in item.metadata["choices"] if word]
    return f" ({' | '.join(words)})" if len(words) > 1 else ""
