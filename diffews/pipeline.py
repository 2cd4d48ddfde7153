"""DiffewsPipeline: encode the support once into a bank, let each query read it in one UNet pass, decode, threshold."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from diffews.errors import InputError
from diffews.images.masks import (
    binary_mask,
    check_threshold,
    quantize,
    resize_mask,
    scores_and_limit,
)
from diffews.images.tensors import (
    ImageInput,
    as_list,
    as_sets,
    from_pixels,
    prepare_image,
    resize_scores,
    to_array,
    to_pixels,
)
from diffews.models.attention import SupportBank, TextKeys
from diffews.models.find import latent_factor, resolve, write_record
from diffews.models.unet import TIMESTEP, DiffewsUNet
from diffews.models.vae import decode_latents, encode_latents
from diffews.models.weights import load_text, save_text
from diffews.variants import Variant
from diffews.variants.injection import Support, pool_mask


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
        encoder, decoder: small VAEs that take the place of the VAE's halves.
        variant_keys: the paper's choices that the UNet was trained with; the released model's without it.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["encoder", "decoder"]

    def __init__(
        self,
        unet: DiffewsUNet,
        vae: AutoencoderKL,
        text: dict[str, Tensor] | None = None,  # a default tells diffusers that it is no module
        image_size: int = 512,
        encoder: AutoencoderTiny | None = None,
        decoder: AutoencoderTiny | None = None,
        variant_keys: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if text is None:
            raise InputError("DiffewsPipeline needs the empty prompt's embedding; load it with load_text(base)")
        check_parts(unet, vae, text)
        self.register_modules(unet=unet, vae=vae, encoder=encoder, decoder=decoder)
        self.register_to_config(image_size=image_size, variant_keys=variant_keys)
        self.text = text
        self.method = Variant.read(None if variant_keys is None else dict(variant_keys)).build()
        self.denoising_steps, self.ensemble = 10, 1  # of the generations that take several steps
        self._text_keys: TextKeys | None = None

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes unet/, vae/, text.safetensors and model_index.json; the folder is a weight dir and a base in one."""
        super().save_pretrained(save_directory, **kwargs)
        folder, keys = Path(save_directory), self.config.variant_keys
        save_text(self.text, folder)
        record = {"base": str(folder), "image_size": self.config.image_size}
        write_record(folder, folder, {**record, **({} if keys is None else {"variant": dict(keys)})})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "DiffewsPipeline":
        """Loads what `save_pretrained` wrote, from a folder or a hub id."""
        folder = resolve(str(pretrained_model_name_or_path), ("*",))
        return super().from_pretrained(str(folder), text=load_text(folder), **kwargs)

    # ---- from tensors to tensors: what evaluation uses ----

    @property
    def _execution_device(self) -> torch.device:  # diffusers' own reads signatures anew: 2 ms a call
        hook = getattr(self.unet, "_hf_hook", None)  # of an offloaded model
        return torch.device(getattr(hook, "execution_device", None) or self.unet.conv_in.weight.device)

    def encode_images(self, images: Tensor) -> Tensor:
        """Means of the VAE's posterior, scaled: RGB [B, 3, H, W] in [-1, 1] -> latents [B, 4, H/f, W/f]."""
        vae = self.encoder or self.vae
        return encode_latents(vae, images.to(self._execution_device, vae.dtype)).to(self.unet.conv_in.weight.dtype)

    def encode_support_tensors(self, images: Tensor, masks: Tensor, shots: int) -> SupportBank:
        """Runs the support pass on images [B*S, 3, H, W] in [-1, 1] and masks [B*S, H, W] in {0, 1}.

        Returns the state that the variant's query pass reads: for the released model, a SupportBank.
        """
        images, drawn = images.to(self._execution_device), self._draw(images, masks)
        encode = self.unet.encode_images if self.method.interaction.reads_pixels else self.encode_images
        features = encode(images)
        pooled = self.method.injection.drawn.pooled
        marks = pool_mask(drawn, features.shape[-2:]).to(features) if pooled else encode(drawn)
        return self._prepare(self.method.injection.combine(features, marks), shots)

    def encode_episodes(
        self, queries: Tensor, images: Tensor, masks: Tensor, shots: int, distinct: Tensor
    ) -> tuple[Tensor, SupportBank]:
        """Encodes B queries, their supports and masks in one call of the VAE, each picture once.

        queries: [B, 3, H, W]; images, masks: as `encode_support_tensors` takes them; distinct: [B + 2*B*S], the same
        number for the same picture, in the order queries, images, masks. Returns query latents and the state.
        """
        if self.method.interaction.reads_pixels:
            return self.encode_images(queries), self.encode_support_tensors(images, masks, shots)
        drawn, pooled = self._draw(images, masks), self.method.injection.drawn.pooled
        pictures = torch.cat([queries, images] if pooled else [queries, images, drawn])
        numbers = distinct[: len(pictures)].tolist()
        first = {number: place for place, number in reversed(list(enumerate(numbers)))}
        places = sorted(first.values())
        latents = self.encode_images(pictures[places])[[places.index(first[number]) for number in numbers]]
        features = latents[len(queries) : len(queries) + len(images)]
        marks = pool_mask(drawn, features.shape[-2:]).to(features) if pooled else latents[-len(images) :]
        return latents[: len(queries)], self._prepare(self.method.injection.combine(features, marks), shots)

    def predict_rgb(self, images: Tensor, bank: SupportBank) -> Tensor:
        """Runs the query pass and decodes: images [B, 3, H, W] in [-1, 1] -> uint8 RGB [B, 3, H, W]."""
        return self.decode_masks(self.encode_images(images), bank)

    def decode_masks(self, latents: Tensor, bank: SupportBank) -> Tensor:
        """Runs the query pass on query latents [B, 4, h, w] and decodes: uint8 RGB [B, 3, H, W]."""
        predict = functools.partial(self._segment, bank)
        vae, generation = self.decoder or self.vae, self.method.generation
        decoded = [
            decode_latents(vae, generation.sample(predict, latents, self.denoising_steps, member).to(vae.dtype))
            for member in range(self.ensemble)
        ]
        return quantize(torch.stack(decoded).mean(0))

    def recover(self, rgb: Tensor, images: Tensor) -> Tensor:
        """Scores of decoded masks: uint8 RGB [B, 3, H, W] and the queries in [-1, 1] -> [B, 3, H, W] in [0, 1]."""
        return self.method.supervision.recover(rgb.float(), from_pixels(images.to(rgb.device)))

    def _draw(self, images: Tensor, masks: Tensor) -> Tensor:
        images, masks = images.to(self._execution_device), masks.to(self._execution_device)
        return to_pixels(self.method.injection.drawn.draw(from_pixels(images), masks.float()))

    def _prepare(self, support: Support, shots: int) -> SupportBank:
        return self.method.interaction.prepare(self.unet, support, self._timestep(), self._text(), shots)

    def _segment(self, bank: SupportBank, latents: Tensor, timestep: Tensor) -> Tensor:
        return self.method.interaction.segment(self.unet, latents, timestep, self._text(), bank)

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
        image_sets, mask_sets = as_sets(images, 3), as_sets(masks, 2)
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
            pixels, image_shape = prepare_image(image, size)
            array = binary_mask(to_array(mask), "support mask")
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
        pictures = as_list(queries, 3)
        if bank.batch not in (1, len(pictures)):
            raise InputError(
                f"{len(pictures)} queries for a bank of {bank.batch} support sets; give one set, or one each"
            )
        output = DiffewsOutput(masks=[], scores=[])
        for start in range(0, len(pictures), batch):
            images, shapes = self._load(pictures[start : start + batch], size, own_size)
            part = bank if bank.batch == 1 else bank[start : start + batch]
            found = self._find(self.encode_images(images), images, part, shapes, threshold, threshold_rule)
            for mask, score in found:
                output.masks.append(mask)
                output.scores.append(score)
        return output

    @torch.no_grad()
    def label(
        self,
        queries: ImageInput | Sequence[ImageInput],
        banks: Sequence[SupportBank],
        *,
        threshold: float = 0.25,
        threshold_rule: str = "reference",
        image_size: int | None = None,
        own_size: bool = True,
        batch: int = 1,
    ) -> list[np.ndarray]:
        """Segments several classes at once -> label maps uint8 (H, W), 0 for none and i + 1 for banks[i].

        Each bank holds one support set of one class. A query is encoded once for all. Where several classes are
        above their threshold, the highest score wins. For the other arguments see `__call__`.
        """
        size = self._check_size(image_size)
        if not 1 <= len(banks) <= 255:
            raise InputError(f"{len(banks)} banks; give one for each class, 1 to 255")
        for bank in banks:
            self.check_inputs(bank, None, None, threshold, threshold_rule, size, batch)
            if bank.batch != 1:
                raise InputError(f"a bank of {bank.batch} support sets; give one for each class")
        pictures, maps = as_list(queries, 3), []
        for start in range(0, len(pictures), batch):
            images, shapes = self._load(pictures[start : start + batch], size, own_size)
            latents = self.encode_images(images)
            best = [np.zeros(shape, np.float32) for shape in shapes]
            labels = [np.zeros(shape, np.uint8) for shape in shapes]
            for number, bank in enumerate(banks, start=1):
                found = self._find(latents, images, bank, shapes, threshold, threshold_rule)
                for row, (mask, score) in enumerate(found):
                    wins = mask & (score > best[row])
                    labels[row][wins], best[row][wins] = number, score[wins]
            maps += labels
        return maps

    def _load(self, pictures: Sequence[ImageInput], size: int, own_size: bool) -> tuple[Tensor, list[tuple[int, int]]]:
        prepared = [prepare_image(picture, size) for picture in pictures]
        shapes = [shape if own_size else (size, size) for _, shape in prepared]
        return torch.stack([pixels for pixels, _ in prepared]), shapes

    def _find(
        self,
        latents: Tensor,
        images: Tensor,
        bank: SupportBank,
        shapes: Sequence[tuple[int, int]],
        threshold: float,
        rule: str,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mask and score of each query, at the given sizes; the limit is that before the resize."""
        rgb = self.recover(self.decode_masks(latents, bank), images).cpu()
        _, limits = scores_and_limit(rgb, threshold, rule)
        scores = [resize_scores(decoded, shape) for decoded, shape in zip(rgb, shapes, strict=True)]
        return [((score > limit).numpy(), score.numpy()) for score, limit in zip(scores, limits, strict=True)]

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

    def _text(self) -> TextKeys:
        """The constant text condition; its keys and values are computed once for a device and precision."""
        device, dtype = self._execution_device, self.unet.conv_in.weight.dtype
        keys = self._text_keys
        if keys is None or keys.embedding.device != device or keys.embedding.dtype != dtype:
            with torch.no_grad():
                keys = self._text_keys = self.unet.encode_text(self.text["eval"].to(device, dtype))
        return keys

    def save_bank(self, bank: SupportBank, path: str | Path) -> None:
        """Writes a bank with the hash of the weights that recorded it."""
        self.method.interaction.check_bank_use("a bank to save")
        bank.save(path, self.weights_sha256)

    def load_bank(self, path: str | Path) -> SupportBank:
        """Reads a bank that `save_bank` wrote; a bank of other weights is an InputError."""
        self.method.interaction.check_bank_use("a bank to read")
        bank = SupportBank.load(path, self._execution_device, self.weights_sha256)
        self.unet.check_bank(bank)
        return bank.to(dtype=self.unet.dtype)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Hash of every tensor that a bank depends on: UNet, VAE and text, in the precision they have here."""
        digest = sha256()
        for part in (self.unet, self.encoder or self.vae):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        digest.update(self.text["eval"].cpu().numpy().tobytes())
        return digest.hexdigest()


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
