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
from vaeconv.parity.references import Reference
from vaeconv.parity.report.panels import heat_map, to_rgb
from vaeconv.parity.report.tables import describe_distance, distance_table, weight_table
from vaeconv.parity.result import Comparison, ModelFacts, Verification

if TYPE_CHECKING:
    from vaeconv.parity.compare_outputs import Decoded
    from vaeconv.parity.report.panels import Pixels

_OFFENDERS = 20  # tensors that the page lists of each comparison
_LARGE = 320  # pixels; wider images get a row of the page to themselves


def make_page(result: Verification, decoded: Sequence[Decoded]) -> str:
    """Write a verification as a page; whatever names hold, they stay text.

    Args:
        result: What was found.
        decoded: Pairs of images to show, of the models ``result.labels``.
    """
    references = result.references
    return render(
        "vaeconv.parity.report",
        "report.html.j2",
        outcome=result.outcome,
        comparisons=[_comparison(one) for one in result.comparisons],
        weights=weight_table(result.comparisons),
        models=[_model(model) for model in result.models],
        labels=result.labels,
        images=[_image(one) for one in decoded],
        references=references
        and {
            "source": references.source,
            "sha256": references.sha256,
            "latents": _name_shapes(references.latents),
            "images": _name_shapes(references.images),
        },
        environment={name.replace("_", " "): said for name, said in result.environment.items()},
        timing={step: f"{seconds:.2f} s" for step, seconds in result.timing.items()},
        notes=[note.text for note in result.notes],
    )


def _comparison(comparison: Comparison) -> dict[str, Any]:
    weights = comparison.weights
    absent = zip(comparison.labels, (weights.missing, weights.unexpected), strict=True)
    return {
        "labels": comparison.labels,
        "verdict": comparison.judgement,
        "unproven": [] if comparison.problems else comparison.unproven,
        "problems": comparison.problems,
        "absent": [(label, listed(names, _OFFENDERS)) for label, names in absent if names],
        "offenders": [one.describe() for one in weights.different[:_OFFENDERS]],
        "unlisted": max(0, len(weights.different) - _OFFENDERS),
        "distances": distance_table(comparison) if comparison.outcomes else None,
    }


def _model(model: ModelFacts) -> dict[str, Any]:
    tensors = (f"{count} in {BY_CODE[code].label}" for code, count in model.dtypes.items())
    facts = {
        "layout": model.layout.value,
        "container": model.container,
        "variant": model.variant,
        "tensors": ", ".join(tensors),
        "EMA": f"for {plural(model.ema, 'tensor')}" if model.ema else None,
        "scaling": _say_scaling(model.scaling),
        "loaded by": model.loader,
    }
    return {
        "label": model.label,
        "name": model.name,
        "facts": {name: said for name, said in facts.items() if said},
        "files": [{**file, "size": f"{file['size']:,} bytes"} for file in model.files],
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


def _image(one: Decoded) -> dict[str, Any]:
    height, width = one.images[0].shape[1:]
    scale = enlargement(height, width)
    heat = heat_map(*one.images)
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
        "a": _address(to_rgb(one.images[0])),
        "b": _address(to_rgb(one.images[1])),
        "heat": _address(heat.rgb),
        "factor": heat.text,
        "bar": _address(heat.bar) if heat.largest else None,
        "largest": f"{heat.largest:.1e}" if heat.largest else None,
        "is_finite": heat.is_finite,
    }


def _address(rgb: Pixels) -> DataUri:
    return png_address(encode_png(rgb))
