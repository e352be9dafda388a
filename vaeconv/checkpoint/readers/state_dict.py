"""Find the state dicts, and all else, in the object that a torch file holds.

One of them is the state dict proper: the top itself, or what trainers put under ``state_dict``,
``model`` and the like. Its tensors keep their names. Other state dicts, of an EMA or of another
model, lie beside it; their tensors are named with the keys that lead to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from vaeconv.checkpoint.types import Sibling
from vaeconv.checkpoint.unpickle.interpreter import Placeholder, TensorRef
from vaeconv.common.ema_names import names_ema
from vaeconv.common.wording import plural
from vaeconv.errors import MalformedCheckpointError, NotACheckpointError

# Where trainers put the weights, in order of preference.
_WRAPPERS = ("state_dict", "model", "module")
_MAX_NESTING = 8
_MAX_WALK = 2_000_000
_MAX_NAMES = 200_000  # a full checkpoint with EMA and optimizer has some thousands
_MAX_VISITS = 20_000  # containers that are looked into for further state dicts
_MAX_BESIDE = 64


class StateTree(NamedTuple):
    """The state dicts inside an unpickled object.

    Attributes:
        wrapper: Keys that lead to the state dict proper.
        tensors: Name to tensor descriptor; the state dict proper, then those beside it.
        non_tensors: Name to kind, for entries of the state dict proper that are something else.
        read_siblings: Lists what lies beside the state dicts.
        beside: What the tensors of each further state dict begin with.
        nameless: Lists of tensors that an EMA without names left: keys that lead there, and how
            many tensors.
    """

    wrapper: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    non_tensors: Mapping[str, str]
    read_siblings: Callable[[], tuple[Sibling, ...]]
    beside: tuple[str, ...] = ()
    nameless: Mapping[str, int] = MappingProxyType({})


def find_state_dict(root: object, *, where: str) -> StateTree:
    """Find the state dict, and those beside it.

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
    flat, parts = _flatten(current, holders, where) if current is not None else ({}, [])
    tensors = {name: value for name, value in flat.items() if isinstance(value, TensorRef)}
    further = _Further(root, tuple(wrapper), {id(part) for part in parts}, tensors)
    if not tensors:
        raise _no_tensors(root, further.nameless, where)
    non_tensors = {
        name: describe(value)
        for name, value in flat.items()
        if not isinstance(value, TensorRef) and id(value) not in further.taken
    }
    return StateTree(
        tuple(wrapper),
        tensors,
        non_tensors,
        lambda: tuple(
            _measure(name, value, further.taken)
            for name, value in beside
            if id(value) not in further.taken
        ),
        tuple(further.prefixes),
        further.nameless,
    )


def _no_tensors(root: object, nameless: Mapping[str, int], where: str) -> NotACheckpointError:
    if nameless:
        path, count = next(iter(nameless.items()))
        return NotACheckpointError(
            f"holds no tensors by name, but an EMA of {plural(count, 'tensor')} without names "
            f"({path})",
            where=where,
            hint=NAMELESS_HINT,
        )
    return NotACheckpointError(
        f"holds no tensors by name, but {describe(root)}",
        where=where,
        hint="a checkpoint is a dict of tensors, as saved from model.state_dict()",
    )


NAMELESS_HINT = (
    "torch_ema and diffusers' EMAModel store it so: in the training code copy it into the model "
    "(copy_to) and save model.state_dict()"
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
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _has_tensors(mapping: Mapping[object, object]) -> bool:
    return any(isinstance(value, TensorRef) for value in mapping.values())


class _TensorHolders:
    """Tells which dicts hold tensors; looks into each once, however often a file repeats it."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __contains__(self, value: object) -> bool:
        known = self._known.get(id(value))
        if known is None:
            mapping = as_mapping(value)
            known = self._known[id(value)] = mapping is not None and (
                "state_dict" in mapping
                or _has_tensors(mapping)
                or any(_has_tensors(as_mapping(mapping.get(key)) or {}) for key in _WRAPPERS)
            )
        return known


def _wrapper_key(current: Mapping[object, object], holders: _TensorHolders) -> str | None:
    if as_mapping(current.get("state_dict")) is not None:
        return "state_dict"
    if _has_tensors(current):
        return None
    nested = [key for key, value in current.items() if isinstance(key, str) and value in holders]
    for key in _WRAPPERS:
        if key in nested:
            return key
    raw = [key for key in nested if not names_ema(key)]
    if len(raw) == 1 and _has_emas(current, raw[0], nested):
        return raw[0]
    return nested[0] if len(nested) == 1 else None


def _has_emas(current: Mapping[object, object], raw: str, nested: list[str]) -> bool:
    """Whether all the others are EMAs of it, by their names: they share some."""
    own = as_mapping(current[raw]) or {}
    others = [as_mapping(current[key]) or {} for key in nested if key != raw]
    return all(not own.keys().isdisjoint(other) for other in others)


def _flatten(
    current: Mapping[object, object], holders: _TensorHolders, where: str
) -> tuple[dict[str, object], list[object]]:
    """Join names where parts of a model lie in dicts of their own (``{"vae": {...}, ...}``).

    Returns:
        Values by name, and the dicts that they lay in.
    """
    if _has_tensors(current):
        return {str(name): value for name, value in current.items()}, [current]
    flat: dict[str, object] = {}
    parts: list[object] = [current]
    for name, value in current.items():
        if value in holders:
            nested = as_mapping(value) or {}
            flat.update((f"{name}.{inner}", v) for inner, v in nested.items())
            parts.append(value)
        else:
            flat[str(name)] = value
        if len(flat) > _MAX_NAMES:
            raise MalformedCheckpointError(
                f"more than {_MAX_NAMES} entries in its state dict", where=where
            )
    return flat, parts


class _Further:
    """Finds the state dicts that are not the one proper, and adds their tensors.

    Nearest first and within bounds; what lies beyond them stays a sibling.

    Args:
        root: The whole object.
        wrapper: Keys that lead to the state dict proper.
        proper: Identities of the dicts that it is made of.
        tensors: Those of the state dict proper; the others are added.

    Attributes:
        prefixes: What the names of each begin with.
        taken: Identities of the dicts that were taken, the state dict proper's, too.
        nameless: Lists of tensors under a name of an EMA, and how many tensors they hold.
    """

    def __init__(
        self,
        root: object,
        wrapper: tuple[str, ...],
        proper: set[int],
        tensors: dict[str, TensorRef],
    ) -> None:
        self.prefixes: list[str] = []
        self.taken = set(proper)
        self.nameless: dict[str, int] = {}
        expanded: set[int] = set()
        queue: deque[tuple[tuple[str, ...], object]] = deque([((), root)])
        left = _MAX_VISITS
        while queue:
            path, value = queue.popleft()
            mapping = as_mapping(value)
            is_proper = path == wrapper or (
                path[:-1] == wrapper and id(value) in proper and mapping is not None
            )
            if mapping is not None and not is_proper and _looks_like_state(mapping):
                self._take(path, value, mapping, tensors)
            elif isinstance(value, (list, tuple)):
                count = sum(isinstance(item, TensorRef) for item in value)
                if count and names_ema(".".join(path)):
                    self.nameless[".".join(path)] = count
            # One dict under several keys is found under each, what lies in it only once.
            if len(path) < _MAX_NESTING and id(value) not in expanded:
                expanded.add(id(value))
                inside = list(islice(_children(value, mapping), left))
                left -= len(inside)
                queue.extend(((*path, name), inner) for name, inner in inside)

    def _take(
        self,
        path: tuple[str, ...],
        value: object,
        mapping: Mapping[object, object],
        tensors: dict[str, TensorRef],
    ) -> None:
        prefix = ".".join(path) + "."
        found = {
            f"{prefix}{name}": item for name, item in mapping.items() if isinstance(item, TensorRef)
        }
        is_free = tensors.keys().isdisjoint(found) and len(self.prefixes) < _MAX_BESIDE
        if is_free and len(tensors) + len(found) <= _MAX_NAMES:
            tensors.update(found)
            self.prefixes.append(prefix)
            self.taken.add(id(value))


def _looks_like_state(mapping: Mapping[object, object]) -> bool:
    """Whether there are parameters in it, and not the state of an optimizer."""
    return any(
        isinstance(value, TensorRef) and isinstance(name, str) and name.endswith("weight")
        for name, value in mapping.items()
    )


def _children(
    value: object, mapping: Mapping[object, object] | None
) -> Iterable[tuple[str, object]]:
    """Yield the containers in a container, under the keys or numbers that lead to them."""
    items: Iterable[tuple[object, object]] = ()
    if mapping is not None:
        items = mapping.items()
    elif isinstance(value, (list, tuple)) and len(value) <= _MAX_BESIDE:
        items = enumerate(value)
    for name, inner in items:
        if isinstance(inner, (dict, list, tuple, Placeholder)) and isinstance(
            name, (str, int, float)
        ):
            yield str(name), inner


def _measure(name: str, value: object, taken: set[int]) -> Sibling:
    tensors = list(_walk_tensors(value, taken))
    nbytes = sum(storage.numel * tensor.dtype.itemsize for tensor in tensors
                 for storage in (tensor.storage,))  # fmt: skip
    return Sibling(name, describe(value), len(tensors), nbytes)


def _walk_tensors(value: object, taken: set[int]) -> Iterator[TensorRef]:
    """Yield the tensors anywhere inside, each storage once; without recursion, bounded."""
    seen = set(taken)
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
