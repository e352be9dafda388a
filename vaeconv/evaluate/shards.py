"""Results as they come, on disk: a killed run goes on where it was.

A shard is a pair of files, one line of JSON and one row of features for each picture, written by
one process in one run. The row comes first, so a line without a row, which a kill may leave, means
nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.errors import OutputError, UsageError

_RUN = "run.json"
_LINES, _ROWS = ".jsonl", ".f32"
_CHUNK = 256  # rows of features at a time

Record = dict[str, Any]


@dataclass(slots=True)
class Shard:
    """What one process found in one run.

    Attributes:
        path: Of the lines; the rows lie beside it.
        width: Numbers in a row of features; 0 where there are none.
        records: The lines, in the order they came.
    """

    path: Path
    width: int
    records: list[Record] = field(default_factory=list)

    @property
    def rows_path(self) -> Path:
        """The features."""
        return self.path.with_suffix(_ROWS)

    def rows(self, wanted: set[int]) -> Iterator[Any]:
        """Read features of wanted pictures, some rows at a time, float32 ``[n, width]``."""
        import numpy as np

        if not self.width or not self.rows_path.exists():
            return
        indices = [record["at"] for record in self.records if "skipped" not in record]
        if not indices:  # an empty file cannot be mapped
            return
        stored = np.memmap(self.rows_path, np.float32, "r", shape=(len(indices), self.width))
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            keep = [number for number, index in enumerate(part) if index in wanted]
            if keep:
                yield np.asarray(stored[start : start + _CHUNK])[keep]


class ShardWriter:
    """Writes a shard.

    Args:
        folder: Where shards are.
        rank: Of this process.
        width: Numbers in a row of features; 0 where there are none.
    """

    def __init__(self, folder: Path, rank: int, width: int) -> None:
        number = 0
        while (path := folder / f"shard-{rank:04d}-{number:04d}{_LINES}").exists():
            number += 1
        self.shard = Shard(path, width)
        self._lines = path.open("xb")
        self._rows = self.shard.rows_path.open("wb") if width else None

    def add(self, record: Record, features: Any = None) -> None:
        """Write what was found of one picture."""
        if self._rows and "skipped" not in record:
            self._rows.write(features.astype("<f4").tobytes())
            self._rows.flush()
        self._lines.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._lines.flush()
        self.shard.records.append(record)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        if self._rows:
            self._rows.close()


def open_folder(folder: Path, run: dict[str, Any], *, restart: bool) -> None:
    """Make the folder of shards, or check that the one that is there is of this same run.

    Args:
        folder: Where shards go.
        run: What decides the results: models, pictures, protocol, nets.
        restart: Whether to remove the results of another run; those of this one stay.

    Raises:
        UsageError: It holds results of another run.
        OutputError: It cannot be made.
    """
    known = folder / _RUN
    wanted = json.dumps(run, indent=2, sort_keys=True).encode() + b"\n"
    if restart and known.exists() and known.read_bytes() != wanted:
        shutil.rmtree(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=str(folder)) from error
    if known.exists() and known.read_bytes() != wanted:
        raise UsageError(
            "results of another run are there: other models, pictures, protocol or nets",
            where=str(folder),
            hint="--restart removes them",
        )
    replace_small_file(known, wanted, durable=False)


def read_shards(folder: Path, width: int) -> list[Shard]:
    """Read what earlier runs found; a line that a kill cut short ends its shard."""
    shards = []
    for path in sorted(folder.glob(f"shard-*{_LINES}")):
        shard = Shard(path, width)
        rows = shard.rows_path.stat().st_size // (4 * width) if width else 0
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if "skipped" not in record and width:
                if not rows:
                    break
                rows -= 1
            shard.records.append(record)
        shards.append(shard)
    return shards


def indices_of(shards: Iterable[Shard]) -> set[int]:
    """List the pictures that shards hold."""
    return {record["at"] for shard in shards for record in shard.records}
