"""Segments without torch: the pipeline of what `diffews export format=onnx` writes.

numpy, Pillow and onnxruntime are enough; safetensors, where a bank is saved or loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffews.errors import InputError, refuse
from diffews.images.arrays import ImageInput, as_list, prepare_images, prepare_supports
from diffews.images.drawn_masks import Pick
from diffews.images.masks import check_call, check_decoded, check_threshold
from diffews.images.scores import LabelMaps, at_size, check_output_type, in_form
from diffews.images.weak import DEFAULT_WEAK, name_prompts, refiner
from diffews.models.find import EXPORT
from diffews.models.graphs import find_providers, open_graph, read_export
from diffews.runtime.files import write_atomic

Array = np.ndarray


@dataclass
class OnnxOutput:
    """What the pipeline says of each query, as `DiffewsOutput` does.

    Attributes:
        masks: list of bool arrays (H_i, W_i), or of the form that was asked for.
        scores: list of float32 arrays (H_i, W_i) in [0, 1], likewise.
        presence: None; graphs have no head that says how likely the class is in the query.

    """

    masks: list[Any] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    presence: list[float] | None = None


@dataclass(frozen=True)
class OnnxBank:
    """Keys and values of B support sets of S shots, as arrays.

    Attributes:
        shots: S.
        tensors: `<layer>.key` and `<layer>.value` -> float32 [B, S*N, C], as in a bank's file.

    """

    shots: int
    tensors: dict[str, Array]

    @property
    def batch(self) -> int:
        """Number of support sets B."""
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, sets: slice) -> "OnnxBank":
        """Returns the bank of some of its support sets."""
        return OnnxBank(self.shots, {name: array[sets] for name, array in self.tensors.items()})

    def expand(self, batch: int) -> "OnnxBank":
        """Returns the bank of `batch` queries: as many sets as queries, or one for all."""
        if self.batch not in (1, batch):
            raise InputError(f"{batch} queries for a bank of {self.batch} support sets; "
                             "give one set, or one each")
        if self.batch == batch:
            return self
        return OnnxBank(self.shots, {
            name: np.repeat(array, batch, axis=0) for name, array in self.tensors.items()})


class OnnxPipeline:
    """Segments in a query what the mask marks in support images; no torch is imported.

    Args:
        folder: what `diffews export format=onnx` wrote.
        providers: onnxruntime's execution providers; by default as `find_providers` says.
        threads: of the CPU; 0 takes all cores.
        check_files: compare every file with its hash in export.json.

    Raises:
        InputError: for a folder that is not whole, and where onnxruntime is missing.

    """

    def __init__(
        self, folder: str | Path, providers: Sequence[Any] | None = None, threads: int = 0,
        check_files: bool = True,
    ) -> None:
        self.folder, self.threads = Path(folder), threads
        self.record = read_export(self.folder, check_files)
        try:
            check_threshold(self.record["threshold"], self.record["threshold_rule"])
        except InputError as error:
            raise InputError(f"{self.folder / EXPORT} is broken ({error}); "
                             "export the weights again") from None
        self.providers = list(providers or find_providers())
        self._sessions: dict[str, Any] = {}  # opened when they are needed

        # the layers that the query reads, and their channels
        bank = self.record["graphs"]["query"]["inputs"][1:]
        self._widths: dict[str, int] = {entry["name"]: entry["shape"][-1] for entry in bank}

    # ---- from arrays to arrays ----

    def encode_images(self, pixels: Array) -> Array:
        """Encodes RGB [B, 3, S, S] in [-1, 1] -> scaled latents [B, 4, s, s]."""
        return self._run("encoder", {"pixels": pixels})[0]

    def encode_support_pixels(self, pixels: Array, masks: Array, shots: int) -> OnnxBank:
        """Runs the support pass; the S supports of a set are neighbours.

        Args:
            pixels: supports [B*S, 3, H, W] in [-1, 1].
            masks: their masks [B*S, H, W] in {0, 1}.
            shots: S.

        """
        white = np.repeat((masks.astype(np.float32) * 2 - 1)[:, None], 3, axis=1)  # on black
        latents = np.concatenate([self.encode_images(pixels), self.encode_images(white)], axis=1)
        tensors = self._run("support", {"support_latents": latents})
        return OnnxBank(shots, {
            name: array.reshape(-1, shots * array.shape[1], array.shape[2])
            for name, array in zip(self._widths, tensors, strict=True)})

    def segment(self, latents: Array, bank: OnnxBank) -> tuple[Array, Array]:
        """Runs the query pass and decodes its answer.

        Args:
            latents: of B queries [B, 4, s, s].
            bank: B support sets, or one for all.

        Returns:
            The decoded picture as scores [B, 3, S, S] in [0, 1], and whether all of it were
            numbers, bool [B].

        """
        feeds = {"latents": latents, **bank.expand(len(latents)).tensors}
        (answer,) = self._run("query", feeds)
        (decoded,) = self._run("decoder", {"mask_latents": answer})
        finite = np.isfinite(decoded).all((1, 2, 3))
        with np.errstate(invalid="ignore"):  # of what is not finite, which is refused
            rgb = ((decoded.clip(-1, 1) + 1) / 2 * 255).astype(np.uint8)  # truncated
        return rgb.astype(np.float32) / 255, finite

    def _run(self, name: str, feeds: dict[str, Array]) -> list[Array]:
        file = self.folder / self.record["graphs"][name]["file"]
        if name not in self._sessions:
            self._sessions[name] = open_graph(file, self.providers, self.threads)
        with refuse(f"{file} fails", cure="if memory ran out, give a smaller batch"):
            return self._sessions[name].run(None, feeds)

    # ---- from pictures to masks ----

    def encode_support(
        self, images: ImageInput | Sequence[Any], masks: Any = None,
        image_size: int | None = None, *, boxes: Any = None, points: Any = None,
        scribbles: Any = None, weak: str = DEFAULT_WEAK, mask_value: int | None = None,
        mask_colour: tuple[int, int, int] | None = None,
    ) -> OnnxBank:
        """Encodes support images, and what marks the object, once for any number of queries.

        Takes and refuses what `DiffewsPipeline.encode_support` does.
        """
        size, refine = self.check_size(image_size), refiner(weak, self._find_in_itself)
        pick = Pick.of(mask_value, mask_colour or ())
        marked = name_prompts(images, masks, boxes, points, scribbles)
        return self.encode_support_pixels(*prepare_supports(images, marked, size, pick, refine))

    def _find_in_itself(self, support: Array, mask: Array) -> Array:
        """Shows a support [1, 3, S, S] with a mask [1, S, S] -> what is found in it, [S, S]."""
        bank = self.encode_support_pixels(support, mask, 1)
        rgb, finite = self.segment(self.encode_images(support), bank)
        check_decoded(finite.tolist(), ["a support"], self.record["dtype"])
        return at_size(rgb[0], mask.shape[1:], self.record["threshold"], "reference")[0]

    def __call__(
        self, queries: ImageInput | Sequence[ImageInput], bank: OnnxBank | None = None, *,
        support_images: Any = None, support_masks: Any = None, threshold: float | None = None,
        threshold_rule: str | None = None, image_size: int | None = None, own_size: bool = True,
        batch: int = 1, min_presence: float | None = None, output_type: str = "np",
        return_dict: bool = True,
    ) -> Any:
        """Segments one or more queries.

        Args:
            queries: one picture or a list of them, of any sizes.
            bank: one support set for all queries, or as many sets as queries.
            support_images, support_masks: instead of a bank, as `encode_support` takes them.
            threshold: share of the maximum that foreground exceeds, or an absolute score; by
                default the export's.
            threshold_rule: "reference", "paper" or "absolute"; by default the export's.
            image_size: side in pixels to work at, of an export with dynamic_size=true.
            own_size: give masks at each query's own size; else at (image_size, image_size).
            batch: queries computed at once.
            min_presence: refused, as graphs have no presence head.
            output_type: masks and scores as arrays ("np") or PIL images ("pil").
            return_dict: give an OnnxOutput; else the tuple of masks and scores.

        """
        check_output_type(output_type, ("np", "pil"))
        threshold, rule = self._rule(threshold, threshold_rule, batch, min_presence)
        if (bank is None) == (support_images is None):
            raise InputError("give either a bank or support_images with support_masks")
        if bank is None:
            if support_masks is None:
                raise InputError("support_images without support_masks; give one mask an image")
            bank = self.encode_support(support_images, support_masks, image_size)

        images, size = as_list(queries, 3), self.check_size(image_size)
        bank, output = bank.expand(len(images)) if bank.batch > 1 else bank, OnnxOutput()
        for start in range(0, len(images), batch):
            pixels, shapes = prepare_images(images[start : start + batch], size, own_size)
            part = bank if bank.batch == 1 else bank[start : start + batch]
            rgb, finite = self.segment(self.encode_images(pixels), part)
            check_decoded(finite.tolist(), [f"query {start + row}" for row in range(len(rgb))],
                          self.record["dtype"])
            for scores, shape in zip(rgb, shapes, strict=True):
                mask, score = at_size(scores, shape, threshold, rule)
                output.masks.append(mask)
                output.scores.append(score)
        output.masks, output.scores = in_form(output.masks, output.scores, output_type)
        return output if return_dict else (output.masks, output.scores)

    def label(
        self, queries: ImageInput | Sequence[ImageInput], banks: Sequence[OnnxBank], *,
        threshold: float | None = None, threshold_rule: str | None = None,
        image_size: int | None = None, own_size: bool = True, batch: int = 1,
        min_presence: float | None = None,
    ) -> LabelMaps:
        """Segments several classes at once -> label maps uint8 (H, W).

        0 is none and i + 1 the class of banks[i]; where several classes are above their threshold,
        the highest score wins. A query is encoded once for all.

        Args:
            queries: as the call takes them.
            banks: 1 to 255, each of one support set of one class.
            threshold, threshold_rule, image_size, own_size, batch, min_presence: as there.

        """
        threshold, rule = self._rule(threshold, threshold_rule, batch, min_presence)
        if not 1 <= len(banks) <= 255:
            raise InputError(f"{len(banks)} banks; give one for each class, 1 to 255")
        if several := [bank.batch for bank in banks if bank.batch != 1]:
            raise InputError(f"a bank of {several[0]} support sets; give one for each class")

        images, size, maps = as_list(queries, 3), self.check_size(image_size), LabelMaps()
        for start in range(0, len(images), batch):
            pixels, shapes = prepare_images(images[start : start + batch], size, own_size)
            latents = self.encode_images(pixels)
            best = [np.zeros(shape, np.float32) for shape in shapes]
            labels = [np.zeros(shape, np.uint8) for shape in shapes]

            # each class takes the pixels in which it beats those before it
            for number, bank in enumerate(banks, start=1):
                rgb, finite = self.segment(latents, bank)
                check_decoded(finite.tolist(), [f"query {start + row}" for row in range(len(rgb))],
                              self.record["dtype"])
                for row, scores in enumerate(rgb):
                    mask, score = at_size(scores, shapes[row], threshold, rule)
                    wins = mask & (score > best[row])
                    labels[row][wins], best[row][wins] = number, score[wins]
            maps.add(labels, [])
        return maps

    def check_size(self, image_size: int | None) -> int:
        """Returns the side in pixels to work at; InputError for one that the graphs do not take."""
        own, multiple = self.record["image_size"], self.record["multiple"]
        size = image_size or own
        if multiple is None and size != own:
            raise InputError(f"image_size={size}: {self.folder} was exported for {own} alone; "
                             "export it again with dynamic_size=true")
        if multiple is not None and (size < multiple or size % multiple):
            raise InputError(f"image_size={size} is not a multiple of {multiple}, of which "
                             f"{self.folder} takes every size")
        return size

    def _rule(
        self, threshold: float | None, rule: str | None, batch: int, least: float | None
    ) -> tuple[float, str]:
        threshold = self.record["threshold"] if threshold is None else threshold
        rule = rule or self.record["threshold_rule"]
        check_call(threshold, rule, batch, least)
        if least is not None:
            raise InputError(f"min_presence={least:g}: {self.folder} has no presence head; leave "
                             "it out")
        return threshold, rule

    # ---- banks as files, those of `DiffewsPipeline.save_bank` ----

    def save_bank(self, bank: OnnxBank, path: str | Path) -> None:
        """Writes a bank with the hash of the weights that recorded it."""
        from safetensors.numpy import save

        _check_finite(bank.tensors, f"{path}, not written")
        metadata = {"shots": str(bank.shots), "weights": self.record["weights_sha256"]}
        tensors = {name: np.ascontiguousarray(array) for name, array in bank.tensors.items()}
        write_atomic(Path(path), save(tensors, metadata))

    def load_bank(self, path: str | Path) -> OnnxBank:
        """Reads a bank that `save_bank` wrote, here or in torch.

        Raises:
            InputError: for a file that is no bank, or a bank of other weights.

        """
        from safetensors import safe_open

        what, cure = f"{path} is not a support bank", "write one with save_bank"
        with refuse(what, cure=cure), safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            shots = int(metadata["shots"])

            # keys and values mean nothing to other weights
            if metadata.get("weights") not in (None, "", self.record["weights_sha256"]):
                raise InputError(f"{path}: other weights, or another precision, recorded this "
                                 "bank; encode the support again")
            tensors = {name: file.get_tensor(name) for name in names}

            # as many sets and tokens everywhere as the shots say
            shapes = {name: array.shape for name, array in tensors.items()}
            sets = {shape[0] if len(shape) == 3 else -1 for shape in shapes.values()}
            paired = all(shapes.get(_partner(name)) == shape for name, shape in shapes.items())
            whole = all(shape[1] and shape[1] % max(shots, 1) == 0 for shape in shapes.values())
            if len(sets) != 1 or not min(sets) > 0 or shots < 1 or not paired or not whole:
                raise ValueError(f"its tensors are not those of {shots} shots")

        # which layers, and how wide
        if {name: shape[-1] for name, shape in shapes.items()} != self._widths:
            raise InputError(f"{path}: the bank has {len(shapes) // 2} layers that are not those "
                             f"of {self.folder}; encode the support again")
        _check_finite(tensors, str(path))
        return OnnxBank(shots, {
            name: tensors[name].astype(np.float32, copy=False) for name in self._widths})


def _partner(name: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{layer}.{'value' if part == 'key' else 'key'}"


def _check_finite(tensors: dict[str, Array], where: str) -> None:
    for name, array in tensors.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(f"{where}: {name} ({array.dtype}) holds values that are not finite; "
                             "encode the support again")
