"""What the pipeline says of queries."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from diffusers.utils import BaseOutput

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class DiffewsOutput(BaseOutput):
    """What the pipeline says of each query, at the query's own size unless another is asked for.

    Attributes:
        masks: list of bool arrays (H_i, W_i).
        scores: list of float32 arrays (H_i, W_i) in [0, 1], the mean over RGB of the decoded
            picture, before the threshold.
        presence: how sure it is that the class is in each query at all, floats in [0, 1]; None
            where the weights have no presence head.

    """

    masks: list[np.ndarray]
    scores: list[np.ndarray]
    presence: list[float] | None = None

    def add(
        self, found: list[tuple[np.ndarray, np.ndarray]], presence: "Tensor | None"
    ) -> None:
        """Adds mask and score of each of B queries, and their presence [B] if it is known."""
        self.masks += [mask for mask, _ in found]
        self.scores += [score for _, score in found]
        if presence is not None:
            self.presence = [*(self.presence or []), *presence.tolist()]


class LabelMaps(list[np.ndarray]):
    """Label maps; `presence` holds a list for each query, one float a class, or is None."""

    presence: list[list[float]] | None = None

    def add(self, labels: list[np.ndarray], presence: list["Tensor | None"]) -> None:
        """Adds B label maps, and the presence of each class [B] if it is known."""
        self += labels
        known = [of_class.tolist() for of_class in presence if of_class is not None]
        if known:
            self.presence = [*(self.presence or []), *map(list, zip(*known, strict=True))]
