"""A verification as one HTML page that holds all it shows and asks no network for anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vaeconv.autoencoder.config import Scaling
from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.common.wording import plural
from vaeconv.errors import listed
from vaeconv.pages.frame import DataUri, png_address, render
from vaeconv.pages.png import encode_png, enlargement
from vaeconv.parity.compare_weights import WeightResult
from vaeconv.parity.references import Reference
from vaeconv.parity.report.panels import (
    describe_distance,
    heat_map,
    to_rgb,
)
from vaeconv.parity.report.report import comparisons_of, distance_table, outcome, weight_table
from vaeconv.parity.result import Comparison, SideFacts, Verification

if TYPE_CHECKING:
    from vaeconv.parity.compare_outputs import Decoded
    from vaeconv.parity.report.panels import Pixels

_TEMPLATE = "report.html.j2"
_OFFENDERS = 20  # tensors that the page lists of each comparison
_LARGE = 320  # pixels; wider pictures get a row of the page to themselves


def make_page(result: Verification, decoded: Sequence[Decoded]) -> str:
    """Write a verification as a page; whatever names hold, they stay text.

    Args:
        result: What was found.
        decoded: Pairs of pictures to show, of the sides ``result.labels``.
    """
    references = result.references
    return render(
        "vaeconv.parity.report",
        _TEMPLATE,
        outcome=outcome(result),
        comparisons=[_comparison(one) for one in comparisons_of(result)],
        weights=weight_table(comparisons_of(result)),
        sides=[_side(side) for side in result.sides],
        labels=result.labels,
        pictures=[_picture(one) for one in decoded],
        references=references
        and {
            "source": references.source,
            "sha256": references.sha256,
            "latents": _name_shapes(references.latents),
            "pictures": _name_shapes(references.pictures),
        },
        environment={name.replace("_", " "): said for name, said in result.environment.items()},
        timing={step: f"{seconds:.2f} s" for step, seconds in result.timing.items()},
        notes=[note.text for note in result.notes],
    )


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "labels": comparison.labels,
        "ok": not comparison.problems,
        "verdict": comparison.judgement,
        "unproven": [] if comparison.problems else comparison.unproven,
        "problems": comparison.problems,
        "absent": _absent(comparison.weights, comparison.labels),
        "offenders": [one.describe() for one in comparison.weights.different[:_OFFENDERS]],
        "unlisted": max(0, len(comparison.weights.different) - _OFFENDERS),
        "distances": distance_table(comparison) if comparison.outcomes else None,
    }


def _absent(weights: WeightResult, labels: tuple[str, str]) -> list[tuple[str, str]]:
    """Name the tensors that only one side has, or has in another shape."""
    found = zip(labels, (weights.missing, weights.unexpected), strict=True)
    return [(label, listed(names, _OFFENDERS)) for label, names in found if names]


def _side(side: SideFacts) -> dict[str, Any]:
    facts = {
        "layout": side.layout.value,
        "container": side.container,
        "variant": side.variant,
        "tensors": ", ".join(
            f"{count} in {BY_CODE[code].label}" for code, count in side.dtypes.items()
        ),
        "EMA": f"for {plural(side.ema, 'tensor')}" if side.ema else None,
        "scaling": _say_scaling(side.scaling),
        "loaded by": side.loader,
    }
    return {
        "label": side.label,
        "name": side.name,
        "facts": {name: said for name, said in facts.items() if said},
        "files": [
            {"name": file["name"], "size": f"{file['size']:,} bytes", "sha256": file["sha256"]}
            for file in side.files
        ],
    }


def _say_scaling(scaling: Scaling | None) -> str:
    if scaling is None:
        return "not known"
    shift = "" if scaling.shift_factor is None else f", shift {scaling.shift_factor:g}"
    channels = ", statistics per channel" if scaling.latents_std else ""
    source = f" ({scaling.source})" if scaling.source else ""
    return f"{scaling.scaling_factor:g}{shift}{channels}{source}"


def _name_shapes(references: Sequence[Reference]) -> str:
    return "; ".join(f"{one.name} {'x'.join(map(str, one.data.shape))}" for one in references)


def _picture(one: Decoded) -> dict[str, Any]:
    height, width = one.pictures[0].shape[1:]
    scale = enlargement(height, width)
    heat = heat_map(*one.pictures)
    return {
        "name": one.name,
        "dtype": one.dtype,
        "size": f"{width} × {height}",
        "distance": describe_distance(one.outcome),
        "problem": one.outcome.problem,
        "width": width * scale,
        "height": height * scale,
        "is_large": width * scale > _LARGE,
        "is_enlarged": scale > 1,
        "a": _address(to_rgb(one.pictures[0])),
        "b": _address(to_rgb(one.pictures[1])),
        "heat": _address(heat.rgb),
        "factor": heat.text,
        "bar": _address(heat.bar) if heat.largest else None,
        "largest": f"{heat.largest:.1e}" if heat.largest else None,
        "is_finite": heat.is_finite,
    }


def _address(rgb: Pixels) -> DataUri:
    return png_address(encode_png(rgb))
