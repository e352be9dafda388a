"""Validation of a decoder: images that it was not trained on, measured and drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import InputError
from vaeconv.evaluation.distributed import World
from vaeconv.evaluation.grids import Panel, contact_sheet, merge_panels, save_image
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.metrics import Meter
from vaeconv.evaluation.protocol import Protocol
from vaeconv.evaluation.samples import to_rgb
from vaeconv.models.devices import reproducible

if TYPE_CHECKING:
    import torch

    from vaeconv.training.shadows import Shadows

Means = dict[str, dict[str, float]]

SHOWN = 8  # images of a sheet
_AHEAD = 4


class Measured(NamedTuple):
    """An image of the set, decoded with some weights.

    Attributes:
        at: Its place in the set.
        values: By metric.
        pixels: What was decoded, and the original: uint8 ``[h, w, 3]``; None where not drawn.
    """

    at: int
    values: dict[str, float]
    pixels: tuple[Any, Any] | None


class Validation:
    """Measures the base, the raw weights and the EMA weights, as ``eval`` does: in fp32, the mode.

    All processes take part, each with its share of the images.

    Args:
        images: The set.
        size: Side of an image.
        model: The whole autoencoder, with the base's weights still.
        meters: What measures.
        world: This process among all.
        device: Where the model is.
    """

    def __init__(
        self,
        images: ImageSet,
        size: int,
        model: Any,
        meters: Sequence[Meter],
        world: World,
        device: torch.device,
    ) -> None:
        self._images, self._model, self._meters = images, model, meters
        self._protocol = Protocol("validation", size=size)
        self._world, self._device = world, device
        self._base = self._measure()

    def run(self, shadows: Shadows, sheet: Callable[[], Path]) -> Means:
        """Measure the weights as they are now, and draw the first images.

        Args:
            shadows: The EMA weights.
            sheet: Names the file to draw into; called in the first process only.

        Returns:
            The mean of each metric for ``base``, ``raw`` and ``ema``; images with a PSNR that is
            infinite are left out of it.

        Raises:
            InputError: No image of the set can be read.
            OutputError: The sheet cannot be written.
        """
        raw = self._measure()
        with shadows.in_place():
            ema = self._measure()
        kinds = {"base": self._base, "raw": raw, "ema": ema}
        if self._world.is_first:
            rows = [
                merge_panels(list(_panels(dict(zip(kinds, images, strict=True)))), labels=True)
                for images in zip(*kinds.values(), strict=True)
                if images[0].pixels
            ]
            if rows:
                save_image(contact_sheet(rows, 1), sheet())
        return {kind: _means(found) for kind, found in kinds.items()}

    def _measure(self) -> list[Measured]:
        import torch

        mine = self._world.share(range(len(self._images)))
        channels = self._model.encoder.conv_in.in_channels
        stream = self._images.stream(mine, self._protocol, channels, workers=1, ahead=_AHEAD)
        found: list[Measured] = []
        reason = ""
        for item in stream:
            if item.pixels is None:
                reason = f", such as {item.name}: {item.reason}"
                continue
            with reproducible(), torch.no_grad():
                original = torch.from_numpy(item.pixels)[None].to(self._device)
                mean, _ = self._model.encode(original.float() / 127.5 - 1).chunk(2, dim=1)
                unit = (self._model.decode(mean) / 2 + 0.5).nan_to_num(0).clamp(0, 1)
                decoded = (unit * 255).round().to(torch.uint8)
                values = {
                    name: value.item()
                    for meter in self._meters
                    for name, value in meter.compare(
                        meter.look(original), meter.look(decoded)
                    ).items()
                }
            drawn = (to_rgb(decoded[0]), to_rgb(original[0])) if item.at < SHOWN else None
            found.append(Measured(item.at, values, drawn))
        everywhere = sorted(
            (one for some in self._world.gather(found) for one in some), key=lambda one: one.at
        )
        if not everywhere:
            raise InputError(f"no image in it could be read{reason}", where=self._images.place)
        return everywhere


def _panels(images: dict[str, Measured]) -> Iterator[Panel]:
    """Put an image beside what became of it; the original comes first."""
    first = next(iter(images.values()))
    assert first.pixels
    yield Panel("original", first.pixels[1])
    for kind, one in images.items():
        assert one.pixels
        value = one.values.get("psnr", math.inf)
        text = f"{value:.2f} dB" if math.isfinite(value) else "equal"
        yield Panel("EMA" if kind == "ema" else kind, one.pixels[0], text)


def _means(found: Sequence[Measured]) -> dict[str, float]:
    means = {}
    for name in found[0].values:
        values = [one.values[name] for one in found if math.isfinite(one.values[name])]
        if values:
            means[name] = sum(values) / len(values)
    return means
