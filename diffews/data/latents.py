"""Latent cache: what the VAE says of every image and painted mask, computed once and kept."""

import json
import math
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffews.data.episodes import Benchmark, Episode, Sample, decode_sample
from diffews.data.prefetch import stream
from diffews.data.training import Renderings
from diffews.data.weak_masks import Weaken
from diffews.errors import InputError, refuse
from diffews.runtime.files import check_run, open_run
from diffews.runtime.finite import check_finite

TODO, DONE, EMPTY = 0, 1, 2  # state of a row; EMPTY: done, and the mask has no pixel
CHUNK = 1 << 24  # bytes that are written at once

RowKey = tuple[Sample, int | None, str]  # sample, class of the mask or None, name of the rendering


class LatentCache:
    """A folder of memory-mapped arrays, which an `EpisodeReader` reads instead of images.

    latents.npy: float32 [rows, 2, C, h, w], mean and standard deviation of the VAE's posterior.
    masks.npy: uint8 [masks, bytes], the masks themselves, one bit a pixel; only for the injections
        that read them.
    state.npy: uint8 [rows], what has been filled.

    Rows: every image of the benchmark's lists, then every (image, class) mask, painted in each way
    that is asked for. It takes 8 C h w bytes a row: at 512 pixels 21 to 28 GB for the training
    lists of one COCO-20i fold, 33 GB for all classes.

    Args:
        folder: of the cache.
        benchmark: whose lists say what is encoded.
        image_size: side of the images in pixels.
        renderings: how masks are painted, and whether they are kept themselves.
        vae_sha256: hash of the VAE's weights and config.
        latent: shape (C, h, w) of one latent.
        dtype: that the VAE computes in.

    """

    def __init__(
        self, folder: Path, benchmark: Benchmark, image_size: int, renderings: Renderings,
        vae_sha256: str, latent: tuple[int, ...], dtype: str = "torch.float32"
    ) -> None:
        self.folder, self.benchmark, self.image_size = folder, benchmark, image_size
        self.renderings = renderings
        paintings = (renderings.target, renderings.painted)
        self.paintings = {paint.name: paint for paint in paintings if paint is not None}

        # the rows: images, then masks, first those painted as targets
        masks = sorted({(s, c) for c, samples in benchmark.images.items() for s in samples},
                       key=_order)
        images = list(dict.fromkeys(sample for sample, _ in masks))
        self.keys: list[RowKey] = [(sample, None, "") for sample in images]
        self.keys += [(sample, c, name) for name in self.paintings for sample, c in masks]
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.first_mask = len(images)
        self.class_of = dict(reversed(masks))  # any class of a sample: decoding an image takes one

        # the files; state.npy is made last
        keeps_masks = renderings.painted is None
        self.shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "latents": (np.float32, (len(self.keys), 2, *latent))}
        if keeps_masks:
            self.shapes["masks"] = np.uint8, (len(masks), math.ceil(image_size**2 / 8))
        self.shapes["state"] = np.uint8, (len(self.keys),)
        self._arrays: dict[str, np.memmap] = {}

        names = json.dumps([(s.name, s.object_id, c, name) for s, c, name in self.keys])
        self.identity = {
            "vae_sha256": vae_sha256, "vae_dtype": dtype, "image_size": image_size,
            "rows": len(self.keys), "names_sha256": sha256(names.encode()).hexdigest(),
            **({"masks": len(masks)} if keeps_masks else {})}

    @property
    def nbytes(self) -> int:
        """Size of latents and masks on disk."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize
                   for name, (dtype, shape) in self.shapes.items() if name != "state")

    def is_filled(self) -> bool:
        """Whether everything is there; raises InputError as `prepare` and `open` do."""
        check_run(self.folder, self.identity)
        is_there = (self.folder / "state.npy").is_file()
        return is_there and bool((self.open()["state"] != TODO).all())

    def prepare(self) -> None:
        """Makes the folder, or checks that it is this cache's. One process calls it.

        Raises:
            InputError: for a cache of another VAE, image size or lists, or a disk without the
                space.

        """
        open_run(self.folder, self.identity)
        if (self.folder / "state.npy").is_file():
            return

        free = shutil.disk_usage(self.folder).free
        if free < self.nbytes:
            raise InputError(f"cache={self.folder} takes {self.nbytes / 1e9:.1f} GB "
                             f"and the disk has {free / 1e9:.1f} GB")
        for name, (dtype, shape) in self.shapes.items():
            file = self.folder / f"{name}.npy"
            array = np.lib.format.open_memmap(file, "w+", dtype, shape)
            array.flush()
            _reserve(file, array.offset, array.nbytes)

    def open(self, mode: Any = "r") -> dict[str, np.memmap]:
        """Maps the files into memory, to be read ("r") or filled ("r+").

        Raises:
            InputError: for a file that was cut short.

        """
        files = {name: self.folder / f"{name}.npy" for name in self.shapes}
        for file in files.values():
            # reading first: for writing, numpy would lengthen a file that was cut with zeros
            cure = f"remove {self.folder} to fill it again"
            with refuse(f"{file} was cut short", ValueError, OSError, EOFError, cure=cure):
                np.load(file, mmap_mode="r")
        return {name: np.load(file, mmap_mode=mode) for name, file in files.items()}

    def fill(
        self, encode: Callable[[Tensor], Tensor], workers: int, process: int = 0, processes: int = 1
    ) -> None:
        """Encodes what is missing; an interrupted fill goes on where it stopped.

        Args:
            encode: uint8 RGB [3, S, S] -> moments [2, C, h, w].
            workers: processes that read images.
            process, processes: this one fills every `processes`-th row, from `process` on.

        """
        # by row, not by what is left: others fill at the same time
        arrays, share = self.open("r+"), range(process, len(self.keys), processes)
        missing = [row for row in share if arrays["state"][row] == TODO]
        if not missing:
            return

        with tqdm(total=len(missing), unit="latent", disable=process > 0, desc="cache") as bar:
            for row, pixels, mask in stream(self._read_row, missing, workers):
                encoded = encode(pixels)
                picture = f"cache={self.folder}: {self.keys[row][0].name}"
                check_finite([("its latents", encoded)], picture)
                arrays["latents"][row] = encoded.cpu().numpy()
                if mask is not None and "masks" in arrays:
                    arrays["masks"][row - self.first_mask] = np.packbits(mask)
                # last, so that a kill leaves the row to do
                arrays["state"][row] = DONE if mask is None or mask.any() else EMPTY
                bar.update()
        for array in arrays.values():
            array.flush()

    def _read_row(self, row: int) -> tuple[int, Tensor, np.ndarray | None]:
        """Reads what a row encodes: its number, RGB [3, S, S], and of a mask the mask [S, S]."""
        sample, class_id, name = self.keys[row]
        any_class = self.class_of[sample] if class_id is None else class_id
        rgb, mask, _ = decode_sample(self.benchmark, sample, any_class, self.image_size)
        if class_id is None:
            return row, torch.from_numpy(rgb), None
        return row, torch.from_numpy(self.paintings[name](rgb, mask)), mask

    def read(self, episode: Episode, weaken: Weaken | None = None) -> dict[str, Tensor] | None:
        """Returns an episode's part of a `TrainingBatch`; None if a mask is empty.

        Whole masks alone are kept: weak ones, and the truth of a loss, are read from the disk.

        Raises:
            InputError: for a cache that is not filled.

        """
        arrays = self._arrays = self._arrays or self.open()
        target, painted = self.renderings.target, self.renderings.painted

        # the rows of query and supports: as images, as targets, as the injection's paintings
        samples, class_id = (episode.query, *episode.supports), episode.class_id
        images = [self.rows[sample, None, ""] for sample in samples]
        masks = [self.rows[sample, class_id, target.name] for sample in samples]
        marks = [self.rows[s, class_id, painted.name] for s in samples[1:]] if painted else []

        state = arrays["state"][[*images, *masks, *marks]]
        if (state == TODO).any():
            cure = "run the same command again to fill it"
            raise InputError(f"cache={self.folder} is not complete; {cure}")
        if (state == EMPTY).any():
            return None

        latents, side = arrays["latents"], self.image_size
        fields = {"query": latents[images[0]], "target": latents[masks[0]]}
        if self.renderings.images:
            fields["supports"] = latents[images[1:]]
        if self.renderings.truth:
            _, mask, _ = decode_sample(self.benchmark, samples[0], class_id, side)
            fields["truth"] = mask
        if weaken is not None:
            decoded = [decode_sample(self.benchmark, s, class_id, side) for s in samples[1:]]
            fields |= self.renderings.of_masks([rgb for rgb, _, _ in decoded],
                                               [mask for _, mask, _ in decoded], weaken)
        elif painted is None:
            packed = arrays["masks"][[row - self.first_mask for row in masks[1:]]]
            bits = np.unpackbits(packed, axis=1, count=side**2)
            fields["masks"] = bits.reshape(-1, side, side)  # [S, bytes] -> [S, H, W]
        else:
            fields["painted"] = latents[marks]
        return {name: torch.from_numpy(np.array(rows)) for name, rows in fields.items()}


def _order(mask: tuple[Sample, int]) -> tuple[str, int, int]:
    sample, class_id = mask
    return sample.name, -1 if sample.object_id is None else sample.object_id, class_id


def _reserve(file: Path, start: int, size: int) -> None:
    """Takes a file's space now: a disk that is full when a mapped file is written kills.

    start, size: bytes of the array in the file, which holds zeros.
    """
    with file.open("r+b") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, start + size)
            return
        opened.seek(start)  # macOS
        for place in range(0, size, CHUNK):
            opened.write(bytes(min(CHUNK, size - place)))
