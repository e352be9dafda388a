"""Values that stand for contents of a pickle that are not plain Python data."""

from __future__ import annotations

from typing import NamedTuple

from vaeconv.checkpoint.dtypes import DType


class PickleFault(Exception):
    """Fault of the current opcode."""


class StorageRef(NamedTuple):
    """A storage that a persistent id refers to; nothing is loaded.

    Attributes:
        key: Name of its record.
        dtype: Element type; None for an untyped storage, which counts bytes.
        numel: Number of elements.
        location: Device that it was saved from.
    """

    key: str
    dtype: DType | None
    numel: int
    location: str


class TensorRef(NamedTuple):
    """A strided view into a storage; offset and strides count elements of ``dtype``."""

    storage: StorageRef
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """An inert stand-in for a class, a function or an object of somebody else's.

    Attributes:
        name: Dotted name; for an object that of its class, for a tensor that cannot be
            described by strides ``torch.Tensor (why)``.
        is_object: Whether it stands for an object and not for the named thing itself.
        args: What it was made from; after NEWOBJ_EX the positional and the keyword arguments.
        state: What BUILD gave it.
        items: Pairs that were put into it, for lists with the position as the key.
    """

    __slots__ = ("args", "is_object", "items", "name", "state")

    def __init__(self, name: str, args: tuple[object, ...] | None = None) -> None:
        """Stand for ``name`` itself, or for an object of it where arguments are given."""
        self.name = name
        self.is_object = args is not None
        self.args = args or ()
        self.state: object = None
        self.items: list[tuple[object, object]] = []

    def __repr__(self) -> str:
        """Tell what it stands for; what it holds may go in circles."""
        return f"<{'object of ' if self.is_object else ''}{self.name}>"
