"""DiffewsPipeline: encode the support once into a bank, let each query read it in one UNet pass.

Two doors, one inside the other: `encode_support` and the call take pictures as people have them
and give masks at their own size; `encode_support_pixels` and `segment` do the work, on tensors.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diffews.errors import InputError
from diffews.images.arrays import ImageInput, as_list, prepare_images, prepare_supports
from diffews.images.drawn_masks import Pick
from diffews.images.masks import Segmentation, check_call, quantize
from diffews.images.output import DiffewsOutput as DiffewsOutput, LabelMaps, check_output_type
from diffews.images.weak import DEFAULT_WEAK, name_prompts, refiner
from diffews.models.attention import SupportBank, TextKeys
from diffews.models.find import DEFAULT_THRESHOLD, latent_factor
from diffews.models.lora import LoraPipeline
from diffews.models.presence import NoPresence
from diffews.models.saved import SavedPipeline
from diffews.models.unet import TIMESTEP, DiffewsUNet
from diffews.models.vae import decode_latents, encode_distinct, encode_latents
from diffews.models.weights import check_parts
from diffews.variants import Variant
from diffews.variants.generation import draw_seeds


class DiffewsPipeline(LoraPipeline, SavedPipeline):
    """Segments in a query what the mask marks in one or more support images (arXiv:2410.02369).

    Args:
        unet: the fine-tuned UNet.
        vae: Stable Diffusion's VAE.
        text: the empty prompt's embedding, `eval` [1, 2, C] and `train` [1, 77, C], float32.
        image_size: side in pixels to which supports and queries are resized.
        encoder, decoder: small VAEs that take the place of the VAE's halves.
        variant_keys: the paper's choices that the UNet was trained with; by default the released
            model's.
        threshold: share of the maximum that foreground exceeds, where a call says none.

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
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        super().__init__()
        if text is None:
            raise InputError("DiffewsPipeline needs the empty prompt's embedding (text=); "
                             "load it with load_text(base)")
        check_parts(unet, vae, text)
        self.register_modules(unet=unet, vae=vae, encoder=encoder, decoder=decoder)
        self.register_to_config(
            image_size=image_size, variant_keys=variant_keys, threshold=threshold)
        self.text = text

        # the four objects that the paper's choices name, and what the multi-step ones take
        self.method = Variant.read(None if variant_keys is None else dict(variant_keys)).build()
        self.denoising_steps, self.ensemble = 10, 1
        self.presence = NoPresence()  # or who is asked whether the class is there at all

    # ---- from tensors to tensors: what evaluation uses, and the other door calls ----

    @property
    def _execution_device(self) -> torch.device:
        # diffusers' own, which offloaded models need, reads signatures anew, 2 ms a call
        own = self.unet.conv_in.weight.device
        return super()._execution_device if self.unet.is_managed else own

    @property
    def _dtype(self) -> torch.dtype:
        """The precision that the UNet computes in; its own property looks at every module."""
        own = self.unet.conv_in.weight.dtype
        return own if own.itemsize > 1 else self.unet.dtype

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encodes RGB [B, 3, H, W] in [-1, 1] -> scaled means of the posterior [B, 4, H/f, W/f]."""
        vae = self.encoder or self.vae
        pixels = pixels.to(self._execution_device, vae.dtype, non_blocking=True)
        return encode_latents(vae, pixels).to(self._dtype)

    def encode_support_pixels(self, pixels: Tensor, masks: Tensor, shots: int) -> SupportBank:
        """Runs the support pass; the S supports of a set are neighbours.

        Args:
            pixels: supports [B*S, 3, H, W] in [-1, 1].
            masks: their masks [B*S, H, W] in {0, 1}.
            shots: S.

        Returns:
            The state that the variant's query pass reads: for the released model, a SupportBank.

        """
        pixels, masks = pixels.to(self._execution_device), masks.to(self._execution_device)
        reads_pixels = self.method.interaction.reads_pixels
        encode = self.unet.encode_images if reads_pixels else self.encode_images
        features = [encode(images) for images in self.method.injection.encoded(pixels, masks)]
        return self._prepare(features, masks, shots)

    def encode_episodes(
        self, queries: Tensor, supports: Tensor, masks: Tensor, shots: int, distinct: Tensor
    ) -> tuple[Tensor, SupportBank]:
        """Encodes B queries and their support sets in one call of the VAE, each picture once.

        Args:
            queries: [B, 3, H, W] in [-1, 1].
            supports, masks: as `encode_support_pixels` takes them.
            shots: S.
            distinct: [B + 2*B*S], the same number for the same picture, in the order queries,
                supports, masks.

        Returns:
            Latents of the queries [B, 4, h, w], and the state of `encode_support_pixels`.

        """
        if self.method.interaction.reads_pixels:
            return self.encode_images(queries), self.encode_support_pixels(supports, masks, shots)
        supports, masks = supports.to(self._execution_device), masks.to(self._execution_device)
        injection, batch = self.method.injection, len(queries)
        pictures = torch.cat([queries, *injection.encoded(supports, masks)])

        # which of the distinct pictures this injection encodes
        numbers = distinct[:batch].tolist()
        if injection.encodes_image:
            numbers += distinct[batch : batch + len(supports)].tolist()
        if injection.painted is not None:
            numbers += distinct[batch + len(supports) :].tolist()
        latents = encode_distinct(self.encode_images, pictures, numbers)

        features = latents[batch:].split(len(supports))
        return latents[:batch], self._prepare(features, masks, shots)

    def segment(
        self, pixels: Tensor, bank: SupportBank, latents: Tensor | None = None,
        steps: int | None = None, seeds: Sequence[int] | None = None,
    ) -> Segmentation:
        """Runs the query pass and decodes its answer.

        Args:
            pixels: queries [B, 3, S, S] in [-1, 1].
            bank: B support sets, or one for all.
            latents: [B, 4, h, w], if the queries are encoded already.
            steps, seeds: of multi-step generations; by default the pipeline's, and one noise.

        """
        steps = self.denoising_steps if steps is None else steps
        latents = self.encode_images(pixels) if latents is None else latents
        interaction, generation = self.method.interaction, self.method.generation
        bank = self.presence.listen(bank)
        predict = functools.partial(interaction.segment, self.unet, text=self._text(), state=bank)

        # one member, unless answers to different noise are averaged
        vae, decoded = self.decoder or self.vae, []
        for member in range(self.ensemble):
            answer = generation.sample(predict, latents, steps, member, seeds)
            decoded.append(decode_latents(vae, answer.to(vae.dtype)))
        mean = torch.stack(decoded).mean(0)
        rgb = quantize(mean)  # [B, 3, S, S] uint8
        scores = self.method.supervision.recover(rgb, pixels.to(rgb.device))
        finite = torch.isfinite(mean).flatten(1).all(1) & torch.isfinite(scores).flatten(1).all(1)
        kinds = (str(module.dtype).removeprefix("torch.") for module in (self.unet, vae))
        found = Segmentation(scores, finite, "UNet in {}, VAE in {}".format(*kinds))
        again = functools.partial(self._encode_again, pixels, latents)
        return self.presence.judge(found, bank, again)

    def _encode_again(self, pixels: Tensor, latents: Tensor, masks: Tensor) -> SupportBank:
        """Runs the support pass on queries that are encoded already, with masks of their own."""
        injection, masks = self.method.injection, masks.to(torch.uint8)
        pictures = injection.encoded(pixels.to(masks.device), masks)
        known = [latents] if injection.encodes_image else []
        features = [*known, *map(self.encode_images, pictures[len(known) :])]
        return self._prepare(features, masks, shots=1)

    def _prepare(self, features: Sequence[Tensor], masks: Tensor, shots: int) -> SupportBank:
        support = self.method.injection.join(features, masks)
        timestep = torch.full((), TIMESTEP, device=self._execution_device)
        bank = self.method.interaction.prepare(self.unet, support, timestep, self._text(), shots)
        return self.presence.sign(bank, masks)

    def _text(self) -> Tensor | TextKeys:
        """The constant text condition, with its keys and values unless hooks hold the layers.

        They are computed at every call, whatever happened to the weights: 1/200 of a query pass.
        """
        text = self.text["eval"].to(self._execution_device, self._dtype, non_blocking=True)
        if self.unet.is_managed:
            return text
        with torch.no_grad():
            return self.unet.encode_text(text)

    # ---- from pictures to masks: what people use ----

    @torch.no_grad()
    def encode_support(
        self,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]],
        masks: Any = None,
        image_size: int | None = None,
        *,
        boxes: Any = None, points: Any = None, scribbles: Any = None, weak: str = DEFAULT_WEAK,
        mask_value: int | None = None,
        mask_colour: tuple[int, int, int] | None = None,
    ) -> SupportBank:
        """Encodes support images, and what marks the object, once for any number of queries.

        Args:
            images: one picture or a list of them, the shots of one set; a list of lists makes a
                bank of several sets. A picture is a PIL image or a file, taken upright; or an
                array or tensor (H, W, 3) or (3, H, W), uint8 or float in [-1, 1] or [0, 1].
            masks: as many, each a PIL image or a file, as people draw them; or an array or tensor
                (H, W) of its picture's size: bool, {0, 1} or {0, 255}.
            image_size: side in pixels to work at; the pipeline's own by default.
            boxes, points, scribbles: in place of masks, as many (x0, y0, x1, y1), (x, y) or lists
                of these, in pixels of the upright picture, or masks of strokes.
            weak: how a mask is made of them, one of images.weak.WEAK.
            mask_value, mask_colour: what is the object in label maps, or in paint (R, G, B).

        Raises:
            InputError: for masks of other values or sizes, what marks nothing (perhaps only at
                image_size) or is not in its picture, or lists that do not pair.

        """
        size, refine = self._check_size(image_size), refiner(weak, self._find_in_itself)
        pick = Pick.of(mask_value, mask_colour or ())
        marked = name_prompts(images, masks, boxes, points, scribbles)
        pixels, marks, shots = prepare_supports(images, marked, size, pick, refine)
        return self.encode_support_pixels(torch.tensor(pixels), torch.tensor(marks), shots)

    @torch.no_grad()
    def __call__(
        self,
        queries: ImageInput | Sequence[ImageInput],
        bank: SupportBank | None = None,
        *,
        support_images: Any = None, support_masks: Any = None,
        threshold: float | None = None,
        threshold_rule: str = "reference",
        image_size: int | None = None,
        own_size: bool = True,
        batch: int = 1,
        min_presence: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np", return_dict: bool = True,
    ) -> DiffewsOutput:
        """Segments one or more queries.

        Args:
            queries: one picture or a list of them, of any sizes (see `encode_support`).
            bank: one support set for all queries, or as many sets as queries.
            support_images, support_masks: instead of a bank, as `encode_support` takes them.
            threshold: share of the maximum that foreground exceeds, or a score; by default its own.
            threshold_rule: "reference" (maximum over the RGB image: released code), "paper" (of the
                mean image), "absolute".
            image_size: side in pixels to work at; the pipeline's own by default.
            own_size: give masks at each query's own size; else at (image_size, image_size).
            batch: queries computed at once; 1 is exact, more may flip pixels on the threshold.
            min_presence: queries whose presence is below it get an empty mask; needs a head.
            num_inference_steps: denoising steps of weights with a multi-step generation; others
                refuse it.
            generator: draws the noise of multi-step generations that start from it, for each
                query its own; or a list of them, one a query. By default all start from the same.
            output_type: masks and scores as arrays ("np"), tensors ("pt") or PIL images ("pil").
            return_dict: give a DiffewsOutput; else the tuple of what it holds.

        """
        check_output_type(output_type)
        self.method.generation.check_steps(num_inference_steps)
        size = self._check_size(image_size)
        threshold = self._check(threshold, threshold_rule, batch, min_presence)
        if (bank is None) == (support_images is None):
            raise InputError("give either a bank or support_images with support_masks")
        if bank is None:
            if support_masks is None:
                raise InputError("support_images without support_masks; give one mask an image")
            bank = self.encode_support(support_images, support_masks, size)
        images = as_list(queries, 3)
        seeds = draw_seeds(generator, len(images))
        if bank.batch not in (1, len(images)):
            raise InputError(f"{len(images)} queries for a bank of {bank.batch} support sets; "
                             "give one set, or one each")

        output = DiffewsOutput(masks=[], scores=[])
        for start in range(0, len(images), batch):
            arrays, shapes = prepare_images(images[start : start + batch], size, own_size)
            pixels = torch.tensor(arrays)
            part = bank if bank.batch == 1 else bank[start : start + batch]
            named = [f"query {start + row}" for row in range(len(shapes))]
            own = None if seeds is None else seeds[start : start + batch]
            answer = self.segment(pixels, part, None, num_inference_steps, own).check(named)
            found = answer.gate(min_presence).at_sizes(shapes, threshold, threshold_rule)
            output.add(found, answer.presence)
        if self.unet.is_managed:
            self.maybe_free_model_hooks()
        given = output.as_type(output_type)
        return given if return_dict else given.to_tuple()

    @torch.no_grad()
    def label(
        self,
        queries: ImageInput | Sequence[ImageInput],
        banks: Sequence[SupportBank],
        *,
        threshold: float | None = None,
        threshold_rule: str = "reference",
        image_size: int | None = None,
        own_size: bool = True,
        batch: int = 1,
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
        size = self._check_size(image_size)
        threshold = self._check(threshold, threshold_rule, batch, min_presence)
        if not 1 <= len(banks) <= 255:
            raise InputError(f"{len(banks)} banks; give one for each class, 1 to 255")
        several = next((bank.batch for bank in banks if bank.batch != 1), None)
        if several is not None:
            raise InputError(f"a bank of {several} support sets; give one for each class")

        images, maps = as_list(queries, 3), LabelMaps()
        for start in range(0, len(images), batch):
            arrays, shapes = prepare_images(images[start : start + batch], size, own_size)
            pixels = torch.tensor(arrays)
            latents = self.encode_images(pixels)
            best = [np.zeros(shape, np.float32) for shape in shapes]
            labels = [np.zeros(shape, np.uint8) for shape in shapes]
            sure: list[Tensor | None] = []

            for number, bank in enumerate(banks, start=1):
                named = [f"query {start + row}" for row in range(len(shapes))]
                answer = self.segment(pixels, bank, latents).check(named).gate(min_presence)
                sure.append(answer.presence)
                found = answer.at_sizes(shapes, threshold, threshold_rule)
                for row, (mask, score) in enumerate(found):
                    wins = mask & (score > best[row])
                    labels[row][wins], best[row][wins] = number, score[wins]
            maps.add(labels, sure)
        return maps

    def _find_in_itself(self, support: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Shows a support [1, 3, S, S] with a mask [1, S, S] -> what is found in it, [S, S]."""
        pixels = torch.tensor(support)
        bank = self.encode_support_pixels(pixels, torch.tensor(mask), 1)
        found = self.segment(pixels, bank).check(["a support"])
        return found.masks(self.config.threshold, "reference")[0].cpu().numpy()

    def _check_size(self, image_size: int | None) -> int:
        size = image_size or self.config.image_size
        factor = latent_factor(self.vae.config.block_out_channels)
        if size < factor or size % factor:
            raise InputError(f"image_size={size} is not a multiple of {factor}, the VAE's factor")
        return size

    def _check(self, threshold: float | None, rule: str, batch: int, least: float | None) -> float:
        threshold = self.config.threshold if threshold is None else threshold
        check_call(threshold, rule, batch, least)
        return threshold


# where DiffusionPipeline.from_pretrained looks for the class that model_index.json names
diffusers.DiffewsPipeline = DiffewsPipeline
