"""Weights of nothing but zeros: what a download that reserves its space first leaves unwritten.

Zeros alone are no damage. Biases begin there, and so do convolutions that end a residual branch
(``zero_module``, Fixup); channels that were added by surgery are zero in part. So only what no
training leaves at zero is evidence: the scale of a normalisation, a convolution that a signal must
pass, and a long run of zeros inside a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.scan import check_values, find_zeros
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.errors import InputError, ZeroWeightsError

_AUTOENCODER = re.compile(
    r"(?:^|\.)(?:(?:en|de)coder\.(?:conv_|norm_out\.|mid|down|up)|(?:post_)?quant_conv\.)"
)
# They end a residual branch or the network, and may begin at zero; ``norm2`` comes before one.
_MAY_BE_ZERO = (
    ".norm2.weight", ".conv2.weight", ".proj_out.weight", ".to_out.0.weight", ".proj_attn.weight",
    "conv_out.weight",
)  # fmt: skip
# Rows for further channels, or for tokens that never occur.
_MAY_HAVE_ZEROS = ("conv_out.weight", "embedding.weight", "embeddings.weight", "shared.weight")
_FEWEST = 8  # elements of a norm; a single number is another kind of weight
# Downloads arrive in chunks of 64 KiB and more; a whole filter of 512 channels has 18 kB.
_RUN, _FOREIGN_RUN = 1 << 16, 1 << 20


class _Weight(NamedTuple):
    role: str
    name: str
    shape: Sequence[int]
    nbytes: int


class ZeroWatch:
    """Notes which tensors hold zeros, as their bytes pass in any order, from any thread."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        self._weights: dict[str, _Weight] = {}
        self._lock = Lock()

    def expect(self, role: str, name: str, shape: Sequence[int], nbytes: int) -> None:
        """Say what tensor will pass.

        Args:
            role: Its name with dots, in either layout; decides what zeros in it mean.
            name: Its key in the file, for messages.
            shape: Its sizes.
            nbytes: Its bytes.
        """
        self._weights[role] = _Weight(role, name, shape, nbytes)

    def look(
        self, role: str, start: int, buffer: bytes | bytearray, at: int, size: int, dtype: DType
    ) -> None:
        """Look at a piece of a tensor.

        Args:
            role: As it was said before.
            start: Where in the tensor the piece begins.
            buffer: Holds it.
            at: Where in the buffer it begins.
            size: Size in bytes.
            dtype: The tensor's type.
        """
        found = find_zeros(buffer, at, size, dtype)
        if found:
            with self._lock:
                self._ranges.setdefault(role, []).extend((start + a, start + b) for a, b in found)

    def check(self, where: str) -> None:
        """Judge all that passed.

        Raises:
            ZeroWeightsError: Weights are zero that no training leaves so.
        """
        problem = self.problem(where)
        if problem:
            raise problem

    def problem(self, where: str) -> ZeroWeightsError | None:
        """Judge all that passed; None where nothing is wrong."""
        runs = {role: _longest(ranges) for role, ranges in self._ranges.items()}
        weights = [weight for role, weight in self._weights.items() if role in runs]
        bad = [weight for weight in weights if _is_evidence(weight, runs[weight.role])]
        if not bad:
            return None
        first, run = bad[0].name, runs[bad[0].role]
        whole = sum(runs[weight.role] == weight.nbytes for weight in weights)
        norms = sum(
            weight.role.endswith(".weight")
            and len(weight.shape) == 1
            and runs[weight.role] == weight.nbytes
            for weight in weights
        )
        parts = []
        if whole:
            total = len(self._weights)
            parts.append(f"{whole} of {total} tensors ({whole / total:.0%}) hold nothing but zeros")
        if norms:
            parts.append(f"the scales of {norms} normalisations among them")
        extent = "" if run == bad[0].nbytes else ", a long part of it"
        parts.append(f"such as {first}{extent}")
        return ZeroWeightsError(", ".join(parts) + ": an unfinished download?", where=where)


def _is_evidence(weight: _Weight, run: int) -> bool:
    name = weight.role
    if not name.endswith(".weight"):
        return False
    is_whole = run == weight.nbytes
    if len(weight.shape) < 2:
        is_norm = len(weight.shape) == 1 and weight.shape[0] >= _FEWEST
        return is_norm and is_whole and not name.endswith(_MAY_BE_ZERO)
    is_own = bool(_AUTOENCODER.search(name))
    if is_whole:
        return is_own and not name.endswith(_MAY_BE_ZERO)
    return run >= (_RUN if is_own else _FOREIGN_RUN) and not name.endswith(_MAY_HAVE_ZEROS)


def _longest(ranges: Iterable[tuple[int, int]]) -> int:
    longest, begin, end = 0, 0, -1
    for start, stop in sorted(ranges):
        if start > end:
            begin = start
        end = max(end, stop)
        longest = max(longest, end - begin)
    return longest


def find_in_tensors(tensors: Sequence[Tensor], where: str) -> tuple[list[str], InputError | None]:
    """Read tensors of a checkpoint whole, by their own names.

    Returns:
        Names of those that hold NaN or infinity, and what zeros mean, if they mean anything.

    Raises:
        MalformedCheckpointError: A record fails its CRC, or the file ends early.
    """
    watch = ZeroWatch()
    for tensor in tensors:
        watch.expect(tensor.name, tensor.name, tensor.shape, tensor.nbytes)
    return check_values(list(tensors), watch.look), watch.problem(where)


def check_zeros(tensors: Sequence[Tensor], where: str) -> None:
    """Check that tensors of a checkpoint are not those of an unfinished download.

    Raises:
        ZeroWeightsError: Weights are zero that no training leaves so.
        MalformedCheckpointError: A record fails its CRC, or the file ends early.
    """
    problem = find_in_tensors(tensors, where)[1]
    if problem:
        raise problem
