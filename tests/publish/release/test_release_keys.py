"""Keys of a release file reach what they are about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import FP16, PLAIN
from tests.publish.releases import (
    NAME,
    add_byte,
    config_of,
    make,
    repositories,
    write_project,
    write_toml,
)
from tests.support.loopback_hub import LoopbackHub
from tests.support.samples import SHAPED, in_diffusers, weights_of
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.errors import MissingDependencyError, OutputError
from vaeconv.evaluation.metric_networks import NETWORKS
from vaeconv.publish.release.preflight import Preflight
from vaeconv.publish.release.project import Project
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions

# The client's own, of how it uploads.
pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")

Tables = dict[str, dict[str, Any]]
SOURCE, PREFIX = "both.safetensors", "first_stage_model."
TABLES: Tables = {
    "source": {
        "checkpoint": SOURCE,
        "source_prefix": PREFIX,
        "shift_factor": 0.25,
        "config": "given.json",
    },
    "output": {"original_formats": [".ckpt"], "modelspec": True},
    "verify": {"dtype": "fp16", "latents": "latents.safetensors", "drop_in_for": "reference"},
    "eval": {
        "limit": 3,
        "metrics": ["psnr", "lpips"],
        "allow_missing_metrics": True,
        "models": "models.toml",
    },
    "compare": {"limit": 1, "labels": True},
}


@pytest.fixture(autouse=True, scope="module")
def no_nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights of metric nets are nowhere, and nobody looks for them elsewhere."""
    gone = tmp_path_factory.mktemp("nets") / "gone.pth"
    with pytest.MonkeyPatch.context() as patch:
        for network in NETWORKS:
            patch.setenv(network.variable, str(gone))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with most keys set, made up to the card; nobody changes it."""
    project = write_project(tmp_path_factory.mktemp("keys") / "project", TABLES)
    wanted = {f"{PREFIX}{name}": one for name, one in weights_of().items()}
    save_file({**weights_of(seed=22), **wanted}, project / SOURCE)
    scaling = ScalingOptions(0.18215, 0.25)
    how = ConvertOptions(source_prefix=PREFIX, scaling=scaling)
    convert(project / SOURCE, project / "reference", how)
    shutil.copy(FIXTURES / "tiny-latents.safetensors", project / "latents.safetensors")
    (project / "given.json").write_text('{"_class_name": "AutoencoderKL", "sample_size": 96}')
    (project / "models.toml").write_text('[[model]]\npath = "reference"\nname = "raw"\n')
    make(project, last="card")
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def read(project: Path, path: str) -> Any:
    return json.loads((project / "release" / path).read_text())


def to_do(project: Path) -> list[str]:
    """Name the steps that would be done, of those that are not done each time.

    Some of what they would read is spoiled here, which a dry run would say.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preflight, "run", lambda self: ())
        steps = make(project, dry_run=True).steps
    return [one.name for one in steps[:5] if one.outcome == "to do"]


# --- what is in it ---


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_autoencoder_is_the_one_that_the_prefix_names(made: Path) -> None:
    pickled = torch.load(made / "release/original" / f"{NAME}.ckpt", weights_only=True)
    assert_equal(pickled.get("state_dict", pickled), weights_of())
    assert_equal(load_file(made / "release/diffusers" / PLAIN), in_diffusers(weights_of()))


def test_shift_and_what_a_config_says(made: Path) -> None:
    config = read(made, "diffusers/config.json")
    assert (config["scaling_factor"], config["shift_factor"]) == (0.18215, 0.25)
    assert config["sample_size"] == 96


def test_what_the_proof_is_made_with(made: Path) -> None:
    plain, half = (read(made, f"diffusers/{one}.json") for one in ("parity", "parity-fp16"))
    assert plain["drop_in"]["ok"]
    assert half["drop_in"] is None, "what stands in for the other is the plain variant"
    for found in (plain, half, read(made, f"original/parity-{NAME}.ckpt.json")):
        assert found["references"]["source"] == "latents.safetensors"
        assert {one["dtype"] for one in found["same"]["worst"]} == {"fp32", "fp16"}


def test_each_card_has_the_proof_of_its_own_file(made: Path) -> None:
    for folder, name in (("diffusers", "diffusers"), ("original", f"{NAME}.ckpt")):
        text = (made / "release" / folder / "README.md").read_text()
        assert f" and {name} are the same autoencoder |" in text or (
            f"| {name} and " in text and "are the same autoencoder |" in text
        )


def test_what_is_measured_and_shown(made: Path) -> None:
    found = read(made, "diffusers/eval.json")
    assert found["pictures"]["number"] == 3
    assert [one["name"] for one in found["models"]] == ["Tiny", "raw"]
    assert set(found["models"][0]["metrics"]) == {"psnr"}, "the weights of others are nowhere"
    shown = read(made, "diffusers/assets/compare.json")
    assert shown["order"] == ["raw", "Tiny", "original"]
    assert len(shown["psnr"]) == 1


def test_names_stand_under_the_pictures(project: Path) -> None:
    (picture,) = (project / "release/diffusers/assets").glob("*_merged.png")
    labelled = height_of(picture)
    make(project, TABLES, {"compare": {"labels": False}}, first="compare", last="compare")
    assert height_of(picture) < labelled


def height_of(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.height


def test_metrics_whose_nets_are_nowhere(project: Path) -> None:
    write_toml(project / "release.toml", TABLES, {"eval": {"allow_missing_metrics": False}})
    with pytest.raises(MissingDependencyError) as caught:
        make(project, last="eval")
    assert any("weights missing" in detail for detail in caught.value.details)


def test_pictures_are_shown_as_they_are_measured(project: Path) -> None:
    tall = {"images": "tall", "size": 48}
    (project / "tall").mkdir()
    with Image.open(FIXTURES / "pictures/coffee.png") as picture:
        picture.resize((48, 96)).save(project / "tall/coffee.png")
    target = project / "release/diffusers/assets/coffee_merged.png"
    seen = []
    for protocol in ("card-256", "card-256-squash"):
        changes: Tables = {"eval": {"protocol": protocol}, "compare": tall}
        make(project, TABLES, changes, first="compare", last="compare")
        seen.append(target.read_bytes())
    assert seen[0] != seen[1]


@pytest.mark.parametrize("step", ["verify", "eval", "compare"])
def test_the_device_is_the_one_that_is_named(project: Path, step: str) -> None:
    change: Tables = {"eval" if step == "compare" else step: {"device": "cuda:99"}}
    if step == "compare":
        change["eval"]["images"] = None
    write_toml(project / "release.toml", TABLES, change)
    with pytest.raises(MissingDependencyError, match="the device cuda:99 is not available"):
        make(project, last=step)


# --- what is done again ---


def test_whatever_a_step_reads_does_it_again_when_it_changes(project: Path) -> None:
    """Also a file that the release file only names."""
    everything = ["convert", "prune", "verify", "eval", "compare"]
    changes = {
        "given.json": everything,
        "latents.safetensors": ["verify"],
        "reference/config.json": ["verify", "eval", "compare"],
        "models.toml": ["eval", "compare"],
        "pictures/rocket.png": ["eval", "compare"],
    }
    assert to_do(project) == []
    for path, expected in changes.items():
        held = (project / path).read_bytes()
        (project / path).write_bytes(held + b"\n")
        assert to_do(project) == expected, path
        (project / path).write_bytes(held)
        assert to_do(project) == []
    (project / "pictures/rocket.png").rename(project / "pictures/rocket2.png")
    assert to_do(project) == ["eval", "compare"], "its name is that of what is shown"
    (project / "pictures/rocket2.png").rename(project / "pictures/rocket.png")
    keys: list[tuple[Tables, list[str]]] = [
        ({"eval": {"device": "cuda"}}, ["eval", "compare"]),
        ({"card": {"summary": "Others."}}, everything),  # it stands in the headers
    ]
    for change, expected in keys:
        write_toml(project / "release.toml", TABLES, change)
        assert to_do(project) == expected, change


@pytest.mark.parametrize("path", [PLAIN, "config.json"])
def test_a_source_is_its_weights_and_its_config(tmp_path: Path, path: str) -> None:
    shutil.copytree(FIXTURES / "tiny-diffusers", tmp_path / "source")
    write_toml(tmp_path / "release.toml", {"source": {"checkpoint": "source"}})
    before = Project(config_of(tmp_path), tmp_path).source_sha256
    assert Project(config_of(tmp_path), tmp_path).source_sha256 == before
    changed = tmp_path / "source" / path
    if path == PLAIN:
        add_byte(changed)
    else:
        changed.write_text(changed.read_text().replace('"sample_size": 64', '"sample_size": 96'))
    assert Project(config_of(tmp_path), tmp_path).source_sha256 != before


@pytest.mark.parametrize("number", [1, 2])
def test_a_source_is_all_of_its_shards(tmp_path: Path, number: int) -> None:
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "tiny-diffusers", source)
    weights = load_file(source / PLAIN)
    (source / PLAIN).unlink()
    names = sorted(weights)
    shards = [f"{Path(PLAIN).stem}-0000{one}-of-00002.safetensors" for one in (1, 2)]
    for one, part in zip(shards, (names[:60], names[60:]), strict=True):
        save_file({name: weights[name] for name in part}, source / one)
    places = {name: shards[names.index(name) >= 60] for name in names}
    (source / f"{PLAIN}.index.json").write_text(json.dumps({"weight_map": places}))
    write_toml(tmp_path / "release.toml", {"source": {"checkpoint": "source"}})
    before = Project(config_of(tmp_path), tmp_path).source_sha256
    add_byte(source / shards[number - 1])
    assert Project(config_of(tmp_path), tmp_path).source_sha256 != before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "release").write_text("a file")
    write_toml(tmp_path / "release.toml")
    shutil.copy(FIXTURES / "tiny-kl.ckpt", tmp_path)
    with pytest.raises(OutputError, match="cannot be made: a file is in its place"):
        make(tmp_path, {"eval": {"images": None}, "compare": {"images": None}})


# --- what is published ---


def test_how_it_is_published(project: Path, hub: LoopbackHub) -> None:
    push: Tables = {
        "push": {"revision": "next", "private": True, "message": "Words of mine", "verify": False}
    }
    done = make(project, TABLES, repositories("keys"), push)
    assert [one.is_verified for one in done.pushed] == [False, False]
    for repo_id in ("user/keys", "user/keys-original"):
        repo = hub.repo(repo_id)
        assert repo.private
        assert (repo.commit_count("next"), repo.commit_count()) == (1, 0)
        assert repo.commit("next").title == "Words of mine"


def test_one_repository_alone(project: Path, hub: LoopbackHub) -> None:
    before = set(hub.repos)
    done = make(project, TABLES, {"push": {"repo_id": "user/alone"}})
    assert [one.repo_id for one in done.pushed] == ["user/alone"]
    assert set(hub.repos) - before == {"user/alone"}
    assert FP16 in hub.repo("user/alone").files()


# --- names ---


def test_an_address_stays_what_it_is(tmp_path: Path) -> None:
    address = "hf://user/training/last.ckpt"
    write_toml(tmp_path / "release.toml", {"source": {"checkpoint": address}})
    assert Project(config_of(tmp_path), tmp_path).source == address


def test_single_precision_is_plain_wherever_it_stands(tmp_path: Path) -> None:
    for dtypes, expected in (
        (["fp16", "fp32"], [("fp32", None), ("fp16", "fp16")]),
        (["bf16", "fp16"], [("bf16", None), ("fp16", "fp16")]),
    ):
        write_toml(tmp_path / "release.toml", {"output": {"dtypes": dtypes}})
        assert Project(config_of(tmp_path), tmp_path).variants == expected


def test_without_a_compvis_file_one_folder_is_published(tmp_path: Path) -> None:
    write_toml(tmp_path / "release.toml", {"output": {"original": ""}})
    project = Project(config_of(tmp_path), tmp_path)
    assert (project.folders, project.originals) == ([tmp_path / "release/diffusers"], [])


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        ({"scaling_factor": 0.18215}, "stable-diffusion-v1/vae"),
        ({"scaling_factor": 0.13025}, "stable-diffusion-xl-v1/vae"),
        ({"scaling_factor": 0.3}, "latent-diffusion/vae"),
        ({"family": "sdxl"}, "stable-diffusion-xl-v1/vae"),
        ({"family": "sd2", "scaling_factor": None}, "stable-diffusion-v1/vae"),
    ],
)
def test_headers_name_the_family(tmp_path: Path, source: dict[str, Any], architecture: str) -> None:
    save_file(weights_of(SHAPED), tmp_path / "vae.safetensors")
    table: Tables = {
        "source": {"checkpoint": "vae.safetensors", **source},
        "output": {"modelspec": True},
    }
    write_toml(tmp_path / "release.toml", table)
    found = Project(config_of(tmp_path), tmp_path).metadata(Layout.DIFFUSERS)
    assert found["modelspec.architecture"] == architecture


def test_of_a_place_within_another_the_name_is_left(tmp_path: Path) -> None:
    reference = tmp_path / "models/reference"
    table: Tables = {
        "source": {"checkpoint": str(reference / "last.ckpt")},
        "verify": {"drop_in_for": str(reference)},
    }
    write_toml(tmp_path / "release.toml", table)
    project = Project(config_of(tmp_path), tmp_path / "elsewhere")
    said = {"problems": [f"{reference / 'last.ckpt'}: no", f"{reference}: no"], "timing": {}}
    assert project.publishable("verify", said) == {
        "schema_version": 1,
        "command": "verify",
        "problems": ["last.ckpt: no", "reference: no"],
    }
