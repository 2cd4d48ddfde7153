"""What the pipeline says of queries."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput


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


class LabelMaps(list[np.ndarray]):
    """Label maps; `presence` holds a list for each query, one float a class, or is None."""

    presence: list[list[float]] | None = None
