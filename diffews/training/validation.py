"""A short evaluation during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from diffews.data.episodes import EpisodeDataset
from diffews.evaluation.groups import count_pixels, read_group, segment_group
from diffews.evaluation.metrics import Scores
from diffews.images.drawing import panel, save_image
from diffews.pipeline import DiffewsPipeline

DRAWN = 6  # episodes in the picture


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode, and back."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def validate(pipeline: DiffewsPipeline, dataset: EpisodeDataset, shots: int, picture: Path) -> float:
    """Returns the mIoU over the classes drawn, in percent, and writes a picture of the first episodes' panels."""
    scores, panels = Scores(dataset.class_ids), []
    for index in range(len(dataset)):
        group = read_group(dataset, [index])
        masks = segment_group(pipeline, group, shots).masks(0.25, "reference")
        scores.add(dataset.episodes[index].class_id, *count_pixels(masks, group)[0].tolist())
        if index < DRAWN:
            supports, query, truth = group.shown(0)
            panels.append(panel(supports, query, masks[0].cpu().numpy(), truth))
    save_image(picture, np.vstack(panels))
    return scores.running_miou()
