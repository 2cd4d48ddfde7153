"""Label Studio: label_studio.json, tasks with predictions, and label_studio.xml, the interface."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from diffews.evaluation.labels.parts import Part, outline, run_lengths
from diffews.evaluation.labels.picture import Add, Objects, Picture
from diffews.runtime.files import atomic_file, write_atomic

FILE, INTERFACE = "label_studio.json", "label_studio.xml"
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio names pictures on its own disk

# of a brush's code: bits of a run's length (one of four is named by each run), and of a value
LENGTH_BITS, VALUE_BITS = (4, 8, 12, 16), 8


@contextmanager
def write_label_studio(out: Path, classes: Sequence[str]) -> Iterator[Add]:
    """Writes out/label_studio.json, a task a line, and the interface that its labels belong to.

    Each object is a brush, which keeps holes, and its parts are polygons besides, with a seam to
    each hole.
    """
    tasks = 0
    with atomic_file(out / FILE) as file:
        file.write(b"[")

        def add(picture: Picture, objects: Objects) -> None:
            nonlocal tasks
            comma = "," if tasks else ""
            file.write(f"{comma}\n{json.dumps(make_task(picture, objects, classes))}".encode())
            tasks += 1

        yield add
        file.write(b"]\n")
    write_atomic(out / INTERFACE, make_interface(classes))


def make_interface(classes: Sequence[str]) -> str:
    """Returns the labelling interface, to be pasted into the project's settings."""
    labels = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in classes)
    kinds = [f'  <{kind} name="{name}" toName="image">{labels}\n  </{kind}>\n'
             for kind, name in (("BrushLabels", "brush"), ("PolygonLabels", "polygon"))]
    return f'<View>\n  <Image name="image" value="$image"/>\n{"".join(kinds)}</View>\n'


def make_task(picture: Picture, objects: Objects, classes: Sequence[str]) -> dict[str, Any]:
    """Makes a task of a picture, with what was found as its prediction."""
    # relative to the folder in which the folder of photos lies
    place = picture.photo.absolute().parts[-picture.place.count("/") - 2 :]
    image = LOCAL_FILES + quote("/".join(place).lstrip("/"))
    results = [result for number, shapes in enumerate(objects, start=1)
               for result in make_results(shapes, number, *picture.size, classes)]

    prediction: dict[str, Any] = {"model_version": "diffews", "result": results}
    scores = [score for shapes in objects if (score := picture.score(shapes[0].label)) is not None]
    if scores:
        prediction["score"] = max(scores)
    return {"data": {"image": image}, "predictions": [prediction]}


def make_results(
    parts: Sequence[Part], number: int, height: int, width: int, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields an object's brush, and a polygon of each part, in percent of width and height."""
    name = classes[parts[0].label - 1]
    size = {"original_width": width, "original_height": height, "image_rotation": 0,
            "to_name": "image"}
    yield {
        "id": f"brush{number}", "type": "brushlabels", "from_name": "brush", **size, "value": {
            "format": "rle", "rle": brush_code(parts, height, width), "brushlabels": [name]}}
    for place, part in enumerate(parts, start=1):
        # the middle of a pixel
        points = [[round(100 * (x + 0.5) / width, 4), round(100 * (y + 0.5) / height, 4)]
                  for x, y in outline(part)]
        yield {
            "id": f"polygon{number}-{place}", "type": "polygonlabels", "from_name": "polygon",
            **size, "value": {"points": points, "closed": True, "polygonlabels": [name]}}


def brush_code(parts: Sequence[Part], height: int, width: int) -> list[int]:
    """Encodes an object as Label Studio's brushes -> bytes.

    The picture is RGBA, row by row, all four values 255 where it is marked, 0 elsewhere. As bits:
    how many values (32), bits of a value less 1 (5), bits of a length less 1 (4), four times; then
    runs: 1 for a value that is repeated, which of the four (2), the length less 1, the value.
    """
    bits = [f"{4 * height * width:032b}", f"{VALUE_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in LENGTH_BITS]
    lengths = run_lengths(parts, height, width, by_column=False)
    for number, length in enumerate(lengths.tolist()):
        value, rest = "1" * VALUE_BITS if number % 2 else "0" * VALUE_BITS, 4 * length
        while rest:
            run = min(rest, 1 << LENGTH_BITS[-1])
            size = next(i for i, n in enumerate(LENGTH_BITS) if run <= 1 << n)
            bits.append(f"1{size:02b}{run - 1:0{LENGTH_BITS[size]}b}{value}")
            rest -= run
    code = "".join(bits)
    code += "0" * (-len(code) % 8)
    return list(int(code, 2).to_bytes(len(code) // 8, "big"))
