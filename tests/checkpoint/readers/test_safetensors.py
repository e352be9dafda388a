"""Safetensors files against the library: what it writes, what it reads, and what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save, save_file

from vaeconv.checkpoint.dtypes import BY_CODE, BY_TORCH_NAME, DTYPES, DType
from vaeconv.checkpoint.readers import safetensors as safetensors_file
from vaeconv.checkpoint.readers.safetensors import MAX_HEADER, build_header, open_safetensors
from vaeconv.checkpoint.source import FileSource
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.checkpoint.writers import layout as layout_out
from vaeconv.checkpoint.writers.layout import lay_out_safetensors
from vaeconv.errors import MalformedCheckpointError, VaeconvError

QUIET = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def opened(path: Path, data: bytes | None = None) -> Checkpoint:
    if data is not None:
        path.write_bytes(data)
    source = FileSource(path)
    try:
        return open_safetensors(source)
    except BaseException:
        source.close()
        raise


Content = dict[str, tuple[str, tuple[int, ...], bytes]]


def content(checkpoint: Checkpoint) -> Content:
    return {
        name: (tensor.dtype.code, header_shape(tensor.dtype, tensor.shape), tensor.read())
        for name, tensor in checkpoint.tensors.items()
    }


def header_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if dtype.packed == 1 else (*shape[:-1], shape[-1] * dtype.packed)


def library_content(data: bytes) -> Content:
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in deserialize(data)
    }


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def make_tensor(dtype: DType, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    raw = bytearray(random.Random(seed).randbytes(size))
    if dtype.code == "BOOL":
        raw = bytearray(byte & 1 for byte in raw)
    if not size:
        return torch.empty(shape, dtype=getattr(torch, dtype.torch_name))
    flat = torch.frombuffer(raw, dtype=torch.uint8)
    return flat.view(getattr(torch, dtype.torch_name)).reshape(shape)


def library_knows(dtype: DType) -> bool:
    try:
        save({"x": torch.empty(0, dtype=getattr(torch, dtype.torch_name))})
    except (AttributeError, KeyError, SafetensorError):
        return False
    return True


# Older versions of torch and the library lack some.
BOTH = [dtype for dtype in DTYPES if library_knows(dtype)]

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.from_regex(r"[a-z]{1,3}(\.[a-z0-9]{1,2}){0,3}", fullmatch=True),
).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
SPECS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(BOTH), SHAPES).filter(lambda spec: spec[0].packed == 1 or spec[1]),
    max_size=12,
)  # packed elements have no scalars
MANY = {"x" * length: (dtype, (length,)) for length, dtype in enumerate(BOTH, 1)}


# --- reading ---


@given(specs=SPECS, seed=st.integers(0, 1000), metadata=st.dictionaries(NAMES, st.text(max_size=5)))
@settings(QUIET, max_examples=150)
@example(specs=MANY, seed=1, metadata={"format": "pt"})
def test_files_of_the_library_open_to_what_it_sees(
    path: Path,
    specs: dict[str, tuple[DType, tuple[int, ...]]],
    seed: int,
    metadata: dict[str, str],
) -> None:
    state = {
        name: make_tensor(*spec, seed=seed + i) for i, (name, spec) in enumerate(specs.items())
    }
    save_file(state, path, metadata=metadata or None)
    with opened(path) as checkpoint, safe_open(path, "pt") as theirs:
        assert checkpoint.metadata == (theirs.metadata() or {})
        assert set(checkpoint.tensors) == set(theirs.keys())
        for name, tensor in checkpoint.tensors.items():
            expected = theirs.get_tensor(name)
            assert getattr(torch, tensor.dtype.torch_name) == expected.dtype
            assert tensor.shape == tuple(expected.shape)
            assert tensor.read() == tensor_bytes(expected) == tensor_bytes(state[name])


def test_tensors_come_in_the_order_of_the_header(path: Path) -> None:
    save_file({name: torch.zeros(2) for name in ("b", "a", "c")}, path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    with opened(path) as checkpoint:
        assert list(checkpoint.tensors) == list(json.loads(path.read_bytes()[8 : 8 + size]))


# --- writing ---


def fill(specs: Mapping[str, tuple[DType, tuple[int, ...]]], state: Mapping[str, Any]) -> bytes:
    file = lay_out_safetensors([(name, dtype, shape) for name, (dtype, shape) in specs.items()])
    out = bytearray()
    for segment in file.segments:
        assert segment.offset == len(out)
        data = segment.literal
        if data is None:
            assert segment.tensor is not None
            data = tensor_bytes(state[segment.tensor])
        assert segment.size == len(data)
        out += data
    assert file.size == len(out)
    return bytes(out)


def assert_written_like_the_library(
    path: Path, specs: dict[str, tuple[DType, tuple[int, ...]]]
) -> None:
    state = {name: make_tensor(*spec, seed=i) for i, (name, spec) in enumerate(specs.items())}
    save_file(state, path, metadata={"format": "pt"})
    assert fill(specs, state) == path.read_bytes()


@given(specs=SPECS)
@settings(QUIET, max_examples=200)
@example(specs=MANY)
@example(specs={})
def test_layout_is_that_of_the_library_to_the_byte(
    path: Path, specs: dict[str, tuple[DType, tuple[int, ...]]]
) -> None:
    assert_written_like_the_library(path, specs)


@pytest.mark.parametrize("one", BOTH, ids=lambda dtype: dtype.code)
def test_any_two_dtypes_are_ordered_as_in_the_library(path: Path, one: DType) -> None:
    for other in BOTH:
        for first, second in (("a", "b"), ("b", "a")):
            assert_written_like_the_library(path, {first: (one, (3,)), second: (other, (3,))})


@given(specs=SPECS, seed=st.integers(0, 1000))
@settings(QUIET, max_examples=50)
def test_order_of_insertion_does_not_matter(
    specs: dict[str, tuple[DType, tuple[int, ...]]], seed: int
) -> None:
    triples = [(name, dtype, shape) for name, (dtype, shape) in specs.items()]
    shuffled = random.Random(seed).sample(triples, len(triples))
    assert build_header(triples, {}) == build_header(shuffled, {})
    assert lay_out_safetensors(triples) == lay_out_safetensors(shuffled)


@given(specs=SPECS, metadata=st.dictionaries(NAMES, st.text(max_size=5), max_size=4))
@settings(QUIET, max_examples=100)
def test_headers_are_read_back_by_the_library_and_by_us(
    path: Path, specs: dict[str, tuple[DType, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    header, order = build_header([(name, *spec) for name, spec in specs.items()], metadata)
    assert sorted(order) == sorted(specs)
    body = {name: tensor_bytes(make_tensor(*specs[name], seed=1)) for name in order}
    data = header + b"".join(body.values())
    expected = {
        name: (dtype.code, header_shape(dtype, shape), body[name])
        for name, (dtype, shape) in specs.items()
    }
    assert library_content(data) == expected
    with opened(path, data) as checkpoint, safe_open(path, "pt") as theirs:
        assert content(checkpoint) == expected
        assert checkpoint.metadata == (theirs.metadata() or {}) == metadata


def test_metadata_is_written_in_sorted_order() -> None:
    one, _ = build_header([], {"b": "1", "a": "2"})
    other, _ = build_header([], {"a": "2", "b": "1"})
    assert one == other


# --- mutants: never another exception, never laxer than the library ---


def check_mutant(path: Path, data: bytes) -> bool:
    """Open a mutant; what opens must be to the library what it is to us. Whether it opened."""
    try:
        checkpoint = opened(path, data)
    except VaeconvError:
        return False
    with checkpoint:
        found = content(checkpoint)
        try:
            expected = library_content(data)
        except SafetensorError as error:
            raise AssertionError(f"laxer than the library: {error}: {data[8:300]!r}") from error
        assert found == expected
        with safe_open(path, "pt") as theirs:
            assert checkpoint.metadata == (theirs.metadata() or {})
    return True


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: object, body: int = 0, text: str | bytes | None = None) -> bytes:
    raw = json.dumps(header) if text is None else text
    raw = raw if isinstance(raw, bytes) else raw.encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(range(body))


GOOD = save(
    {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a.bias": torch.ones(3, dtype=torch.float16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "name ü": torch.zeros(2, dtype=torch.bfloat16),
    },
    {"format": "pt", "note": "–"},
)
HEADER_SIZE = int.from_bytes(GOOD[:8], "little")


@st.composite
def byte_edits(draw: st.DrawFn) -> bytes:
    """The good file, with a few bytes of its length and header changed, added or removed."""
    data = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, 8 + HEADER_SIZE))
        kind = draw(st.sampled_from(["flip", "set", "insert", "delete", "length", "cut"]))
        if kind == "flip":
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at % len(data)] = draw(
                st.sampled_from(list(b' \t\n{}[]",:0123456789-+.eEtfn\\u\0\xff'))
            )
        elif kind == "insert":
            data[at:at] = draw(st.one_of(st.binary(min_size=1, max_size=4), FRAGMENTS))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 5))]
        elif kind == "length":
            data[:8] = draw(LENGTHS).to_bytes(8, "little")
        else:
            del data[draw(st.integers(0, len(data))) :]
        # Most edits leave a length that is wrong; half of them are given the right one.
        if draw(st.booleans()) and len(data) >= 8:
            body = len(GOOD) - 8 - HEADER_SIZE
            data[:8] = max(len(data) - 8 - body, 0).to_bytes(8, "little")
        data = data or bytearray(b"\0")
    return bytes(data)


FRAGMENTS = st.sampled_from(
    [b" ", b"\n", b"-", b"0", b",", b'"', b"{}", b"[]", b"null", b"1e0", b".0", b"NaN", b"\\ud800",
     b"\\u0000", b"\xc3\xa4", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"a":1,', b'"__metadata__":{},']
)  # fmt: skip
LENGTHS = st.one_of(
    st.integers(0, len(GOOD) + 8),
    st.sampled_from([HEADER_SIZE - 1, HEADER_SIZE + 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


@given(data=byte_edits())
@settings(QUIET, max_examples=600)
def test_mutated_bytes_open_as_in_the_library_or_are_refused(path: Path, data: bytes) -> None:
    check_mutant(path, data)


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([1 << 31, 1 << 32, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.sampled_from([10**30, -(1 << 63), 0.0, 1.5, -0.0, 1e300]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
CODES = st.sampled_from([*BY_CODE, "F6_E2M3", "f32", "", "F128", "float32"])


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Headers that are nearly right: tensors in a row, some with one value replaced."""
    header: dict[str, Any] = {}
    position = 0
    names = st.one_of(st.text("ab_.é-0", max_size=4), st.sampled_from(["\ud800", "a\udfffb"]))
    for name in draw(st.lists(names, max_size=4)):
        code = draw(st.sampled_from(["F32", "F16", "BOOL", "I64", "F8_E4M3"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = position + math.prod(shape) * BY_CODE[code].itemsize
        header[name] = entry(shape, [position, end], code)
        position = end
    for name in list(header):
        change = draw(
            st.sampled_from([*[None] * 8, "dtype", "shape", "data_offsets", "all", "more"])
        )
        if change == "dtype":
            header[name]["dtype"] = draw(st.one_of(CODES, JSON))
        elif change == "shape":
            header[name]["shape"] = draw(st.one_of(st.lists(NUMBERS, max_size=4), JSON))
        elif change == "data_offsets":
            header[name]["data_offsets"] = draw(st.one_of(st.lists(NUMBERS, max_size=3), JSON))
        elif change == "all":
            header[name] = draw(JSON)
        elif change == "more":
            header[name][draw(st.text(max_size=3))] = draw(JSON)
    if draw(st.booleans()):
        good = st.dictionaries(st.text("ab–", max_size=2), st.text("c\0", max_size=2))
        odd = st.dictionaries(st.text("a\udfff", max_size=2), st.text("c\ud800", max_size=2))
        header["__metadata__"] = draw(st.one_of(good, good, odd, JSON))
    return header


@given(header=headers(), body=st.integers(0, 80), escape=st.booleans())
@settings(QUIET, max_examples=800)
def test_mutated_values_open_as_in_the_library_or_are_refused(
    path: Path, header: dict[str, Any], body: int, escape: bool
) -> None:
    text = json.dumps(header, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    # The body that the offsets ask for, or another one.
    ends = [
        value["data_offsets"][1]
        for value in header.values()
        if isinstance(value, dict) and isinstance(value.get("data_offsets"), list)
        and len(value["data_offsets"]) == 2
    ]  # fmt: skip
    fitting = [end for end in ends if type(end) is int and 0 <= end < 4096]
    if body % 8:
        body = max(fitting, default=0)
    check_mutant(path, len(text).to_bytes(8, "little") + text + bytes(body))


F32 = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
BIG = 1 << 62


def with_text(text: str | bytes, body: int = 8) -> bytes:
    return file_of(None, body, text)


ACCEPTED: dict[str, bytes] = {
    "no tensors": with_text("{}", 0),
    "no tensors, empty metadata": with_text('{"__metadata__":{}}', 0),
    "white space around": with_text("\n{" + F32 + "} \t\r\n"),
    "escaped surrogate pair": with_text('{"__metadata__":{"k":"\\ud83d\\ude00"},' + F32 + "}"),
    "escaped name": with_text("{" + F32.replace('"a"', '"\\u0061\\/\\n"') + "}"),
    "minus zero in a name": with_text("{" + F32.replace('"a"', '"a-0"') + "}"),
    "64 dimensions": file_of({"a": entry([1] * 64, [0, 4])}, 4),
    "empty beside a large size": file_of({"a": entry(), "b": entry([BIG, 0], [8, 8])}, 8),
    "empty tensors between": file_of(
        {
            "z": entry([0], [8, 8]),
            "b": entry(offsets=[8, 16]),
            "a": entry(),
            "y": entry([0], [0, 0]),
        },
        16,
    ),
    "metadata is null": with_text('{"__metadata__":null,' + F32 + "}"),
    "fields of later versions": file_of(
        {"a": {**entry(), "note": {"x": [1, -1, 1e3, None, "y"]}, "": True}}, 8
    ),
    "entry is a list": file_of({"a": ["F32", [2], [0, 8]]}, 8),
    "four-bit elements": file_of({"a": entry([2, 8], dtype="F4")}, 8),
    "scales": file_of({"a": entry([8], dtype="F8_E8M0")}, 8),
    "padded to more than 32 MB": with_text("{" + F32 + "}" + " " * (33 << 20)),
    "not in order": file_of({"b": entry(offsets=[8, 16]), "a": entry()}, 16),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_but_right_headers_open(path: Path, case: str) -> None:
    assert check_mutant(path, ACCEPTED[case])


WRONG_FOR_ALL: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "header beyond the end": (9).to_bytes(8, "little") + b"{}",
    "length of all ones": b"\xff" * 8 + b"{}",
    "not UTF-8": with_text(b'{"\xff":1}', 0),
    "encoded surrogate": with_text(b'{"\xed\xa0\x80":1}', 0),
    "byte order mark": with_text(b"\xef\xbb\xbf{" + F32.encode() + b"}"),
    "trailing zeros": with_text("{" + F32 + "}\0\0"),
    "two documents": with_text("{" + F32 + "}{}"),
    "not an object": with_text("[]", 0),
    "a number": with_text("1", 0),
    "nested deeply": with_text("[" * 100_000, 0),
    "number of 5000 digits": with_text("{" + F32.replace("8", "8" * 5000) + "}"),
    "control character": with_text("{" + F32.replace('"a"', '"\t"') + "}"),
    "minus zero": with_text("{" + F32.replace("[0,", "[-0,") + "}"),
    "minus zero as a size": file_of(
        None, 0, "{" + F32.replace("[2]", "[-0]").replace("8", "0") + "}"
    ),
    "zero as a float": with_text("{" + F32.replace("[0,", "[0.0,") + "}"),
    "size with an exponent": with_text("{" + F32.replace("[2]", "[2e0]") + "}"),
    "size that is true": file_of({"a": entry([True], [0, 4])}, 4),
    "NaN": with_text("{" + F32.replace("[0,", "[NaN,") + "}"),
    "negative sizes": file_of({"a": entry([-1, -2])}, 8),
    "half a surrogate pair in a name": with_text("{" + F32.replace('"a"', '"\\ud800"') + "}"),
    "half a surrogate pair in metadata": with_text('{"__metadata__":{"k":"\\udc00"},' + F32 + "}"),
    "half a surrogate pair in a key of metadata": with_text(
        '{"__metadata__":{"\\uDBFF":"v"},' + F32 + "}"
    ),
    "metadata twice": with_text('{"__metadata__":{},"__metadata__":{},' + F32 + "}"),
    "number in metadata": with_text('{"__metadata__":{"k":1},' + F32 + "}"),
    "metadata is a list": with_text('{"__metadata__":[],' + F32 + "}"),
    "size that overflows before a zero": file_of(
        {"a": entry(), "b": entry([BIG, 16, 0], [8, 8])}, 8
    ),
    "size that overflows to what is there": file_of({"a": entry([BIG, 4, 2], [0, 8])}, 8),
    "gap": file_of({"a": entry(), "b": entry(offsets=[9, 17])}, 17),
    "gap at the start": file_of({"a": entry(offsets=[1, 9])}, 9),
    "overlap": file_of({"a": entry(), "b": entry(offsets=[4, 12])}, 12),
    "two of the same bytes": file_of({"a": entry(), "b": entry()}, 8),
    "empty tensor inside another": file_of({"a": entry(), "b": entry([0], [4, 4])}, 8),
    "end before start": file_of({"a": entry(offsets=[8, 0])}, 8),
    "bytes too many": file_of({"a": entry()}, 9),
    "bytes too few": file_of({"a": entry()}, 7),
    "too few for the shape": file_of({"a": entry([3])}, 8),
    "no shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "three offsets": file_of({"a": entry(offsets=[0, 8, 8])}, 8),
    "four-bit elements in half a byte": file_of({"a": entry([1], [0, 1], "F4")}, 1),
    "float beyond all bounds in a field to ignore": with_text(
        "{" + F32.replace("[2]", '[2],"x":1e999') + "}"
    ),
    "integer beyond all bounds in a field to ignore": with_text(
        "{" + F32.replace("[2]", '[2],"x":[' + "9" * 400 + "]") + "}"
    ),
    "NaN in a field to ignore": with_text("{" + F32.replace("[2]", '[2],"x":{"y":NaN}') + "}"),
    "deep field to ignore": with_text(
        "{" + F32.replace("[2]", '[2],"x":' + "[" * 130 + "]" * 130) + "}"
    ),
    "field twice": with_text("{" + F32.replace("[2]", '[2],"shape":[2]') + "}"),
    "entry is a longer list": file_of({"a": ["F32", [2], [0, 8], 1]}, 8),
    "unknown dtype": file_of({"a": entry(dtype="F31")}, 8),
    "dtype is a list": file_of({"a": entry(dtype=["F32"])}, 8),
}
# Read by the library's core. Refused here: where two entries have one name, which one counts is
# a reader's choice; the rest is no tensor to torch either.
STRICTER: dict[str, bytes] = {
    "tensor twice": with_text("{" + F32 + "," + F32 + "}"),
    "metadata key twice": with_text('{"__metadata__":{"k":"1","k":"2"},' + F32 + "}"),
    "65 dimensions": file_of({"a": entry([1] * 65, [0, 4])}, 4),
    "size that overflows behind a zero": file_of(
        {"a": entry(), "b": entry([0, BIG, 16], [8, 8])}, 8
    ),
    "six-bit elements": file_of({"a": entry([4], [0, 3], "F6_E2M3")}, 3),
    "odd row of four-bit elements": file_of({"a": entry([4, 1], [0, 2], "F4")}, 2),
}


@pytest.mark.parametrize("case", WRONG_FOR_ALL)
def test_what_the_library_refuses_is_refused(path: Path, case: str) -> None:
    with pytest.raises(SafetensorError):
        deserialize(WRONG_FOR_ALL[case])
    with pytest.raises(MalformedCheckpointError, match=r"x\.safetensors: "):
        opened(path, WRONG_FOR_ALL[case])


@pytest.mark.parametrize("case", STRICTER)
def test_more_is_refused_than_the_library_does(path: Path, case: str) -> None:
    assert deserialize(STRICTER[case])
    with pytest.raises(MalformedCheckpointError, match="safetensors header: "):
        opened(path, STRICTER[case])


def test_huge_header_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    with pytest.raises(MalformedCheckpointError, match="more than"):
        opened(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_table_of_dtypes_holds_all_that_torch_and_the_library_share(path: Path) -> None:
    shared: dict[str, str] = {}
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        try:
            save_file({"x": torch.empty(0, dtype=dtype)}, path)
        except (KeyError, SafetensorError, ValueError, TypeError):
            continue
        ((_, saved),) = deserialize(path.read_bytes())
        shared[str(dtype).removeprefix("torch.")] = saved["dtype"]
    assert {dtype.torch_name: dtype.code for dtype in BOTH}.items() <= shared.items()
    assert {"F64", "F32", "F16", "BF16", "I64", "U8", "BOOL"} <= {dtype.code for dtype in BOTH}
    assert shared.keys() <= BY_TORCH_NAME.keys()


# --- planted faults: each must turn a check red ---


@pytest.mark.parametrize("case", ["gap", "overlap", "bytes too many"])
def test_planted_blindness_for_gaps_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(safetensors_file, "_check_coverage", lambda *args: None)
    with pytest.raises(AssertionError, match="laxer"):
        check_mutant(path, WRONG_FOR_ALL[case])


def test_planted_python_numbers_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "_parse_unsigned", int)
    with pytest.raises(AssertionError, match="laxer"):
        check_mutant(path, WRONG_FOR_ALL["minus zero"])


def test_planted_blindness_for_broken_text_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "_encodable_pairs", dict)
    with pytest.raises(AssertionError, match="laxer"):
        check_mutant(path, WRONG_FOR_ALL["half a surrogate pair in metadata"])


def test_planted_reading_of_the_last_of_two_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "_unique_keys", dict)
    with pytest.raises(AssertionError, match="laxer"):
        check_mutant(path, WRONG_FOR_ALL["metadata twice"])


def test_planted_shift_of_the_data_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = safetensors_file._read_header

    def shifted(source: FileSource) -> tuple[dict[str, Any], int]:
        header, start = read(source)
        return header, start - 1

    monkeypatch.setattr(safetensors_file, "_read_header", shifted)
    monkeypatch.setattr(safetensors_file, "_check_coverage", lambda *args: None)
    with pytest.raises(AssertionError):
        check_mutant(path, GOOD)


def test_planted_swap_of_two_dtypes_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = safetensors_file._RANK
    monkeypatch.setattr(
        safetensors_file, "_RANK", {**rank, "F16": rank["BF16"], "BF16": rank["F16"]}
    )
    with pytest.raises(AssertionError):
        assert_written_like_the_library(path, MANY)


@pytest.mark.parametrize("padding", [0, 4, 16])
def test_planted_other_padding_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    def build(*args: Any) -> tuple[bytes, list[str]]:
        header, order = build_header(*args)
        text = header[8:].rstrip() + b" " * padding
        return len(text).to_bytes(8, "little") + text, order

    monkeypatch.setattr(layout_out, "build_header", build)
    with pytest.raises(AssertionError):
        assert_written_like_the_library(path, {"a": (BY_CODE["F32"], (2,))})
