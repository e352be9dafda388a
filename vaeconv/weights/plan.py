"""A plan: which output tensor comes from which source tensor. Plain data; no bytes are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from vaeconv.autoencoder.match import DropReason
from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.common.notes import Note

KEEP = "keep"


class Row(NamedTuple):
    """One output tensor.

    Attributes:
        name: Its name in the output.
        source: The tensor that it is made of.
        shape: Its shape in the output; the elements and their order are the source's.
        dtype: Its element type in the output.
        is_ema: True if the source holds EMA weights of the parameter.
        may_be_infinite: Whether infinity in it is no sign of a training that diverged.
    """

    name: str
    source: Tensor
    shape: tuple[int, ...]
    dtype: DType
    is_ema: bool = False
    may_be_infinite: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_cast(self) -> bool:
        """True if the elements change their type."""
        return self.dtype is not self.source.dtype


class Plan(NamedTuple):
    """Everything that will be written, and everything that will not.

    Attributes:
        rows: The output tensors.
        dropped: Keys of the source that are left out, each with its reason.
        notes: What the user should know; each begins with ``warning:`` or ``note:``.
    """

    rows: tuple[Row, ...]
    dropped: Mapping[str, DropReason]
    notes: tuple[Note, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(row.nbytes for row in self.rows)

    @property
    def ema_counts(self) -> tuple[int, int]:
        """Number of rows with EMA weights, and with raw weights."""
        ema = sum(row.is_ema for row in self.rows)
        return ema, len(self.rows) - ema

    def drop_counts(self) -> dict[str, int]:
        """Number of dropped keys by reason, most first."""
        counts = Counter(reason.value for reason in self.dropped.values())
        return dict(counts.most_common())
