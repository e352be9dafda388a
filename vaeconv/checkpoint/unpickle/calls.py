"""Resolve the names and calls in a pickle to inert values, and record them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.unpickle.policy import DTYPE_NAMES, Verdict, judge, may_be_called
from vaeconv.checkpoint.unpickle.refused import why_refused
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder, StorageRef

_MAX_OBJECTS = 1_000_000
_MAX_GLOBALS = 10_000
_MAX_NAME = 512
_MAX_ODD_KEYS = 4096
_MAX_KEY_NODES = 16
_SMALL_KEY = 1 << 20
_KEY_TYPES = frozenset({str, bool, type(None), bytes, Placeholder, DType})


class Builder:
    """Gives the values of one pickle that are not plain data, and keeps count.

    Args:
        calls: What to do for a call, by name. Every other call gives a placeholder.
        is_legacy: Whether the pickle is one of a torch file from before the zip format.

    Attributes:
        verdicts: Verdict per name, in order of appearance.
        reasons: Why, per name that is unsafe.
        storages: Every storage of a known type, by key.
    """

    def __init__(self, calls: Mapping[str, Call], *, is_legacy: bool = False) -> None:
        self.is_legacy = is_legacy
        self.verdicts: dict[str, Verdict] = {}
        self.reasons: dict[str, str] = {}
        self.storages: dict[str, StorageRef] = {}
        self._calls = calls
        self._globals: dict[str, object] = {}
        self._encoded: dict[str, bytes] = {}
        self._objects = 0
        self._odd_keys = 0

    def count(self, objects: int) -> None:
        """Count objects that were made, or elements that were copied, which can be repeated."""
        self._objects += objects
        if self._objects > _MAX_OBJECTS:
            raise PickleFault("the pickle is too complex")

    def inert(self, name: str, args: tuple[object, ...]) -> Placeholder:
        """Give an object that does nothing."""
        self.count(1)
        return Placeholder(name, args)

    def mark(self, name: str, why: str) -> None:
        """Mark a name as unsafe."""
        self.verdicts[name] = Verdict.UNSAFE
        self.reasons.setdefault(name, why)

    def refuse(
        self, name: str, args: tuple[object, ...], why: str = "is called, with unknown effects"
    ) -> Placeholder:
        """Mark a name as unsafe for what is done with it; the result is inert."""
        self.mark(name, why)
        return self.inert(name, args)

    def find(self, module: object, name: object) -> object:
        """Give what stands for a global."""
        if type(module) is not str or type(name) is not str:
            raise PickleFault("the name of a global is not text")
        if len(module) + len(name) > _MAX_NAME:
            raise PickleFault(f"the name of a global has {len(module) + len(name)} characters")
        full = f"{module}.{name}"
        found = self._globals.get(full)
        if found is None:
            if len(self._globals) >= _MAX_GLOBALS:
                raise PickleFault(f"refers to more than {_MAX_GLOBALS} globals: too complex")
            self.verdicts[full] = judge(full)
            # A dotted name starts at what the module has imported, which may be another module.
            inner = why_refused(name) if "." in name else None
            if inner or self.verdicts[full] is Verdict.UNSAFE:
                self.mark(full, inner or why_refused(full) or "")
            found = self._globals[full] = DTYPE_NAMES.get(full) or Placeholder(full)
        return found

    def call(self, function: object, args: object) -> object:
        """Give what stands for the result of a call."""
        if type(args) is not tuple:
            raise PickleFault(f"arguments are a {type(args).__name__} and not a tuple")
        if type(function) is not Placeholder:
            raise PickleFault(f"calls a {type(function).__name__}")
        name = function.name
        if function.is_object:
            return self.refuse(f"{name}.__call__", args)
        build = self._calls.get(name)
        if build is not None:
            return build(self, name, args)
        if self.verdicts[name] is Verdict.PLACEHOLDER and not may_be_called(name):
            return self.refuse(name, args)
        return self.inert(name, args)

    def new(self, cls: object, args: object) -> object:
        """Give what stands for a new object of a class, which is not called."""
        if type(cls) is Placeholder and not cls.is_object:
            verdict = self.verdicts[cls.name]
            if verdict is Verdict.REBUILDER:
                raise PickleFault(f"{cls.name} is not a class")
            if verdict is Verdict.PLACEHOLDER and type(args) is tuple:
                return self.inert(cls.name, args)
        return self.call(cls, args)

    def change(self, target: Placeholder) -> bool:
        """Tell whether an object may take items or state; a class or function may not."""
        if not target.is_object:
            self.mark(target.name, "is changed, for the whole process")
        return target.is_object

    def check_key(self, key: object) -> None:
        """Check that a value can be a key, and that hashing and comparing it stays cheap."""
        nodes: list[Any] = [key]
        odd = type(key) is tuple
        for node in nodes:  # grows on the way
            kind = type(node)
            if kind is tuple:
                if len(nodes) + len(node) > _MAX_KEY_NODES:
                    raise PickleFault("a key is a tuple that is too large or too deep")
                nodes += node
            elif kind is int:
                odd |= not -_SMALL_KEY < node < _SMALL_KEY
            elif kind is float:
                odd = True
            elif kind not in _KEY_TYPES:
                raise PickleFault(f"a {kind.__name__} cannot be a key")
        # Numbers, unlike text, can be chosen to collide; a large table of them would never end.
        self._odd_keys += odd
        if self._odd_keys > _MAX_ODD_KEYS:
            raise PickleFault(f"more than {_MAX_ODD_KEYS} keys are unusual numbers or tuples")

    def encode(self, text: str) -> bytes:
        """Turn text with one character per byte into these bytes, once per text."""
        found = self._encoded.get(text)
        if found is None:
            try:
                found = self._encoded[text] = text.encode("latin-1")
            except UnicodeEncodeError:
                raise PickleFault("text that stands for bytes has wider characters") from None
        return found


Call = Callable[[Builder, str, "tuple[Any, ...]"], object]
"""Gives what stands for the result of calling a name with arguments."""


def check_arity(name: str, args: tuple[object, ...], least: int, most: int) -> None:
    """Check the number of arguments."""
    if not least <= len(args) <= most:
        raise PickleFault(f"{name} gets {len(args)} arguments")


def refuse_call(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    """Refuse the file for this call, whatever the arguments."""
    return builder.refuse(name, args)


def refuse_memory(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    """Refuse the file for a call that gives memory as it was left behind."""
    return builder.refuse(name, args, "returns memory that was never written")
