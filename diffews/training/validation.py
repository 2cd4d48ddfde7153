"""A short evaluation during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import nn

from diffews.data.episodes import EpisodeDataset
from diffews.evaluation.evaluate import count_pixels, predict, read_group
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
        prediction = predict(pipeline, group, shots)[0]
        scores.add(dataset.episodes[index].class_id, *count_pixels(group, prediction[None])[0])
        if index < DRAWN:
            supports, query, truth = group.shown(0)
            panels.append(panel(supports, query, prediction, truth))
    save_image(picture, np.vstack(panels))
    return scores.running_miou()
