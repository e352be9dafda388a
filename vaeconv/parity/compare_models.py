"""Compare two sides by what their files say, without running them."""

from __future__ import annotations

from vaeconv.autoencoder.config import Scaling
from vaeconv.common.wording import plural
from vaeconv.models.open_model import Side
from vaeconv.parity.compare_weights import WeightResult, compare_weights
from vaeconv.parity.diagnose import explain_difference
from vaeconv.parity.result import Comparison

ENCODER_PARTS, DECODER_PARTS = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")
_NAMED = 5  # tensors that a problem names


def compare_files(one: Side, other: Side, *, is_drop_in: bool) -> Comparison:
    """Compare architecture, scaling and weights.

    Args:
        one: The first side.
        other: The second.
        is_drop_in: Let the decoders differ, and compare them only to say how much.

    Returns:
        The comparison so far.

    Raises:
        MalformedCheckpointError: A file ends early, or fails its checksum.
        ZeroWeightsError: Weights are zero that no training leaves so.
    """
    parts = ENCODER_PARTS if is_drop_in else ("",)
    allow_zeros = one.allow_zeros and other.allow_zeros
    weights = compare_weights(one.rows, other.rows, beginnings=parts, allow_zeros=allow_zeros)
    decoder = None
    if is_drop_in:
        decoder = compare_weights(
            one.rows, other.rows, beginnings=DECODER_PARTS, allow_zeros=allow_zeros
        )
    scaling, unproven = _compare_scaling(one, other)
    misstated = [] if scaling else _compare_with_options(one, other)
    problems = [
        *(f"{side.label}: {side.problem}" for side in (one, other) if side.problem),
        *_compare_topology(one, other, is_drop_in=is_drop_in),
        *scaling,
        *misstated,
        *_weight_problems(one, other, weights),
    ]
    labels = one.label, other.label
    return Comparison(
        labels, weights, (), tuple(problems), decoder, tuple(unproven), tuple(misstated)
    )


_FACTORS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_STATE = "pass --family or --scaling-factor"


def _compare_scaling(one: Side, other: Side) -> tuple[list[str], list[str]]:
    """Compare the scaling of two models: what differs, and what is unproven."""
    doubts = [
        f"the scaling of {side.label}: its files state none, and {side.doubt}"
        for side in (one, other)
        if side.doubt
    ]
    problems = []
    if one.scaling and other.scaling:
        found = _differing(one.scaling, one.label, other.scaling, other.label)
        assumed = [side.label for side in (one, other) if not side.is_stated]
        tail = (
            f"; assumed for {' and '.join(assumed)}, whose files state none: {_STATE}"
            if assumed
            else ""
        )
        problems += [f"{problem}{tail}" for problem in found]
    return problems, doubts


def _compare_with_options(one: Side, other: Side) -> list[str]:
    """Compare the scaling that configs state with what the options say of it."""
    stating = [side for side in (one, other) if side.told]
    if not stating or stating[0].told is None or stating[0].scaling is None:
        return []
    labels = " and ".join(side.label for side in stating)
    return _differing(stating[0].scaling, labels, stating[0].told, "the options")


def _differing(mine: Scaling, label: str, theirs: Scaling, other: str) -> list[str]:
    problems = []
    for name in _FACTORS:
        values = [getattr(scaling, name) for scaling in (mine, theirs)]
        if name == "shift_factor":
            values = [value or 0.0 for value in values]  # none is none
        if values[0] != values[1]:
            problems.append(
                f"{name.replace('_', ' ')} differs: {values[0]} in {label} "
                f"({mine.source}), {values[1]} in {other} ({theirs.source})"
            )
    return problems


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
                f"missing in {label}, or of another shape there: {plural(len(names), 'tensor')} of "
                f"{lacking}, such as {names[0]}"
            )
    if different:
        total = len(weights.results)
        problems.append(
            f"{len(different)} of {plural(total, 'tensor')} differ: {different[0].describe()}"
        )
        problems += [result.describe() for result in different[1:_NAMED]]
    return problems
