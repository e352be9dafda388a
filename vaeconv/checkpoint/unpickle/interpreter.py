"""A pickle interpreter that cannot run anything.

It walks the opcodes itself. A name in the file is text to be judged, never an import; a call is
a lookup among our own builders; a tensor is a description of where its bytes are. Work and
memory are bounded, and nothing recurses on what the file says.
"""

from __future__ import annotations

from itertools import repeat
from struct import error as struct_error
from struct import unpack_from
from typing import NamedTuple

from vaeconv.checkpoint.unpickle.calls import Builder
from vaeconv.checkpoint.unpickle.containers import DATA_CALLS
from vaeconv.checkpoint.unpickle.machine import Machine, check_index
from vaeconv.checkpoint.unpickle.opcodes import ACTIONS, OPCODE_NAMES
from vaeconv.checkpoint.unpickle.policy import GlobalUse, Verdict
from vaeconv.checkpoint.unpickle.tensors import TENSOR_CALLS, make_storage
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder, StorageRef, TensorRef
from vaeconv.errors import MalformedCheckpointError, UnsafeCheckpointError

__all__ = ["Placeholder", "StorageRef", "TensorRef", "Unpickled", "unpickle"]

_STRIDE = 100_000  # opcodes between two looks at the slower bounds
_MAX_STRIDES = 100
_MAX_MARKS = 100_000  # honest ones nest as deep as the pickler recursed: some hundreds
_MAX_MEMO = 2_000_000
_CALLS = TENSOR_CALLS | DATA_CALLS


class Unpickled(NamedTuple):
    """Contents of a pickle.

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


def unpickle(
    data: bytes | bytearray | memoryview,
    *,
    where: str,
    salvage: bool = False,
    start: int = 0,
    is_legacy: bool = False,
) -> Unpickled:
    """Read one pickle without running anything.

    Args:
        data: Bytes that hold it, copied unless they are ``bytes``; what follows it is not
            looked at.
        where: File and entry, for messages.
        salvage: Put inert placeholders in place of unsafe names instead of refusing them.
        start: Where it begins.
        is_legacy: Whether its storages are described as in torch's format before 1.6.

    Raises:
        UnsafeCheckpointError: It refers to what does harm in an ordinary unpickler.
        MalformedCheckpointError: It breaks the rules of the format or one of our bounds.
    """
    data = bytes(data)
    builder = Builder(_CALLS, is_legacy=is_legacy)
    machine = Machine(data, start, builder)
    root = fault = None
    try:
        root = _run(machine)
    except PickleFault as error:
        fault = str(error)
    except struct_error:
        fault = "it ends too early"
    except IndexError:
        is_at_end = machine.pos >= len(data)
        fault = "it ends too early" if is_at_end else "takes more from the stack than there is"
    except KeyError:
        fault = "refers to a memo entry that does not exist"
    except UnicodeDecodeError:
        fault = "text is not UTF-8"
    # Also where it is broken: that a file is dangerous matters more.
    unsafe = {n: builder.reasons[n] for n, v in builder.verdicts.items() if v is Verdict.UNSAFE}
    if unsafe and not salvage:
        raise UnsafeCheckpointError(unsafe, where=where)
    if fault is not None:
        place = f"byte {machine.at}, {_name_opcode(data[machine.at : machine.at + 1])}"
        raise MalformedCheckpointError(f"broken pickle: {fault} ({place})", where=where)
    uses = tuple(GlobalUse(name, verdict) for name, verdict in builder.verdicts.items())
    return Unpickled(root, machine.pos, uses, builder.storages)


def _name_opcode(code: bytes) -> str:
    return OPCODE_NAMES.get(code[0], f"opcode 0x{code.hex()}") if code else "the end"


def _run(machine: Machine) -> object:
    """Run up to STOP and return the value."""
    # The opcodes that tensors are made of are inlined, the most frequent first.
    data, memo, marked, builder = machine.data, machine.memo, machine.marked, machine.builder
    stack, pos, at, made = machine.stack, machine.pos, machine.pos, 0
    try:
        for _ in repeat(None, _MAX_STRIDES):
            builder.count(made)
            made = 0
            if len(marked) > _MAX_MARKS or len(memo) > _MAX_MEMO:
                raise PickleFault("the pickle is too complex")
            for _ in repeat(None, _STRIDE):
                at = pos
                op = data[pos]
                pos += 1
                if op == 0x72:  # LONG_BINPUT
                    memo[check_index(unpack_from("<I", data, pos)[0])] = stack[-1]
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
                        raise PickleFault("its text ends too early")
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
                    stack[-1] = make_storage(builder, stack[-1])
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
                    if not stack:
                        raise PickleFault("stops without a value")
                    return stack.pop()
                else:
                    act = ACTIONS.get(op)
                    if act is None:
                        raise PickleFault("not an opcode")
                    machine.stack, machine.pos = stack, pos
                    act(machine)
                    stack, pos = machine.stack, machine.pos
        raise PickleFault("the pickle is too complex")
    finally:
        machine.at, machine.pos = at, pos
