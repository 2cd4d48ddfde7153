"""The labels of what `diffews segment` wrote: its masks are read back, one after the other.

So they hold what an interrupted run had done before, and masks that somebody painted over.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from diffews.errors import InputError
from diffews.evaluation.labels import FOLDERS
from diffews.evaluation.labels.picture import Picture
from diffews.evaluation.labels.write import WRITERS, write_labels
from diffews.evaluation.presence_list import PresenceList, Row, show_area
from diffews.evaluation.queries import Queries, Query, class_names
from diffews.evaluation.segment import PRESENCE_LIST, SETTINGS, list_name
from diffews.images.files import open_image
from diffews.images.photos import open_photo, open_photo_mask
from diffews.runtime.files import PARTIAL

if TYPE_CHECKING:
    from diffews.cli.settings import SegmentConfig

# format -> what of it lies in `out`
PLACES = {
    "coco": "annotations.coco.json", "yolo": "data.yaml", "label_studio": "label_studio.json",
    "labelme": "labelme", "palette": "palette", "cutout": "cutouts", "scores": "scores"}


def label_results(config: "SegmentConfig", queries: Queries) -> str:
    """Writes the labels of all queries that have a mask in `out`; returns a line that says so.

    What is left out, or may be out of date, is said on stderr.

    Raises:
        InputError: for a mask that cannot be read.

    """
    out, formats = Path(config.out), [name for name in WRITERS if name in config.format]
    old = [place for name, place in PLACES.items()
           if name not in config.format and (out / place).exists()]
    if old:
        print(f"diffews: {', '.join(old)} in {out} stay as they were, and may be of other masks; "
              "name them in format= to write them again", file=sys.stderr)
    if not formats:
        return ""

    # what a killed run had begun
    for folder in FOLDERS:
        for partial in (out / folder).rglob(f".*{PARTIAL}"):
            partial.unlink(missing_ok=True)

    names = class_names(config)
    with tqdm(_read_masks(out, queries, names), "labels", len(queries.found), unit="image") as bar:
        counts = write_labels(out, bar, names, formats, config.parts, config.least_area)
    if counts.small:
        print(f"diffews: left out {counts.small} part(s) of fewer than {config.least_area} pixels",
              file=sys.stderr)
    if "yolo" in formats:
        ours = {f"{query.name}.txt" for query in queries.found}
        others = sum(str(file.relative_to(out / "labels")) not in ours
                     for file in (out / "labels").rglob("*.txt"))
        if others:
            print(f"diffews: {out / 'labels'} holds {others} file(s) of pictures that are no query "
                  "of this run; data.yaml need not name their classes", file=sys.stderr)
    return (f"wrote labels of {counts.pictures} picture(s), {counts.objects} object(s): "
            f"{', '.join(formats)}")


def _read_masks(out: Path, queries: Queries, names: Sequence[str]) -> Iterator[Picture]:
    """Yields each query with the mask or label map that lies in `out`."""
    kind = "labels" if len(names) > 1 else "mask"
    listed = PresenceList(out / PRESENCE_LIST).rows
    for query in queries.found:
        if str(query.file) in queries.unreadable:
            continue
        file = out / f"{query.name}_{kind}.png"
        image = open_image(file)
        if SETTINGS in image.info:
            labels = np.asarray(image)
        else:
            found = _painted(file, query, queries, len(names))
            if found is None:
                continue
            labels = found
        labels = labels if len(names) > 1 else (labels > 0).astype(np.uint8)
        presence = _presence(listed, query, names, labels)
        yield Picture(query.file, query.name, query.place, labels, presence)


def _presence(
    listed: Mapping[tuple[str, str], Row], query: Query, names: Sequence[str], labels: np.ndarray
) -> list[float | None]:
    """Finds what presence.csv says of this mask, class by class."""
    scores: list[float | None] = []
    for label, name in enumerate(names, start=1):
        *_, score, area = listed.get((list_name(query), name), ("", ""))
        # a mask of another area was painted by somebody, or is of another run
        is_its = area == show_area(labels == label)
        scores.append(float(score) if is_its else None)
    return scores


def _painted(file: Path, query: Query, queries: Queries, classes: int) -> np.ndarray | None:
    """Reads a mask that somebody else made; one that does not fit is left out, aloud."""
    photo, turned = open_photo(query.file)
    try:
        if classes == 1:
            return open_photo_mask(file, photo.size, turned)[0]
        labels = np.asarray(open_image(file))
        if labels.shape == (photo.height, photo.width) and 0 <= labels.max() <= classes:
            return labels.astype(np.uint8)
    except InputError:
        pass
    queries.leave_out(file, "no mask that fits its photo and classes; not in the labels")
    return None
