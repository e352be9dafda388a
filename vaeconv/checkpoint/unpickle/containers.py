"""Plain data that a pickle makes by calling names: containers, bytes, numbers, class instances."""

from __future__ import annotations

from struct import calcsize, unpack
from typing import Any

from vaeconv.checkpoint.unpickle.calls import Builder, Call, check_arity
from vaeconv.checkpoint.unpickle.policy import BUILTINS, COPYREG, NUMPY_MULTIARRAY, full_names
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder


def _mapping(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 0, 1)
    builder.count(1)
    if not args:
        return {}
    if type(args[0]) is dict:
        builder.count(len(args[0]))
        return dict(args[0])
    made: dict[object, object] = {}
    for pair in _elements(builder, name, args[0]):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise PickleFault(f"{name} gets something that is not pairs")
        builder.check_key(pair[0])
        made[pair[0]] = pair[1]
    return made


def _defaultdict(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    return _mapping(builder, name, args[1:])  # without the factory


def _elements(builder: Builder, name: str, source: Any) -> Any:
    if type(source) not in (list, tuple, set, frozenset):
        raise PickleFault(f"{name} gets a {type(source).__name__}")
    builder.count(len(source))
    return source


def _list(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 0, 2 if name == "collections.deque" else 1)
    builder.count(1)
    return list(_elements(builder, name, args[0])) if args else []


def _tuple(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 0, 1)
    builder.count(1)
    return tuple(_elements(builder, name, args[0])) if args else ()


def _set(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 0, 1)
    builder.count(1)
    elements = _elements(builder, name, args[0]) if args else ()
    for element in elements:
        builder.check_key(element)
    return frozenset(elements) if name.endswith("frozenset") else set(elements)


def _bytes(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if not args:
        return b""
    if type(args[0]) is bytes:
        return args[0]
    return _encode(builder, name, args)


def _encode(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        return builder.encode(args[0])
    return builder.refuse(name, args)  # a codec that runs code; a length, memory out of nothing


def _complex(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if len(args) == 2 and type(args[0]) is float and type(args[1]) is float:
        builder.count(1)
        return complex(*args)
    return builder.inert(name, args)


def _type(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    # type(None) is how NoneType is spelled; three arguments would make a class.
    if args == (None,):
        return builder.find("builtins", "NoneType")
    if len(args) == 1 and type(args[0]) is Placeholder and not args[0].is_object:
        if args[0].name.rpartition(".")[2] in ("Ellipsis", "NotImplemented"):
            return builder.inert(name, args)
    return builder.refuse(name, args)


_DICTS = full_names(BUILTINS, "dict")
_LISTS = full_names(BUILTINS, "list")


def _reconstructor(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 3, 3)
    cls, base, content = args
    made = builder.new(cls, () if content is None else (content,))
    # Protocols 0 and 1 hand over what a dict or list subclass holds; later ones put it in.
    if type(made) is Placeholder and type(base) is Placeholder:
        pairs: Any
        if type(content) is dict and base.name in _DICTS:
            pairs = content.items()
        elif type(content) is list and base.name in _LISTS:
            pairs = enumerate(content)
        else:
            return made
        builder.count(len(content))
        made.args, made.items = (), list(pairs)
    return made


def _newobj(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if not args:
        raise PickleFault(f"{name} gets no class")
    builder.count(len(args))
    return builder.new(args[0], args[1:])


def _newobj_ex(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 3, 3)
    cls, positional, keywords = args
    return builder.new(cls, (positional, keywords) if keywords else positional)


# Codes of numpy and of struct for the same number.
_SCALARS = dict(zip("f2 f4 f8 b1 i1 i2 i4 i8 u1 u2 u4 u8".split(), "efd?bhiqBHIQ", strict=True))


def _numpy_scalar(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if args and type(args[0]) is Placeholder and args[0].args[:1] in (("O",), ("O8",), ("O4",)):
        return builder.refuse(name, args)  # an object's own pickle, which numpy would load
    if len(args) == 2 and type(args[0]) is Placeholder and type(args[1]) is bytes:
        kind, state = args[0].args[:1], args[0].state
        code = _SCALARS.get(kind[0]) if kind and type(kind[0]) is str else None
        order = state[1] if type(state) is tuple and len(state) > 1 else "<"
        if code and args[0].name == "numpy.dtype" and len(args[1]) == calcsize(f"<{code}"):
            found: object = unpack((">" if order == ">" else "<") + code, args[1])[0]
            return found
    return builder.inert(name, args)


DATA_CALLS: dict[str, Call] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _list,
    "copyreg.__newobj_ex__": _newobj_ex,
    **dict.fromkeys(full_names(BUILTINS, "dict"), _mapping),
    **dict.fromkeys(full_names(BUILTINS, "list"), _list),
    **dict.fromkeys(full_names(BUILTINS, "tuple"), _tuple),
    **dict.fromkeys(full_names(BUILTINS, "set frozenset"), _set),
    **dict.fromkeys(full_names(BUILTINS, "bytes bytearray"), _bytes),
    **dict.fromkeys(full_names(BUILTINS, "complex"), _complex),
    **dict.fromkeys(full_names(BUILTINS, "type"), _type),
    **dict.fromkeys(full_names(COPYREG, "_reconstructor"), _reconstructor),
    **dict.fromkeys(full_names(COPYREG, "__newobj__"), _newobj),
    **dict.fromkeys(full_names(NUMPY_MULTIARRAY, "scalar"), _numpy_scalar),
}
"""Results of calls of the standard library's and numpy's names."""
