"""Plain functions of the training tests: few shapes, a tiny base, what a run left behind."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from diffews import DiffewsUNet
from diffews.data.training import PixelReader
from diffews.models.weights import save_text
from diffews.runtime.files import write_atomic
from diffews.tools import shapes
from diffews.tools.tiny import TEXT_SHAPE, UNET, VAE
from diffews.training.step import StepInput

SIDE = 32  # pixels; latents are 8 x 8
STEPS = 4
ENCODER = (
    Path(__file__).parent.parent / "weight" / "tiny" / "base" / "image_encoder" / "config.json"
)


def reset_accelerate() -> None:
    """Accelerate keeps device and precision for the whole process; the next run brings its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_few_shapes(out: Path, seed: int = 0, per_class: int = 2) -> Path:
    """Shapes with two pictures of each class in each part, where the command writes 70 and 30."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr(shapes, "PARTS", {"train2014": per_class, "val2014": per_class})
        shapes.make_shapes(out, seed)
    return out


def list_few_pictures(shapes: Path, out: Path) -> Path:
    """The same shapes, but two training pictures of each class are listed, the same for many.

    A latent cache of them is filled in a third of the time.
    """
    folder = shapes / "COCO2014"
    (out / "COCO2014" / "splits").mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != "splits":
            (out / "COCO2014" / path.name).symlink_to(path)
    shutil.copytree(folder / "splits" / "val", out / "COCO2014" / "splits" / "val")

    for file in sorted((folder / "splits" / "trn").iterdir()):
        kept, seen = {}, set()
        for class_id, names in json.loads(file.read_text()).items():
            kept[class_id] = sorted(sorted(names, key=lambda name: name not in seen)[:2])
            seen.update(kept[class_id])
        write_atomic(out / "COCO2014" / "splits" / "trn" / file.name, json.dumps(kept))
    return out


def write_tiny_base(folder: Path, seed: int = 0) -> Path:
    """The layout of `diffews make-tiny-base`, with a VAE that has learnt nothing."""
    torch.manual_seed(seed)
    AutoencoderKL(**VAE, scaling_factor=0.6).save_pretrained(folder / "vae")
    DiffewsUNet(**UNET).save_config(folder / "unet")
    save_text({"eval": torch.randn(TEXT_SHAPE), "train": torch.randn(TEXT_SHAPE)}, folder)
    (folder / "image_encoder").mkdir()
    shutil.copy(ENCODER, folder / "image_encoder")
    return folder


def one_step_input(query, target, images, painted, shots: int) -> StepInput:
    """What a training step of the released model takes: latents, the timestep of the one step."""
    return StepInput(query, torch.tensor(1), target, [images, painted], None, shots)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight dir or a checkpoint."""
    folder = out / "unet" / "unet" if (out / "unet" / "unet").is_dir() else out / "unet"
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not bit-equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def log_lines(out: Path) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(**json.loads(line)) for line in (out / "log.jsonl").read_text().splitlines()
    ]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith("checkpoint-"))


def batches_of(run) -> list:
    """The micro-batches of a trainer, from the first on, read from the disk."""
    reader = run.batch_reader(pixel_reader(run))
    return [reader.read(step) for step in range(run.config.steps * run.config.accumulate)]


def pixel_reader(run) -> PixelReader:
    """What a trainer without a cache reads episodes with."""
    return PixelReader(run.benchmark, run.config.image_size, run.renderings)
