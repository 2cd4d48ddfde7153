"""What the pipeline says of queries, in the forms that people ask for."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image

from diffews.errors import InputError, nearest
from diffews.images.scores import LabelMaps as LabelMaps

if TYPE_CHECKING:
    from torch import Tensor

OUTPUT_TYPES = ("np", "pt", "pil")


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
        if kind == "np":
            return self
        changed: dict[str, Any] = {"masks": self.masks, "scores": self.scores}
        if kind == "pil":
            pictures = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in self.masks]
            changed = {"masks": pictures, "scores": [*map(Image.fromarray, self.scores)]}
        if kind == "pt":
            import torch

            changed = {name: [*map(torch.from_numpy, part)] for name, part in changed.items()}
        return replace(self, **changed)


def check_output_type(kind: str) -> None:
    """Raises InputError for a form that is none."""
    if kind not in OUTPUT_TYPES:
        raise InputError(f"output_type={kind!r} is not one of {', '.join(OUTPUT_TYPES)}"
                         f"{nearest(str(kind), OUTPUT_TYPES)}")
