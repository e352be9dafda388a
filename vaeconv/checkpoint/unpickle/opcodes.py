"""The opcodes of pickle: their names, and what most of them do.

The few that tensors are made of are in the loop that runs them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vaeconv.checkpoint.unpickle.machine import Machine, check_index
from vaeconv.checkpoint.unpickle.tensors import make_storage
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder

# Each word is the opcode's character and its name; from 0x80 on they are in order.
OPCODE_NAMES = {
    ord(word[0]): word[1:]
    for word in "(MARK .STOP 0POP 1POP_MARK 2DUP FFLOAT IINT JBININT KBININT1 LLONG MBININT2 "
    "NNONE PPERSID QBINPERSID RREDUCE SSTRING TBINSTRING USHORT_BINSTRING VUNICODE XBINUNICODE "
    "aAPPEND bBUILD cGLOBAL dDICT eAPPENDS gGET hBINGET iINST jLONG_BINGET lLIST oOBJ pPUT "
    "qBINPUT rLONG_BINPUT sSETITEM tTUPLE uSETITEMS }EMPTY_DICT ]EMPTY_LIST )EMPTY_TUPLE "
    "GBINFLOAT BBINBYTES CSHORT_BINBYTES".split()
} | dict(
    enumerate(
        "PROTO NEWOBJ EXT1 EXT2 EXT4 TUPLE1 TUPLE2 TUPLE3 NEWTRUE NEWFALSE LONG1 LONG4 "
        "SHORT_BINUNICODE BINUNICODE8 BINBYTES8 EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX "
        "STACK_GLOBAL MEMOIZE FRAME BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER".split(),
        0x80,
    )
)


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.stack = m.marked.pop()


def _integer(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line, 0)


def _python2_text(raw: bytes) -> str | bytes:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        return raw


_ESCAPE = rb"(?s)\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))"
_LETTERS = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes([int(match[1], 16)])
    if match[2]:
        return bytes([int(match[2], 8) & 0xFF])
    return bytes([_LETTERS[match[3][0]]]) if match[3][0] in _LETTERS else match[0]


def _string(m: Machine) -> None:
    """Push a Python 2 string, written with quotes and escapes."""
    line = m.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PickleFault("a string lacks its quotes")
    m.push(_python2_text(re.sub(_ESCAPE, _unescaped, line[1:-1])))


def _dict(m: Machine) -> None:
    items = m.since_mark()
    m.push_new({})
    m.put_items(items)


def _put(m: Machine) -> None:
    m.memo[check_index(m.number(int))] = m.stack[-1]


def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Placeholder:
        if m.builder.change(target):
            target.state = state
    elif type(target) is not dict:  # what torch and others hang on an OrderedDict is dropped
        raise PickleFault(f"sets the state of a {type(target).__name__}")


def _stack_global(m: Machine) -> None:
    name = m.stack.pop()
    m.stack[-1] = m.builder.find(m.stack[-1], name)


def _inst(m: Machine) -> None:
    cls = m.find(m.line(), m.line())
    m.push(m.builder.call(cls, tuple(m.since_mark())))


def _obj(m: Machine) -> None:
    cls, *args = m.since_mark() or [None]
    m.push(m.builder.call(cls, tuple(args)))


def _newobj(m: Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.builder.new(m.stack[-1], args)


def _newobj_ex(m: Machine) -> None:
    keywords = m.stack.pop()
    args = m.stack.pop()
    m.stack[-1] = m.builder.new(m.stack[-1], (args, keywords) if keywords else args)


def _extension(m: Machine, form: str) -> None:
    # A name by its number in the running Python's registry, which may be anything.
    name = f"copyreg extension {m.fixed(form)}"
    m.builder.mark(name, "is a name by number, which can be any")
    m.push(Placeholder(name))


def _proto(m: Machine) -> None:
    version = m.fixed("<B")
    if version > 5:
        raise PickleFault(f"protocol {version} does not exist")


def _frame(m: Machine) -> None:
    size = m.fixed("<Q")
    if size > len(m.data) - m.pos:
        raise PickleFault(f"a frame of {size} bytes is announced, and it ends before")


def _buffer(m: Machine) -> None:
    raise PickleFault("out-of-band buffers have no place in a file")


_ACTIONS: dict[str, Callable[[Machine], object]] = {
    "POP": _pop,
    "POP_MARK": Machine.since_mark,
    "DUP": lambda m: m.push(m.stack[-1]),
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "INT": lambda m: m.push(m.number(_integer)),
    "LONG": lambda m: m.push(m.number(lambda line: int(line.removesuffix(b"L"), 0))),
    "FLOAT": lambda m: m.push(m.number(float)),
    "BINFLOAT": lambda m: m.push(m.fixed(">d")),
    "LONG1": lambda m: m.push(m.long("<B")),
    "LONG4": lambda m: m.push(m.long("<i")),
    "STRING": _string,
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
    "BUILD": _build,
    "GLOBAL": lambda m: m.push(m.find(m.line(), m.line())),
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "NEWOBJ": _newobj,
    "NEWOBJ_EX": _newobj_ex,
    "EXT1": lambda m: _extension(m, "<B"),
    "EXT2": lambda m: _extension(m, "<H"),
    "EXT4": lambda m: _extension(m, "<i"),
    "PERSID": lambda m: m.push(make_storage(m.builder, str(m.line(), "utf-8"))),
    "GET": lambda m: m.push(m.memo[m.number(int)]),
    "PUT": _put,
    "PROTO": _proto,
    "FRAME": _frame,
    "NEXT_BUFFER": _buffer,
    "READONLY_BUFFER": _buffer,
}
ACTIONS = {code: _ACTIONS[name] for code, name in OPCODE_NAMES.items() if name in _ACTIONS}
