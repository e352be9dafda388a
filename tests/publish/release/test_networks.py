"""A release file that names the files of metric networks, or a dataset on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.releases import make, redone, write_project, write_toml
from tests.support.loopback_hub import LoopbackHub
from tests.support.range_hub import point_client_at
from vaeconv.errors import VaeconvError
from vaeconv.evaluation.image_metrics import VGG16, WIDTHS
from vaeconv.evaluation.metric_networks import NETWORKS

SETTINGS: dict[str, dict[str, Any]] = {
    "eval": {
        "metrics": ["psnr", "lpips"], "limit": 1, "vgg_weights": "nets/vgg.pth",
        "lpips_weights": "nets/heads.pth",
    },
    "compare": {"images": None},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the release file names is found there or nowhere."""
    for network in NETWORKS:
        monkeypatch.setenv(network.variable, str(tmp_path / "gone.pth"))


def write_networks(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(12)
    torch.save(VGG16().half().state_dict(), folder / "vgg.pth")
    heads = {f"lin{at}.model.1.weight": torch.rand(1, c, 1, 1) for at, c in enumerate(WIDTHS)}
    torch.save(heads, folder / "heads.pth")


def test_networks_are_those_that_the_file_names_and_a_change_measures_again(
    tmp_path: Path,
) -> None:
    project = write_project(tmp_path / "project", SETTINGS)
    write_networks(project / "nets")
    make(project, last="eval")
    target = project / "release/diffusers/eval.json"
    before = json.loads(target.read_text())
    assert [network["file"] for network in before["nets"]] == ["vgg.pth", "heads.pth"]
    assert before["models"][0]["metrics"]["lpips"]["mean"] > 0
    assert redone(project, last="eval") == []
    heads = torch.load(project / "nets/heads.pth", weights_only=True)
    torch.save({name: one * 2 for name, one in heads.items()}, project / "nets/heads.pth")
    assert redone(project, last="eval") == ["eval"]
    after = json.loads(target.read_text())
    assert after["nets"][1]["sha256"] != before["nets"][1]["sha256"]
    lpips = [one["models"][0]["metrics"]["lpips"]["mean"] for one in (before, after)]
    assert lpips[1] == pytest.approx(2 * lpips[0], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nets/vgg.pth is not there"),
        ({"metrics": ["psnr"]}, "[eval] vgg_weights needs psim or lpips in metrics"),
        ({"images": None}, "[eval] vgg_weights needs images"),
        ({"vgg_weights": "$VAECONV_NONE/x"}, "variable VAECONV_NONE is not set"),
    ],
)
def test_what_is_wrong_with_networks_is_said_before_the_work(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    project = write_project(tmp_path / "project", SETTINGS, {"eval": changes})
    with pytest.raises(VaeconvError) as caught:
        make(project, last="eval")
    told = [str(caught.value), *caught.value.details]
    assert any(said in one for one in told), told
    assert not (project / "release").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.create_repo(
            "datasets/user/set",
            {f"val/{one.name}": one.read_bytes() for one in (FIXTURES / "pictures").iterdir()},
        )
        point_client_at(hub, tmp_path / "client", monkeypatch)
        yield hub
        assert hub.unserved == []


def test_images_of_a_dataset_are_measured_and_shown_at_its_commit(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    address = "hf://datasets/user/set/val"
    images = {"eval": {"images": address, "limit": 2}, "compare": {"images": address, "limit": 1}}
    project = write_project(tmp_path / "project", images)
    make(project, last="compare")
    commit = hub.repo("datasets/user/set").head()
    pinned = f"hf://datasets/user/set@{commit}/val"
    found = json.loads((project / "release/diffusers/eval.json").read_text())
    assert found["pictures"]["source"] == pinned
    shown = json.loads((project / "release/diffusers/assets/compare.json").read_text())
    assert shown["images"] == pinned
    assert redone(project, last="compare") == []
    picture = next(iter((FIXTURES / "pictures").iterdir()))
    hub.move_head("datasets/user/set", {"val/a.png": picture.read_bytes()})
    assert redone(project, last="compare") == ["eval", "compare"]
    write_toml(project / "release.toml", images, {"eval": {"images": f"{address}/none"}})
    with pytest.raises(VaeconvError, match="no such file in the dataset"):
        make(project, last="compare")
