"""Zip directories against ``zipfile``: the same members, or a refusal."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import corpus
from vaeconv.checkpoint.readers import zip_directory
from vaeconv.checkpoint.readers.zip_directory import ZipEntry, read_zip_directory
from vaeconv.checkpoint.source import FileSource
from vaeconv.errors import MalformedCheckpointError

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIMIT = 1 << 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zip"


@contextmanager
def directory(path: Path, data: bytes | None = None) -> Iterator[dict[str, ZipEntry]]:
    if data is not None:
        path.write_bytes(data)
    source = FileSource(path)
    try:
        yield read_zip_directory(source)
    finally:
        source.close()


def names_in(path: Path, data: bytes) -> list[str]:
    with directory(path, data) as entries:
        return list(entries)


def read_in_pieces(entry: ZipEntry, sizes: Iterable[int]) -> bytes:
    reader, left, out = entry.open(), entry.size, bytearray()
    for size in sizes:
        piece = bytearray(min(size, left))
        reader.read_into(memoryview(piece))
        out += piece
        left -= len(piece)
        if not left:
            break
    return bytes(out)


def assert_read_as_by_zipfile(path: Path) -> None:
    with directory(path) as entries, zipfile.ZipFile(path) as theirs:
        members = {info.filename: info for info in theirs.infolist() if not info.is_dir()}
        assert list(entries) == list(members)
        for name, info in members.items():
            entry = entries[name]
            expected = theirs.read(info)
            assert (entry.size, entry.compressed_size) == (info.file_size, info.compress_size)
            assert (entry.crc, entry.method) == (info.CRC, info.compress_type)
            assert entry.is_compressed == (info.compress_type == zipfile.ZIP_DEFLATED)
            assert entry.read(LIMIT) == expected
            assert read_in_pieces(entry, [1, 7, 1000, *[50_000] * 100]) == expected
            start, end = entry.extent
            assert start == info.header_offset <= entry.data_offset()
            assert entry.data_offset() + entry.compressed_size <= end


class Stream(io.RawIOBase):
    """A pipe: what is written to it is followed by data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        assert isinstance(data, bytes | bytearray | memoryview)
        self.data += data
        return len(data)


def zipped(
    members: list[tuple[str, bytes]],
    method: int = zipfile.ZIP_STORED,
    *,
    comment: bytes = b"",
    zip64: bool = False,
    stream: bool = False,
    mixed: bool = False,
) -> bytes:
    target: io.BytesIO | Stream = Stream() if stream else io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as file:  # type: ignore[arg-type]
        file.comment = comment
        for index, (name, data) in enumerate(members):
            info = zipfile.ZipInfo(name)
            info.compress_type = (0, 8)[index % 2] if mixed else method
            info.comment = b"of the member" if index % 3 == 1 else b""
            if name.endswith("/"):
                file.writestr(info, b"")
                continue
            with file.open(info, "w", force_zip64=zip64) as member:
                member.write(data)
    return bytes(target.data) if isinstance(target, Stream) else target.getvalue()


NOISE = random.Random(3).randbytes(200_000)
MEMBERS = [
    ("archive/data.pkl", b"pickle" * 1000),
    ("archive/data/0", NOISE),
    ("folder/", b""),
    ("empty", b""),
    ("ünïcode/–.bin", NOISE[:100] * 500),
    ("one", b"1"),
]


@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65535])
@pytest.mark.parametrize("stream", [False, True], ids=["seekable", "stream"])
@pytest.mark.parametrize("zip64", [False, True], ids=["short", "zip64"])
@pytest.mark.parametrize("method", ["stored", "deflated", "mixed"])
def test_files_of_zipfile_are_read_as_by_zipfile(
    path: Path, method: str, zip64: bool, stream: bool, comment: bytes
) -> None:
    number = zipfile.ZIP_DEFLATED if method == "deflated" else zipfile.ZIP_STORED
    path.write_bytes(
        zipped(
            MEMBERS, number, comment=comment, zip64=zip64, stream=stream, mixed=method == "mixed"
        )
    )
    assert_read_as_by_zipfile(path)


NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\\"), min_size=1, max_size=10
).filter(lambda name: not name.endswith("/"))
FILES = st.dictionaries(NAME, st.binary(max_size=300), max_size=8).filter(
    lambda files: len({name.casefold() for name in files}) == len(files)
)


@given(
    files=FILES,
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    # zipfile takes an end record's magic in a comment for the record.
    comment=st.binary(max_size=40).filter(lambda comment: b"PK" not in comment),
    zip64=st.booleans(),
    stream=st.booleans(),
)
@settings(QUIET, max_examples=150)
def test_random_files_of_zipfile_are_read_as_by_zipfile(
    path: Path, files: dict[str, bytes], method: int, comment: bytes, zip64: bool, stream: bool
) -> None:
    path.write_bytes(
        zipped(list(files.items()), method, comment=comment, zip64=zip64, stream=stream)
    )
    assert_read_as_by_zipfile(path)


def test_file_without_members_has_none(path: Path) -> None:
    assert names_in(path, zipped([])) == []


def test_name_without_the_flag_for_unicode_is_read_as_it_is(path: Path) -> None:
    utf8, old = "é".encode(), "é".encode("cp437")
    members = [corpus.Member(b"a" + utf8, b"1"), corpus.Member(b"b" + old, b"2")]
    assert names_in(path, corpus.zipped(members)) == ["aé", "bé"]


def test_end_record_inside_a_comment_is_not_taken(path: Path) -> None:
    inner = zipped([("inner", b"x")])
    end = inner[inner.rindex(b"PK\5\6") :]
    for comment in (end + b" and more", b"before " + end[:10], end[:4] * 9):
        assert names_in(path, zipped([("outer", b"y")], comment=comment)) == ["outer"]


# --- sizes beyond 4 GiB, in files with holes ---


@pytest.mark.parametrize("size", [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 32) + 12_345])
def test_huge_stored_member_is_found_behind_zip64_fields(path: Path, size: int) -> None:
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 33, 0, *[0xFFFFFFFF] * 2, 3, 20)
    header += b"big" + struct.pack("<2H2Q", 1, 16, size, size)
    small = zipped([("small", b"after the hole")])
    local = small[: small.index(b"PK\1\2")]
    at = len(header) + size
    listing = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 33, 7, *[0xFFFFFFFF] * 2, 3, 20, 0, 0, 0, 0, 0
    )
    listing += b"big" + struct.pack("<2H2Q", 1, 16, size, size)
    entry = bytearray(small[len(local) : small.index(b"PK\5\6")])
    entry[42:46] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", 12)
    listing += entry + struct.pack("<2HQ", 1, 8, at)
    start = at + len(local)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(listing), start)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, start + len(listing), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(listing), 0xFFFFFFFF, 0)
    with path.open("wb") as file:
        file.write(header)
        file.seek(at)
        file.write(local + listing + end)
    with zipfile.ZipFile(path) as theirs:
        judged = {info.filename: (info.file_size, info.CRC) for info in theirs.infolist()}
        assert theirs.read("small") == b"after the hole"
        assert theirs.open("big").read(10) == bytes(10)
    with directory(path) as entries:
        assert {name: (entry.size, entry.crc) for name, entry in entries.items()} == judged
        assert judged["big"] == (size, 7)
        assert entries["small"].read(100) == b"after the hole"
        assert entries["big"].data_offset() == len(header)
        assert entries["big"].extent == (0, at)


@pytest.mark.parametrize("wide", [("size",), ("stored_size",), ("size", "stored_size")])
def test_wide_fields_are_taken_in_their_order(path: Path, wide: tuple[str, ...]) -> None:
    """Only the numbers that do not fit are in the extra field: size, then compressed size."""
    content = b"pickle" * 1000
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(content) + packer.flush()
    sizes = {"size": 6000, "stored_size": len(packed)}
    numbers = [sizes[name] for name in sizes if name in wide]
    extra = struct.pack(f"<HH4sHH{len(numbers)}Q", 99, 4, b"skip", 1, 8 * len(numbers), *numbers)
    member = corpus.Member(
        "a", content, method=8, stored=packed, extra=extra, flags=8,
        **dict.fromkeys(wide, 0xFFFFFFFF),
    )  # fmt: skip
    path.write_bytes(corpus.zipped([member]))
    assert_read_as_by_zipfile(path)


# --- refusals ---


def test_deflated_member_that_lies_about_its_size_is_refused(path: Path) -> None:
    for size in (5, 5999, 6001, 100_000):
        member = corpus.Member("a", b"pickle" * 1000, method=8, size=size)
        with (
            directory(path, corpus.zipped([member])) as entries,
            pytest.raises(MalformedCheckpointError, match=r"CRC-32|fewer bytes"),
        ):
            entries["a"].read(LIMIT)


def test_member_larger_than_asked_for_is_not_read(path: Path) -> None:
    with directory(path, zipped(MEMBERS)) as entries:
        entry = entries["archive/data.pkl"]
        assert len(entry.read(6000)) == 6000
        with pytest.raises(MalformedCheckpointError, match="at most 5999"):
            entry.read(5999)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "a"], "two zip entries"),
        (["a", "b", "A"], "two zip entries"),
        (["straße", "STRASSE"], "two zip entries"),
        (["a\0b"], "zero byte"),
    ],
)
def test_ambiguous_names_are_refused(path: Path, names: list[str], said: str) -> None:
    data = corpus.zipped([corpus.Member(name, name.encode()) for name in names])
    with pytest.raises(MalformedCheckpointError, match=said):
        names_in(path, data)


ONE, TWO = corpus.Member("a", b"123"), corpus.Member("b", b"456" * 99, method=8)


def patched(data: bytes, magic: bytes, at: int, form: str, *values: int) -> bytes:
    """Set fields of the last record with this magic."""
    changed = bytearray(data)
    struct.pack_into("<" + form, changed, data.rindex(magic) + at, *values)
    return bytes(changed)


def with_two_ends(count: int) -> bytes:
    """A zip file whose short end record says what its wide one says, but for the count."""
    data = corpus.zipped([ONE, TWO], zip64=True)
    size, offset = struct.unpack_from("<QQ", data, data.rindex(b"PK\6\6") + 40)
    return patched(data, b"PK\5\6", 8, "2H2I", count, count, size, offset)


GOOD_NUMBERS = [with_two_ends(2), corpus.zipped([ONE, TWO], zip64=True), corpus.zipped([ONE, TWO])]
WRONG_NUMBERS: dict[str, bytes] = {
    "two end records disagree": with_two_ends(1),
    "several volumes: disk": corpus.zipped([ONE, TWO], end={"disk": 1}),
    "several volumes: first": corpus.zipped([ONE, TWO], end={"first": 1}),
    "several volumes: count": corpus.zipped([ONE, TWO], end={"here": 1}),
    "gap before the end": corpus.zipped([ONE, TWO], between=b"gap"),
    "bytes before the file": b"#!/bin/sh\n" + corpus.zipped([ONE, TWO]),
    "one counted too few": corpus.zipped([ONE, TWO], end={"here": 1, "count": 1}),
    "one counted too many": corpus.zipped([ONE, TWO], end={"here": 3, "count": 3}),
    "directory starts too late": corpus.zipped([ONE, TWO], end={"offset": 200}),
    "no zip64 locator": corpus.zipped([ONE, TWO], end={"here": 0xFFFF, "count": 0xFFFF}),
    "zip64 locator leads astray": patched(
        corpus.zipped([ONE, TWO], zip64=True), b"PK\6\7", 8, "Q", 3
    ),
    "zip64 record of another length": patched(
        corpus.zipped([ONE, TWO], zip64=True), b"PK\6\6", 4, "Q", 45
    ),
    "no zip64 sizes": corpus.zipped([ONE, replace(TWO, size=0xFFFFFFFF)]),
    "encrypted": corpus.zipped([ONE, replace(TWO, flags=1)]),
    "strongly encrypted": corpus.zipped([ONE, replace(TWO, flags=0x40)]),
    "stored with two sizes": corpus.zipped([replace(ONE, size=4), TWO]),
    "decompression bomb": corpus.zipped([ONE, replace(TWO, size=2 << 30)]),
    "one inside the other": corpus.zipped([ONE, replace(TWO, offset=0)]),
    "beyond the end": corpus.zipped([ONE, replace(TWO, offset=1 << 20)]),
}
WRONG_LOCALS: dict[str, dict[str, object]] = {
    "name": {"name": b"c"},
    "method": {"method": 0},
    "encrypted": {"flags": 1},
    "CRC": {"crc": 7},
    "size": {"size": 296},
    "compressed size": {"stored": 5},
}


@pytest.mark.parametrize("data", GOOD_NUMBERS)
def test_numbers_that_agree_are_taken(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert_read_as_by_zipfile(path)


@pytest.mark.parametrize("case", WRONG_NUMBERS)
def test_directories_that_contradict_themselves_are_refused(path: Path, case: str) -> None:
    with pytest.raises(MalformedCheckpointError, match=r"x\.zip: "):
        names_in(path, WRONG_NUMBERS[case])


@pytest.mark.parametrize("case", WRONG_LOCALS)
def test_local_headers_that_contradict_the_directory_are_refused(path: Path, case: str) -> None:
    assert_second_is_refused(path, corpus.zipped([ONE, replace(TWO, local=WRONG_LOCALS[case])]))


def test_data_that_would_run_into_the_directory_is_refused(path: Path) -> None:
    """The local header says that there are four bytes more before the data than there are."""
    assert_second_is_refused(path, patched(corpus.zipped([ONE, TWO]), b"PK\3\4", 28, "H", 4))


def assert_second_is_refused(path: Path, data: bytes) -> None:
    with directory(path, data) as entries:
        assert entries["a"].read(LIMIT) == b"123"
        with pytest.raises(MalformedCheckpointError, match="zip entry b "):
            entries["b"].data_offset()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(path: Path, method: int) -> None:
    with pytest.raises(MalformedCheckpointError, match="compression method"):
        names_in(path, zipped(MEMBERS, method))


@pytest.mark.parametrize("zip64", [False, True])
def test_every_truncation_is_refused(path: Path, zip64: bool) -> None:
    data = zipped([("a", b"stored"), ("b", b"")], zip64=zip64)
    for size in range(len(data)):
        with pytest.raises(MalformedCheckpointError):
            names_in(path, data[:size])


# --- mutants ---


GOOD = {
    "stored": zipped(MEMBERS[:1] + MEMBERS[3:]),
    "deflated": zipped(MEMBERS[:1] + MEMBERS[3:], zipfile.ZIP_DEFLATED, comment=b"comment"),
    "zip64": zipped(MEMBERS[:1] + MEMBERS[3:], zip64=True, mixed=True),
    "stream": zipped(MEMBERS[:1] + MEMBERS[3:], stream=True, mixed=True),
    "zip64 end": corpus.zipped(
        [corpus.Member("a", b"123"), corpus.Member("b", b"45" * 99, method=8)], zip64=True
    ),
}


def content_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as theirs:
        return {name: theirs.read(name) for name in theirs.namelist()}


CONTENT = {case: content_of(data) for case, data in GOOD.items()}


def read_what_opens(path: Path, data: bytes) -> dict[str, bytes]:
    """Content of the members that can be read; any other exception than a refusal gets out."""
    found = {}
    with suppress(MalformedCheckpointError), directory(path, data) as entries:
        for name, entry in entries.items():
            with suppress(MalformedCheckpointError):
                found[name] = bytes(entry.read(LIMIT))
    return found


@given(
    case=st.sampled_from(sorted(GOOD)),
    edits=st.lists(
        st.tuples(st.sampled_from(["set", "insert", "delete", "field"]), st.integers(0, 1 << 30),
                  st.binary(min_size=1, max_size=8)), min_size=1, max_size=3,
    ),
)  # fmt: skip
@settings(QUIET, max_examples=500)
def test_mutated_bytes_give_entries_or_a_refusal(
    path: Path, case: str, edits: list[tuple[str, int, bytes]]
) -> None:
    data = bytearray(GOOD[case])
    for kind, place, value in edits:
        # Half of the edits hit the directory, where all the numbers are.
        low = data.find(b"PK\1\2") if place % 2 else 0
        at = max(low, 0) + place // 2 % max(len(data) - max(low, 0), 1)
        if kind == "set":
            data[at : at + len(value)] = value
        elif kind == "insert":
            data[at:at] = value
        elif kind == "delete":
            del data[at : at + len(value)]
        else:
            data[at : at + 4] = b"\xff" * 4
    for name, content in read_what_opens(path, bytes(data)).items():
        # Names can be changed in both places; what is read passes its CRC in any case.
        if name in CONTENT[case] and content != CONTENT[case][name]:
            with zipfile.ZipFile(path) as judge:
                assert judge.read(name) == content


@pytest.mark.parametrize("case", sorted(GOOD))
def test_flipped_bit_is_refused_or_changes_no_content(path: Path, case: str) -> None:
    data, rng = GOOD[case], random.Random(5)
    places = {place for place in range(len(data)) if place > data.index(b"PK\1\2")}
    places |= {rng.randrange(len(data)) for _ in range(300)} | set(range(60))
    refused = 0
    for place in sorted(places):
        mutant = bytearray(data)
        mutant[place] ^= 1 << rng.randrange(8)
        found = read_what_opens(path, bytes(mutant))
        assert found.items() <= CONTENT[case].items(), place
        refused += len(found) < len(CONTENT[case])
    assert refused > len(places) // 3


# --- planted faults: each must turn a check red ---


def test_planted_skipping_of_checksums_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(entry: ZipEntry, limit: int) -> bytearray:
        return bytearray(read_in_pieces(entry, [LIMIT]))

    monkeypatch.setattr(ZipEntry, "read", read)
    with pytest.raises(AssertionError):
        test_flipped_bit_is_refused_or_changes_no_content(path, "stored")


def test_planted_blindness_for_local_headers_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data_offset(entry: ZipEntry) -> int:
        return entry.header_offset + 30 + len(entry.raw_name)

    monkeypatch.setattr(ZipEntry, "data_offset", data_offset)
    path.write_bytes(zipped(MEMBERS, zip64=True))
    with pytest.raises((AssertionError, MalformedCheckpointError)):
        assert_read_as_by_zipfile(path)


def test_planted_short_search_for_the_end_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_directory, "_MAX_COMMENT", 65534)
    with pytest.raises(MalformedCheckpointError):
        test_files_of_zipfile_are_read_as_by_zipfile(path, "stored", False, False, b"x" * 65535)
