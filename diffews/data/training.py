"""Training episodes: episode i is a function of (seed, i), whatever workers, ranks and restarts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diffews.data.episodes import Benchmark, Episode, Sample, decode_sample
from diffews.data.weak_masks import Weaken, draw_weakening
from diffews.errors import InputError
from diffews.images.paint import WHITE_ON_BLACK, Rendering

# second word of the seeds, so that streams never meet
EPISODE_STREAM, SHOTS_STREAM, NOISE_STREAM, GENERATION_STREAM, WEAK_STREAM = range(5)
MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class Renderings:
    """What of an episode is encoded beside its query; the defaults are the released model's.

    Attributes:
        target: how the query's mask is painted, as the supervision says.
        painted: how the supports' masks are painted; None where the injection reads the masks.
        images: whether the supports' plain images are encoded.
        truth: whether the query's mask itself is kept, for a loss that reads it.

    """

    target: Rendering = WHITE_ON_BLACK
    painted: Rendering | None = WHITE_ON_BLACK
    images: bool = True
    truth: bool = False

    def of_masks(
        self, rgb: Sequence[np.ndarray], masks: Sequence[np.ndarray], weaken: Weaken | None
    ) -> dict[str, np.ndarray]:
        """What the injection takes of S supports' masks, by field of a `TrainingBatch`.

        rgb: uint8 (3, H, W) each. masks: uint8 (H, W) each. weaken: done to the masks before.
        """
        if weaken is not None:
            masks = [weaken(mask) for mask in masks]
        if self.painted is None:
            return {"masks": np.stack(masks)}
        pairs = zip(rgb, masks, strict=True)
        return {"painted": np.stack([self.painted(image, mask) for image, mask in pairs])}


@dataclass(frozen=True)
class TrainingBatch:
    """B episodes of S supports that are trained on together.

    Images are uint8 pixels [..., 3, H, W], or float32 moments of the VAE's posterior
    [..., 2, 4, h, w] from the latent cache.

    Attributes:
        episodes, indices: the B episodes, and their places in the stream of episodes.
        shots: S.
        query, target: [B, ...], the query and its painted mask.
        supports, painted: [B, S, ...], the supports and their painted masks; None where the
            injection does not encode them.
            A list where the latent cache lacks a part: weak masks are pixels.
        masks: [B, S, H, W] uint8 in {0, 1}, where the injection reads the supports' masks.
        truth: [B, H, W] uint8 in {0, 1}, the queries' masks, where the loss reads them.

    """

    episodes: list[Episode]
    indices: list[int]
    shots: int
    query: Tensor
    target: Tensor
    supports: Tensor | None = None
    painted: Tensor | list[Tensor] | None = None
    masks: Tensor | None = None
    truth: Tensor | None = None

    def pin_memory(self) -> "TrainingBatch":
        """Returns the batch in memory from which a GPU can copy while it computes."""
        pinned: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                pinned[name] = value.pin_memory()
            elif name == "painted" and value is not None:
                pinned[name] = [part.pin_memory() for part in value]
        return dataclasses.replace(self, **pinned)


class EpisodeReader(Protocol):
    """Where an episode's images come from: decoded pixels, or cached latents."""

    def read(self, episode: Episode, weaken: Weaken | None = None) -> dict[str, Tensor] | None:
        """Returns one episode's part of a `TrainingBatch` by field; None if a mask is empty.

        weaken: what is done to the supports' masks, if anything.
        """


class PixelReader:
    """Decodes an episode's images and paints its masks as RGB, so that all are encoded alike."""

    def __init__(self, benchmark: Benchmark, image_size: int, renderings: Renderings) -> None:
        self.benchmark, self.image_size, self.renderings = benchmark, image_size, renderings

    def read(self, episode: Episode, weaken: Weaken | None = None) -> dict[str, Tensor] | None:
        decoded = [decode_sample(self.benchmark, sample, episode.class_id, self.image_size)
                   for sample in (episode.query, *episode.supports)]
        if not all(mask.any() for _, mask, _ in decoded):
            return None
        (query, query_mask, _), *supports = decoded

        # the query and its target, and of the supports what the injection takes
        fields = {"query": query, "target": self.renderings.target(query, query_mask)}
        if self.renderings.truth:
            fields["truth"] = query_mask
        if self.renderings.images:
            fields["supports"] = np.stack([rgb for rgb, _, _ in supports])
        fields |= self.renderings.of_masks([rgb for rgb, _, _ in supports],
                                           [mask for _, mask, _ in supports], weaken)
        return {name: torch.from_numpy(array) for name, array in fields.items()}


class TrainingEpisodes:
    """Draws episodes of the training classes.

    Args:
        benchmark: the training lists.
        seed: of everything that is drawn.
        pairs: episodes 2k and 2k + 1 share their query and ask for two of its classes, with
            supports of their own.
        weak_masks: share of the episodes whose supports have weak masks, in [0, 1].

    Raises:
        InputError: if no class has two images.

    """

    def __init__(
        self, benchmark: Benchmark, seed: int, pairs: bool = False, weak_masks: float = 0.0
    ) -> None:
        self.seed, self.pairs, self.weak_masks = seed, pairs, weak_masks
        self.images = {c: samples for c, samples in benchmark.images.items()
                       if len(set(samples)) > 1}
        self.skipped = sorted(set(benchmark.class_ids) - set(self.images))
        if not self.images:
            raise InputError("no training class has two pictures; "
                             "an episode needs a query and a support")
        self.class_ids = sorted(self.images)

        # a mix draws its benchmark first, by weight
        groups = [(w, [c for c in ids if c in self.images]) for w, ids in benchmark.groups]
        self.groups = [(weight, ids) for weight, ids in groups if ids]
        self.classes_of: dict[Sample, list[int]] = {}
        for class_id in self.class_ids if pairs else ():
            for sample in dict.fromkeys(self.images[class_id]):
                self.classes_of.setdefault(sample, []).append(class_id)

    def shots(self, micro_step: int, most: int) -> int:
        """Returns the number of supports, 1 .. most, of every episode of a micro-step."""
        return int(self._generator(SHOTS_STREAM, micro_step).integers(1, most + 1))

    def draw(self, index: int, shots: int, attempt: int = 0) -> Episode:
        """Draws episode `index`; a higher attempt gives another one in its place."""
        leader = index // 2 if self.pairs else index
        draws = self._generator(EPISODE_STREAM, leader, attempt)

        # class and query, which the two of a pair have in common
        classes = self.class_ids
        if len(self.groups) > 1:
            weights = np.array([weight for weight, _ in self.groups])
            group = draws.choice(len(self.groups), p=weights / weights.sum())
            classes = self.groups[group][1]
        class_id = classes[draws.integers(len(classes))]
        query = self.images[class_id][draws.integers(len(self.images[class_id]))]

        # the second of a pair asks for another class of the query, if it has one
        if self.pairs and index % 2:
            others = [c for c in self.classes_of[query] if c != class_id]
            class_id = others[draws.integers(len(others))] if others else class_id
            draws = self._generator(EPISODE_STREAM, leader, attempt, 1)

        images, supports = self.images[class_id], list[Sample]()
        while len(supports) < shots:
            support = images[draws.integers(len(images))]
            if support != query:
                supports.append(support)
        return Episode(class_id, query, tuple(supports))

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Returns episode `index`'s Gaussian noise for the VAE's posterior, float32."""
        draws = self._generator(NOISE_STREAM, index)
        return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))

    def generation_draws(self, index: int) -> np.random.Generator:
        """Returns the generator of episode `index`'s timestep and diffusion noise."""
        return self._generator(GENERATION_STREAM, index)

    def weakening(self, index: int) -> Weaken | None:
        """Returns what is done to the masks of episode `index`'s supports; None for nothing."""
        if not self.weak_masks:
            return None
        return draw_weakening(self.weak_masks, self._generator(WEAK_STREAM, index))

    def batch(self, reader: EpisodeReader, indices: list[int], shots: int) -> TrainingBatch:
        """Reads a batch; an episode with an empty mask is drawn again.

        Raises:
            InputError: if an index gives an empty mask `MOST_ATTEMPTS` times.

        """
        episodes, read = [], []
        for index in indices:
            for attempt in range(MOST_ATTEMPTS):
                episode = self.draw(index, shots, attempt)
                fields = reader.read(episode, self.weakening(index))
                if fields is not None:
                    break
            else:
                raise InputError(f"{MOST_ATTEMPTS} episodes in a row have an empty mask at this "
                                 "image size; use a larger one")
            episodes.append(episode)
            read.append(fields)

        stacked: dict[str, Any] = {}
        for name in read[0]:
            parts = [fields[name] for fields in read]
            alike = len({part.dtype for part in parts}) == 1
            stacked[name] = torch.stack(parts) if alike else parts
        return TrainingBatch(episodes, indices, shots, **stacked)

    def _generator(self, *words: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *words])


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of one process.

    A micro-step is `processes` times `batch` neighbouring indices, shared out.
    """

    episodes: TrainingEpisodes
    reader: EpisodeReader
    batch: int
    most_shots: int
    process: int = 0
    processes: int = 1

    def read(self, micro_step: int) -> TrainingBatch:
        """Reads this process's episodes of a micro-step."""
        first = (micro_step * self.processes + self.process) * self.batch
        shots = self.episodes.shots(micro_step, self.most_shots)
        return self.episodes.batch(self.reader, list(range(first, first + self.batch)), shots)
