"""Signatures over a release: what they cover, and what they do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.publish.pushes import make_release, run_push, sha256_of
from tests.support.loopback_hub import LoopbackHub
from vaeconv.errors import CheckFailedError, InputError, MissingDependencyError, OutputError
from vaeconv.publish.hub.push import push
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.signing import SIGNATURE, read_signed, sign_folder, verify_signature

FIXTURES = Path(__file__).parents[2] / "fixtures"
ENTRY = Path(sys.executable).with_name("vaeconv")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # sigstore's imports


def make_key(folder: Path, name: str = "key") -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as out
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(
        private.private_bytes(out.Encoding.PEM, out.PrivateFormat.PKCS8, out.NoEncryption())
    )
    paths[1].write_bytes(
        private.public_key().public_bytes(out.Encoding.PEM, out.PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, public = make_key(tmp_path)
    folder = tmp_path / "release"
    shutil.copytree(FIXTURES / "tiny-diffusers", folder)
    (folder / "README.md").write_text("a card")
    assert sign_folder(folder, private) == folder / SIGNATURE
    return folder, public


def test_a_signed_folder_is_what_was_signed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    verify_signature(*signed)
    elsewhere = tmp_path / "download"
    shutil.copytree(signed[0], elsewhere)
    (elsewhere / ".gitattributes").write_text("*.safetensors filter=lfs")
    (elsewhere / ".cache/huggingface").mkdir(parents=True)
    (elsewhere / ".cache/huggingface/config.json.metadata").write_text("of the Hub's client")
    verify_signature(elsewhere, signed[1])


def test_a_folder_of_links_is_what_they_lead_to(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """As a download in the client's cache is."""
    links = tmp_path / "links"
    links.mkdir()
    for path in signed[0].iterdir():
        (links / path.name).symlink_to(path)
    verify_signature(links, signed[1])
    other = tmp_path / "config.json"
    other.write_text("{}")
    (links / "config.json").unlink()
    (links / "config.json").symlink_to(other)
    with pytest.raises(CheckFailedError):
        verify_signature(links, signed[1])


def test_the_card_may_be_edited(signed: tuple[Path, Path]) -> None:
    (signed[0] / "README.md").write_text("another card")
    verify_signature(*signed)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_changed_file_is_found(signed: tuple[Path, Path], name: str) -> None:
    path = signed[0] / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckFailedError, match="does not fit"):
        verify_signature(*signed)


def differences(signed: tuple[Path, Path], key: Path | None = None) -> list[str]:
    with pytest.raises(CheckFailedError, match="the signature does not fit") as caught:
        verify_signature(signed[0], key or signed[1])
    return list(caught.value.details) or [caught.value.what.partition("does not fit: ")[2]]


def test_what_changed_is_missing_or_was_added_is_named(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = signed[0]
    (folder / "extra.bin").write_text("new")
    assert differences(signed) == ["added: extra.bin"]
    (folder / "inner").mkdir()
    (folder / "inner/more.bin").write_text("new")
    (folder / "config.json").unlink()
    name = "diffusion_pytorch_model.safetensors"
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
    found = [f"changed: {name}", "missing: config.json", "added: extra.bin",
             "added: inner/more.bin"]  # fmt: skip
    assert differences(signed) == found
    # Also where the signature itself is another's, or damaged.
    _, other = make_key(tmp_path, "other")
    first, *others = differences(signed, other)
    assert "not by this key, or it is damaged" in first and others == found
    bundle = json.loads((folder / SIGNATURE).read_text())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    first, *others = differences(signed)
    assert "not by this key, or it is damaged" in first and others == found


def test_another_key_is_another_signer(signed: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = make_key(tmp_path, "other")
    (said,) = differences(signed, other)
    assert "not by this key" in said


def test_what_cannot_be_signed_or_checked(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    junk = tmp_path / "junk.pem"
    junk.write_text("no key")
    with pytest.raises(InputError, match="not a key to sign with"):
        sign_folder(folder, junk)
    with pytest.raises(InputError, match="no such key"):
        sign_folder(folder, tmp_path / "none.pem")
    with pytest.raises(OutputError):
        sign_folder(tmp_path / "none", junk)
    with pytest.raises(InputError, match="not the public half of a key"):
        verify_signature(folder, junk)
    with pytest.raises(InputError, match="no such signature"):
        verify_signature(folder, public, tmp_path / "none.sig")
    (folder / SIGNATURE).write_text("no bundle")
    with pytest.raises(CheckFailedError):
        verify_signature(folder, public)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"dsseEnvelope": 3}',
        b'{"dsseEnvelope": {"payload": 3}}',
        b'{"dsseEnvelope": {"payload": "e30="}}',  # {}
        b'{"dsseEnvelope": {"payload": "eyJwcmVkaWNhdGUiOiB7InJlc291cmNlcyI6IDN9fQ=="}}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:40].decode("latin-1"),
)
def test_what_is_no_signature_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    release = make_release(tmp_path / "release")
    (release / SIGNATURE).write_bytes(content)
    with pytest.raises(CheckFailedError, match=r"model\.sig: not a signature"):
        push(release, "user/x")


def test_a_signature_names_its_files(signed: tuple[Path, Path]) -> None:
    found = read_signed(signed[0] / SIGNATURE)
    assert found == {
        name: sha256_of(signed[0] / name)
        for name in ("config.json", "diffusion_pytorch_model.safetensors")
    }


def test_the_command(signed: tuple[Path, Path]) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [str(ENTRY), "verify-signature", str(signed[0]), "--key", str(signed[1])]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run().returncode == 0
    (signed[0] / "config.json").write_text("{}")
    done = run()
    assert done.returncode == 4
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingDependencyError, match=r"vaeconv\[sign\]"):
        verify_signature(tmp_path, tmp_path)


# --- with push ---


def test_a_push_signs_and_signs_again_only_what_changed(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, public = make_key(tmp_path)
    release = make_release(tmp_path / "release")
    (release / ".DS_Store").write_bytes(b"not published")
    env = hub.env(tmp_path / "home")

    def push(*args: object) -> dict[str, Any]:
        done = run_push(env, release, "user/signed", "--sign", private, "--json", *args)
        assert done.returncode == 0, done.stdout
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    assert SIGNATURE in push("--dry-run")["changed"]
    assert not (release / SIGNATURE).exists()
    first = push()
    assert SIGNATURE in first["changed"]
    repo = hub.repo("user/signed")
    download = tmp_path / "download"
    for path, content in repo.files().items():
        (download / path).parent.mkdir(parents=True, exist_ok=True)
        (download / path).write_bytes(content)
    (download / ".gitattributes").write_bytes(b"of the Hub")
    verify_signature(download, public)

    assert push()["changed"] == []
    # A signature differs each time; where the folder lost its own, the published one still fits.
    (release / SIGNATURE).unlink()
    assert push()["changed"] == []
    assert (release / SIGNATURE).read_bytes() == repo.files()[SIGNATURE]
    assert repo.commit_count() == 1

    (release / "assets/one.png").write_bytes(b"another picture")
    assert set(push()["changed"]) == {SIGNATURE, "assets/one.png"}
    (download / "assets/one.png").write_bytes(b"another picture")
    (download / SIGNATURE).write_bytes(repo.files()[SIGNATURE])
    verify_signature(download, public)


def test_a_signature_that_fits_goes_to_every_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, _ = make_key(tmp_path)
    release = make_release(tmp_path / "release")
    for repo_id in ("user/one", "user/another"):
        hub.create_repo(repo_id)
        assert push(release, repo_id, PushOptions(sign=private)).is_new
        (release / ".DS_Store").write_bytes(b"what is not published makes no new one")
    first, second = (
        hub.repo(repo_id).files()[SIGNATURE] for repo_id in ("user/one", "user/another")
    )
    assert first == second


def test_what_is_left_out_is_not_signed(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, public = make_key(tmp_path)
    release = make_release(tmp_path / "release")
    (release / "notes.txt").write_text("mine")
    env = hub.env(tmp_path / "home")
    run_push(env, release, "user/partly", "--sign", private, "--exclude", "notes.txt")
    (release / "notes.txt").unlink()
    verify_signature(release, public)


def test_a_key_that_is_none_stops_a_push(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    (tmp_path / "key.pem").write_text("no key")
    release = make_release(tmp_path / "release")
    env = hub.env(tmp_path / "home")
    for key, said in (("key.pem", "not a key to sign with"), ("gone.pem", "no such key")):
        done = run_push(env, release, "user/unsigned", "--sign", tmp_path / key)
        assert (done.returncode, said in done.stderr) == (3, True), done.stderr
    assert "user/unsigned" not in hub.repos
