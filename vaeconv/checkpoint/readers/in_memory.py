"""Weights in memory as a checkpoint: a state dict, or a model that has one."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from vaeconv.checkpoint.dtypes import BY_TORCH_NAME
from vaeconv.checkpoint.source import ByteSource
from vaeconv.checkpoint.storage import PlainStorage
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.checkpoint.types import Checkpoint, ConfigText
from vaeconv.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    import torch


class HasStateDict(Protocol):
    """A module, such as diffusers' ``AutoencoderKL``."""

    def state_dict(self) -> Mapping[str, Any]:
        """Give its weights by name."""


# What functions take that read a model: a path, an address, a state dict or a module.
AnyModel = str | os.PathLike[str] | Mapping[str, Any] | HasStateDict


class InMemory(os.PathLike[str]):
    """Weights that are in no file, with an address for messages.

    Args:
        weights: A state dict of torch tensors, or a module, such as diffusers' ``AutoencoderKL``.

    Raises:
        UsageError: It is neither.
    """

    def __init__(self, weights: Any) -> None:
        state, kind = weights, "state_dict"
        if callable(getattr(weights, "state_dict", None)) and not isinstance(weights, type):
            state, kind = weights.state_dict(), type(weights).__name__
        if not isinstance(state, Mapping):
            raise UsageError(
                f"{type(weights).__name__} is not a path, a state dict or a module",
                hint="pass a path, a dict of torch tensors, or a model such as AutoencoderKL",
            )
        self._address = f"memory://{kind}"
        self._state = state
        self._config = getattr(weights, "config", None)

    def __fspath__(self) -> str:
        return self._address

    def open(self) -> Checkpoint:
        """Describe the tensors; they are not copied where they lie on the CPU in one piece.

        Raises:
            UsageError: There are no tensors.
            UnsupportedModelError: A tensor is sparse, or of a type that no file can hold.
        """
        import torch

        state = dict(self._state)
        odd = [type(name).__name__ for name in state if not isinstance(name, str)]
        if odd:
            raise UsageError(
                f"a key is of type {odd[0]}; keys of a state dict are text",
                where=self._address,
            )
        found = {name: one for name, one in state.items() if isinstance(one, torch.Tensor)}
        if not found:
            raise UsageError(
                "holds no torch tensors", where=self._address, hint="pass the state dict itself"
            )
        parts = [_bytes_of(name, tensor, self._address) for name, tensor in found.items()]
        source = _Tensors(parts, self._address)
        tensors = {
            name: Tensor(
                name,
                BY_TORCH_NAME[_type_name(tensor)],
                tuple(tensor.shape),
                PlainStorage(source, start, len(part), name),
            )
            for (name, tensor), part, start in zip(found.items(), parts, source.starts, strict=True)
        }
        return Checkpoint(
            name=self._address,
            container="in memory",
            tensors=tensors,
            sources=(source,),
            non_tensors={n: type(v).__name__ for n, v in state.items() if n not in found},
            config=self._config_text(),
        )

    def _config_text(self) -> ConfigText | None:
        if not isinstance(self._config, Mapping):
            return None
        config = {key: one for key, one in self._config.items() if _is_plain({key: one})}
        return ConfigText(f"{self._address}/config.json", json.dumps(config))


def as_source(model: AnyModel) -> str | os.PathLike[str]:
    """Give a path or an address as it is, and weights in memory an address.

    Raises:
        UsageError: It is none of these.
    """
    return model if isinstance(model, str | os.PathLike) else InMemory(model)


class _Tensors(ByteSource):
    """The bytes of many tensors, one behind the other, without joining them."""

    def __init__(self, parts: list[memoryview], name: str) -> None:
        self._parts = parts
        self.starts = [0, *accumulate(map(len, parts))]
        super().__init__(name, self.starts.pop())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        index, done = bisect_right(self.starts, offset) - 1, 0
        while done < len(buffer):
            piece = self._parts[index][offset + done - self.starts[index] :][: len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            index += 1


def _bytes_of(name: str, tensor: torch.Tensor, where: str) -> memoryview:
    import torch

    if tensor.is_meta:
        raise UnsupportedModelError(
            f"tensor {name} has no values: it is on the meta device",
            where=where,
            hint="load the weights first, such as with load_state_dict(…, assign=True)",
        )
    if tensor.layout is not torch.strided or _type_name(tensor) not in BY_TORCH_NAME:
        raise UnsupportedModelError(
            f"tensor {name} is {tensor.layout} of {tensor.dtype}; weights are dense", where=where
        )
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return plain.reshape(-1).view(torch.uint8).numpy().data
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(  # nested, not initialised, or another kind of its own
            f"tensor {name} is no plain tensor ({error})", where=where
        ) from error


def _type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_plain(value: Any) -> bool:
    """Whether JSON can say it; a config in memory also remembers objects."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
