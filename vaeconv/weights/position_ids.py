"""Position ids of text encoders: a buffer of 0, 1, 2, … that merging checkpoints turns to floats.

Averaging two checkpoints averages the ids as well; some end a little below their integer, and a
loader that cuts them off counts positions twice and ignores tokens
(AUTOMATIC1111/stable-diffusion-webui#6728). transformers registers them as ``arange`` in int64.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.checkpoint.source import MemorySource
from vaeconv.checkpoint.storage import PlainStorage
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.common.notes import Note, note
from vaeconv.weights.plan import Row

_NAME = "embeddings.position_ids"  # rotary embeddings have position ids of other kinds
_LONGEST = 1 << 16  # positions; the longest text encoders have some thousands
_UNPACK = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h"}


def repair_rows(rows: Sequence[Row]) -> tuple[list[Row], list[Note]]:
    """Put right the position ids among rows that are no integers from 0 up, and say so.

    Returns:
        The rows, and a note for each that was put right.
    """
    fixed, notes = [], []
    for row in rows:
        fault = _find_fault(row.source) if row.name.endswith(_NAME) else None
        if fault:
            notes.append(
                note(
                    f"{row.name} were {fault}, as merging models leaves them; the integers "
                    f"0 to {row.source.numel - 1} are written in their place"
                )
            )
            source = _make(row.source)
            row = row._replace(source=source, dtype=source.dtype)
        fixed.append(row)
    return fixed, notes


def _make(tensor: Tensor) -> Tensor:
    """Make position ids as they should be, in int64; of the same name and shape."""
    count = tensor.numel
    source = MemorySource(struct.pack(f"<{count}q", *range(count)), tensor.storage.source.name)
    storage = PlainStorage(source, 0, source.size, tensor.name)
    return Tensor(tensor.name, BY_CODE["I64"], tensor.shape, storage)


def _find_fault(tensor: Tensor) -> str | None:
    """Say how far values are off; None where nothing is wrong, or they are something else."""
    is_row = tensor.numel <= _LONGEST and tensor.shape[-1:] == (tensor.numel,)
    values = _values(tensor) if is_row and tensor.numel else None
    if values is None:
        return None
    off = max(
        abs(value - index) if math.isfinite(value) else math.inf
        for index, value in enumerate(values)
    )
    # Merging scales and adds, and cutting off takes one at most; anything else is meant so.
    is_scaled = tensor.dtype.is_float and (off == math.inf or list(values) == sorted(values))
    if off > 1 and not is_scaled:
        return None
    if tensor.dtype.is_float:
        return f"{tensor.dtype.torch_name}, up to {off:.2g} off"
    return f"integers, up to {off:g} off" if off else None


def _values(tensor: Tensor) -> tuple[float, ...] | None:
    data = bytes(tensor.read())
    if tensor.dtype.code == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return struct.unpack(f"<{tensor.numel}f", data)
    code = _UNPACK.get(tensor.dtype.code)
    return struct.unpack(f"<{tensor.numel}{code}", data) if code else None
