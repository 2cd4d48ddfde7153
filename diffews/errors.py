"""The one exception that means: the input is wrong, and here is what to do."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, for one-line messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: Any) -> str:
    """Returns a text from data as one that a terminal only shows: control characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shorten(value: Any, most: int = 60) -> str:
    """Returns a value in at most so many characters, for one-line messages."""
    text = printable(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@contextmanager
def refuse(what: str, *kinds: type[Exception], cure: str = "") -> Iterator[None]:
    """Turns an error of these kinds (any, if none is named) into one line: what, why, cure."""
    try:
        yield
    except InputError:
        raise
    except kinds or (Exception,) as error:  # noqa: B030
        raise InputError(f"{what} ({first_line(error)})" + (f"; {cure}" if cure else "")) from error


def result_or_error(function: Callable[[Any], Any], item: Any) -> Any:
    """Returns function(item), or the error that a user can act on.

    A raise in another process would be a traceback.
    """
    try:
        return function(item)
    except (InputError, OSError) as error:
        return error


def unwrap(result: Any) -> Any:
    """Returns what `result_or_error` gave in the main process, or raises the error that it is."""
    if isinstance(result, InputError | OSError):
        raise result
    return result


@contextmanager
def says_how_to_go_on(say: Callable[[], str]) -> Iterator[None]:
    """Gives an interrupt the words that the command line answers it with."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.args = (say(),)
        raise
