"""Full Stable Diffusion checkpoints in miniature: a diffusion model, an autoencoder, the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.compvis import DDConfig
from tests.support.litema import make_ema
from tests.support.samples import TINY, prefixed, weights_of


def noise(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) / 8).to(dtype)


UNET = {
    "model.diffusion_model.input_blocks.0.0.weight": noise(32, 4, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": noise(32),
    "model.diffusion_model.middle_block.1.proj_in.weight": noise(64, 64, seed=6),
    "model.diffusion_model.out.2.bias": noise(4, seed=7),
}
REST = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": noise(48, 32),
    "betas": torch.linspace(0.1, 0.9, 7, dtype=torch.float64),
    "alphas_cumprod": torch.linspace(0.1, 0.9, 7),
    "scale_factor": torch.tensor(0.18215),
}
VAE = "first_stage_model."


def full_state(config: DDConfig = TINY, *, ema: bool = True) -> dict[str, Tensor]:
    """A full checkpoint as LatentDiffusion trains it: the EMA is the diffusion model's."""
    names = {name.removeprefix("model."): tensor for name, tensor in UNET.items()}
    average_of = make_ema(names, lambda name, raw: raw + noise(*raw.shape, seed=9))
    return {**UNET, **(average_of if ema else {}), **REST, **prefixed(weights_of(config), VAE)}
