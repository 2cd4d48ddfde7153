"""How a mask is best made of a box, a scribble or a point: `weak=fill|grabcut|self`, on shapes.

python scripts/study/weak.py OUT FOLD ...    after plus.py; prints mIoU and (IoU) of the masks

Two kinds of weights: the shipped ones, which were shown whole masks in training, and plus.py's
`second-pixel-weak`, which were shown weak ones, too. Chosen on folds 0 and 1, confirmed on 2 and 3.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from plus import TINY, folder_of
from quick_eval import BATCH, Counts, QuickTest, open_weights, save_counts

from diffews import DiffewsPipeline
from diffews.data.weak_masks import prompt_masks
from diffews.images.masks import Segmentation, quantize
from diffews.images.paint import WHITE_ON_BLACK, to_pixels
from diffews.images.weak import Box, Points, Prompt, Scribble, grabcut, keep_found
from diffews.models.unet import TIMESTEP
from diffews.models.vae import decode_latents, encode_latents

EPISODES = 160
WAYS = ("self", "grabcut", "grabcut-self", "fill")
PROMPTS: dict[str, Prompt] = {
    "mask": Scribble(None),
    "box": Box(()),
    "scribble": Scribble(None),
    "point": Points(()),
}
WEIGHTS = {"shipped": 0.25, "weak": 0.5}  # and the threshold at which they are asked


@dataclasses.dataclass
class WeakTest:
    """One fold's episodes, 1-shot, whose support is marked by masks of our own making."""

    test: QuickTest
    pipe: DiffewsPipeline
    threshold: float

    def answer(self, masks: np.ndarray, names: list[dict], asked: str) -> np.ndarray:
        """Masks found in the query, or in the support itself (asked="supports"): [B, S, S]."""
        query, support = (
            torch.stack([self.test.latents[one[part][0]] for one in names])
            for part in (asked, "supports")
        )
        painted = np.stack([WHITE_ON_BLACK(np.repeat(m[None], 3, 0), m) for m in masks])
        pixels = to_pixels(torch.from_numpy(painted))
        text, step, method = self.pipe._text(), torch.tensor(TIMESTEP), self.pipe.method
        with torch.no_grad():
            features = [support, encode_latents(self.pipe.vae, pixels)]
            joined = method.injection.join(features, None)
            state = method.interaction.prepare(self.pipe.unet, joined, step, text, 1)
            answer = method.interaction.segment(self.pipe.unet, query, step, text, state)
            rgb = quantize(decode_latents(self.pipe.vae, answer)).float() / 255
        return Segmentation(rgb).masks(self.threshold, "reference").numpy()

    def run(self, kind: str, way: str) -> tuple[Counts, float]:
        """Counts every episode; and the mean IoU of the masks made with the support's own."""
        episodes, prompt = self.test.dataset.episodes, PROMPTS[kind]
        counts, good = [], []
        for first in range(0, len(episodes), BATCH):
            truth = self.test.truth[first : first + BATCH].astype(bool)
            indices = range(first, first + len(truth))
            names = [self.test.pictures(index, 1, "mask") for index in indices]
            decoded = [self.test.decode(episodes[i].supports[0], episodes[i].class_id)
                       for i in indices]  # fmt: skip
            whole = np.stack([mask for _, mask in decoded])
            masks = drawn = np.stack([
                prompt_masks(mask[None], kind, index)[0]
                for mask, index in zip(whole, indices, strict=True)
            ])  # fmt: skip
            if "grabcut" in way:
                pixels = [rgb.astype(np.float32) / 127.5 - 1 for rgb, _ in decoded]
                masks = np.stack(list(map(grabcut, pixels, drawn, [prompt] * len(drawn))))
            if "self" in way:
                found = self.answer(masks, names, "supports").astype(np.uint8)
                masks = np.stack(list(map(keep_found, found, masks, [prompt] * len(drawn))))
            found = self.answer(masks, names, "query")
            counts.append(np.stack([(found & truth).sum((1, 2)), (found | truth).sum((1, 2))]))
            good += ((masks & whole).sum((1, 2)) / (masks | whole).sum((1, 2))).tolist()
        classes = np.array([episode.class_id for episode in episodes])
        return Counts(classes, *np.concatenate(counts, 1)), float(np.mean(good))


def main(out: Path, folds: list[int]) -> None:
    """Runs what is not finished."""
    for fold in folds:
        test = QuickTest(
            out / "shapes_seed1", fold, out / f"latents_fold{fold}.safetensors", EPISODES
        )
        for weights, threshold in WEIGHTS.items():
            trained = folder_of(out, "second-pixel-weak", fold, 7) / "weights"
            pipe = open_weights(TINY / f"shapes_fold{fold}" if weights == "shipped" else trained)
            weak = WeakTest(test, pipe, threshold)
            for kind, ways in {
                "mask": ("whole",),
                **dict.fromkeys(("box", "point", "scribble"), WAYS),
            }.items():
                for way in ways:
                    file = out / "weak" / f"fold{fold}-{weights}-{kind}-{way}.npz"
                    if file.is_file():
                        continue
                    found, good = weak.run(kind, way)
                    save_counts(file, {"all": found})
                    miou = found.miou(test.dataset.class_ids)
                    print(fold, weights, kind, way, f"{miou:.1f} ({good:.2f})", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [int(word) for word in sys.argv[2:]])
