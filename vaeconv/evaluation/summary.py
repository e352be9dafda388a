"""From records of single pictures to the numbers of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from vaeconv.evaluation.metrics import COLUMNS
from vaeconv.evaluation.partial_results import Record

INFINITE = "inf"  # what a record has for the PSNR of two equal pictures


class Statistic(NamedTuple):
    """A metric over pictures.

    Attributes:
        mean: Over those pictures where it is finite; None where it is for none.
        std: Of the population.
        number: Pictures that it is over.
        infinite: Pictures whose reconstruction is equal, so that their PSNR has no number.
        invalid: Pictures whose reconstruction is not finite.
    """

    mean: float | None
    std: float | None
    number: int
    infinite: int = 0
    invalid: int = 0


def summarise_metric(values: Sequence[float | str | None]) -> Statistic:
    """Take mean and standard deviation, in float64, by sums that do not depend on order."""
    finite = [float(value) for value in values if isinstance(value, int | float)]
    infinite = sum(value == INFINITE for value in values)
    invalid = sum(value is None for value in values)
    if not finite:
        return Statistic(None, None, 0, infinite, invalid)
    mean = math.fsum(finite) / len(finite)
    variance = math.fsum((value - mean) ** 2 for value in finite) / len(finite)
    return Statistic(mean, math.sqrt(variance), len(finite), infinite, invalid)


def summarise_model(records: Sequence[Record], at: int) -> dict[str, dict[str, Any]]:
    """Summarise each metric of one model."""
    names = [name for name in COLUMNS if any(name in record["models"][at] for record in records)]
    return {
        name: summarise_metric([record["models"][at].get(name) for record in records])._asdict()
        for name in names
    }


def summarise_latents(records: Sequence[Record], at: int) -> dict[str, Any] | None:
    """Summarise the latents of one model: mean and deviation, and the scaling that follows.

    ``scale_by_std`` in LDM's ``LatentDiffusion`` takes the inverse of the deviation over all
    values of a batch as the scaling factor; here it is over all pictures.
    """
    found = [record["models"][at].get("latents") for record in records]
    stats = [one for one in found if one and all(map(math.isfinite, one["sum"] + one["squares"]))]
    if not stats:
        return None
    number = round(sum(one["number"] for one in stats))
    channels = len(stats[0]["sum"])
    sums = [math.fsum(one["sum"][c] for one in stats) for c in range(channels)]
    squares = [math.fsum(one["squares"][c] for one in stats) for c in range(channels)]
    means = [total / number for total in sums]
    variances = [square / number - mean**2 for square, mean in zip(squares, means, strict=True)]
    mean = math.fsum(sums) / (number * channels)
    std = math.sqrt(max(math.fsum(squares) / (number * channels) - mean**2, 0.0))
    return {
        "mean": mean,
        "std": std,
        "scaling_factor": 1 / std if std else None,
        "channel_mean": means,
        "channel_std": [math.sqrt(max(variance, 0.0)) for variance in variances],
        "values_per_channel": number,
    }


def count_reasons(records: Sequence[Record], key: str) -> dict[str, int]:
    """Count images by what their records say under a key, such as why they were skipped."""
    counts: dict[str, int] = {}
    for record in records:
        reason = record.get(key)
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items()))
