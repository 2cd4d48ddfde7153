"""What the tests share: golden folders, tiny real models, and the command line as a function.

Fixtures import torch and diffusers when they are used, so that the process which only hands out
tests to workers starts without them.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# before the first import of huggingface_hub: no test reaches for the network
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from PIL import Image

from diffews.cli.main import main

if TYPE_CHECKING:
    from diffews import DiffewsPipeline, DiffewsUNet

DATA = Path(__file__).parent / "data"
SIZE = 64  # pixels; the goldens were made at this size
TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": [2, 4, 4, 4],
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "upcast_attention": True,
}

SMALL_UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": [2, 2],
    "norm_num_groups": 8,
    "use_linear_projection": True,
}
SMALL_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def libraries() -> None:
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.enable_propagation()  # their warnings reach caplog
    torch.set_num_threads(1)  # more can be many times slower on shared cores


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    yield
    torch.set_num_threads(1)  # commands set the number that their `threads` key says


# ---- goldens: made by the reference on a tiny random model and synthetic pictures ----


@pytest.fixture(scope="session")
def goldens(tmp_path_factory) -> Path:
    """The golden weight dir, base and COCO folder, unpacked; never written to."""
    folder = tmp_path_factory.mktemp("goldens")
    with zipfile.ZipFile(DATA / "goldens_coco.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def expected() -> Callable[[str], SimpleNamespace]:
    """What the reference gave: expected("unet").json and .npz."""

    def read(name: str) -> SimpleNamespace:
        file = DATA / "expected" / name
        arrays = (
            dict(np.load(file.with_suffix(".npz"))) if file.with_suffix(".npz").exists() else {}
        )
        return SimpleNamespace(json=json.loads(file.with_suffix(".json").read_text()), npz=arrays)

    return read


@pytest.fixture(scope="session")
def weight(goldens) -> Path:
    return goldens / "weight" / "coco_fold0"


@pytest.fixture(scope="session")
def base(goldens) -> Path:
    return goldens / "weight" / "tiny-random-base"


@pytest.fixture(scope="session")
def coco(goldens) -> Path:
    return goldens / "coco20i_mini"


# ---- copies of them that a test may damage ----


@pytest.fixture
def own_weight(weight, tmp_path) -> Path:
    """The golden weight dir; name and layout are those of the released weights."""
    return shutil.copytree(weight, tmp_path / "own" / "coco_fold0")


@pytest.fixture
def own_base(base, tmp_path) -> Path:
    return shutil.copytree(base, tmp_path / "own" / "tiny-random-base")


@pytest.fixture
def own_coco(coco, tmp_path) -> Path:
    return shutil.copytree(coco, tmp_path / "own" / "coco")


# ---- accidents ----


class RunsCode:
    """What an attacker would pickle: loading it with `pickle.load` makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.fixture(scope="session")
def runs_code() -> type[RunsCode]:
    return RunsCode


@pytest.fixture(scope="session")
def largest_file() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """with largest_file(100): files end at 100 bytes; more is an OSError, as on a full disk."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


# ---- models ----


@pytest.fixture(scope="session")
def pipe(weight, base) -> "DiffewsPipeline":
    """The golden model, working at 64 px; never changed."""
    from diffews import DiffewsPipeline, load_pipeline

    loaded = load_pipeline(weight, base)
    return DiffewsPipeline(loaded.unet, loaded.vae, loaded.text, image_size=SIZE)


@pytest.fixture
def unet() -> "DiffewsUNet":
    """A tiny random UNet with a support stem of its own."""
    import torch

    from diffews import DiffewsUNet

    torch.manual_seed(0)
    model = DiffewsUNet(**TINY_UNET).eval()
    torch.nn.init.normal_(model.conv_in_ref.weight, std=0.1)
    return model


@pytest.fixture(scope="session")
def tiny_unet_config() -> dict:
    return TINY_UNET


@pytest.fixture(scope="session")
def small_pipe() -> Callable[..., "DiffewsPipeline"]:
    """small_pipe(seed): a pipeline of random weights at 32 px, a new one at every call."""
    import torch
    from diffusers import AutoencoderKL

    from diffews import DiffewsPipeline, DiffewsUNet

    def make(seed: int = 0, **keys: Any) -> "DiffewsPipeline":
        torch.manual_seed(seed)
        unet = DiffewsUNet(**SMALL_UNET).eval().requires_grad_(False)
        vae = AutoencoderKL(**SMALL_VAE).eval().requires_grad_(False)
        text = {"eval": torch.randn(1, 2, 24), "train": torch.randn(1, 77, 24)}
        return DiffewsPipeline(unet, vae, text, image_size=32, **keys)

    return make


# ---- pictures ----


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """picture(seed, width, height): smooth random colours, so that a resize means something."""

    def make(seed: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def square_mask() -> Callable[..., np.ndarray]:
    """square_mask(width, height): bool (height, width), the middle quarter is set."""

    def make(width: int = SIZE, height: int = SIZE) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        mask[height // 4 : -height // 4, width // 4 : -width // 4] = True
        return mask

    return make


# ---- the command line ----


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """run("eval", "shots=1"): the command in this process, where torch is loaded; output caught."""

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run, caplog) -> Callable[..., str]:
    """refused(*words): runs bad input; checks exit code 2 and one error on stderr, returned."""

    def call(*words: object) -> str:
        outcome = run(*words)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        lines = [
            line
            for line in outcome.err.splitlines()
            if line.strip()
            and "%|" not in line
            and "?it" not in line
            and not line.startswith("diffews: warning: ")  # what is left out is said, too
        ]
        assert len(lines) == 1, outcome.err  # beside the progress bar's
        assert lines[0].startswith("diffews: error: ")
        assert not caplog.messages  # which diffusers' and transformers' loggers would print, too
        return lines[0].removeprefix("diffews: error: ")

    return call


@pytest.fixture(scope="session")
def golden_words(weight, base, coco) -> list[str]:
    """The command line of the golden evaluation, fold 0 and 1-shot, without `out`, `episodes`."""
    return [
        "eval",
        f"weight={weight}",
        f"base={base}",
        f"data={coco}",
        f"image_size={SIZE}",
        "workers=0",
    ]


@pytest.fixture(scope="session")
def finished(golden_words, tmp_path_factory) -> Path:
    """A finished golden evaluation: 16 episodes, masks, 2 pictures; never written to."""
    out = tmp_path_factory.mktemp("finished")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main([*golden_words, f"out={out}", "episodes=16", "save_masks=true", "pictures=2"])
    assert code == 0
    return out
