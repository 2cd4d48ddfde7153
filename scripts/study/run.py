"""The paper's choices on the tiny model: trains each variant, evaluates it, writes docs/study.md.

bash scripts/study.sh OUT [JOBS]            goes on where it stopped; about 2.5 CPU hours
bash scripts/study.sh OUT report [DOCS]     the report alone, from the runs that are finished
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plan import EPISODES, EVALUATED, ROOT, SEEDS, SHIPPED, STEPS, TINY, VARIANTS
from report import write_report


def diffews(folder: Path, *words: object) -> None:
    """Runs a command in a process of its own, and adds its CPU seconds to folder/cpu.json by name.

    Raises SystemExit with the last line of what the command said, if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "diffews", *map(str, words)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        said = (folder / "log.txt").read_text().splitlines()[-1:]
        sys.exit(f"{' '.join(command[1:])} failed: {said}")

    # a run that goes on where it stopped adds to what it took before
    file = folder / "cpu.json"
    seconds = json.loads(file.read_text()) if file.is_file() else {}
    name = str(words[0])
    seconds[name] = seconds.get(name, 0.0) + usage.ru_utime + usage.ru_stime
    file.write_text(json.dumps(seconds))


def cache_of(out: Path, keys: dict[str, str]) -> Path | None:
    """The latent cache that a variant shares with those that paint alike; none for image tokens."""
    if keys.get("interaction") == "cross_attention":
        return None
    drawn = keys.get("injection", "concatenation")
    drawn = "share" if drawn in ("multiplication_latent", "attention_mask") else drawn
    return out / f"cache-{keys.get('supervision', 'white_on_black')}-{drawn}"


def train_words(out: Path, keys: dict[str, str]) -> list[str]:
    """The keys of a training run, but for `out` and `seed`."""
    words = [f"config={ROOT / 'configs' / 'tiny.yaml'}", f"base={TINY / 'base'}"]
    words += [f"data={out / 'shapes_seed0'}", "fold=0", f"steps={STEPS}", "workers=0"]
    words += [f"{name}={value}" for name, value in keys.items()]
    cache = cache_of(out, keys)
    return words + ([] if cache is None else [f"cache={cache}"])


def fill_cache(out: Path, cache: Path, keys: dict[str, str]) -> None:
    """Fills a cache by training one step beside it, so that no two runs that share it fill it."""
    if not (cache / "filled").is_file():
        beside = cache.with_name(cache.name + "-filling")
        words = [*train_words(out, keys), f"out={beside / 'weights'}", "stop_at=1"]
        diffews(beside, "train", *words, "resume=latest")
        (cache / "filled").touch()


def run_variant(out: Path, name: str, seed: int) -> None:
    """Trains a variant from a seed and evaluates it on the novel classes."""
    folder = out / "runs" / name / f"seed{seed}"
    evaluation = folder / "eval"
    if (evaluation / "result.json").is_file():
        return
    words = [*train_words(out, VARIANTS[name]), f"seed={seed}", f"out={folder / 'weights'}"]
    diffews(folder, "train", *words, "resume=latest")
    test(out, folder / "weights", evaluation, ["shots=1", *EVALUATED.get(name, [])])


def test(out: Path, weight: Path, evaluation: Path, keys: list[str]) -> None:
    """Evaluates weights on the test list of fold 0."""
    if not (evaluation / "result.json").is_file():
        words = [f"weight={weight}", f"data={out / 'shapes_seed1'}", "fold=0", "workers=0"]
        words += [f"episodes={EPISODES}", "batch=8", f"out={evaluation}", *keys]
        diffews(evaluation.parent, "eval", *words)


def main(out: Path, jobs: int) -> None:
    """Runs everything that is not there yet, then writes the report."""
    out = out.resolve()
    for seed in (0, 1):
        if not (out / f"shapes_seed{seed}").is_dir():
            diffews(out, "make-shapes", f"out={out / f'shapes_seed{seed}'}", f"seed={seed}")
    caches = {
        cache: keys for keys in VARIANTS.values() if (cache := cache_of(out, keys)) is not None
    }
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda item: fill_cache(out, *item), caches.items()))
        tasks = [pool.submit(run_variant, out, name, seed) for seed in SEEDS for name in VARIANTS]
        tasks += [
            pool.submit(test, out, TINY / "shapes_fold0", out / "shipped" / name / "eval", keys)
            for name, keys in SHIPPED.items()
        ]
        for number, task in enumerate(tasks, start=1):
            task.result()
            print(f"{number} of {len(tasks)} runs done", file=sys.stderr)
    write_report(out, ROOT / "docs")


if __name__ == "__main__":
    out, *words = sys.argv[1:]
    if words[:1] == ["report"]:
        write_report(Path(out), *map(Path, words[1:] or [ROOT / "docs"]))
    else:
        main(Path(out), int(words[0]) if words else os.cpu_count() or 1)
