"""Weights of a folder in several files, as diffusers and huggingface_hub cut them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vaeconv.checkpoint.readers.folder import are_weights
from vaeconv.weights.plan import Row


def split_rows(rows: Sequence[Row], max_shard_size: int | None) -> list[list[Row]]:
    """Distribute rows over shards, in their order, as huggingface_hub does.

    A tensor that is larger than a shard gets one of its own
    (``huggingface_hub.serialization.split_state_dict_into_shards_factory``).
    """
    shards: list[list[Row]] = []
    current: list[Row] = []
    for row in rows:
        if max_shard_size is not None and row.nbytes > max_shard_size:
            shards.append([row])
            continue
        if max_shard_size is not None and current:
            if sum(r.nbytes for r in current) + row.nbytes > max_shard_size:
                shards.append(current)
                current = []
        current.append(row)
    return [*shards, current] if current else shards


def shard_index(names: Sequence[str], shards: Sequence[Sequence[Row]]) -> bytes:
    """Write the index that says which shard holds which tensor."""
    document = {
        "metadata": {"total_size": sum(row.nbytes for rows in shards for row in rows)},
        "weight_map": {
            row.name: name for name, rows in zip(names, shards, strict=True) for row in rows
        },
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def stale_names(target: Path, variant: str | None, own: set[str]) -> list[str]:
    """List files of an earlier run that hold the same weights cut into other files."""
    if not target.is_dir():
        return []
    names = (entry.name for entry in target.iterdir())
    return [name for name in names if are_weights(name, variant) and name not in own]
