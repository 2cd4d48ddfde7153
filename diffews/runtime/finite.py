"""Not finite is never black: what is loaded, computed or saved holds numbers, or is refused."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffews.errors import InputError


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str, cure: str = "") -> None:
    """Checks tensors by name.

    where: what to name in an error: a file, or what is about to be saved.

    Raises:
        InputError: for a tensor that is not of floating point, or holds NaN or infinity.

    """
    for name, tensor in tensors:
        kind = str(tensor.dtype).removeprefix("torch.")
        end = f"; {cure}" if cure else ""
        if not tensor.is_floating_point():
            raise InputError(f"{where}: {name} is of type {kind}, not of floating point{end}")
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"{where}: {name} ({kind}) holds {count} values that are not finite{end}")
