"""The command line: `diffews COMMAND [config=FILE] [key=value ...]`. Torch is imported when a command needs it."""

import errno
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffews import __version__
from diffews.cli.commands import COMMANDS
from diffews.cli.settings import describe, load
from diffews.errors import InputError, first_line, nearest

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "run the same command again"
GO_ON = {  # how an interrupted command goes on
    "eval": "the same command goes on from here",
    "train": "the same command with resume=latest goes on from the last checkpoint",
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
    warnings.showwarning = lambda message, *_: print(f"diffews: warning: {message}", file=sys.stderr)
    try:
        with _ended_by_sigterm():
            return _run(words)
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # whoever read our output has seen enough
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
        name, code = ("terminated", 143) if isinstance(interrupt, Terminated) else (
            "interrupted", 130)
        how = interrupt.args[0] if interrupt.args else GO_ON.get(words[0], AGAIN)
        print(f"diffews: {name}; {how}", file=sys.stderr)
        return code

    print(f"diffews: error: {' '.join(message.split())}", file=sys.stderr)
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


def _run(words: list[str]) -> int:
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(usage())
    elif command == "--version":
        print(f"diffews {__version__}")
    elif command not in COMMANDS:
        raise InputError(f"unknown command {command!r}{nearest(command, COMMANDS)}; see diffews --help")
    else:
        config_class, run = COMMANDS[command]
        if any(word in ("-h", "--help") for word in words[1:]):
            print(f"diffews {command} [config=FILE] [key=value ...]\n\n{describe(config_class)}")
        else:
            return run(load(config_class, words[1:])) or 0
    return 0


def usage() -> str:
    """Returns the text of `diffews --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(config.__doc__ or '').splitlines()[0]}" for name, (config, _) in COMMANDS.items()]
    return "\n".join(
        ["diffews COMMAND [config=FILE] [key=value ...]", "", *lines, "", "diffews COMMAND --help shows every key."]
    )
