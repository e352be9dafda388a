"""What a file is: told by its bytes, and never by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.corpus import Member, zipped
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.errors import InputError, NotACheckpointError

GOOD = save({"encoder.conv_in.weight": torch.arange(200.0)}, {"format": "pt"})
SIZE = int.from_bytes(GOOD[:8], "little")


def with_length(length: int, before: bytes = b"") -> bytes:
    """The same file with a header of that many bytes, as writers that do not pad to 8 make."""
    header = before + GOOD[8 : 8 + SIZE].rstrip()
    header += b" " * (length - len(header))
    assert len(header) == length
    return length.to_bytes(8, "little") + header + GOOD[8 + SIZE :]


# Every low byte; and lengths that spell the beginnings of other containers.
LENGTHS = [*range(256, 512), 0x027B, 0x0280, 0x0580, 0x4B50, 0x7B7B, 0x8B1F, 0x7B0A0A]


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_a_header_of_any_length_is_read_as_by_the_library(tmp_path: Path, name: str) -> None:
    for length in LENGTHS:
        path = tmp_path / name
        path.write_bytes(with_length(length))
        expected = load_file(path)
        with open_checkpoint(path) as checkpoint:
            (tensor,) = checkpoint.tensors.values()
            assert tensor.read() == expected[tensor.name].numpy().tobytes()


@pytest.mark.parametrize("before", [b" ", b"\n\t\r ", b" " * 600])
def test_space_before_the_header_is_read_past(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_length(700, before[: 700 - SIZE]))
    load_file(path)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == 1


@pytest.mark.parametrize("length", [0x17B, 0x280])
def test_a_member_of_a_zip_is_told_by_the_same_rule(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zipped([Member("vae.safetensors", with_length(length))]))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.container == "zip bundle (safetensors)"


@pytest.mark.parametrize(
    "text",
    [json.dumps({"error": "not found"}), '{"a":1}{', '{"a": {"b": {}}}', '       \n{"a":1}'],
)
def test_a_json_document_is_still_called_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text(text)
    with pytest.raises(NotACheckpointError, match="a JSON document"):
        open_checkpoint(path)


@pytest.mark.parametrize("cut", [9, 20, SIZE // 2, 8 + SIZE, -1])
def test_a_cut_file_is_called_truncated(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[:cut])
    with pytest.raises(InputError, match=r"truncated|the file has"):
        open_checkpoint(path)
