"""State of the unpickler: the bytes, a stack with marks, and a memo."""

from __future__ import annotations

from collections.abc import Callable
from struct import calcsize, unpack_from
from typing import Any

from vaeconv.checkpoint.unpickle.calls import Builder
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder

_MAX_NUMBER = 1024  # bytes or digits; to read more takes quadratic time


class Machine:
    """The state of one run, and what the opcodes have in common.

    What is missing on the stack surfaces as IndexError, a missing operand as struct.error, a
    missing memo entry as KeyError.
    """

    def __init__(self, data: bytes, start: int, builder: Builder) -> None:
        self.data = data
        self.pos = start
        self.at = start  # position of the opcode at hand
        self.stack: list[Any] = []  # what is above the latest mark
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.builder = builder

    def fixed(self, form: str) -> Any:
        """Take one number of a struct format."""
        (value,) = unpack_from(form, self.data, self.pos)
        self.pos += calcsize(form)
        return value

    def take(self, form: str) -> bytes:
        """Take as many bytes as the number of the given struct format that comes first says."""
        size = self.fixed(form)
        if not 0 <= size <= len(self.data) - self.pos:
            raise PickleFault(f"{size} bytes are announced, and it ends before")
        self.pos += size
        return self.data[self.pos - size : self.pos]

    def line(self) -> bytes:
        """Take the rest of a line."""
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise PickleFault("a line does not end")
        line = self.data[self.pos : end]
        self.pos = end + 1
        return line

    def number(self, kind: Callable[[bytes], Any]) -> Any:
        """Take a number that is written as text."""
        line = self.line()
        if len(line) > _MAX_NUMBER:
            raise PickleFault(f"a number of {len(line)} characters")
        try:
            return kind(line)
        except ValueError:
            raise PickleFault("a number cannot be read") from None

    def long(self, form: str) -> int:
        """Take an integer that is as many bytes long as the number before it says."""
        digits = self.take(form)
        if len(digits) > _MAX_NUMBER:
            raise PickleFault(f"a number of {len(digits)} bytes")
        return int.from_bytes(digits, "little", signed=True)

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_new(self, value: object) -> None:
        """Put a container on the stack, and count it."""
        self.builder.count(1)
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Take what is above the latest mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def put_items(self, items: list[Any]) -> None:
        """Put key after value after key into the mapping on top."""
        target = self.stack[-1]
        if len(items) % 2:
            raise PickleFault("a key has no value")
        for key in items[::2]:
            if type(key) is not str:
                self.builder.check_key(key)
        pairs = zip(items[::2], items[1::2], strict=True)
        if type(target) is dict:
            target.update(pairs)
        elif type(target) is Placeholder:
            self.keep(target, list(pairs))
        else:
            raise PickleFault(f"puts items into a {type(target).__name__}")

    def add_items(self, kind: type, items: list[Any]) -> None:
        """Add values to the list or set on top."""
        target = self.stack[-1]
        if type(target) is Placeholder:
            self.keep(target, list(enumerate(items, len(target.items))))
        elif kind is list and type(target) is list:
            target += items
        elif kind is set and type(target) is set:
            target.update(self.elements(items))
        else:
            raise PickleFault(f"adds items to a {type(target).__name__}")

    def elements(self, items: list[Any]) -> set[Any]:
        """Make a set, of values that can be in one."""
        for item in items:
            self.builder.check_key(item)
        return set(items)

    def keep(self, target: Placeholder, pairs: list[tuple[Any, Any]]) -> None:
        """Keep the items of somebody's list or dict as data."""
        self.builder.count(len(pairs))
        if self.builder.change(target):
            target.items += pairs

    def find(self, module: bytes, name: bytes) -> object:
        """Find a global by two lines of text."""
        return self.builder.find(str(module, "utf-8"), str(name, "utf-8"))


def check_index(value: int) -> int:
    """Check a memo index."""
    if not 0 <= value < 1 << 31:
        raise PickleFault(f"memo index {value} is out of range")
    return value
