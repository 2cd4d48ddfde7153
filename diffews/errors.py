"""The one exception that means: the input is wrong, and here is what to do."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def returned(function: Callable[[Any], Any], item: Any) -> Any:
    """Returns function(item), or the error that a user can act on: a raise in another process would be a traceback."""
    try:
        return function(item)
    except (InputError, OSError) as error:
        return error


def raised(result: Any) -> Any:
    """Returns what `returned` gave in the main process, or raises the error that it is."""
    if isinstance(result, InputError | OSError):
        raise result
    return result
