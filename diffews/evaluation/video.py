"""Frames one after the other: the bank is the support, and the last frames that show the thing."""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffews.errors import InputError
from diffews.evaluation.queries import Query
from diffews.images.masks import resize_mask
from diffews.runtime.files import hash_files

if TYPE_CHECKING:
    from diffews.models.attention import SupportBank


class Supports:
    """The banks of pictures that have nothing to do with each other: the supports alone."""

    def __init__(self, banks: "Sequence[SupportBank]") -> None:
        self.banks = list(banks)

    def recall(self, query: Query) -> "list[SupportBank]":
        """Returns the bank of each class for a query."""
        return self.banks

    def remember(self, query: Query, image: Any, labels: np.ndarray) -> None:
        """Takes what was found in a query."""


class FrameMemory(Supports):
    """The banks of a video: the supports, which are never dropped, and the last frames.

    A frame is remembered for a class with the mask that was written of it, if that marks anything:
    where presence does not pass, it does not. Each folder is a video.

    Args:
        banks: of the supports, one for each class.
        frames: of all videos, in order.
        most: frames that are remembered.
        size: side in pixels that the model works at.
        encode: picture and mask -> bank.
        read_again: a frame -> picture and label map as written, or None; asked where a run goes on.

    """

    def __init__(
        self, banks: "Sequence[SupportBank]", frames: Sequence[Query], most: int, size: int,
        encode: "Callable[[Any, np.ndarray], SupportBank]",
        read_again: Callable[[Query], tuple[Any, np.ndarray] | None],
    ) -> None:
        super().__init__(banks)
        self.frames, self.most, self.size = frames, most, size
        self.encode, self.read_again = encode, read_again
        self.places = {frame: place for place, frame in enumerate(frames)}
        self.recent: list[deque[SupportBank]] = [deque(maxlen=most) for _ in banks]
        self.following: int | None = None  # the frame that comes after those remembered

    def recall(self, query: Query) -> "list[SupportBank]":
        place = self.places[query]
        first = place == 0 or self.frames[place - 1].file.parent != query.file.parent
        if first or place != self.following:
            self._begin_at(place)
        return [functools.reduce(lambda one, other: one.concatenate(other), recent, bank)
                for bank, recent in zip(self.banks, self.recent, strict=True)]

    def remember(self, query: Query, image: Any, labels: np.ndarray) -> None:
        self.following = self.places[query] + 1
        for label, recent in enumerate(self.recent, start=1):
            mask = labels == label
            if self.most and resize_mask(mask, self.size).any():
                recent.append(self.encode(image, mask))

    def _begin_at(self, place: int) -> None:
        """Remembers the frames before one of them as the run did that wrote their masks."""
        self.recent = [deque(maxlen=self.most) for _ in self.banks]
        self.following, folder = place, self.frames[place].file.parent
        waiting = {label: self.most for label in range(1, len(self.banks) + 1) if self.most}
        for frame in reversed(self.frames[:place]):
            if not waiting or frame.file.parent != folder:
                break
            if (found := self.read_again(frame)) is None:
                continue
            image, labels = found

            # from the last frame back to the first that still counts
            for label in list(waiting):
                mask = labels == label
                if resize_mask(mask, self.size).any():
                    self.recent[label - 1].appendleft(self.encode(image, mask))
                    waiting[label] -= 1
                    if waiting[label] == 0:
                        del waiting[label]


def stamp_frames(made_with: str, frames: Sequence[Query]) -> dict[Query, str]:
    """Returns a hash of each frame and of all before it, whose masks it may have seen."""
    stamps, so_far, folder = {}, made_with, None
    for frame in frames:
        if frame.file.parent != folder:
            folder, so_far = frame.file.parent, made_with
        try:
            content = hash_files([frame.file])
        except InputError:
            content = "unreadable"  # which is said where it is decoded
        so_far = hashlib.sha256((so_far + content).encode()).hexdigest()
        stamps[frame] = made_with + so_far
    return stamps
