"""FS-CS, few-shot classification and segmentation: which of N classes are there, and where.

The protocol is that of iFSL (Kang and Cho, CVPR 2022, arXiv:2203.15712, sections 3 and 5), as its
published code draws and counts it (dahyun-kang/ifsl, fs-cs/data/coco.py, fs-cs/common/
evaluation.py at 5584b10). Episode i, from numpy's legacy generator at seed i: a class of the fold,
a query of it; N support classes without repetition, the query's with probability 1/2 and each other
one alike; K supports each. A query may so hold none of the classes, or several. Exact ratio: the
share of queries of which all N answers are right. mIoU: intersections and unions at the query's own
size, added up for each class over the queries that were asked for it, absent or not; background
does not count.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from diffews.data.episodes import Benchmark, EpisodeDataset, Sample, decode_checked, decode_sample
from diffews.data.negatives import check_absence_is_known
from diffews.data.prefetch import stream
from diffews.errors import InputError, refuse, says_how_to_go_on
from diffews.evaluation.metrics import Scores, interval
from diffews.images.files import resize_image
from diffews.images.masks import GATE
from diffews.images.paint import to_pixels
from diffews.models.attention import SupportBank
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.files import check_run, open_run, read_json, versions, write_atomic

if TYPE_CHECKING:
    from PIL import Image

    from diffews.cli.settings import EvalConfig

EPISODES, RESAMPLES = 1000, 1000
Record = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A drawn episode: a query, N classes, K supports of each. Names only."""

    query: Sample
    class_ids: tuple[int, ...]
    supports: tuple[tuple[Sample, ...], ...]

    def names(self) -> list[Any]:
        """Returns [query, [class ids], [[supports]]]."""
        return [self.query.name, list(self.class_ids),
                [[sample.name for sample in of_class] for of_class in self.supports]]


def draw_questions(benchmark: Benchmark, way: int, shots: int, count: int) -> list[Question]:
    """Draws the protocol's episodes without touching an image.

    Args:
        benchmark: the fold's novel classes.
        way, shots: N and K.
        count: how many; the first of any number are the same.

    Raises:
        InputError: for more classes than the fold has, or a class of too few pictures.

    """
    ids = benchmark.class_ids
    if way > len(ids):
        raise InputError(f"way={way}: the fold has {len(ids)} classes")
    for c in ids:
        names = {sample.name for sample in benchmark.images[c]}
        if len(names) <= shots:
            raise InputError(
                f"class {c} ({benchmark.class_names[c]}) has {len(names)} pictures; shots={shots} "
                "needs one more")

    questions = []
    for index in range(count):
        draws = np.random.RandomState(index)
        own = ids[draws.choice(len(ids), 1, replace=False)[0]]
        query = benchmark.images[own][draws.choice(len(benchmark.images[own]), 1, replace=False)[0]]
        chances = np.full(len(ids), 1 / 2 / max(len(ids) - 1, 1))
        chances[ids.index(own)] = 1 / 2 if len(ids) > 1 else 1
        asked = [ids[i] for i in draws.choice(len(ids), way, replace=False, p=chances)]

        supports = []
        for c in asked:
            found: list[Sample] = []
            while len(found) < shots:
                images = benchmark.images[c]
                sample = images[draws.choice(len(images), 1, replace=False)[0]]
                if sample.name != query.name and sample not in found:
                    found.append(sample)
            supports.append(tuple(found))
        questions.append(Question(query, tuple(asked), tuple(supports)))
    return questions


# ---- the evaluation ----


def evaluate_fs_cs(
    config: "EvalConfig", dataset: EpisodeDataset, load: Callable[[], DiffewsPipeline],
    identity: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Evaluates weights by the protocol; goes on where an earlier run into `out` stopped.

    Args:
        config: the keys of `diffews eval`.
        dataset: whose benchmark's fold is asked.
        load: returns the model, when it is needed.
        identity: what changes the result, beside the list.
        out: folder for episodes.jsonl and result.json.

    Returns:
        What result.json holds.

    """
    benchmark, size = dataset.benchmark, dataset.image_size
    check_absence_is_known(benchmark, f"benchmark={config.benchmark}")
    count = config.episodes or EPISODES
    questions = draw_questions(benchmark, config.way, config.shots, max(count, EPISODES))
    listed = sha256(json.dumps([q.names() for q in questions[:EPISODES]]).encode()).hexdigest()
    identity = {**identity, "list_sha256": listed}
    benchmark.check_files(
        sample for q in questions[:count]
        for sample in (q.query, *(s for of_class in q.supports for s in of_class)))

    # what is there already
    check_run(out, identity)
    records = _read_records(out / "episodes.jsonl", questions)
    todo = list(range(len(records), count))
    if records and todo:
        print(f"diffews: going on from episode {len(records)}", file=sys.stderr)
    read = functools.partial(_read_question, benchmark, size, questions)

    if todo:
        pipeline, started = load(), False
        with tqdm(total=count, initial=len(records), unit="episode") as bar, says_how_to_go_on(
                lambda: f"the same command goes on from episode {len(records)}"):
            for index, decoded in zip(todo, stream(read, todo, config.workers), strict=True):
                record = _answer(pipeline, config, questions[index], index, *decoded, size)
                if not started:  # nothing is written before a first episode was answered
                    open_run(out, identity)
                    started = True
                with (out / "episodes.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                records.append(record)
                bar.update()

    result = {
        **summarize_fs_cs(records[:count], benchmark.class_ids), **identity,
        "protocol": "fs_cs", "way": config.way, "class_ids": benchmark.class_ids,
        "config": dataclasses.asdict(config), "versions": versions()}
    write_atomic(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _read_question(
    benchmark: Benchmark, size: int, questions: Sequence[Question], index: int
) -> tuple["Image.Image", list[np.ndarray], np.ndarray | None, list[torch.Tensor]]:
    """Decodes an episode: the query, its mask of each class, what is ignored, each class's set."""
    question = questions[index]
    queries = [decode_checked(benchmark, question.query, c) for c in question.class_ids]
    sets = []
    for c, supports in zip(question.class_ids, question.supports, strict=True):
        decoded = [decode_sample(benchmark, sample, c, size) for sample in supports]
        images = np.stack([rgb for rgb, _, _ in decoded])  # [K, 3, S, S]
        masks = np.stack([mask for _, mask, _ in decoded])[:, None]  # [K, 1, S, S]
        sets.append(torch.from_numpy(np.concatenate([images, masks], 1)))
    return queries[0].image, [query.mask for query in queries], queries[0].ignore, sets


@torch.no_grad()
def _answer(
    pipeline: DiffewsPipeline, config: "EvalConfig", question: Question, index: int,
    image: "Image.Image", truths: list[np.ndarray], ignore: np.ndarray | None,
    sets: list[torch.Tensor], size: int
) -> Record:
    """Asks one query for its N classes, gated, and counts at its own size."""
    device = pipeline._execution_device
    banks: list[SupportBank] = [
        pipeline.encode_support_pixels(
            to_pixels(pair[:, :3].to(device)), pair[:, 3].to(device), config.shots)
        for pair in sets]
    pixels = to_pixels(torch.from_numpy(resize_image(image, size))[None].to(device))
    latents, shape = pipeline.encode_images(pixels), truths[0].shape
    threshold = pipeline.config.threshold if config.threshold is None else config.threshold

    # where several classes claim a pixel, the highest score wins
    best, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    sure = []
    for number, bank in enumerate(banks, start=1):
        found = pipeline.segment(pixels, bank, latents).check([question.query.name])
        assert found.presence is not None
        sure.append(float(found.presence[0]))
        (mask, score), = found.gate(GATE).at_sizes([shape], threshold, config.threshold_rule)
        wins = mask & (score > best)
        labels[wins], best[wins] = number, score[wins]

    counted = np.ones(shape, bool) if ignore is None else ignore == 0
    pairs = [((labels == n) & counted, (truth > 0) & counted)
             for n, truth in enumerate(truths, start=1)]
    query, class_ids, supports = question.names()
    return {
        "index": index, "query": query, "classes": class_ids, "supports": supports,
        "present": [bool(truth.any()) for truth in truths], "presence": sure,
        "inter": [int((said & truth).sum()) for said, truth in pairs],
        "union": [int((said | truth).sum()) for said, truth in pairs]}


def _read_records(file: Path, questions: Sequence[Question]) -> list[Record]:
    """Reads and verifies what an earlier run wrote; half a line of a killed one is cut off."""
    content = file.read_bytes() if file.is_file() else b""
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        write_atomic(file, b"".join(lines))

    records: list[Record] = []
    for number, line in enumerate(lines):
        with refuse(f"{file}: line {number + 1} is no record of this list", ValueError, TypeError,
                    LookupError, RecursionError, cure="remove the file to start again"):
            record = json.loads(line)
            _check_record(record, number)
            if [record["query"], record["classes"], record["supports"]] != questions[
                    number].names():
                raise ValueError("the list has another episode there")
            records.append(record)
    return records


def _check_record(record: Record, number: int) -> None:
    """Raises ValueError, TypeError or LookupError for a record that cannot be."""
    lists = [record[key] for key in ("classes", "present", "presence", "inter", "union")]
    if record["index"] != number or len({len(part) for part in lists}) != 1:
        raise ValueError("it is not the next, or not of one number of classes")
    _, present, sure, inter, union = lists
    if not all(type(here) is bool for here in present):
        raise ValueError("present is neither true nor false")
    if not all(type(share) is float and 0 <= share <= 1 for share in sure):
        raise ValueError("presence is no number in [0, 1]")
    if not all(type(i) is int and type(u) is int and 0 <= i <= u
               for i, u in zip(inter, union, strict=True)):
        raise ValueError("inter and union are no counts")


def summarize_fs_cs(records: Sequence[Record], class_ids: Sequence[int]) -> dict[str, Any]:
    """Computes exact ratio and mIoU, both in percent as they are published, with intervals."""
    right = np.array([all((sure >= GATE) == here for sure, here in
                          zip(record["presence"], record["present"], strict=True))
                      for record in records])
    place = {c: row for row, c in enumerate(class_ids)}
    counts = np.zeros((len(records), 2, len(class_ids)), np.int64)
    for row, record in enumerate(records):
        for c, inter, union in zip(
                record["classes"], record["inter"], record["union"], strict=True):
            counts[row, :, place[c]] += inter, union

    def miou(rows: np.ndarray) -> float:
        inter, union = counts[rows].sum(0)
        scores = Scores(class_ids)
        for c, i, u in zip(class_ids, inter, union, strict=True):
            scores.add(c, [0, i], [0, u])
        return scores.miou()

    draws = np.random.default_rng(0).integers(len(records), size=(RESAMPLES, len(records)))
    samples = np.array([(100 * right[rows].mean(), miou(rows)) for rows in draws])
    return {
        "exact_ratio": float(100 * right.mean()), "miou": miou(np.arange(len(records))),
        "exact_ratio_interval": list(interval(samples[:, 0])),
        "miou_interval": list(interval(samples[:, 1])), "episodes": len(records)}


# ---- the table ----


def is_fs_cs(folder: Path) -> bool:
    """Whether a finished evaluation is of this protocol."""
    return read_json(folder / "result.json").get("protocol") == "fs_cs"


def read_fs_cs(folder: Path) -> dict[str, Any]:
    """Reads result.json of an evaluation, whose figures must be those of its records.

    Raises:
        InputError: where there is none, or where the two do not agree.

    """
    result, file = read_json(folder / "result.json"), folder / "episodes.jsonl"
    with refuse(f"{folder} is no finished evaluation", KeyError, OSError, ValueError, TypeError,
                LookupError, cure="run `diffews eval` into it"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for number, record in enumerate(records):
            _check_record(record, number)
        now = summarize_fs_cs(records[: result["episodes"]], result["class_ids"])
        for key in ("exact_ratio", "miou", "episodes"):
            if abs(now[key] - result[key]) > 1e-6:
                raise ValueError(
                    f"result.json says {key}: {result[key]}, its episodes.jsonl gives {now[key]}")
        return {**result, **now, "weight": str(result["config"]["weight"])}
