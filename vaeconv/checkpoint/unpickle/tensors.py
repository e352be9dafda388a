"""Torch's part of a pickle: storages, and the functions that rebuild tensors from them."""

from __future__ import annotations

from typing import Any

from vaeconv.checkpoint.dtypes import BY_CODE, DType
from vaeconv.checkpoint.unpickle.calls import Builder, Call, check_arity, refuse_call, refuse_memory
from vaeconv.checkpoint.unpickle.policy import (
    STORAGE_NAMES,
    TENSOR_CLASSES,
    UNSUPPORTED_TENSORS,
    full_names,
)
from vaeconv.checkpoint.unpickle.values import PickleFault, Placeholder, StorageRef, TensorRef

_U8 = BY_CODE["U8"]
_LIMIT = 1 << 63
_MAX_DIMS = 64


def make_storage(builder: Builder, pid: Any) -> object:
    """Give the storage that a persistent id refers to; each format has one form of these."""
    if type(pid) is not tuple or not pid or type(pid[0]) is not str:
        raise PickleFault("a persistent id is not that of a torch storage")
    if builder.is_legacy and pid[0] == "module" and len(pid) == 4:
        return pid[1]  # the class of a module, beside its source text
    if pid[0] != "storage" or len(pid) != (6 if builder.is_legacy else 5):
        raise PickleFault("a persistent id is not that of a torch storage")
    _, kind, key, location, numel = pid[:5]
    if pid[5:] not in ((), (None,)):
        raise PickleFault("a storage is a view of another one, as torch before 0.4 wrote them")
    if type(kind) is not Placeholder or type(key) is not str or type(location) is not str:
        raise PickleFault("a persistent id has parts of wrong types")
    if type(numel) is not int or not 0 <= numel < _LIMIT:
        raise PickleFault("a storage has an impossible size")
    if kind.is_object or kind.name not in STORAGE_NAMES:
        raise PickleFault(f"{kind.name} is no type of storage")
    dtype = STORAGE_NAMES[kind.name]
    if builder.is_legacy and dtype is None:
        raise PickleFault("an untyped storage, which this format does not have")
    builder.count(1)
    ref = builder.storages.setdefault(key, StorageRef(key, dtype, numel, location))
    if ref.dtype is not dtype or ref.numel != numel:
        raise PickleFault(f"storage {key} is described twice, and differently")
    return ref


def _describe(builder: Builder, args: tuple[Any, ...], dtype: Any = None) -> object:
    """Describe a tensor; what cannot be described gets a placeholder that says why."""
    storage, offset, shape, stride = args[:4]
    for sizes in (shape, stride):
        if type(sizes) not in (tuple, list) or len(shape) != len(sizes):
            raise PickleFault("shape and strides of a tensor are not tuples of one length")
    if len(shape) > _MAX_DIMS:
        raise PickleFault(f"a tensor has {len(shape)} dimensions")
    for number in (offset, *shape, *stride):
        if type(number) is not int or not 0 <= number < _LIMIT:
            raise PickleFault("offset, shape or strides of a tensor are not valid integers")
    if type(storage) is not StorageRef:
        raise PickleFault(f"a tensor has a {type(storage).__name__} and not a storage")
    dtype = dtype or storage.dtype or _U8
    if type(dtype) is Placeholder:
        return builder.inert(f"torch.Tensor ({dtype.name})", args)
    if not dtype.code:
        return builder.inert(f"torch.Tensor (torch.{dtype.torch_name})", args)
    builder.count(1)
    return TensorRef(storage, dtype, offset, tuple(shape), tuple(stride))


def _check_metadata(found: object, metadata: Any, args: tuple[Any, ...]) -> object:
    if not metadata:
        return found
    if type(metadata) is not dict:
        raise PickleFault("a tensor's metadata is not a dict")
    # The bytes are not the values then: a negation or conjugation is still to be done.
    for bit in ("conj", "neg"):
        if metadata.get(bit):
            return Placeholder(f"torch.Tensor ({bit})", args)
    return found


def _check_flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise PickleFault(f"{name} gets a {type(value).__name__} and not a bool for requires_grad")


def _rebuild_tensor(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 4, 4)
    return _describe(builder, args)


def _rebuild_tensor_v2(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 6, 7)
    _check_flag(name, args[4])
    found = _describe(builder, args)
    return _check_metadata(found, args[6], args) if len(args) == 7 else found


def _rebuild_tensor_v3(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 7, 8)
    _check_flag(name, args[4])
    dtype = args[6]
    if type(dtype) is not DType and type(dtype) is not Placeholder:
        raise PickleFault(f"a tensor has a {type(dtype).__name__} and not a dtype")
    found = _describe(builder, args, dtype)
    return _check_metadata(found, args[7], args) if len(args) == 8 else found


def _rebuild_parameter(_: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 2, 4)
    if type(args[0]) not in (TensorRef, Placeholder):
        raise PickleFault(f"{name} gets a {type(args[0]).__name__} and not a tensor")
    _check_flag(name, args[1])
    return args[0]


def _parameter(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if not args or type(args[0]) is not TensorRef:
        return refuse_memory(builder, name, args)
    return _rebuild_parameter(builder, name, (*args, True)[:2])


def _rebuild_unsupported(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    return builder.inert(f"torch.Tensor ({UNSUPPORTED_TENSORS[name]})", args)


def _rebuild_from_type(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 4, 4)
    function, kind, inner, _ = args
    if type(kind) is not Placeholder or kind.is_object or type(inner) is not tuple:
        raise PickleFault(f"{name} gets arguments of wrong types")
    if type(function) is not Placeholder or function.is_object:
        raise PickleFault(f"{name} gets no function")
    # None but these, in particular not this one again: the file would control our recursion.
    rebuild = _REBUILD.get(function.name, refuse_call)
    return rebuild(builder, function.name, inner)


def _first(_: Builder, name: str, args: tuple[Any, ...]) -> object:
    check_arity(name, args, 1, 1)
    if type(args[0]) not in (tuple, str):
        raise PickleFault(f"{name} gets a {type(args[0]).__name__}")
    return args[0]


_REBUILD: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    **dict.fromkeys(UNSUPPORTED_TENSORS, _rebuild_unsupported),
}

TENSOR_CALLS: dict[str, Call] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.tensor._rebuild_from_type": _rebuild_from_type,
    "torch.tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _first,
    "torch.torch_version.TorchVersion": _first,
    # Uninitialised memory: what was in the process, published as weights.
    **dict.fromkeys({"torch.Tensor", *STORAGE_NAMES, *TENSOR_CLASSES}, refuse_memory),
    **dict.fromkeys(full_names("torch.nn torch.nn.parameter", "Parameter Buffer"), _parameter),
}
"""Results of calls of torch's names."""
