"""How the mask is generated (paper, section 4.4 and A.2): in one step, or in several."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from diffews.errors import InputError
from diffews.models.unet import TIMESTEP

TRAIN_STEPS = 1000  # timesteps of the multi-step generations, Stable Diffusion's
NOISE_STRENGTH = 0.9  # of each coarser layer of the multi-resolution noise
Predict = Callable[[Tensor, Tensor], Tensor]  # input latents, timestep -> minus the UNet's output


class Generation(ABC):
    """What the query pass is shown, what it should answer, and how its answers become a mask."""

    doubles_input = False  # whether the query pass takes image and noisy mask, 8 channels

    @abstractmethod
    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Makes the query pass's input, timestep and goal (minus v) of a training step.

        Args:
            query: latents [B, 4, h, w] of the queries.
            target: latents [B, 4, h, w] of their painted masks.
            draws: a generator for each episode: noise and timestep depend on (seed, index) alone.

        """

    @abstractmethod
    def check_steps(self, steps: int | None) -> None:
        """Raises InputError for a number of steps that a call cannot ask for; None asks none."""

    @abstractmethod
    def sample(
        self, predict: Predict, query: Tensor, steps: int, member: int,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Latents of queries [B, 4, h, w] -> latents of their masks.

        Args:
            predict: the query pass.
            query: latents of the queries.
            steps: number of denoising steps, where there are several.
            member: which member of an ensemble; seeds the noise.
            seeds: one for each query, if they shall not all start from the same noise.

        """


class OneStep(Generation):
    """One step from the image's latent to the mask's: no signal is left, the clean latent is -v."""

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return query, torch.full((), TIMESTEP, device=query.device), target

    def check_steps(self, steps: int | None) -> None:
        if steps is not None:
            raise InputError(f"num_inference_steps={steps}: these weights answer in one step; "
                             "leave it out")

    def sample(
        self, predict: Predict, query: Tensor, steps: int, member: int,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        return predict(query, torch.full((), TIMESTEP, device=query.device))


class ImageToMask(Generation):
    """Several steps from the image's latent to the mask's: the image stands where noise does (A.2).

    With a = alpha_bar_t: x_t = sqrt(a) mask + sqrt(1 - a) image,
    v = sqrt(a) image - sqrt(1 - a) mask.
    """

    def __init__(self, beta_start: float, beta_end: float) -> None:
        self.scheduler = DDIMScheduler(
            num_train_timesteps=TRAIN_STEPS, beta_start=beta_start, beta_end=beta_end,
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
            steps_offset=TIMESTEP)

        # where alpha_bar is 0 the scheduler would divide by it
        tiny = torch.finfo(torch.float32).tiny
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.clamp(min=tiny)

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gives every episode a timestep of its own."""
        steps = [int(draw.integers(TRAIN_STEPS)) for draw in draws]
        timesteps = torch.tensor(steps).to(query.device, non_blocking=True)
        return self._noisy(query, target, query, timesteps)

    def check_steps(self, steps: int | None) -> None:
        if steps is not None and not 1 <= steps < TRAIN_STEPS:
            raise InputError(f"num_inference_steps={steps} is not between 1 and {TRAIN_STEPS - 1}")

    def sample(
        self, predict: Predict, query: Tensor, steps: int, member: int,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Runs DDIM without noise of its own, from the image's latent."""
        return self._denoise(predict, query, steps)

    def _noisy(
        self, query: Tensor, target: Tensor, noise: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        noisy = self.scheduler.add_noise(target, noise, steps)
        return noisy, steps, -self.scheduler.get_velocity(target, noise, steps)

    def _denoise(self, predict: Predict, start: Tensor, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps)  # on the CPU: reading a timestep waits for nothing
        latents, clean = start, start

        for timestep in self.scheduler.timesteps:
            v = -predict(latents, timestep.to(start.device))
            step = self.scheduler.step(v, int(timestep), latents)
            latents, clean = step.prev_sample, step.pred_original_sample
        return clean


class NoiseToMask(ImageToMask):
    """Several steps from noise to the mask's latent, the image on channels beside it (Marigold).

    Image and noisy mask enter by `conv_in_ref`, which takes the support's image and mask, too.
    """

    doubles_input = True

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws noise of several resolutions, of which the coarse ones fade with the timestep."""
        steps = [int(draw.integers(TRAIN_STEPS)) for draw in draws]
        shape = tuple(query.shape[1:])
        noise = torch.stack([
            multi_resolution_noise(shape, draw, NOISE_STRENGTH * step / TRAIN_STEPS)
            for draw, step in zip(draws, steps, strict=True)]).to(query, non_blocking=True)

        timesteps = torch.tensor(steps).to(query.device, non_blocking=True)
        noisy, timestep, goal = self._noisy(query, target, noise, timesteps)
        return torch.cat([query, noisy], dim=1), timestep, goal

    def sample(
        self, predict: Predict, query: Tensor, steps: int, member: int,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Starts every query from the same noise, that of the ensemble's member, or its own."""
        origins: list[Any] = [member] if seeds is None else [(seed, member) for seed in seeds]
        noise = torch.stack([
            torch.from_numpy(
                np.random.default_rng(origin).standard_normal(query.shape[1:], dtype=np.float32))
            for origin in origins]).to(query)

        def beside_query(latents: Tensor, timestep: Tensor) -> Tensor:
            return predict(torch.cat([query, latents], dim=1), timestep)

        return self._denoise(beside_query, noise.expand_as(query), steps)


def multi_resolution_noise(
    shape: tuple[int, ...], draw: np.random.Generator, strength: float
) -> Tensor:
    """Gaussian noise plus coarser and coarser layers of it, [C, h, w], variance 1.

    Args:
        shape: C, h, w.
        draw: the episode's generator.
        strength: weight of each layer as a share of the last one's, in [0, 1].

    """
    noise = torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))
    weight, (height, width) = 1.0, shape[1:]

    while strength and min(height, width) > 1:
        height, width, weight = height // 2, width // 2, weight * strength
        coarse = torch.from_numpy(
            draw.standard_normal((1, shape[0], height, width), dtype=np.float32))
        noise += weight * F.interpolate(coarse, size=shape[1:], mode="bilinear")[0]
    return noise / noise.std()


def draw_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[int] | None:
    """Draws a seed of the noise for each of `count` queries; None without a generator.

    A list of generators holds one for each query.
    """
    if generator is None:
        return None
    each = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(each) != count:
        raise InputError(f"{len(each)} generators for {count} queries; give one, or one each")
    return [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in each]


def make_generation(name: str, beta_start: float, beta_end: float) -> Generation:
    """Makes the generation of that name; the betas are the multi-step ones'."""
    if name == "one_step":
        return OneStep()
    kinds = {"multi_step_image_to_mask": ImageToMask, "multi_step_noise_to_mask": NoiseToMask}
    return kinds[name](beta_start, beta_end)
