"""Places that cannot be written: one line, before the work, and what was found so far is kept."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.evaluation.runs import KL, ROOT, SIZE, environment, measure, run, run_eval
from tests.evaluation.test_partial_results import lines_of
from vaeconv.errors import OutputError
from vaeconv.evaluation import evaluate as evaluation
from vaeconv.evaluation.partial_results import ShardWriter


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded, let alone measured."""

    def fail(*args: object, **how: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(evaluation, "load_candidates", fail)
    monkeypatch.setattr("vaeconv.evaluation.compare.load_candidates", fail)


def full(*args: object, **how: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def compare_to(out: Path, photos: Path) -> Result:
    return run("compare", KL, "--images", photos, "--out", out, "--size", SIZE, "--device", "cpu")


Runs = dict[str, Callable[[Path, Path], Result]]
RUNS: Runs = {
    "eval": lambda out, photos: run_eval(KL, "--images", photos, "--out", out / "e.json"),
    "plots": lambda out, photos: run_eval(
        KL, "--images", photos, "--out", photos.parent / "e.json", "--plots", out / "plots"
    ),
    "compare": compare_to,
    "verify": lambda out, photos: run("verify", KL, KL, "--report", out / "r.json"),
    "verify html": lambda out, photos: run("verify", KL, KL, "--html", out / "r.html"),
    "verify junit": lambda out, photos: run("verify", KL, KL, "--junit", out / "r.xml"),
    "verify pictures": lambda out, photos: run("verify", KL, KL, "--pictures", out / "p"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", RUNS)
def test_a_full_disk_is_found_before_the_work(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    result = RUNS[what](tmp_path, photos)
    assert result.exit_code == 5, result.output
    assert "cannot be written: No space left on device" in result.stderr
    assert result.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", RUNS)
def test_a_folder_that_is_gone_is_found_before_the_work(
    tmp_path: Path, photos: Path, what: str
) -> None:
    result = RUNS[what](tmp_path / "gone" / "deep", photos)
    assert result.exit_code == 5, result.output
    assert "its folder does not exist" in result.stderr
    assert not (tmp_path / "gone").exists()


def test_a_disk_that_fills_up_keeps_what_was_found(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ShardWriter.add
    written = 0

    def add(writer: ShardWriter, record: Any, features: Any = None) -> None:
        nonlocal written
        written += 1
        if written > 2:
            monkeypatch.setattr(writer, "_lines", Full(writer._lines))
        real(writer, record, features)

    class Full:
        def __init__(self, file: Any) -> None:
            self.write, self._file = full, file

        def close(self) -> None:
            self._file.close()

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", add)
        with pytest.raises(OutputError, match="No space left on device"):
            measure([KL], photos, tmp_path / "parts")
    assert [len(lines) for lines in lines_of(tmp_path / "parts").values()] == [2]
    found = measure([KL], photos, tmp_path / "parts")
    assert found["pictures"]["number"] == 5
    assert [len(lines) for lines in lines_of(tmp_path / "parts").values()] == [2, 3]


def test_a_limit_of_the_system_is_one_line_too(tmp_path: Path, photos: Path) -> None:
    """A real file that may not grow: the system ends the write, and nothing is pretended."""
    import resource

    def few_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))

    out = tmp_path / "eval.json"
    done = subprocess.run(
        [sys.executable, "-m", "vaeconv", "eval", KL, "--images", photos, "--out", out, "--size",
         str(SIZE), "--metrics", "psnr", "--device", "cpu", "--comment", "x" * 4000],
        cwd=ROOT, env=environment(), capture_output=True, text=True, preexec_fn=few_bytes,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {out}: cannot be written: File too")
    assert not out.exists()
    assert [len(lines) for lines in lines_of(tmp_path / "eval.json.parts").values()] == [5]
    assert run_eval(KL, "--images", photos, "--out", out, metrics="psnr").exit_code == 0
    assert json.loads(out.read_text())["pictures"]["number"] == 5


@pytest.mark.parametrize("name", ["run.json", "shard-0000-0000.jsonl"])
def test_progress_that_cannot_be_read_is_one_line(tmp_path: Path, photos: Path, name: str) -> None:
    parts = tmp_path / "parts"
    measure([KL], photos, parts, limit=1)
    (parts / name).unlink()
    (parts / name).mkdir()
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        measure([KL], photos, parts, limit=1)


def test_a_summary_that_leads_nowhere_is_named_before_the_work(tmp_path: Path) -> None:
    place = tmp_path / "none" / "summary.md"
    result = run("verify", KL, tmp_path / "missing.ckpt", GITHUB_STEP_SUMMARY=str(place))
    assert result.exit_code == 5
    assert f"GITHUB_STEP_SUMMARY={place}: cannot be written" in result.stderr
