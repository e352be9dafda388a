"""Releases to publish, and pushes to a loopback Hub: in this process without waits, and outside."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.loopback_hub import Account, LoopbackHub, Repository
from vaeconv.cli import app
from vaeconv.publish.files import ReleaseFile, hash_files
from vaeconv.publish.hub import commit as committing
from vaeconv.publish.hub import session as hub_session
from vaeconv.publish.hub.push import Pushed, push_files
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.selection import select_files

TOKEN = "hf_secretTokenOfTheTests"
TOKENS: dict[str, str | Account] = {
    TOKEN: "user",
    "hf_otherSecretToken": "other",
    "hf_readingSecretToken": Account("user", can_write=False),
}
PLAIN = "diffusion_pytorch_model.safetensors"
FP16 = "diffusion_pytorch_model.fp16.safetensors"
CARD = "---\nlibrary_name: diffusers\nlicense: mit\n---\n\n# Tiny\n"
NUMBERS = itertools.count(1)


# --- releases ---


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_release(folder: Path) -> Path:
    """Write all of a release: two variants, config, manifest, a passed report, card."""
    (folder / "assets").mkdir(parents=True)
    weights = load_file(FIXTURES / "tiny-diffusers" / PLAIN)
    save_file(weights, folder / FP16)
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, folder / PLAIN)
    (folder / "config.json").write_bytes((FIXTURES / "tiny-diffusers/config.json").read_bytes())
    (folder / "assets" / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (folder / "README.md").write_text(f"{CARD}\n![one](assets/one.png)\n")
    write_manifest(folder)
    write_parity(folder)
    return folder


def write_manifest(folder: Path, names: Sequence[str] = (PLAIN, FP16, "config.json")) -> None:
    outputs = {
        name: {"sha256": sha256_of(folder / name), "size": (folder / name).stat().st_size}
        for name in names
    }
    manifest = {"source": {"name": "tiny.ckpt", "sha256": "0" * 64, "size": 1}, "outputs": outputs}
    (folder / "vaeconv.json").write_text(json.dumps({"schema_version": 1, **manifest}))


def parity_of(*paths: Path, **changes: Any) -> dict[str, Any]:
    """A report of ``vaeconv verify``, as far as others read it."""
    files = [{"name": path.name, "sha256": sha256_of(path)} for path in paths]
    same = {"sides": ["A", "B"], "ok": True, "decoded": True, "worst": [], "problems": []}
    report: dict[str, Any] = {
        "schema_version": 1,
        "command": "verify",
        "ok": True,
        "sides": [
            {"label": "A", "name": "tiny.ckpt", "files": []},
            {"label": "B", "name": "release", "files": files},
        ],
        "same": same,
        "drop_in": None,
        "environment": {"torch": "2.0", "device": "cpu"},
        "problems": [],
    }
    return {**report, **changes}


def write_parity(folder: Path, **changes: Any) -> Path:
    path = folder / "parity.json"
    path.write_text(json.dumps(parity_of(folder / PLAIN, folder / FP16, **changes)))
    return path


def list_release(
    folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[ReleaseFile]:
    """List what would be published, without a look at whether it may be."""
    selection = select_files(folder, include=include, exclude=exclude)
    assert not selection.problems
    return hash_files(folder, selection, lambda done, total: None)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def small_files(folder: Path) -> dict[str, bytes]:
    """Write files that take every way of uploading: regular, LFS in one part, LFS in several."""
    files = {
        "README.md": CARD.encode(),
        "config.json": b'{"latent_channels": 4}',
        "one.png": b"\x89PNG" * 200,
        "weights.safetensors": bytes(range(256)) * 800,  # 200 KiB: three parts
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return files


def small_hub() -> LoopbackHub:
    return LoopbackHub(TOKENS, multipart_over=64 << 10, part_size=80 << 10)


# --- state of a Hub ---


def state_of(hub: LoopbackHub) -> dict[str, Any]:
    """Everything that a push could change."""
    return {
        repo_id: (
            dict(repo.branches),
            dict(repo.tags),
            dict(repo.pulls),
            sorted(repo.lfs),
            repo.private,
        )
        for repo_id, repo in hub.repos.items()
    }


def sent_paths(hub: LoopbackHub) -> list[str]:
    """The paths in the commits that were asked for."""
    return [
        json.loads(line)["value"]["path"]
        for request in hub.asked("POST", "/commit/")
        for line in request.body.splitlines()[1:]
    ]


def uploaded(hub: LoopbackHub) -> int:
    """Bytes that came to storage."""
    return sum(request.size for request in hub.asked("PUT", host="storage"))


# --- in this process ---


class Pushes:
    """Pushes in this process, whose waits are noted and not waited."""

    def __init__(self, hub: LoopbackHub, folder: Path, slept: list[float]) -> None:
        self.hub = hub
        self.contents = small_files(folder)
        self.folder = folder
        self.slept = slept
        self.repo_id = f"user/model-{next(NUMBERS)}"

    @property
    def repo(self) -> Repository:
        return self.hub.repo(self.repo_id)

    @property
    def files(self) -> list[ReleaseFile]:
        return list_release(self.folder)

    def run(self, *, dry_run: bool = False, **options: Any) -> Pushed:
        return push_files(self.files, self.repo_id, PushOptions(**options), dry_run=dry_run)


@contextmanager
def pushes_to(hub: LoopbackHub, folder: Path) -> Iterator[Pushes]:
    """Let this process's client talk to a Hub, without waits."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    slept: list[float] = []
    clock = types.SimpleNamespace(**{**vars(time), "sleep": slept.append})
    env = hub.env(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name not in env:
                patch.delenv(name)
        for name in ("HF_TOKEN", "NO_PROXY"):
            patch.setenv(name, env[name])
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for module in (hub_session, committing, _http, file_download):
            patch.setattr(module, "time", clock)
        yield Pushes(hub, folder / "release", slept)


# --- through the command ---


def run_here(*args: object) -> Result:
    """Run the command in this process; for what never comes to a Hub."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_push(
    env: Mapping[str, str], *args: object, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("vaeconv"), "push", *map(str, args)],
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_push(env: Mapping[str, str], *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("vaeconv"), "push", *map(str, args)],
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests may have made their processes deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
