"""Compare two sides by what their files say, without running them."""

from __future__ import annotations

from vaeconv.parity.moved import explain_difference
from vaeconv.parity.side import Side
from vaeconv.parity.verdict import Comparison
from vaeconv.parity.weights import WeightResult, compare_weights

ENCODER_PARTS, DECODER_PARTS = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")
_NAMED = 5  # tensors that a problem names


def compare_files(one: Side, other: Side, *, is_drop_in: bool) -> tuple[Comparison, list[str]]:
    """Compare architecture, scaling and weights.

    Args:
        one: The first side.
        other: The second.
        is_drop_in: Let the decoders differ, and compare them only to say how much.

    Returns:
        The comparison so far, and what the user should know.

    Raises:
        MalformedCheckpointError: A file ends early, or fails its checksum.
    """
    parts = ENCODER_PARTS if is_drop_in else ("",)
    weights = compare_weights(one.rows, other.rows, beginnings=parts)
    decoder = None
    if is_drop_in:
        decoder = compare_weights(one.rows, other.rows, beginnings=DECODER_PARTS)
    scaling, notes = _compare_scaling(one, other)
    problems = [
        *(f"{side.label}: {side.problem}" for side in (one, other) if side.problem),
        *_compare_topology(one, other, is_drop_in=is_drop_in),
        *scaling,
        *_weight_problems(one, other, weights),
    ]
    return Comparison((one.label, other.label), weights, (), tuple(problems), decoder), notes


def _compare_scaling(one: Side, other: Side) -> tuple[list[str], list[str]]:
    mine, theirs = one.scaling, other.scaling
    if mine is None or theirs is None:
        silent = " and ".join(side.label for side in (one, other) if side.scaling is None)
        verb = "says" if mine or theirs else "say"
        return [], [f"note: {silent} {verb} nothing of scaling, so that is not compared"]
    problems = []
    for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        values = [getattr(scaling, name) for scaling in (mine, theirs)]
        if name == "shift_factor":
            values = [value or 0.0 for value in values]  # none is none
        if values[0] != values[1]:
            problems.append(
                f"{name.replace('_', ' ')} differs: {values[0]} in {one.label} "
                f"({mine.source}), {values[1]} in {other.label} ({theirs.source})"
            )
    return problems, []


def _compare_topology(one: Side, other: Side, *, is_drop_in: bool) -> list[str]:
    """Name each number of the architecture that differs; a drop-in's decoder is free."""
    mine, theirs = (
        {
            **side.topology._asdict(),
            "normalisation groups": side.groups,
            "activation": side.activation,
        }
        for side in (one, other)
    )
    free = {"out_channels", "post_quant_conv", "decoder_attention"} if is_drop_in else set()
    return [
        f"{_differ(name)}: {_plain(value)} in {one.label}, {_plain(theirs[name])} in {other.label}"
        for name, value in mine.items()
        if value != theirs[name] and name not in free
    ]


def _differ(name: str) -> str:
    words = name.replace("_", " ")
    return f"{words} {'differ' if words.endswith('s') else 'differs'}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(list(map(_plain, value)) if isinstance(value, tuple) else value).replace("'", "")


def _weight_problems(one: Side, other: Side, weights: WeightResult) -> list[str]:
    problems = explain_difference(one, other, weights)
    different = weights.different
    for label, lacking, names in (
        (other.label, one.label, weights.missing),
        (one.label, other.label, weights.unexpected),
    ):
        if names:
            problems.append(
                f"{len(names)} tensors of {lacking} are missing in {label}, or have another "
                f"shape, such as {names[0]}"
            )
    if different:
        total = len(weights.results)
        problems.append(f"{len(different)} of {total} tensors differ: {different[0].describe()}")
        problems += [result.describe() for result in different[1:_NAMED]]
    return problems
