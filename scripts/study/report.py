"""Writes docs/study.md and docs/study.png from the runs of scripts/study/run.py that are finished.

bash scripts/study.sh OUT report [DOCS]     what is run, and the paper's claims: plan.py
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plan import (
    DEFAULT,
    DEFAULT_THRESHOLD,
    EPISODES,
    FAILS,
    FURTHER,
    HOLDS,
    MISSING,
    NOTES,
    NUMBERS,
    OF_DEFAULT,
    OPEN,
    PAPER_THRESHOLDS,
    SEEDS,
    SHIPPED,
    SHOT_CLAIMS,
    STEPS,
    STUDIES,
    TITLES,
    VARIANTS,
    Claim,
    label,
    threshold_claims,
    variant_claims,
)
from plot import Bar, Group, save_plot

from diffews.errors import InputError
from diffews.evaluation.metrics import Scores, bootstrap_samples, interval
from diffews.runtime.files import read_json, write_atomic

ALIKE = 2.0  # points of mIoU: smaller differences count as none where the paper finds none
T_DRAWS = 20  # draws of Student's t for each bootstrap resample

# ---- figures ----


@dataclass(frozen=True)
class Outcome:
    """One finished evaluation."""

    miou: float  # percent
    samples: (
        np.ndarray
    )  # (resamples,); every run draws the same episodes, so differences of samples are paired
    asked: list[tuple[int, str]]  # class and query of each episode


Series = list[
    Outcome | None
]  # of the seeds 0, 1, ..., or one for the shipped weights; None where not finished


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of first minus second in points of mIoU, and its 95 % interval, if any."""

    mean: float
    bounds: tuple[float, float] | None

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (
            "" if self.bounds is None else " [{:+.1f}, {:+.1f}]".format(*self.bounds)
        )


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """Reads an evaluation: its outcome as "", those of a sweep by name; {} if unfinished."""
    if not (folder / "result.json").is_file():
        return {}
    result = read_json(folder / "result.json")
    lines = (folder / "episodes.jsonl").read_text().splitlines()[: result["episodes"]]
    records = [json.loads(line) for line in lines]
    counted = {"": records}
    for name in records[0].get("sweep", {}):
        counted[name] = [record["sweep"][name] for record in records]
    return {
        name: _outcome(records, counts, result["class_ids"]) for name, counts in counted.items()
    }


def _outcome(
    records: list[dict[str, Any]], counts: list[dict[str, Any]], class_ids: list[int]
) -> Outcome:
    classes = [record["class_id"] for record in records]
    scores = Scores(class_ids)
    for class_id, count in zip(classes, counts, strict=True):
        scores.add(class_id, count["inter"], count["union"])
    inter, union = (np.array([count[part][1] for count in counts]) for part in ("inter", "union"))
    asked = [(record["class_id"], record["query"]) for record in records]
    return Outcome(scores.miou(), bootstrap_samples(classes, class_ids, inter, union), asked)


def read_series(out: Path) -> dict[str, Series]:
    """Reads every run of the study."""
    series: dict[str, Series] = {
        name: [
            read_outcomes(out / "runs" / name / f"seed{seed}" / "eval").get("") for seed in SEEDS
        ]
        for name in VARIANTS
    }
    for name in SHIPPED:
        outcomes = read_outcomes(out / "shipped" / name / "eval")
        series[name] = [outcomes.get("")]
        if name == "thresholds":
            swept = [DEFAULT_THRESHOLD, *(claim.first for claim in threshold_claims())]
            series |= {threshold: [outcomes.get(threshold)] for threshold in swept}
    return series


def difference(first: Series, second: Series) -> Difference | None:
    """Compares two runs seed by seed; None if no seed has both.

    The interval adds up two parts: episodes are resampled within their class, the same for both
    runs and all seeds; seeds are too few for that (resampled, three seeds cover 75 %, not 95 %), so
    their mean gets the error that Student's t gives it. One seed of several has no interval.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    gaps = np.array([a.miou - b.miou for a, b in pairs])
    samples = np.mean([a.samples - b.samples for a, b in pairs], axis=0)
    if len(first) > 1:
        if len(pairs) == 1:
            return Difference(float(gaps.mean()), None)
        draws = np.random.default_rng(0).standard_t(len(pairs) - 1, (len(samples), T_DRAWS))
        samples = samples[:, None] + gaps.std(ddof=1) / len(pairs) ** 0.5 * draws
    return Difference(float(gaps.mean()), interval(samples))


def verdict(found: Difference | None, expected: str) -> str:
    """Says whether the interval lies where the paper says: above, below, or alike within 2."""
    if found is None or not expected:
        return MISSING
    if found.bounds is None:
        return OPEN
    low, high = found.bounds
    if expected == "alike":
        inside, outside = low > -ALIKE and high < ALIKE, low > ALIKE or high < -ALIKE
    else:
        inside, outside = (low > 0, high < 0) if expected == "above" else (high < 0, low > 0)
    return HOLDS if inside else FAILS if outside else OPEN


def cpu_hours(out: Path) -> dict[str, float]:
    """Adds up the CPU hours of all commands that ended, by what they were for."""
    hours = dict.fromkeys(("training", "evaluation", "caches and pictures"), 0.0)
    for file in out.rglob("cpu.json"):
        of_a_run = file.relative_to(out).parts[0] in ("runs", "shipped")
        for command, seconds in read_json(file).items():
            kind = (
                {"train": "training", "eval": "evaluation"}[command]
                if of_a_run
                else "caches and pictures"
            )
            hours[kind] += seconds / 3600
    return hours


# ---- text ----


def each_seed(values: Sequence[Outcome | None]) -> str:
    """Lists each seed's mIoU."""
    return ", ".join(MISSING if value is None else f"{value.miou:.1f}" for value in values)


def mean_and_deviation(values: Series) -> str:
    """Returns mean and standard deviation over seeds, as a cell."""
    have = [value.miou for value in values if value is not None]
    if not have:
        return MISSING
    return f"{np.mean(have):.1f}" + (f" ± {np.std(have, ddof=1):.1f}" if len(have) > 1 else "")


def paragraph(*sentences: str) -> str:
    """Joins sentences and breaks them into lines."""
    return textwrap.fill(" ".join(sentences), 119, break_on_hyphens=False, break_long_words=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class Report:
    """The report's parts, each a piece of Markdown."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.series = read_series(out)
        self.variants = {study: variant_claims(study) for study in STUDIES}
        claims = {study: [*self.variants[study], *FURTHER[study]] for study in STUDIES}
        claims |= {"thresholds": threshold_claims(), "shots": SHOT_CLAIMS}
        self.found = {claim: self.compare(claim) for own in claims.values() for claim in own}
        self.claims = claims

    def compare(self, claim: Claim) -> Difference | None:
        """Computes a claim's difference.

        Raises:
            InputError: if its runs were asked different episodes.

        """
        first, second = self.series[claim.first], self.series[claim.second]
        if any(
            a is not None and b is not None and a.asked != b.asked
            for a, b in zip(first, second, strict=True)
        ):
            raise InputError(
                f"{claim.first} and {claim.second} in {self.out} have different episodes; run "
                "them again"
            )
        return difference(first, second)

    def judged(self, claim: Claim) -> list[str]:
        """Difference, paper and verdict, the last cells of a row."""
        found = self.found[claim]
        return [
            MISSING if found is None else str(found),
            claim.paper,
            verdict(found, claim.expected),
        ]

    def text(self) -> str:
        """Returns the whole document."""
        parts = ["# The paper's choices on the tiny model", self.what_was_run()]
        parts.append(
            "![mIoU of every variant: a bar for the mean over seeds, a dot for each "
            "seed](study.png)"
        )
        parts += [
            self.summary(),
            *(self.study(study) for study in STUDIES),
            self.thresholds(),
            self.shots(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def what_was_run(self) -> str:
        """The first section."""
        hours = cpu_hours(self.out)
        each = ", ".join(f"{name} {value:.2f}" for name, value in hours.items())
        reached, shipped = (
            mean_and_deviation(self.series[name]) for name in (DEFAULT, "thresholds")
        )
        halves = [(f.bounds[1] - f.bounds[0]) / 2 for f in self._seeded() if f.bounds is not None]
        size = (
            f"{np.median(halves):.1f} points (half of the intervals reach less to each side)"
            if halves
            else MISSING
        )
        parts = [
            paragraph(
                "Each variant differs from the released model in one of the paper's choices (or "
                "in interaction and injection at once) and is trained from nothing: a UNet of 0.8 "
                f"M parameters on shapes of 64 x 64 pixels, fold 0, {STEPS} steps, {len(SEEDS)} "
                f"seeds. It is evaluated 1-shot on the novel classes, on {EPISODES} episodes of "
                "pictures that no training saw, the same for all.",
            ),
            "```bash\n"
            "bash scripts/study.sh OUT           "
            "# trains, evaluates, writes this page; goes on where it stopped\n"
            "bash scripts/study.sh OUT report    # writes this page again from what is finished\n"
            "```",
            f"It took {sum(hours.values()):.2f} CPU hours ({each}).",
            paragraph(
                f"**What it can tell.** After {STEPS} steps the default reaches {reached}. The "
                f"shipped weights reach {shipped} on the same episodes after 2,400 steps (76.5 on "
                "the list of weight/tiny/README.md). So these are orders of early training, of a "
                "small model, on simple pictures. All variants have the learning rate, schedule "
                "and threshold that were chosen for the default, which may favour it.",
                f"{len(SEEDS)} seeds and {EPISODES} episodes show differences of about {size} and "
                "more. They can hardly show the paper's small ones (0.03 between KV and QKV "
                "fusion, 0.98 between the multiplications), nor at all what longer training, "
                "other folds or photographs would give.",
            ),
            paragraph(
                "**How to read the tables.** mIoU in percent, mean ± standard deviation over "
                "seeds. The difference is to the default with the same seed on the same episodes, "
                "in points of mIoU, with its 95 % interval: episodes are resampled within "
                "classes, and the mean over seeds has the error that Student's t gives it with "
                f"{len(SEEDS) - 1} degrees of freedom (resampled, so few seeds would give too "
                "narrow an "
                f'interval). The paper\'s order "{HOLDS}" or "{FAILS}" where the interval lies '
                f'wholly on one side of zero; else it "{OPEN}". Where the paper finds no '
                f"difference, ours must lie within {ALIKE:g} points. "
                "About one in twenty such intervals misses, and the rows of a table are not "
                "independent: all compare with the same runs of the default.",
            ),
        ]
        missing = list(self.missing())
        return "\n\n".join(
            parts + ([paragraph("**Not finished:**", ", ".join(missing) + ".")] if missing else [])
        )

    def _seeded(self) -> list[Difference]:
        return [
            f
            for claim, f in self.found.items()
            if f is not None and len(self.series[claim.first]) > 1
        ]

    def missing(self) -> Iterator[str]:
        """Names the runs that are not there."""
        for name in VARIANTS:
            seeds = [
                str(seed)
                for seed, value in zip(SEEDS, self.series[name], strict=True)
                if value is None
            ]
            if seeds:
                yield f"`{name}` (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
        yield from (f"`shipped/{name}`" for name in SHIPPED if self.series[name] == [None])

    def summary(self) -> str:
        """Lists the claims by their verdicts."""
        parts = ["## Where the paper's orders hold at this size, and where not"]
        by_verdict: dict[str, list[str]] = {HOLDS: [], FAILS: [], OPEN: [], MISSING: []}
        for study, claims in self.claims.items():
            for claim in filter(lambda claim: claim.expected, claims):
                found = self.found[claim]
                line = f"- {self.words(study, claim)}" + (f": {found}" if found else "")
                by_verdict[verdict(found, claim.expected)].append(line)
        headings = {
            HOLDS: "Holds",
            FAILS: "Does not hold",
            OPEN: "Cannot be told",
            MISSING: "Not run yet",
        }
        for kind, lines in by_verdict.items():
            if lines or kind != MISSING:
                parts.append(
                    "\n".join([f"**{headings[kind]}** ({len(lines)})", "", *(lines or ["- none"])])
                )
        parts.append(
            paragraph(
                "An order that holds here supports the paper's; one that does not says only that "
                "it needs more than a",
                "tiny model and a short training. Neither replaces a run at full size.",
            )
        )
        return "\n\n".join(parts)

    def words(self, study: str, claim: Claim) -> str:
        """Returns a claim as a sentence's core, with the default named as the study names it."""
        first, second = (
            OF_DEFAULT.get(study, name) if name == DEFAULT else label(name)
            for name in (claim.first, claim.second)
        )
        order = "about as good as" if claim.expected == "alike" else claim.expected
        return f"{first} {order} {second}"

    def study(self, study: str) -> str:
        """Returns the section of a study with trained variants."""
        values = self.series[DEFAULT]
        rows = [
            [
                f"**{OF_DEFAULT[study]}** (default)",
                mean_and_deviation(values),
                each_seed(values),
                "0",
            ]
        ]
        rows[0] += [NUMBERS[DEFAULT] if study == "interaction" else "best", ""]
        for claim in self.variants[study]:
            values = self.series[claim.first]
            cells = [label(claim.first), mean_and_deviation(values), each_seed(values)]
            rows.append([*cells, *self.judged(claim)])
        seeds = "seeds " + ", ".join(map(str, SEEDS))
        parts = [f"## {TITLES[study]}", paragraph(NOTES[study])]
        parts.append(
            table(
                ["variant", "mIoU", seeds, "difference to default", "paper", "paper's order"], rows
            )
        )
        if FURTHER[study]:
            rows = [[self.words(study, claim), *self.judged(claim)] for claim in FURTHER[study]]
            parts.append(
                table(["the paper's further orders", "difference", "paper", "paper's order"], rows)
            )
        return "\n\n".join(parts)

    def thresholds(self) -> str:
        """Returns the section of the threshold sweep."""
        rows = []
        own = mean_and_deviation(self.series[DEFAULT_THRESHOLD])
        default = [
            f"**{DEFAULT_THRESHOLD}** (default)",
            own,
            "0",
            f"{PAPER_THRESHOLDS[DEFAULT_THRESHOLD]}; best",
            "",
        ]
        for claim in self.claims["thresholds"]:
            rows.append(
                [claim.first, mean_and_deviation(self.series[claim.first]), *self.judged(claim)]
            )
        before = sum(
            row[0].startswith("relative") and float(row[0].split()[1]) < 0.25 for row in rows
        )
        rows.insert(before, default)
        header = ["threshold", "mIoU", "difference to default", "paper", "paper's order"]
        return "\n\n".join(
            [f"## {TITLES['thresholds']}", paragraph(NOTES["thresholds"]), table(header, rows)]
        )

    def shots(self) -> str:
        """Returns the section of 1, 5 and 10 shots."""
        paper = {1: ("71.3", "71.3"), 5: ("72.2", "74.7"), 10: ("70.1", "73.4")}
        rows = []
        for count, figures in paper.items():
            plain = mean_and_deviation(self.series[f"shots{count}"])
            sampled = (
                plain if count == 1 else mean_and_deviation(self.series[f"shots{count}-sampled"])
            )
            rows.append([str(count), plain, sampled, *figures])
        parts = [f"## {TITLES['shots']}", paragraph(NOTES["shots"])]
        parts.append(table(["shots", "plain", "sampled", "paper, plain", "paper, sampled"], rows))
        rows = [[self.words("shots", claim), *self.judged(claim)] for claim in SHOT_CLAIMS]
        parts.append(table(["the paper's order", "difference", "paper", "paper's order"], rows))
        return "\n\n".join(parts)

    def groups(self) -> list[Group]:
        """Returns what the plot shows."""
        return [
            Group(
                TITLES[study],
                [
                    Bar(
                        OF_DEFAULT[study] if name == DEFAULT else label(name),
                        [value.miou for value in self.series[name] if value is not None],
                        name == DEFAULT,
                    )
                    for name in names
                ],
            )
            for study, names in STUDIES.items()
        ]


def write_report(out: Path, docs: Path) -> None:
    """Writes docs/study.md and .png from what is finished in `out`; always the same bytes."""
    report = Report(out)
    write_atomic(docs / "study.md", report.text())
    save_plot(
        docs / "study.png",
        report.groups(),
        f"mIoU after {STEPS} steps (%), novel classes of fold 0, 1-shot",
    )
