"""Training checkpoints, complete or not there: weights in safetensors, the rest as plain values."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from diffews.errors import InputError, first_line
from diffews.models.find import write_record
from diffews.models.unet import DiffewsUNet
from diffews.runtime.files import new_folder
from diffews.runtime.finite import check_finite

STATE_FILE = "training.pt"
SPOILT = "the training has failed; go on from an earlier checkpoint with a lower lr="


def save_checkpoint(
    out: Path, step: int, unet: DiffewsUNet, state: dict[str, Any], record: dict[str, Any],
    keep: int,
) -> None:
    """Writes out/checkpoint-<step>/, a weight dir with training.pt in it.

    Args:
        out: the run's folder.
        step: optimizer steps so far.
        unet: as it is published.
        state: tensors and plain values that a resumed run needs.
        record: what is kept beside weights.
        keep: so many checkpoints are left, the last ones.

    """
    folder = out / f"checkpoint-{step}"
    if not folder.exists():
        check_finite(unet.named_parameters(), f"{folder}, not written", SPOILT)
        with new_folder(folder) as partial:
            unet.save_pretrained(partial / "unet")
            write_record(partial, folder, record)
            _save_state({"step": step, **state}, partial / STATE_FILE)
    for old in list_checkpoints(out)[:-keep]:
        shutil.rmtree(old)


def _save_state(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch makes of a full disk
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def save_weight_dir(out: Path, unet: DiffewsUNet, record: dict[str, Any]) -> None:
    """Writes out/unet/unet/, the layout of the released weights, and the record beside it."""
    check_finite(unet.named_parameters(), f"{out / 'unet'}, not written", SPOILT)
    write_record(out, out, record)
    if not (out / "unet").exists():
        with new_folder(out / "unet") as partial:
            unet.save_pretrained(partial / "unet")


def load_state(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's training.pt; tensors and plain values only.

    Raises:
        InputError: for a damaged file.

    """
    file = folder / STATE_FILE
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{file} cannot be read ({first_line(error)}); "
                         f"remove {folder} to go on from an earlier one") from None


def list_checkpoints(out: Path) -> list[Path]:
    """Returns the complete checkpoints, oldest first."""
    steps = {int(folder.name.removeprefix("checkpoint-")): folder
             for folder in out.glob("checkpoint-*")
             if re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / STATE_FILE).is_file()}
    return [folder for _, folder in sorted(steps.items())]
