"""What of a folder is published, and what never is: leftovers, links, keys, folders of people."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.publish.pushes import PLAIN, make_release, run_here
from vaeconv.errors import CheckFailedError
from vaeconv.publish.files import ReleaseFile
from vaeconv.publish.hub import push as pushing
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.selection import is_never_published, select_files

LEFTOVERS = [
    ".env", ".netrc", ".gitignore", ".DS_Store", "._config.json", ".git/config", ".cache/x/y",
    ".ipynb_checkpoints/README-checkpoint.md", ".README.md.swp", "README.md~", "README.md.orig",
    "README.md.rej", "#README.md#", "Thumbs.db", "desktop.ini", "__MACOSX/._x", "notes.tmp",
    f"{PLAIN}.part", f"{PLAIN}.crdownload", f"{PLAIN}.incomplete", f"{PLAIN}.lock",
    "__pycache__/a.cpython-311.pyc", "a.pyc", "wandb/run-1/files/output.log", "nohup.out",
    "core", "core.1234", "id_rsa", "id_ed25519.pub", "signer.PEM", "sign.key", "token",
    "hf_token.txt", "credentials.json", "eval.json.parts/0.jsonl", "x.vaeconv-a1b2", "_netrc",
    "lightning_logs/version_0/hparams.yaml", "prod.env", "env.local", "secrets", "secret.txt",
    "passwords.txt", "hf-token.txt", "api_key.txt", "client_secret.json", "aws_credentials",
    "private_key.txt", "kubeconfig", "htpasswd", "a.swn", "README.md.old", "~$notes.docx",
    "README_REMOTE_123.md", "Untitled.ipynb", "a.filepart", "a.opdownload", "a.part1", "a.!qB",
    "events.out.tfevents.1700000000.host", "runs/a/b", "train.log", "env/bin/python",
]  # fmt: skip
OURS = [
    ".gitattributes", ".eval_results/psnr.yaml", "README.md", "config.json", PLAIN, "LICENSE",
    "model.sig", "sbom.cdx.json", "assets/one.png", "tokenizer.json", "tokens.json", "core.json",
    "score.json", "partial-results.json", "train.ipynb", "vae.vaeconv.json", "monkey.json",
]  # fmt: skip


def test_the_table_of_names() -> None:
    assert [name for name in LEFTOVERS if not is_never_published(name)] == []
    assert [name for name in OURS if is_never_published(name)] == []


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def put(folder: Path, path: str, text: str = "left") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def checked(folder: Path, **options: object) -> list[ReleaseFile]:
    return pushing.checked_files(folder, PushOptions(**options))  # type: ignore[arg-type]


def problems_of(folder: Path, **options: object) -> list[str]:
    with pytest.raises(CheckFailedError) as caught:
        checked(folder, **options)
    return list(caught.value.details) or [caught.value.what]


def test_leftovers_are_left_out_and_named(release: Path) -> None:
    before = [file.path for file in checked(release)]
    for name in LEFTOVERS:
        put(release, name)
    assert [file.path for file in checked(release)] == before
    left = select_files(release).left_out
    assert {".env", "README.md~", ".git/", "wandb/", "__pycache__/"} <= set(left)
    assert all(any(name.startswith(one) for one in left) for name in LEFTOVERS)


def test_include_does_not_publish_them(release: Path) -> None:
    put(release, ".env")
    selection = select_files(release, include=("*",))
    assert (".env" in selection.left_out, ".env" in dict(selection.files).values()) == (True, False)
    assert select_files(release, exclude=(".env",)).left_out == []


def test_a_manifest_that_names_one(release: Path) -> None:
    manifest = json.loads((release / "vaeconv.json").read_text())
    manifest["outputs"]["weights.part"] = {"sha256": None}
    (release / "vaeconv.json").write_text(json.dumps(manifest))
    (problem,) = problems_of(release)
    assert "weights.part is in the manifest" in problem


# --- links and what is no file ---


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    put(tmp_path / "outside", "story.txt", "secret")
    put(tmp_path / "outside", "inner/other.txt", "other")
    put(tmp_path / "outside", ".env", "X=1")
    return tmp_path / "outside"


def test_links_that_lead_out(release: Path, outside: Path) -> None:
    (release / "notes.txt").symlink_to(outside / "story.txt")
    (release / "more").symlink_to(outside, target_is_directory=True)
    found = problems_of(release)
    assert len(found) == 2 and all("leads out of the folder, to " in one for one in found)
    assert all("--follow-symlinks" in one for one in found)
    paths = [file.path for file in checked(release, follow_symlinks=True)]
    assert {"notes.txt", "more/story.txt", "more/inner/other.txt"} <= set(paths)
    assert "more/.env" not in paths


def test_links_inside_are_files(release: Path) -> None:
    (release / "copy.json").symlink_to("config.json")
    (release / "pictures").symlink_to("assets", target_is_directory=True)
    paths = [file.path for file in checked(release)]
    assert {"copy.json", "pictures/one.png", "assets/one.png"} <= set(paths)


@pytest.mark.parametrize("follow", [False, True])
def test_links_to_nothing_to_themselves_and_to_what_is_hidden(
    release: Path, outside: Path, follow: bool
) -> None:
    put(release, ".env", "X=1")
    (release / "gone").symlink_to("nowhere")
    (release / "self").symlink_to("self")
    (release / "loop").symlink_to(".", target_is_directory=True)
    (release / "assets/up").symlink_to("..", target_is_directory=True)
    (release / "settings.txt").symlink_to(".env")
    if follow:
        (release / "out.txt").symlink_to(outside / ".env")
    said = "\n".join(problems_of(release, follow_symlinks=follow))
    for name in ("gone is a link", "self is a link", "loop is a link", "assets/up is a link",
                 "settings.txt is a link to .env"):  # fmt: skip
        assert name in said
    assert said.count("\n") == (5 if follow else 4)


def test_a_snapshot_in_the_hub_s_cache(release: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(release.rglob("*"))):
        if path.is_file():
            link = snapshot / path.relative_to(release)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blobs / f"{number:040x}")
            link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    assert any("leads out" in one for one in problems_of(snapshot))
    found = checked(snapshot, follow_symlinks=True)
    assert [file.path for file in found] == [file.path for file in checked(release)]


def test_what_is_no_file(release: Path) -> None:
    os.mkfifo(release / "pipe")
    here = Path.cwd()
    os.chdir(release)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("sock")
    finally:
        os.chdir(here)
    assert problems_of(release) == [
        "pipe is not a file: it is a named pipe", "sock is not a file: it is a socket"
    ]  # fmt: skip
    assert checked(release, exclude=("pipe", "sock"))


# --- secrets and places ---

HUB_TOKEN = "hf_" + "aB3" * 12
SECRETS = {
    "d.asc": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
    "e.txt": "xoxb-" + "1234567890-" * 3,
    "f.txt": "AIza" + "Sy0" * 12,
    "g.txt": "glpat-" + "a1B2" * 5,
    "utf16.txt": f"token {HUB_TOKEN}".encode("utf-16"),
    "behind-a-zero.bin.txt": b"\0\0binary\0" + HUB_TOKEN.encode(),
    "assets/text-chunk.png": b"\x89PNG\r\n\x1a\n\0\0\0\x40tEXtkey\0" + HUB_TOKEN.encode() + b"\0",
    "far.txt": "x" * (17 << 20) + f" {HUB_TOKEN}",
    "README.md": f"---\nlicense: mit\nlibrary_name: diffusers\n---\nlogin('{HUB_TOKEN}')\n",
    "notes/train.yaml": f"token: {HUB_TOKEN}\n",
    "a.txt": "-----BEGIN EC PRIVATE KEY-----\n",
    "b.txt": "ghp_" + "a1" * 18,
    "c.txt": "AKIA" + "A" * 16,
}


@pytest.mark.parametrize("path", SECRETS)
def test_secrets_are_refused_and_not_told(release: Path, path: str) -> None:
    secret = SECRETS[path]
    put(release, path, "")
    (release / path).write_bytes(secret.encode() if isinstance(secret, str) else secret)
    (problem,) = problems_of(release)
    assert problem.startswith(f"{'cannot be published as it is: '}{path} holds what looks like ")
    done = run_here("push", release, "user/x")
    assert done.exit_code == 4 and path in done.stderr
    assert HUB_TOKEN not in done.stderr and "ghp_" not in done.stderr


def test_words_that_look_like_secrets(release: Path) -> None:
    put(release, "a.txt", "hf_hub_download hf_transfer hf_model_of_mine_with_a_long_name_indeed x")
    assert checked(release)


def test_homes_in_what_programs_write(release: Path) -> None:
    report = '{"schema_version": 1, "command": "eval", "notes": ["/data/a/b: no image"]}'
    files = {
        "a.html": f"<p>/{'root'}/ckpts/model.ckpt</p>", "b.xml": "<a name='/home/bob/x.ckpt'/>",
        "c.jsonl": '{"path": "C:\\\\Users\\\\bob\\\\x"}', "d.json": "\ufeff" + report,
        "e.json": "\n " + report, "f.json": '{"/Users/bob/x": 1}',
    }  # fmt: skip
    for path, text in files.items():
        put(release, path, text)
    put(release, "g.html", "<a href='https://x.org/home/bob/y'>y</a> /homepage /home/")
    header = {"__metadata__": {"ss_output_dir": f"{release.parent}/out"}}
    weights = load_file(release / PLAIN)
    save_file(weights, release / PLAIN, header["__metadata__"])
    found = [one for one in problems_of(release) if "folder of this machine" in one]
    assert {one.split()[0] for one in found} == {*files, PLAIN}
    assert any(one.startswith(PLAIN) and "prune --no-metadata" in one for one in found)


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_a_pattern_that_matches_nothing(release: Path, option: str) -> None:
    done = run_here("push", release, "user/x", option, "secretplan*", "--no-parity")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{option} secretplan* has no effect here: no file matches" in done.stderr


def test_folders_of_this_machine(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    put(release, "notes.md", "trained in /home/somebody/work")
    report = {"schema_version": 1, "command": "compare", "notes": ["/data/sets/coco: no picture"]}
    put(release, "compare.json", json.dumps(report))
    put(release, "fine.md", "see https://x.org/home/somebody/work, /home/somebodyelse, /data/sets")
    found = problems_of(release)
    assert len(found) == 2
    assert "compare.json names a folder of this machine, /data/sets/coco" in found[0]
    assert "notes.md names a folder of this machine, /home/somebody" in found[1]
