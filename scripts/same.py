"""Proves that a change changed no number: runs this checkout and another commit, and compares.

Evaluation   the golden model on folds 0 (1-shot, 16 episodes) and 3 (5-shot, 8 episodes), with
             batch=1 and batch=8, in 1 and in 3 processes: episodes.jsonl, byte for byte
Training     the first 20 losses of configs/tiny.yaml on shapes, without a cache: bit for bit

One line a comparison. Exit code 0: all are equal; 1: one differs; 2: a command failed.
It takes about 5 minutes on two idle cores; with --quick (batch=1, one process) about 1.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "data" / "goldens_coco.zip"  # of this checkout, read by both
LISTS = {"fold 0, 1-shot": ("fold=0", "shots=1", 16), "fold 3, 5-shot": ("fold=3", "shots=5", 8)}
STEPS = 20


def main() -> int:
    """Compares this checkout with the commit that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(
        "same.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rev", nargs="?", metavar="REV", help="the last tag, or HEAD~1 where there is none"
    )
    parser.add_argument("--quick", action="store_true", help="only batch=1 and one process")
    words = parser.parse_args()
    rev = words.rev or last_tag() or "HEAD~1"

    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        # a copy of the commit's files; the repository and its worktrees are left as they are
        there, data = Path(folder) / "tree", Path(folder)
        unpack(rev, there)
        print(f"{ROOT} and {rev}, {git('log', '-1', '--format=%h %s', rev)}", flush=True)
        with zipfile.ZipFile(GOLDENS) as archive:
            archive.extractall(data)
        diffews(ROOT, data, "make-shapes", f"out={data / 'shapes'}", "seed=0")

        # every comparison is made, so that one run shows all that a change did
        equal = True
        for title, found in comparisons([there, ROOT], data, words.quick):
            said = first_difference(*found)
            print(f"{title:48} {said or f'equal, {len(found[0])} lines'}", flush=True)
            equal = equal and not said
    return 0 if equal else 1


def comparisons(
    trees: Sequence[Path], data: Path, quick: bool
) -> Iterator[tuple[str, list[list[bytes]]]]:
    """Runs each command in each tree -> (title, the lines that each tree wrote), one at a time."""
    golden = [
        *("eval", f"weight={data}/weight/coco_fold0", f"base={data}/weight/tiny-random-base"),
        *(f"data={data}/coco20i_mini", "image_size=64", "device=cpu", "workers=0"),
    ]
    batches, counts = ((1,), (1,)) if quick else ((1, 8), (1, 3))
    for (name, keys), batch, count in itertools.product(LISTS.items(), batches, counts):
        fold, shots, episodes = keys
        found = []
        for number, tree in enumerate(trees):
            out = data / f"{name}, {batch}, {count}, {number}"
            words = [*golden, fold, shots, f"episodes={episodes}", f"batch={batch}", f"out={out}"]
            diffews(tree, data, *words, processes=count)
            found.append((out / "episodes.jsonl").read_bytes().splitlines(keepends=True))
        yield f"eval  {name}, batch {batch}, {count} process" + "es" * (count > 1), found

    found = []
    for number, tree in enumerate(trees):
        config, base = tree / "configs" / "tiny.yaml", tree / "weight" / "tiny" / "base"
        words = [f"config={config}", f"base={base}", f"data={data / 'shapes'}", "fold=0"]
        out = data / f"train {number}"
        diffews(tree, data, "train", *words, "workers=0", f"stop_at={STEPS}", f"out={out}")
        steps = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        found.append([float(step["loss"]).hex().encode() for step in steps])
    yield f"train configs/tiny.yaml, the first {STEPS} losses", found


def first_difference(before: Sequence[bytes], after: Sequence[bytes]) -> str:
    """Says where two files' lines begin to differ; "" if they are equal."""
    for number, (one, other) in enumerate(zip(before, after, strict=False), start=1):
        if one != other:
            return f"DIFFERS from line {number} on:\n  {one.decode()}\n  {other.decode()}"
    if len(before) != len(after):
        return f"DIFFERS: {len(before)} lines there, {len(after)} here"
    return "" if before else "DIFFERS: nothing was written"


def diffews(tree: Path, folder: Path, *words: str, processes: int = 1) -> None:
    """Runs a tree's command, whatever its layout, in a neutral folder, on one thread a process.

    Raises SystemExit with the end of what the command said, if it fails.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "diffews", *words]
    here = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **here}, text=True, capture_output=True
    )
    if done.returncode:
        print(f"failed in {tree}: {' '.join(command[1:])}\n{done.stderr[-2000:]}", file=sys.stderr)
        sys.exit(2)


def unpack(rev: str, folder: Path) -> None:
    """Writes the files of a commit into a new folder."""
    archive = folder.with_suffix(".tar")
    git("archive", f"--output={archive}", rev)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")


def last_tag() -> str:
    """Returns the newest tag before HEAD, "" where there is none."""
    words = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "HEAD~1"]
    return subprocess.run(words, text=True, capture_output=True).stdout.strip()


def git(*words: str) -> str:
    """Runs git in this checkout and returns what it prints; SystemExit 2 if it refuses."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], text=True, capture_output=True)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        sys.exit(2)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
