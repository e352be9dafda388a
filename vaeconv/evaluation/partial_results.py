"""Results as they come, on disk: a killed run goes on where it was.

A shard is a pair of files, one line of JSON and one row of features for each picture, written by
one process in one run. The row comes first, so a line without a row, which a kill may leave, means
nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint import system
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import make_folder, translated
from vaeconv.errors import OutputError, UsageError
from vaeconv.evaluation.distributed import World
from vaeconv.evaluation.frechet import Moments, moments_of, no_moments

_RUN = "run.json"
_LINES, _ROWS = ".jsonl", ".f32"
_CHUNK = 256  # rows of features at a time
_PATIENCE = 10.0  # seconds that a run which is ending has to let go of its shards

Record = dict[str, Any]


@dataclass(slots=True)
class Shard:
    """Findings of one process in one run.

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
        with translated(self.rows_path):
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
        self._folder = folder
        number = 0
        with translated(folder):
            while (path := folder / f"shard-{rank:04d}-{number:04d}{_LINES}").exists():
                number += 1
            self.shard = Shard(path, width)
            self._lines = path.open("xb")
            self._rows = self.shard.rows_path.open("wb") if width else None
        self._lock = ExitStack()
        with suppress(OSError):  # where nothing can be locked, nobody is taken to be at work
            self._lock.enter_context(system.locked(path, wait=True))

    def add(self, record: Record, features: Any = None) -> None:
        """Write what was found of one image.

        Raises:
            OutputError: It cannot be written; what was written before is kept.
        """
        with translated(self._folder):
            if self._rows and "skipped" not in record:
                self._rows.write(features.astype("<f4").tobytes())
                self._rows.flush()
            self._lines.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._lines.flush()
        self.shard.records.append(record)

    def close(self) -> None:
        """Close the files."""
        for file in (self._lines, self._rows):
            if file:
                with suppress(OSError):  # what a full disk did not take was said when it was added
                    file.close()
        self._lock.close()


class OtherRunError(UsageError):
    """The folder of shards holds the progress of another run."""


def digest_of(run: Mapping[str, Any]) -> str:
    """Hash what decides the results of a run: a result names its run by it."""
    return hashlib.sha256(_encode(run)).hexdigest()


def read_digest(folder: Path) -> str | None:
    """Tell which run left progress in a folder; None where there is none."""
    try:
        return hashlib.sha256((folder / _RUN).read_bytes()).hexdigest()
    except OSError:
        return None


def open_folder(folder: Path, run: Mapping[str, Any], *, restart: bool, discards: bool) -> None:
    """Make the folder of shards, or check that the one that is there is of this same run.

    Args:
        folder: Where shards go.
        run: What decides the results: models, images, protocol, metric networks, versions.
        restart: Remove what this same run has found so far.
        discards: Remove what another run has found, in place of an error.

    Raises:
        OtherRunError: It holds the progress of another run.
        OutputError: It cannot be written, or another process is writing into it.
    """
    wanted = _encode(run)
    make_folder(folder)
    with translated(folder):
        shards = _list_shards(folder)
        known = folder / _RUN
        found = known.read_bytes() if known.exists() else None
        is_other = found != wanted and (found is not None or bool(shards))
        if is_other and not discards:
            raise OtherRunError(
                f"the progress of another run is there ({_differences(found, run)})",
                where=str(folder),
                hint="--restart removes it",
            )
        _await_writers(shards)
        if restart or is_other:
            # Not the folder: something else may have been put there. Lines go before their rows.
            for path in shards:
                path.unlink(missing_ok=True)
                path.with_suffix(_ROWS).unlink(missing_ok=True)
        if found != wanted:
            replace_small_file(known, wanted, durable=False)


def _encode(run: Mapping[str, Any]) -> bytes:
    return json.dumps(run, indent=2, sort_keys=True).encode() + b"\n"


def _differences(found: bytes | None, run: Mapping[str, Any]) -> str:
    """Name what differs between two runs."""
    try:
        before = json.loads(found or b"{}")
        now = json.loads(_encode(run))
        names = [name.replace("_", " ") for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError):
        names = []
    return f"other {', '.join(names)}" if names and found else "nothing says which"


def _list_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"shard-*{_LINES}"))


def _await_writers(shards: Iterable[Path]) -> None:
    """Wait for processes that still write, such as those whose launcher was just killed.

    Raises:
        OutputError: They do not end.
    """
    deadline = time.monotonic() + _PATIENCE
    for path in shards:
        while _is_written(path):
            if time.monotonic() > deadline:
                raise OutputError(
                    "another run is measuring into it",
                    where=str(path.parent),
                    hint="wait for it or end it, or name another --out",
                )
            time.sleep(0.1)


def _is_written(path: Path) -> bool:
    try:
        with system.locked(path):
            return False
    except BlockingIOError:
        return True


def read_shards(folder: Path, width: int) -> list[Shard]:
    """Read what earlier runs found; a line that a kill cut short ends its shard.

    Raises:
        OutputError: A file is there that cannot be read.
    """
    with translated(folder):
        return [_read_shard(path, width) for path in _list_shards(folder)]


def _read_shard(path: Path, width: int) -> Shard:
    shard = Shard(path, width)
    has_rows = bool(width) and shard.rows_path.exists()
    rows = shard.rows_path.stat().st_size // (4 * width) if has_rows else 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not {"at", "sha256"} <= record.keys():
            break
        if "skipped" not in record and width:
            if not rows:
                break
            rows -= 1
        shard.records.append(record)
    return shard


def hashes_of(shards: Iterable[Shard]) -> dict[int, str | None]:
    """Give the sha256 of each image that shards hold; None for one that could not be read."""
    return {record["at"]: record["sha256"] for shard in shards for record in shard.records}


class Merged(NamedTuple):
    """All results.

    Attributes:
        records: In the order of images.
        moments: Of the features of the originals, then of each model's reconstructions; empty
            where there are no features.
    """

    records: list[Record]
    moments: list[Moments]


def merge_shards(shards: Sequence[Shard], world: World, width: int) -> Merged:
    """Bring all results together; an image that two shards hold counts once.

    Args:
        shards: Those that this process can read.
        world: All processes take part.
        width: Features of one image; 0 where there are none.
    """
    owned = hashes_of(shards).keys()
    mine = owned - set[int]().union(*world.gather({*owned})[: world.rank])
    records: list[Record] = []
    moments = [no_moments(width) for _ in range(shards[0].width // width if width else 0)]
    for shard in shards:
        found = {record["at"]: record for record in shard.records}
        fresh = found.keys() & mine
        mine -= fresh
        records += (found[index] for index in fresh)
        for rows in shard.rows(fresh):
            moments = [
                known.joined(moments_of(rows[:, at * width : (at + 1) * width]))
                for at, known in enumerate(moments)
            ]
    merged = [world.merge(known) for known in moments] if width else []
    everything = (record for some in world.gather(records) for record in some)
    return Merged(sorted(everything, key=lambda record: record["at"]), merged)
