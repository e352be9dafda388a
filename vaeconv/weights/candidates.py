"""Which of several autoencoders in a checkpoint is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vaeconv.autoencoder.match import ROOTS, no_autoencoder
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.ema_names import names_ema
from vaeconv.common.notes import Note, note
from vaeconv.errors import AmbiguousInputError, UsageError

_COMPARE_PIECE = 1 << 20
# Lightning's WeightAveraging puts the averaged weights under ``state_dict``, and the raw ones here.
_LIGHTNING_RAW = "current_model_state."


def choose_prefix(
    checkpoint: Checkpoint, found: Sequence[str], wanted: str | None, notes: list[Note]
) -> str:
    """Choose an autoencoder: the one that is wanted, else the raw one of the state dict proper.

    Args:
        checkpoint: The open checkpoint.
        found: Prefixes under which there is one.
        wanted: A prefix, or the keys that lead to a state dict; None to decide by the names.
        notes: What the user should know is added.

    Raises:
        InputError: There is none, or nothing says which of several is meant.
        UsageError: None has the prefix.
    """
    if wanted is not None:
        return _find_wanted(checkpoint, found, wanted)
    if not found:
        raise no_autoencoder(
            {name: tensor.shape for name, tensor in checkpoint.tensors.items()}, checkpoint.name
        )
    raws = [prefix for prefix in found if not names_ema(prefix)] or found
    proper = [prefix for prefix in raws if not prefix.startswith(checkpoint.beside)] or raws
    first, *others = proper
    for other in others:
        if not _is_copy(checkpoint.tensors, first, other):
            raise AmbiguousInputError(
                f"holds {len(found)} different autoencoders, under "
                + ", ".join(repr(prefix) for prefix in found),
                where=checkpoint.name,
                hint=f"choose one with --source-prefix, such as --source-prefix {first or other}",
            )
    if others:
        notes.append(
            note(f"the file holds the same autoencoder {len(proper)} times; {first!r} is used")
        )
    if is_lightning_ema(checkpoint, first):
        notes.append(
            note(
                "state_dict holds EMA weights, as Lightning's WeightAveraging saves them, and "
                f"they are used; --source-prefix {_LIGHTNING_RAW} selects the raw weights"
            )
        )
    elif is_ema(checkpoint, first):
        notes.append(
            note(f"the file holds EMA weights only ({_full(checkpoint, first)}), no raw weights")
        )
    elif rest := [prefix for prefix in raws if prefix not in proper]:
        notes.append(
            note(
                "the file also holds another autoencoder, which --source-prefix can select: "
                + ", ".join(rest)
            )
        )
    return first


def inner_prefix(checkpoint: Checkpoint, prefix: str) -> str:
    """Tell a prefix without the keys of a state dict that is another state of the whole model."""
    for root in checkpoint.beside:
        if prefix.startswith(root) and (names_ema(root) or root == _LIGHTNING_RAW):
            return prefix[len(root) :]
    return prefix


def is_ema(checkpoint: Checkpoint, prefix: str) -> bool:
    """Tell by names if the autoencoder under a prefix holds EMA weights."""
    return names_ema(_full(checkpoint, prefix)) or is_lightning_ema(checkpoint, prefix)


def is_lightning_ema(checkpoint: Checkpoint, prefix: str) -> bool:
    """Tell if these are the EMA weights that Lightning's WeightAveraging saves."""
    is_proper = not prefix.startswith(checkpoint.beside)
    wrapper = checkpoint.wrapper[-1:] == ("state_dict",)
    return is_proper and wrapper and _LIGHTNING_RAW in checkpoint.beside


def _full(checkpoint: Checkpoint, prefix: str) -> str:
    """Name all the keys that lead to an autoencoder, from the top of the file."""
    if prefix.startswith(checkpoint.beside):
        return prefix
    return "".join(f"{key}." for key in checkpoint.wrapper) + prefix


def _find_wanted(checkpoint: Checkpoint, found: Sequence[str], wanted: str) -> str:
    wanted = wanted and wanted.rstrip(".") + "."
    full = {prefix: _full(checkpoint, prefix) for prefix in found}
    exact = [prefix for prefix in found if prefix == wanted] or [
        prefix for prefix in found if full[prefix] == wanted
    ]
    inside = [prefix for prefix in found if wanted and full[prefix].startswith(wanted)]
    if not exact and len(inside) != 1:
        known = ", ".join(repr(prefix) for prefix in inside or found) or "none"
        raise UsageError(
            f"no autoencoder has the prefix {wanted!r}; found: {known}", where=checkpoint.name
        )
    return (exact or inside)[0]


def _is_copy(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    pairs = [
        (tensor, tensors.get(other + name[len(one) :]))
        for name, tensor in tensors.items()
        if name.startswith(one) and name[len(one) :].startswith(ROOTS)
    ]
    return all(match is not None and same_values(tensor, match) for tensor, match in pairs)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Tell if two tensors hold the same bytes; stop at the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    readers = one.open(), other.open()
    left = one.nbytes
    while left:
        size = min(left, _COMPARE_PIECE)
        pieces = bytearray(size), bytearray(size)
        for reader, piece in zip(readers, pieces, strict=True):
            reader.read_into(memoryview(piece))
        if pieces[0] != pieces[1]:
            return False
        left -= size
    return True
