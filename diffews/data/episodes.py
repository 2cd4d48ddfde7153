"""Episodes: drawn up front by name, decoded one by one."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from PIL import Image

from diffews.data.lists import read_json_file
from diffews.errors import InputError
from diffews.images.files import normalize, resize_image
from diffews.images.masks import resize_mask
from diffews.runtime.files import write_atomic

TEST_SEED = 0  # of numpy's legacy generator, set once before the first episode
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """One picture of a benchmark, by the name that the reference prints; of part benchmarks, one object in it."""

    name: str
    object_id: int | None = None


@dataclass(frozen=True)
class Episode:
    """A drawn episode: which class, which query, which supports. Names only."""

    class_id: int
    query: Sample
    supports: tuple[Sample, ...]

    def names(self) -> list[Any]:
        """Returns [class_id, query, [supports]], the form in which lists are printed and hashed."""
        return [self.class_id, self.query.name, [support.name for support in self.supports]]


class EpisodeList(Sequence[Episode]):
    """Episodes in order; equal lists have equal hashes."""

    def __init__(self, episodes: Iterable[Episode]) -> None:
        self._episodes = tuple(episodes)

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> "EpisodeList": ...
    def __getitem__(self, index: int | slice) -> "Episode | EpisodeList":
        return EpisodeList(self._episodes[index]) if isinstance(index, slice) else self._episodes[index]

    def first_shots(self, shots: int) -> "EpisodeList":
        """Returns the same queries with the first `shots` supports of each."""
        return EpisodeList(replace(episode, supports=episode.supports[:shots]) for episode in self)

    @property
    def shots(self) -> int:
        """Supports of each episode."""
        return len(self[0].supports)

    def to_json(self) -> str:
        """Returns the list as JSON: [[class_id, query, [supports]], ...]."""
        return json.dumps([episode.names() for episode in self])

    def save(self, path: Path) -> None:
        """Writes the list with its hash, and the objects of part benchmarks, as JSON."""
        content = {
            "sha256": self.sha256,
            "objects_sha256": self.objects_sha256,
            "episodes": [episode.names() for episode in self],
            "objects": self._objects(),
        }
        write_atomic(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "EpisodeList":
        """Reads what `save` wrote; a list that does not have its hash is an error."""
        content = read_json_file(path)
        try:
            episodes = cls(
                Episode(
                    class_id,
                    Sample(query, q_object),
                    tuple(Sample(*pair) for pair in zip(supports, s_objects, strict=True)),
                )
                for (class_id, query, supports), (q_object, s_objects) in zip(
                    content["episodes"], content["objects"], strict=True
                )
            )
            whole = len(episodes) > 0 and len({len(episode.supports) for episode in episodes}) == 1
            if not whole:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} is no list of episodes; `diffews episodes save=FILE` writes one") from None
        if [episodes.sha256, episodes.objects_sha256] != [content.get("sha256"), content.get("objects_sha256")]:
            raise InputError(f"{path}: the episodes do not have the hash that the file says; it was changed")
        return episodes

    def _objects(self) -> list[Any]:
        return [[e.query.object_id, [s.object_id for s in e.supports]] for e in self]

    @property
    def objects_sha256(self) -> str | None:
        """Hash of the objects of a part benchmark; None for whole pictures."""
        if all(s.object_id is None for e in self for s in (e.query, *e.supports)):
            return None
        return hashlib.sha256(json.dumps(self._objects()).encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """Hash of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Picture:
    """A decoded sample at its own size: RGB image, mask (H, W) uint8 {0, 1}, ignored pixels likewise or None."""

    image: Image.Image
    mask: np.ndarray
    ignore: np.ndarray | None = None


@dataclass(frozen=True)
class DecodedEpisode:
    """An episode's pixels at (S, S). Pictures are kept as uint8 (3, S, S); `*_image(s)` give float32 in [-1, 1]."""

    class_id: int
    query_name: str
    support_names: list[str]
    query_rgb: np.ndarray  # uint8 (3, S, S)
    query_mask: np.ndarray  # uint8 (S, S) in {0, 1}
    query_ignore: np.ndarray | None  # uint8 (S, S) in {0, 1}
    support_rgb: np.ndarray  # uint8 (n, 3, S, S)
    support_masks: np.ndarray  # uint8 (n, S, S) in {0, 1}

    @property
    def query_image(self) -> np.ndarray:
        """float32 (3, S, S) in [-1, 1]."""
        return normalize(self.query_rgb)

    @property
    def support_images(self) -> np.ndarray:
        """float32 (n, 3, S, S) in [-1, 1]."""
        return normalize(self.support_rgb)


class Benchmark(ABC):
    """One data set: its classes, the images of each, how test episodes are drawn, how a sample is decoded."""

    folder = ""  # its own folder in `root`
    folds: int | None = 4  # 0: any fold is taken and none is meant
    test_episodes = 1000
    builtin_lists = False  # whether the published lists are built in
    class_ids: list[int]  # of the split: the fold's novel classes in the test split
    class_names: dict[int, str]
    images: dict[int, list[Sample]]  # of each class, in the order that the published episodes need
    groups: Sequence[tuple[float, list[int]]] = ()  # weights and classes that training draws from, if not all alike

    def __init__(
        self, root: Path, fold: int | None, split: str, splits: str = "auto", shots: int = 1, **options: Any
    ) -> None:
        """See `load_benchmark`; fold None holds no class out of training. options: what `read` takes."""
        self.root = self.find_root(root, self.folder) if self.folder else root
        self.holds_out, self.fold = fold is not None, (fold or 0) if self.folds != 0 else 0
        self.split, self.splits, self.shots = split, splits, shots
        self.read(**options)

    @abstractmethod
    def read(self) -> None:
        """Reads the lists: sets class_ids, class_names and images."""

    @abstractmethod
    def files(self, sample: Sample) -> list[Path]:
        """Returns the files that decoding the sample reads."""

    @abstractmethod
    def decode(self, sample: Sample, class_id: int) -> Picture:
        """Reads a sample's picture and its mask of the class."""

    def draw(self, shots: int) -> EpisodeList:
        """Draws the episodes of the protocol without touching a picture."""
        return draw_by_choice(self, shots, self.test_episodes)

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the ids of the classes with a pixel in the sample, of all that the benchmark knows of it."""
        return [class_id for class_id, samples in self.images.items() if sample in samples]

    def of_split(self, count: int, novel: Iterable[int]) -> list[int]:
        """Returns which of the classes 0 .. count-1 the split has, when these are the fold's novel ones."""
        held_out = set(novel) if self.holds_out else set()
        return [c for c in range(count) if (c in held_out) == (self.split == "test")]

    @staticmethod
    def find_root(root: Path, name: str) -> Path:
        """Returns root/name, or root itself where it is the benchmark's own folder."""
        return root / name if (root / name).is_dir() or root.name != name else root

    def check_classes(self, class_ids: Iterable[int]) -> None:
        """Raises InputError for a class with a single image, which would leave no support."""
        for class_id in class_ids:
            count = len({sample.name for sample in self.images[class_id]})
            if count < 2:
                name = self.class_names[class_id]
                raise InputError(
                    f"class {class_id} ({name}) has {count} image in the lists of fold {self.fold}; "
                    "an episode needs a query and another image"
                )

    def check_files(self, samples: Iterable[Sample]) -> None:
        """Raises InputError if a file of these samples is not there; decodes nothing."""
        files = [file for sample in dict.fromkeys(samples) for file in self.files(sample)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            counts = f"{len(missing)} of {len(files)} files are missing"
            raise InputError(f"{missing[0]} does not exist ({counts}); see datasets/README.md")


class LegacyDraws:
    """Draws as the reference does, from numpy's legacy generator."""

    def __init__(self, seed: int = TEST_SEED) -> None:
        self._generator = np.random.RandomState(seed)

    def choice(self, items: Sequence[Item]) -> Item:
        """Equals np.random.choice(items, 1, replace=False)[0], and advances the generator the same way."""
        return items[self._generator.permutation(len(items))[0]]

    def supports(self, items: Sequence[Sample], query: Sample, shots: int) -> tuple[Sample, ...]:
        """Draws until `shots` samples other than the query are found; the same one may come twice."""
        found: list[Sample] = []
        while len(found) < shots:
            sample = self.choice(items)
            if sample.name != query.name:
                found.append(sample)
        return tuple(found)


def draw_by_choice(benchmark: Benchmark, shots: int, count: int) -> EpisodeList:
    """Draws as COCO-20i does: class, query, then supports, each by one choice."""
    draws, episodes = LegacyDraws(), []
    for _ in range(count):
        class_id = draws.choice(benchmark.class_ids)
        benchmark.check_classes([class_id])
        query = draws.choice(benchmark.images[class_id])
        episodes.append(Episode(class_id, query, draws.supports(benchmark.images[class_id], query, shots)))
    return EpisodeList(episodes)


def draw_in_turn(benchmark: Benchmark, shots: int, count: int) -> EpisodeList:
    """Draws as LVIS-92i does: the classes in turn, then query and supports by choice."""
    draws, episodes = LegacyDraws(), []
    benchmark.check_classes(benchmark.class_ids)
    for index in range(count):
        class_id = benchmark.class_ids[index % len(benchmark.class_ids)]
        query = draws.choice(benchmark.images[class_id])
        episodes.append(Episode(class_id, query, draws.supports(benchmark.images[class_id], query, shots)))
    return EpisodeList(episodes)


class EpisodeDataset:
    """The decoded episodes of a list: `dataset[i]` reads pictures, the list itself (`episodes`) holds names only."""

    def __init__(self, benchmark: Benchmark, drawn: EpisodeList, image_size: int, count: int | None = None) -> None:
        self.benchmark = benchmark
        self.published = drawn
        self.episodes = drawn[:count]
        self.image_size = image_size

    @property
    def fold(self) -> int:
        """The fold whose classes are novel."""
        return self.benchmark.fold

    @property
    def class_ids(self) -> list[int]:
        """Ids of the fold's classes."""
        return self.benchmark.class_ids

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the fold's classes by id."""
        return {class_id: self.benchmark.class_names[class_id] for class_id in self.class_ids}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> DecodedEpisode:
        episode = self.episodes[index]
        decode = functools.partial(decode_sample, self.benchmark, class_id=episode.class_id, size=self.image_size)
        query_rgb, query_mask, query_ignore = decode(episode.query)
        supports = [decode(support) for support in episode.supports]
        return DecodedEpisode(
            class_id=episode.class_id,
            query_name=episode.query.name,
            support_names=[support.name for support in episode.supports],
            query_rgb=query_rgb,
            query_mask=query_mask,
            query_ignore=query_ignore,
            support_rgb=np.stack([rgb for rgb, _, _ in supports]),
            support_masks=np.stack([mask for _, mask, _ in supports]),
        )

    def query_picture(self, index: int) -> Picture:
        """Decodes an episode's query at its own size."""
        episode = self.episodes[index]
        return read_picture(self.benchmark, episode.query, episode.class_id)

    def check_files(self) -> None:
        """Raises InputError if a picture or mask of the list is not there; decodes nothing."""
        samples = dict.fromkeys(s for episode in self.episodes for s in (episode.query, *episode.supports))
        self.benchmark.check_files(samples)


def read_picture(benchmark: Benchmark, sample: Sample, class_id: int) -> Picture:
    """Decodes a sample at its own size; a mask of another size than its picture is an InputError."""
    picture = benchmark.decode(sample, class_id)
    if picture.mask.shape != picture.image.size[::-1]:
        height, width = picture.mask.shape
        raise InputError(
            f"{benchmark.files(sample)[-1]}: the mask is {width} x {height}, "
            f"its picture {picture.image.width} x {picture.image.height}"
        )
    return picture


def decode_sample(
    benchmark: Benchmark, sample: Sample, class_id: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Decodes a sample at (size, size): RGB uint8 (3, S, S), mask uint8 {0, 1} (S, S), ignored pixels or None."""
    picture = read_picture(benchmark, sample, class_id)
    ignore = None if picture.ignore is None else resize_mask(picture.ignore, size)
    return resize_image(picture.image, size), resize_mask(picture.mask, size), ignore
