"""The result of an evaluation as a document: what was measured, of which models, and how."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from vaeconv.errors import CheckFailedError, InputError
from vaeconv.evaluation.frechet import Moments, factor_of, frechet_distance
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.metrics import COLUMNS, INFINITE, Meter
from vaeconv.evaluation.models import Candidate
from vaeconv.evaluation.partial_results import Merged, Record
from vaeconv.evaluation.protocol import WINDOW, Protocol
from vaeconv.models.images import LeftOut


def check_records(records: Sequence[Record], place: str, *, strict: bool) -> None:
    """Check that images could be read: some, or all where ``strict``.

    Raises:
        CheckFailedError: Some were skipped, and that was not allowed.
        InputError: None could be read.
    """
    skipped = [record for record in records if "skipped" in record]
    if skipped and strict:
        raise CheckFailedError(
            f"{len(skipped)} images were skipped, such as {skipped[0]['name']}: "
            f"{skipped[0]['skipped']}",
            where=place,
            hint="--no-strict counts them",
        )
    if len(skipped) == len(records):
        raise InputError(
            f"no image in it could be read, such as {skipped[0]['name']}: {skipped[0]['skipped']}",
            where=place,
        )


def make_document(
    found: Merged,
    images: ImageSet,
    candidates: Sequence[Candidate],
    meter: Meter,
    protocol: Protocol,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Say what was found.

    Args:
        found: Of all images; one of them at least could be read.
        images: What was reconstructed.
        candidates: The models.
        meter: What measured.
        protocol: How.
        run: What there is to say of the run itself: where it ran, and for how long.
    """
    measured = [record for record in found.records if "skipped" not in record]
    distances = _distances(found.moments, len(measured), len(candidates))
    return {
        "protocol": {**asdict(protocol), "description": protocol.describe()},
        "pictures": {
            "name": images.label,
            "source": images.source,
            "fingerprint": images.fingerprint,
            "sha256": hash_images(measured),
            "number": len(measured),
            "skipped": count_reasons(found.records, "skipped"),
            "beyond_limit": images.beyond,
            "left_out": [one._asdict() for one in _left_out(images, found.records)],
            "remarks": count_reasons(measured, "remark"),
        },
        "models": [
            {
                **describe_model(candidate),
                "metrics": {
                    **({"rfid": distance} if meter.width else {}),
                    **summarise_model(measured, at),
                },
                "latents": summarise_latents(measured, at),
            }
            for at, (candidate, distance) in enumerate(zip(candidates, distances, strict=True))
        ],
        "not_computed": _not_computed(meter, protocol, len(measured)),
        "nets": [network._asdict() for network in meter.networks],
        **run,
        "per_picture": _columns(measured, len(candidates)),
    }


def psnr_document(
    found: Sequence[Sequence[float | None]],
    images: ImageSet,
    candidates: Sequence[Candidate],
    protocol: Protocol,
    skipped: Sequence[LeftOut],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a comparison as an evaluation that has PSNR alone.

    Args:
        found: PSNR of each model for each image; None where they are equal.
        images: What was reconstructed.
        candidates: The models.
        protocol: How.
        skipped: Images that could not be read.
        environment: Where it ran.
    """
    columns = [
        [INFINITE if one[at] is None else one[at] for one in found] for at in range(len(candidates))
    ]
    return {
        "protocol": {**asdict(protocol), "description": protocol.describe()},
        "pictures": {
            "name": images.label,
            "source": images.source,
            "number": len(found),
            "sha256": None,
            "beyond_limit": images.beyond,
            "left_out": [one._asdict() for one in sorted([*images.left_out, *skipped])],
        },
        "models": [
            {**describe_model(one), "metrics": {"psnr": summarise_metric(values)._asdict()}}
            for one, values in zip(candidates, columns, strict=True)
        ],
        "nets": [],
        "environment": environment,
        "per_picture": {"models": [{"psnr": values} for values in columns]},
    }


def hash_images(records: Sequence[Record]) -> str:
    """Hash the names of images and the sha256 of their bytes: what was measured, and no more."""
    digest = hashlib.sha256()
    for record in records:
        line = f"{record['name']}\0{record['sha256']}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _left_out(images: ImageSet, records: Sequence[Record]) -> list[LeftOut]:
    """Name every file that was not measured, but for those beyond a limit."""
    skipped = [LeftOut(one["name"], one["skipped"]) for one in records if "skipped" in one]
    return sorted([*images.left_out, *skipped])


def describe_model(candidate: Candidate) -> dict[str, Any]:
    """Describe a model for a document: what it is called, and which weights ran."""
    spec = candidate.spec
    return {
        "name": candidate.name,
        "path": spec.path,
        "layout": candidate.opened.layout.value,
        "sha256": list(candidate.sha256),
        "weights_sha256": candidate.weights_sha256,
        "train_steps": spec.train_steps,
        "comment": spec.comment,
        "link": spec.link,
        "ema": spec.ema,
    }


def _distances(moments: Sequence[Moments], number: int, models: int) -> list[float | None]:
    """Compute each model's rFID; None where there is none, or features are not finite."""
    import numpy as np

    if not moments or number < 2:
        return [None] * models
    original, *others = moments
    is_finite = bool(np.isfinite(original.outer).all())
    factor = factor_of(original.covariance) if is_finite else None
    found = [frechet_distance(original, other, factor=factor) for other in others]
    return [distance if math.isfinite(distance) else None for distance in found]


def _not_computed(meter: Meter, protocol: Protocol, number: int) -> dict[str, str]:
    reasons = {name: error.text for name, error in meter.missing.items()}
    if "ssim" in meter.metrics and protocol.size < WINDOW:
        reasons["ssim"] = f"images are smaller than its window of {WINDOW} pixels"
    if "rfid" in meter.metrics and number < 2:
        reasons["rfid"] = "it needs two images at least"
    return reasons


def _columns(records: Sequence[Record], models: int) -> dict[str, Any]:
    """Turn records around: one list for each metric of each model, in the order of images."""
    return {
        "names": [record["name"] for record in records],
        "models": [
            {
                name: [record["models"][at].get(name) for record in records]
                for name in records[0]["models"][at]
                if name != "latents"
            }
            for at in range(models)
        ],
    }


class Statistic(NamedTuple):
    """A metric over images.

    Attributes:
        mean: Over those images where it is finite; None where it is for none.
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
    values of a batch as the scaling factor; here it is over all images.
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
    return dict(sorted(Counter(record[key] for record in records if record.get(key)).items()))
