"""What the pipeline says of queries, in the forms that people ask for."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from diffusers.utils import BaseOutput

from diffews.images.scores import LabelMaps as LabelMaps, check_output_type as check_output_type
from diffews.images.scores import in_form

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

    def as_type(self, kind: str) -> "DiffewsOutput":
        """Returns masks and scores as arrays ("np"), tensors ("pt") or pictures ("pil").

        Pictures of masks hold 0 and 255 (mode L), those of scores the scores (mode F).
        """
        masks, scores = in_form(self.masks, self.scores, kind)
        return replace(self, masks=masks, scores=scores)
