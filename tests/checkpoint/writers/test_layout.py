"""Torch files as they are laid out, against ``zipfile`` and ``torch.load``."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.slow import slow_row
from vaeconv.checkpoint.dtypes import BY_CODE, BY_OPTION, DTYPES, DType
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.safetensors import open_safetensors
from vaeconv.checkpoint.source import FileSource
from vaeconv.checkpoint.writers import layout as layout_out
from vaeconv.checkpoint.writers.layout import (
    OutputFile,
    Spec,
    lay_out_safetensors,
    lay_out_torch_zip,
    pickle_state_dict,
)
from vaeconv.weights.execute import Copied, copy_rows
from vaeconv.weights.options import CopyOptions
from vaeconv.weights.plan import Row

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WIDE = (1 << 32) - 1  # from here on a number does not fit the short fields
State = dict[str, torch.Tensor]

# torch has no storage class for the others.
SAVED = [dtype for dtype in DTYPES if dtype.storage]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ckpt"


def specs_of(state: Mapping[str, torch.Tensor]) -> list[Spec]:
    known = {getattr(torch, dtype.torch_name): dtype for dtype in SAVED}
    return [(name, known[value.dtype], tuple(value.shape)) for name, value in state.items()]


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def make_tensor(dtype: DType, shape: Sequence[int], seed: int) -> torch.Tensor:
    torch_dtype = getattr(torch, dtype.torch_name)
    data = bytearray(random.Random(seed).randbytes(math.prod(shape) * dtype.itemsize))
    if dtype.code == "BOOL":
        data = bytearray(byte & 1 for byte in data)
    if not data:
        return torch.empty(tuple(shape), dtype=torch_dtype)
    return torch.frombuffer(data, dtype=torch_dtype).reshape(tuple(shape))


def fill(file: OutputFile, state: Mapping[str, torch.Tensor]) -> bytes:
    """Fill the segments in order, as any writer could."""
    out, crcs = bytearray(), {}
    for segment in file.segments:
        assert segment.offset == len(out)
        if segment.literal is not None:
            data = segment.literal
        elif segment.tensor is not None:
            data = raw(state[segment.tensor])
            crcs[segment.tensor] = zlib.crc32(data)
        else:
            assert segment.deferred is not None
            data = segment.deferred(crcs)
        assert segment.size == len(data) > 0
        out += data
    assert file.size == len(out)
    return bytes(out)


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].stride() == tensor.stride()
        assert raw(found[name]) == raw(tensor), name


class Local(NamedTuple):
    """A local header as it stands in the file."""

    flags: int
    method: int
    crc: int
    packed: int
    size: int
    data_at: int


def local_header(data: bytes, at: int) -> Local:
    magic, _, flags, method, _, _, crc, packed, size, name, extra = struct.unpack_from(
        "<4s5H3I2H", data, at
    )
    assert magic == b"PK\3\4"
    return Local(flags, method, crc, packed, size, at + 30 + name + extra)


def assert_readable(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Whether torch and zipfile read the file, and read from it what was put in."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as theirs:
        assert theirs.testzip() is None
        infos = theirs.infolist()
        assert theirs.read("archive/version") == b"3\n"
        assert theirs.read("archive/byteorder") == b"little"
        for index, tensor in enumerate(state.values()):
            assert theirs.read(f"archive/data/{index}") == raw(tensor)
    for info in infos:
        local = local_header(data, info.header_offset)
        assert local.data_at % 64 == 0
        assert local.method == info.compress_type == zipfile.ZIP_STORED
        assert local.flags == info.flag_bits
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        # Sizes and CRC follow the data.
        after = local.data_at + info.file_size
        assert struct.unpack_from("<4s3I", data, after) == (
            (b"PK\7\x08", info.CRC, info.file_size, info.file_size)
        )
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert list(loaded) == ["state_dict"]
        assert_same(loaded["state_dict"], state)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
STATES = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(SAVED), st.lists(st.integers(0, 4), max_size=4)), max_size=8
).map(
    lambda specs: {name: make_tensor(*spec, seed=i) for i, (name, spec) in enumerate(specs.items())}
)
MANY = {
    **{dtype.code: make_tensor(dtype, (3, 5), 7) for dtype in SAVED},
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "empty inside": torch.empty(2, 0, 3, dtype=torch.float16),
    "": torch.tensor([1, 2]),
    "name ü–\U0001f600": torch.ones(2),
    "x" * 300: torch.ones(1),
}


@given(state=STATES)
@settings(QUIET, max_examples=100)
@example(state=MANY)
@example(state={})
def test_filled_segments_are_read_by_torch_and_zipfile(path: Path, state: State) -> None:
    path.write_bytes(fill(lay_out_torch_zip(specs_of(state)), state))
    assert_readable(path, state)


@given(state=STATES)
@settings(QUIET, max_examples=50)
@example(state=MANY)
def test_pickle_is_well_formed(state: State) -> None:
    """Pickletools checks stack, marks and opcodes without running anything."""
    pickletools.dis(pickle_state_dict(specs_of(state)), io.StringIO())


HASH_BOTH = """
import hashlib
from vaeconv.checkpoint.dtypes import DTYPES
from vaeconv.checkpoint.writers.layout import lay_out_safetensors, lay_out_torch_zip
specs = [(f"{d.code}.{i}", d, (i, 3)) for d in DTYPES if d.storage for i in range(9)]
crcs = {name: 7 for name, _, _ in specs}
for lay_out in (lay_out_torch_zip, lay_out_safetensors):
    for s in lay_out(specs).segments:
        print(s.offset, s.size, s.literal, s.tensor, s.deferred and s.deferred(crcs))
"""


def test_layout_is_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", HASH_BOTH],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 10_000


@given(state=STATES, seed=st.integers(0, 100))
@settings(QUIET, max_examples=30)
def test_order_of_a_state_dict_is_kept(path: Path, state: State, seed: int) -> None:
    shuffled = dict(random.Random(seed).sample(list(state.items()), len(state)))
    path.write_bytes(fill(lay_out_torch_zip(specs_of(shuffled)), shuffled))
    assert list(torch.load(path, weights_only=True)["state_dict"]) == list(shuffled)


def write(path: Path, rows: Sequence[Row], file: OutputFile, options: CopyOptions) -> Copied:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        return copy_rows(fd, file, rows, options, where=str(path))
    finally:
        os.close(fd)


# Tensors that begin, end and lie across the pieces of 1 MiB that are copied at once.
LARGE: State = {
    "a": make_tensor(BY_CODE["F32"], (700, 1024), 1).nan_to_num(0.0),
    "b": make_tensor(BY_CODE["F16"], (3,), 2).nan_to_num(0.0),
    "c": torch.empty(0),
    "d": torch.linspace(-9, 9, 1_000_003, dtype=torch.bfloat16),
    "e": torch.tensor(0.5, dtype=torch.float64),
    "f": torch.linspace(-5, 5, 300_001).half(),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("container", ["torch zip", "safetensors"])
@pytest.mark.parametrize("dtype", ["keep", "fp32", "fp16", "bf16"])
def test_copied_rows_are_read_by_torch_and_zipfile(
    path: Path, dtype: str, container: str, check: bool
) -> None:
    state = {
        name: tensor.float().clamp(-6e4, 6e4).to(tensor.dtype) for name, tensor in LARGE.items()
    }
    source = path.with_suffix(".safetensors")
    save_file(state, source)
    expected = {
        name: tensor if dtype == "keep" else tensor.to(getattr(torch, BY_OPTION[dtype].torch_name))
        for name, tensor in state.items()
    }
    with open_checkpoint(source) as checkpoint:
        rows = [
            Row(name, checkpoint.tensors[name], shape, target)
            for name, target, shape in specs_of(expected)
        ]
        lay_out = lay_out_torch_zip if container == "torch zip" else lay_out_safetensors
        file = lay_out(specs_of(expected))
        copied = write(path, rows, file, CopyOptions(check=check))
    if container == "torch zip":
        assert path.read_bytes() == fill(file, expected)
        assert_readable(path, expected)
    else:
        save_file(expected, source, metadata={"format": "pt"})
        assert path.read_bytes() == source.read_bytes()
        assert_same({name: load_file(path)[name] for name in expected}, expected)
    assert copied.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest() if check else None)


@given(state=STATES, data=st.data())
@settings(QUIET, max_examples=60)
def test_pieces_cover_any_range_once(state: State, data: st.DataObject) -> None:
    file = lay_out_torch_zip(specs_of(state))
    whole = fill(file, state)
    start = data.draw(st.integers(0, file.size))
    end = data.draw(st.integers(start, file.size))
    found, at = bytearray(), 0
    starts = {id(segment): segment.offset for segment in file.segments}
    for segment, inside, place, size in file.pieces(start, end):
        assert place == at
        found += whole[starts[id(segment)] + inside :][:size]
        at += size
    assert bytes(found) == whole[start:end]


# --- beyond 4 GiB and 65535 records, without writing them ---


def write_sparse(path: Path, file: OutputFile, crcs: Mapping[str, int]) -> None:
    """Write all but the tensors, which stay holes."""
    with path.open("wb") as out:
        for segment in file.segments:
            out.seek(segment.offset)
            if segment.literal is not None:
                out.write(segment.literal)
            elif segment.deferred is not None:
                out.write(segment.deferred(crcs))
        assert out.tell() == file.size


def tensor_segments(file: OutputFile) -> dict[str, tuple[int, int]]:
    return {s.tensor: (s.offset, s.size) for s in file.segments if s.tensor is not None}


def assert_sparse_is_readable(
    path: Path, sizes: Mapping[str, int], marks: Mapping[str, bytes]
) -> list[zipfile.ZipInfo]:
    """Lay out bytes of these sizes, write the last ones of each, and ask who reads them."""
    specs: list[Spec] = [(name, BY_CODE["U8"], (size,)) for name, size in sizes.items()]
    file = lay_out_torch_zip(specs)
    crcs = {name: 1000 + i for i, name in enumerate(sizes)}
    write_sparse(path, file, crcs)
    places = tensor_segments(file)
    with path.open("r+b") as out:
        for name, mark in marks.items():
            out.seek(sum(places[name]) - len(mark))
            out.write(mark)
    with zipfile.ZipFile(path) as theirs:
        infos = theirs.infolist()
        records = {info.filename: info for info in infos}
        for index, (name, size) in enumerate(sizes.items()):
            info = records[f"archive/data/{index}"]
            assert (info.file_size, info.compress_size) == (size, size)
            assert info.CRC == (crcs[name] if size else 0)
            with path.open("rb") as data:
                data.seek(info.header_offset)
                local = local_header(data.read(200), 0)
                data_at = info.header_offset + local.data_at
                assert data_at % 64 == 0
                assert places.get(name, (data_at, 0)) == (data_at, size)
                # The sizes in the descriptor are wide where they have to be.
                data.seek(data_at + size)
                form = "<4sIQQ" if size >= WIDE else "<4s3I"
                found = struct.unpack(form, data.read(struct.calcsize(form)))
                assert found == (b"PK\7\x08", info.CRC, size, size)
        for small in ("data.pkl", "version", "byteorder", ".format_version"):
            assert theirs.read(f"archive/{small}")
    loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    with open_checkpoint(path) as checkpoint:
        for name, mark in marks.items():
            assert bytes(loaded[name][-len(mark) :].numpy()) == mark
            tail = bytearray(len(mark))
            checkpoint.tensors[name].read_at(sizes[name] - len(mark), memoryview(tail))
            assert tail == mark
    return infos


@pytest.mark.parametrize("size", [WIDE - 1, WIDE, WIDE + 1, (1 << 33) + 77])
def test_huge_tensor_is_read_to_its_end(path: Path, size: int) -> None:
    infos = assert_sparse_is_readable(
        path, {"big": size, "after": 5, "none": 0}, {"big": b"the end", "after": b"12345"}
    )
    assert max(info.file_size for info in infos) == size
    assert infos[-1].header_offset > size


@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_offset_at_the_limit_is_written_as_it_must_be(path: Path, delta: int) -> None:
    """Where the record after a large one begins at the last short offset, or beyond."""
    wanted = WIDE + delta
    probe = lay_out_torch_zip([("a", BY_CODE["U8"], (1 << 31,)), ("b", BY_CODE["U8"], (1 << 30,))])
    at, size = tensor_segments(probe)["b"]
    # The header of the record "version" follows the descriptor of "b".
    short = wanted - (at + size + 16)
    infos = assert_sparse_is_readable(
        path, {"a": 1 << 31, "b": (1 << 30) + short}, {"a": b"a", "b": b"b"}
    )
    assert infos[-1].filename == "archive/version"
    assert infos[-1].header_offset == wanted


@pytest.mark.parametrize("steps", [-8, -7, -6, -5, -1, 0, 1])
def test_directory_around_the_limit_is_found(path: Path, steps: int) -> None:
    """Records are aligned, so the directory moves in steps; it spans some seven of them."""
    sizes = {"a": 1 << 31, "b": 1 << 30}
    assert_sparse_is_readable(path, sizes, {})
    with zipfile.ZipFile(path) as theirs:
        missing = WIDE - theirs.start_dir
    sizes["b"] += missing - missing % 64 + 64 * steps
    infos = assert_sparse_is_readable(path, sizes, {"a": b"a", "b": b"b"})
    with zipfile.ZipFile(path) as theirs:
        assert theirs.start_dir == WIDE - missing % 64 + 64 * steps
    assert len(infos) == 7


@pytest.mark.parametrize("records", [slow_row(65534), 65535, slow_row(65536)])
def test_more_records_than_short_fields_count(path: Path, records: int) -> None:
    state = {str(index): torch.empty(0, dtype=torch.uint8) for index in range(records - 5)}
    state["0"] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    data = fill(lay_out_torch_zip(specs_of(state)), state)
    path.write_bytes(data)
    with zipfile.ZipFile(path) as theirs:
        assert len(theirs.namelist()) == records
        assert theirs.read("archive/data/0") == b"\1\2\3"
        assert theirs.read("archive/version") == b"3\n"
    count = struct.unpack("<4s4H2IH", data[-22:])[4]
    assert count == min(records, 65535)
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(state)
        assert checkpoint.tensors["0"].read() == b"\1\2\3"
    if records > 65535:
        loaded = torch.load(path, weights_only=True)["state_dict"]
        assert len(loaded) == len(state)
        assert loaded["0"].tolist() == [1, 2, 3]


def test_shapes_beyond_31_bits_are_pickled_right(path: Path) -> None:
    sizes = [(1 << 31) - 1, 1 << 31, (1 << 32) + 3]
    specs: list[Spec] = [(str(size), BY_CODE["BOOL"], (size, 2)) for size in sizes]
    specs.append(("empty", BY_CODE["F16"], (0, 1 << 40, 3)))
    write_sparse(path, lay_out_torch_zip(specs), dict.fromkeys(map(str, sizes), 0))
    loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    for name, _, shape in specs:
        assert loaded[name].shape == shape
        assert loaded[name].is_contiguous()
        assert not loaded[name][-1:, -1:].any()


def test_huge_safetensors_are_laid_out_to_their_end(path: Path) -> None:
    specs: list[Spec] = [("a", BY_CODE["U8"], (1 << 34,)), ("b", BY_CODE["F32"], (1 << 33, 3))]
    file = lay_out_safetensors(specs)
    first = file.segments[0]
    assert first.literal is not None
    path.write_bytes(first.literal)
    os.truncate(path, file.size)
    length = int.from_bytes(first.literal[:8], "little")
    header = json.loads(first.literal[8:])
    assert header["b"]["data_offsets"] == [0, 3 << 35]
    assert header["a"]["data_offsets"] == [3 << 35, (3 << 35) + (1 << 34)]
    assert path.stat().st_size == file.size == 8 + length + (3 << 35) + (1 << 34)
    source = FileSource(path)
    assert {name: t.shape for name, t in open_safetensors(source).tensors.items()} == {
        "a": (1 << 34,),
        "b": (1 << 33, 3),
    }
    source.close()


# --- planted faults: each must turn a check red ---


def test_planted_wrong_alignment_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_out, "_ALIGNMENT", 32)
    path.write_bytes(fill(lay_out_torch_zip(specs_of(MANY)), MANY))
    with pytest.raises(AssertionError):
        assert_readable(path, MANY)


def test_planted_wrong_strides_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strides = layout_out._strides
    monkeypatch.setattr(layout_out, "_strides", lambda shape: strides(shape)[::-1])
    path.write_bytes(fill(lay_out_torch_zip(specs_of(MANY)), MANY))
    with pytest.raises((AssertionError, RuntimeError)):
        assert_readable(path, MANY)


def test_planted_wrong_checksum_is_found(path: Path) -> None:
    data = bytearray(fill(lay_out_torch_zip(specs_of(MANY)), MANY))
    data[data.rindex(b"PK\1\2", 0, data.rindex(b"archive/data/0")) + 16] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        assert_readable(path, MANY)


def test_planted_short_sizes_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_out, "_LIMIT", (1 << 32) + 2)
    with pytest.raises((AssertionError, struct.error)):
        assert_sparse_is_readable(path, {"big": 1 << 32}, {"big": b"end"})
