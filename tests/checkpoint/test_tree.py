from __future__ import annotations

from pathlib import Path

import pytest

from vaeconv.checkpoint.source import read_bytes
from vaeconv.checkpoint.tree import LocalTree
from vaeconv.errors import CheckpointNotFoundError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    for name in ("config.json", "vae/config.json", "vae/deep/too_deep.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "blob").write_text("elsewhere")
    (root / "vae/linked.bin").symlink_to(tmp_path / "blob")
    (root / "dangling").symlink_to(tmp_path / "nothing")
    return root


def test_lists_two_levels_sorted_with_links_to_files(root: Path) -> None:
    assert LocalTree(root).names() == ["config.json", "vae/config.json", "vae/linked.bin"]


def test_opens_files_and_subtrees(root: Path) -> None:
    vae = LocalTree(root).subtree("vae")
    assert vae.name == str(root / "vae")
    source = vae.open("linked.bin")
    assert read_bytes(source, 0, source.size) == b"elsewhere"
    source.close()


@pytest.mark.parametrize(
    "name", ["../blob", "/etc/passwd", "vae/../../blob", "", ".", "vae//x", "..\\blob", "a\0b"]
)
def test_refuses_names_that_lead_out(root: Path, name: str) -> None:
    tree = LocalTree(root)
    with pytest.raises(CheckpointNotFoundError):
        tree.open(name)
    with pytest.raises(CheckpointNotFoundError):
        tree.subtree(name)


def test_missing_file_and_folder(root: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        LocalTree(root).open("missing")
    with pytest.raises(CheckpointNotFoundError, match="not a folder"):
        LocalTree(root).subtree("missing")
    with pytest.raises(CheckpointNotFoundError, match="not a folder"):
        LocalTree(root / "config.json")
