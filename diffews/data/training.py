"""Training episodes: episode i is a function of (seed, i) alone, whatever the workers, ranks and restarts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffews.data.episodes import Benchmark, Episode, Sample, decode_sample
from diffews.errors import InputError
from diffews.images.paint import WHITE_ON_BLACK, Rendering

EPISODE_STREAM, SHOTS_STREAM, NOISE_STREAM, GENERATION_STREAM = (
    0,
    1,
    2,
    3,
)  # second word of the seeds, so that streams never meet
MOST_ATTEMPTS = 100


class Source(Protocol):
    """Where an episode's pictures come from: decoded pixels, or cached latents."""

    def read(self, episode: Episode) -> Tensor | None:
        """Returns the pictures in the order of `picture_order`, or None if one of the masks is empty."""


@dataclass(frozen=True)
class TrainingBatch:
    """Episodes that are trained on together; P = 2 + 2 n pictures each, in the order of `picture_order`."""

    episodes: list[Episode]
    indices: list[int]
    shots: int
    pictures: Tensor  # uint8 pixels [B, P, 3, S, S], or float32 moments of the VAE's posterior [B, P, 2, 4, h, w]


@dataclass(frozen=True)
class Renderings:
    """How an episode's masks are painted: the query's, which is the target, and the supports', which are drawn."""

    target: Rendering = WHITE_ON_BLACK
    drawn: Rendering = WHITE_ON_BLACK


MASKS_ALONE = Renderings()  # of the released model
PictureKey = tuple[Sample, int | None, str]  # sample, class of the mask or None, name of the rendering or ""


def picture_order(episode: Episode, renderings: Renderings = MASKS_ALONE) -> list[PictureKey]:
    """Returns query, query mask, supports, support masks."""
    samples, c = episode.supports, episode.class_id
    masks: list[PictureKey] = [(s, c, renderings.drawn.name) for s in samples]
    images: list[PictureKey] = [(s, None, "") for s in samples]
    return [(episode.query, None, ""), (episode.query, c, renderings.target.name), *images, *masks]


class TrainingEpisodes:
    """Draws episodes of the training classes.

    pairs: episodes 2k and 2k + 1 share their query picture and ask for two of its classes, with supports of their own.
    """

    def __init__(self, benchmark: Benchmark, seed: int, pairs: bool = False) -> None:
        self.seed, self.pairs = seed, pairs
        self.images = {c: samples for c, samples in benchmark.images.items() if len(set(samples)) > 1}
        self.skipped = sorted(set(benchmark.class_ids) - set(self.images))
        if not self.images:
            raise InputError("no training class has two pictures; an episode needs a query and a support")
        self.class_ids = sorted(self.images)
        groups = [(w, [c for c in ids if c in self.images]) for w, ids in benchmark.groups]
        self.groups = [(weight, ids) for weight, ids in groups if ids]
        self.classes_of: dict[Sample, list[int]] = {}
        for class_id in self.class_ids if pairs else ():
            for sample in dict.fromkeys(self.images[class_id]):
                self.classes_of.setdefault(sample, []).append(class_id)

    def shots(self, micro_step: int, most: int) -> int:
        """Returns the number of supports, 1 .. most, of every episode of a micro-step."""
        return int(np.random.default_rng([self.seed, SHOTS_STREAM, micro_step]).integers(1, most + 1))

    def draw(self, index: int, shots: int, attempt: int = 0) -> Episode:
        """Draws episode `index`; a higher attempt gives another one in its place."""
        leader = index // 2 if self.pairs else index
        draws = np.random.default_rng([self.seed, EPISODE_STREAM, leader, attempt])
        classes = self.class_ids
        if len(self.groups) > 1:
            weights = np.array([weight for weight, _ in self.groups])
            classes = self.groups[draws.choice(len(self.groups), p=weights / weights.sum())][1]
        class_id = classes[draws.integers(len(classes))]
        query = self.images[class_id][draws.integers(len(self.images[class_id]))]
        if self.pairs and index % 2:
            others = [c for c in self.classes_of[query] if c != class_id]
            class_id = others[draws.integers(len(others))] if others else class_id
            draws = np.random.default_rng([self.seed, EPISODE_STREAM, leader, attempt, 1])
        images = self.images[class_id]
        supports: list[Sample] = []
        while len(supports) < shots:
            support = images[draws.integers(len(images))]
            if support != query:
                supports.append(support)
        return Episode(class_id, query, tuple(supports))

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Returns episode `index`'s Gaussian noise for the VAE's posterior, float32."""
        draws = np.random.default_rng([self.seed, NOISE_STREAM, index])
        return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))

    def generation_draws(self, index: int) -> np.random.Generator:
        """Returns the generator of episode `index`'s timestep and diffusion noise."""
        return np.random.default_rng([self.seed, GENERATION_STREAM, index])

    def batch(self, source: Source, indices: list[int], shots: int) -> TrainingBatch:
        """Reads a batch; an episode with an empty mask is drawn again."""
        drawn = [self._read(source, index, shots) for index in indices]
        pictures = torch.stack([pictures for _, pictures in drawn])
        return TrainingBatch([episode for episode, _ in drawn], indices, shots, pictures)

    def _read(self, source: Source, index: int, shots: int) -> tuple[Episode, Tensor]:
        for attempt in range(MOST_ATTEMPTS):
            episode = self.draw(index, shots, attempt)
            pictures = source.read(episode)
            if pictures is not None:
                return episode, pictures
        raise InputError(f"{MOST_ATTEMPTS} episodes in a row have an empty mask at this image size; use a larger one")


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of one process; a micro-step is `processes` times `batch` neighbouring indices, shared out."""

    episodes: TrainingEpisodes
    source: Source
    batch: int
    most_shots: int
    process: int = 0
    processes: int = 1

    def read(self, micro_step: int) -> TrainingBatch:
        """Reads this process's episodes of a micro-step."""
        first = (micro_step * self.processes + self.process) * self.batch
        shots = self.episodes.shots(micro_step, self.most_shots)
        return self.episodes.batch(self.source, list(range(first, first + self.batch)), shots)


class PixelSource:
    """Decodes an episode's pictures and paints its masks as RGB, so that all are encoded alike."""

    def __init__(self, benchmark: Benchmark, image_size: int, renderings: Renderings = MASKS_ALONE) -> None:
        self.benchmark, self.image_size, self.renderings = benchmark, image_size, renderings

    def read(self, episode: Episode) -> Tensor | None:
        """Returns uint8 [P, 3, S, S]; see `Source`."""
        decoded = [decode_sample(self.benchmark, s, episode.class_id, self.image_size)
                   for s in (episode.query, *episode.supports)]  # fmt: skip
        if not all(mask.any() for _, mask, _ in decoded):
            return None
        (query, query_mask, _), *supports = decoded
        target = self.renderings.target(query, query_mask)
        drawn = [self.renderings.drawn(rgb, mask) for rgb, mask, _ in supports]
        return torch.from_numpy(np.stack([query, target, *(rgb for rgb, _, _ in supports), *drawn]))
