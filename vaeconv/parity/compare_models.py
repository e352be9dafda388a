"""Compare two models by what their files say, without running them, and say why they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.keys import NamePair
from vaeconv.checkpoint.dtypes import DType, narrower
from vaeconv.common.wording import plural
from vaeconv.models.open_model import OpenModel
from vaeconv.parity.compare_weights import WeightResult, compare_weights, hash_rounded
from vaeconv.parity.result import Comparison
from vaeconv.weights.plan import Row

ENCODER_PARTS, DECODER_PARTS = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")
_NAMED = 5  # tensors that a problem names
_MAX_MOVES = 4  # modules that are named as exchanged


def compare_files(one: OpenModel, other: OpenModel, *, is_drop_in: bool) -> Comparison:
    """Compare architecture, scaling and weights.

    Args:
        one: The first model.
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
        *(f"{model.label}: {model.problem}" for model in (one, other) if model.problem),
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


def _compare_scaling(one: OpenModel, other: OpenModel) -> tuple[list[str], list[str]]:
    """Compare the scaling of two models: what differs, and what is unproven."""
    doubts = [
        f"the scaling of {model.label}: its files state none, and {model.doubt}"
        for model in (one, other)
        if model.doubt
    ]
    problems = []
    if one.scaling and other.scaling:
        found = _differing(one.scaling, one.label, other.scaling, other.label)
        assumed = [model.label for model in (one, other) if not model.is_stated]
        tail = (
            f"; assumed for {' and '.join(assumed)}, whose files state none: {_STATE}"
            if assumed
            else ""
        )
        problems += [f"{problem}{tail}" for problem in found]
    return problems, doubts


def _compare_with_options(one: OpenModel, other: OpenModel) -> list[str]:
    """Compare the scaling that configs state with what the options say of it."""
    stating = [model for model in (one, other) if model.from_options]
    if not stating or stating[0].from_options is None or stating[0].scaling is None:
        return []
    labels = " and ".join(model.label for model in stating)
    return _differing(stating[0].scaling, labels, stating[0].from_options, "the options")


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


def _compare_topology(one: OpenModel, other: OpenModel, *, is_drop_in: bool) -> list[str]:
    """Name each number of the architecture that differs; a drop-in's decoder is free."""
    mine, theirs = (
        {
            **model.topology._asdict(),
            "normalisation groups": model.groups,
            "activation": model.activation,
        }
        for model in (one, other)
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


def _weight_problems(one: OpenModel, other: OpenModel, weights: WeightResult) -> list[str]:
    problems = _diagnose(one, other, weights)
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


def _diagnose(one: OpenModel, other: OpenModel, result: WeightResult) -> list[str]:
    """Recognise tensors that are mixed up rather than changed: exchanged modules, or EMA weights.

    Args:
        one: The model that is taken for right.
        other: The model that differs.
        result: What comparing them gave.
    """
    pairs = [found.pair for found in result.different]
    if not pairs:
        return []
    dtypes = {pair: narrower(one.rows[pair].dtype, other.rows[pair].dtype) for pair in pairs}
    mine, theirs = _hashes(one.rows, dtypes), _hashes(other.rows, dtypes)
    for holder, blamed, found in ((other, one, theirs), (one, other, mine)):
        left_out = _hashes(blamed.others, dtypes)
        count = sum(found[pair] == digest for pair, digest in left_out.items())
        if count:
            held, compared = ("EMA", "raw")
            hint = "--ema compares with the EMA weights"
            if any(row.is_ema for row in blamed.rows.values()):
                held, compared, hint = "raw", "EMA", "--no-ema compares with the raw weights"
            return [
                f"{count} of {plural(len(pairs), 'tensor')} that differ have the {held} weights of "
                f"{blamed.label} in {holder.label}; the {compared} weights were compared: {hint}"
            ]
    return _explain_moves(other, mine, theirs)


def _hashes(rows: Mapping[NamePair, Row], dtypes: Mapping[NamePair, DType]) -> dict[NamePair, str]:
    return {pair: hash_rounded(rows[pair], dtype) for pair, dtype in dtypes.items() if pair in rows}


def _explain_moves(
    other: OpenModel, mine: Mapping[NamePair, str], theirs: Mapping[NamePair, str]
) -> list[str]:
    at: dict[str, list[NamePair]] = {}
    for pair, digest in mine.items():
        at.setdefault(digest, []).append(pair)
    moves: Counter[tuple[str, str]] = Counter()
    for pair, digest in theirs.items():
        origins = at.get(digest, [])
        if len(origins) == 1:
            moves[_modules(*(one.name(other.layout) for one in (pair, origins[0])))] += 1
    said = []
    for (here, there), count in moves.most_common():
        if (there, here) in moves:
            if here < there:
                both = count + moves[there, here]
                said.append(f"{here} and {there} of {other.label} are exchanged ({both} tensors)")
        else:
            said.append(
                f"{here} of {other.label} holds what belongs in {there} ({plural(count, 'tensor')})"
            )
    return said[:_MAX_MOVES]


def _modules(here: str, there: str) -> tuple[str, str]:
    """Cut two names behind the first component that differs."""
    one, other = here.split("."), there.split(".")
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    return ".".join(one[: same + 1]), ".".join(other[: same + 1])
