"""Temporaries and the runs that look for debris, interleaved on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaeconv.checkpoint import system
from vaeconv.checkpoint.writers import atomic
from vaeconv.common import leftovers


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Let another run look for debris between the making of a temporary and its lock."""
    seen: list[Path] = []
    lock = system._lock

    def temporaries() -> list[Path]:
        found = tmp_path.glob(".vaeconv-*")
        return [path for path in found if path.suffix != system.LOCK_ENDING]

    def lock_late(fd: int, wait: bool) -> bool:
        if wait and len(seen) < 2:
            seen.extend(temporaries())
            atomic._remove_debris(tmp_path / "target")
            assert not temporaries(), "the other run found nothing"
        return lock(fd, wait)

    monkeypatch.setattr(system, "_lock", lock_late)
    return seen


def test_a_file_that_another_run_took_for_debris_is_made_anew(taken, tmp_path):
    atomic.replace_small_file(tmp_path / "target", b"all of it", durable=False)
    assert len(set(taken)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_bytes() == b"all of it"


def test_a_folder_that_another_run_took_for_debris_is_made_anew(taken, tmp_path):
    target = tmp_path / "target"
    with atomic.staged_folder(target, overwrite=False, durable=False) as folder:
        atomic._remove_debris(target)  # locked now
        (folder / "file").write_bytes(b"1")
    assert len(set(taken)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "file").read_bytes() == b"1"


def test_a_folder_taken_before_it_is_opened_is_made_anew(monkeypatch, tmp_path):
    make, tries = atomic.os.mkdir, []

    def mkdir(path: Path) -> None:
        make(path)
        tries.append(path)
        if len(tries) == 1:
            path.rmdir()

    monkeypatch.setattr(atomic.os, "mkdir", mkdir)
    with atomic.staged_folder(tmp_path / "target", overwrite=False, durable=False) as folder:
        assert folder == tries[1]
    assert (tmp_path / "target").is_dir()


def test_a_stop_between_two_renames_brings_the_old_folder_back(monkeypatch, tmp_path):
    """Where two names cannot be exchanged in one step."""
    target, swaps = tmp_path / "target", []
    target.mkdir()
    (target / "old").write_bytes(b"1")
    rename = atomic.os.rename

    def stop(one: Path, other: Path) -> None:
        rename(one, other)
        if one == target:
            swaps.append(one)
            leftovers.remove_all()  # as a signal's handler does
            assert (target / "old").read_bytes() == b"1"
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "rename", stop)
    monkeypatch.setattr(system, "exchange", lambda one, other: False)
    with (
        pytest.raises(KeyboardInterrupt),
        atomic.staged_folder(target, overwrite=True, durable=False) as folder,
    ):
        (folder / "new").write_bytes(b"2")
    assert swaps and sorted(path.name for path in target.iterdir()) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
