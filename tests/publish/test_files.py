"""Which files are a release, how they are known, and why they may not be published."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.publish.pushes import (
    FP16,
    PLAIN,
    contents_of,
    list_release,
    make_release,
    parity_of,
    run_here,
    write_parity,
)
from vaeconv.errors import CheckpointNotFoundError, OutputError
from vaeconv.publish.documents import parity_reports
from vaeconv.publish.files import check_release, hash_file, hash_files
from vaeconv.publish.selection import select_files


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def problems_of(folder: Path) -> list[str]:
    return check_release(folder, list_release(folder), reports=parity_reports(folder))


def test_a_file_is_known_by_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)  # more than is read at once
    found = hash_file(path, "a/b.bin")
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    )
    assert found.blob == git.stdout.strip()
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.path, found.size, found.is_weights) == ("a/b.bin", 1_280_000, True)


def test_what_is_never_published(release: Path) -> None:
    expected = sorted(contents_of(release))
    for name in (".git/config", ".cache/x", "__pycache__/x.pyc", ".DS_Store",
                 "assets/.DS_Store", ".vaeconv-tmp/x", "x.vaeconv-1.tmp"):  # fmt: skip
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_text("secret")
    assert [file.path for file in list_release(release)] == expected


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.safetensors"], [], [FP16, PLAIN]),
        (["*.safetensors"], ["*fp16*"], [PLAIN]),
        (["config.json", "assets/*"], [], ["assets/one.png", "config.json"]),
        ([], ["*.safetensors", "*.json", "*.png"], ["README.md"]),
    ],
)
def test_patterns(
    release: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    found = list_release(release, include=include, exclude=exclude)
    assert [file.path for file in found] == expected


def test_nothing_to_publish(release: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        list_release(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="nothing to publish"):
        list_release(release, include=["*.zip"])
    assert run_here("push", tmp_path / "nowhere", "user/x").exit_code == 3


def test_a_good_release_has_no_problems(release: Path) -> None:
    assert problems_of(release) == []


def test_every_problem_is_listed(release: Path) -> None:
    (release / "config.json").unlink()
    (release / "README.md").unlink()
    (release / "parity.json").unlink()
    found = "\n".join(problems_of(release))
    for said in ("there is no config.json", "there is no README.md", "there is no parity report"):
        assert said in found


def test_weights_may_be_proved_by_several_reports(release: Path) -> None:
    import json

    (release / "parity.json").write_text(json.dumps(parity_of(release / PLAIN)))
    (problem,) = problems_of(release)
    assert problem.startswith(f"{FP16} is in no parity report")
    (release / "parity-fp16.json").write_text(json.dumps(parity_of(release / FP16)))
    assert problems_of(release) == []
    write_parity(release, ok=False, problems=["they differ"])
    assert any("parity.json says: they differ" in problem for problem in problems_of(release))


def test_a_drop_in_report_is_one(release: Path) -> None:
    same = parity_of(release / PLAIN, release / FP16)["same"]
    write_parity(release, same=None, drop_in=same)
    assert problems_of(release) == []


def test_names_that_no_repository_can_have(release: Path) -> None:
    Path(os.fsdecode(os.fsencode(release) + b"/\xff.txt")).write_bytes(b"")
    (problem,) = problems_of(release)
    assert "is not UTF-8" in problem
    result = run_here("push", release, "user/x")
    assert result.exit_code == 4 and result.stderr.count("\n") == 1


def test_hashing_says_how_far_it_is(release: Path) -> None:
    said: list[tuple[int, int]] = []
    selection = select_files(release)
    files = hash_files(release, selection, lambda done, total: said.append((done, total)))
    total = sum(file.size for file in files)
    assert said[-1] == (total, total)
    assert said == sorted(said) and {one for _, one in said} == {total}
