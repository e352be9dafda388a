"""Tables of a verification, as text cells that each format lays out in its own way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vaeconv.parity.compare_outputs import Outcome, by_kind
from vaeconv.parity.compare_weights import Match
from vaeconv.parity.distance import Distance, combine
from vaeconv.parity.result import Comparison

Row = tuple[str, ...]
Cells = tuple[Row, list[Row]]  # the head, and all other rows


def weight_table(comparisons: Sequence[Comparison]) -> Cells:
    """Make the table of weights: how many tensors agree, and how."""
    rows: list[Row] = []
    for comparison in comparisons:
        parts = {"all": comparison.weights}
        if comparison.decoder is not None:
            parts = {"encoder": comparison.weights, "decoder": comparison.decoder}
        for part, weights in parts.items():
            counts = [weights.number(match) for match in Match]
            counts.append(len(weights.missing) + len(weights.unexpected))
            rows.append((" and ".join(comparison.labels), part, *map(str, counts)))
    # As short as they can be: the table is to fit a terminal of 80 columns.
    return ("models", "tensors", "bit-equal", "rounded", "different", "in one only"), rows


def distance_table(comparison: Comparison) -> Cells:
    """Make the table of distances: each reference, then the worst of each kind and type."""
    rows: list[Row] = [
        (
            f"{one.kind} {one.dtype}",
            _reference(one),
            *_numbers(one.distance, one.kind),
            _limit(one),
            "FAIL" if one.problem else _passed(one),
        )
        for one in comparison.outcomes
    ]
    for (kind, dtype), found in by_kind(comparison.outcomes).items():
        worst = combine([one.distance for one in found])
        rows.append((f"{kind} {dtype}", "worst", *_numbers(worst, kind), "", ""))
    numbers = ("max abs", "mean abs", "RMSE", "PSNR", "cosine", "8-bit differ")
    return ("", "reference", *numbers, "limit", ""), rows


def worst_table(comparison: Comparison) -> Cells:
    """Make the table of what was computed: a row for each kind and type.

    A row names the reference whose results are farthest apart in relation to their limit.
    """
    rows: list[Row] = []
    for (kind, dtype), found in by_kind(comparison.outcomes).items():
        worst = max(found, key=_strain)
        failed = sum(one.problem is not None for one in found)
        largest, _, _, psnr, *_ = _numbers(worst.distance, kind)
        # Without a limit only a PSNR that is too small is a problem.
        distance = f"PSNR {psnr}" if worst.problem and worst.limit == math.inf else largest
        state = f"{failed} FAILED" if failed else _passed(worst)
        rows.append(
            (kind, dtype, _reference(worst), f"{len(found)}", distance, _limit(worst), state)
        )
    return ("computed", "dtype", "worst reference", "references", "max abs", "limit", ""), rows


def describe_distance(outcome: Outcome) -> str:
    """Say in a few words how far two images are apart."""
    distance = outcome.distance
    if distance.max_abs is None:
        return "max abs not finite"
    return f"max abs {distance.max_abs:.1e} · PSNR {_psnr(distance)}"


def _strain(outcome: Outcome) -> tuple[bool, float]:
    """Order outcomes by how near they are to failing."""
    found, limit = outcome.distance.max_abs, outcome.limit
    if found is None:
        return True, math.inf
    return outcome.problem is not None, found / limit if 0 < limit < math.inf else found


def _reference(outcome: Outcome) -> str:
    return f"{outcome.name} {'x'.join(map(str, outcome.shape))}"


def _limit(outcome: Outcome) -> str:
    return f"{outcome.limit:.1e}" if 0 < outcome.limit < math.inf else "-"


def _passed(outcome: Outcome) -> str:
    return "ok" if outcome.limit < math.inf else "not judged"


def _psnr(distance: Distance) -> str:
    return "inf" if distance.psnr == math.inf else f"{distance.psnr:.1f} dB"


def _numbers(distance: Distance, kind: str) -> Row:
    if distance.max_abs is None:
        return ("not finite", "-", "-", "-", "-", "-")
    pixels = f"{distance.uint8:.2%}" if kind == "decode" else "-"
    return (
        f"{distance.max_abs:.1e}", f"{distance.mean_abs:.1e}", f"{distance.rmse:.1e}",
        _psnr(distance), f"{distance.cosine:.6f}", pixels,
    )  # fmt: skip
