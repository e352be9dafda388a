"""Torch's format before 1.6: five pickles in a row, then the storages.

Upstream: ``torch.serialization._legacy_save``. In order: a magic number, the protocol version,
facts about the machine, the object, the storage keys; then per key an element count (int64) and
the elements, both little endian whatever the facts say of the machine (``serialization.cpp``).
"""

from __future__ import annotations

from vaeconv.checkpoint.readers.state_dict import find_state_dict
from vaeconv.checkpoint.readers.torch_zip import MAX_PICKLE, check_storage_size, make_tensor
from vaeconv.checkpoint.source import ByteSource, read_bytes
from vaeconv.checkpoint.storage import PlainStorage
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.checkpoint.unpickle.interpreter import StorageRef, Unpickled, unpickle
from vaeconv.errors import MalformedCheckpointError, NotACheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_FIRST_READ = 1 << 20


def open_torch_legacy(source: ByteSource, *, salvage: bool) -> Checkpoint:
    """Open a torch file from before the zip format.

    Raises:
        UnsafeCheckpointError: A pickle names what is not plain data.
        MalformedCheckpointError: Pickles and storages contradict each other.
        NotACheckpointError: It is a pickle, but not torch's.
    """
    pickles = _read_pickles(source, salvage=salvage)
    _, _, _, top, key_list = pickles
    if not isinstance(key_list.root, list):
        raise MalformedCheckpointError("its storage keys are not a list", where=source.name)
    keys = [key for key in key_list.root if isinstance(key, str)]
    if len(keys) != len(key_list.root):
        raise MalformedCheckpointError("a storage key is not text", where=source.name)
    tree = find_state_dict(top.root, where=source.name)
    storages = _locate_storages(source, top.storages, keys, key_list.end)
    tensors = {}
    for name, ref in tree.tensors.items():
        storage = storages.get(ref.storage.key)
        if storage is None:
            raise MalformedCheckpointError(
                f"tensor {name} needs storage {ref.storage.key}, which the file does not list",
                where=source.name,
            )
        check_storage_size(ref.storage, storage, where=source.name)
        tensors[name] = make_tensor(name, ref, storage, False, source.name)
    return Checkpoint(
        name=source.name,
        container="torch legacy",
        tensors=tensors,
        sources=(source,),
        wrapper=tree.wrapper,
        non_tensors=tree.non_tensors,
        globals=tuple(
            (use.name, use.verdict.value) for pickle in pickles for use in pickle.globals
        ),
        read_siblings=tree.read_siblings,
        beside=tree.beside,
        nameless=tree.nameless,
    )


def _read_pickles(source: ByteSource, *, salvage: bool) -> list[Unpickled]:
    """Read the five pickles; how long they are shows only by reading them."""
    size = min(source.size, _FIRST_READ)
    while True:
        data = bytes(read_bytes(source, 0, size))  # once, and not in each of five unpicklings
        try:
            return _parse_pickles(source, data, salvage=salvage)
        except MalformedCheckpointError:
            if size >= min(source.size, MAX_PICKLE):
                raise
            size = min(source.size, MAX_PICKLE, size * 8)


def _parse_pickles(source: ByteSource, data: bytes, *, salvage: bool) -> list[Unpickled]:
    pickles: list[Unpickled] = []
    position = 0
    for part in ("magic number", "protocol version", "machine facts", "object", "storage keys"):
        where = f"{source.name} ({part})"
        pickles.append(unpickle(data, where=where, salvage=salvage, start=position, is_legacy=True))
        position = pickles[-1].end
        if len(pickles) == 1 and pickles[0].root != _MAGIC:
            raise NotACheckpointError(
                "a plain pickle, not a file that torch.save wrote", where=source.name
            )
    if pickles[1].root != _PROTOCOL:
        raise MalformedCheckpointError("its protocol version is unknown", where=source.name)
    return pickles


def _locate_storages(
    source: ByteSource,
    refs: dict[str, StorageRef],
    keys: list[str],
    position: int,
) -> dict[str, PlainStorage]:
    storages: dict[str, PlainStorage] = {}
    for key in keys:
        ref = refs.get(key)
        if ref is None:  # how long it is depends on its type, and so where the next one begins
            raise MalformedCheckpointError(
                f"storage {key} is listed, but the pickle gives it no known type",
                where=source.name,
            )
        if key in storages:
            raise MalformedCheckpointError(f"storage {key} is listed twice", where=source.name)
        count = int.from_bytes(read_bytes(source, position, 8), "little", signed=True)
        itemsize = ref.dtype.itemsize if ref.dtype else 1
        size = count * itemsize
        if count != ref.numel or position + 8 + size > source.size:
            raise MalformedCheckpointError(
                f"storage {key} states {count} elements, the pickle {ref.numel}"
                if count != ref.numel
                else f"truncated: storage {key} ends at byte {position + 8 + size}, "
                f"the file at {source.size}",
                where=source.name,
                hint="download or copy it again",
            )
        storages[key] = PlainStorage(source, position + 8, size, f"storage {key}")
        position += 8 + size
    return storages
