"""Entries of a safetensors header that a user asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from vaeconv.conversion import ConvertOptions, convert
from vaeconv.errors import UsageError
from vaeconv.prune_options import PruneOptions
from vaeconv.pruning import prune

SOURCE = str(FIXTURES / "tiny-kl.ckpt")
ENTRIES = {"modelspec.title": "Tiny: „ä“ = x", "a": "", "Z": "line\nline"}


def entries_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def test_entries_stand_beside_the_format(tmp_path: Path) -> None:
    options = ConvertOptions(metadata=ENTRIES)
    written = convert(SOURCE, tmp_path / "out", options).written[0].path
    assert entries_of(written) == {**ENTRIES, "format": "pt"}
    plain = convert(SOURCE, tmp_path / "plain", ConvertOptions()).written[0].path
    assert entries_of(plain) == {"format": "pt"}
    tensors, expected = load_file(written), load_file(plain)
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].tobytes() == expected[name].tobytes() for name in tensors)
    again = convert(
        SOURCE, tmp_path / "again", ConvertOptions(metadata=dict(reversed(ENTRIES.items())))
    )
    assert again.written[0].path.read_bytes() == written.read_bytes(), "in any order"


def test_pruned_files_have_them_too(tmp_path: Path) -> None:
    prune(SOURCE, tmp_path / "a.safetensors", PruneOptions(metadata=ENTRIES))
    assert entries_of(tmp_path / "a.safetensors") == {**ENTRIES, "format": "pt"}


@pytest.mark.parametrize(
    ("output", "metadata", "said"),
    [
        ("a.ckpt", {"a": "b"}, "no header for metadata"),
        ("out", {"format": "tf"}, "how tensors are to be loaded"),
    ],
)
def test_what_no_header_can_have(
    tmp_path: Path, output: str, metadata: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        convert(SOURCE, tmp_path / output, ConvertOptions(metadata=metadata))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metadata", "a=b=c", "--metadata", "d="], None),
        (["--metadata", "a"], "--metadata a: give each KEY=TEXT once"),
        (["--metadata", "=a"], "--metadata =a: give each"),
        (["--metadata", "a=b", "--metadata", "a=c"], "--metadata a=c: give each"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "prune"])
def test_the_option(tmp_path: Path, command: str, options: list[str], said: str | None) -> None:
    target = tmp_path / "a.safetensors"
    entry = Path(sys.executable).with_name("vaeconv")
    done = subprocess.run(
        [entry, command, SOURCE, target, *options], capture_output=True, text=True, check=False
    )
    if said:
        assert (done.returncode, said in done.stderr, target.exists()) == (2, True, False)
    else:
        assert entries_of(target) == {"a": "b=c", "d": "", "format": "pt"}
