"""What a training run says of itself: the loss of every step, and the curve of them."""

import json
import math
from pathlib import Path

import cv2
import numpy as np

from diffews.images.drawing import FONT, GREY, PREDICTION_COLOUR, save_image
from diffews.runtime.files import write_atomic


class StepLog:
    """log.jsonl: one line a training step.

    Lines after the step that a run resumes from are cut off when the log is opened.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines()[:step] if path.is_file() else []
        losses = (json.loads(line)["loss"] for line in lines)
        self.losses = [loss for loss in losses if loss is not None]
        write_atomic(path, "".join(line + "\n" for line in lines))

    def add(self, step: int, loss: float, lr: float) -> None:
        """Appends a step; a loss that overflowed, which no weight has learned from, is null."""
        is_finite = math.isfinite(loss)
        if is_finite:
            self.losses.append(loss)
        line = {"step": step, "loss": loss if is_finite else None, "lr": lr}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save_curve(self, path: Path, width: int = 800, height: int = 400, margin: int = 50) -> None:
        """Draws the loss over the steps on a logarithmic axis; sizes in pixels.

        The curve is smoothed over a fiftieth of the steps.
        """
        window = max(1, len(self.losses) // 50)
        smooth = np.convolve(self.losses, np.ones(window) / window, "valid")
        values = np.log10(np.maximum(smooth, 1e-12))
        low, high = values.min(), max(values.max(), values.min() + 1e-6)

        # the frame, and in it the curve
        canvas = np.full((height, width, 3), 255, np.uint8)
        cv2.rectangle(canvas, (margin, margin), (width - margin, height - margin), GREY)
        x = np.linspace(margin, width - margin, len(values))
        y = np.interp(values, [low, high], [height - margin, margin])
        points = np.stack([x, y], 1).round().astype(np.int32)
        cv2.polylines(canvas, [points], False, PREDICTION_COLOUR, 2, cv2.LINE_AA)

        # highest and lowest value beside the frame, the title above it
        labels = [
            (f"{10**high:.3g}", (4, margin + 5)), (f"{10**low:.3g}", (4, height - margin)),
            (f"loss over {len(self.losses)} steps", (margin, margin - 12))]
        for text, place in labels:
            cv2.putText(canvas, text, place, FONT, 0.4, GREY, 1, cv2.LINE_AA)
        save_image(path, canvas)
