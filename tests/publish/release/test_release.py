"""A release: from a training checkpoint to two repositories, and again after whatever happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import Result

from fixtures.make_fixtures import FOLDER as FIXTURES
from fixtures.make_fixtures import KL, make_diffusers_config
from tests.publish.pushes import (
    FP16,
    PLAIN,
    contents_of,
    pushes_to,
    run_here,
    state_of,
)
from tests.publish.releases import (
    FOLDERS,
    NAME,
    STEPS,
    Launcher,
    add_byte,
    config_of,
    launch,
    make,
    published_of,
    redone,
    repositories,
    write_project,
    write_toml,
)
from tests.publish.test_signing import make_key
from tests.support.closeness import assert_near
from tests.support.lightning import fake_lightning
from tests.support.litema import ema_name
from tests.support.loopback_hub import Hang, LoopbackHub
from tests.support.slow import slow_row
from vaeconv.errors import CheckFailedError, HubError, InputError, UsageError
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.release import preflight as release_preflight
from vaeconv.publish.release import release as chain
from vaeconv.publish.release import steps as release_steps
from vaeconv.publish.release import weights as release_weights
from vaeconv.publish.release.config import ReleaseConfig, commented_file, read_release
from vaeconv.publish.release.gates import check_metrics
from vaeconv.publish.release.release import check_steps
from vaeconv.publish.release.state import State
from vaeconv.publish.signing import verify_signature

# The client's own, of how it uploads.
pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")

Tables = dict[str, dict[str, Any]]
ORIGINAL = f"{NAME}.safetensors"
PICKLED = f"{NAME}.ckpt"
BEFORE_CARD = list(STEPS[:5])


# --- what the tests share ---


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs these tests: they are no job of it."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose release is made up to the card; nobody changes it."""
    project = write_project(tmp_path_factory.mktemp("made") / "project")
    done = make(project, last="card")
    assert [step.outcome for step in done.steps] == ["done"] * 6
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of it, elsewhere."""
    target = tmp_path / "project"
    shutil.copytree(made, target)
    return target


@pytest.fixture(scope="module")
def published(
    loopback: LoopbackHub, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LoopbackHub]:
    """A project that was published, from nothing in one go; nobody changes it."""
    folder = tmp_path_factory.mktemp("published")
    project = write_project(folder / "project", repositories("tiny"))
    with pushes_to(loopback, folder / "client"):
        done = make(project)
    assert [step.name for step in done.steps] == list(STEPS)
    assert [step.outcome for step in done.steps] == ["done"] * 7
    assert [one.is_new for one in done.pushed] == [True, True]
    assert [one.is_verified for one in done.pushed] == [True, True]
    return project, loopback


@pytest.fixture(scope="module")
def averages() -> dict[str, Tensor]:
    """The weights that a release is of, by torch alone: the average where there is one."""
    with fake_lightning():
        state = torch.load(FIXTURES / "tiny-kl.ckpt", weights_only=False)["state_dict"]
    raw = {name: one for name, one in state.items() if not name.startswith(("loss.", "model_ema."))}
    found = {name: state.get(ema_name(name), one).float() for name, one in raw.items()}
    assert any(not torch.equal(found[name], raw[name].float()) for name in raw)
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


# --- from a checkpoint to two repositories ---


def test_two_repositories_hold_what_the_folders_hold(published: tuple[Path, LoopbackHub]) -> None:
    project, hub = published
    for repo_id, folder in (("user/tiny", "diffusers"), ("user/tiny-original", "original")):
        repo = hub.repo(repo_id)
        assert repo.commit_count() == 1
        assert repo.files() == contents_of(project / "release" / folder)
        assert repo.tags == {"v1.0": repo.head()}
    assert set(hub.repo("user/tiny").files()) == {
        "README.md", "config.json", PLAIN, FP16, "vaeconv.json", "eval.json", "parity.json",
        "parity-fp16.json", "assets/compare.json",
        *(f"assets/{one}_merged.png" for one in ("astronaut", "chelsea", "coffee", "rocket")),
    }  # fmt: skip
    assert set(hub.repo("user/tiny-original").files()) == {
        "README.md", ORIGINAL, PICKLED, f"{ORIGINAL}.vaeconv.json", f"{PICKLED}.vaeconv.json",
        f"parity-{ORIGINAL}.json", f"parity-{PICKLED}.json", "assets/compare.json",
        *(f"assets/{one}_merged.png" for one in ("astronaut", "chelsea", "coffee", "rocket")),
    }  # fmt: skip


def test_weights_are_those_of_the_average(
    published: tuple[Path, LoopbackHub], averages: dict[str, Tensor], tmp_path: Path
) -> None:
    _, hub = published
    for repo_id in ("user/tiny", "user/tiny-original"):
        for path, data in hub.repo(repo_id).files().items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
    assert_equal(load_file(tmp_path / ORIGINAL), averages)
    pickled = torch.load(tmp_path / PICKLED, weights_only=True)
    assert_equal(pickled.get("state_dict", pickled), averages)
    renamed = convert_ldm_vae_checkpoint(dict(averages), make_diffusers_config(KL))
    plain, half = load_file(tmp_path / PLAIN), load_file(tmp_path / FP16)
    assert_equal({n: t.reshape(renamed[n].shape) for n, t in plain.items()}, renamed)
    assert_equal(half, {name: tensor.half() for name, tensor in plain.items()})


def test_both_libraries_load_it_and_agree(
    published: tuple[Path, LoopbackHub], averages: dict[str, Tensor]
) -> None:
    project, _ = published
    compvis = CompVisAutoencoder(KL.topology).eval()
    compvis.load_state_dict(load_file(project / "release" / "original" / ORIGINAL), strict=True)
    folder = project / "release" / "diffusers"
    model, half = (
        AutoencoderKL.from_pretrained(folder, variant=variant).eval() for variant in (None, "fp16")
    )
    assert model.config.scaling_factor == 0.18215
    latent = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = compvis.decode(latent)
        assert_near(model.decode(latent).sample, expected)
        assert_near(half.float().decode(latent).sample, expected, "fp16")


def card_of(hub: LoopbackHub, repo_id: str) -> tuple[dict[str, Any], str]:
    text = hub.repo(repo_id).files()["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_cards_have_tables_and_pictures_and_name_each_other(
    published: tuple[Path, LoopbackHub],
) -> None:
    project, hub = published
    result = json.loads((project / "release/diffusers/eval.json").read_text())
    psnr = result["models"][0]["metrics"]["psnr"]
    for repo_id, other in (
        ("user/tiny", "user/tiny-original"),
        ("user/tiny-original", "user/tiny"),
    ):
        front, body = card_of(hub, repo_id)
        assert (front["license"], front["library_name"]) == ("mit", "diffusers")
        (index,) = front["model-index"]
        values = {one["type"]: one["value"] for one in index["results"][0]["metrics"]}
        assert values["psnr"] == psnr["mean"]
        assert "# Tiny\n" in body
        assert "For tests." in body
        assert "### Four pictures (48x48)" in body
        assert f"| Tiny | {psnr['mean']:.1f} +/- {psnr['std']:.1f} |" in body
        assert "tiny-kl.ckpt, sha256 " in body
        assert re.search(rf"{other}\b(?!-)", body)
        assert ORIGINAL in body
        shown = re.findall(r"!\[[^\]]*\]\((assets/[^)]+)\)", body)
        assert len(shown) == 4
        assert set(shown) < set(hub.repo(repo_id).files())


def test_reports_are_about_the_files_that_were_published(
    published: tuple[Path, LoopbackHub],
) -> None:
    _, hub = published
    for repo_id, reports in (
        ("user/tiny", {"parity.json": PLAIN, "parity-fp16.json": FP16}),
        ("user/tiny-original", {f"parity-{name}.json": name for name in (ORIGINAL, PICKLED)}),
    ):
        held = hub.repo(repo_id).commit().files
        for report, weights in reports.items():
            found = json.loads(held[report].content)
            assert found["ok"] is True
            assert found["same"]["decoded"]
            hashes = [one["sha256"] for one in found["sides"][1]["files"]]
            assert held[weights].sha256 in hashes


def test_again_there_is_nothing_to_do(
    published: tuple[Path, LoopbackHub], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = published
    before, files = state_of(hub), published_of(project)
    for step in BEFORE_CARD:
        monkeypatch.setitem(release_steps.STEPS, step, None)
    steps: list[str] = []
    done = make(project, on_step=steps.append)
    assert steps == ["card", "push"]
    assert [step.outcome for step in done.steps] == ["unchanged"] * 5 + ["done"] * 2
    assert [(one.is_new, one.changed) for one in done.pushed] == [(False, ())] * 2
    assert state_of(hub) == before
    assert published_of(project) == files


def test_the_same_bytes_wherever_it_is_made(made: Path, tmp_path: Path) -> None:
    """Also with paths that lead out of the project, or that a link hides."""
    outside = tmp_path / "inputs"
    write_project(outside)
    real = tmp_path / "another place"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    pictures = str(outside / "pictures")
    write_toml(
        real / "release.toml",
        {"source": {"checkpoint": str(outside / "tiny-kl.ckpt")}},
        {"output": {"folder": "deep/er"}, "eval": {"images": pictures}},
        {"compare": {"images": pictures}},
    )
    make(tmp_path / "link", last="card")
    found, expected = published_of(real, "deep/er"), published_of(made)
    assert found.keys() == expected.keys()
    for path, data in found.items():
        assert str(tmp_path).encode() not in data, path
        if not path.startswith("diffusers/eval") and "parity" not in path:
            assert data == expected[path], path
        else:  # these name the folder, as the file has it
            assert data.replace(b"deep/er", b"release") == expected[path], path


def test_no_published_file_tells_where_it_was_made(
    published: tuple[Path, LoopbackHub],
) -> None:
    project, _ = published
    for path, data in published_of(project).items():
        for told in (str(project), str(project.parent), os.path.realpath(project)):
            assert told.encode() not in data, path
    measured = json.loads(published_of(project)["diffusers/eval.json"])
    verified = json.loads(published_of(project)["diffusers/parity.json"])
    assert measured["models"][0]["path"] == "release/diffusers"
    assert [side["name"] for side in verified["sides"]] == ["tiny-kl.ckpt", "release/diffusers"]


# --- gates ---


def assert_refused(project: Path, hub: LoopbackHub, match: str, **options: Any) -> None:
    """A gate says no, and the Hub has heard nothing."""
    before = state_of(hub)
    hub.requests.clear()
    with pytest.raises(CheckFailedError) as caught:
        make(project, **options)
    assert re.search(match, "\n".join([str(caught.value), *caught.value.details]))
    assert caught.value.exit_code == 4
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    assert state_of(hub) == before


@pytest.mark.parametrize(
    ("path", "step"),
    [
        (f"diffusers/{PLAIN}", "convert"),
        (f"diffusers/{FP16}", "convert"),
        ("diffusers/config.json", "convert"),
        (f"original/{ORIGINAL}", "prune"),
        (f"original/{PICKLED}", "prune"),
        ("diffusers/parity.json", "verify"),
        ("diffusers/parity-fp16.json", "verify"),
        (f"original/parity-{PICKLED}.json", "verify"),
        ("diffusers/eval.json", "eval"),
        ("diffusers/assets/coffee_merged.png", "compare"),
    ],
)
def test_a_file_that_was_changed_in_between_is_refused(
    project: Path, hub: LoopbackHub, path: str, step: str
) -> None:
    write_toml(project / "release.toml", repositories("changed"))
    add_byte(project / "release" / path)
    assert_refused(project, hub, f"was changed after the step {step} wrote it")
    before = published_of(project)
    assert redone(project, first=step, last=step) == [step]  # the remedy that it names
    assert published_of(project) != before
    assert "user/changed" not in hub.repos


def test_a_weight_that_changes_during_the_run_is_refused(project: Path, hub: LoopbackHub) -> None:
    write_toml(project / "release.toml", repositories("during"))

    def change(step: str) -> None:
        if step == "card":
            add_byte(project / "release" / "original" / ORIGINAL)

    assert_refused(project, hub, "is not what vaeconv wrote", on_step=change)


def test_foreign_weights_in_the_second_folder_stop_the_first(
    project: Path, hub: LoopbackHub
) -> None:
    """Both are published, or none."""
    write_toml(project / "release.toml", repositories("foreign"))
    shutil.copy(FIXTURES / "tiny-kl.safetensors", project / "release" / "original")
    assert_refused(project, hub, "in no parity report")


def test_a_report_that_says_no_is_refused_by_the_push_as_well(
    project: Path, hub: LoopbackHub
) -> None:
    """Even where the state was made to fit."""
    write_toml(project / "release.toml", repositories("forged"))
    report = project / "release" / "diffusers" / "parity-fp16.json"
    report.write_text(report.read_text().replace('"ok": true', '"ok": false', 1))
    forge(project)
    assert_refused(project, hub, "parity-fp16.json says|failed|not a parity report")


def forge(project: Path) -> None:
    """Note files in the state as they are now."""
    import hashlib

    path = project / "release" / "state.json"
    state = json.loads(path.read_text())
    for step in state.values():
        for name in step["outputs"]:
            data = (project / "release" / name).read_bytes()
            step["outputs"][name] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(state))


def test_a_forged_table_is_written_anew(project: Path) -> None:
    for folder in ("diffusers", "original"):
        card = project / "release" / folder / "README.md"
        text = card.read_text()
        better = re.sub(r"\| Tiny \| [0-9.]+", "| Tiny | 99.9", text)
        assert better != text
        card.write_text(f"{better}\nA word of mine.\n")
    before = published_of(project)
    assert redone(project, last="card") == []
    for folder in ("diffusers", "original"):
        text = published_of(project)[f"{folder}/README.md"].decode()
        assert "99.9" not in text
        assert "A word of mine." in text
    assert published_of(project) != before


def test_weights_that_are_not_the_source_s_fail_parity(
    tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write_project(tmp_path / "project", repositories("wrong"))
    real = release_weights.convert

    def convert(source: Any, target: Path, options: Any, *, dry_run: bool = False) -> Any:
        done = real(source, target, options, dry_run=dry_run)
        if options.variant == "fp16" and not dry_run:
            weights = load_file(target / FP16)
            weights["decoder.conv_out.bias"][0] += 1
            save_file(weights, target / FP16, metadata={"format": "pt"})
        return done

    with monkeypatch.context() as patch:
        patch.setattr(release_weights, "convert", convert)
        assert_refused(project, hub, "not the same autoencoder: 1 of 120 tensors differ")
    assert not (project / "release" / "diffusers" / "README.md").exists()
    assert_refused(
        project, hub, "not the same autoencoder: 1 of 120 tensors differ"
    )  # it is still so
    redone(project, first="convert")
    assert hub.repo("user/wrong").commit_count() == 1


def test_scaling_that_contradicts_the_source_fails(project: Path, hub: LoopbackHub) -> None:
    """A model that is to be replaced has another scaling factor; a checkpoint has none."""
    reference = project / "reference"
    shutil.copytree(FIXTURES / "tiny-diffusers", reference)
    write_toml(
        project / "release.toml",
        repositories("scaling"),
        {"source": {"scaling_factor": 0.5}, "verify": {"drop_in_for": "reference"}},
    )
    assert_refused(project, hub, "scaling factor differs")


def test_min_psnr(project: Path, hub: LoopbackHub) -> None:
    write_toml(project / "release.toml", repositories("psnr"), {"eval": {"min_psnr": 30.0}})
    assert_refused(project, hub, r"PSNR is 9\.\d\d dB, less than the 30 of min_psnr")
    assert_refused(project, hub, "min_psnr")  # also the second time
    write_toml(project / "release.toml", repositories("psnr"), {"eval": {"min_psnr": 9.0}})
    assert redone(project) == ["eval"]
    assert hub.repo("user/psnr").commit_count() == 1


# What two results must have in common to be compared, beside what they found.
SAME = {
    "command": "eval",
    "protocol": {"description": "whole"},
    "pictures": {"sha256": "0", "number": 4, "fingerprint": "bytes"},
    "nets": [],
}


def write_baseline(path: Path, rfid: float | None, **of: Any) -> None:
    metrics = {} if rfid is None else {"rfid": rfid}
    path.write_text(json.dumps({**SAME, **of, "models": [{"metrics": metrics}]}))


@pytest.fixture
def with_rfid(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let evaluations find an rFID that was made up."""
    real, value = release_steps.evaluate, [0.0]

    def evaluate(models: Any, images: Any, options: Any, *, parts: Any) -> Any:
        options = replace(options, metrics=("psnr", "ssim"))
        result = real(models, images, options, parts=parts)
        result["models"][0]["metrics"]["rfid"] = value[0]
        return result

    monkeypatch.setattr(release_steps, "evaluate", evaluate)
    monkeypatch.setattr(release_preflight, "check_weights", lambda network, given: None)

    def say(rfid: float) -> None:
        value[0] = rfid

    return say


def test_rfid_that_got_worse(
    project: Path, hub: LoopbackHub, with_rfid: Callable[[float], None]
) -> None:
    gate = {"eval": {"metrics": ["rfid", "psnr", "ssim"], "baseline": "before.json"}}
    metrics = {"eval": {"metrics": gate["eval"]["metrics"]}}
    write_toml(project / "release.toml", repositories("rfid"), metrics)
    with_rfid(10.01)
    assert "eval" in redone(project, last="eval")
    measured = json.loads((project / "release/diffusers/eval.json").read_bytes())
    before = {key: measured[key] for key in SAME}
    write_toml(project / "release.toml", repositories("rfid"), gate)
    write_baseline(project / "before.json", 10.0, **before)
    assert_refused(project, hub, r"rFID is 10\.01, and 10\.00 in the baseline")
    write_baseline(project / "before.json", 10.01, **before)
    assert redone(project, last="card") == ["eval"]
    assert redone(project, last="card") == []
    write_baseline(project / "before.json", 9.0, **before)  # what it is judged by has changed
    assert_refused(project, hub, "rFID is 10.01, and 9.00 in the baseline")
    gate["eval"]["max_rfid_regression"] = 1.5
    write_toml(project / "release.toml", repositories("rfid"), gate)
    assert redone(project) == ["eval"]
    assert hub.repo("user/rfid").commit_count() == 1
    write_baseline(
        project / "before.json", 11.0, **{**before, "nets": [{"name": "inception", "sha256": "0"}]}
    )
    with pytest.raises(UsageError, match="does not compare"):
        make(project)


@pytest.mark.parametrize(
    ("metrics", "eval_table", "error"),
    [
        ({"rfid": 12.0}, {"baseline": "b.json", "max_rfid_regression": 2.0}, None),
        ({"rfid": 12.001}, {"baseline": "b.json", "max_rfid_regression": 2.0}, CheckFailedError),
        ({"rfid": 3.0}, {"baseline": "b.json"}, None),
        ({"rfid": float("nan")}, {"baseline": "b.json"}, CheckFailedError),
        ({}, {"baseline": "b.json"}, UsageError),
        ({"rfid": 3.0}, {"baseline": "other.json"}, UsageError),
        ({"rfid": 3.0}, {"baseline": "old.json"}, UsageError),
        ({"rfid": 3.0}, {"baseline": "none.json"}, UsageError),
        ({"rfid": 3.0}, {"baseline": "empty.json"}, InputError),
        ({"rfid": 3.0}, {"baseline": "missing.json"}, InputError),
        ({"psnr": {"mean": 20.0, "infinite": 0}}, {"min_psnr": 20.0}, None),
        ({"psnr": {"mean": 19.999, "infinite": 0}}, {"min_psnr": 20.0}, CheckFailedError),
        ({"psnr": {"mean": None, "infinite": 4}}, {"min_psnr": 20.0}, None),
        ({"psnr": {"mean": None, "infinite": 0}}, {"min_psnr": 20.0}, CheckFailedError),
        ({"ssim": {"mean": 1.0}}, {"min_psnr": 20.0}, UsageError),
    ],
)
def test_what_the_gates_of_the_evaluation_say(
    tmp_path: Path, metrics: dict[str, Any], eval_table: dict[str, Any], error: type | None
) -> None:
    write_baseline(tmp_path / "b.json", 10.0)
    write_baseline(tmp_path / "none.json", None)
    write_baseline(tmp_path / "other.json", 10.0, protocol={"description": "center-crop 256"})
    write_baseline(tmp_path / "old.json", 10.0, pictures={"sha256": "0", "number": 4})
    (tmp_path / "empty.json").write_text('{"command": "eval", "models": []}')
    all_metrics = {"metrics": ["rfid", "psnr"]}
    config = read_release(
        write_toml(tmp_path / "release.toml", {"eval": {**all_metrics, **eval_table}})
    )
    baseline = tmp_path / config.eval.baseline if config.eval.baseline else None
    if error is None:
        check_metrics(config.eval, {**SAME, "models": [{"metrics": metrics}]}, baseline)
    else:
        with pytest.raises(error):
            check_metrics(config.eval, {**SAME, "models": [{"metrics": metrics}]}, baseline)


def test_a_card_that_is_wrong_is_a_gate(project: Path, hub: LoopbackHub) -> None:
    write_toml(project / "release.toml", repositories("licence"), {"card": {"license": ""}})
    shutil.rmtree(project / "release")
    with pytest.raises(UsageError, match="names no license"):  # before anything is made
        make(project, last="card")
    card = project / "release" / "diffusers" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("---\nlicense: mit\nlibrary_name: diffusers\n---\n\n[gone](gone.png)\n")
    write_toml(project / "release.toml", {"eval": {"images": None}, "compare": {"images": None}})
    assert_refused(project, hub, "the link gone.png leads to nothing", last="card")


# --- killed ---


@pytest.fixture(scope="module")
def launcher(loopback: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    folder = tmp_path_factory.mktemp("launcher")
    with launch(loopback.env(folder / "home"), folder / "log.txt") as found:
        yield found


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose release was made with other settings, without a card."""
    project = write_project(tmp_path_factory.mktemp("older") / "project")
    changes: Tables = {
        "output": {"dtypes": ["fp32", "bf16"], "original_formats": ["ckpt"]},
        "compare": {"labels": True},
    }
    make(project, changes, last="compare")
    return project


# After which step's message, and in which request of the push.
COMMIT, TAG = "/commit/", "/tag/"
KILLS = [
    (0, STEPS[0], None, ""),
    *(slow_row(number, step, None, "") for number, step in enumerate(STEPS[1:], 1)),
    (7, "push", {"path": "/api/repos/create"}, "done"),
    slow_row(8, "push", {"method": "PUT", "host": "storage", "after": 2}, "after"),
    slow_row(9, "push", {"path": COMMIT}, "after"),
    (10, "push", {"path": COMMIT}, "done"),
    slow_row(11, "push", {"path": TAG}, "done"),
    slow_row(12, "push", {"path": COMMIT, "after": 1}, "done"),
]


@pytest.mark.parametrize(
    ("number", "step", "where", "when"), KILLS, ids=map(str, range(len(KILLS)))
)
def test_killed_anywhere_it_finishes_with_one_commit(
    published: tuple[Path, LoopbackHub],
    hub: LoopbackHub,
    launcher: Launcher,
    older: Path,
    tmp_path: Path,
    number: int,
    step: str,
    where: dict[str, Any] | None,
    when: str,
) -> None:
    name = f"kill{number}"
    if number % 3 == 1:  # on the way from one release to the next
        project = shutil.copytree(older, tmp_path / "project")
        write_toml(project / "release.toml", repositories(name))
    else:
        project = write_project(tmp_path / "project", repositories(name))
    hang = Hang(when)  # type: ignore[arg-type]
    rule = hub.add_rule(hang, **where) if where else None
    running = launcher.start(project)
    running.wait_for(lambda: f"{step} …\n" in running.said)
    if rule:
        wanted = rule.after + 1
        running.wait_for(lambda: rule.seen >= wanted)
        time.sleep(0.1)
    else:
        time.sleep(random.Random(number).uniform(0, 0.02))
    assert running.kill() == -signal.SIGKILL, "it ended before it was killed"
    hang.release.set()
    hub.rules.clear()

    done = make(project)
    assert [one.outcome for one in done.steps][5:] == ["done", "done"]
    for repo_id, folder in ((f"user/{name}", "diffusers"), (f"user/{name}-original", "original")):
        repo = hub.repo(repo_id)
        assert repo.commit_count() == 1
        assert repo.tags == {"v1.0": repo.head()}
        assert repo.files() == contents_of(project / "release" / folder)
    other = {
        path: data.replace(b"user/tiny", f"user/{name}".encode())
        for path, data in published_of(published[0]).items()
    }
    assert published_of(project) == other
    assert [path.suffix for path in sorted((project / "release").iterdir())] == [
        "", ".parts", "", ".json",
    ]  # fmt: skip
    assert redone(project, last="compare") == []


# --- what is done again ---


@pytest.mark.slow
def test_from_a_step_does_it_and_what_follows_again(project: Path) -> None:
    before = published_of(project)
    for step in ("convert", "verify", "compare"):
        number = STEPS.index(step)
        assert redone(project, first=step, last="card") == BEFORE_CARD[number:]
    assert redone(project, first="card", last="card") == []
    assert published_of(project) == before


def test_from_eval_measures_again(project: Path) -> None:
    (shard,) = (project / "release").glob("eval*/*.jsonl")
    text = shard.read_text()
    shard.write_text(re.sub(r'("psnr":)[0-9.]+', r"\g<1>50.0", text))
    assert shard.read_text() != text
    before = published_of(project)
    assert redone(project, first="eval", last="eval") == ["eval"]
    assert published_of(project) == before


@pytest.mark.parametrize("number", range(1, 6))
def test_until_a_step_nothing_after_it(tmp_path: Path, number: int) -> None:
    project = write_project(tmp_path / "project")
    steps: list[str] = []
    done = make(project, last=STEPS[number - 1], on_step=steps.append)
    assert steps == list(STEPS[:number])
    assert [one.name for one in done.steps] == steps
    state = json.loads((project / "release" / "state.json").read_text())
    assert set(state) == set(steps)
    assert not (project / "release" / "diffusers" / "README.md").exists()


def test_a_dry_run_lists_and_does_nothing(tmp_path: Path, project: Path, hub: LoopbackHub) -> None:
    fresh = write_project(tmp_path / "fresh", repositories("dry"))
    names = {path.name for path in fresh.iterdir()}
    done = make(fresh, dry_run=True)
    assert [(one.name, one.outcome) for one in done.steps] == [(step, "to do") for step in STEPS]
    assert {path.name for path in fresh.iterdir()} == names
    before = contents_of(project)
    done = make(project, dry_run=True)
    assert [one.outcome for one in done.steps] == ["unchanged"] * 5 + ["to do", "left out"]
    done = make(project, dry_run=True, first="verify")
    assert [one.outcome for one in done.steps][:5] == ["unchanged"] * 2 + ["to do"] * 3
    assert contents_of(project) == before
    write_toml(project / "release.toml", {"compare": {"images": None}})
    before = contents_of(project)
    assert make(project, dry_run=True).steps[4].outcome == "left out"
    assert contents_of(project) == before
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}


CHANGES = [
    ({"card": {"summary": "Other words."}}, []),
    ({"card": {"title": "Tinier"}}, ["eval", "compare"]),  # its name stands in tables
    ({"eval": {"limit": 2}}, ["eval"]),
    slow_row({"eval": {"min_psnr": 1.0}}, ["eval"]),
    ({"eval": {"protocol": "card-256-squash", "size": 48}}, ["eval", "compare"]),
    slow_row({"compare": {"limit": 2}}, ["compare"]),
    slow_row({"compare": {"labels": True}}, ["compare"]),
    ({"verify": {"dtype": "fp16"}}, ["verify"]),
    ({"output": {"dtypes": ["fp32"]}}, BEFORE_CARD),
    slow_row({"source": {"scaling_factor": 0.13025}}, BEFORE_CARD),
    slow_row({"source": {"ema": False}}, BEFORE_CARD),
    ({"push": {"revision": "other"}}, []),
    ({"output": {"sbom": True}}, []),
    ({"output": {"modelspec": True}}, BEFORE_CARD),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=map(str, range(len(CHANGES))))
def test_a_change_redoes_what_depends_on_it(
    project: Path, change: Tables, expected: list[str]
) -> None:
    assert redone(project, change, last="card") == expected
    assert redone(project, last="card") == []


def test_another_source_redoes_everything(project: Path) -> None:
    before = published_of(project)
    shutil.copy(FIXTURES / "tiny-kl.safetensors", project / "tiny-kl.ckpt")
    assert redone(project, last="card") == BEFORE_CARD
    after = published_of(project)
    weights = (f"diffusers/{PLAIN}", f"diffusers/{FP16}", f"original/{ORIGINAL}")
    assert all(before[path] != after[path] for path in weights)
    assert redone(project, last="card") == []


def test_other_pictures_are_measured_and_shown(project: Path) -> None:
    before = published_of(project)
    pictures = project / "pictures"
    shutil.copy(pictures / "rocket.png", pictures / "coffee.png")
    assert redone(project, last="card") == ["eval", "compare"]
    after = published_of(project)
    for path in ("diffusers/eval.json", "diffusers/assets/coffee_merged.png"):
        assert before[path] != after[path]
    (pictures / "coffee.png").unlink()
    assert redone(project, last="card") == ["eval", "compare"]
    assert "diffusers/assets/coffee_merged.png" not in published_of(project)
    assert "coffee" not in published_of(project)["diffusers/README.md"].decode()


@pytest.mark.parametrize(
    ("path", "step"),
    [
        (f"diffusers/{FP16}", "convert"),
        ("diffusers/config.json", "convert"),
        ("diffusers/vaeconv.json", "convert"),
        (f"original/{PICKLED}", "prune"),
        (f"original/{ORIGINAL}.vaeconv.json", "prune"),
        ("diffusers/parity.json", "verify"),
        ("diffusers/eval.json", "eval"),
        ("diffusers/assets/compare.json", "compare"),
        ("diffusers/assets/rocket_merged.png", "compare"),
        ("original/README.md", "card"),
    ],
)
def test_what_was_removed_is_made_again(project: Path, path: str, step: str) -> None:
    before = published_of(project)
    (project / "release" / path).unlink()
    assert redone(project, last="card") == ([] if step == "card" else [step])
    assert published_of(project) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'{"convert": []}',
        b'{"convert": {}}',
        b'{"convert": {"inputs": "x", "outputs": [], "facts": {}}}',
        b'{"convert": {"inputs": "x", "outputs": {}, "facts": []}}',
        b'{"convert": {"inputs": "x", "outputs": {}, "facts": {}, "more": 1}}',
    ],
)
def test_a_state_that_is_none(tmp_path: Path, data: bytes) -> None:
    good = b'{"convert": {"inputs": "x", "outputs": {}, "facts": {}}}'
    for content, is_known in ((data, False), (good, True)):
        (tmp_path / "state.json").write_bytes(content)
        assert (State(tmp_path).get("convert") is not None) == is_known


@pytest.mark.parametrize(
    "data", [b'{"convert": {"inputs": "x", "outputs": {"a": 3}, "facts": {}}}', None]
)
def test_without_a_state_everything_is_done_again(project: Path, data: bytes | None) -> None:
    before = published_of(project)
    path = project / "release" / "state.json"
    good = json.loads(path.read_text())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    assert redone(project, last="card") == BEFORE_CARD
    assert published_of(project) == before
    assert json.loads(path.read_text()) == good


def test_a_state_that_lacks_a_part_is_no_state(project: Path) -> None:
    path = project / "release" / "state.json"
    good = json.loads(path.read_text())
    for key in ("inputs", "outputs", "facts"):
        cut = {name: dict(step) for name, step in good.items()}
        del cut["convert"][key]
        path.write_text(json.dumps(cut))
        assert redone(project, last="convert") == ["convert"]
        path.write_text(json.dumps(good))


def test_what_is_no_longer_made_is_removed(project: Path) -> None:
    changes: Tables = {"output": {"dtypes": ["fp32", "bf16"], "original_formats": ["ckpt"]}}
    redone(project, changes, {"compare": {"limit": 2}}, last="card")
    found = set(published_of(project))
    manifest = json.loads(published_of(project)["diffusers/vaeconv.json"])
    assert set(manifest["outputs"]) == {PLAIN, "diffusion_pytorch_model.bf16.safetensors",
                                        "config.json"}  # fmt: skip
    assert not {path for path in found if "fp16" in path or "rocket" in path}
    assert {path for path in found if path.startswith("original/")} == {
        "original/README.md", f"original/{PICKLED}", f"original/{PICKLED}.vaeconv.json",
        f"original/parity-{PICKLED}.json", "original/assets/compare.json",
        "original/assets/astronaut_merged.png", "original/assets/chelsea_merged.png",
    }  # fmt: skip
    assert {"diffusers/parity-bf16.json", "diffusers/assets/chelsea_merged.png"} < found
    nothing: Tables = {"output": {"original": "", "dtypes": ["fp32"]}}
    redone(project, nothing, {"compare": {"images": None}, "eval": {"images": None}}, last="card")
    assert set(published_of(project)) == {
        f"diffusers/{path}"
        for path in ("README.md", "config.json", PLAIN, "parity.json", "vaeconv.json")
    }
    card = published_of(project)["diffusers/README.md"].decode()
    assert "_merged.png" not in card


def test_what_people_changed_is_not_removed(project: Path) -> None:
    picture = project / "release" / "diffusers" / "assets" / "rocket_merged.png"
    picture.write_bytes(b"mine")
    with pytest.raises(CheckFailedError):
        redone(project, last="card")
    redone(project, {"compare": {"limit": 2}}, last="compare")
    assert picture.read_bytes() == b"mine"


def test_a_failed_step_is_not_taken_for_done_later(project: Path, hub: LoopbackHub) -> None:
    """The gate said no for other settings; with those from before it is done again."""
    before = published_of(project)
    shutil.copytree(FIXTURES / "tiny-diffusers", project / "other")
    config = project / "other" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.5"))
    write_toml(project / "release.toml", {"verify": {"drop_in_for": "other"}})
    assert_refused(project, hub, "scaling factor differs")
    assert published_of(project) != before
    write_toml(project / "release.toml")
    assert redone(project, last="card") == ["verify"]
    assert published_of(project) == before


@pytest.mark.parametrize("first", [None, "card"])
def test_names_of_steps_are_checked(project: Path, first: str | None) -> None:
    for last in ("verifi", "convert" if first else "cards"):
        with pytest.raises(UsageError):
            check_steps(first, last)
    check_steps(first, "push")
    check_steps("card", "card")


# --- release.toml ---


def test_init_writes_a_file_with_every_key(tmp_path: Path) -> None:
    path = tmp_path / "release.toml"
    assert run_here("release", path, "--init").exit_code == 0
    text = path.read_text()
    assert text == commented_file()
    config = read_release(path)
    assert config.source.checkpoint == "last.ckpt"
    assert config.source.scaling_factor == 0.18215
    # Each default, taken as it stands there, is the default.
    live = re.sub(r"^# (\w+ = (?!\(not set\)).*)$", r"\1", text, flags=re.MULTILINE)
    assert live != text
    assert read_release(write(tmp_path / "live.toml", live)) == config
    lines = text.splitlines()
    for table in fields(ReleaseConfig):
        kind = get_type_hints(ReleaseConfig)[table.name]
        at = lines.index(f"[{table.name}]")
        assert lines[at - 1].startswith("# ")
        for key in fields(kind):
            place = next(
                number
                for number, line in enumerate(lines)
                if number > at and re.match(rf"(# )?{key.name} = ", line)
            )
            assert re.match(r"# [A-Za-z`].*\.$", lines[place - 1]), key.name
            if (table.name, key.name) not in {("source", "checkpoint")}:
                has_default = "(not set)" not in lines[place]
                value = key.default_factory() if callable(key.default_factory) else key.default
                assert has_default == (value is not None or not lines[place].startswith("# "))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_init_replaces_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "release.toml", "mine")
    result = run_here("release", path, "--init")
    assert result.exit_code == 5
    assert "exists" in result.stderr
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eval": {"min_pnsr": 3.0}}, "did you mean min_psnr?"),
        ({"sources": {"ema": True}}, "did you mean source?"),
        ({"card": {"licence": "mit"}}, "did you mean license?"),
        ({"eval": {"limit": "3"}}, "limit: must be a whole number"),
        ({"eval": {"limit": True}}, "limit: must be a whole number"),
        ({"eval": {"metrics": "psnr"}}, "metrics: must be a list of texts"),
        ({"eval": {"metrics": [1]}}, "metrics: must be a list of texts"),
        ({"source": {"ema": "yes"}}, "ema: must be true or false"),
        ({"source": {"scaling_factor": "0.18"}}, "scaling_factor: must be a number"),
        ({"push": {"repo_id": 3}}, "repo_id: must be a text"),
        ({"source": {"scaling_factor": None}}, "needs scaling_factor or family"),
        ({"source": {"checkpoint": None}}, "checkpoint must be given"),
        ({"output": {"dtypes": ["fp8"]}}, "output: dtypes 'fp8' is not known"),
        ({"output": {"dtypes": []}}, "dtypes are some of"),
        ({"output": {"dtypes": ["fp16", "fp16"]}}, "dtypes are some of"),
        ({"output": {"original_dtype": "int8"}}, "output: original_dtype 'int8' is not known"),
        ({"output": {"original_formats": []}}, "needs original_formats"),
        ({"push": {"repo_id": "tiny"}}, "is not owner/name"),
        ({"push": {"repo_id": "user/a", "original_repo_id": "b"}}, "b is not owner/name"),
        ({"push": {"original_repo_id": "user/b"}}, "needs repo_id"),
        (
            {"push": {"repo_id": "u/a", "original_repo_id": "u/b"}, "output": {"original": ""}},
            "needs a name in [output] original",
        ),
        ({"eval": {"min_psnr": 3.0, "metrics": ["ssim"]}}, "min_psnr needs psnr in metrics"),
        ({"eval": {"baseline": "eval.json"}}, "baseline needs rfid in metrics"),
        ({"eval": {"min_psnr": 3.0, "images": None}}, "min_psnr needs images"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, change: Tables, said: str) -> None:
    path = write_toml(tmp_path / "release.toml", change)
    result = run_here("release", path)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert {one.name for one in tmp_path.iterdir()} == {"release.toml"}


@pytest.mark.parametrize("text", ["", "[card]\n", "[source", 'source = "x"\n', "\xff"])
def test_a_file_without_a_source_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "release.toml"
    path.write_bytes(text.encode("latin-1"))
    result = run_here("release", path)
    assert result.exit_code == 2
    assert "release.toml" in result.stderr
    assert run_here("release", tmp_path / "none.toml").exit_code == 2


def test_facts_go_into_the_card(project: Path) -> None:
    facts: Tables = {
        "card": {
            "base_model": "stabilityai/sd-vae-ft-mse",
            "base_model_relation": "finetune",
            "datasets": ["laion/laion2B-en"],
            "tags": ["tiny"],
            "training": "Ten steps.",
            "limits": "Faces.",
        }
    }
    for folder in ("diffusers", "original"):
        (project / "release" / folder / "README.md").unlink()
    make(project, facts, last="card")
    for folder in ("diffusers", "original"):
        text = published_of(project)[f"{folder}/README.md"].decode()
        _, front, body = text.split("---\n", 2)
        data = yaml.safe_load(front)
        assert data["base_model"] == "stabilityai/sd-vae-ft-mse"
        assert data["datasets"] == ["laion/laion2B-en"]
        assert data["tags"] == ["tiny"]
        assert "Ten steps." in body
        assert "Faces." in body


def test_facts_may_be_of_any_type_that_toml_has(project: Path) -> None:
    path = project / "release.toml"
    write_toml(path, {"card": {"title": "Tiny"}})
    text = path.read_text().replace("[card]", "[card]\nfacts = { Started = 2026-01-02, Steps = 7 }")
    path.write_text(text)
    (project / "release" / "diffusers" / "README.md").unlink()
    assert redone(project, last="card") == []
    assert config_of(project).card != CardMeta()
    assert "| Started | 2026-01-02 |" in published_of(project)["diffusers/README.md"].decode()


def test_a_source_in_the_other_layout(
    tmp_path: Path, hub: LoopbackHub, averages: dict[str, Tensor]
) -> None:
    changes: Tables = {
        "source": {"checkpoint": str(FIXTURES / "tiny-diffusers")},
        "output": {"modelspec": True},
    }
    project = write_project(tmp_path / "project", changes, repositories("layout"))
    done = make(project)
    assert [one.outcome for one in done.steps] == ["done"] * 7
    raw = {name: one.float() for name, one in load_file(FIXTURES / "tiny-kl.safetensors").items()}
    assert_equal(load_file(project / "release" / "original" / ORIGINAL), raw)
    assert hub.repo("user/layout-original").commit_count() == 1
    with safe_open(project / "release" / "original" / ORIGINAL, framework="np") as file:
        assert "CompVis" in file.metadata()["modelspec.implementation"]
    manifest = json.loads(published_of(project)[f"original/{ORIGINAL}.vaeconv.json"])
    assert manifest["source"]["sha256"]
    assert all(str(FIXTURES).encode() not in data for data in published_of(project).values())


def test_a_source_without_averages(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "tiny-kl.safetensors", tmp_path)
    project = write_project(
        tmp_path / "project", {"source": {"checkpoint": "../tiny-kl.safetensors", "ema": True}}
    )
    make(project, last="card")
    raw = {name: one.float() for name, one in load_file(tmp_path / "tiny-kl.safetensors").items()}
    assert_equal(load_file(project / "release" / "original" / ORIGINAL), raw)
    assert all(str(tmp_path).encode() not in data for data in published_of(project).values())


def test_models_beside_it_are_named_without_their_place(project: Path) -> None:
    path = FIXTURES / "tiny-diffusers"
    (project / "models.toml").write_text(f'[[model]]\npath = "{path}"\nname = "raw"\n')
    assert redone(project, {"eval": {"models": "models.toml"}}, last="card") == ["eval", "compare"]
    found = published_of(project)
    assert "| raw | " in found["diffusers/README.md"].decode()
    assert json.loads(found["diffusers/eval.json"])["models"][1]["path"] == "tiny-diffusers"
    assert all(str(FIXTURES).encode() not in data for data in found.values())


def test_without_averages_where_none_are_wanted(project: Path) -> None:
    make(project, {"source": {"ema": False}}, last="verify")
    raw = {name: one.float() for name, one in load_file(FIXTURES / "tiny-kl.safetensors").items()}
    assert_equal(load_file(project / "release" / "original" / ORIGINAL), raw)


def test_half_precision_alone_is_plain(project: Path) -> None:
    make(project, {"output": {"dtypes": ["fp16"], "original_dtype": "fp16"}}, last="card")
    found = published_of(project)
    assert f"diffusers/{FP16}" not in found
    weights = load_file(project / "release" / "diffusers" / PLAIN)
    assert {one.dtype for one in weights.values()} == {torch.float16}
    original = load_file(project / "release" / "original" / ORIGINAL)
    assert {one.dtype for one in original.values()} == {torch.float16}


# --- the command, and CI ---


def outputs_of(path: Path) -> dict[str, str]:
    """Read key=value lines as the runner does."""
    pairs = [line.split("=", 1) for line in path.read_text().splitlines()]
    assert all(len(pair) == 2 and re.fullmatch(r"\w+", pair[0]) for pair in pairs)
    return dict(pairs)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A job's files: summary and outputs; comes after the Hub, whose environment has neither."""
    paths = (tmp_path / "summary.md", tmp_path / "output.txt")
    for name, path in zip(("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"), paths, strict=True):
        monkeypatch.setenv(name, str(path))
    return paths


def run_release(project: Path, *args: object) -> Result:
    return run_here("release", project / "release.toml", *args)


def test_a_job_is_told_what_was_published(
    project: Path, hub: LoopbackHub, job: tuple[Path, Path]
) -> None:
    summary, output = job
    write_toml(project / "release.toml", repositories("job"))
    output.write_text("other=1\n")
    result = run_release(project)
    assert result.exit_code == 0, result.stderr
    ids = ("user/job", "user/job-original")
    heads = [hub.repo(one).head() for one in ids]
    assert outputs_of(output) == {
        "other": "1",
        "folder": str(project / "release"),
        "pushed": "true",
        "repo_ids": " ".join(ids),
        "commits": " ".join(heads),
    }
    text = summary.read_text()
    assert "**published**" in text
    for one, head in zip(ids, heads, strict=True):
        assert f"[{one}](https://huggingface.co/{one})" in text
        assert head in text
    assert re.search(r"\| Tiny \| 9\.9", text)
    assert "| verify | unchanged | 0.0 s |" in text
    assert "| push | done |" in text
    assert "::error" not in result.stderr
    output.unlink()
    assert run_release(project).exit_code == 0
    assert outputs_of(output)["pushed"] == "false"
    assert outputs_of(output)["commits"] == " ".join(heads)
    assert "nothing changed" in summary.read_text()


def test_a_job_is_told_why_it_stopped(
    project: Path, job: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, output = job
    add_byte(project / "release" / "diffusers" / PLAIN)
    result = run_release(project)
    assert result.exit_code == 4
    assert "::error" not in result.stderr + result.stdout
    assert "**stopped**" in summary.read_text()
    assert "was changed after the step convert wrote it" in summary.read_text()
    assert not output.exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run_release(project, "--quiet")
    (line,) = (line for line in result.stderr.splitlines() if "::error" in line)
    assert line.startswith("::error title=vaeconv release::")
    assert "was changed after the step convert wrote it" in line
    assert run_release(project, "--from", "cnvert").exit_code == 2


def test_a_job_is_told_what_is_wrong_with_the_file(
    tmp_path: Path, job: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    path = write_toml(tmp_path / "release.toml", {"eval": {"min_pnsr": 3.0}})
    result = run_here("release", path)
    assert result.exit_code == 2
    assert "::error title=vaeconv release::" in result.stderr
    assert "unknown key min_pnsr" in job[0].read_text()


def test_the_document(project: Path, hub: LoopbackHub) -> None:
    write_toml(project / "release.toml", repositories("document"))
    result = run_release(project, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["command"], document["ok"], document["dry_run"]) == ("release", True, False)
    assert document["folder"] == str(project / "release")
    assert [one["name"] for one in document["steps"]] == list(STEPS)
    assert document["steps"][0] == {
        "name": "convert",
        "outcome": "unchanged",
        "seconds": 0,
        "facts": {"folder": "diffusers", "variants": [None, "fp16"]},
    }
    first, second = document["pushed"]
    repo = hub.repo("user/document")
    assert (first["repo_id"], first["oid"], first["tag"]) == ("user/document", repo.head(), "v1.0")
    assert sorted(first["changed"]) == sorted(repo.files())
    assert (first["is_new"], first["is_verified"], second["is_new"]) == (True, True, True)
    assert result.stderr == ""


def test_the_document_of_a_failure(project: Path) -> None:
    add_byte(project / "release" / "diffusers" / PLAIN)
    result = run_release(project, "--json")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert "convert" in json.dumps(document["error"])


def test_steps_are_told_as_they_run(project: Path) -> None:
    result = run_release(project, "--until", "card", "--from", "compare")
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if line.endswith("…")] == [
        "compare …", "card …",
    ]  # fmt: skip
    head, *rows = (line.split() for line in result.stdout.splitlines()[:6])
    assert head == ["step", "outcome", "time", "result"]
    assert [row[:2] for row in rows] == [
        ["convert", "unchanged"], ["prune", "unchanged"], ["verify", "unchanged"],
        ["eval", "unchanged"], ["compare", "done"],
    ]  # fmt: skip
    quiet = run_release(project, "--until", "card", "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert run_release(project, "--until", "convert", "--from", "card").exit_code == 2
    listed = run_release(project, "--dry-run", "--from", "verify").stdout.splitlines()
    assert [line.split() for line in listed if line.startswith("  verify")] == [
        ["verify", "to", "do"]
    ]
    assert any(line.startswith("  prune    unchanged") for line in listed)


def test_a_tag_that_stands_elsewhere_is_an_error_of_the_hub(
    project: Path, hub: LoopbackHub
) -> None:
    write_toml(project / "release.toml", repositories("tagged"))
    make(project)
    hub.move_head("user/tagged", {"README.md": b"---\nlicense: mit\n---\n"})
    with pytest.raises(HubError, match=r"the tag v1\.0 stands on another commit"):
        make(project)
    assert hub.repo("user/tagged").commit_count() == 2


# --- what goes along ---


def test_headers_and_bills_that_a_file_asks_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1667260800")
    wanted: Tables = {"output": {"modelspec": True, "sbom": True}}
    make(project, wanted, last="card")
    release = project / "release"
    entries = {}
    for path in (release / "diffusers" / PLAIN, release / "original" / ORIGINAL):
        with safe_open(path, framework="np") as file:
            entries[path.name] = file.metadata()
    for found in entries.values():
        assert found["format"] == "pt"
        assert found["modelspec.architecture"] == "latent-diffusion/vae"  # of no family's shapes
        assert found["modelspec.title"] == "Tiny"
        assert found["modelspec.description"] == "For tests."
        assert found["modelspec.date"] == "2022-11-01"
    assert entries[PLAIN]["modelspec.implementation"] == "diffusers"
    for folder, weights in (("diffusers", {PLAIN, FP16, "config.json"}),
                            ("original", {ORIGINAL, PICKLED})):  # fmt: skip
        bill = json.loads((release / folder / "sbom.cdx.json").read_bytes())
        files = {one["name"] for one in bill["components"]} - {"tiny-kl.ckpt"}
        assert files == weights
    before = published_of(project)
    assert redone(project, last="card") == []
    shutil.rmtree(release)
    make(project, last="card")
    assert published_of(project) == before, "the same bytes, wherever and whenever"


def test_a_signed_release(project: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, public = make_key(tmp_path)
    change = repositories("signed")
    make(project, change, sign=private)
    repo_ids = ("user/signed", "user/signed-original")
    for repo_id in repo_ids:
        download = tmp_path / repo_id
        for path, data in hub.repo(repo_id).files().items():
            (download / path).parent.mkdir(parents=True, exist_ok=True)
            (download / path).write_bytes(data)
        verify_signature(download, public)
    make(project, sign=private)
    # A machine that knows nothing of the first run makes the same bytes, and no other signature.
    shutil.rmtree(project / "release")
    done = make(project, sign=private)
    assert not any(one.is_new for one in done.pushed)
    assert [hub.repo(repo_id).commit_count() for repo_id in repo_ids] == [1, 1]
    # Without the key, what was signed must still be what is there.
    make(project)
    new: Tables = {"compare": {"limit": 2}, "push": {"tag": "v1.1"}}
    with pytest.raises(CheckFailedError, match="cannot be published as it is") as caught:
        make(project, change, new)
    details = caught.value.details or (caught.value.what,)
    assert all("model.sig is about another " in one and "sign again" in one for one in details)
    make(project, sign=private)
    assert [hub.repo(repo_id).commit_count() for repo_id in repo_ids] == [2, 2]


def test_signed_and_not_published(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, public = make_key(tmp_path)
    make(project, last="card", sign=private)
    before = published_of(project)
    for folder in FOLDERS:
        verify_signature(project / "release" / folder, public)
    make(project, last="card", sign=private)
    assert published_of(project) == before


def test_other_weights_beside_it_are_measured_again(project: Path) -> None:
    model = project / "other.ckpt"
    shutil.copy(FIXTURES / "tiny-kl.ckpt", model)
    (project / "models.toml").write_text(f'[[model]]\npath = "{model}"\nname = "other"\n')
    table: Tables = {"eval": {"models": "models.toml"}, "card": {"model": "Tiny"}}
    assert redone(project, table, last="card") == ["eval", "compare"]
    shutil.copy(FIXTURES / "tiny-kl.safetensors", model)
    assert redone(project, last="card") == ["eval", "compare"]
    assert redone(project, last="card") == []


def test_another_version_does_everything_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "__version__", "99")
    assert redone(project, last="card") == BEFORE_CARD


def test_changed_words_reach_the_cards(project: Path) -> None:
    make(project, {"card": {"summary": "Other words."}}, last="card")
    for folder in FOLDERS:
        text = published_of(project)[f"{folder}/README.md"].decode()
        assert "Other words." in text and "For tests." not in text
