"""Typed settings: dataclass defaults, then a YAML file, then key=value; later ones win, unknown keys are errors."""

import math
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffews.errors import InputError, nearest

CHECKOUT = Path(__file__).resolve().parents[2]
Config = TypeVar("Config")


def key(default: Any, text: str, choices: Iterable[str | None] = (), least: float | None = None) -> Any:
    """Declares one setting: default, meaning (with its unit), allowed words, smallest number."""
    metadata = {"text": text, "choices": tuple(choices), "least": least}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def load(config_class: type[Config], arguments: Sequence[str]) -> Config:
    """Builds a config from `key=value` words; `config=FILE` names a YAML file that comes before them.

    Raises:
        InputError: for an unknown key (naming the nearest one), a wrong type, or a value out of range.

    """
    known = {item.name: item for item in fields(config_class)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    files: list[str] = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} is not key=value")
        if name == "config":
            files.append(text)
        else:
            values[name] = _parse(text, known[name]) if name in known else text
    merged = OmegaConf.structured(config_class)
    sources = [(str(file), _read_yaml(file)) for file in files] + [("command line", values)]
    for source, content in sources:
        for name, value in content.items():
            if name not in known:
                raise InputError(f"{source}: unknown key {name!r}{nearest(str(name), known)}")
            try:
                merged = OmegaConf.merge(merged, {name: value})
            except OmegaConfBaseException:
                raise InputError(f"{source}: {name}={value!r} is not {_type_name(known[name])}") from None
    lacking = [name for name in known if OmegaConf.is_missing(merged, name)]
    if lacking:
        raise InputError(f"{lacking[0]}= is missing; {known[lacking[0]].metadata['text']}")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from None
    _check(config, known)
    return config


def fields_of(config: object) -> dict[str, Field]:
    """Returns the declared settings of a config or config class by name."""
    return {item.name: item for item in fields(config)}  # type: ignore[arg-type]


def describe(config_class: type) -> str:
    """Returns the --help text: what the command does, and every key with its meaning and default."""
    lines = [(config_class.__doc__ or "").strip(), "", "  config=FILE  YAML file of the keys below; key=value wins"]
    for name, item in fields_of(config_class).items():
        default = item.default if item.default_factory is MISSING else item.default_factory()
        words = item.metadata["choices"]
        shown = f"  {name}={_show(default)}  {item.metadata['text']}"
        lines.append(shown + (f" ({' | '.join(map(str, filter(None, words)))})" if words else ""))
    return "\n".join(lines)


def _show(default: Any) -> str:
    if isinstance(default, str) and default.startswith(str(CHECKOUT)):
        return str(Path(default).relative_to(CHECKOUT))
    if isinstance(default, list):
        return ",".join(default)
    return "" if default in (None, REQUIRED) else str(default).lower() if isinstance(default, bool) else str(default)


def _types(item: Field) -> tuple[Any, ...]:
    hint = item.type
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _type_name(item: Field) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", list[int]: "integers"}
    return names.get(_types(item)[0], "a list")


def _parse(text: str, item: Field) -> Any:
    """Reads a command-line value as the key's type says; texts are taken as they stand."""
    kind = _types(item)[0]
    if text == "null" and type(None) in _types(item):
        return None
    if kind is int and str in _types(item):  # a number, or a word such as auto
        return int(text) if text.lstrip("-").isdecimal() else _literal(text)
    if kind is str:
        return _literal(text)
    if typing.get_origin(kind) is list:
        return [_literal(word) for word in text.split(",") if word]
    return text


def _literal(text: str) -> str:
    return text.replace("${", r"\${")  # a path is no interpolation


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError:
        raise InputError(f"config={file}: no such file") from None
    except Exception as error:  # yaml's errors have no common base with omegaconf's
        raise InputError(f"config={file} is no YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"config={file} holds no keys")
    return {str(name): _as_it_stands(value) for name, value in content.items()}


def _as_it_stands(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_it_stands(item) for item in value]
    return _literal(value) if isinstance(value, str) else value


def _check(config: Any, known: dict[str, Field]) -> None:
    for name, item in known.items():
        value = getattr(config, name)
        choices, least = item.metadata["choices"], item.metadata["least"]
        is_number = isinstance(value, int) and int in _types(item)
        if choices and value not in choices and not is_number:
            words = ["an integer" * (int in _types(item)), *(word for word in choices if word)]
            words = [word for word in words if word]
            raise InputError(f"{name}={value!r} is not one of {', '.join(words)}{nearest(str(value), words)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}={value} is not a finite number")
        if least is not None and value is not None and not isinstance(value, str) and value < least:
            raise InputError(f"{name}={value} must be at least {least}")
    for part in type(config).__mro__:
        if "check" in vars(part):
            vars(part)["check"](config)
