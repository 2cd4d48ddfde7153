"""The model card of a folder to hand on: README.md, as hubs show it. Says what was recorded."""

from collections.abc import Sequence
from typing import Any

from diffews.errors import printable

CARD = """\
---
library_name: diffews
pipeline_tag: image-segmentation
tags: [few-shot-segmentation, diffusers, diffews]
license: other
---

# {name}

Few-shot segmentation by DiffewS ([NeurIPS 2024](https://arxiv.org/abs/2410.02369)): shown one or a
few pictures with the mask of something, it segments that something in a new picture.

## Trained on

{trained}

## Figures

{figures}

## Use

```python
from diffews import load_pipeline

pipe = load_pipeline("{load}")  # weights, VAE and text
bank = pipe.encode_support(["support.jpg"], ["mask.png"])
masks = pipe(["query.jpg"], bank).masks  # bool (H, W), at the query's own size
```

`diffews segment weight={load} support=support.jpg mask=mask.png query=photos/` does the same for
files. It works at {image_size} x {image_size} pixels; foreground is what exceeds {threshold} of the
maximum.

## Licence

Weights have the terms of what they began from and of the pictures that they learned from; this
card does not know them. Say them here before you publish: Stable Diffusion 2.1 is under the
CreativeML Open RAIL++-M licence, DiffewS's released weights are for academic use.
"""
TRAINED = ("benchmark", "mix", "fold", "shots", "steps", "image_size", "variant")
HELD_OUT = " (its novel classes were never trained on)"


def model_card(
    name: str, record: dict[str, Any], results: Sequence[dict[str, Any]] = (),
    load: str | None = None,
) -> str:
    """Returns the text of README.md.

    Args:
        name: of the folder.
        record: what training wrote into diffews.json; what it does not say is not claimed.
        results: result.json of evaluations of these weights.
        load: by which name others load it; by default the folder's.

    """
    known = {**record.get("config", {}), **record}
    said = {key: known[key] for key in TRAINED if known.get(key) not in (None, [], {})}
    lines = [f"- {key}: {_plain(value)}{HELD_OUT if key == 'fold' else ''}"
             for key, value in said.items()]

    figures = ["| benchmark | fold | shots | episodes | mIoU | 95 % interval | FB-IoU |",
               "|---|---|---|---|---|---|---|"]
    for result in results:
        low, high = result["miou_interval"]
        cells = (_plain(result["benchmark"]), result["fold"], result["shots"], result["episodes"],
                 f"{result['miou']:.2f}", f"{low:.2f} to {high:.2f}", f"{result['fb_iou']:.2f}")
        figures.append(f"| {' | '.join(map(str, cells))} |")

    nothing = "No evaluation was given (`diffews export runs=DIR`)."
    return CARD.format(
        name=_plain(name), load=_plain(load or name), trained="\n".join(lines) or "Not recorded.",
        figures="\n".join(figures) if results else nothing,
        image_size=known.get("image_size", 512), threshold=known.get("threshold", 0.25))


def _plain(value: Any) -> str:
    """A value from a file as one that Markdown shows as it is."""
    return printable(value).replace("|", r"\|").replace("`", "'").replace("<", "&lt;")
