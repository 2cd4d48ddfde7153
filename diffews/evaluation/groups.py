"""Groups of episodes that are computed together: decoded, segmented, counted on their device."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffews.data.episodes import DecodedSample, EpisodeDataset
from diffews.data.weak_masks import prompt_masks
from diffews.images.masks import Segmentation, check_decoded
from diffews.images.paint import to_pixels
from diffews.pipeline import DiffewsPipeline


@dataclass(frozen=True)
class Group:
    """The decoded episodes of a group, B of them with S supports each; all images are uint8.

    Attributes:
        indices: their places in the list; the last group is padded by repeating its last episode.
        query_rgb, query_masks, query_ignore: [B, 3, H, W], [B, H, W] and [B, H, W] or None.
        support_rgb, support_masks: [B*S, 3, H, W] and [B*S, H, W].
        distinct: [B + 2*B*S], the same number for the same picture: queries, supports, masks.
        originals: the queries at their own size, each once, if they are asked for.
        names: of the queries, [B].
        negatives: the same queries with supports of a class that they do not hold, if asked for.

    """

    indices: list[int]
    query_rgb: Tensor
    query_masks: Tensor
    query_ignore: Tensor | None
    support_rgb: Tensor
    support_masks: Tensor
    distinct: Tensor
    originals: list[DecodedSample]
    names: list[str] = field(default_factory=list)
    negatives: "Group | None" = None

    def shown(
        self, row: int
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
        """What a picture of one episode shows: supports with masks, query, truth.

        Images are (H, W, 3), masks (H, W).
        """
        own = self._supports(row)
        images = self.support_rgb[own].permute(0, 2, 3, 1).numpy()
        pairs = list(zip(images, self.support_masks[own].numpy(), strict=True))
        return pairs, self.query_rgb[row].permute(1, 2, 0).numpy(), self.query_masks[row].numpy()

    def empty_masks(self, row: int) -> list[str]:
        """Which masks of an episode mark no pixel at this size: "query", "support"."""
        supports = self.support_masks[self._supports(row)].flatten(1)
        found = {"query": self.query_masks[row].any(), "support": supports.any(1).all()}
        return [name for name, is_marked in found.items() if not is_marked]

    def _supports(self, row: int) -> slice:
        """Where an episode's supports lie."""
        shots = len(self.support_rgb) // len(self.indices)
        return slice(row * shots, (row + 1) * shots)

    def mirrored(self) -> "Group":
        """Returns the group with what the model is shown flipped left to right."""
        shown = ("query_rgb", "support_rgb", "support_masks")
        return dataclasses.replace(self, **{name: getattr(self, name).flip(-1) for name in shown})

    def all_distinct(self) -> "Group":
        """Returns the group as one that shares no picture, which takes the most memory."""
        return dataclasses.replace(self, distinct=torch.arange(len(self.distinct)))

    def pin_memory(self) -> "Group":
        """Returns the group in memory from which a GPU can copy while it computes."""
        pinned: dict[str, Any] = {
            name: value.pin_memory() for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "distinct"}
        return dataclasses.replace(self, **pinned)


def make_groups(count: int, batch: int) -> list[list[int]]:
    """Cuts 0 .. count-1 into groups of `batch`; the last is padded by repeating its last index."""
    starts = range(0, count, batch)
    return [[min(i, count - 1) for i in range(start, start + batch)] for start in starts]


def read_group(
    dataset: EpisodeDataset, indices: list[int], originals: bool = False, prompt: str = "mask"
) -> Group:
    """Decodes a group's episodes.

    Args:
        dataset: the episodes.
        indices: which of them; one that stands twice is decoded once.
        originals: also keep the queries at their own size.
        prompt: what the supports' masks are shown as, see `prompt_masks`.

    """
    decoded = {index: dataset[index] for index in dict.fromkeys(indices)}
    episodes = [decoded[index] for index in indices]
    ignore = [episode.query_ignore for episode in episodes if episode.query_ignore is not None]

    # a picture that several episodes of the group share is encoded once
    named = [dataset.episodes[index] for index in indices]
    keys: list[tuple[Any, ...]] = [(episode.query, None) for episode in named]
    keys += [(sample, None) for episode in named for sample in episode.supports]
    for index, episode in zip(indices, named, strict=True):
        for shot, sample in enumerate(episode.supports):  # a weak mask is drawn for its place alone
            place = () if prompt == "mask" else (index, shot)
            keys.append((sample, episode.class_id, *place))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}

    masks = [prompt_masks(episode.support_masks, prompt, index)
             for index, episode in zip(indices, episodes, strict=True)]
    own = [dataset.decode_query(index) for index in decoded] if originals else []
    return Group(
        indices=indices,
        query_rgb=_stack([episode.query_rgb for episode in episodes]),
        query_masks=_stack([episode.query_mask for episode in episodes]),
        query_ignore=_stack(ignore) if ignore else None,
        support_rgb=_stack([episode.support_rgb for episode in episodes]).flatten(0, 1),
        support_masks=_stack(masks).flatten(0, 1),
        distinct=torch.tensor([numbers[key] for key in keys]), originals=own,
        names=[episode.query_name for episode in episodes])


def segment_group(
    pipeline: DiffewsPipeline, group: Group, shots: int, kv_sampling: int | None = None,
    flips: bool = False,
) -> Segmentation:
    """Encodes a group's support sets and segments its queries.

    Args:
        pipeline: the model.
        group: as `read_group` gives it.
        shots: supports of an episode.
        kv_sampling: keep only so many shots' worth of keys and values (paper, section 4.5).
        flips: average the scores with those of the mirrored episode, for twice the work.

    """
    found = _segment_group(pipeline, group, shots, kv_sampling)
    if flips:
        mirrored = _segment_group(pipeline, group.mirrored(), shots, kv_sampling)
        found = found.averaged_with(mirrored.mirrored())
    return found


@torch.no_grad()
def _segment_group(
    pipeline: DiffewsPipeline, group: Group, shots: int, kv_sampling: int | None
) -> Segmentation:
    device = pipeline._execution_device
    queries = to_pixels(group.query_rgb.to(device, non_blocking=True))
    supports = to_pixels(group.support_rgb.to(device, non_blocking=True))
    masks = group.support_masks.to(device, non_blocking=True)

    # the exact path: each call of the VAE takes what the reference's takes; all of them come before
    # the UNet's, since low_memory= moves each part to the GPU when its turn comes
    if len(group.indices) == 1:
        latents = pipeline.encode_images(queries)
        bank = pipeline.encode_support_pixels(supports, masks, shots)
    else:
        latents, bank = pipeline.encode_episodes(queries, supports, masks, shots, group.distinct)

    # one draw a group, seeded by its first episode: another batch= keeps other tokens
    if kv_sampling is not None:
        generator = torch.Generator().manual_seed(group.indices[0])
        bank = bank.sample(min(kv_sampling, bank.shots), generator)
    return pipeline.segment(queries, bank, latents)


def count_pixels(masks: Tensor, group: Group) -> Tensor:
    """Counts intersection and union where the masks were computed.

    Args:
        masks: predictions, bool [..., B, H, W].
        group: what holds the truth; its ignored pixels are left out of both.

    Returns:
        int64 [..., B, 2, 2]: intersection and union, each of background and foreground.

    """
    truth = group.query_masks.to(masks.device, non_blocking=True) > 0
    agree, differ = masks == truth, masks != truth
    if group.query_ignore is not None:
        valid = group.query_ignore.to(masks.device, non_blocking=True) == 0
        agree, differ = agree & valid, differ & valid

    inter = torch.stack([(agree & ~truth).sum((-2, -1)), (agree & truth).sum((-2, -1))], dim=-1)
    return torch.stack([inter, inter + differ.sum((-2, -1))[..., None]], dim=-2)


@dataclass(frozen=True)
class Answer:
    """What was found of a group, perhaps still on its way from the GPU.

    Attributes:
        group: the group.
        counts: [T, B, 2, 2] as `count_pixels` gives them, at T thresholds.
        masks: bool [B, H, W] at the first threshold.
        own_size: masks, bool (H_i, W_i), of the group's originals.
        finite, dtypes: as in `Segmentation`.
        ready: on a GPU, the event after which counts and masks have arrived in main memory.
        presence: [B], where somebody was asked for it.
        negatives: what was found of the group's negatives.

    """

    group: Group
    counts: Tensor
    masks: Tensor
    own_size: list[np.ndarray]
    finite: Tensor
    dtypes: str = ""
    ready: Any = None
    presence: Tensor | None = None
    negatives: "Answer | None" = None

    def wait(self) -> "Answer":
        """Waits until everything has arrived.

        Raises:
            InputError: for a query whose decoded picture holds what is no number.

        """
        if self.ready is not None:
            self.ready.synchronize()
        if self.negatives is not None:
            self.negatives.wait()
        check_decoded(self.finite.tolist(), self.group.names, self.dtypes)
        return self


def count_group(
    segmentation: Segmentation, group: Group, thresholds: list[tuple[float, str]]
) -> Answer:
    """Counts a group's queries; on a GPU it returns before the counts are there.

    Args:
        segmentation: what `segment_group` said of the group.
        group: as `read_group` gives it.
        thresholds: (threshold, rule) pairs; the first is the run's own.

    """
    masks = torch.stack([segmentation.masks(*threshold) for threshold in thresholds])
    counts = count_pixels(masks, group)

    own_size = []
    if group.originals:
        shapes = [picture.mask.shape for picture in group.originals]
        rows = Segmentation(segmentation.rgb[: len(shapes)])
        own_size = [mask for mask, _ in rows.at_sizes(shapes, *thresholds[0])]

    finite = segmentation.finite
    if finite is None:
        finite = torch.ones(len(segmentation.rgb), dtype=torch.bool, device=masks.device)
    sure = segmentation.presence
    if masks.device.type != "cuda":
        return Answer(
            group, counts, masks[0], own_size, finite, segmentation.dtypes, presence=sure)
    counts, first, finite = (_to_pinned(tensor) for tensor in (counts, masks[0], finite))
    sure = None if sure is None else _to_pinned(sure)
    ready = torch.cuda.Event()
    ready.record()
    return Answer(group, counts, first, own_size, finite, segmentation.dtypes, ready, sure)


def _to_pinned(tensor: Tensor) -> Tensor:
    """Starts a copy into main memory that the GPU does not wait for."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _stack(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
