"""Calls that not every system has, and what takes their place where they are taken away."""

from __future__ import annotations

import ntpath
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.processors import PLUGIN, ROOT
from vaeconv.checkpoint import system
from vaeconv.checkpoint.tree import stays_inside

CKPT = ROOT / "fixtures" / "tiny-kl.ckpt"
ENTRY = Path(sys.executable).with_name("vaeconv")
COMMANDS = (
    ("convert", CKPT, "out", "--scaling-factor", "0.5"),
    ("convert", CKPT, "out", "--scaling-factor", "0.5", "--ema", "--overwrite"),
    ("convert", CKPT, "out.safetensors", "--manifest"),
    ("convert", CKPT, "out.safetensors", "--overwrite", "--dtype", "fp16"),
    ("prune", "--ema", CKPT, "pruned.ckpt"),
    ("verify", "--weights-only", CKPT, "out", "--scaling-factor", "0.5", "--report", "r.json"),
)


def run_all(place: Path, **env: str) -> dict[str, bytes]:
    place.mkdir()
    path = os.pathsep.join([str(PLUGIN), str(ROOT)])
    for command in COMMANDS:
        done = subprocess.run(
            [ENTRY, *command], cwd=place, env={**os.environ, "PYTHONPATH": path, **env},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        # Of the EMA weights another sum was written: what matters here is that both say so.
        assert done.returncode in ((0, 4) if command[0] == "verify" else (0,)), done.stderr
        assert "internal error" not in done.stderr
    found = (path for path in place.rglob("*") if path.is_file() and path.name != "r.json")
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def test_without_posix_every_byte_is_the_same(tmp_path: Path) -> None:
    usual = run_all(tmp_path / "usual")
    assert usual.keys() > {"out/config.json", "pruned.ckpt", "out.safetensors"}
    assert run_all(tmp_path / "portable", VAECONV_TESTS_NO_POSIX="1") == usual


@pytest.mark.parametrize("is_whole", [True, False], ids=["as it is", "without"])
def test_threads_read_and_write_one_descriptor(
    is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_whole:
        for name in ("preadv", "pwrite"):
            monkeypatch.delattr(os, name, raising=False)
    size, pieces = 1 << 12, [os.urandom(1 << 12) for _ in range(400)]
    fd = os.open(tmp_path / "file", system.CREATE)

    def carry(number: int) -> bool:
        data, offset, there = memoryview(pieces[number]), number * size, bytearray(size)
        assert system.write_at(fd, data, offset) == size
        assert system.read_at(fd, memoryview(there), offset) == size
        return there == pieces[number]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(carry, range(len(pieces))))
    assert system.read_at(fd, memoryview(bytearray(1)), size * len(pieces)) == 0
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_keeps_others_out_until_it_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.mkdir() if kind == "folder" else path.touch()
    with system.locked(path) as is_held:
        assert is_held
        with pytest.raises(BlockingIOError), system.locked(path):
            pytest.fail("two hold it")
    with system.locked(path, wait=True) as is_held:
        assert is_held
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_with_a_drive_leads_out_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stays_inside("vae/config.json")
    monkeypatch.setattr(os.path, "splitdrive", ntpath.splitdrive)
    assert stays_inside("vae/config.json")
    assert not stays_inside("C:config.json")
