"""A pickle interpreter that cannot run anything.

It walks the opcodes itself. A name in the file is text to be judged, never an import; a call is
a lookup among our own builders; a tensor is a description of where its bytes are. Work and
memory are bounded, and nothing recurses on what the file says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from struct import calcsize, unpack_from
from struct import error as struct_error
from typing import Any

from vaeconv.checkpoint.pickle_globals import (
    Builder,
    GlobalUse,
    PickleFault,
    Placeholder,
    StorageRef,
    TensorRef,
    Verdict,
)
from vaeconv.errors import MalformedCheckpointError, UnsafeCheckpointError

__all__ = ["Placeholder", "StorageRef", "TensorRef", "Unpickled", "unpickle"]

_STRIDE = 100_000  # opcodes between two looks at the slower bounds
_MAX_STRIDES = 100
_MAX_OBJECTS = 1_000_000
_MAX_MEMO = 2_000_000
_MAX_NUMBER = 1024
_FIRST_WINDOW = 1 << 22
_MAX_WINDOW = 1 << 28

_NAMES = dict(
    zip(
        b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}])GBC\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89"
        b"\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98",
        "MARK STOP POP POP_MARK DUP FLOAT INT BININT BININT1 LONG BININT2 NONE PERSID BINPERSID "
        "REDUCE STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE APPEND BUILD GLOBAL DICT "
        "APPENDS GET BINGET INST LONG_BINGET LIST OBJ PUT BINPUT LONG_BINPUT SETITEM TUPLE "
        "SETITEMS EMPTY_DICT EMPTY_LIST EMPTY_TUPLE BINFLOAT BINBYTES SHORT_BINBYTES PROTO NEWOBJ "
        "EXT1 EXT2 EXT4 TUPLE1 TUPLE2 TUPLE3 NEWTRUE NEWFALSE LONG1 LONG4 SHORT_BINUNICODE "
        "BINUNICODE8 BINBYTES8 EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX STACK_GLOBAL MEMOIZE FRAME "
        "BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER".split(),
        strict=True,
    )
)


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle holds.

    Attributes:
        root: Its value.
        end: Position behind its STOP opcode, where the next pickle of a legacy file begins.
        globals: Names that it refers to, in order of appearance.
        storages: Storages of known types that it refers to, by key.
    """

    root: object
    end: int
    globals: tuple[GlobalUse, ...]
    storages: dict[str, StorageRef]


class _TruncatedFault(PickleFault):
    """The bytes end inside the pickle."""


def unpickle(
    data: bytes | bytearray | memoryview, *, where: str, salvage: bool = False, start: int = 0
) -> Unpickled:
    """Read one pickle without running anything.

    Args:
        data: Bytes that hold it; what follows it is not looked at.
        where: File and entry, for messages.
        salvage: Put inert placeholders in place of unsafe names instead of refusing them.
        start: Where it begins.

    Raises:
        UnsafeCheckpointError: It refers to something that no checkpoint needs.
        MalformedCheckpointError: It breaks the rules of the format or one of our bounds.
    """
    size = len(data)
    start = max(0, min(start, size))
    if isinstance(data, bytes):
        return _read(data, start, 0, size, where, salvage)
    # A copy gives the fast methods of bytes, and bytes that nobody changes meanwhile. The end
    # of the pickle is unknown, and a whole legacy file may follow, so windows grow up to it.
    window = _FIRST_WINDOW
    while True:
        end = min(start + window, size)
        try:
            return _read(bytes(data[start:end]), 0, start, size, where, salvage)
        except _TruncatedFault:
            window = min(window * 8, _MAX_WINDOW)


def _read(data: bytes, start: int, base: int, size: int, where: str, salvage: bool) -> Unpickled:
    machine = _Machine(data, start)
    root: object = None
    fault: PickleFault | None = None
    try:
        root = machine.run()
    except PickleFault as error:
        fault = error
    except (IndexError, struct_error):  # an argument or an operand that is not there
        if machine.at + 1 + _FIXED.get(data[machine.at : machine.at + 1], 0) > len(data):
            fault = _TruncatedFault("it ends too early")
        else:
            fault = PickleFault("takes more from the stack than there is")
    except KeyError:
        fault = PickleFault("refers to a memo entry that does not exist")
    except UnicodeDecodeError:
        fault = PickleFault("text is not UTF-8")
    if isinstance(fault, _TruncatedFault) and base + len(data) < size and len(data) < _MAX_WINDOW:
        raise fault
    verdicts = machine.builder.verdicts
    unsafe = [name for name, verdict in verdicts.items() if verdict is Verdict.UNSAFE]
    if unsafe and not salvage:
        raise UnsafeCheckpointError(unsafe, where=where)
    if fault is not None:
        at = machine.at
        opcode = _NAMES.get(data[at], f"opcode 0x{data[at]:02x}") if at < len(data) else "the end"
        raise MalformedCheckpointError(
            f"broken pickle: {fault} (byte {base + at}, {opcode})", where=where
        )
    uses = tuple(GlobalUse(name, verdict) for name, verdict in verdicts.items())
    return Unpickled(root, base + machine.pos, uses, machine.builder.storages)


class _Machine:
    """The state of one run: bytes, position, stack, memo."""

    def __init__(self, data: bytes, start: int) -> None:
        """Stand before the first opcode."""
        self.data = data
        self.pos = start
        self.at = start  # position of the opcode at hand
        self.stack: list[Any] = []  # what is above the latest mark
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.builder = Builder()

    def run(self) -> object:
        """Run up to STOP and return the value."""
        # The opcodes that tensors are made of are inlined, the most frequent first; the others
        # are methods. Missing operands and arguments surface as IndexError or struct.error.
        data, memo, marked, builder = self.data, self.memo, self.marked, self.builder
        stack, pos, at, made = self.stack, self.pos, self.pos, 0
        try:
            for _ in repeat(None, _MAX_STRIDES):
                if builder.objects + made + len(marked) > _MAX_OBJECTS or len(memo) > _MAX_MEMO:
                    raise PickleFault("the pickle is too complex")
                for _ in repeat(None, _STRIDE):
                    at = pos
                    op = data[pos]
                    pos += 1
                    if op == 0x72:  # LONG_BINPUT
                        memo[_index(unpack_from("<I", data, pos)[0])] = stack[-1]
                        pos += 4
                    elif op == 0x71:  # BINPUT
                        memo[data[pos]] = stack[-1]
                        pos += 1
                    elif op == 0x68:  # BINGET
                        stack.append(memo[data[pos]])
                        pos += 1
                    elif op == 0x4B:  # BININT1
                        stack.append(data[pos])
                        pos += 1
                    elif op == 0x58 or op == 0x8C:  # BINUNICODE, SHORT_BINUNICODE
                        if op == 0x58:
                            end = pos + 4 + unpack_from("<I", data, pos)[0]
                            pos += 4
                        else:
                            end = pos + 1 + data[pos]
                            pos += 1
                        if end > len(data):
                            raise _TruncatedFault("its text ends too early")
                        stack.append(str(data[pos:end], "utf-8", "surrogatepass"))
                        pos = end
                    elif op == 0x28:  # MARK
                        marked.append(stack)
                        stack = []
                    elif op == 0x74:  # TUPLE
                        items = stack
                        stack = marked.pop()
                        stack.append(tuple(items))
                        made += 1
                    elif op == 0x4A:  # BININT
                        stack.append(unpack_from("<i", data, pos)[0])
                        pos += 4
                    elif op == 0x4D:  # BININT2
                        stack.append(unpack_from("<H", data, pos)[0])
                        pos += 2
                    elif op == 0x52:  # REDUCE
                        args = stack.pop()
                        stack[-1] = builder.call(stack[-1], args)
                    elif op == 0x29:  # EMPTY_TUPLE
                        stack.append(())
                    elif op == 0x51:  # BINPERSID
                        stack[-1] = builder.storage(stack[-1])
                    elif op == 0x85:  # TUPLE1
                        stack[-1] = (stack[-1],)
                        made += 1
                    elif op == 0x86:  # TUPLE2
                        second = stack.pop()
                        stack[-1] = (stack[-1], second)
                        made += 1
                    elif op == 0x87:  # TUPLE3
                        stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
                        made += 1
                    elif op == 0x89:  # NEWFALSE
                        stack.append(False)
                    elif op == 0x94:  # MEMOIZE
                        memo[len(memo)] = stack[-1]
                    elif op == 0x6A:  # LONG_BINGET
                        stack.append(memo[unpack_from("<I", data, pos)[0]])
                        pos += 4
                    elif op == 0x2E:  # STOP
                        return stack.pop()
                    else:
                        act = _COLD.get(op)
                        if act is None:
                            raise PickleFault("not an opcode")
                        self.stack, self.pos = stack, pos
                        act(self)
                        stack, pos = self.stack, self.pos
            raise PickleFault("the pickle is too complex")
        finally:
            self.at, self.pos = at, pos

    def take(self, form: str = "", limit: int | None = None) -> bytes:
        """Take as many bytes as the number of the given struct format that comes first says."""
        (size,) = unpack_from(form, self.data, self.pos)
        if limit is not None and not 0 <= size <= limit:
            raise PickleFault(f"a number of {size} bytes")
        begin = self.pos + calcsize(form)
        if not 0 <= size <= len(self.data) - begin:
            raise _TruncatedFault(f"{size} bytes are announced, and it ends before")
        self.pos = begin + size
        return self.data[begin : self.pos]

    def fixed(self, form: str) -> Any:
        """Take one number of a struct format."""
        (value,) = unpack_from(form, self.data, self.pos)
        self.pos += calcsize(form)
        return value

    def line(self, limit: int | None = None) -> bytes:
        """Take the rest of a line."""
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise _TruncatedFault("a line does not end")
        line = self.data[self.pos : end]
        if limit is not None and len(line) > limit:
            raise PickleFault(f"a number of {len(line)} characters")
        self.pos = end + 1
        return line

    def number(self, kind: Callable[[bytes], Any]) -> Any:
        """Take a number that is written as text."""
        line = self.line(_MAX_NUMBER)
        try:
            return kind(line)
        except ValueError:
            raise PickleFault("a number cannot be read") from None

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_new(self, value: object) -> None:
        """Put a container on the stack, and count it."""
        self.builder.objects += 1
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Take what is above the latest mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def pop(self) -> None:
        """Drop the top, be it a value or a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.marked.pop()

    def put_items(self, items: list[Any]) -> None:
        """Put key after value after key into the mapping on top."""
        target = self.stack[-1]
        if len(items) % 2:
            raise PickleFault("a key has no value")
        if type(target) is not dict and type(target) is not Placeholder:
            raise PickleFault(f"puts items into a {type(target).__name__}")
        for key in items[::2]:
            if type(key) is not str:
                self.builder.check_key(key)
        pairs = zip(items[::2], items[1::2], strict=True)
        if type(target) is dict:
            target.update(pairs)
        elif type(target) is Placeholder:
            self.keep(target, list(pairs))

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

    def elements(self, items: list[Any]) -> list[Any]:
        """Check the values of a set."""
        for item in items:
            self.builder.check_key(item)
        return items

    def keep(self, target: Placeholder, pairs: list[tuple[Any, Any]]) -> None:
        """Keep the items of somebody's list or dict as data."""
        self.builder.objects += len(pairs)
        if self.builder.change(target):
            target.items += pairs

    def build(self) -> None:
        """Give the object on top its state."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Placeholder:
            if self.builder.change(target):
                target.state = state
        elif type(target) is not dict:  # what torch and others hang on an OrderedDict is dropped
            raise PickleFault(f"sets the state of a {type(target).__name__}")

    def from_global(self, module: bytes, name: bytes) -> object:
        """Find a global by two lines of text."""
        return self.builder.find(str(module, "utf-8"), str(name, "utf-8"))

    def stack_global(self) -> None:
        """Find a global by two texts on the stack."""
        name = self.stack.pop()
        self.stack[-1] = self.builder.find(self.stack[-1], name)

    def inst(self) -> None:
        """Call a global on what is above the mark."""
        cls = self.from_global(self.line(), self.line())
        args = tuple(self.since_mark())
        self.push(self.builder.call(cls, args))

    def obj(self) -> None:
        """Call the first value above the mark on the others."""
        cls, *args = self.since_mark() or [None]
        self.push(self.builder.call(cls, tuple(args)))

    def newobj(self, keywords: bool = False) -> None:
        """Make an object of a class."""
        named = self.stack.pop() if keywords else None
        args = self.stack.pop()
        self.stack[-1] = self.builder.new(self.stack[-1], (args, named) if named else args)

    def extension(self, code: int) -> None:
        """Refer to a name by a number of the running Python's registry, which may be anything."""
        name = f"copyreg extension {code}"
        self.builder.verdicts[name] = Verdict.UNSAFE
        self.push(Placeholder(name))

    def proto(self) -> None:
        """Check the protocol."""
        version = self.fixed("<B")
        if version > 5:
            raise PickleFault(f"protocol {version} does not exist")

    def frame(self) -> None:
        """Check that a frame is there; its bounds say nothing else."""
        size = self.fixed("<Q")
        if size > len(self.data) - self.pos:
            raise _TruncatedFault(f"a frame of {size} bytes is announced, and it ends before")

    def quoted(self) -> None:
        """Push a Python 2 string, written with quotes and escapes."""
        line = self.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise PickleFault("a string lacks its quotes")
        self.push(_python2_text(_ESCAPE.sub(_unescaped, line[1:-1])))

    def refuse_buffer(self) -> None:
        """Refuse data that would have to come from outside the pickle."""
        raise PickleFault("out-of-band buffers have no place in a file")


def _index(value: int) -> int:
    if not 0 <= value < 1 << 31:
        raise PickleFault(f"memo index {value} is out of range")
    return value


def _integer(line: bytes) -> int | bool:
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line, 0)


def _python2_text(raw: bytes) -> str | bytes:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        return raw


_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes([int(match[1], 16)])
    if match[2]:
        return bytes([int(match[2], 8) & 0xFF])
    return bytes([_LETTERS[match[3][0]]]) if match[3][0] in _LETTERS else match[0]


def _long(m: _Machine, form: str) -> None:
    m.push(int.from_bytes(m.take(form, _MAX_NUMBER), "little", signed=True))


def _dict(m: _Machine) -> None:
    items = m.since_mark()
    m.push_new({})
    m.put_items(items)


def _put(m: _Machine) -> None:
    m.memo[_index(m.number(int))] = m.stack[-1]


def _persistent(m: _Machine) -> None:
    m.push(m.builder.storage(str(m.line(), "utf-8")))


_COLD_BY_NAME: dict[str, Callable[[_Machine], object]] = {
    "POP": _Machine.pop,
    "POP_MARK": _Machine.since_mark,
    "DUP": lambda m: m.push(m.stack[-1]),
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "INT": lambda m: m.push(m.number(_integer)),
    "LONG": lambda m: m.push(m.number(lambda line: int(line.removesuffix(b"L"), 0))),
    "FLOAT": lambda m: m.push(m.number(float)),
    "BINFLOAT": lambda m: m.push(m.fixed(">d")),
    "LONG1": lambda m: _long(m, "<B"),
    "LONG4": lambda m: _long(m, "<i"),
    "STRING": _Machine.quoted,
    "BINSTRING": lambda m: m.push(_python2_text(m.take("<i"))),
    "SHORT_BINSTRING": lambda m: m.push(_python2_text(m.take("<B"))),
    "UNICODE": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    "BINUNICODE8": lambda m: m.push(str(m.take("<Q"), "utf-8", "surrogatepass")),
    "BINBYTES": lambda m: m.push(m.take("<I")),
    "SHORT_BINBYTES": lambda m: m.push(m.take("<B")),
    "BINBYTES8": lambda m: m.push(m.take("<Q")),
    "BYTEARRAY8": lambda m: m.push(m.take("<Q")),  # nobody here changes it
    "EMPTY_DICT": lambda m: m.push_new({}),
    "EMPTY_LIST": lambda m: m.push_new([]),
    "EMPTY_SET": lambda m: m.push_new(set()),
    "LIST": lambda m: m.push_new(m.since_mark()),
    "DICT": _dict,
    "FROZENSET": lambda m: m.push_new(frozenset(m.elements(m.since_mark()))),
    "APPEND": lambda m: m.add_items(list, [m.stack.pop()]),
    "APPENDS": lambda m: m.add_items(list, m.since_mark()),
    "ADDITEMS": lambda m: m.add_items(set, m.since_mark()),
    "SETITEM": lambda m: m.put_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m: m.put_items(m.since_mark()),
    "BUILD": _Machine.build,
    "GLOBAL": lambda m: m.push(m.from_global(m.line(), m.line())),
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "NEWOBJ": _Machine.newobj,
    "NEWOBJ_EX": lambda m: m.newobj(keywords=True),
    "EXT1": lambda m: m.extension(m.fixed("<B")),
    "EXT2": lambda m: m.extension(m.fixed("<H")),
    "EXT4": lambda m: m.extension(m.fixed("<i")),
    "PERSID": _persistent,
    "GET": lambda m: m.push(m.memo[m.number(int)]),
    "PUT": _put,
    "PROTO": _Machine.proto,
    "FRAME": _Machine.frame,
    "NEXT_BUFFER": _Machine.refuse_buffer,
    "READONLY_BUFFER": _Machine.refuse_buffer,
}
_COLD = {code: _COLD_BY_NAME[name] for code, name in _NAMES.items() if name in _COLD_BY_NAME}
# Bytes that follow an opcode in any case.
_FIXED = {
    bytes([code]): size
    for size, codes in {
        1: b"KqhUC\x80\x82\x8a\x8c",
        2: b"M\x83",
        4: b"JrjXTB\x84\x8b",
        8: b"G\x8d\x8e\x95\x96",
    }.items()
    for code in codes
}
