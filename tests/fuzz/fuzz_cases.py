"""Fuzz cases: a command, damaged files, changed words; all drawn from a seed."""

import errno
import json
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_mutations import mutate, nasty
from fuzz_world import SECRET, open_case

CODES = (0, 1, 2, 130, 143)
GOLDEN = "weight={}/weight/coco_fold0 base={}/weight/tiny-random-base image_size=64 threads=1"
HEADED = GOLDEN.replace("weight/coco_fold0", "headed") + " fold=0"
WEIGHTS = ["weight/**/*.json", "weight/**/*.safetensors"]
BENCHMARKS = {  # words, and the files that a case may damage
    "coco20i": ("data={}/coco", ["coco/COCO2014/splits/val/*0*", "coco/COCO2014/*/val2014/*"]),
    "pascal5i": ("data={}/bench", ["bench/VOC2012/**/*"]),
    "fss1000": ("data={}/bench", ["bench/FSS-1000/splits/*", "bench/FSS-1000/data/test*/*"]),
    "lvis92i": ("data={}/bench", ["bench/LVIS/*.pkl", "bench/LVIS/coco/val2017/*"]),
    "paco_part": ("data={}/bench", ["bench/PACO-Part/paco/*", "bench/PACO-Part/coco/val2017/*"]),
    "pascal_part": ("data={}/bench", ["bench/Pascal-Part/**/*"]),
    "coco_json": ("annotations={}/own/coco.json images={}/classes folds=2", ["own/coco.json"] * 3),
    "folder": ("data={}/classes folds=2", ["classes/**/*"]),
}
# name of a command -> how often, its words, the files that a case may damage
COMMANDS: dict[str, tuple[float, str, list[str]]] = {
    "segment": (
        3, f"{GOLDEN} support={{}}/own/support.png mask={{}}/own/mask.png query={{}}/own/queries "
        "out={}/out", ["own/*.png", "own/queries/*", *WEIGHTS]),
    "segment bank": (
        2, f"{GOLDEN} bank={{}}/own/bank.safetensors query={{}}/own/queries out={{}}/out",
        ["own/bank.safetensors", "own/bank.safetensors", "own/queries/*"]),
    "segment save_bank": (
        1, f"{GOLDEN} support={{}}/own/support.png,{{}}/own/support.png query={{}}/own/queries "
        "mask={}/own/mask.png,{}/own/mask.png classes=owl,newt save_bank={}/banks out={}/out",
        ["own/*.png"]),
    "segment graphs": (
        2, "weight={}/small/graphs threads=1 support={}/own/support.png mask={}/own/mask.png "
        "query={}/own/queries out={}/out",
        ["small/graphs/export.json", "small/graphs/export.json", "small/graphs/*"]),
    "eval config": (
        2, f"config={{}}/eval.yaml {GOLDEN} data={{}}/coco episodes=2 out={{}}/out",
        ["eval.yaml", "eval.yaml", *WEIGHTS]),
    "eval list": (
        1, f"{GOLDEN} data={{}}/coco episodes=2 workers=0 episodes_file={{}}/own/list.json "
        "out={}/out", ["own/list.json"]),
    "eval resume": (
        2, f"{GOLDEN} data={{}}/coco episodes=4 workers=0 out={{}}/run",
        ["run/*.json", "run/*.jsonl", "run/*.jsonl"]),
    "eval absent": (
        2, f"{HEADED} data={{}}/coco episodes=2 workers=0 absent=true out={{}}/out",
        ["headed/presence/*"]),
    "segment presence": (
        2, f"{HEADED.removesuffix(' fold=0')} support={{}}/own/support.png mask={{}}/own/mask.png "
        "query={}/own/queries out={}/out", ["headed/presence/*"]),
    "train-presence": (
        1, f"{GOLDEN} data={{}}/coco queries=2 workers=0 hidden=2 out={{}}/out",
        ["coco/COCO2014/splits/trn/*0*", *WEIGHTS]),
    "table fs_cs": (1, "runs={}/fs_cs", ["fs_cs/*.json", "fs_cs/*.jsonl"]),
    "table": (2, "runs={}/run", ["run/*.json", "run/*.jsonl"]),
    "figure": (1, "run={}/run out={}/out.png count=1", ["run/*.json", "run/*.jsonl"]),
    "baselines": (
        1, f"{GOLDEN} data={{}}/coco episodes=2 runs={{}}/run out={{}}/out.json",
        ["run/*.json", "run/*.jsonl", "coco/COCO2014/annotations/val2014/*"]),
    "train": (
        2, "config={}/train.yaml base={}/weight/tiny-random-base data={}/coco steps=1 accumulate=1 "
        "device=cpu out={}/out", ["train.yaml", "weight/tiny-random-base/**/*",
                                  "coco/COCO2014/splits/trn/*0*"]),
    "prepare coco20i": (
        2, "data={}/downloads parts=val2014 workers=1 least_pixels=10",
        ["downloads/COCO2014/annotations/*.json"] * 3 + ["downloads/COCO2014/splits/val/*"]),
    "prepare lvis92i": (2, "data={}/downloads parts=val", ["downloads/LVIS/*.json"]),
    "prepare pascal5i": (
        1, "data={}/downloads sbd={}/downloads/sbd workers=1",
        ["downloads/sbd/cls/*", "downloads/VOC2012/SegmentationClass/*"]),
    "init-base": (1, "sd={}/sd out={}/out", ["sd/**/*"]),
    "export": (
        1, "weight={}/weight/coco_fold0 base={}/weight/tiny-random-base out={}/out", WEIGHTS),
    "distill-decoder": (
        0.5, "base={}/weight/tiny-random-base out={}/out steps=1 image_size=64 channels=4",
        ["weight/tiny-random-base/vae/*"]),
}  # fmt: skip
SIZES = ("steps", "batch", "threads", "workers", "count", "ensemble", "episodes", "accumulate")
SIZES += (
    "image_size",
    "config",
    "queries",
    "hidden",
    "way",
)  # without them, or with others, work is long and no hang
WORDS_ONLY = ("make-shapes", "make-tiny-base", "benchmark")  # long where nothing is refused


@dataclass
class Case:
    """A command in its folder, and what was done to it."""

    words: list[str]
    damage: list[str]
    folder: Path
    quiet: bool = True  # whether a child process may take it: nothing but words was changed


@dataclass
class Outcome:
    """What a command did."""

    code: int | None
    out: str
    err: str
    touched: list[str] = field(default_factory=list)  # network, and files outside the case


def make_case(seed: str, world: Path, folder: Path, light: bool = False) -> Case:
    """Draws a case and makes its folder.

    light: leave out what takes more than a fraction of a second, such as training.
    """
    draw = Random(seed)
    choices = dict(COMMANDS)
    for name, (words, files) in BENCHMARKS.items():
        common = f"benchmark={name} {words} fold=0 workers={{}}"
        choices[f"eval {name}"] = (1, f"{common} {GOLDEN} episodes=2 out={{}}/out", files)
        choices[f"check {name}"] = (0.5, common, files)
        choices[f"episodes {name}"] = (0.7, f"{common} save={{}}/out.json", files[:1])
    if light:
        heavy = (
            "train",
            "train-presence",
            "distill-decoder",
            "init-base",
            "check",
            "baselines",
            "figure",
            "export",
        )
        choices = {
            k: (
                weight * (0.3 if k.startswith("eval") else 1),
                words.replace("episodes=2", "episodes=1"),
                files,
            )
            for k, (weight, words, files) in choices.items()
            if k.split()[0] not in heavy
        }
    name = draw.choices(list(choices), [weight for weight, _, _ in choices.values()])[0]
    _, text, patterns = choices[name]
    words = [name.split()[0], *(word.replace("{}", str(folder)) for word in text.split(" "))]
    words = [word.replace(f"workers={folder}", "workers=1") for word in words]
    if name.startswith(("eval", "episodes")):
        words = [word.replace("workers=1", "workers=0") for word in words]
    if name.startswith("episodes"):
        words.remove("workers=0")
    if name.startswith("prepare"):
        words.insert(1, f"benchmark={name.split()[1]}")

    # files, in nine cases of ten
    files: list[str] = []
    if draw.random() < 0.9:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            pattern = draw.choice(patterns)
            found = sorted(str(p.relative_to(world)) for p in world.glob(pattern) if p.is_file())
            files.append(draw.choice(found))
    open_case(world, folder, files + _written(name))
    damage = []
    for file in dict.fromkeys(files):
        if (folder / file).is_file():
            damage.append(mutate(folder / file, draw, folder))

    # words, where no file was damaged and now and then beside
    if not files or draw.random() < 0.1:
        words, done = _change_words(words, draw, light)
        damage.append(done)
    return Case(words, damage, folder, quiet=not files)


def _written(name: str) -> list[str]:
    """The files of the world in whose folders a command writes."""
    if name == "eval resume":
        return ["run/run.json", "run/result.json", "run/episodes.jsonl"]
    if name.startswith("prepare"):
        return [
            "downloads/COCO2014/annotations/instances_val2014.json",
            "downloads/LVIS/lvis_v1_val.json",
            "downloads/VOC2012/SegmentationClass/2007_000001.png",
        ]
    return []


def _change_words(words: list[str], draw: Random, light: bool) -> tuple[list[str], str]:
    """Changes, drops, doubles or adds words of a command line."""
    from diffews.cli import commands
    from diffews.cli.keys import fields_of

    words = list(words)
    if not light and draw.random() < 0.1:
        words = [draw.choice(WORDS_ONLY)]
    known = list(fields_of(commands.COMMANDS[words[0]][0]))
    text = str(nasty(draw))
    text = "nowhere" if text.startswith(("/", "..")) else text  # what a user names may be written
    value = str(draw.choice((text, "a,b", "-1", "1e9", "9" * 5000, "0x10", "١", "1_000")))
    key = draw.choice(known)
    must_stop = words[0] in WORDS_ONLY
    kinds = ("value", "value", "value", "drop", "unknown", "bare", "dashes", "command", "help")
    what = "unknown" if must_stop else draw.choice(kinds)
    if what == "value" and key not in SIZES:
        words.append(f"{key}={value}")
    elif what == "drop":
        may_go = [i for i in range(1, len(words)) if words[i].partition("=")[0] not in SIZES]
        if may_go:
            words.pop(draw.choice(may_go))
    elif what == "unknown":
        words.append(f"{key}x={value}")
    elif what == "bare":
        words.append(draw.choice((key, value, "=", "-", "--", f"{key} {value}")))
    elif what == "dashes":
        words += [f"--{key}", value]
    elif what == "command":
        words[0] = draw.choice((words[0] + "x", value, words[0].upper()))
    elif what == "help":
        words.append("--help")
    return words, f"words {what}: {words[-1][:60]!r}"


# ---- what a command may not do ----


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Returns what is wrong with how a command ended."""
    found = list(outcome.touched)
    if outcome.code not in CODES:
        found.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.err or "Traceback" in outcome.out:
        found.append("a traceback")
    lines = [line for line in outcome.err.replace("\r", "\n").split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("diffews: error:")]
    if len(errors) > 1 or outcome.code == 2 and len(errors) != 1:
        found.append(f"{len(errors)} error lines")
    ours, bar = ("diffews: ", "  "), ("%|", "it/s", "?", "/s]")
    foreign = [
        line
        for line in lines
        if not line.startswith(ours) and not any(word in line for word in bar)
    ]
    if foreign:
        found.append(f"a line that is not ours: {foreign[0][:120]!r}")
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        odd = sorted({c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\r\t"})
        if odd:
            found.append(f"control characters in {name}: {odd}")
    return found + _half_written(case, outcome)


def _half_written(case: Case, outcome: Outcome) -> Iterator[str]:
    found = []
    for file in written_files(case.folder):
        name = file.relative_to(case.folder)
        if file.name.endswith(".partial"):
            found.append(f"{name} is left behind")
        elif file.suffix == ".json" and not any(str(name) in done for done in case.damage):
            try:
                json.loads(file.read_text())
            except (ValueError, RecursionError):
                found.append(f"{name} is half-written")
    words = case.words[0]
    if outcome.code == 2 and words in ("init-base", "export", "distill-decoder"):
        found += [f"{case.folder}/out is there"] * (case.folder / "out").exists()
    return found


def written_files(folder: Path) -> list[Path]:
    """Returns the files of a case that are no links into the world."""
    return sorted(
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if not (Path(place) / name).is_symlink()
    )


# ---- running a command in this process ----


class Guard:
    """Notes network calls, and files outside the case that are written, or secret and read."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.noted: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            target = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
            if isinstance(target, str | bytes) and event == "socket.connect":
                return  # a Unix socket
            self.noted.append(f"a network call: {event} {target}")
            raise OSError("no network here")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            self._opened(os.fsdecode(arguments[0]), arguments[1], arguments[2])
        elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"):
            self._opened(os.fsdecode(arguments[0]), "w", 0)

    def _opened(self, path: str, mode: str | None, flags: int) -> None:
        if "\0" in path:
            return
        real = os.path.realpath(path)
        if f"/{SECRET}/" in real:
            self.noted.append(f"{path} was opened")
        writes = any(c in mode for c in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        fine = (self.allowed, tempfile.gettempdir() + "/torch", "/dev/", "/proc/")
        if writes and not real.startswith(fine) and "__pycache__" not in real:
            self.noted.append(f"{path} was written")
            raise PermissionError(errno.EPERM, "outside the case", path)


@contextmanager
def captured() -> Iterator[dict[str, str]]:
    """Catches what Python and libraries in C write -> the texts, at the end."""
    texts: dict[str, str] = {}
    kept, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for stream in streams:
            stream.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (
            open(fd, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
            for fd in (1, 2)
        )
        try:
            yield texts
        finally:
            for stream in (sys.stdout, sys.stderr):
                if not stream.closed:
                    stream.flush()
            sys.stdout, sys.stderr = streams
            for fd, old in zip((1, 2), kept, strict=True):
                os.dup2(old, fd)
                os.close(old)
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                texts[name] = file.read().decode(errors="surrogateescape")


def run_here(case: Case, guard: Guard) -> Outcome:
    """Runs the command in this process, where the modules are loaded."""
    import traceback

    from accelerate.state import AcceleratorState, PartialState

    from diffews.cli.main import main

    code: int | None = None
    here = os.getcwd()
    os.chdir(case.folder)  # where paths that a word names begin
    with captured() as texts:
        guard.noted, guard.allowed = [], str(case.folder.resolve())
        try:
            code = main(case.words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            guard.allowed = None
    os.chdir(here)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    return Outcome(code, texts["out"], texts["err"], list(dict.fromkeys(guard.noted)))


def remove_case(case: Case) -> None:
    """Removes the case's folder; links are not followed."""
    shutil.rmtree(case.folder, ignore_errors=True)
