"""Torch's zip format (torch 1.6 and later): one pickle, and one raw record per storage.

Written by ``torch.save``; ``caffe2/serialize/inline_container.cc`` is the upstream writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.readers.run_facts import read_run_facts
from vaeconv.checkpoint.readers.state_dict import find_state_dict
from vaeconv.checkpoint.readers.zip_directory import ZipEntry
from vaeconv.checkpoint.source import ByteSource
from vaeconv.checkpoint.storage import Storage
from vaeconv.checkpoint.tensor import Tensor, make_view
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.checkpoint.unpickle.interpreter import StorageRef, TensorRef, unpickle
from vaeconv.errors import MalformedCheckpointError, NotACheckpointError

# 2000 tensors make a pickle of 200 kB; a larger one is a bomb or holds data as Python lists.
MAX_PICKLE = 64 << 20
_SMALL = 64
_MAX_VERSION = 10  # kMaxSupportedFileFormatVersion, caffe2/serialize/versions.h
_PICKLE = "data.pkl"


def find_pickle(entries: Iterable[str]) -> str | None:
    """Return the prefix of the records where the members are those of a torch file."""
    found = [
        n for n in entries if n == _PICKLE or (n.endswith("/" + _PICKLE) and n.count("/") == 1)
    ]
    return found[0][: -len(_PICKLE)] if len(found) == 1 else None


def open_torch_zip(
    source: ByteSource, entries: Mapping[str, ZipEntry], prefix: str, *, salvage: bool
) -> Checkpoint:
    """Open a torch zip file.

    Args:
        source: The file.
        entries: Its directory.
        prefix: Folder of the records, as :func:`find_pickle` returned it.
        salvage: Whether to read past names that are unsafe.

    Raises:
        UnsafeCheckpointError: The pickle names what is not plain data.
        MalformedCheckpointError: Pickle, records and directory contradict each other.
        NotACheckpointError: It is a TorchScript archive, or holds no tensors.
    """
    if f"{prefix}constants.pkl" in entries:
        raise NotACheckpointError(
            "a TorchScript archive: a program, not a checkpoint",
            where=source.name,
            hint="save model.state_dict() with torch.save",
        )
    for name in entries:
        if not name.startswith(prefix):
            raise MalformedCheckpointError(
                f"{name} is not in the one folder that a torch file has",
                where=source.name,
                hint="save it again with torch.save",
            )
    _check_version(source, entries, prefix)
    _check_alignment(source, entries, prefix)
    where = f"{source.name} ({prefix}{_PICKLE})"
    pickled = entries[prefix + _PICKLE].read(MAX_PICKLE)
    result = unpickle(pickled, where=where, salvage=salvage)
    tree = find_state_dict(result.root, where=source.name)
    is_swapped = _read_byteorder(source, entries, prefix) == b"big"

    def storage_of(ref: StorageRef, name: str) -> Storage:
        entry = entries.get(f"{prefix}data/{ref.key}")
        if entry is None:
            raise MalformedCheckpointError(
                f"tensor {name} needs the record {prefix}data/{ref.key}, which is not there",
                where=source.name,
            )
        check_storage_size(ref, entry, where=source.name)
        return entry

    return Checkpoint(
        name=source.name,
        container="torch zip",
        tensors={
            name: make_tensor(name, ref, storage_of(ref.storage, name), is_swapped, source.name)
            for name, ref in tree.tensors.items()
        },
        sources=(source,),
        wrapper=tree.wrapper,
        non_tensors=tree.non_tensors,
        globals=tuple((use.name, use.verdict.value) for use in result.globals),
        read_siblings=tree.read_siblings,
        beside=tree.beside,
        nameless=tree.nameless,
        run_facts=read_run_facts(result.root),
    )


def make_tensor(
    name: str, ref: TensorRef, storage: Storage, is_swapped: bool, where: str
) -> Tensor:
    """Join what the pickle says of a tensor with the record that holds it."""
    return make_view(
        name,
        ref.dtype,
        storage,
        offset=ref.offset,
        shape=ref.shape,
        stride=ref.stride,
        is_swapped=is_swapped,
        where=where,
    )


def check_storage_size(ref: StorageRef, storage: Storage, *, where: str) -> None:
    """Check that a record is as long as the pickle says.

    Raises:
        MalformedCheckpointError: It is not; reading on would take another tensor's bytes.
    """
    itemsize = ref.dtype.itemsize if isinstance(ref.dtype, DType) else 1
    if storage.size != ref.numel * itemsize:
        raise MalformedCheckpointError(
            f"record {storage.name} holds {storage.size} bytes, "
            f"the pickle says {ref.numel * itemsize}",
            where=where,
        )


def _check_version(source: ByteSource, entries: Mapping[str, ZipEntry], prefix: str) -> None:
    entry = entries.get(f"{prefix}.data/version") or entries.get(f"{prefix}version")
    version = bytes(entry.read(_SMALL)).strip() if entry else b""
    if not version.isdigit() or not 1 <= int(version) <= _MAX_VERSION:
        said = f"says {version.decode('latin-1')!r}" if entry else "is not there"
        raise MalformedCheckpointError(
            f"its version record {said}, not 1 to {_MAX_VERSION}",
            where=source.name,
            hint="save it again with torch.save",
        )


def _check_alignment(source: ByteSource, entries: Mapping[str, ZipEntry], prefix: str) -> None:
    entry = entries.get(f"{prefix}.storage_alignment")
    try:
        int(bytes(entry.read(_SMALL))) if entry else None
    except ValueError as error:
        raise MalformedCheckpointError(
            "its storage_alignment record is no number", where=source.name
        ) from error


def _read_byteorder(source: ByteSource, entries: Mapping[str, ZipEntry], prefix: str) -> bytes:
    entry = entries.get(f"{prefix}byteorder")
    order = bytes(entry.read(_SMALL)) if entry else b"little"
    if order not in (b"little", b"big"):
        raise MalformedCheckpointError("its byteorder record is unknown", where=source.name)
    return order
