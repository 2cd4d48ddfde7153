"""Evaluates weights from memoised latents: 600 episodes of shapes in seconds of one core.

The VAE encodes every picture, whole mask and weak mask of the test lists once, in batches, and
keeps them in one file. Batches round otherwise than `diffews eval batch=1` (a pixel on the
threshold may flip), alike for all weights: fit for comparing recipes, not for publishing a score.
"""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from diffews import DiffewsPipeline, load_pipeline
from diffews.data import load_benchmark
from diffews.data.episodes import Sample, decode_sample
from diffews.data.weak_masks import prompt_masks
from diffews.evaluation.metrics import Scores
from diffews.images.masks import Segmentation, quantize
from diffews.images.paint import WHITE_ON_BLACK, to_pixels
from diffews.models.unet import TIMESTEP
from diffews.models.vae import decode_latents, encode_latents
from diffews.runtime.files import write_atomic

BATCH = 24


@dataclasses.dataclass(frozen=True)
class Counts:
    """Foreground of each episode: intersections and unions (episodes,), and the classes."""

    classes: np.ndarray
    inter: np.ndarray
    union: np.ndarray

    def miou(self, class_ids: Sequence[int]) -> float:
        """The mIoU in percent."""
        scores = Scores(class_ids)
        for c, inter, union in zip(self.classes, self.inter, self.union, strict=True):
            scores.add(int(c), [0, int(inter)], [0, int(union)])
        return scores.miou()


class QuickTest:
    """The test episodes of a fold, whose latents are encoded once and kept in `memo`.

    Lists are drawn for 5 shots, of which the first are taken: all rows ask the same queries.
    """

    def __init__(self, data: Path, fold: int, memo: Path, episodes: int, size: int = 64) -> None:
        self.size, self.memo = size, memo
        self.dataset = load_benchmark(
            "coco20i", data, fold, shots=5, image_size=size, episodes=episodes
        )
        self.latents = load_file(memo) if memo.is_file() else {}
        self.truth = np.stack([self.decode(e.query, e.class_id)[1] for e in self.dataset.episodes])

    def decode(self, sample: Sample, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """RGB (3, S, S) and mask (S, S) of a sample."""
        rgb, mask, _ = decode_sample(self.dataset.benchmark, sample, class_id, self.size)
        return rgb, mask

    def pictures(self, index: int, shots: int, prompt: str) -> dict[str, list[str]]:
        """Names of the latents of an episode's query, supports and masks."""
        episode = self.dataset.episodes[index]
        supports = episode.supports[:shots]
        place = [f"@{index}.{shot}" if prompt != "mask" else "" for shot in range(shots)]
        return {
            "query": [episode.query.name],
            "supports": [sample.name for sample in supports],
            "masks": [
                f"{sample.name}:{episode.class_id}:{prompt}{where}"
                for sample, where in zip(supports, place, strict=True)
            ],
        }

    def encode_missing(self, pipe: DiffewsPipeline, rows: Iterable[tuple[int, str]]) -> None:
        """Encodes what the rows, pairs of shots and prompt, need and is not there."""
        missing: dict[str, np.ndarray] = {}
        for shots, prompt in rows:
            for index, episode in enumerate(self.dataset.episodes):
                named = self.pictures(index, shots, prompt)
                names = [name for part in named.values() for name in part]
                if all(name in self.latents or name in missing for name in names):
                    continue
                decoded = [self.decode(s, episode.class_id) for s in episode.supports[:shots]]
                masks = prompt_masks(np.stack([mask for _, mask in decoded]), prompt, index)
                query = self.decode(episode.query, episode.class_id)[0]
                images = [query, *(rgb for rgb, _ in decoded)]
                images += [WHITE_ON_BLACK(query, mask) for mask in masks]
                missing |= {
                    n: x for n, x in zip(names, images, strict=True) if n not in self.latents
                }
        names = list(missing)
        vae = pipe.vae.to(memory_format=torch.channels_last)
        for first in range(0, len(names), BATCH):
            part = names[first : first + BATCH]
            rgb = torch.from_numpy(np.stack([missing[name] for name in part]))
            pixels = to_pixels(rgb).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                encoded = encode_latents(vae, pixels).contiguous()
            self.latents |= {n: x.clone() for n, x in zip(part, encoded, strict=True)}
        if names:
            write_atomic(self.memo, save(self.latents))

    @torch.no_grad()
    def run(
        self, pipe: DiffewsPipeline, shots: int, prompt: str, thresholds: Sequence[float]
    ) -> dict[float, Counts]:
        """Counts every episode at each threshold."""
        self.encode_missing(pipe, [(shots, prompt)])
        vae = pipe.vae.to(memory_format=torch.channels_last)
        text, step, method = pipe._text(), torch.tensor(TIMESTEP), pipe.method
        counts: dict[float, list[np.ndarray]] = {t: [] for t in thresholds}
        for first in range(0, len(self.truth), BATCH):
            truth = self.truth[first : first + BATCH].astype(bool)
            named = [self.pictures(first + i, shots, prompt) for i in range(len(truth))]
            query, *features = (
                torch.stack([self.latents[name] for one in named for name in one[part]])
                for part in ("query", "supports", "masks")
            )
            support = method.injection.join(features, None)
            state = method.interaction.prepare(pipe.unet, support, step, text, shots)
            answer = method.interaction.segment(pipe.unet, query, step, text, state)
            decoded = decode_latents(vae, answer.contiguous(memory_format=torch.channels_last))
            rgb = quantize(decoded).float() / 255
            for threshold in thresholds:
                found = Segmentation(rgb).masks(threshold, "reference").numpy()
                both = [(found & truth).sum((1, 2)), (found | truth).sum((1, 2))]
                counts[threshold].append(np.stack(both))
        classes = np.array([e.class_id for e in self.dataset.episodes])
        joined = {t: np.concatenate(parts, 1) for t, parts in counts.items()}
        return {t: Counts(classes, *both) for t, both in joined.items()}


def open_weights(weight: Path) -> DiffewsPipeline:
    """Loads weights on one thread."""
    torch.set_num_threads(1)
    return load_pipeline(weight)


def save_counts(path: Path, counts: dict[str, Counts]) -> None:
    """Writes counts by name, complete or not at all."""
    file = io.BytesIO()
    np.savez(file, **{f"{n}/{k}": v for n, c in counts.items() for k, v in vars(c).items()})
    write_atomic(path, file.getvalue())


def read_counts(path: Path) -> dict[str, Counts]:
    """Reads what `save_counts` wrote."""
    with np.load(path) as file:
        names = dict.fromkeys(key.rpartition("/")[0] for key in file)
        return {
            n: Counts(*(file[f"{n}/{k}"] for k in ("classes", "inter", "union"))) for n in names
        }
