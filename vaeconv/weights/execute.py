"""Stream the rows of a plan into an output file: read, check, cast, write, hash.

Each worker takes the next piece of the output and carries it through all steps in a buffer.
Reading, scanning, casting and writing need no order. CRCs do, and there a piece waits its turn.
So does the hash of the output, the longest step of all: a finished piece is left for whichever
worker is hashing, so that nobody waits. Memory is constant.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from typing import NamedTuple

from vaeconv.checkpoint import system
from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.dtypes import CastLoss
from vaeconv.checkpoint.scan import has_nonfinite
from vaeconv.checkpoint.storage import StorageReader, check_storages, crc_error
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.checkpoint.writers.layout import OutputFile, Segment
from vaeconv.errors import DTypeOverflowError, NonFiniteError, OutputError
from vaeconv.weights.options import CopyOptions
from vaeconv.weights.plan import Row
from vaeconv.weights.workers import Scratch, Turn
from vaeconv.weights.zeros import ZeroWatch

_PIECE = 1 << 20
# Hashing is what a checked copy waits for, and it is faster on what still lies in a cache; where
# elements are cast, a worker has more to do with a piece, and larger ones win.
_HASHED_PIECE, _HASHED_BUFFERS = 1 << 18, 3
_WORKERS = 2
_BUFFERS = 4
_WRITEBACK = 4 << 20  # how much is written before the disk is asked to begin with it

# A segment, where in it a piece begins, where in the buffer, and its length.
_Piece = tuple[Segment, int, int, int]


class Copied(NamedTuple):
    """Result of writing the tensors of a plan.

    Attributes:
        sha256: The hash of the output in hexadecimal; None where it was not asked for.
        losses: What a cast lost beyond rounding, by name of the output tensor.
        source_crcs: CRC-32 of each source tensor, by name of the output tensor; empty where
            nothing was checked.
    """

    sha256: str | None
    losses: dict[str, CastLoss]
    source_crcs: dict[str, int]


def copy_rows(
    fd: int, file: OutputFile, rows: Sequence[Row], options: CopyOptions, *, where: str
) -> Copied:
    """Write an output file from its source tensors.

    Args:
        fd: The empty output, open for writing.
        file: What each byte will be.
        rows: The tensors that the file's segments name.
        options: What to check.
        where: The output, for messages.

    Raises:
        MalformedCheckpointError: A source ends early, changed, or fails its CRC.
        NonFiniteError: A tensor holds NaN or infinity.
        ZeroWeightsError: Weights are zero that no training leaves so.
        DTypeOverflowError: A value does not fit the output's dtype.
        OutputError: The output cannot be written, as on a full disk.
    """
    # A full disk shows now. And without it two writers at a time may keep each other from finding
    # free blocks, and take three times as long.
    try:
        system.reserve(fd, file.size)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=where) from error
    prefetch_rows(rows)
    if options.check:
        partly = {
            id(row.source.storage): row.source.storage
            for row in rows
            if not row.source.covers_storage
        }
        check_storages(list(partly.values()))
    copy = _Copy(fd, file, {row.name: row for row in rows}, options, where)
    # Compressed and strided sources can only be read in order.
    copy.run(_WORKERS if all(row.source.is_direct for row in rows) else 1)
    sha256 = copy.sha256.hexdigest() if options.check else None
    return Copied(sha256, copy.losses, copy.source_crcs if options.check else {})


def prefetch_rows(rows: Sequence[Row]) -> None:
    """Say which bytes will be read, so that those of a remote file come in few requests."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    sources = {id(row.source.storage.source): row.source.storage.source for row in rows}
    for row in rows:
        storage = row.source.storage
        ranges.setdefault(id(storage.source), []).append(storage.extent)
    for key, source in sources.items():
        source.prefetch(ranges[key])


def _find_largest(tensor: Tensor) -> float:
    """Find the largest finite magnitude in a tensor, in constant memory where it is contiguous."""
    from vaeconv.checkpoint.cast import largest_magnitude

    reader, left, largest = tensor.open(), tensor.nbytes, 0.0
    while left:
        piece = memoryview(bytearray(min(left, _PIECE)))
        reader.read_into(piece)
        largest = max(largest, largest_magnitude(piece, tensor.dtype))
        left -= len(piece)
    return largest


def _nonfinite_error(row: Row) -> NonFiniteError:
    return NonFiniteError(
        f"tensor {row.source.name} holds NaN or infinity",
        where=row.source.storage.source.name,
        hint="its training diverged; --allow-nonfinite writes it nevertheless",
    )


class _Copy:
    """One output file on its way."""

    def __init__(
        self, fd: int, file: OutputFile, rows: Mapping[str, Row], options: CopyOptions, where: str
    ) -> None:
        self._fd = fd
        self._file = file
        self._rows = rows
        self._options = options
        self._where = where
        self._needs_crc = options.check or file.needs_crc
        self._crcs: dict[str, int] = {}
        self.source_crcs: dict[str, int] = {}
        self._readers: dict[str, StorageReader] = {}
        is_hash_bound = options.check and not any(row.is_cast for row in rows.values())
        self._piece = min(_PIECE, _HASHED_PIECE) if is_hash_bound else _PIECE
        self._buffer_count = _HASHED_BUFFERS if is_hash_bound else _BUFFERS
        self._taking = threading.Lock()
        self._taken = 0
        self._checked = Turn()
        self._buffers: SimpleQueue[bytearray | None] = SimpleQueue()
        self._finished: dict[int, tuple[bytearray, int]] = {}
        self._hashing = threading.Lock()
        self._reporting = threading.Lock()
        # The kernel lets one writer in at a time, and spins a core while the next one waits. Where
        # that core has checks to do, it shall wait here instead.
        self._writing = threading.Lock() if options.check else nullcontext()
        self._hashed = 0
        is_watched = options.check and not options.allow_zeros
        self._zeros = ZeroWatch() if is_watched else None
        if self._zeros:
            for row in rows.values():
                self._zeros.expect(row.name, row.source.name, row.shape, row.source.nbytes)
        self._error: BaseException | None = None
        self.sha256 = hashlib.sha256()
        self.losses: dict[str, CastLoss] = {}

    def run(self, workers: int) -> None:
        """Carry all pieces through; raises the first error of any worker."""
        for _ in range(min(self._buffer_count, -(-self._file.size // self._piece))):
            self._buffers.put(bytearray(self._piece))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers - 1)]
        for thread in threads:
            thread.start()
        try:
            self._work()
        finally:
            for thread in threads:
                self._wait_for(thread)
        if self._error:
            raise self._error
        if self._zeros:
            first = next(iter(self._rows.values()))
            self._zeros.check(first.source.storage.source.name)

    def _wait_for(self, thread: threading.Thread) -> None:
        """Join a worker, through any interrupt: it may still write to the descriptor."""
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:  # noqa: BLE001 - raised once the worker has ended
                self._error = self._error or error
                self._checked.stop()

    def _work(self) -> None:
        scratch = Scratch()
        try:
            # The buffer comes first: so the lowest piece in work never lacks one.
            while (buffer := self._buffers.get()) is not None:
                index = self._take()
                if index is None:
                    break
                self._carry(index, buffer, scratch)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            self._error = self._error or error
            self._checked.stop()
        self._buffers.put(None)  # wakes the next worker, which passes it on

    def _take(self) -> int | None:
        with self._taking:
            if self._error or self._taken * self._piece >= self._file.size:
                return None
            self._taken += 1
            return self._taken - 1

    def _carry(self, index: int, buffer: bytearray, scratch: Scratch) -> None:
        start = index * self._piece
        end = min(start + self._piece, self._file.size)
        view = memoryview(buffer)
        pieces = list(self._file.pieces(start, end))
        scratch.clear()
        raw = [self._fill(buffer, scratch, piece) for piece in pieces]
        if self._needs_crc:
            with self._checked.wait_for(index):
                if self._error:
                    return
                for piece, source in zip(pieces, raw, strict=True):
                    self._check(view, source, piece)
        self._write(view[: end - start], start)
        if self._options.check:
            self._hash(index, buffer, end - start)
        else:
            self._buffers.put(buffer)
        if self._options.on_progress:
            with self._reporting:
                self._options.on_progress(end - start, self._file.size)

    def _hash(self, index: int, buffer: bytearray, size: int) -> None:
        """Hash all finished pieces whose turn it is, unless another worker is at it."""
        self._finished[index] = buffer, size
        # Looks again after letting go: a piece may have been left in between.
        while self._hashed in self._finished and self._hashing.acquire(blocking=False):
            try:
                while self._hashed in self._finished:
                    done, length = self._finished.pop(self._hashed)
                    self.sha256.update(memoryview(done)[:length])
                    self._hashed += 1
                    self._buffers.put(done)
            finally:
                self._hashing.release()

    def _fill(self, buffer: bytearray, scratch: Scratch, piece: _Piece) -> memoryview | None:
        """Bring the bytes of one segment into the buffer; returns the source's own bytes."""
        segment, start, at, size = piece
        part = memoryview(buffer)[at : at + size]
        if segment.literal is not None:
            part[:] = segment.literal[start : start + size]
            return None
        if segment.tensor is None:
            return None
        row = self._rows[segment.tensor]
        if not row.is_cast:
            self._read(row, start, part)
            if self._options.check and not self._options.allow_nonfinite:
                dtype, only_nan = row.source.dtype, row.may_be_infinite
                if has_nonfinite(buffer, at, size, dtype, only_nan=only_nan):
                    raise _nonfinite_error(row)
            if self._zeros:
                self._zeros.look(row.name, start, buffer, at, size, row.source.dtype)
            return part
        return self._cast(row, start, part, scratch)

    def _cast(self, row: Row, start: int, part: memoryview, scratch: Scratch) -> memoryview:
        from vaeconv.checkpoint.cast import cast_chunk

        wide, narrow = row.source.dtype.itemsize, row.dtype.itemsize
        count = len(part) // narrow
        buffer, at = scratch.take(count * wide)
        source = memoryview(buffer)[at : at + count * wide]
        self._read(row, start // narrow * wide, source)
        if self._zeros:
            place = start // narrow * wide
            self._zeros.look(row.name, place, buffer, at, len(source), row.source.dtype)
        clamp = self._options.clamp
        loss = cast_chunk(source, row.source.dtype, part, row.dtype, clamp=clamp)
        if loss.nonfinite and not self._options.allow_nonfinite:
            raise _nonfinite_error(row)
        if loss.overflow and not clamp:
            raise DTypeOverflowError(
                row.source.name,
                _find_largest(row.source),
                row.dtype.option,
                where=row.source.storage.source.name,
            )
        if loss.clamped or loss.flushed:
            with self._taking:
                known = self.losses.get(row.name, CastLoss())
                self.losses[row.name] = known.joined(loss)
        return source

    def _read(self, row: Row, start: int, part: memoryview) -> None:
        if row.source.is_direct:
            row.source.read_at(start, part)
            return
        if start == 0:
            self._readers.clear()
            self._readers[row.name] = row.source.open()
        self._readers[row.name].read_into(part)

    def _check(self, view: memoryview, source: memoryview | None, piece: _Piece) -> None:
        """Carry the checksums on, in order; fill in what depends on them."""
        segment, start, at, size = piece
        if segment.deferred is not None:
            view[at : at + size] = segment.deferred(self._crcs)[start : start + size]
            return
        if segment.tensor is None or source is None:
            return
        row, name = self._rows[segment.tensor], segment.tensor
        crc = crc32(source, self.source_crcs.get(name, 0))
        self.source_crcs[name] = crc
        if row.is_cast:
            if self._file.needs_crc:
                self._crcs[name] = crc32(view[at : at + size], self._crcs.get(name, 0))
        else:
            self._crcs[name] = crc
        storage = row.source.storage
        is_whole = row.source.covers_storage and start + size == row.nbytes
        if self._options.check and is_whole and storage.crc not in (None, crc):
            raise crc_error(storage)

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            done = 0
            with self._writing:
                while done < len(data):
                    done += system.write_at(self._fd, data[done:], offset + done)
            if self._options.check and not (offset + self._piece) % _WRITEBACK:
                system.start_writeback(self._fd, offset + self._piece - _WRITEBACK, _WRITEBACK)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=self._where) from error
