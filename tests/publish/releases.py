"""Small releases: made in this process, and in processes that are killed.

Run as a program it loads everything once, and then starts a process for each command that it is
told, a JSON object a line: seconds that the imports would take are spent once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import contents_of
from vaeconv.publish.release.config import ReleaseConfig, read_release
from vaeconv.publish.release.release import Release, release

ROOT = FIXTURES.parent
NAME = "vae-ft-tiny-ema-pruned"
FOLDERS = ("diffusers", "original")
STEPS = ("convert", "prune", "verify", "eval", "compare", "card", "push")
BASE: dict[str, dict[str, Any]] = {
    "source": {"checkpoint": "tiny-kl.ckpt", "scaling_factor": 0.18215},
    "output": {"original": NAME},
    "verify": {"device": "cpu"},
    "eval": {
        "images": "pictures",
        "size": 48,
        "metrics": ["psnr", "ssim"],
        "title": "Four pictures (48x48)",
        "device": "cpu",
    },
    "compare": {"images": "pictures", "size": 48},
    "card": {"title": "Tiny", "license": "mit", "summary": "For tests."},
    "push": {},
}


# --- files ---


def write_toml(path: Path, *changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a release file: the usual one with keys changed; None leaves a key out."""
    tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in BASE.items()}
    for change in changes:
        for name, table in change.items():
            tables.setdefault(name, {}).update(table)
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(one)}" for key, one in table.items() if one is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_project(folder: Path, *changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """Lay out a training checkpoint, pictures and a release file."""
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / "tiny-kl.ckpt", folder)
    shutil.copytree(FIXTURES / "pictures", folder / "pictures")
    write_toml(folder / "release.toml", *changes)
    return folder


def repositories(name: str) -> dict[str, dict[str, Any]]:
    """A table that publishes in two repositories."""
    push = {"repo_id": f"user/{name}", "original_repo_id": f"user/{name}-original", "tag": "v1.0"}
    return {"push": push}


def published_of(project: Path, folder: str = "release") -> dict[str, bytes]:
    """Everything that would be published, of both folders."""
    return {
        f"{one}/{path}": data
        for one in FOLDERS
        for path, data in contents_of(project / folder / one).items()
    }


def add_byte(path: Path, at: int = -5) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- in this process ---


def config_of(project: Path) -> ReleaseConfig:
    return read_release(project / "release.toml")


def make(project: Path, *changes: Mapping[str, Mapping[str, Any]], **options: Any) -> Release:
    """Make a release as far as it is not made; with changes, of a file that has them."""
    if changes:
        write_toml(project / "release.toml", *changes)
    return release(config_of(project), project, **options)


def redone(project: Path, *changes: Mapping[str, Mapping[str, Any]], **options: Any) -> list[str]:
    """Name the steps that were done, of those that are not done each time."""
    steps: list[str] = []
    made = make(project, *changes, on_step=steps.append, **options)
    assert [one.name for one in made.steps if one.outcome == "done"] == steps
    return [step for step in steps if step not in ("card", "push")]


# --- in processes that are killed ---


class Launcher:
    """The process that starts others, seen from the test's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, project: Path) -> Running:
        """Start ``vaeconv release`` in a project."""
        assert self._process.stdin
        said = project / "stderr.txt"
        said.write_text("")
        told = {"args": ["release", str(project / "release.toml")], "stderr": str(said)}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return Running(self._read()["pid"], said, self)

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the launcher is gone"
        return json.loads(line)


class Running:
    """A release on its way."""

    def __init__(self, pid: int, said: Path, launcher: Launcher) -> None:
        self.pid = pid
        self._said = said
        self._launcher = launcher

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_for(self, condition: Any, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.said
            time.sleep(0.002)

    def kill(self) -> int:
        """Kill it, and tell how it ended."""
        os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def end(self) -> int:
        return int(self._launcher._read()["status"])


@contextmanager
def launch(env: Mapping[str, str], log: Path) -> Iterator[Launcher]:
    """Keep a launcher until the end of the block."""
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.publish.releases"],
            cwd=ROOT,
            env={**env, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        try:
            yield Launcher(process)
        finally:
            process.kill()


def _run_child(told: dict[str, Any], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)  # as many as in the tests: sums depend on it
    out = os.open(told["stderr"], os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["vaeconv", *told["args"]]
    from vaeconv.cli import main

    main()


def _main() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that have computed are not there after a fork
    with tempfile.TemporaryDirectory() as folder:  # what is loaded late is loaded now
        make(write_project(Path(folder) / "project"), last="card")
    import vaeconv.cli.commands.release  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _run_child(json.loads(line), threads)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    _main()
