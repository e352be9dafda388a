"""Measure reconstructions: every metric of a batch, on the device that made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import InputError
from vaeconv.evaluation.metric_networks import (
    INCEPTION,
    LPIPS_LINEAR,
    NETWORKS,
    VGG,
    MissingWeightsError,
    Network,
    Weights,
    find_weights,
)
from vaeconv.evaluation.protocol import WINDOW

if TYPE_CHECKING:
    import torch

# Each metric of single pictures: how it is called in a table, and its digits there.
COLUMNS = {"psnr": ("PSNR", 1), "ssim": ("SSIM", 2), "psim": ("PSIM (VGG, unweighted)", 2),
           "lpips": ("LPIPS", 3)}  # fmt: skip
INFINITE = "inf"  # what a record has for the PSNR of two equal images
_LONGEST = 120  # characters of a reason
METRICS = ("rfid", *COLUMNS)
BETTER_IF_LARGER = frozenset({"psnr", "ssim"})
UNITS = {"psnr": " dB"}  # what stands behind a number


def explain_metric(name: str) -> str:
    """Say what a metric is called, its unit, and which end of it is better."""
    title = COLUMNS[name][0] if name in COLUMNS else "rFID"
    better = "higher" if name in BETTER_IF_LARGER else "lower"
    return f"{title}{' in dB' if name in UNITS else ''} ({better} is better)"


class NetworkFacts(NamedTuple):
    """Facts of a metric network, as a result records them.

    Attributes:
        name: Which.
        file: Name of its file.
        sha256: Of the file.
        is_published: Whether that is the published file, by its hash.
    """

    name: str
    file: str
    sha256: str
    is_published: bool


class Meter:
    """Measures images with those metrics whose networks are there.

    Args:
        metrics: Which to compute.
        given: Files of weights that options named, by network.
        device: Where.
        may_download: Whether to fetch weights that are not there.
        on_step: Called with what is being done.
        quiet: Whether to draw no progress bar while fetching.

    Raises:
        InputError: A file of weights is damaged or of another network.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        given: dict[str, Path],
        device: torch.device,
        *,
        may_download: bool = True,
        quiet: bool = False,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.device = device
        self.missing: dict[str, MissingWeightsError] = {}
        self.networks: list[NetworkFacts] = []
        self._inception: Any = None
        self._vgg: Any = None
        self._linear_weights: list[torch.Tensor] = []
        found: dict[Network, Weights] = {}
        for network in NETWORKS:
            wanted = [
                name for name in network.serves if name in metrics and name not in self.missing
            ]
            if not wanted:
                continue
            try:
                found[network] = find_weights(
                    network,
                    given.get(network.name),
                    may_download=may_download,
                    quiet=quiet,
                    on_step=on_step,
                )
            except MissingWeightsError as error:
                self.missing |= dict.fromkeys(wanted, error)
        self.metrics = tuple(name for name in metrics if name not in self.missing)
        for network, weights in found.items():
            if set(network.serves) & set(self.metrics):
                on_step(f"loading {network.name}")
                self._load(network, weights)
                facts = NetworkFacts(
                    network.name, weights.path.name, weights.sha256, weights.is_published
                )
                self.networks.append(facts)

    def _load(self, network: Network, weights: Weights) -> None:
        from vaeconv.evaluation.image_metrics import VGG16, read_linear_weights
        from vaeconv.evaluation.inception import InceptionV3

        try:
            if network is LPIPS_LINEAR:
                self._linear_weights = [
                    linear.to(self.device) for linear in read_linear_weights(weights.tensors)
                ]
            elif network is VGG:
                self._vgg = _with_weights(VGG16(), weights, self.device)
            elif network is INCEPTION:
                self._inception = _with_weights(InceptionV3(), weights, self.device)
        except (KeyError, RuntimeError) as error:
            first, *more = str(error).split("\n")  # torch names what is wrong below a head line
            reason = (more[0] if more else first).strip()[:_LONGEST]
            raise InputError(
                f"not the weights of {network.name} ({reason})", where=str(weights.path)
            ) from error

    @property
    def width(self) -> int:
        """Number of features of an image; 0 where no metric takes any."""
        from vaeconv.evaluation.inception import FEATURES

        return FEATURES if self._inception is not None else 0

    def look(self, pixels: torch.Tensor) -> Seen:
        """Prepare what an image and its reconstructions are compared by.

        Args:
            pixels: uint8 ``[b, c, h, w]``, or float from 0 to 1 where they are not rounded.
        """
        import torch

        values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        coloured = _to_colour(values)
        layers = self._vgg(coloured * 2 - 1) if self._vgg is not None else []
        features = None
        if self._inception is not None:
            features = self._inception((coloured * 255).round().to(torch.uint8))
        return Seen(values, layers, features)

    def layers(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Give the layers of VGG16 of images from -1 to 1; gradients flow through them."""
        coloured = images if images.shape[1] == 3 else _to_colour((images + 1) / 2) * 2 - 1
        found: list[torch.Tensor] = self._vgg(coloured)
        return found

    def compare(self, original: Seen, other: Seen) -> dict[str, torch.Tensor]:
        """Compute the metrics of single images; ``[b]`` each."""
        from vaeconv.evaluation.image_metrics import lpips, psim, psnr, ssim

        found: dict[str, torch.Tensor] = {}
        for name in self.metrics:
            if name == "psnr":
                found[name] = psnr(original.values, other.values)
            elif name == "ssim" and min(original.values.shape[2:]) >= WINDOW:
                found[name] = ssim(original.values, other.values)
            elif name == "psim":
                found[name] = psim(original.layers, other.layers)
            elif name == "lpips":
                found[name] = lpips(original.layers, other.layers, self._linear_weights)
        return found


class Seen(NamedTuple):
    """A batch as the meter sees it.

    Attributes:
        values: float32 ``[b, c, h, w]`` from 0 to 1.
        layers: Of VGG16; empty where no metric takes them.
        features: float32 ``[b, 2048]``; None where no metric takes them.
    """

    values: torch.Tensor
    layers: list[torch.Tensor]
    features: torch.Tensor | None


def _to_colour(values: torch.Tensor) -> torch.Tensor:
    """Give the RGB image that people see, for networks that take no other: alpha lies on white."""
    if values.shape[1] == 4:
        alpha = values[:, 3:]
        return values[:, :3] * alpha + (1 - alpha)
    return values.expand(-1, 3, -1, -1)


def _with_weights(module: Any, weights: Weights, device: torch.device) -> Any:
    """Load weights; what the module has no place for, such as a classifier, is left out."""
    names = module.state_dict()
    chosen = {name: value for name, value in weights.tensors.items() if name in names}
    for name in names:  # a counter that old files lack
        if name.endswith("num_batches_tracked"):
            chosen.setdefault(name, names[name])
    module.load_state_dict(chosen, strict=True)
    return module.float().eval().requires_grad_(False).to(device)
