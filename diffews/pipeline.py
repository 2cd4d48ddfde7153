"""DiffewsPipeline: encode the support once into a bank, let each query read it in one UNet pass, decode, threshold."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from diffews.device import pick_device
from diffews.errors import InputError
from diffews.images import normalize, resize_image
from diffews.masks import binary_mask, check_threshold, quantize, render_masks, resize_mask, scores_and_limit
from diffews.models.attention import SupportBank
from diffews.models.unet import TIMESTEP, DiffewsUNet
from diffews.models.weights import (
    WeightSource,
    find_weights,
    latent_factor,
    load_text,
    load_unet,
    load_vae,
    resolve,
    save_text,
)

ImageInput = Image.Image | np.ndarray | Tensor


@dataclass
class DiffewsOutput(BaseOutput):
    """What the pipeline says of each query, at the query's own size.

    masks: list of bool arrays (H_i, W_i). scores: list of float32 arrays (H_i, W_i) in [0, 1], the mean over RGB of
    the decoded picture, before the threshold.
    """

    masks: list[np.ndarray]
    scores: list[np.ndarray]


class DiffewsPipeline(DiffusionPipeline):
    """Segments in a query what the mask marks in one or more support images (DiffewS, arXiv:2410.02369).

    Args:
        unet: the fine-tuned UNet.
        vae: Stable Diffusion's VAE.
        text: the empty prompt's embedding, `eval` [1, 2, C] and `train` [1, 77, C], float32.
        image_size: side in pixels to which supports and queries are resized.
    """

    def __init__(
        self,
        unet: DiffewsUNet,
        vae: AutoencoderKL,
        text: dict[str, Tensor] | None = None,  # a default tells diffusers that it is no module
        image_size: int = 512,
    ) -> None:
        super().__init__()
        if text is None:
            raise InputError("DiffewsPipeline needs the empty prompt's embedding; load it with load_text(base)")
        check_parts(unet, vae, text)
        self.register_modules(unet=unet, vae=vae)
        self.register_to_config(image_size=image_size)
        self.text = text

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes unet/, vae/, text.safetensors and model_index.json; the folder is a weight dir and a base in one."""
        super().save_pretrained(save_directory, **kwargs)
        save_text(self.text, Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "DiffewsPipeline":
        """Loads what `save_pretrained` wrote, from a folder or a hub id."""
        folder = resolve(str(pretrained_model_name_or_path), ("*",))
        return super().from_pretrained(str(folder), text=load_text(folder), **kwargs)

    # ---- from tensors to tensors: what evaluation uses ----

    def encode_images(self, images: Tensor) -> Tensor:
        """Means of the VAE's posterior, scaled: RGB [B, 3, H, W] in [-1, 1] -> latents [B, 4, H/f, W/f]."""
        images = images.to(self._execution_device, self.vae.dtype)
        latents = self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor
        return latents.to(self.unet.dtype)

    def encode_support_tensors(self, images: Tensor, masks: Tensor, shots: int) -> SupportBank:
        """Runs the support pass on images [B*S, 3, H, W] in [-1, 1] and masks [B*S, H, W] in {0, 1}."""
        latents = torch.cat([self.encode_images(images), self.encode_images(render_masks(masks))], dim=1)
        return self.unet.encode_support(latents, self._timestep(), self._text(len(latents)), shots)

    def predict_rgb(self, images: Tensor, bank: SupportBank) -> Tensor:
        """Runs the query pass and decodes: images [B, 3, H, W] in [-1, 1] -> uint8 RGB [B, 3, H, W]."""
        latents = self.unet.segment(self.encode_images(images), self._timestep(), self._text(len(images)), bank)
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return quantize(self.vae.decode(latents).sample)

    # ---- from pictures to masks: what people use ----

    @torch.no_grad()
    def encode_support(
        self,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]],
        masks: Any,
        image_size: int | None = None,
    ) -> SupportBank:
        """Encodes support images and their masks once, for any number of queries.

        images: one picture or a list of them, the shots of one set; a list of lists makes a bank of several sets.
            A picture is a PIL image, or an array or tensor (H, W, 3) or (3, H, W), uint8 or float in [-1, 1].
        masks: as many, each a PIL image, array or tensor (H, W) of its picture's size: bool, {0, 1} or {0, 255}.

        Raises:
            InputError: for masks of other values or sizes, or lists that do not pair.

        """
        size = self._check_size(image_size)
        image_sets, mask_sets = _as_sets(images, 3), _as_sets(masks, 2)
        shots = len(image_sets[0])
        if shots == 0:
            raise InputError("no support image; give at least one")
        if [len(s) for s in image_sets] != [len(s) for s in mask_sets]:
            counts = [sum(len(s) for s in sets) for sets in (image_sets, mask_sets)]
            raise InputError(f"{counts[0]} support images do not pair with {counts[1]} masks; give one mask an image")
        if any(len(s) != shots for s in image_sets):
            raise InputError("support sets of one bank need the same number of shots")

        prepared_images, prepared_masks = [], []
        for image, mask in zip(sum(image_sets, []), sum(mask_sets, []), strict=True):
            pixels, image_shape = _prepare_image(image, size)
            array = binary_mask(_to_array(mask), "support mask")
            if array.shape != image_shape:
                raise InputError(f"support mask of size {array.shape} for an image of size {image_shape}")
            if not array.any():
                warnings.warn("a support mask marks no pixel; the result means little", stacklevel=2)
            prepared_images.append(pixels)
            prepared_masks.append(torch.from_numpy(resize_mask(array, size)))
        return self.encode_support_tensors(torch.stack(prepared_images), torch.stack(prepared_masks), shots)

    @torch.no_grad()
    def __call__(
        self,
        queries: ImageInput | Sequence[ImageInput],
        bank: SupportBank | None = None,
        *,
        support_images: Any = None,
        support_masks: Any = None,
        threshold: float = 0.25,
        threshold_rule: str = "reference",
        image_size: int | None = None,
        own_size: bool = True,
        batch: int = 1,
    ) -> DiffewsOutput:
        """Segments one or more queries.

        queries: one picture or a list of them, of any sizes (see `encode_support`).
        bank: one support set for all queries, or as many sets as queries; instead of it, `support_images` and
            `support_masks` as `encode_support` takes them.
        threshold: share of the maximum that foreground exceeds, or an absolute score, as `threshold_rule` says:
            "reference" (maximum over the RGB image: released code), "paper" (of the mean image), "absolute".
        image_size: side in pixels to work at; the pipeline's own by default.
        own_size: give masks at each query's own size; else at (image_size, image_size).
        batch: queries computed at once; 1 is the exact path, more may flip pixels that sit on the threshold.
        """
        size = self._check_size(image_size)
        bank = self.check_inputs(bank, support_images, support_masks, threshold, threshold_rule, size, batch)
        pictures = _as_list(queries, 3)
        if bank.batch not in (1, len(pictures)):
            raise InputError(
                f"{len(pictures)} queries for a bank of {bank.batch} support sets; give one set, or one each"
            )

        masks, scores = [], []
        for start in range(0, len(pictures), batch):
            prepared = [_prepare_image(picture, size) for picture in pictures[start : start + batch]]
            part = bank if bank.batch == 1 else bank[start : start + batch]
            rgb = self.predict_rgb(torch.stack([pixels for pixels, _ in prepared]), part).cpu().float() / 255
            _, limits = scores_and_limit(rgb, threshold, threshold_rule)
            for decoded, limit, (_, shape) in zip(rgb, limits, prepared, strict=True):
                if own_size and shape != (size, size):
                    decoded = torch.nn.functional.interpolate(decoded[None], size=shape, mode="bilinear")[0]
                score = decoded.mean(0)
                masks.append((score > limit).numpy())
                scores.append(score.numpy())
        return DiffewsOutput(masks=masks, scores=scores)

    def check_inputs(
        self,
        bank: SupportBank | None,
        support_images: Any,
        support_masks: Any,
        threshold: float,
        threshold_rule: str,
        image_size: int,
        batch: int,
    ) -> SupportBank:
        """Checks a call's settings and returns the bank to read, encoding the support pictures if they are given."""
        check_threshold(threshold, threshold_rule)
        if batch < 1:
            raise InputError(f"batch={batch} must be at least 1")
        if (bank is None) == (support_images is None):
            raise InputError("give either a bank or support_images with support_masks")
        if bank is not None:
            return bank
        if support_masks is None:
            raise InputError("support_images without support_masks; give one mask an image")
        return self.encode_support(support_images, support_masks, image_size)

    def _check_size(self, image_size: int | None) -> int:
        size = image_size or self.config.image_size
        factor = latent_factor(self.vae.config.block_out_channels)
        if size < factor or size % factor:
            raise InputError(f"image_size={size} is not a multiple of {factor}, the VAE's factor")
        return size

    def _timestep(self) -> Tensor:
        return torch.tensor(TIMESTEP, device=self._execution_device)

    def _text(self, batch: int) -> Tensor:
        text = self.text["eval"].to(self._execution_device, self.unet.dtype)
        return text.expand(batch, -1, -1)


def load_pipeline(
    weight: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    allow_bin: bool = False,
) -> DiffewsPipeline:
    """Loads a weight dir (DIR/unet/unet, DIR/unet or DIR) with its base.

    base: folder or hub id with vae/ and text.safetensors or text_encoder/ + tokenizer/; by default as recorded in the
    weight dir, else a folder beside it. Half precision is the UNet's; the VAE stays in float32 under float16, where
    Stable Diffusion's overflows. Pickled `.bin` weights are read (weights only) when `allow_bin` says so.
    """
    return build_pipeline(find_weights(weight, base), dtype, device, allow_bin)


def build_pipeline(
    source: WeightSource, dtype: torch.dtype, device: torch.device | str, allow_bin: bool = False
) -> DiffewsPipeline:
    """Loads the weights that `find_weights` found; see `load_pipeline`."""
    unet = load_unet(source.unet, dtype, allow_bin)
    vae = load_vae(source.base, torch.float32 if dtype == torch.float16 else dtype, allow_bin)
    pipeline = DiffewsPipeline(unet, vae, load_text(source.base, allow_bin), source.image_size())
    return pipeline.to(pick_device(str(device)))


def check_parts(unet: DiffewsUNet, vae: AutoencoderKL, text: dict[str, Tensor]) -> None:
    """Raises InputError unless the UNet takes the VAE's latents and the base's text."""
    if unet.config.in_channels != vae.config.latent_channels:
        raise InputError(
            f"the UNet takes {unet.config.in_channels} latent channels, the VAE makes "
            f"{vae.config.latent_channels}; weight and base do not belong together"
        )
    if text["eval"].shape[-1] != unet.config.cross_attention_dim:
        raise InputError(
            f"the UNet takes text of {unet.config.cross_attention_dim} channels, the base makes "
            f"{text['eval'].shape[-1]}; weight and base do not belong together"
        )


def to_pixels(rgb: Tensor) -> Tensor:
    """Maps uint8 RGB to float32 in [-1, 1], as `diffews.images.normalize` does for arrays."""
    return rgb.float() / 255 * 2 - 1


def _as_list(pictures: Any, dimensions: int) -> list[Any]:
    """One picture or mask, an array or tensor of several, or a list -> list; one has `dimensions` dimensions."""
    if isinstance(pictures, np.ndarray | Tensor):
        return [pictures] if pictures.ndim <= dimensions else list(pictures)
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def _as_sets(pictures: Any, dimensions: int) -> list[list[Any]]:
    """One picture, a list, or a list of lists -> list of support sets."""
    items = _as_list(pictures, dimensions)
    return [list(item) for item in items] if items and isinstance(items[0], list | tuple) else [items]


def _to_array(picture: ImageInput) -> np.ndarray:
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        return (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy has no bfloat16
    return np.asarray(picture)


def _prepare_image(picture: ImageInput, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Returns pixels [3, size, size] in [-1, 1] and the picture's own (height, width)."""
    if isinstance(picture, Image.Image):
        return torch.from_numpy(normalize(resize_image(picture.convert("RGB"), size))), picture.size[::-1]
    array = _to_array(picture)
    if array.ndim == 3 and array.shape[0] != 3 and array.shape[-1] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or array.size == 0:
        raise InputError(f"a picture of shape {array.shape}; give (height, width, 3) or (3, height, width)")
    if array.dtype == np.uint8:
        return _prepare_image(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size)
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= -1 and array.max() <= 1):
        raise InputError(
            f"a picture of {array.dtype} in [{array.min()}, {array.max()}]; give uint8 or float in [-1, 1]"
        )
    pixels = torch.from_numpy(array.astype(np.float32))
    if array.shape[1:] != (size, size):
        resized = torch.nn.functional.interpolate(pixels[None], size=(size, size), mode="bilinear", antialias=True)
        pixels = resized[0].clamp(-1, 1)
    return pixels, array.shape[1:]
