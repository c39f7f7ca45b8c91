"""Reconstruction by diffusion: sample images that look real and have these features.

A denoiser conditioned on the features, trained on the attacker's images (Ho et al., arXiv 2006.11239; velocity as the
target: Salimans and Ho, arXiv 2202.00512), sampled with DDIM (Song et al., arXiv 2010.02502). It works on pixels put
two by two into channels, which makes it a quarter as dear, and begins where a decoder ends: an inversion attack's
answer is part of what it is conditioned on [ours].
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from edge_sdk.errors import needs_extra

from .base import Features, Progress, Rebuild, View
from .fitting import fit_network
from .inversion import InversionAttack
from .joined import JoinedFeatures, sample_features

FOLD = 2  # pixels put together along each axis
NOISE_STEPS = 1000
MOST_TOKENS = 256
"""That attention is computed plainly for: its memory grows with their square."""
GUESS = InversionAttack(width=48, epochs=4)


@dataclass(frozen=True, kw_only=True)
class DiffusionAttack:
    """A conditional denoiser and its sampler.

    Attributes:
        width: channels at the finest resolution.
        condition: channels that the features are brought to.
        epochs: over the attacker's images.
        batch_size: images a step.
        learning_rate: highest, of one cycle of AdamW.
        sampling_steps: of DDIM.
        decoder: trained first, on the same images; its answer is a condition too.
        seed: of weights, order and noise.
    """

    width: int = 48
    condition: int = 32
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    sampling_steps: int = 25
    decoder: InversionAttack = GUESS
    seed: int = 0
    name: str = "diffusion"

    def fit(self, view: View, images: Tensor, state: Path | None, progress: Progress) -> Rebuild:
        with needs_extra("audit", "the diffusion attack"):
            from diffusers import DDIMScheduler

        first = None if state is None else state.with_name(f"{state.name}.decoder")
        guess = self.decoder.fit(view, images, first, progress)
        torch.manual_seed(self.seed)
        size = (images.shape[2] // FOLD, images.shape[3] // FOLD)
        denoiser = Denoiser(sample_features(view, images), size, self.width, self.condition)
        denoiser.to(view.device)
        noise: Any = DDIMScheduler(
            num_train_timesteps=NOISE_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction",
            clip_sample=True, timestep_spacing="trailing", rescale_betas_zero_snr=True,
        )  # fmt: skip

        def condition(seen: Features) -> Tensor:
            return torch.cat((denoiser.condition(seen), _folded(guess(seen)).to(view.device)), 1)

        def loss(batch: Tensor) -> Tensor:
            clean = _folded(batch)
            drawn, steps = torch.randn_like(clean), torch.randint(NOISE_STEPS, (len(batch),))
            clean, drawn, steps = (t.to(view.device) for t in (clean, drawn, steps))
            noisy, velocity = noise.add_noise(clean, drawn, steps), noise.get_velocity(clean, drawn, steps)
            seen = view.observe(batch)
            with torch.autocast(view.device.type, torch.bfloat16):
                predicted = denoiser(noisy, steps, condition(seen))
            return functional.mse_loss(predicted.float(), velocity)

        fit_network(
            denoiser, loss, images, epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
            seed=self.seed, state=state, progress=progress,
        )  # fmt: skip

        def rebuild(seen: Features) -> Tensor:
            noise.set_timesteps(self.sampling_steps, device=view.device)
            draw = torch.Generator().manual_seed(self.seed)
            sample = torch.randn(len(seen[0]), 3 * FOLD**2, *size, generator=draw).to(view.device)
            with torch.no_grad():
                known = condition(seen)
                for step in noise.timesteps:
                    with torch.autocast(view.device.type, torch.bfloat16):
                        velocity = denoiser(sample, step.expand(len(sample)), known)
                    sample = noise.step(velocity.float(), step, sample).prev_sample
            return functional.pixel_shuffle(sample, FOLD).add(1).div(2).clamp(0, 1).cpu()

        return rebuild


class Denoiser(nn.Module):
    """A UNet over folded images, with the features and a first guess at the image as further channels."""

    def __init__(self, sample: Features, size: tuple[int, int], width: int, condition: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.condition = JoinedFeatures(sample, size, condition)
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=2 * 3 * FOLD**2 + condition,
            out_channels=3 * FOLD**2,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )

    def forward(self, noisy: Tensor, steps: Tensor, condition: Tensor) -> Tensor:
        # The gradient of torch's fused attention is a third of a step on a CPU, and not deterministic on a GPU.
        plain = noisy.shape[2] * noisy.shape[3] // 4 <= MOST_TOKENS
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            velocity: Tensor = self.unet(torch.cat((noisy, condition), 1), steps).sample
        return velocity


def _folded(images: Tensor) -> Tensor:
    """Images in [0, 1] as what is denoised: in [-1, 1], neighbouring pixels in channels."""
    return functional.pixel_unshuffle(images * 2 - 1, FOLD)
