"""Decode a latent in fp16 and in fp32, to see whether activations fit fp16.

Weights that fit say little: what overflows in practice, as in the SDXL autoencoder, are
activations, and the image is black then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import Scaling
from vaeconv.models.activation_hooks import Peak, PeakWatch, hooked
from vaeconv.models.devices import import_torch, pick_device
from vaeconv.models.load import load_row, unscale
from vaeconv.weights.plan import Row

LATENT_SIZE = 32
_SEED = 840_001
_FP16_MAX = 65504.0


class ProbeReport(NamedTuple):
    """Result of a probe.

    Attributes:
        device: Where it ran, such as ``cpu`` or ``cuda:0``.
        latent: Shape of the latent, ``(1, channels, height, width)``.
        scaling_factor: What the latent, noise of unit variance, was divided by; shift and
            statistics of channels were undone as well.
        fp32_peak: The largest activation in fp32.
        fp16_peak: The largest activation in fp16.
        first_nonfinite: The first module whose output in fp16 holds NaN or infinity; None if none.
        max_abs_diff: Between the two pictures, of values from -1 to 1; None where one is not
            finite.
        seconds: How long it took.
    """

    device: str
    latent: tuple[int, ...]
    scaling_factor: float
    fp32_peak: Peak
    fp16_peak: Peak
    first_nonfinite: str | None
    max_abs_diff: float | None
    seconds: float

    @property
    def is_finite(self) -> bool:
        """True if fp16 is enough: no activation overflowed, nor would one of fp32's."""
        return self.first_nonfinite is None and self.fp32_peak.value <= _FP16_MAX

    def describe(self) -> str:
        """Say it in one line."""
        peak = f"largest activation {self.fp32_peak.value:.4g} in {self.fp32_peak.layer}"
        where = f"on {self.device}"
        if self.is_finite:
            return f"fp16 decodes: {peak}, fp16 differs by {self.max_abs_diff:.2g} at most, {where}"
        first = self.first_nonfinite or self.fp32_peak.layer
        return f"fp16 decoding is not finite, first in {first}: {peak}, {where}"

    def document(self) -> dict[str, Any]:
        """Describe it for machines."""
        return {
            **self._asdict(),
            "latent": list(self.latent),
            "fp32_peak": self.fp32_peak._asdict(),
            "fp16_peak": self.fp16_peak._asdict(),
            "is_finite": self.is_finite,
        }


def probe_decoder(
    rows: Iterable[Row], config: Mapping[str, Any], *, device: str = "auto", size: int = LATENT_SIZE
) -> ProbeReport:
    """Decode one latent of noise in fp32, and again in fp16.

    Args:
        rows: The autoencoder's tensors under their diffusers names and shapes; their dtypes are
            what the weights are rounded to first.
        config: The config of ``AutoencoderKL``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        size: Height and width of the latent.

    Raises:
        MissingDependencyError: The device is not there, or torch or diffusers cannot be imported.
    """
    started = time.monotonic()
    autoencoder = import_torch()
    import torch

    from vaeconv.models.half import fp32_sums

    place = pick_device(device)
    with torch.device("meta"):
        model = autoencoder.from_config(dict(config)).eval()
    weights = {row.name: load_row(row) for row in rows}
    shape = (1, config["latent_channels"], size, size)
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(shape, generator=generator)
    scaling = Scaling(
        config["scaling_factor"],
        config["shift_factor"],
        config.get("latents_mean"),
        config.get("latents_std"),
    )
    latent = torch.from_numpy(unscale(noise[0].numpy(), scaling))[None]
    images, peaks, first = [], [], None
    for dtype in (torch.float32, torch.float16):
        placed = {name: tensor.to(place, dtype) for name, tensor in weights.items()}
        model.load_state_dict(placed, strict=True, assign=True)
        watch = PeakWatch()
        data = latent.to(place, dtype)
        with hooked(model, watch), torch.inference_mode(), fp32_sums(data):
            image = model.decode(data, return_dict=False)[0]
        images.append(image.float().cpu())
        peaks.append(watch.peak)
        first = watch.first_nonfinite
    diff = (images[0] - images[1]).abs().max().item()
    return ProbeReport(
        device=str(place),
        latent=shape,
        scaling_factor=config["scaling_factor"],
        fp32_peak=peaks[0],
        fp16_peak=peaks[1],
        first_nonfinite=first,
        max_abs_diff=diff if diff < float("inf") else None,
        seconds=round(time.monotonic() - started, 3),
    )
