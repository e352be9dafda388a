"""Decode a latent in fp16 and in fp32, to see whether activations fit fp16.

Weights that fit say little: what overflows in practice, as in the SDXL autoencoder, are
activations, and the picture is black then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import MissingDependencyError
from vaeconv.plan import Row

if TYPE_CHECKING:
    import torch

LATENT_SIZE = 32
_SEED = 840_001
_FP16_MAX = 65504.0


class Peak(NamedTuple):
    """The largest activation of a run.

    Attributes:
        value: Its magnitude; infinite where activations were not finite.
        layer: The module that put it out, by its diffusers name.
    """

    value: float
    layer: str


class ProbeReport(NamedTuple):
    """What a probe found.

    Attributes:
        device: Where it ran, such as ``cpu`` or ``cuda:0``.
        latent: Shape of the latent, ``(1, channels, height, width)``.
        scaling_factor: What the latent, noise of unit variance, was divided by.
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
        """Whether fp16 is enough: no activation overflowed, nor would in fp32's account."""
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
            "fp16_peak": {**self.fp16_peak._asdict(), "value": _plain(self.fp16_peak.value)},
            "is_finite": self.is_finite,
        }


def _plain(value: float) -> float | None:
    """JSON has no infinity."""
    return value if value < float("inf") else None


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
    try:
        import torch
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingDependencyError(
            f"a probe needs torch and diffusers: {error}", hint="pip install torch diffusers"
        ) from error
    place = pick_device(device)
    autoencoder: Any = AutoencoderKL  # its methods have no types
    with torch.device("meta"):
        model = autoencoder.from_config(dict(config)).eval()
    weights = {row.name: load_row(row) for row in rows}
    shape = (1, config["latent_channels"], size, size)
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(shape, generator=generator)
    latent = noise / config["scaling_factor"] + (config["shift_factor"] or 0.0)
    pictures, peaks, first = [], [], None
    for dtype in (torch.float32, torch.float16):
        placed = {name: tensor.to(place, dtype) for name, tensor in weights.items()}
        model.load_state_dict(placed, strict=True, assign=True)
        with _Watch(model) as watch, torch.inference_mode():
            picture = model.decode(latent.to(place, dtype), return_dict=False)[0]
        pictures.append(picture.float().cpu())
        peaks.append(watch.peak)
        first = watch.first_nonfinite
    diff = (pictures[0] - pictures[1]).abs().max().item()
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


def pick_device(wanted: str) -> torch.device:
    """Choose where to compute; never another device than the one that was asked for.

    Raises:
        MissingDependencyError: It is not there.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MissingDependencyError(
            f"the device {wanted} is not there", hint="--device auto takes the best one that is"
        ) from error
    return device


def load_row(row: Row) -> torch.Tensor:
    """Load one tensor of a plan, in its output's shape and dtype."""
    import torch

    source = getattr(torch, row.source.dtype.torch_name)
    data = bytearray(row.source.nbytes)
    if not data:
        return torch.empty(row.shape, dtype=source)
    row.source.open().read_into(memoryview(data))
    tensor = torch.frombuffer(data, dtype=source).reshape(row.shape)
    return tensor.to(getattr(torch, row.dtype.torch_name))


class _Watch:
    """Watches what the modules of a model put out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []
        self.peak = Peak(0.0, "")
        self.first_nonfinite: str | None = None

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:

        def look(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            largest = output.abs().max().item()
            if not largest < float("inf"):  # NaN, too
                self.first_nonfinite = self.first_nonfinite or name
                largest = float("inf")
            if largest > self.peak.value:
                self.peak = Peak(largest, name)

        return look
