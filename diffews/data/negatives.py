"""Negative episodes: a query, and supports of a class that it does not hold."""

import numpy as np

from diffews.data.episodes import Benchmark, Episode, Sample
from diffews.errors import InputError

NEGATIVE_SEED = 0  # of the negatives that evaluation adds to the published episodes


def check_absence_is_known(benchmark: Benchmark, name: str) -> None:
    """Raises InputError unless the annotations say which classes a picture does not hold.

    name: what to call the data in the error, such as `benchmark=fss1000`.
    """
    if not benchmark.labels_all:
        raise InputError(
            f"{name} does not name every class of a picture, so that it cannot be known whether a "
            "class is absent; use data that do, such as coco20i, pascal5i or coco_json")
    if len(benchmark.class_ids) < 2:
        only = ", ".join(benchmark.class_names[c] for c in benchmark.class_ids)
        raise InputError(
            f"{name}: one class only ({only}); a negative needs supports of another one")


def draw_negative(
    benchmark: Benchmark, query: Sample, shots: int, draws: np.random.Generator
) -> Episode | None:
    """Draws supports of a class of the split that the query does not hold.

    Args:
        benchmark: whose annotations say what the query holds.
        query: the picture.
        shots: supports to draw; one may come twice.
        draws: what is drawn from.

    Returns:
        The episode; None where the query holds all classes of the split.

    """
    held = set(benchmark.classes_in(query))
    others = [c for c in benchmark.class_ids if c not in held and benchmark.images.get(c)]
    if not others:
        return None
    class_id = others[draws.integers(len(others))]
    images = [sample for sample in benchmark.images[class_id] if sample.name != query.name]
    if not images:
        return None
    supports = tuple(images[draws.integers(len(images))] for _ in range(shots))
    return Episode(class_id, query, supports)


def are_twins(one: str, other: str) -> bool:
    """Whether two classes' names differ in the last word alone: red disc, red star."""
    a, b = one.split(), other.split()
    return len(a) > 1 and a != b and a[:-1] == b[:-1]


def is_twin(benchmark: Benchmark, negative: Episode) -> bool:
    """Whether the query holds a class that is a twin of the one that the negative asks for."""
    names = benchmark.class_names
    held = [names.get(c, "") for c in benchmark.classes_in(negative.query)]
    return any(are_twins(name, names[negative.class_id]) for name in held)
