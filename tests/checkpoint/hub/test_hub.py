from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.range_hub import RangeHub, point_client_at
from vaeconv.checkpoint.hub.address import HubLocation, parse_location
from vaeconv.checkpoint.hub.failures import Retry
from vaeconv.checkpoint.hub.range_source import RangeSource
from vaeconv.checkpoint.hub.repository import HubFiles, open_hub
from vaeconv.checkpoint.source import ByteSource, FileSource, read_bytes
from vaeconv.checkpoint.tree import LocalTree
from vaeconv.errors import (
    CheckpointNotFoundError,
    HubError,
    MalformedCheckpointError,
    OutputError,
    UsageError,
    VaeconvError,
)

REPO = "owner/model"
FAST = Retry(first_delay=0.001, longest_delay=0.05, read=2.0)
MIB = 1 << 20
WEIGHTS = random.Random(1).randbytes(MIB)
FILES = {
    "model.ckpt": WEIGHTS,
    "model_index.json": b"{}",
    "vae/config.json": b'{"a": 1}',
    "vae/diffusion_pytorch_model.safetensors": WEIGHTS[::-1],
    "vae/logs/today/events.txt": b"deep",
    "../evil.json": b"evil",
}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(params=[False, True], ids=["direct", "cdn"])
def hub(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RangeHub]:
    from huggingface_hub import close_session

    with RangeHub({REPO: dict(FILES)}, cdn=request.param) as hub:
        point_client_at(hub, home, monkeypatch)
        yield hub
        close_session()


def opened(text: str, **options: object) -> ByteSource:
    location = parse_location(text)
    assert location
    source = open_hub(location, retry=FAST, **options)  # type: ignore[arg-type]
    assert isinstance(source, FileSource | RangeSource)
    return source


def content(source: ByteSource) -> bytes:
    try:
        return bytes(read_bytes(source, 0, source.size))
    finally:
        source.close()


def tree(text: str = f"hf://{REPO}", **options: object) -> HubFiles:
    location = parse_location(text)
    assert location
    found = open_hub(location, retry=FAST, **options)  # type: ignore[arg-type]
    assert isinstance(found, HubFiles)
    return found


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/name", ("owner/name", None, None)),
        ("hf://owner/name/", ("owner/name", None, None)),
        ("hf://o.w-n_er/na.me-1/a/b c.ckpt", ("o.w-n_er/na.me-1", None, "a/b c.ckpt")),
        ("hf://owner/name@v1.0", ("owner/name", "v1.0", None)),
        ("hf://owner/name@v1.0/a@b.ckpt", ("owner/name", "v1.0", "a@b.ckpt")),
        ("hf://owner/name@refs%2Fpr%2F1/a", ("owner/name", "refs/pr/1", "a")),
        ("hf://owner/name@refs/pr/1/a", ("owner/name", "refs/pr/1", "a")),
        ("https://huggingface.co/owner/name", ("owner/name", None, None)),
        ("https://hf.co/owner/name/tree/main", ("owner/name", "main", None)),
        ("https://huggingface.co/owner/name/tree/main/vae", ("owner/name", "main", "vae")),
        (
            "https://huggingface.co/owner/name/resolve/main/a%20b.ckpt?download=true",
            ("owner/name", "main", "a b.ckpt"),
        ),
        (
            "https://huggingface.co/owner/name/blob/refs%2Fpr%2F2/vae/x.bin#L1",
            ("owner/name", "refs/pr/2", "vae/x.bin"),
        ),
        ("https://huggingface.co/owner/name/blob/refs/pr/2/x", ("owner/name", "refs/pr/2", "x")),
        ("http://mirror.test:8080/hf/owner/name/resolve/main/x", ("owner/name", "main", "x")),
    ],
)
def test_addresses(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, str | None, str | None]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.test:8080/hf/")
    assert parse_location(text) == HubLocation(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.ckpt",
        "/a/b",
        "C:\\x",
        "owner/name",
        "https://example.com/owner/name",
        "http://[",
        "http://mirror.test:8080/other/owner/name",
        "https://huggingface.co.evil.test/o/n",
    ],
)
def test_other_texts_are_no_addresses(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.test:8080/hf")
    assert parse_location(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://onlyname",
        "hf://owner/",
        "hf://owner/na me",
        "hf://owner/name@",
        "hf://owner/name@/x",
        "hf://owner/name@..%2F..%2Fx/y",
        "hf://owner/name/../x",
        "hf://owner/name/a//b",
        "hf://owner/name/a\\..\\b",
        "hf://owner/name/a\nb",
        "hf://owner/..",
        "hf://datasets/owner/name",
        "https://huggingface.co/owner",
        "https://huggingface.co/owner/name/resolve/main",
        "https://huggingface.co/owner/name/discussions/1",
        "https://huggingface.co/owner/name/resolve/main/%2e%2e/x",
        "https://huggingface.co/datasets/owner/name",
    ],
)
def test_broken_addresses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_location(text)
    assert "\n" not in str(caught.value)


def test_locations_print_as_addresses() -> None:
    for text in ("hf://o/n", "hf://o/n@v1", "hf://o/n@refs%2Fpr%2F1/a/b"):
        assert str(parse_location(text)) == text


# Files


def test_a_file_costs_one_head_and_the_bytes_that_are_read(hub: RangeHub) -> None:
    source = opened(f"hf://{REPO}/model.ckpt")
    assert source.size == MIB
    assert source.name == f"hf://{REPO}/model.ckpt"
    assert bytes(read_bytes(source, 1000, 10)) == WEIGHTS[1000:1010]
    source.close()
    assert hub.bytes_served == 64 << 10
    assert len(hub.asked("HEAD")) == 1
    assert len(hub.asked()) == (3 if hub.cdn else 2)
    assert "vaeconv/" in hub.requests[-1].headers["user-agent"]


def test_website_addresses(hub: RangeHub) -> None:
    assert content(opened(f"{hub.endpoint}/{REPO}/resolve/main/vae/config.json")) == b'{"a": 1}'


def test_a_branch_that_moves_does_not_mix(hub: RangeHub) -> None:
    source = opened(f"hf://{REPO}/model.ckpt")
    read_bytes(source, 0, 10)
    hub.commit(REPO, {"model.ckpt": bytes(MIB)})
    assert content(source) == WEIGHTS
    assert content(opened(f"hf://{REPO}/model.ckpt")) == bytes(MIB)


def test_revisions(hub: RangeHub) -> None:
    pull = hub.commit(REPO, {"model.ckpt": b"pull request"}, ref="refs/pr/1")
    for revision in ("refs%2Fpr%2F1", "refs/pr/1", pull):
        assert content(opened(f"hf://{REPO}@{revision}/model.ckpt")) == b"pull request"
    assert content(opened(f"hf://{REPO}@main/model.ckpt")) == WEIGHTS


def test_the_token_goes_to_the_hub_only(hub: RangeHub, home: Path) -> None:
    hub.tokens[REPO] = "hf_secret"
    home.mkdir(exist_ok=True)
    (home / "token").write_text("hf_secret")
    assert content(opened(f"hf://{REPO}/model.ckpt")) == WEIGHTS
    assert tree().names()
    assert all("authorization" in r.headers for r in hub.asked(host="hub"))
    assert not any("authorization" in r.headers for r in hub.asked(host="cdn"))


def test_progress_counts_bytes(hub: RangeHub) -> None:
    seen: list[int] = []
    content(opened(f"hf://{REPO}/model.ckpt", on_progress=seen.append))
    assert sum(seen) == MIB


# The cache


def test_download_fetches_it_whole_into_the_cache(hub: RangeHub, home: Path) -> None:
    seen: list[int] = []
    source = opened(f"hf://{REPO}/model.ckpt", download=True, on_progress=seen.append)
    assert isinstance(source, FileSource)
    assert source.name.startswith(str(home / "hub"))
    assert content(source) == WEIGHTS
    assert hub.bytes_served == sum(seen) == MIB


def test_a_cached_file_is_used_without_a_data_request(hub: RangeHub) -> None:
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    before = len(hub.requests)
    for download in (False, True):
        source = opened(f"hf://{REPO}/model.ckpt", download=download)
        assert isinstance(source, FileSource)
        assert content(source) == WEIGHTS
    assert {request.method for request in hub.requests[before:]} == {"HEAD"}


def test_a_cached_commit_is_used_without_any_request(hub: RangeHub) -> None:
    commit = hub.commit(REPO, dict(FILES))
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    before = len(hub.requests)
    assert content(opened(f"hf://{REPO}@{commit}/model.ckpt")) == WEIGHTS
    assert len(hub.requests) == before


def test_an_outdated_cached_file_is_not_used(hub: RangeHub) -> None:
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    hub.commit(REPO, {"model.ckpt": b"newer"})
    assert content(opened(f"hf://{REPO}/model.ckpt")) == b"newer"


def test_the_same_content_at_another_commit_is_used(hub: RangeHub, home: Path) -> None:
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    if not any(path.is_symlink() for path in home.rglob("model.ckpt")):
        pytest.skip("without links, the client keeps files by their names alone")
    hub.commit(REPO, {"renamed.ckpt": WEIGHTS})
    source = opened(f"hf://{REPO}/renamed.ckpt")
    assert isinstance(source, FileSource)
    assert content(source) == WEIGHTS
    assert hub.bytes_served == MIB


def test_offline_files_come_from_the_cache(hub: RangeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    before = len(hub.requests)
    go_offline(monkeypatch)
    for download in (False, True):
        assert content(opened(f"hf://{REPO}/model.ckpt", download=download)) == WEIGHTS
    assert len(hub.requests) == before


@pytest.mark.parametrize("path", ["", "/model.ckpt", "@v1/model.ckpt"])
@pytest.mark.parametrize("download", [False, True])
def test_offline_without_a_cache(
    hub: RangeHub, monkeypatch: pytest.MonkeyPatch, path: str, download: bool
) -> None:
    go_offline(monkeypatch)
    with pytest.raises(HubError, match="offline mode is on") as caught:
        opened(f"hf://{REPO}{path}", download=download)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert not hub.requests


def test_an_unreachable_hub_falls_back_to_the_cache(
    hub: RangeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content(opened(f"hf://{REPO}/model.ckpt", download=True))
    unplug(monkeypatch)
    assert content(opened(f"hf://{REPO}/model.ckpt")) == WEIGHTS
    assert "using the cached copy" in caplog.text
    found = open_hub(HubLocation(REPO), retry=FAST)
    assert isinstance(found, LocalTree)
    assert found.names() == ["model.ckpt"]


def test_an_unreachable_folder_falls_back_to_the_cache(
    hub: RangeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    content(opened(f"hf://{REPO}/vae/config.json", download=True))
    unplug(monkeypatch)
    found = open_hub(HubLocation(REPO, path="vae"), retry=FAST)
    assert isinstance(found, LocalTree)
    assert found.names() == ["config.json"]


def test_a_branch_that_moves_during_a_download_is_an_error(hub: RangeHub) -> None:
    files = tree(download=True)
    hub.commit(REPO, {"model.ckpt": b"newer"})
    with pytest.raises(MalformedCheckpointError, match="changed on the server"):
        files.open("model.ckpt")


def test_a_full_disk_is_no_network_error(hub: RangeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OutputError, match=r"No space left.*HF_HOME"):
        opened(f"hf://{REPO}/model.ckpt", download=True)


@pytest.mark.parametrize("path", ["", "/model.ckpt"])
@pytest.mark.parametrize("download", [False, True])
def test_an_unreachable_hub_without_a_cache(
    hub: RangeHub, monkeypatch: pytest.MonkeyPatch, path: str, download: bool
) -> None:
    unplug(monkeypatch)
    with pytest.raises(HubError, match="cannot be reached") as caught:
        opened(f"hf://{REPO}{path}", download=download and bool(path))
    assert "\n" not in str(caught.value)


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    dead = "http://127.0.0.1:9"
    template = dead + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


# Folders


def test_a_repository_is_a_tree(hub: RangeHub) -> None:
    files = tree()
    assert files.name == f"hf://{REPO}"
    assert files.names() == [
        "model.ckpt",
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    vae = files.subtree("vae")
    assert vae.name == f"hf://{REPO}/vae"
    assert vae.names() == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert content(vae.open("config.json")) == b'{"a": 1}'
    assert len(hub.asked(on="/api/")) == 1


def test_a_path_may_be_a_folder(hub: RangeHub) -> None:
    vae = tree(f"hf://{REPO}@main/vae")
    assert vae.name == f"hf://{REPO}@main/vae"
    assert vae.names() == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert content(vae.open("diffusion_pytorch_model.safetensors")) == WEIGHTS[::-1]


def test_a_tree_stays_at_its_commit(hub: RangeHub) -> None:
    files = tree()
    hub.commit(REPO, {"model.ckpt": b"newer"})
    assert content(files.open("model.ckpt")) == WEIGHTS
    assert content(files.open("model_index.json")) == b"{}"


@pytest.mark.parametrize("name", ["../evil.json", "missing", "/etc/passwd", "vae", ""])
def test_a_tree_opens_only_what_it_holds(hub: RangeHub, name: str) -> None:
    files = tree()
    with pytest.raises(CheckpointNotFoundError):
        files.open(name)
    with pytest.raises(CheckpointNotFoundError):
        files.subtree(name if name != "vae" else "va")


def test_a_downloaded_tree_opens_offline(hub: RangeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tree(f"hf://{REPO}/vae", download=True)
    for name in vae.names():
        content(vae.open(name))
    go_offline(monkeypatch)
    for text in (f"hf://{REPO}/vae", f"hf://{REPO}"):
        location = parse_location(text)
        assert location
        found = open_hub(location)
        assert isinstance(found, LocalTree)
        assert any(name.endswith("config.json") for name in found.names())
    assert content(opened(f"hf://{REPO}/vae/config.json")) == b'{"a": 1}'


# Refusals


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf://nobody/nothing/x.ckpt", "private"),
        ("hf://nobody/nothing", "private"),
        (f"hf://{REPO}@v9/model.ckpt", "no such revision"),
        (f"hf://{REPO}@v9", "no such revision"),
        (f"hf://{REPO}/missing.ckpt", "no such file"),
        (f"hf://{REPO}/evil/../model", "not a path"),
    ],
)
def test_what_is_not_there(hub: RangeHub, text: str, says: str, download: bool) -> None:
    with pytest.raises(VaeconvError, match=says) as caught:
        opened(text, download=download)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("download", [False, True])
def test_gated_and_private(hub: RangeHub, home: Path, download: bool) -> None:
    hub.gated.add(REPO)
    with pytest.raises(HubError, match=r"gated.*accept its terms.*hf auth login"):
        opened(f"hf://{REPO}/model.ckpt", download=download)
    hub.gated.clear()
    hub.tokens[REPO] = "hf_right"
    with pytest.raises(HubError, match="hf auth login"):
        opened(f"hf://{REPO}/model.ckpt", download=download)
    home.mkdir(exist_ok=True)
    (home / "token").write_text("hf_wrong")
    with pytest.raises(HubError, match="hf auth login") as caught:
        opened(f"hf://{REPO}/model.ckpt", download=download)
    assert "hf_wrong" not in str(caught.value)


def test_a_refused_token_says_so(hub: RangeHub) -> None:
    hub.misbehave(
        status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}
    )
    with pytest.raises(HubError, match="does not accept the token"):
        opened(f"hf://{REPO}/model.ckpt")


@pytest.mark.parametrize("text", [f"hf://{REPO}/model.ckpt", f"hf://{REPO}/vae"])
def test_passing_failures_are_retried(hub: RangeHub, text: str) -> None:
    hub.misbehave(status=503, times=2, headers={"Retry-After": "0"})
    hub.misbehave(status=502, times=1, on="/api/")
    location = parse_location(text)
    assert location
    found = open_hub(location, retry=FAST)
    if isinstance(found, RangeSource):
        found.close()


def test_lasting_failures_end(hub: RangeHub) -> None:
    hub.misbehave(status=500)
    with pytest.raises(HubError, match="HTTP 500"):
        opened(f"hf://{REPO}/model.ckpt")
    assert len(hub.requests) == 5


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"id": "owner/model"}', b"null"])
def test_a_listing_that_is_none(hub: RangeHub, answer: bytes) -> None:
    hub.misbehave(on="/api/", body=answer)
    with pytest.raises(HubError, match="answers are not those of the Hub"):
        tree()


def test_a_server_that_is_no_hub(hub: RangeHub) -> None:
    hub.misbehave(status=200, headers={"ETag": '"x"'})
    with pytest.raises(HubError, match="answers are not those of the Hub"):
        opened(f"hf://{REPO}/model.ckpt")


def test_the_environment_decides(hub: RangeHub, tmp_path: Path) -> None:
    """The client's own variables work, as it reads them when it is imported."""
    script = """
import sys
from vaeconv.checkpoint.hub.repository import open_hub
from vaeconv.checkpoint.hub.address import parse_location
from vaeconv.checkpoint.source import read_bytes
from vaeconv.errors import HubError
try:
    source = open_hub(parse_location(sys.argv[1]), download=sys.argv[2] == "download")
    print(type(source).__name__, bytes(read_bytes(source, 0, 4)).hex())
    source.close()
except HubError as error:
    print(error)
"""

    def run(mode: str, **variables: str) -> str:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "other"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
            **variables,
        }
        command = [sys.executable, "-c", script, f"hf://{REPO}/model.ckpt", mode]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert "offline mode is on" in run("ranges", HF_HUB_OFFLINE="1")
    assert not hub.requests
    assert run("ranges") == f"RangeSource {WEIGHTS[:4].hex()}"
    assert run("download") == f"FileSource {WEIGHTS[:4].hex()}"
    assert run("ranges", HF_HUB_OFFLINE="1") == f"FileSource {WEIGHTS[:4].hex()}"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HF_ENDPOINT", "http://[::1", "an environment variable of the Hub's client is wrong"),
        ("HF_ENDPOINT", "ftp://a.b", "HF_ENDPOINT is 'ftp://a.b', which is not a URL"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "an environment variable of the Hub's client is wrong"),
        ("HTTPS_PROXY", "::", "HTTPS_PROXY is"),
        ("HTTPS_PROXY", "foo://x", "HTTPS_PROXY is 'foo://x', which is not a URL"),
        ("SSL_CERT_FILE", "/nonexistent", "SSL_CERT_FILE names /nonexistent"),
        ("HF_TOKEN", "t\u00f6ken", "the Hub token contains characters"),
    ],
)
@pytest.mark.parametrize("command", [("inspect", "hf://a/b"), ("push", "FOLDER", "a/b")])
def test_an_environment_that_cannot_be(
    name: str, value: str, said: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    args = [str(tmp_path) if one == "FOLDER" else one for one in command]
    done = subprocess.run(
        [sys.executable, "-m", "vaeconv", *args],
        env={**os.environ, "PYTHONUTF8": "1", name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
