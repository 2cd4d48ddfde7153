"""Episodes: drawn up front by name, decoded one by one."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

import numpy as np
from PIL import Image

from diffews.data.lists import read_json_file
from diffews.errors import InputError, refuse
from diffews.images.files import normalize, open_mask, open_rgb, resize_image
from diffews.images.masks import resize_mask
from diffews.runtime.files import write_atomic

TEST_SEED = 0  # of numpy's legacy generator, set once before the first episode
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """One image of a benchmark, by the name that the reference prints; or one object in it."""

    name: str
    object_id: int | None = None  # of part benchmarks, whose images are cropped to an object


@dataclass(frozen=True)
class Episode:
    """A drawn episode: which class, which query, which supports. Names only."""

    class_id: int
    query: Sample
    supports: tuple[Sample, ...]

    def names(self) -> list[Any]:
        """Returns [class_id, query, [supports]], the form in which lists are printed and hashed."""
        return [self.class_id, self.query.name, [support.name for support in self.supports]]

    def object_ids(self) -> list[Any]:
        """Returns [query's object, [supports' objects]]; all are None but in part benchmarks."""
        return [self.query.object_id, [support.object_id for support in self.supports]]


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
        found = self._episodes[index]
        return found if isinstance(found, Episode) else EpisodeList(found)

    def first_shots(self, shots: int) -> "EpisodeList":
        """Returns the same queries with the first `shots` supports of each."""
        return EpisodeList(replace(e, supports=e.supports[:shots]) for e in self)

    @property
    def shots(self) -> int:
        """Supports of each episode."""
        return len(self[0].supports)

    @property
    def sha256(self) -> str:
        """Hash of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def objects_sha256(self) -> str | None:
        """Hash of the objects of a part benchmark; None for whole images."""
        if all(s.object_id is None for e in self for s in (e.query, *e.supports)):
            return None
        objects = json.dumps([episode.object_ids() for episode in self])
        return hashlib.sha256(objects.encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the list as JSON: [[class_id, query, [supports]], ...]."""
        return json.dumps([episode.names() for episode in self])

    def save(self, path: Path) -> None:
        """Writes the list with its hash, and the objects of part benchmarks, as JSON."""
        content = {"sha256": self.sha256, "objects_sha256": self.objects_sha256,
                   "episodes": [episode.names() for episode in self],
                   "objects": [episode.object_ids() for episode in self]}
        write_atomic(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "EpisodeList":
        """Reads what `save` wrote.

        Raises:
            InputError: for another kind of file, or a list that does not have its hash.

        """
        content = read_json_file(path)
        with refuse(f"{path} is no list of episodes", KeyError, TypeError, ValueError,
                    cure="`diffews episodes save=FILE` writes one"):
            pairs = zip(content["episodes"], content["objects"], strict=True)
            episodes = cls(
                Episode(class_id, Sample(query, query_object),
                        tuple(Sample(*s) for s in zip(supports, objects, strict=True)))
                for (class_id, query, supports), (query_object, objects) in pairs)
            if len({len(episode.supports) for episode in episodes}) != 1:
                raise ValueError("no episode, or not the same number of supports in each")

        # a list that was edited by hand is not the list that its results name
        hashes = [content.get("sha256"), content.get("objects_sha256")]
        if hashes != [episodes.sha256, episodes.objects_sha256]:
            raise InputError(
                f"{path}: the episodes do not have the hash that the file says; it was changed")
        return episodes


class LegacyDraws:
    """Draws as the reference does, from numpy's legacy generator."""

    def __init__(self, seed: int = TEST_SEED) -> None:
        self._generator = np.random.RandomState(seed)

    def choice(self, items: Sequence[Item]) -> Item:
        """Equals np.random.choice(items, 1, replace=False)[0], and advances the generator alike."""
        return items[self._generator.permutation(len(items))[0]]

    def supports(self, items: Sequence[Sample], query: Sample, shots: int) -> tuple[Sample, ...]:
        """Draws until `shots` samples other than the query are found; one may come twice."""
        found: list[Sample] = []
        while len(found) < shots:
            sample = self.choice(items)
            if sample.name != query.name:
                found.append(sample)
        return tuple(found)


@dataclass(frozen=True)
class DecodedSample:
    """A sample's pixels at its own size (H, W)."""

    image: Image.Image  # RGB
    mask: np.ndarray  # uint8 (H, W) in {0, 1}
    ignore: np.ndarray | None = None  # uint8 (H, W) in {0, 1}: pixels that count for nothing


@dataclass(frozen=True)
class DecodedEpisode:
    """An episode's pixels at (S, S), the images as uint8; `*_image(s)` give them normalised."""

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
    """One data set: its classes, their images, how test episodes are drawn and samples decoded."""

    folder = ""  # its own folder in `root`
    test_episodes = 1000
    classes_in_turn = False  # whether test episodes take the classes in turn, or draw them
    builtin_lists = False  # whether the published lists are built in
    labels_all = True  # whether `classes_in` knows every class that a picture holds
    class_ids: list[int]  # of the split: the fold's novel classes in the test split
    class_names: dict[int, str]
    images: dict[int, list[Sample]]  # of each class, in the order that published episodes need
    groups: Sequence[tuple[float, list[int]]] = ()  # weight and classes of each part of a mix
    reading: Mapping[str, Any] = MappingProxyType({})  # keys that change masks, where they are set

    def __init__(self, root: Path, fold: int | None, split: str, splits: str = "auto",
                 shots: int = 1, **options: Any) -> None:
        """See `open_benchmark`; options: what `read_lists` takes."""
        self.root = self.find_root(root, self.folder) if self.folder else root
        self.holds_out, self.fold = fold is not None, fold or 0
        self.split, self.splits, self.shots = split, splits, shots
        self.subset = "train" if split == "train" else "val"  # which of the data set's images
        self.read_lists(**options)

    @abstractmethod
    def read_lists(self) -> None:
        """Sets class_ids, class_names and images; its arguments are the benchmark's own keys."""

    @abstractmethod
    def files(self, sample: Sample) -> list[Path]:
        """Returns the files that decoding the sample reads, its image first."""

    @abstractmethod
    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        """Reads a sample's image and its mask of the class."""

    def queries(self, draws: LegacyDraws) -> Iterator[tuple[int, Sample]]:
        """Yields class and query of each test episode; its supports are drawn before the next."""
        for index in range(self.test_episodes):
            class_id = (self.class_ids[index % len(self.class_ids)] if self.classes_in_turn
                        else draws.choice(self.class_ids))
            self.check_classes([class_id])
            yield class_id, draws.choice(self.images[class_id])

    def draw(self, shots: int) -> EpisodeList:
        """Draws the episodes of the protocol without touching an image."""
        draws = LegacyDraws()
        return EpisodeList(
            Episode(class_id, query, draws.supports(self.images[class_id], query, shots))
            for class_id, query in self.queries(draws))

    def classes_in(self, sample: Sample) -> list[int]:
        """Returns the classes with a pixel in the sample, of all that the benchmark knows of it."""
        return [class_id for class_id, samples in self.images.items() if sample in samples]

    def set_classes(self, names: Sequence[Any], novel: Collection[int] | None = None) -> None:
        """Sets class_names and class_ids; ids are positions in `names`.

        novel: ids of the classes that are held out: the test split has them, the others have the
            rest; of none where `holds_out` is false. None: all the names are the split's.
        """
        if not set(novel or ()) <= set(range(len(names))):
            raise ValueError(f"novel={novel}: ids are positions in the {len(names)} names")
        self.class_names = {c: str(name) for c, name in enumerate(names)}
        self.class_ids = [c for c in self.class_names
                          if novel is None or (c in novel) == (self.split == "test")]

    @staticmethod
    def find_root(root: Path, name: str) -> Path:
        """Returns root/name, or root itself where it is the benchmark's own folder."""
        return root / name if (root / name).is_dir() or root.name != name else root

    def check_classes(self, class_ids: Iterable[int]) -> None:
        """Raises InputError for a class with a single image, which would leave no support."""
        for class_id in class_ids:
            count = len({sample.name for sample in self.images[class_id]})
            if count < 2:
                raise InputError(
                    f"class {class_id} ({self.class_names[class_id]}) has {count} image in the "
                    f"lists of fold {self.fold}; an episode needs a query and another image")

    def check_files(self, samples: Iterable[Sample]) -> None:
        """Raises InputError if a file of these samples is not there; decodes nothing."""
        files: list[Path] = []
        folders: set[Path] = set()
        for file in (f for sample in dict.fromkeys(samples) for f in self.files(sample)):
            # without a folder there is no use in looking for each of its thousands of files
            if file.parent not in folders and not file.parent.is_dir():
                raise InputError(f"{file.parent} does not exist; see datasets/README.md")
            folders.add(file.parent)
            files.append(file)

        missing = [file for file in files if not file.is_file()]
        if missing:
            counts = f"{len(missing)} of {len(files)} files are missing"
            raise InputError(f"{missing[0]} does not exist ({counts}); see datasets/README.md")


class ClassMaps(Benchmark):
    """A benchmark whose masks are class-index PNGs: 0 background, class + 1, perhaps a boundary.

    `files` gives the image, then its class map.
    """

    classes: int
    boundary: int | None = None  # the value that counts for nothing
    values: str  # which values the masks hold, in words

    def decode(self, sample: Sample, class_id: int) -> DecodedSample:
        class_map = self.class_map(sample)
        ignore = None if self.boundary is None else (class_map == self.boundary).astype(np.uint8)
        mask = (class_map == class_id + 1).astype(np.uint8)
        return DecodedSample(open_rgb(self.files(sample)[0]), mask, ignore)

    def classes_in(self, sample: Sample) -> list[int]:
        values = np.unique(self.class_map(sample)).tolist()
        return [value - 1 for value in values if value not in (0, self.boundary)]

    def class_map(self, sample: Sample) -> np.ndarray:
        """Reads a class map (H, W); a value that is no class is an InputError."""
        file = self.files(sample)[1]
        class_map = open_mask(file)
        wrong = class_map[(class_map > self.classes) & (class_map != (self.boundary or 0))]
        if wrong.size:
            raise InputError(f"{file} holds the value {wrong.max()}; {self.values}")
        return class_map


class EpisodeDataset:
    """The decoded episodes of a list: `dataset[i]` reads files, `episodes` holds names only.

    benchmark: whose episodes they are; `fold`, `class_ids`, `class_names` are of its novel classes.
    published: the whole list; `episodes` is the first `count` of it.
    image_size: S of `DecodedEpisode`, in pixels.
    """

    def __init__(self, benchmark: Benchmark, published: EpisodeList, image_size: int,
                 count: int | None = None) -> None:
        self.benchmark, self.image_size = benchmark, image_size
        self.published, self.episodes = published, published[:count]
        self.fold, self.class_ids = benchmark.fold, benchmark.class_ids
        self.class_names = {c: benchmark.class_names[c] for c in self.class_ids}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> DecodedEpisode:
        episode = self.episodes[index]
        decode = functools.partial(decode_sample, self.benchmark, class_id=episode.class_id,
                                   size=self.image_size)
        query_rgb, query_mask, query_ignore = decode(episode.query)
        supports = [decode(support) for support in episode.supports]

        return DecodedEpisode(
            episode.class_id, episode.query.name, [support.name for support in episode.supports],
            query_rgb, query_mask, query_ignore,
            support_rgb=np.stack([rgb for rgb, _, _ in supports]),
            support_masks=np.stack([mask for _, mask, _ in supports]))

    def decode_query(self, index: int) -> DecodedSample:
        """Decodes an episode's query at its own size."""
        episode = self.episodes[index]
        return decode_checked(self.benchmark, episode.query, episode.class_id)

    def check_files(self) -> None:
        """Raises InputError if an image or mask of the list is not there; decodes nothing."""
        self.benchmark.check_files(s for e in self.episodes for s in (e.query, *e.supports))


def decode_checked(benchmark: Benchmark, sample: Sample, class_id: int) -> DecodedSample:
    """Decodes a sample at its own size; a mask of another size than its image is an InputError."""
    decoded = benchmark.decode(sample, class_id)
    if decoded.mask.shape != decoded.image.size[::-1]:
        height, width = decoded.mask.shape
        raise InputError(f"{benchmark.files(sample)[-1]}: the mask is {width} x {height}, "
                         f"its picture {decoded.image.width} x {decoded.image.height}")
    return decoded


def decode_sample(benchmark: Benchmark, sample: Sample, class_id: int,
                  size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Decodes a sample at (size, size).

    Returns RGB uint8 (3, S, S), the class's mask uint8 (S, S) in {0, 1}, and the pixels that
    count for nothing likewise, or None where the benchmark has none.
    """
    decoded = decode_checked(benchmark, sample, class_id)
    ignore = None if decoded.ignore is None else resize_mask(decoded.ignore, size)
    return resize_image(decoded.image, size), resize_mask(decoded.mask, size), ignore
