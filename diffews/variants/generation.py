"""How the mask is generated (paper, section 4.4 and A.2): in one step, or by denoising in several."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from diffews.models.unet import TIMESTEP

TRAIN_STEPS = 1000  # timesteps of the multi-step generations, Stable Diffusion's
NOISE_STRENGTH = 0.9  # of each coarser layer of the multi-resolution noise
Predict = Callable[[Tensor, Tensor], Tensor]  # input latents, timestep -> mask latents, minus the UNet's output


class Generation:
    """One step from the image's latent to the mask's; no signal is left, so that the clean latent is minus v."""

    doubles_input = False  # whether the query pass takes image and noisy mask, eight channels

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, 4, h, w] of queries and targets -> input, timestep and goal (minus v) of the query pass.

        draws: one generator for each episode, so that noise and timestep are a function of (seed, index).
        """
        return query, torch.tensor(TIMESTEP, device=query.device), target

    def sample(self, predict: Predict, query: Tensor, steps: int, member: int) -> Tensor:
        """Latents of the queries [B, 4, h, w] -> latents of their masks; `member` of an ensemble seeds the noise."""
        return predict(query, torch.tensor(TIMESTEP, device=query.device))


class ImageToMask(Generation):
    """Several steps from the image's latent to the mask's: the image stands where noise does in diffusion (A.2).

    With a = alpha_bar_t: x_t = sqrt(a) mask + sqrt(1 - a) image, and v = sqrt(a) image - sqrt(1 - a) mask.
    """

    def __init__(self, beta_start: float, beta_end: float) -> None:
        self.scheduler = DDIMScheduler(
            num_train_timesteps=TRAIN_STEPS,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            steps_offset=TIMESTEP,
        )
        tiny = torch.finfo(torch.float32).tiny  # where alpha_bar is 0 the scheduler would divide by it
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.clamp(min=tiny)

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Generation`; every episode has a timestep of its own."""
        steps = torch.tensor([int(draw.integers(TRAIN_STEPS)) for draw in draws], device=query.device)
        return self._noisy(query, target, query, steps)

    def sample(self, predict: Predict, query: Tensor, steps: int, member: int) -> Tensor:
        """See `Generation`; DDIM without noise of its own, from the image's latent."""
        return self._denoise(predict, query, steps)

    def _noisy(self, query: Tensor, target: Tensor, noise: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noisy = self.scheduler.add_noise(target, noise, steps)
        return noisy, steps, -self.scheduler.get_velocity(target, noise, steps)

    def _denoise(self, predict: Predict, start: Tensor, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps)  # on the CPU, where reading a timestep waits for nothing
        latents, clean = start, start
        for timestep in self.scheduler.timesteps:
            step = self.scheduler.step(-predict(latents, timestep.to(start.device)), int(timestep), latents)
            latents, clean = step.prev_sample, step.pred_original_sample
        return clean


class NoiseToMask(ImageToMask):
    """Several steps from noise to the mask's latent, beside which the image stands on channels, as in Marigold.

    Image and noisy mask enter by `conv_in_ref`, which takes the support's image and mask, too.
    """

    doubles_input = True

    def training_pair(
        self, query: Tensor, target: Tensor, draws: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Generation`; the noise has several resolutions, of which the coarse ones fade with the timestep."""
        steps = [int(draw.integers(TRAIN_STEPS)) for draw in draws]
        noise = torch.stack([
            multi_resolution_noise(tuple(query.shape[1:]), draw, NOISE_STRENGTH * step / TRAIN_STEPS)
            for draw, step in zip(draws, steps, strict=True)
        ])  # fmt: skip
        noisy, timestep, goal = self._noisy(query, target, noise.to(query), torch.tensor(steps, device=query.device))
        return torch.cat([query, noisy], dim=1), timestep, goal

    def sample(self, predict: Predict, query: Tensor, steps: int, member: int) -> Tensor:
        """See `Generation`; a member of the ensemble starts every query from the same noise."""
        draws = np.random.default_rng(member)
        noise = torch.from_numpy(draws.standard_normal(query.shape[1:], dtype=np.float32)).to(query)
        return self._denoise(
            lambda latents, timestep: predict(torch.cat([query, latents], dim=1), timestep),
            noise.expand_as(query),
            steps,
        )


def multi_resolution_noise(shape: tuple[int, ...], draw: np.random.Generator, strength: float) -> Tensor:
    """Gaussian noise plus coarser and coarser layers of it, each `strength` times the last; [C, h, w], variance 1."""
    noise = torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))
    weight, (height, width) = 1.0, shape[1:]
    while strength and min(height, width) > 1:
        height, width, weight = height // 2, width // 2, weight * strength
        coarse = torch.from_numpy(draw.standard_normal((1, shape[0], height, width), dtype=np.float32))
        noise += weight * F.interpolate(coarse, size=shape[1:], mode="bilinear")[0]
    return noise / noise.std()


def make_generation(name: str, beta_start: float, beta_end: float) -> Generation:
    """Makes the generation of that name; the betas are the multi-step ones'."""
    if name == "one_step":
        return Generation()
    return {"multi_step_image_to_mask": ImageToMask, "multi_step_noise_to_mask": NoiseToMask}[name](
        beta_start, beta_end
    )
