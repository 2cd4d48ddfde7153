"""Queries without the class: negatives beside the published episodes, and the scores of presence.

Each published episode gets a negative: the same query, supports of another class of the fold that
the query does not hold, drawn by the episode's index. The gate is fixed beforehand, at GATE.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffews.data.episodes import Episode, EpisodeDataset, EpisodeList
from diffews.data.negatives import (
    NEGATIVE_SEED, check_absence_is_known, draw_negative, is_twin)
from diffews.errors import InputError, refuse
from diffews.evaluation.groups import Answer, Group, count_group, read_group, segment_group
from diffews.evaluation.metrics import Scores
from diffews.images.masks import GATE
from diffews.models.find import PRESENCE, WeightDir
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.files import hash_files, read_json

if TYPE_CHECKING:
    from diffews.cli.settings import EvalConfig

RECALL = 0.95  # share of the positives that a threshold lets pass, of the false alarms
RESAMPLES = 1000


class Negatives:
    """The negatives of a data set's episodes.

    Attributes:
        dataset: as many episodes; where no negative is to be found, the positive stands in, and is
            not counted.
        found: whether a negative was found, for each episode.
        twins: whether the query holds a class whose name differs in the last word alone.

    """

    def __init__(self, dataset: EpisodeDataset, name: str) -> None:
        """Draws them; name: what to call the data in errors."""
        benchmark = dataset.benchmark
        check_absence_is_known(benchmark, name)
        drawn: list[Episode | None] = []
        for index, episode in enumerate(dataset.episodes):
            draws = np.random.default_rng([NEGATIVE_SEED, index])
            shots = len(episode.supports)
            drawn.append(draw_negative(benchmark, episode.query, shots, draws))
        self.found = [negative is not None for negative in drawn]
        if not any(self.found):
            raise InputError(
                f"{name}: no negative is to be found; every query holds all the "
                f"{len(benchmark.class_ids)} classes of fold {dataset.fold}")

        stand_in = EpisodeList(
            negative or episode for negative, episode in zip(drawn, dataset.episodes, strict=True))
        self.dataset = EpisodeDataset(benchmark, stand_in, dataset.image_size)
        self.dataset.check_files()
        self.twins = [
            negative is not None and is_twin(benchmark, negative) for negative in drawn]

    def read(self, group: Group, prompt: str = "mask") -> Group:
        """Returns a group with the negatives of its episodes, decoded; prompt: of the supports."""
        negatives = read_group(self.dataset, group.indices, prompt=prompt)
        return dataclasses.replace(group, negatives=negatives)

    def record(self, answer: Answer, row: int) -> dict[str, Any]:
        """Returns what a record holds of presence beside its counts."""
        group, index = answer.group, answer.group.indices[row]
        assert answer.presence is not None and answer.negatives is not None
        truth = group.query_masks[row] > 0
        if group.query_ignore is not None:
            truth = truth & (group.query_ignore[row] == 0)

        negative: dict[str, Any] | None = None
        if self.found[index]:
            class_id, _, supports = self.dataset.episodes[index].names()
            _, (_, painted) = answer.negatives.counts[0, row].tolist()
            assert answer.negatives.presence is not None
            negative = {
                "class_id": class_id, "supports": supports, "twin": self.twins[index],
                "presence": float(answer.negatives.presence[row]), "painted": painted}
        return {"presence": float(answer.presence[row]), "truth": int(truth.sum()),
                "absent": negative}


def answer_group(
    pipeline: DiffewsPipeline, group: Group, config: "EvalConfig",
    thresholds: list[tuple[float, str]]
) -> Answer:
    """Segments and counts a group, and its negatives where it has any."""
    found = segment_group(
        pipeline, group, config.shots, config.kv_sampling, config.flips)
    answer = count_group(found, group, thresholds)
    if group.negatives is None:
        return answer
    other = answer_group(pipeline, group.negatives, config, thresholds[:1])
    return dataclasses.replace(answer, negatives=other)


# ---- which head is asked ----


def presence_identity(
    config: "EvalConfig", source: WeightDir, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns what a run that asks for presence is known by beside the others' keys.

    Raises:
        InputError: where the weights have no head, and for one that saw a novel class.

    """
    if not config.asks_presence():
        return {}
    kind, folder = config.presence, source.path / PRESENCE
    if kind in ("off", "auto") and not (folder.is_dir() and kind == "auto"):
        raise InputError(
            f"absent=true and protocol=fs_cs ask whether a class is there; weight={source.path} "
            f"has no {PRESENCE}/ that is asked: train one with `diffews train-presence`, or give "
            "presence=cosine")

    sha256 = None
    if kind != "cosine":
        record = read_json(folder / "config.json")
        with refuse(f"{folder / 'config.json'} is no record of a head", TypeError, KeyError):
            seen = sorted(set(record["seen"]) & set(class_names))
        if seen:
            raise InputError(
                f"{folder}: the head saw {len(seen)} of the {len(class_names)} novel classes, as "
                f"{seen[0]}; take the head of this fold, or give fold={record.get('fold')}")
        sha256 = hash_files(sorted(file for file in folder.iterdir() if file.is_file()))
    negatives = NEGATIVE_SEED if config.absent else None
    way = config.way if config.protocol == "fs_cs" else None
    return {"negatives": negatives, "fs_cs": way, "presence": kind, "presence_sha256": sha256}


# ---- the scores ----


def auroc(sure: np.ndarray, present: np.ndarray) -> float:
    """Returns the area under the ROC curve: how often a positive is surer than a negative.

    Args:
        sure: (N,). Ties count half.
        present: bool (N,).

    """
    _, places, counts = np.unique(sure, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(present.sum())
    negatives = len(present) - positives
    if not positives or not negatives:
        return 0.5
    above = ranks[present].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def false_alarms(sure: np.ndarray, present: np.ndarray, recall: float = RECALL) -> float:
    """Returns the share of negatives that pass the gate which lets `recall` of positives pass."""
    ordered = np.sort(sure[present])
    if not len(ordered) or present.all():
        return 0.0
    gate = ordered[int((1 - recall) * len(ordered))]
    return float((sure[~present] >= gate).mean())


def correlation(said: np.ndarray, present: np.ndarray) -> float:
    """Returns Matthews' correlation of what is said and what is; 0 where one of them is constant.

    Args:
        said, present: bool (N,).

    """
    both, neither = (said & present).sum(), (~said & ~present).sum()
    only_said, missed = (said & ~present).sum(), (~said & present).sum()
    sides = [both + only_said, both + missed, neither + only_said, neither + missed]
    product = float(np.prod(np.array(sides, np.float64)))
    return float((both * neither - only_said * missed) / product**0.5) if product else 0.0


def summarize_absent(
    records: Sequence[dict[str, Any]], class_ids: Sequence[int]
) -> dict[str, Any]:
    """Computes every score of presence from records with `absent`.

    Returns:
        `absent`: AUROC, shares and correlation in 0..1 (-1..1), areas as shares of the picture,
        mIoU in percent; of the pairs of a positive and a negative alone but for the mIoU.
        `absent_interval`: 95 % bootstrap intervals over these pairs.

    """
    pairs = [record for record in records if record["absent"] is not None]
    sure = np.array([[record["presence"], record["absent"]["presence"]] for record in pairs])
    painted = np.array([record["absent"]["painted"] / (record["union"][0] + record["inter"][1])
                        for record in pairs])
    twins = np.array([record["absent"]["twin"] for record in pairs], bool)

    gated = Scores(class_ids)
    for record in records:
        inter, union = record["inter"], record["union"]
        if record["presence"] < GATE:  # nothing is painted: the truth is missed, the rest is right
            pixels = union[0] + inter[1]
            inter, union = [pixels - record["truth"], 0], [pixels, record["truth"]]
        gated.add(record["class_id"], inter, union)
    ungated = Scores(class_ids)
    for record in records:
        ungated.add(record["class_id"], record["inter"], record["union"])

    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    samples = [_scores(sure[rows], painted[rows], twins[rows]) for rows in draws]
    intervals = {
        name: [float(np.percentile([sample[name] for sample in samples], part))
               for part in (2.5, 97.5)]
        for name in samples[0]}
    return {
        "absent": {
            **_scores(sure, painted, twins), "miou_gated": gated.miou(),
            "miou_ungated": ungated.miou(), "gate": GATE, "negatives": len(pairs),
            "twins": int(twins.sum())},
        "absent_interval": intervals}


def _scores(sure: np.ndarray, painted: np.ndarray, twins: np.ndarray) -> dict[str, float]:
    """Scores of N pairs: presence (N, 2) of positive and negative, areas (N,), twins bool (N,)."""
    present = np.zeros(sure.shape, bool)
    present[:, 0] = True
    said = sure >= GATE
    rejected = ~said[:, 1]

    return {
        "auroc": auroc(sure.ravel(), present.ravel()),
        "fpr_at_95_recall": false_alarms(sure.ravel(), present.ravel()),
        "il_mcc": correlation(said.ravel(), present.ravel()),
        "exact_ratio": float((said == present).mean()),
        "false_area": float((painted * said[:, 1]).mean()),
        "false_area_ungated": float(painted.mean()),
        "positives_kept": float(said[:, 0].mean()),
        "negatives_rejected": float(rejected.mean()),
        "twins_rejected": float(rejected[twins].mean()) if twins.any() else 0.0}


def check_absent(record: dict[str, Any], pixels: int) -> None:
    """Raises ValueError unless a record's part on presence can be."""
    negative = record["absent"]
    sure = [record["presence"], *([negative["presence"]] if negative else [])]
    counts = [record["truth"], *([negative["painted"]] if negative else [])]
    if not all(type(share) is float and 0 <= share <= 1 for share in sure):
        raise ValueError("presence is no number in [0, 1]")
    if not all(type(count) is int and 0 <= count <= pixels for count in counts):
        raise ValueError(f"truth or painted is no count of {pixels} pixels")
    if negative and type(negative["twin"]) is not bool:
        raise ValueError("twin is neither true nor false")
