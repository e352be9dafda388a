"""A verification as a document for machines; docs/parity.md says what each field means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.parity.compare_outputs import summarise
from vaeconv.parity.compare_weights import Match, WeightResult
from vaeconv.parity.result import Comparison, ModelFacts, Verification

_OFFENDERS = 20  # tensors that the document lists


def report_document(result: Verification) -> dict[str, Any]:
    """Describe a verification."""
    references = result.references
    return {
        "ok": result.ok,
        "sides": [_model(one) for one in result.models],
        "same": result.same and _comparison(result.same),
        "drop_in": result.drop_in and _comparison(result.drop_in),
        "references": references
        and {
            "source": references.source,
            "sha256": references.sha256,
            "latents": {one.name: list(one.data.shape) for one in references.latents},
            "pictures": {one.name: list(one.data.shape) for one in references.images},
        },
        "environment": result.environment,
        "timing": result.timing,
        "problems": result.problems,
        "unproven": result.unproven,
        "notes": [str(note) for note in result.notes],
    }


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write a document as a file, in place of an older one.

    Raises:
        OutputError: It cannot be written.
    """
    replace_small_file(path, (dump_json(document) + "\n").encode(), durable=False)


def _model(model: ModelFacts) -> dict[str, Any]:
    scaling = model.scaling._asdict() if model.scaling else None
    if scaling:
        scaling["from"] = scaling.pop("source")
    facts = model._asdict()
    return {**facts, "layout": model.layout.value, "scaling": scaling, "files": list(model.files)}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    kinds = {outcome.kind for outcome in comparison.outcomes}
    return {
        "sides": list(comparison.labels),
        "ok": not comparison.problems,
        "weights": _weights(comparison.weights),
        "decoder_weights": comparison.decoder and _weights(comparison.decoder),
        "decoded": "decode" in kinds,
        "encoded": "encode" in kinds,
        "worst": [
            {"kind": kind, "dtype": dtype, **distance.document()}
            for (kind, dtype), distance in summarise(comparison.outcomes).items()
        ],
        "references": [outcome.document() for outcome in comparison.outcomes],
        "problems": list(comparison.problems),
        "unproven": list(comparison.unproven),
    }


def _weights(weights: WeightResult) -> dict[str, Any]:
    return {
        "ok": weights.is_same,
        "tensors": len(weights.results),
        **{match.name.lower(): weights.number(match) for match in Match},
        "missing": list(weights.missing),
        "unexpected": list(weights.unexpected),
        "worst": [
            {
                "names": list(one.names),
                "dtypes": list(one.dtypes),
                "differing_elements": one.differing,
                "max_abs": one.max_abs,
                "position": list(one.position),
                "values": [value if math.isfinite(value) else None for value in one.values],
            }
            for one in weights.different[:_OFFENDERS]
        ],
    }
