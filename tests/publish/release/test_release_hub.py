"""A release whose source, or whose reference, is on the Hub: what travels, and how often."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.releases import NAME, make, published_of, redone, write_project
from tests.support.range_hub import RangeHub, point_client_at
from vaeconv.checkpoint.source import FileSource

SOURCE = FIXTURES / "tiny-kl.ckpt"
MIB = 1 << 20
FETCHED = {"source": {"checkpoint": "hf://user/training/last.ckpt"}}
SHORT: dict[str, dict[str, Any]] = {"eval": {"images": None}, "compare": {"images": None}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeHub]:
    repos = {
        "user/training": {"last.ckpt": SOURCE.read_bytes()},
        "user/base": {
            one.name: one.read_bytes() for one in (FIXTURES / "tiny-diffusers").iterdir()
        },
    }
    with RangeHub(repos, cdn=True) as hub:  # type: ignore[arg-type]
        point_client_at(hub, tmp_path / "client", monkeypatch)
        yield hub


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sides_of(project: Path, report: str = "diffusers/parity.json") -> Any:
    return json.loads(published_of(project)[report])["sides"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same release gives with a source that lies here."""
    project = write_project(tmp_path_factory.mktemp("local") / "project", SHORT)
    make(project, last="prune")
    return published_of(project)


def test_every_byte_is_fetched_once(hub: RangeHub, tmp_path: Path, local: dict[str, bytes]) -> None:
    project = write_project(tmp_path / "project", FETCHED, SHORT, {"output": {"sbom": True}})
    make(project, last="card")
    assert hub.bytes_served <= SOURCE.stat().st_size
    assert len(hub.asked("GET")) <= 12
    found, sha256 = published_of(project), sha256_of(SOURCE.read_bytes())
    manifests = [name for name in found if name.endswith("vaeconv.json")]
    assert len(manifests) == 3
    for name in manifests:
        assert json.loads(found[name])["source"]["sha256"] == sha256
    for report in (name for name in found if "parity" in name):
        assert sides_of(project, report)[0]["files"][0]["sha256"] == sha256
    for name in local:
        if not name.endswith(".json"):
            assert found[name] == local[name], name


def test_a_file_of_git_is_read_once_for_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutLfs(RangeHub):
        @staticmethod
        def etag(content: Any) -> str:
            return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    with WithoutLfs({"user/training": {"last.ckpt": SOURCE.read_bytes()}}) as hub:
        point_client_at(hub, tmp_path / "client", monkeypatch)
        project = write_project(tmp_path / "project", FETCHED, SHORT)
        make(project, last="verify")
        assert hub.bytes_served <= SOURCE.stat().st_size
        assert len(hub.asked("GET")) <= 12
    assert sides_of(project)[0]["files"][0]["sha256"] == sha256_of(SOURCE.read_bytes())


def test_of_a_full_checkpoint_the_autoencoder_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The diffusion model and the text encoder are holes in a sparse file here."""
    raw = load_file(FIXTURES / "tiny-kl.safetensors")
    small = tmp_path / "small.safetensors"
    save_file({f"first_stage_model.{name}": one for name, one in raw.items()}, small)
    data = small.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    end = max(one["data_offsets"][1] for key, one in header.items() if key != "__metadata__")
    hole = 512 * MIB
    header["model.diffusion_model.out.2.weight"] = {
        "dtype": "F32", "shape": [hole // 4], "data_offsets": [end, end + hole],
    }  # fmt: skip
    written = json.dumps(header).encode()
    path = tmp_path / "full.safetensors"
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written + data[8 + size :])
        file.truncate(8 + len(written) + end + hole)
    with RangeHub({"user/training": {"full.safetensors": path}}, cdn=True) as hub:
        point_client_at(hub, tmp_path / "client", monkeypatch)
        source = {"checkpoint": "hf://user/training/full.safetensors"}
        project = write_project(tmp_path / "project", {"source": source}, SHORT)
        make(project, last="verify")
        assert hub.bytes_served <= len(data) + MIB // 4
        assert sides_of(project)[0]["files"][0]["sha256"] == hub.etag(path)


def test_again_next_to_nothing_is_fetched(hub: RangeHub, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", FETCHED, SHORT)
    make(project, dry_run=True, last="card")
    assert hub.bytes_served <= MIB // 2, "the directory, the pickle, and a count of EMA steps"
    make(project, last="verify")
    before = hub.bytes_served
    assert redone(project, last="verify") == []
    assert hub.bytes_served - before <= MIB // 2


def test_a_branch_that_moves_meanwhile_is_seen_as_it_was(
    hub: RangeHub, tmp_path: Path, local: dict[str, bytes]
) -> None:
    project = write_project(tmp_path / "project", FETCHED, SHORT)
    other = (FIXTURES / "tiny-kl.safetensors").read_bytes()

    def move(step: str) -> None:
        if step == "prune":
            hub.commit("user/training", {"last.ckpt": other})

    make(project, last="verify", on_step=move)
    found = published_of(project)
    assert found[f"original/{NAME}.safetensors"] == local[f"original/{NAME}.safetensors"]
    # The next release is of what is there then.
    assert redone(project, last="verify") == ["convert", "prune", "verify"]
    assert sides_of(project)[0]["files"][0]["sha256"] == sha256_of(other)


def test_reference_models_are_fetched_once(hub: RangeHub, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "source": {"ema": False},
        "verify": {"drop_in_for": "hf://user/base"},
        "eval": {"models": "models.toml", "limit": 1},
        "compare": {"limit": 1},
    }
    project = write_project(tmp_path / "project", changes)
    (project / "models.toml").write_text('[[model]]\npath = "hf://user/base"\nname = "base"\n')
    make(project, last="card")
    files = hub._commits["user/base"].popitem()[1]
    size = sum(map(len, files.values()))  # type: ignore[arg-type]
    assert hub.bytes_served <= size + 4096, "the list of files is all that comes with them"
    (weights,) = (data for name, data in files.items() if name.endswith(".safetensors"))
    assert sides_of(project)[2]["files"][0]["sha256"] == sha256_of(weights)  # type: ignore[arg-type]
    row = json.loads(published_of(project)["diffusers/eval.json"])["models"][1]
    assert row["path"] == "hf://user/base"
    assert row["sha256"][0] == sha256_of(weights)  # type: ignore[arg-type]


def test_a_source_that_lies_here_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    keep = FileSource.keep_sha256

    def note(self: FileSource, *args: Any) -> None:
        hashed.append(Path(self.name).name)
        keep(self, *args)

    monkeypatch.setattr(FileSource, "keep_sha256", note)
    project = write_project(tmp_path / "project", SHORT)
    make(project, last="verify")
    assert hashed.count("tiny-kl.ckpt") == 1
    assert sides_of(project)[0]["files"][0]["sha256"] == sha256_of(SOURCE.read_bytes())
