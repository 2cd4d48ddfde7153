"""What one visitor of `diffews app` has given and got; it knows nothing of the page.

What the model says of a picture is kept in a file, so that another threshold needs no model, and
many pictures need no more memory than one.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffews.errors import InputError
from diffews.evaluation.labels.picture import Picture
from diffews.evaluation.labels.write import write_labels
from diffews.images.arrays import prepare_images
from diffews.images.drawing import overlay, save_image
from diffews.images.masks import Segmentation
from diffews.images.photos import open_photo, open_photo_mask
from diffews.images.weak import Box, Scribble
from diffews.pipeline import DiffewsPipeline

MARKED = ("the whole object", "strokes on it", "a frame around it")  # what somebody has painted
LEAST_ALPHA = 128  # of 255: paint whose edge is fainter does not count
OBJECT = "object"  # the class that nobody named


@dataclass(frozen=True)
class Support:
    """A picture with what marks the object: a mask uint8 {0, 1} (H, W), a box, or a scribble."""

    file: Path
    mark: Any
    name: str = OBJECT


@dataclass(frozen=True)
class Result:
    """A picture that was segmented.

    Attributes:
        files: the answers, one for each class.
        presence: how sure it is that each class is in the picture, in [0, 1]; empty where the
            weights have no presence head.

    """

    file: Path
    name: str
    shape: tuple[int, int]
    files: tuple[Path, ...]
    presence: tuple[float, ...] = ()

    def caption(self) -> str:
        """The name, and how sure it is of each class."""
        return " ".join([self.name, *(f"{sure:.2f}" for sure in self.presence)])


@dataclass(frozen=True)
class Look:
    """What makes masks of answers.

    Attributes:
        threshold, rule: as `segment` takes them.
        least: presence below which a class is not there; 0 asks nobody.

    """

    threshold: float
    rule: str = "reference"
    least: float = 0.0


@dataclass
class Session:
    """One visitor's supports and results.

    Attributes:
        folder: where answers and downloads are kept; made when it is needed.
        classes: the names of the labels 1, 2, ... of the results.

    """

    folder: Path | None = None
    supports: list[Support] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def add(self, file: Path, mark: Any, name: str = "") -> None:
        """Takes one more support; what is no mask is refused when it is encoded."""
        name = name.strip() or OBJECT
        if Path(name).name != name or not name.isprintable():
            raise InputError(f"the class's name {name!r} holds what no name holds")
        self.supports.append(Support(file, mark, name))

    def add_result(self, index: int, look: Look) -> str:
        """Takes a result with its mask as one more support of each class that is in it."""
        result = self.results[index]
        labels = self.labels(result, look)
        found = [n for n in range(1, len(self.classes) + 1) if (labels == n).any()]
        if not found:
            raise InputError(f"{result.name}: nothing is found in it at this threshold")
        for number in found:
            mark = (labels == number).astype(np.uint8)
            self.add(result.file, mark, self.classes[number - 1])
        return ", ".join(self.classes[number - 1] for number in found)

    @torch.no_grad()
    def find(
        self, pipe: DiffewsPipeline, size: int, queries: Sequence[Path]
    ) -> Iterator[Result | str]:
        """Segments pictures; yields each result, or the line that says why there is none."""
        if not self.supports or not queries:
            raise InputError("paint the object in a photo and add it, then give photos to segment")
        self.forget_results()

        # each class is read once; what is no mask is refused here
        self.classes = list(dict.fromkeys(support.name for support in self.supports))
        banks = []
        for name in self.classes:
            of_class = [support for support in self.supports if support.name == name]
            pictures = [open_photo(support.file)[0] for support in of_class]
            marks = [support.mark for support in of_class]
            banks.append(pipe.encode_support(pictures, marks, size))

        for number, (file, name) in enumerate(zip(queries, _names(queries), strict=True)):
            try:
                picture = open_photo(file)[0]
            except InputError as error:
                yield str(error).replace(str(file), file.name)
                continue
            arrays, shapes = prepare_images([picture], size, own_size=True)
            pixels = torch.tensor(arrays)
            latents = pipe.encode_images(pixels)

            files, presence = [], []
            for place, bank in enumerate(banks):
                answer = pipe.segment(pixels, bank, latents).check([file.name])
                files.append(self._room() / f"{number}-{place}.npy")
                np.save(files[-1], answer.rgb.cpu().numpy())
                presence += [] if answer.presence is None else answer.presence.tolist()
            self.results.append(Result(file, name, shapes[0], tuple(files), tuple(presence)))
            yield self.results[-1]

    def labels(self, result: Result, look: Look) -> np.ndarray:
        """The label map uint8 (H, W) of a result, as `segment` writes it, or its mask of {0, 1}."""
        best = np.zeros(result.shape, np.float32)
        labels = np.zeros(result.shape, np.uint8)
        for number, file in enumerate(result.files, start=1):
            if result.presence and result.presence[number - 1] < look.least:
                continue
            answer = Segmentation(torch.from_numpy(np.load(file)))
            ((mask, score),) = answer.at_sizes([result.shape], look.threshold, look.rule)
            wins = mask & ((score > best) | (len(result.files) == 1))
            labels[wins], best[wins] = number, score[wins]
        return labels

    def preview(self, result: Result, look: Look, side: int = 480) -> Path:
        """Writes a small picture of a result -> its file."""
        labels, picture = self.labels(result, look), open_photo(result.file)[0]
        picture.thumbnail((side, side))
        small = Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST)
        name = f"{result.files[0].stem}-{look.threshold:.3f}-{look.least:.3f}.jpg"
        save_image(self._room() / name, overlay(np.array(picture), np.array(small)))
        return self._room() / name

    def pack(self, look: Look, formats: Sequence[str]) -> Path:
        """Writes masks, overlays and labels as `diffews segment` does -> a zip of them."""
        if not self.results:
            raise InputError("there is nothing to download yet")
        out, several = self._room() / "masks", len(self.classes) > 1
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if several:
            numbered = dict(enumerate(self.classes, start=1))
            (out / "labels.json").write_text(json.dumps(numbered, indent=1) + "\n")

        def pictures() -> Iterator[Picture]:
            for result in self.results:
                labels = self.labels(result, look)
                kind, white = ("labels", 1) if several else ("mask", 255)
                Image.fromarray(labels * np.uint8(white)).save(out / f"{result.name}_{kind}.png")
                photo = np.array(open_photo(result.file)[0])
                save_image(out / f"{result.name}_overlay.jpg", overlay(photo, labels))
                yield Picture(
                    result.file, result.name, result.file.name, labels, result.presence or None)

        write_labels(out, pictures(), self.classes, list(formats))
        file = self._room() / "masks.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(path for path in out.rglob("*") if path.is_file()):
                archive.write(path, path.relative_to(out))
        return file

    def forget_results(self) -> None:
        """Drops results and their files; supports stay."""
        self.results, self.classes = [], []
        self.forget_files()

    def forget_files(self) -> None:
        """Removes what lies in the session's folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _room(self) -> Path:
        assert self.folder is not None  # the page has named it
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder


def read_paint(layers: Sequence[np.ndarray], kind: str, size: tuple[int, int]) -> Any:
    """What somebody has painted on a photo -> what the pipeline takes for its mask.

    Args:
        layers: RGBA uint8 (h, w, 4), transparent where there is no paint.
        kind: one of MARKED.
        size: (width, height) of the photo.

    """
    paint = np.zeros(size[::-1], bool)
    for layer in layers:
        alpha = Image.fromarray(np.ascontiguousarray(layer[..., 3]))
        alpha = alpha if alpha.size == size else alpha.resize(size, Image.Resampling.NEAREST)
        paint |= np.asarray(alpha) >= LEAST_ALPHA
    if not paint.any():
        raise InputError("nothing is painted; paint the object in the photo, or load its mask")

    if kind == MARKED[2]:
        rows, columns = np.flatnonzero(paint.any(1)), np.flatnonzero(paint.any(0))
        corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        return Box(tuple(map(float, corners)), "the frame")
    return Scribble(paint, "the strokes") if kind == MARKED[1] else paint.astype(np.uint8)


def read_mask_file(file: Path, photo: Path) -> np.ndarray:
    """Reads the mask that somebody loads for a photo -> uint8 {0, 1} (H, W)."""
    picture, turned = open_photo(photo)
    return open_photo_mask(file, picture.size, turned, file.name)[0]


def _names(files: Sequence[Path]) -> list[str]:
    """Names results by their photos; equal ones are numbered."""
    names: list[str] = []
    for file in files:
        name, count = file.stem, 1
        while name in names:
            count += 1
            name = f"{file.stem}_{count}"
        names.append(name)
    return names
