"""From the object that a torch file holds to its state dict, and to what else is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vaeconv.checkpoint.base import Sibling
from vaeconv.checkpoint.unpickle import Placeholder, TensorRef
from vaeconv.errors import MalformedCheckpointError, NotACheckpointError

# Where trainers put the weights, in order of preference.
_WRAPPERS = ("state_dict", "model", "module")
_MAX_NESTING = 8
_MAX_WALK = 2_000_000
_MAX_NAMES = 200_000  # a full checkpoint with EMA and optimizer has some thousands


class StateTree(NamedTuple):
    """The state dict inside an unpickled object.

    Attributes:
        wrapper: Keys that lead to it.
        tensors: Name to tensor descriptor.
        non_tensors: Name to kind, for entries that are something else.
        read_siblings: Lists what lies beside it.
    """

    wrapper: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    non_tensors: Mapping[str, str]
    read_siblings: Callable[[], tuple[Sibling, ...]]


def find_state_dict(root: object, *, where: str) -> StateTree:
    """Find the state dict: the top itself, or under ``state_dict``, ``model``, or a single key.

    Raises:
        NotACheckpointError: There are no tensors by name.
        MalformedCheckpointError: The wrapping never ends.
    """
    wrapper: list[str] = []
    beside: list[tuple[str, object]] = []
    holders = _TensorHolders()
    current = as_mapping(root)
    while current is not None:
        if len(wrapper) > _MAX_NESTING:
            raise MalformedCheckpointError(
                f"nested more than {_MAX_NESTING} deep under {'.'.join(wrapper[:3])}…", where=where
            )
        key = _wrapper_key(current, holders)
        if key is None:
            break
        beside += [(str(name), value) for name, value in current.items() if name != key]
        wrapper.append(key)
        current = as_mapping(current[key])
    flat = _flatten(current, holders, where) if current is not None else {}
    tensors = {name: value for name, value in flat.items() if isinstance(value, TensorRef)}
    if not tensors:
        raise NotACheckpointError(
            f"holds no tensors by name, but {describe(root)}",
            where=where,
            hint="a checkpoint is a dict of tensors, as saved from model.state_dict()",
        )
    non_tensors = {
        name: describe(value) for name, value in flat.items() if not isinstance(value, TensorRef)
    }
    return StateTree(
        tuple(wrapper),
        tensors,
        non_tensors,
        lambda: tuple(_measure(name, value) for name, value in beside),
    )


def as_mapping(value: object) -> Mapping[object, object] | None:
    """View a dict, or an object of a dict subclass that stayed inert, as a mapping."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Placeholder) and value.items:
        return dict(value.items)
    return None


def describe(value: object) -> str:
    """Name a value's kind for a message."""
    if isinstance(value, Placeholder):
        return value.name
    if isinstance(value, TensorRef):
        return "a tensor"
    if value is None:
        return "None"
    return f"a {type(value).__name__}"


class _TensorHolders:
    """Tells which dicts hold tensors; looks into each once, however often a file repeats it."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __contains__(self, value: object) -> bool:
        known = self._known.get(id(value))
        if known is None:
            mapping = as_mapping(value)
            known = self._known[id(value)] = mapping is not None and (
                "state_dict" in mapping or any(isinstance(v, TensorRef) for v in mapping.values())
            )
        return known


def _wrapper_key(current: Mapping[object, object], holders: _TensorHolders) -> str | None:
    if as_mapping(current.get("state_dict")) is not None:
        return "state_dict"
    if any(isinstance(value, TensorRef) for value in current.values()):
        return None
    nested = [key for key, value in current.items() if isinstance(key, str) and value in holders]
    for key in _WRAPPERS:
        if key in nested:
            return key
    return nested[0] if len(nested) == 1 else None


def _flatten(
    current: Mapping[object, object], holders: _TensorHolders, where: str
) -> dict[str, object]:
    """Join names where parts of a model lie in dicts of their own (``{"vae": {...}, ...}``)."""
    if any(isinstance(value, TensorRef) for value in current.values()):
        return {str(name): value for name, value in current.items()}
    flat: dict[str, object] = {}
    for name, value in current.items():
        if value in holders:
            nested = as_mapping(value) or {}
            flat.update((f"{name}.{inner}", v) for inner, v in nested.items())
        else:
            flat[str(name)] = value
        if len(flat) > _MAX_NAMES:
            raise MalformedCheckpointError(
                f"more than {_MAX_NAMES} entries in its state dict", where=where
            )
    return flat


def _measure(name: str, value: object) -> Sibling:
    tensors = list(_walk_tensors(value))
    nbytes = sum(storage.numel * tensor.dtype.itemsize for tensor in tensors
                 for storage in (tensor.storage,))  # fmt: skip
    return Sibling(name, describe(value), len(tensors), nbytes)


def _walk_tensors(value: object) -> Iterator[TensorRef]:
    """Yield the tensors anywhere inside, each storage once; without recursion, bounded."""
    seen: set[int] = set()
    storages: set[str] = set()
    queue: list[object] = [value]
    for _ in range(_MAX_WALK):
        if not queue:
            return
        item = queue.pop()
        if isinstance(item, TensorRef):
            if item.storage.key not in storages:
                storages.add(item.storage.key)
                yield item
            continue
        if not isinstance(item, (dict, list, tuple, set, frozenset, Placeholder)):
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, Placeholder):
            queue.extend((item.args, item.state, [pair[1] for pair in item.items]))
        else:
            queue.extend(item)
