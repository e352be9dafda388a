"""Merge the findings of all processes, of this run and of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vaeconv.evaluation.distributed import Ranks
from vaeconv.evaluation.frechet import Moments, moments_of, no_moments
from vaeconv.evaluation.partial_results import Record, Shard, indices_of


class Merged(NamedTuple):
    """All results.

    Attributes:
        records: In the order of pictures.
        moments: Of the features of the originals, then of each model's reconstructions; empty
            where there are no features.
    """

    records: list[Record]
    moments: list[Moments]


def merge_shards(shards: Sequence[Shard], ranks: Ranks, width: int, sets: int) -> Merged:
    """Bring all results together; a picture that two shards hold counts once.

    Args:
        shards: Those that this process can read.
        ranks: All processes take part.
        width: Features of one picture; 0 where there are none.
        sets: How many pictures' features a row holds: the original's and one for each model.
    """
    owned = indices_of(shards)
    everyone = ranks.gather(owned)
    taken: set[int] = set().union(*everyone[: ranks.rank])
    mine = owned - taken
    records: dict[int, Record] = {}
    moments = [no_moments(width) for _ in range(sets)]
    for shard in shards:
        fresh = {record["at"] for record in shard.records} & mine
        mine -= fresh
        records |= {record["at"]: record for record in shard.records if record["at"] in fresh}
        for rows in shard.rows(fresh):
            moments = _add_moments(moments, rows, width)
    merged = [ranks.merge(one) for one in moments] if width else []
    gathered = ranks.gather(list(records.values()))
    everything = (record for some in gathered for record in some)
    return Merged(sorted(everything, key=lambda record: record["at"]), merged)


def _add_moments(moments: Sequence[Moments], rows: Any, width: int) -> list[Moments]:
    return [
        one.joined(moments_of(rows[:, at * width : (at + 1) * width]))
        for at, one in enumerate(moments)
    ]
