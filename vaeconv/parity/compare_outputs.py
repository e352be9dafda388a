"""Run two models on the same references and compare what they put out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from vaeconv.autoencoder.keys import expand_rules
from vaeconv.autoencoder.topology import Topology
from vaeconv.common.option_checks import Range, check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.models.activation_hooks import first_diverging, first_nonfinite
from vaeconv.models.devices import fitting_batch
from vaeconv.models.load import Model
from vaeconv.parity.distance import TOLERANCES, Distance, combine, measure
from vaeconv.parity.references import DECODE, ENCODE, Reference, batches

if TYPE_CHECKING:
    import torch

_LIMITS = "Limits"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest differences that are accepted; each option says what it is.

    Attributes:
        floor: Accept no less by default, whatever the models run in.

    Example:
        >>> Limits(min_psnr=60.0).min_psnr
        60.0
    """

    atol: Annotated[
        float | None,
        Doc(
            "Largest difference of a value from -1 to 1; by default "
            + ", ".join(f"{limit:g} in {dtype}" for dtype, limit in TOLERANCES.items())
            + ".",
            "X",
            _LIMITS,
            least=0,
        ),
    ] = None
    min_psnr: Annotated[
        float | None,
        Doc(
            "Smallest PSNR of two decoded images, in dB; without --atol it alone judges them.",
            "DB",
            _LIMITS,
        ),
    ] = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, floor=Range(0))

    def tolerance(self, kind: str, dtype: str) -> float:
        """The largest difference that is accepted, where values go from -1 to 1."""
        if self.atol is not None:
            return self.atol
        if self.min_psnr is not None and kind == DECODE:
            return math.inf
        return max(TOLERANCES[dtype], self.floor)


class Outcome(NamedTuple):
    """Results of two models for one reference, and their distance.

    Attributes:
        kind: ``decode`` or ``encode``.
        dtype: What they ran in.
        name: Of the reference.
        shape: Of the result.
        distance: How far the results are apart.
        limit: The largest difference that is accepted: the tolerance, or that times the largest
            magnitude, where it is more than one.
        problem: What is wrong; None where it passes.
    """

    kind: str
    dtype: str
    name: str
    shape: tuple[int, ...]
    distance: Distance
    limit: float
    problem: str | None

    def document(self) -> dict[str, Any]:
        """Describe it for machines."""
        return {
            **self._asdict(),
            "shape": list(self.shape),
            "distance": self.distance.document(),
            "limit": self.limit if self.limit < math.inf else None,
            "ok": self.problem is None,
        }


class Decoded(NamedTuple):
    """Two images of one latent, float32 on the CPU, ``[c, h, w]``."""

    name: str
    dtype: str
    images: tuple[Any, Any]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs a pair of models.

    Attributes:
        models: Both, on the device.
        labels: What to call them.
        topology: Their architecture.
        device: Where they run.
        limits: What is accepted.
        judged: What that applies to; the rest only has to be finite.
        locates: Whether to look for the first diverging layer; of no use where weights differ.
        batch_size: References at a time; None for what fits into memory.
        tile: Cut larger latents into tiles of this side; 0 not to.
        on_image: Called with every decoded pair.
        on_progress: Called with the number of references that are done.
    """

    models: tuple[Model, Model]
    labels: tuple[str, str]
    topology: Topology
    device: torch.device
    limits: Limits
    judged: Sequence[str] = (DECODE, ENCODE)
    locates: bool = True
    batch_size: int | None = None
    tile: int = 0
    on_image: Callable[[Decoded], None] | None = None
    on_progress: Callable[[int], None] = lambda number: None

    def run(self, references: Sequence[Reference], dtype: str, kind: str) -> list[Outcome]:
        """Run references in one type, in inference mode.

        Args:
            references: What to decode or to encode.
            dtype: ``fp32``, ``fp16`` or ``bf16``; the models are cast, and stay so.
            kind: ``decode`` or ``encode``.
        """
        import torch

        number: torch.dtype = getattr(torch, DTYPES[dtype])
        outcomes: list[Outcome] = []
        with torch.inference_mode():
            for model in self.models:
                model.to(self.device, number)
            for batch in batches(references, self.batch_size or self._fitting(references, kind)):
                outcomes += self._run_batch(batch, kind, dtype, number)
                self.on_progress(len(batch))
        return outcomes

    def _run_batch(
        self, batch: Sequence[Reference], kind: str, dtype: str, number: torch.dtype
    ) -> list[Outcome]:
        import numpy as np
        import torch

        data: Any = torch.from_numpy(np.stack([one.data for one in batch])).to(self.device, number)
        results = [self._apply(model, kind, data) for model in self.models]
        shape = tuple(results[0].shape[1:])
        if results[0].shape != results[1].shape:
            problem = f"shapes {list(shape)} and {list(results[1].shape[1:])}"
            return [
                Outcome(kind, dtype, one.name, shape, Distance(None), 0.0, problem) for one in batch
            ]
        outcomes = []
        for index, (one, distance) in enumerate(zip(batch, measure(*results), strict=True)):
            alone = data[index : index + 1]
            limit, said = self._judge(one, distance, kind, dtype, alone)
            outcome = Outcome(kind, dtype, one.name, shape, distance, limit, said)
            outcomes.append(outcome)
            if self.on_image and kind == DECODE:
                images = [result[index].float().cpu().numpy() for result in results]
                self.on_image(Decoded(one.name, dtype, (images[0], images[1]), outcome))
        return outcomes

    def _apply(self, model: Model, kind: str, data: Any) -> torch.Tensor:
        if kind == ENCODE:
            return model.encode(data)
        if not self.tile or max(data.shape[2:]) <= self.tile:
            return model.decode(data)
        import torch

        # No blending at the seams: both models have the same, and only their difference counts.
        rows = [
            torch.cat([model.decode(part) for part in row.split(self.tile, dim=3)], dim=3)
            for row in data.split(self.tile, dim=2)
        ]
        return torch.cat(rows, dim=2)

    def _judge(
        self, one: Reference, distance: Distance, kind: str, dtype: str, data: torch.Tensor
    ) -> tuple[float, str | None]:
        what = f"{kind} {dtype} of {one.name}"
        if distance.max_abs is None or distance.largest is None:
            return 0.0, f"{what} is not finite{self._first_nonfinite(kind, data)}"
        if kind not in self.judged:
            return math.inf, None
        limit = self.limits.tolerance(kind, dtype) * max(1.0, distance.largest)
        if distance.max_abs > limit:
            first = self._first_diverging(kind, dtype, data) if self.locates else ""
            return limit, f"{what} differs by {distance.max_abs:.3g}, more than {limit:.3g}{first}"
        least = self.limits.min_psnr
        if least is not None and kind == DECODE and (distance.psnr or 0.0) < least:
            return limit, f"{what} has a PSNR of {distance.psnr:.2f} dB, less than {least:g}"
        return limit, None

    def _first_nonfinite(self, kind: str, data: Any) -> str:
        """Name the first layer, of either model, that puts out NaN or infinity."""
        said = ""
        for model, label in zip(self.models, self.labels, strict=True):
            layer = first_nonfinite(model.module, partial(self._apply, model, kind, data))
            said += f", first in {layer} of {label}" if layer else ""
        return said

    def _first_diverging(self, kind: str, dtype: str, data: Any) -> str:
        """Name the first layer whose outputs differ by more than the default allows."""
        one, other = self.models
        names = {  # of modules in either layout
            pair.name(one.layout).rpartition(".")[0]: pair.name(other.layout).rpartition(".")[0]
            for pair in expand_rules(self.topology)
        }
        found = first_diverging(
            (one.module, partial(self._apply, one, kind, data)),
            (other.module, partial(self._apply, other, kind, data)),
            names=names,
            tolerance=TOLERANCES[dtype],
        )
        if found is None:
            return ""
        both = " / ".join(dict.fromkeys((found.layer, found.other)))
        return f"; the first layer that differs is {both}, by {found.max_abs:.3g}"

    def _fitting(self, references: Sequence[Reference], kind: str) -> int:
        factor = self.topology.downsampling if kind == DECODE else 1
        areas = [one.data.shape[1] * one.data.shape[2] for one in references]
        pixels = max(areas, default=1) * factor**2
        return fitting_batch(self.device, pixels, max(self.topology.channels[:2]))


def by_kind(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Group outcomes by kind and type, in the order they ran."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.kind, outcome.dtype), []).append(outcome)
    return groups


def summarise(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Distance]:
    """Take the worst of every kind and type, in the order they ran."""
    groups = by_kind(outcomes)
    return {key: combine([one.distance for one in found]) for key, found in groups.items()}
