"""Latents between what a diffusion model sees and what a decoder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaeconv.autoencoder.config import Scaling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


def unscale(latent: Array, scaling: Scaling) -> Array:
    """Turn what a diffusion model sees into what a decoder takes, in float32.

    ``z / scaling_factor + shift_factor``, and with statistics per channel ``z * std /
    scaling_factor + mean`` (``StableDiffusionXLPipeline.__call__`` in diffusers).
    """
    import numpy as np

    wide = latent.astype(np.float64)
    if scaling.latents_std and scaling.latents_mean:
        std, mean = (
            np.asarray(values).reshape(-1, 1, 1)
            for values in (scaling.latents_std, scaling.latents_mean)
        )
        wide = wide * std / scaling.scaling_factor + mean
    else:
        wide = wide / scaling.scaling_factor + (scaling.shift_factor or 0.0)
    return wide.astype(np.float32)
