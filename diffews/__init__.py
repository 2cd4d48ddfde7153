"""DiffewS: few-shot segmentation with a Stable Diffusion UNet in one step (arXiv:2410.02369).

Names are imported when they are first used: `import diffews` needs neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffews.errors import InputError as InputError
    from diffews.models.attention import SupportBank as SupportBank
    from diffews.models.unet import DiffewsUNet as DiffewsUNet
    from diffews.pipeline import DiffewsOutput as DiffewsOutput
    from diffews.pipeline import DiffewsPipeline as DiffewsPipeline
    from diffews.runtime.loading import load_pipeline as load_pipeline

__version__ = "0.1.0"

_EXPORTS = {
    "InputError": "diffews.errors",
    "SupportBank": "diffews.models.attention",
    "DiffewsUNet": "diffews.models.unet",
    "DiffewsOutput": "diffews.pipeline",
    "DiffewsPipeline": "diffews.pipeline",
    "load_pipeline": "diffews.runtime.loading",
}
__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604  (names of the lazy exports)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'diffews' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
