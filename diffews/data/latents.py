"""Latent cache: mean and standard deviation of the VAE's posterior for every picture and mask, written once."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffews.data.episodes import Benchmark, Episode, Sample, decode_sample
from diffews.data.prefetch import stream
from diffews.data.training import MASKS_ALONE, PictureKey, Renderings, picture_order
from diffews.errors import InputError
from diffews.runtime.files import open_run

TODO, DONE, EMPTY = 0, 1, 2  # state of a row; EMPTY: done, and the mask has no pixel


class LatentCache:
    """A folder with latents.npy, float32 [rows, 2, C, h, w] (mean and standard deviation), memory-mapped.

    Rows: every picture of the benchmark's lists, then every (picture, class) mask, painted in each way that is asked
    for. It takes 8 C h w bytes a row:
    at 512 pixels 21 to 28 GB for the training lists of one COCO-20i fold, 33 GB for all classes.
    """

    def __init__(
        self,
        folder: Path,
        benchmark: Benchmark,
        image_size: int,
        vae_sha256: str,
        latent: tuple[int, ...],
        dtype: str = "torch.float32",
        renderings: Renderings = MASKS_ALONE,
    ) -> None:
        self.folder, self.benchmark, self.image_size, self.renderings = folder, benchmark, image_size, renderings
        self.painted = {rendering.name: rendering for rendering in (renderings.target, renderings.drawn)}
        masks = sorted({(s, c) for c, samples in benchmark.images.items() for s in samples}, key=_order)
        self.keys: list[PictureKey] = [(sample, None, "") for sample in dict.fromkeys(s for s, _ in masks)]
        self.keys += [(sample, class_id, name) for name in self.painted for sample, class_id in masks]
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.class_of = dict(reversed(masks))  # any class that a sample has: decoding a picture asks for one
        self.shape = (len(self.keys), 2, *latent)
        names = json.dumps([(sample.name, sample.object_id, class_id, name) for sample, class_id, name in self.keys])
        self.identity = {
            "vae_sha256": vae_sha256,
            "vae_dtype": dtype,
            "image_size": image_size,
            "rows": len(self.keys),
            "names_sha256": sha256(names.encode()).hexdigest(),
        }
        self._latents: np.memmap | None = None
        self._state: np.memmap | None = None

    @property
    def nbytes(self) -> int:
        """Size of the cache on disk."""
        return int(np.prod(self.shape)) * 4

    def prepare(self) -> None:
        """Makes the folder, or checks that it is a cache of this VAE, image size and lists. One process calls it.

        Raises:
            InputError: for a cache of something else, or a disk without the space.

        """
        open_run(self.folder, self.identity)
        if not (self.folder / "state.npy").is_file():
            free = shutil.disk_usage(self.folder).free
            if free < self.nbytes:
                raise InputError(
                    f"cache={self.folder} takes {self.nbytes / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
                )
            np.lib.format.open_memmap(self.folder / "latents.npy", "w+", np.float32, self.shape).flush()
            with (self.folder / "latents.npy").open("r+b") as file:  # else a disk that fills later kills the process
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            np.lib.format.open_memmap(self.folder / "state.npy", "w+", np.uint8, (len(self.keys),)).flush()

    def open(self, mode: Literal["r", "r+"] = "r") -> None:
        """Maps the files into memory."""
        for name in ("latents.npy", "state.npy"):
            try:  # reading first: for writing, numpy would lengthen a file that was cut with zeros
                np.load(self.folder / name, mmap_mode="r")
            except (ValueError, OSError, EOFError):
                raise InputError(
                    f"{self.folder / name} was cut short; remove {self.folder} to fill it again"
                ) from None
        self._latents = np.load(self.folder / "latents.npy", mmap_mode=mode)
        self._state = np.load(self.folder / "state.npy", mmap_mode=mode)

    def fill(
        self, encode: Callable[[Tensor, bool], Tensor], workers: int, process: int = 0, processes: int = 1
    ) -> None:
        """Encodes what is missing, every `processes`-th row; an interrupted fill goes on where it stopped.

        encode: uint8 RGB [3, S, S] and whether it is a pooled rendering -> moments [2, C, h, w].
        """
        self.open("r+")
        assert self._latents is not None and self._state is not None
        own = range(process, len(self.keys), processes)  # by row, not by what is left: others fill at the same time
        missing = [row for row in own if self._state[row] == TODO]
        if not missing:
            return
        with tqdm(total=len(missing), unit="latent", disable=process > 0, desc="cache") as bar:
            for row, pixels, empty in stream(self._read_row, missing, workers):
                name = self.keys[row][2]
                self._latents[row] = encode(pixels, bool(name) and self.painted[name].pooled).cpu().numpy()
                self._state[row] = EMPTY if empty else DONE  # after the latents, so that a kill leaves it to do
                bar.update()
        self._latents.flush()
        self._state.flush()

    def read(self, episode: Episode) -> Tensor | None:
        """Returns moments float32 [P, 2, C, h, w]; see `diffews.data.training.Source`."""
        if self._latents is None or self._state is None:
            self.open()
        assert self._latents is not None and self._state is not None
        rows = [self.rows[key] for key in picture_order(episode, self.renderings)]
        if (self._state[rows] == TODO).any():
            raise InputError(f"cache={self.folder} is not complete; run the same command again to fill it")
        if (self._state[rows] == EMPTY).any():
            return None
        return torch.from_numpy(self._latents[rows])

    def _read_row(self, row: int) -> tuple[int, Tensor, bool]:
        sample, class_id, name = self.keys[row]
        wanted = self.class_of[sample] if class_id is None else class_id
        rgb, mask, _ = decode_sample(self.benchmark, sample, wanted, self.image_size)
        if class_id is None:
            return row, torch.from_numpy(rgb), False
        return row, torch.from_numpy(self.painted[name](rgb, mask)), not mask.any()


def _order(mask: tuple[Sample, int]) -> tuple[str, int, int]:
    sample, class_id = mask
    return sample.name, -1 if sample.object_id is None else sample.object_id, class_id
