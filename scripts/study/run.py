"""The paper's choices on the tiny model: trains each variant, evaluates it, and writes docs/study.md.

bash scripts/study.sh OUT [JOBS]     goes on where it stopped; about 2.5 CPU hours
bash scripts/study.sh OUT report     writes the report alone, from the runs that are finished
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weight" / "tiny"
STEPS, SEEDS, EPISODES = 400, (0, 1, 2), 600
INJECTIONS = (
    "concatenation",
    "multiplication_rgb",
    "multiplication_latent",
    "attention_mask",
    "addition",
)
VARIANTS = {  # name -> what differs from the released model
    **{f"{i}-{j}": {"interaction": i, "injection": j} for i in ("kv_fusion", "cross_attention") for j in INJECTIONS},
    "qkv_fusion-concatenation": {"interaction": "qkv_fusion"},
    **{name: {"supervision": name} for name in ("real_foreground", "black_foreground", "mask_over_image")},
    "image_to_mask": {"generation": "multi_step_image_to_mask"},
    "image_to_mask-large_beta": {
        "generation": "multi_step_image_to_mask", "beta_start": "0.0272", "beta_end": "0.384",
    },
    "noise_to_mask": {"generation": "multi_step_noise_to_mask"},
}  # fmt: skip
EVALUATED = {"noise_to_mask": ["ensemble=4"]}  # keys of the evaluation
SWEEP = [
    "relative_thresholds=0.1,0.2,0.25,0.3,0.35,0.4,0.5",
    "absolute_thresholds=0.05,0.1,0.15,0.2,0.25,0.3,0.4",
]
SHIPPED = {  # evaluations of the shipped weights: name -> keys
    "thresholds": ["shots=1", *SWEEP],
    **{f"shots{n}": [f"shots={n}", "drawn_shots=10"] for n in (1, 5, 10)},
    **{f"shots{n}-sampled": [f"shots={n}", "drawn_shots=10", "kv_sampling=1"] for n in (5, 10)},
}


def diffews(folder: Path, *words: object) -> None:
    """Runs a command in a process of its own and adds its CPU seconds to folder/cpu.json, under the command's name.

    Raises SystemExit with the last line of what the command said, if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "diffews", *map(str, words)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(
            f"{' '.join(command[1:])} failed: {(folder / 'log.txt').read_text().splitlines()[-1:]}"
        )
    file = folder / "cpu.json"
    seconds = json.loads(file.read_text()) if file.is_file() else {}
    name = str(words[0])
    seconds[name] = seconds.get(name, 0.0) + usage.ru_utime + usage.ru_stime
    file.write_text(json.dumps(seconds))


def cache_of(out: Path, keys: dict[str, str]) -> Path | None:
    """The latent cache that a variant shares with those that paint their masks alike; none for image tokens."""
    if keys.get("interaction") == "cross_attention":
        return None
    drawn = keys.get("injection", "concatenation")
    drawn = "share" if drawn in ("multiplication_latent", "attention_mask") else drawn
    return out / f"cache-{keys.get('supervision', 'white_on_black')}-{drawn}"


def train_words(out: Path, keys: dict[str, str]) -> list[str]:
    """The keys of a training run, but for `out` and `seed`."""
    words = [
        f"config={ROOT / 'configs' / 'tiny.yaml'}",
        f"base={TINY / 'base'}",
        f"data={out / 'shapes_seed0'}",
    ]
    words += [
        "fold=0",
        f"steps={STEPS}",
        "workers=0",
        *(f"{name}={value}" for name, value in keys.items()),
    ]
    cache = cache_of(out, keys)
    return words + ([] if cache is None else [f"cache={cache}"])


def fill_cache(out: Path, cache: Path, keys: dict[str, str]) -> None:
    """Fills a cache by training one step beside it, so that runs that share it do not fill it twice."""
    if not (cache / "filled").is_file():
        beside = cache.with_name(cache.name + "-filling")
        diffews(
            beside,
            "train",
            *train_words(out, keys),
            f"out={beside / 'weights'}",
            "stop_at=1",
            "resume=latest",
        )
        (cache / "filled").touch()


def run_variant(out: Path, name: str, seed: int) -> None:
    """Trains a variant from a seed and evaluates it on the novel classes."""
    folder = out / "runs" / name / f"seed{seed}"
    evaluation = folder / "eval"
    if (evaluation / "result.json").is_file():
        return
    diffews(
        folder,
        "train",
        *train_words(out, VARIANTS[name]),
        f"seed={seed}",
        f"out={folder / 'weights'}",
        "resume=latest",
    )
    test(out, folder / "weights", evaluation, ["shots=1", *EVALUATED.get(name, [])])


def test(out: Path, weight: Path, evaluation: Path, keys: list[str]) -> None:
    """Evaluates weights on the test list of fold 0."""
    if not (evaluation / "result.json").is_file():
        words = [
            f"weight={weight}",
            f"data={out / 'shapes_seed1'}",
            "fold=0",
            f"episodes={EPISODES}",
            "batch=8",
        ]
        diffews(evaluation.parent, "eval", *words, "workers=0", f"out={evaluation}", *keys)


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
    from report import write_report  # here, since it imports the lists above

    write_report(out, ROOT / "docs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count() or 1)
