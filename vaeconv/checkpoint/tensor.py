"""Lazy tensors: where a tensor's bytes are, and how to read them in its own order.

Nothing is loaded until it is read. All readers produce the tensor's elements in C order and
little endian, whatever the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.storage import Storage, StorageReader, skip_bytes
from vaeconv.errors import MalformedCheckpointError

# A view may repeat elements (stride 0), so its size is not bounded by the file's. Real
# checkpoints hold no large ones; a hostile file would fill the disk with them.
MAX_REPEATED_BYTES = 64 << 20
# A non-contiguous view is gathered from the whole span that it touches, in memory.
MAX_GATHER_BYTES = 512 << 20


class Tensor(NamedTuple):
    """One tensor of a checkpoint, not loaded.

    Attributes:
        name: Key in the state dict.
        dtype: Element type.
        shape: Sizes; ``()`` for a scalar.
        storage: The bytes that it views.
        offset: Bytes from the start of the storage to the first element.
        stride: Elements from one index to the next, per dimension; None where contiguous.
        is_swapped: Whether the elements are stored big endian.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    storage: Storage
    offset: int = 0
    stride: tuple[int, ...] | None = None
    is_swapped: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements in C order."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_direct(self) -> bool:
        """True if the file holds exactly these bytes in a row, so any part can be read alone."""
        return self.stride is None and not self.is_swapped and not self.storage.is_compressed

    @property
    def covers_storage(self) -> bool:
        """True if reading it in order reads its storage once, from first to last byte."""
        return self.is_direct and self.offset == 0 and self.nbytes == self.storage.size

    def read_at(self, start: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``start`` of a direct tensor."""
        self.storage.source.read_into(self.storage.data_offset() + self.offset + start, buffer)

    def open(self) -> StorageReader:
        """Start reading the elements from the first one, in C order, little endian."""
        if self.stride is not None:
            return _GatherReader(self)
        reader = self.storage.open()
        skip_bytes(reader, self.offset)
        return _SwapReader(reader, self.dtype) if self.is_swapped else reader

    def read(self) -> bytes:
        """Read all elements; for small tensors."""
        data = bytearray(self.nbytes)
        if data:
            self.open().read_into(memoryview(data))
        return bytes(data)


def make_view(
    name: str,
    dtype: DType,
    storage: Storage,
    *,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    is_swapped: bool,
    where: str,
) -> Tensor:
    """Describe a strided view of a storage after checking that it lies inside.

    Args:
        name: Key in the state dict.
        dtype: Element type.
        storage: The bytes.
        offset: Elements from the start of the storage.
        shape: Sizes, not negative.
        stride: Elements per step, not negative, one per dimension.
        is_swapped: Whether the storage is big endian.
        where: The file, for messages.

    Raises:
        MalformedCheckpointError: The view reaches outside, or repeats elements without bound.
    """
    numel = math.prod(shape)
    if numel:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        needed = (last + 1) * dtype.itemsize
        if needed > storage.size:
            raise MalformedCheckpointError(
                f"tensor {name} needs {needed} bytes of {storage.name}, which holds {storage.size}",
                where=where,
            )
        nbytes = numel * dtype.itemsize
        if nbytes > storage.size and nbytes > MAX_REPEATED_BYTES:
            raise MalformedCheckpointError(
                f"tensor {name} repeats {storage.size} stored bytes to {nbytes}", where=where
            )
    contiguous = not numel or _is_contiguous(shape, stride)
    return Tensor(
        name,
        dtype,
        shape,
        storage,
        offset * dtype.itemsize if numel else 0,
        None if contiguous else stride,
        is_swapped and dtype.itemsize > 1,
    )


def check_repeats(tensors: Sequence[Tensor]) -> None:
    """Check that tensors that will be read together do not blow up what is stored.

    Raises:
        MalformedCheckpointError: Views repeat stored bytes without bound.
    """
    storages = {id(tensor.storage): tensor.storage for tensor in tensors}
    stored = sum(storage.size for storage in storages.values())
    total = sum(tensor.nbytes for tensor in tensors)
    # Tied weights are there twice, and honestly so.
    if total > 2 * stored + MAX_REPEATED_BYTES:
        raise MalformedCheckpointError(
            f"its tensors repeat {stored} stored bytes to {total}",
            where=tensors[0].storage.source.name,
        )


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


class _SwapReader:
    """Turns big-endian elements around; buffers hold whole elements."""

    def __init__(self, reader: StorageReader, dtype: DType) -> None:
        self._reader = reader
        # A complex number is two numbers, each turned around by itself.
        width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        self._typecode = {2: "H", 4: "I", 8: "Q"}[width]

    def read_into(self, buffer: memoryview) -> None:
        from array import array

        self._reader.read_into(buffer)
        elements = array(self._typecode, bytes(buffer))
        elements.byteswap()
        buffer[:] = memoryview(elements).cast("B")


class _GatherReader:
    """Brings the elements of a transposed or otherwise strided view into C order."""

    def __init__(self, tensor: Tensor) -> None:
        import numpy as np

        assert tensor.stride is not None
        itemsize = tensor.dtype.itemsize
        steps = zip(tensor.shape, tensor.stride, strict=True)
        span = (sum((size - 1) * step for size, step in steps) + 1) * itemsize
        if span > MAX_GATHER_BYTES:
            raise MalformedCheckpointError(
                f"tensor {tensor.name} is a strided view over {span} bytes, "
                f"more than the {MAX_GATHER_BYTES} that are gathered in memory",
                where=tensor.storage.source.name,
                hint="save it again after .contiguous()",
            )
        window = bytearray(span)
        tensor._replace(stride=None).open().read_into(memoryview(window))
        view = np.lib.stride_tricks.as_strided(
            np.frombuffer(window, dtype=f"<u{itemsize}"),
            tensor.shape,
            [step * itemsize for step in tensor.stride],
        )
        self._bytes = memoryview(view.astype(f"<u{itemsize}", order="C").tobytes())
        self._position = 0

    def read_into(self, buffer: memoryview) -> None:
        end = self._position + len(buffer)
        buffer[:] = self._bytes[self._position : end]
        self._position = end
