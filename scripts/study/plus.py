"""Our own recipe's ablation on the tiny model: second stages and longer runs, weak masks.

python scripts/study/plus.py OUT            goes on where it stopped; one process, one thread
python scripts/study/plus.py OUT report     the tables of what is finished, as Markdown

OUT/shapes_seed0 and shapes_seed1 (pictures to train and to test on) and OUT/cache_fold<N> are made
if they are not there. Choose on folds 0 and 1, confirm on 2 and 3: TASKS says in which order.
"""

import subprocess
import sys
from pathlib import Path

from diffews.evaluation.metrics import bootstrap_samples, interval

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weight" / "tiny"
EPISODES = 600
THRESHOLDS = (0.25, 0.5)
ROWS = [(1, "mask"), (1, "box"), (1, "scribble"), (1, "point"), (5, "mask")]

STAGE = ["config=configs/tiny_plus.yaml", "init={tiny}/shapes_fold{fold}"]  # 800 steps more
LONG = ["config=configs/tiny.yaml", "steps=3200"]  # as many steps, in one cycle
PIXEL, PLAIN = ["pixel_loss=1", "decoder={tiny}/decoder"], ["pixel_loss=0"]
RECIPES = {  # name -> keys of its training; none: the shipped weights, 2,400 steps
    "paper": [],
    "second": [*STAGE, *PLAIN, "weak_masks=0"],
    "second-pixel": [*STAGE, *PIXEL, "weak_masks=0"],
    "second-weak": [*STAGE, *PLAIN, "weak_masks=0.3"],
    "second-pixel-weak": [*STAGE, *PIXEL, "weak_masks=0.3"],
    "second-pixel-weak-shots3": [*STAGE, *PIXEL, "weak_masks=0.3", "shots=3"],
    "long": LONG,
    "long-pixel-weak": [*LONG, *PIXEL, "weak_masks=0.3"],
    "long-pixel-weak-late": [*LONG, *PIXEL, "weak_masks=0.3", "pixel_from=2400"],
}
TASKS = [  # recipe, fold, seed of the training; in this order
    *(("paper", fold, 0) for fold in range(4)),
    *(("second-pixel-weak", fold, 7) for fold in (0, 1)),
    *(("second-pixel", fold, 7) for fold in (0, 1)),
    *(("second-pixel-weak", fold, 7) for fold in (2, 3)),
    *(("second", fold, 7) for fold in range(4)),
    *((name, fold, 42) for name in ("long-pixel-weak", "long") for fold in (0, 1)),
    *(("second-pixel", fold, 7) for fold in (2, 3)),
    *((name, fold, 7) for name in ("second-weak", "second-pixel-weak-shots3") for fold in (0, 1)),
    *(("long-pixel-weak-late", fold, 42) for fold in (0, 1)),
    *((name, fold, 42) for name in ("long-pixel-weak", "long") for fold in (2, 3)),
    *(("second-pixel-weak", fold, seed) for seed in (8, 9) for fold in range(4)),
    *(("second", fold, seed) for seed in (8, 9) for fold in range(4)),
]


def folder_of(out: Path, recipe: str, fold: int, seed: int) -> Path:
    """Where a run lies."""
    return out / "plus" / recipe / f"fold{fold}-seed{seed}"


def diffews(log: Path, *words: str) -> None:
    """Runs a command in a process of its own; SystemExit with what it said last if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [sys.executable, "-m", "diffews", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed: {log.read_text().splitlines()[-1:]}")


def train(out: Path, recipe: str, fold: int, seed: int) -> Path:
    """Trains a recipe, from where it stopped, and returns its weights."""
    if not RECIPES[recipe]:
        return TINY / f"shapes_fold{fold}"
    folder = folder_of(out, recipe, fold, seed)
    weights = folder / "weights"
    if not (weights / "unet").is_dir():
        words = [word.format(tiny=TINY, fold=fold) for word in RECIPES[recipe]]
        words += [f"base={TINY / 'base'}", f"data={out / 'shapes_seed0'}", f"fold={fold}"]
        words += [f"seed={seed}", f"cache={out / f'cache_fold{fold}'}", "workers=0"]
        diffews(folder / "log.txt", "train", *words, f"out={weights}", "resume=latest", "keep=1")
    return weights


def main(out: Path) -> None:
    """Runs every task that is not finished."""
    from quick_eval import QuickTest, open_weights, save_counts

    for seed in (0, 1):
        if not (out / f"shapes_seed{seed}").is_dir():
            words = ["make-shapes", f"out={out / f'shapes_seed{seed}'}", f"seed={seed}"]
            diffews(out / "log.txt", *words)
    for task in TASKS:
        file = folder_of(out, *task) / "counts.npz"
        if file.is_file():
            continue
        pipe, fold = open_weights(train(out, *task)), task[1]
        memo = out / f"latents_fold{fold}.safetensors"
        test = QuickTest(out / "shapes_seed1", fold, memo, EPISODES)
        counts, shown = {}, []
        for shots, prompt in ROWS:
            for threshold, found in test.run(pipe, shots, prompt, THRESHOLDS).items():
                counts[f"{shots}-{prompt}-{threshold}"] = found
                shown.append(f"{found.miou(test.dataset.class_ids):.1f}")
        save_counts(file, counts)
        print(*task, "/".join(shown), flush=True)


def report(out: Path) -> str:
    """Tables of what is finished: rows at the recorded threshold, differences to two controls."""
    from quick_eval import read_counts

    done = {task: read_counts(file) for task in TASKS
            if (file := folder_of(out, *task) / "counts.npz").is_file()}  # fmt: skip
    head = (
        "| recipe | fold | seed | mask | box | scribble | point | 5-shot | to paper | to second |"
    )
    lines = [head, "|" + "---|" * 10]
    for (recipe, fold, seed), counts in done.items():
        threshold = 0.5 if "pixel_loss=1" in RECIPES[recipe] else 0.25
        rows = [counts[f"{shots}-{prompt}-{threshold}"] for shots, prompt in ROWS]
        ids = sorted(set(rows[0].classes.tolist()))
        cells = [f"{row.miou(ids):.1f}" for row in rows]
        for control in (("paper", fold, 0), ("second", fold, 7)):
            if control not in done or control[0] == recipe:
                cells.append("")
                continue
            theirs = done[control]["1-mask-0.25"]
            samples = [
                bootstrap_samples(c.classes.tolist(), ids, c.inter, c.union)
                for c in (theirs, rows[0])
            ]
            low, high = interval(samples[1] - samples[0])
            change = rows[0].miou(ids) - theirs.miou(ids)
            cells.append(f"{change:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append(f"| {recipe} | {fold} | {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    if sys.argv[2:] == ["report"]:
        print(report(place))
    else:
        main(place)
