"""Say why weights differ: whether what one side lacks lies elsewhere on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vaeconv.autoencoder.keys import NamePair
from vaeconv.checkpoint.dtypes import DType, narrower
from vaeconv.common.wording import plural
from vaeconv.models.open_model import Side
from vaeconv.parity.compare_weights import WeightResult, hash_rounded
from vaeconv.weights.plan import Row

_MAX_NAMED = 4


def explain_difference(one: Side, other: Side, result: WeightResult) -> list[str]:
    """Look for tensors that are mixed up rather than changed.

    Args:
        one: The side that is taken for right.
        other: The side that differs.
        result: What comparing them gave.

    Returns:
        What was recognised: exchanged modules, EMA weights in place of raw ones.
    """
    pairs = [found.pair for found in result.different]
    if not pairs:
        return []
    dtypes = {pair: narrower(one.rows[pair].dtype, other.rows[pair].dtype) for pair in pairs}
    mine, theirs = _hashes(one.rows, dtypes), _hashes(other.rows, dtypes)
    for holder, averaged, found in ((other, one, theirs), (one, other, mine)):
        left_out = _hashes(averaged.others, dtypes)
        count = sum(found[pair] == digest for pair, digest in left_out.items())
        if count:
            held, compared = ("EMA", "raw")
            hint = "--ema compares with the EMA weights"
            if any(row.is_ema for row in averaged.rows.values()):
                held, compared, hint = "raw", "EMA", "--no-ema compares with the raw weights"
            return [
                f"{count} of {plural(len(pairs), 'tensor')} that differ have the {held} weights of "
                f"{averaged.label} in {holder.label}; the {compared} weights were compared: {hint}"
            ]
    return _explain_moves(other, mine, theirs)


def _hashes(rows: Mapping[NamePair, Row], dtypes: Mapping[NamePair, DType]) -> dict[NamePair, str]:
    return {pair: hash_rounded(rows[pair], dtype) for pair, dtype in dtypes.items() if pair in rows}


def _explain_moves(
    other: Side, mine: Mapping[NamePair, str], theirs: Mapping[NamePair, str]
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
    return said[:_MAX_NAMED]


def _modules(here: str, there: str) -> tuple[str, str]:
    """Cut two names behind the first component that differs."""
    one, other = here.split("."), there.split(".")
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    return ".".join(one[: same + 1]), ".".join(other[: same + 1])
