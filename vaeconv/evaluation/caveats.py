"""Caveats of an evaluation: what limits its numbers, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vaeconv.common.wording import plural
from vaeconv.evaluation.metrics import COLUMNS
from vaeconv.models.images import LeftOut, count_left_out

_USUAL = 50_000  # images behind a Fréchet distance in papers
_FEATURES = 2048  # with fewer images than that, their covariance has no full rank
_FEW = 100  # images


def caveats_of(result: Mapping[str, Any]) -> list[str]:
    """List what limits the numbers of an evaluation.

    Args:
        result: Document of an evaluation.
    """
    return [*_of_images(result), *_of_metrics(result), *_of_models(result)]


def _of_images(result: Mapping[str, Any]) -> Iterator[str]:
    images, number = result["pictures"], result["pictures"]["number"]
    if number < _FEW:
        yield (
            f"Only {plural(number, 'image')}: differences between close models may be chance, and "
            "say little of other images."
        )
    if images.get("beyond_limit"):
        more = number + images["beyond_limit"]
        yield f"Only the first {number} of {more} images were measured, in the order of names."
    if images.get("left_out"):
        yield f"{count_left_out([LeftOut(**one) for one in images['left_out']])}."
    for remark, count in images.get("remarks", {}).items():
        yield f"{plural(count, 'image')} measured, but: {remark}."


def _of_metrics(result: Mapping[str, Any]) -> Iterator[str]:
    number = result["pictures"]["number"]
    models = [model["metrics"] for model in result["models"]]
    if any(metrics.get("rfid") is not None for metrics in models) and number < _USUAL:
        yield (
            f"rFID of {plural(number, 'image')} is biased upward: it falls as images are added, so "
            "it compares only with rFID of the same images."
        )
        if number < _FEATURES:
            yield (
                f"rFID needs more images than the {_FEATURES} features of its network to be more "
                "than a rough order of the models."
            )
    if any("psim" in metrics for metrics in models):
        yield "That PSIM is what published cards call PSIM is not verified."
    for name, reason in result.get("not_computed", {}).items():
        title = COLUMNS[name][0] if name in COLUMNS else "rFID"
        yield f"{title} was not computed: {reason}."
    for net in result.get("nets", ()):
        if not net["is_published"]:
            yield (
                f"{net['file']} holds other weights of {net['name']} than the published ones: "
                "what it measures compares with no published number."
            )


def _of_models(result: Mapping[str, Any]) -> Iterator[str]:
    protocol = result["protocol"]
    if protocol.get("dtype", "fp32") != "fp32":
        yield f"The models ran in {protocol['dtype']}, which rounds more than fp32."
    if not protocol.get("rounds", True):
        yield "Reconstructions were not rounded to uint8, as an image file would."
    for model in result["models"]:
        for name, found in model["metrics"].items():
            lost = found["invalid"] if isinstance(found, Mapping) else 0
            if lost and name == "psnr":
                yield f"{model['name']} made {plural(lost, 'image')} with NaN or infinity."
