"""The command line: `diffews COMMAND [config=FILE] [key=value ...]`, and how errors are said."""

import errno
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffews import __version__
from diffews.cli.commands import COMMANDS
from diffews.cli.keys import describe, load, summary
from diffews.errors import InputError, first_line, nearest, printable, shorten

USAGE = "diffews {} [config=FILE] [key=value ...]"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "run the same command again"
GO_ON = {  # how an interrupted command goes on
    "eval": "the same command goes on from here",
    "train": "the same command with resume=latest goes on from the last checkpoint",
    "train-presence": "the same command goes on from here",
    "prepare": "the same command goes on from here",
}


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as a cluster's scheduler does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns the exit code: 0 good, 1 what was tested is not good, 2 bad input (one line on stderr),
    130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = lambda message, *_: print(
        f"diffews: warning: {printable(message)}", file=sys.stderr)
    try:
        with _ended_by_sigterm():
            run, config = read_words(words)
            return run(config) or 0
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()
        return 0
    except OSError as error:
        message = f"{error.filename or 'writing'}: {error.strerror or error}"
        if error.errno in FULL:
            message += f"; free some space, then {GO_ON.get(words[0], AGAIN)}"
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch raises it wherever the process stands
            raise
        message = f"{first_line(error)}; use fewer workers=, or workers=0"
    except KeyboardInterrupt as interrupt:
        is_term = isinstance(interrupt, Terminated)
        how = interrupt.args[0] if interrupt.args else GO_ON.get(words[0], AGAIN)
        print(f"diffews: {'terminated' if is_term else 'interrupted'}; {how}", file=sys.stderr)
        return 143 if is_term else 130

    print(f"diffews: error: {printable(message.strip())}", file=sys.stderr)
    return 2


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the command as Ctrl-C does, so that nothing is left behind."""
    def terminate(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def read_words(words: list[str]) -> tuple[Callable[[Any], int | None], Any]:
    """Returns what to run and with what: a command with its config, or `print` with a text.

    Raises:
        InputError: for an unknown command or key.

    """
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        return print, usage()
    if command == "--version":
        return print, f"diffews {__version__}"
    if command not in COMMANDS:
        close = nearest(command, COMMANDS)
        raise InputError(f"unknown command {shorten(repr(command))}{close}; see diffews --help")

    config_class, run = COMMANDS[command]
    if {"-h", "--help"}.isdisjoint(words):
        return run, load(config_class, words[1:])
    return print, f"{USAGE.format(command)}\n\n{describe(config_class)}"


def usage() -> str:
    """Returns the text of `diffews --help`."""
    lines = [f"  {name:<15}  {summary(config)}" for name, (config, _) in COMMANDS.items()]
    return "\n".join([
        USAGE.format("COMMAND"), "", *lines, "",
        "diffews COMMAND --help shows every key, and examples."])
