"""Fuzzes every command: damaged files and odd words, and checks how each command ends.

bash scripts/fuzz.sh [SEED] [--cases N] [--only INDEX] [--processes P]

A case fails on a traceback, an exit code other than 0, 1, 2, 130 and 143, more than one error line,
something half-written, 60 s without an end, control characters in the output, a network call, a
file outside its folder, or a result that depends on what memory held before (MALLOC_PERTURB_).
Prints every failure with the words that repeat it, and the totals; exit code 1 if there are any.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from fuzz_cases import (  # noqa: E402
    Case,
    Guard,
    Outcome,
    faults,
    make_case,
    remove_case,
    run_here,
    written_files,
)
from fuzz_world import make_world  # noqa: E402

HANG = 60  # seconds
OWN_PROCESS = 100  # one case in so many runs in a process of its own
LOADED = (
    "diffews.evaluation.evaluate",
    "diffews.evaluation.figures",
    "diffews.evaluation.baselines",
    "diffews.training.train",
    "diffews.tools.init_base",
    "diffews.tools.distill",
    "diffews.data.prepare",
    "diffews.data.check",
    "scipy.io",
    "torch._dynamo",
)
MEMORY = 12 << 30  # bytes of address space that a command may take
TIMES = re.compile(rb'"(episodes_per_second|seconds|time)": [^,}\n]*')


class Server:
    """A process with the modules loaded, which runs cases one after the other."""

    def __init__(self, world: Path, perturb: int) -> None:
        self.world, self.perturb, self.process = world, perturb, None

    def ask(self, request: dict) -> dict:
        """Runs a case; a process that hangs or dies is replaced."""
        if self.process is None:
            environment = {**os.environ, "MALLOC_PERTURB_": str(self.perturb)}
            words = [sys.executable, __file__, "--serve", str(self.world)]
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
            )
            self.process.stdout.readline()  # it is ready
        with contextlib.suppress(BrokenPipeError):  # it died, as its empty answer says
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answer = self.process.stdout.readline() if selector.select(HANG) else None
        if not answer:
            fault = "a hang" if answer is None else f"the process died: {self.process.wait()}"
            self.stop()
            return {"faults": [fault], "code": None, "digest": None, "said": ""}
        return json.loads(answer)

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def serve(world: Path) -> None:
    """Answers requests on stdin: a line of JSON each."""
    import importlib
    import resource

    import torch

    for module in LOADED:  # before the clock of a case runs
        importlib.import_module(module)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers, guard = os.fdopen(os.dup(1), "w"), Guard()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        case = make_case(request["seed"], world, Path(request["folder"]))
        outcome = run_here(case, guard)
        told = answer(case, outcome)
        remove_case(case)  # the next process takes the same folder
        print(json.dumps(told), file=answers, flush=True)


def answer(case: Case, outcome: Outcome) -> dict:
    """What the driver is told of a case."""
    digest = hashlib.sha256(outcome.out.encode(errors="surrogateescape"))
    for file in written_files(case.folder):
        if file.is_file():
            digest.update(str(file.relative_to(case.folder)).encode(errors="surrogateescape"))
            content = file.read_bytes()
            if file.suffix == ".safetensors":  # its writer orders the metadata as it likes
                content = bytes(sorted(content[:4096])) + content[4096:]
            digest.update(TIMES.sub(b"", content))
    return {
        "faults": faults(case, outcome),
        "code": outcome.code,
        "digest": digest.hexdigest(),
        "words": case.words,
        "damage": case.damage,
        "said": (outcome.out[-200:] + outcome.err[-1500:]),
    }


def run_alone(seed: str, world: Path, folder: Path) -> dict:
    """Runs a case in a process of its own."""
    case = make_case(seed, world, folder)
    if any("\0" in word or word.encode(errors="ignore").decode() != word for word in case.words):
        remove_case(case)  # no command line can hold it
        return {"faults": [], "code": None, "digest": None, "said": ""}
    words = [sys.executable, "-m", "diffews", *case.words]
    try:
        done = subprocess.run(
            words, capture_output=True, timeout=HANG, cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)},
        )  # fmt: skip
        out, err = (part.decode(errors="surrogateescape") for part in (done.stdout, done.stderr))
        told = answer(case, Outcome(done.returncode, out, err))
    except subprocess.TimeoutExpired:
        told = answer(case, Outcome(2, "", "diffews: error: hang"))
        told["faults"] = ["a hang"]
    remove_case(case)
    return told


def drive(indices: list[int], seed: str, world: Path, folder: Path, results: list) -> None:
    """Runs cases; those that end well a second time with other bytes in fresh memory."""
    perturbed, plain = Server(world, 77), Server(world, 0)
    for index in indices:
        name, place = f"{seed}/{index}", folder / "cases" / str(index)
        if index % OWN_PROCESS == 50:
            told = run_alone(name, world, place)
        else:
            request = {"seed": name, "folder": str(place)}
            told = perturbed.ask(request)
            if told["code"] in (0, 1) and not told["faults"]:
                again = plain.ask(request)
                if (again["code"], again["digest"]) != (told["code"], told["digest"]):
                    told["faults"].append("the result depends on what memory held before")
        results.append((index, told))
        if told["faults"]:
            print(f"case {index}: {'; '.join(told['faults'])}")
            print(f"  {' '.join(map(repr, told.get('words', [])))[:1500]}")
            print(f"  {told.get('damage')}\n  {told['said'][-1500:]!r}", flush=True)
    for server in (perturbed, plain):
        server.stop()


def main() -> int:
    """Runs the cases on two processes, and prints the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seed", nargs="?", default="0")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--only", type=int, nargs="*", help="these cases alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0

    start, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="diffews_fuzz_") as place:
        os.environ["HF_HOME"] = f"{place}/hub"
        world = make_world(Path(place) / "world")
        indices = list(range(options.cases)) if options.only is None else options.only
        shares = [indices[i :: options.processes] for i in range(options.processes)]
        threads = [
            threading.Thread(target=drive, args=(share, options.seed, world, Path(place), results))
            for share in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    codes = collections.Counter(str(told["code"]) for _, told in results)
    kinds = collections.Counter(f.split(":")[0] for _, told in results for f in told["faults"])
    failed = sum(bool(told["faults"]) for _, told in results)
    ends = ", ".join(f"{codes[code]} ended with {code}" for code in sorted(codes))
    print(f"seed {options.seed}: {len(results)} cases in {time.monotonic() - start:.0f} s: {ends}")
    for kind, count in kinds.most_common():
        print(f"  {count} x {kind}")
    print(f"{failed} cases failed")
    return 1 if failed or len(results) != len(indices) else 0


if __name__ == "__main__":
    sys.exit(main())
