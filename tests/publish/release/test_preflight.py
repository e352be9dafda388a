"""Before a release begins all that it needs is looked at, and all that is missing is listed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import contents_of, run_here, state_of
from tests.publish.releases import (
    NAME,
    config_of,
    make,
    repositories,
    write_project,
    write_toml,
)
from tests.publish.test_signing import make_key
from tests.support.lacking import needs_no_root
from tests.support.loopback_hub import LoopbackHub, Repository
from vaeconv.checkpoint import system
from vaeconv.errors import HubError, OutputError, UsageError, VaeconvError
from vaeconv.evaluation.metric_networks import NETWORKS
from vaeconv.publish.hub.access import _may_write
from vaeconv.publish.release import preflight as release_preflight
from vaeconv.publish.release.config import ReleaseConfig
from vaeconv.publish.release.release import release
from vaeconv.publish.release.values import fill_in
from vaeconv.weights.output_names import KINDS

# The client's own, of how it uploads.
pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")

Tables = dict[str, dict[str, Any]]
NUMBERS = itertools.count(1)
SHORT: Tables = {"eval": {"images": None}, "compare": {"images": None}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", SHORT)


def problems_of(project: Path, *changes: Tables, **options: Any) -> list[str]:
    """What a release lists before it begins; it leaves everything as it is."""
    write_toml(project / "release.toml", SHORT, *changes)
    before = contents_of(project)
    file = project / "release.toml"
    with pytest.raises(VaeconvError) as caught:
        release(file, dry_run=True, **options)
    listed = list(caught.value.details) or [caught.value.text]
    assert contents_of(project) == before
    with pytest.raises(VaeconvError) as again:
        release(file, **options)
    assert str(again.value) == str(caught.value)
    assert contents_of(project) == before
    return listed


def test_everything_is_listed_at_once(project: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    (project / "last.ckpt").write_bytes(b"no checkpoint")
    wrong: Tables = {
        "source": {"checkpoint": "last.ckpt", "scaling_factor": None, "config": "none.json"},
        "output": {"dtypes": ["fp8"], "original_formats": ["pt", "zip"], "original": "a/b"},
        "verify": {"device": "gpu", "dtype": "float16"},
        "eval": {"protocol": "card-265", "metrics": ["fid"], "min_psnr": 3.0, "limit": 0,
                 "images": "none"},
        "push": {"repo_id": "user/many", "original_repo_id": "elsewhere/b", "tag": "a..b"},
    }  # fmt: skip
    before = state_of(hub)
    listed = "\n".join(problems_of(project, wrong, sign=tmp_path / "none.pem"))
    for said in (
        "[source] needs scaling_factor or family",
        "output: dtypes 'fp8' is not known",
        "output: original_formats 'zip' is not known",
        "verify: device 'gpu' is not a device",
        "verify: dtype 'float16' is not known; did you mean fp16?",
        "did you mean card-256?",
        "did you mean rfid?",
        "eval: limit is 0; it must be at least 1",
        "[push] a..b is not a name that git allows",
        "none.pem: no such key",
        "last.ckpt: neither a torch file nor safetensors",
    ):
        assert said in listed, said
    assert state_of(hub) == before
    assert not hub.asked("POST", "/commit/")


def test_the_command_lists_them_and_a_job_as_well(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    write_toml(project / "release.toml", SHORT, {"verify": {"dtype": "half", "device": "gpu"}})
    for name in ("GITHUB_OUTPUT", "GITHUB_REF_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run_here("release", project / "release.toml")
    assert result.exit_code == 2
    assert "error: the release cannot begin: 2 problems\n" in result.stderr
    assert "release.toml:8: verify: dtype 'half' is not known; did you mean fp16?" in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("::error"))
    assert line.startswith("::error title=vaeconv release::the release cannot begin")
    assert line.count(": verify: ") == 2
    assert summary.read_text().count(": verify: ") == 2
    result = run_here("release", project / "release.toml", "--json")
    assert len(json.loads(result.stdout)["error"]["details"]) == 2


def test_a_file_with_many_slips(project: Path) -> None:
    path = project / "release.toml"
    path.write_text(
        '[source]\ncheckpoint = 3\nscale = 1\n\n[evall]\n[card]\ntags = "a"\n', encoding="utf-8-sig"
    )
    result = run_here("release", path)
    assert result.exit_code == 2
    for said in (
        f"{path}:2: source: checkpoint: must be a text",
        f"{path}:3: source: unknown key scale; known: checkpoint",
        f"{path}:5: unknown key evall; did you mean eval?",
        f"{path}:7: card: tags: must be a list of texts",
    ):
        assert said in result.stderr


# --- this machine ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"checkpoint": "none.ckpt"}}, "none.ckpt: No such file or directory"),
        ({"source": {"config": "none.json"}}, "none.json"),
        ({"verify": {"latents": "none.safetensors"}}, "none.safetensors: No such file"),
        ({"verify": {"drop_in_for": "none"}}, "none: No such file or directory"),
        ({"verify": {"device": "cuda:99"}}, "the device cuda:99 is not available"),
        ({"eval": {"images": "none"}}, "none: no such folder, zip file or image"),
        ({"eval": {"images": "tiny-kl.ckpt"}}, "tiny-kl.ckpt: "),
        ({"eval": {"images": "pictures", "limit": 5}}, "limit is 5, but there are only 4 images"),
        ({"compare": {"images": "broken"}}, "no image can be used, such as a.png"),
        ({"eval": {"images": "pictures", "models": "none.toml"}}, "none.toml: No such file"),
        ({"eval": {"images": "pictures", "models": "models.toml"}}, "elsewhere: No such file"),
        (
            {"eval": {"images": "pictures", "metrics": ["rfid"], "baseline": "none.json",
                      "allow_missing_metrics": True}},
            "none.json: No such file or directory",
        ),
        ({"eval": {"images": "pictures", "metrics": ["lpips"]}}, "weights missing: vgg16"),
        ({"eval": {"max_rfid_regression": 1.0}}, "max_rfid_regression needs baseline"),
        ({"card": {"license": ""}}, "[card] the front matter names no license"),
        ({"card": {"license": "mti"}}, "the license 'mti' is not one that the Hub knows"),
        ({"output": {"folder": "hf://user/x"}}, "[output] folder is a folder here"),
        ({"output": {"folder": "tiny-kl.ckpt/x"}}, "a file is in its place"),
        ({"source": {"checkpoint": ""}}, "[source] checkpoint: is empty"),
        ({"source": {"checkpoint": "$VAECONV_NONE/x"}}, "variable VAECONV_NONE is not set"),
    ],
)  # fmt: skip
def test_what_is_missing_here(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: Tables,
    said: str,
) -> None:
    for network in NETWORKS:
        monkeypatch.setenv(network.variable, str(tmp_path / "gone.pth"))
    (project / "broken").mkdir()
    (project / "broken/a.png").write_bytes(b"no image")
    (project / "models.toml").write_text('[[model]]\npath = "elsewhere"\n')
    listed = problems_of(project, changes, last="card")
    assert any(said in one for one in listed), listed


def test_one_of_several_processes_makes_no_release(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    (said,) = problems_of(project)
    assert "made by one process, and WORLD_SIZE is 2" in said
    monkeypatch.setenv("RANK", "x")
    (said,) = problems_of(project)
    assert "RANK is 'x'" in said


@needs_no_root
def test_a_folder_that_is_read_only(project: Path) -> None:
    project.chmod(0o500)
    try:
        assert "it is read-only here" in problems_of(project)[0]
    finally:
        project.chmod(0o700)


def test_room_on_the_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(disk_usage=lambda place: SimpleNamespace(free=66_000_000))
    monkeypatch.setattr(release_preflight, "shutil", usage)
    monkeypatch.setattr(release_preflight.Preflight, "_look_at_cards", lambda self: None)
    (said,) = problems_of(project, last="verify")
    assert "66.0 MB are free, 70.2 MB are needed" in said


def test_keys_that_cannot_sign(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    from cryptography.hazmat.primitives import serialization as out
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    private, public = make_key(tmp_path)
    locked, other = tmp_path / "locked.pem", tmp_path / "rsa.pem"
    pem, pkcs = out.Encoding.PEM, out.PrivateFormat.PKCS8
    secret = out.BestAvailableEncryption(b"secret")
    locked.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs, secret))
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    other.write_bytes(made.private_bytes(pem, pkcs, out.NoEncryption()))
    for key, said in (
        (public, "not a key to sign with"),
        (locked, "not a key to sign with"),
        (other, "not a key to sign with"),
        (tmp_path / "none.pem", "no such key"),
        (tmp_path, "no such key"),
    ):
        (found,) = problems_of(project, sign=key, last="verify")
        assert said in found, key
    assert make(project, sign=private, dry_run=True, last="verify").steps


def test_two_releases_in_one_folder(project: Path) -> None:
    folder = project / "release"
    folder.mkdir()
    with system.locked(folder):
        with pytest.raises(OutputError, match="another release is being made here"):
            make(project, last="convert")
        assert list(folder.iterdir()) == []
        make(project, last="convert", dry_run=True)
    make(project, last="convert")


def test_steps_are_checked_from_python_as_well(project: Path) -> None:
    for first, last in (("verfy", None), (None, "x"), ("push", "card")):
        with pytest.raises(UsageError):
            make(project, first=first, last=last)


# --- the Hub ---


@pytest.fixture
def ready(project: Path) -> Tables:
    return repositories(f"preflight-{next(NUMBERS)}")


def ids_of(tables: Tables) -> list[str]:
    return [tables["push"]["repo_id"], tables["push"]["original_repo_id"]]


def test_what_would_become_of_repositories(project: Path, hub: LoopbackHub, ready: Tables) -> None:
    first, second = ids_of(ready)
    hub.repos[second] = Repository(second, True)
    write_toml(project / "release.toml", SHORT, ready)
    before = state_of(hub)
    found = make(project, dry_run=True).destinations
    assert [(one.repo_id, one.exists, one.private) for one in found] == [
        (first, False, None), (second, True, True),
    ]  # fmt: skip
    assert state_of(hub) == before
    said = run_here("release", project / "release.toml", "--dry-run").stdout
    assert f"{first} would be created, as public as its owner's default is" in said
    assert f"{second} is there, private" in said
    document = json.loads(
        run_here("release", project / "release.toml", "--dry-run", "--json").stdout
    )
    assert [one["exists"] for one in document["repositories"]] == [False, True]
    write_toml(project / "release.toml", SHORT, ready, {"push": {"private": False}})
    said = run_here("release", project / "release.toml", "--dry-run").stdout
    assert f"{first} would be created, public" in said
    hub.repos[second].private = False
    (said,) = problems_of(project, ready, {"push": {"private": True}})
    assert f"{second}: it is public, and was to be private" in said


def with_token(token: str) -> Callable[[LoopbackHub, pytest.MonkeyPatch], None]:
    return lambda hub, monkeypatch: monkeypatch.setenv("HF_TOKEN", token)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (with_token("hf_readingSecretToken"), "the token of user may only read"),
        (with_token("hf_otherSecretToken"), "other is not user, and not a member of it"),
        (with_token("hf_unknown"), "the token is not accepted"),
    ],
)
def test_rights_are_looked_at(
    project: Path,
    hub: LoopbackHub,
    ready: Tables,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[LoopbackHub, pytest.MonkeyPatch], None],
    said: str,
) -> None:
    prepare(hub, monkeypatch)
    listed = problems_of(project, ready)
    assert len(listed) == 2, "one for each repository"
    assert all(said in one for one in listed), listed
    assert all("Secret" not in one for one in listed)
    assert hub.asked("POST") == []


def test_a_dry_run_needs_no_token_and_says_what_it_could_not_check(
    project: Path,
    hub: LoopbackHub,
    ready: Tables,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As on a pull request from a fork, which gets no secret."""
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.delenv("HF_TOKEN")
    first, second = ids_of(ready)
    hub.repos[first] = Repository(first, False)
    hub.repos[second] = Repository(second, True)
    path = write_toml(project / "release.toml", SHORT, ready)
    result = run_here("release", path, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"{first} is there, public" in result.stdout
    assert f"{second} would be created" in result.stdout, "nobody without a token sees it"
    assert result.stderr.count("no token is set: whether it may be pushed to is not checked") == 2
    assert f"note: {second}: no token is set" in result.stderr
    said = summary.read_text()
    assert "**a dry run: nothing was done**" in said
    assert f"- {first} is there, public" in said
    assert said.count("  - no token is set") == 2
    document = json.loads(run_here("release", path, "--dry-run", "--json").stdout)
    assert all("no token" in one["notes"][0] for one in document["repositories"])
    assert hub.asked("POST") == []

    result = run_here("release", path)
    assert result.exit_code == 6
    assert result.stderr.count("no token is set; log in with: hf auth login, or set HF_TOKEN") == 2
    assert hub.asked("POST") == []

    # What is wrong stays wrong: a tag that stands elsewhere, a repository that is public.
    hub.repos[first].tags["v1.0"] = hub.repos[first].head()
    hub.move_head(first, {"README.md": b"---\nlicense: mit\n---\n"})
    result = run_here("release", path, "--dry-run")
    assert (result.exit_code, "the tag v1.0 stands on another commit" in result.stderr) == (6, True)


def test_a_hub_that_does_not_answer_is_said(
    project: Path, hub: LoopbackHub, ready: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert all("no answer from the Hub" in one for one in problems_of(project, ready))
    write_toml(project / "release.toml", SHORT, ready)
    assert run_here("release", project / "release.toml", "--dry-run").exit_code == 6


def test_rights_of_a_token_of_fine_grain() -> None:
    def token(name: str, *permissions: str) -> dict[str, Any]:
        scope = {"entity": {"name": name}, "permissions": list(permissions)}
        return {"fineGrained": {"scoped": [scope]}}

    assert _may_write(token("user", "repo.content.read", "repo.write"), "user/a")
    assert _may_write(token("user/a", "repo.write"), "user/a")
    assert not _may_write(token("user/b", "repo.write"), "user/a")
    assert not _may_write(token("user", "repo.content.read"), "user/a")
    assert _may_write({}, "user/a"), "one that does not list its rights is believed"


# --- the tag ---


def test_a_tag_that_stands_elsewhere(project: Path, hub: LoopbackHub, ready: Tables) -> None:
    first, second = ids_of(ready)
    for repo_id in (first, second):
        hub.repos[repo_id] = Repository(repo_id, False)
    hub.repos[first].tags["v1.0"] = hub.repos[second].tags["v1.0"] = hub.repos[first].head()
    write_toml(project / "release.toml", SHORT, ready)
    tagged = [one.tagged for one in make(project, dry_run=True).destinations]
    assert tagged == [hub.repos[first].head()] * 2, "the same files may have been pushed already"
    hub.move_head(first, {"README.md": b"---\nlicense: mit\n---\n"})
    (said,) = problems_of(project, ready)
    assert f"{first}: the tag v1.0 stands on another commit" in said


def filled(config: ReleaseConfig, tag: str | None = None) -> tuple[ReleaseConfig, list[str]]:
    problems: list[VaeconvError] = []
    found = fill_in(config, tag, problems)
    return found, [one.text for one in problems]


def test_the_tag_of_the_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("VAECONV_TAG", "GITHUB_REF_TYPE", "GITHUB_REF_NAME", "CI_COMMIT_TAG")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    card = {"title": "Tiny {tag}", "summary": "In {braces} and {{tag}}.", "tags": ["{tag}"]}
    push = {"repo_id": "user/x", "tag": "{tag}"}
    write_toml(project / "release.toml", SHORT, {"push": push, "card": card})
    config = config_of(project)
    settings = (
        ({}, None),
        ({"GITHUB_REF_NAME": "main"}, None),
        ({"GITHUB_REF_NAME": "main", "GITHUB_REF_TYPE": "branch"}, None),
        ({"GITHUB_REF_NAME": "v2", "GITHUB_REF_TYPE": "tag"}, "v2"),
        ({"CI_COMMIT_TAG": "v3"}, "v3"),
        ({"VAECONV_TAG": "v4", "CI_COMMIT_TAG": "v3"}, "v4"),
        ({"VAECONV_TAG": "", "CI_COMMIT_TAG": "v3"}, "v3"),
    )
    for environ, expected in settings:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            found, problems = filled(config)
        if expected is None:
            assert len(problems) == 3
            assert all("has {tag}, but no tag is known; name it with --tag" in one
                       for one in problems)  # fmt: skip
            continue
        assert problems == []
        assert (found.push.tag, found.card.title) == (expected, f"Tiny {expected}")
        assert found.card.summary == "In {braces} and {tag}."
        assert found.card.tags == (expected,)
    found, problems = filled(config, "v9")
    assert (found.push.tag, problems) == ("v9", [])


def test_a_tag_that_is_given(project: Path) -> None:
    write_toml(project / "release.toml", SHORT, {"push": {"repo_id": "user/x", "tag": "v1"}})
    found, problems = filled(config_of(project), "v2")
    assert (found.push.tag, problems) == ("v2", [])
    write_toml(project / "release.toml", SHORT)
    found, (said,) = filled(config_of(project), "v2")
    assert "--tag v2 has no effect" in said
    write_toml(project / "release.toml", {"push": {"repo_id": "user/x", "message": "{version}"}})
    found, (said,) = filled(config_of(project), "v2")
    assert "[push] message: {version} is not a placeholder; {tag} is the only placeholder" in said
    changes: Tables = {"push": {"repo_id": "user/x", "tag": "{tag}"}}
    path = write_toml(project / "release.toml", SHORT, changes)
    result = run_here("release", path, "--tag", "a..b", "--until", "card", "--dry-run")
    assert result.exit_code == 2
    assert "a..b is not a name that git allows" in result.stderr


# --- paths ---


def test_paths_are_those_of_the_file(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(project / "tiny-kl.ckpt", home / "last.ckpt")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VAECONV_RUN", "last")
    monkeypatch.chdir(home)
    for checkpoint in ("~/$VAECONV_RUN.ckpt", "$HOME/${VAECONV_RUN}.ckpt", "tiny-kl.ckpt"):
        source: Tables = {"source": {"checkpoint": checkpoint}}
        done = make(project, SHORT, source, last="convert", dry_run=True)
        assert done.folder == project / "release"
        assert done.steps[0].outcome == "to do"
    assert {path.name for path in home.iterdir()} == {"last.ckpt"}


# --- formats ---


def test_every_format_with_all_that_goes_along(
    project: Path, tmp_path: Path, hub: LoopbackHub, ready: Tables
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    private, _ = make_key(tmp_path)
    endings = ["safetensors", ".sft", "ckpt", "pt", "pth", "bin"]
    changes: Tables = {
        "output": {"dtypes": ["fp32"], "original_formats": endings, "modelspec": True,
                   "sbom": True},
        "verify": {"latents": "few.safetensors"},
    }  # fmt: skip
    few = load_file(FIXTURES / "tiny-latents.safetensors")
    name = next(name for name in few if name.startswith("latent"))
    save_file({name: few[name]}, project / "few.safetensors")
    done = make(project, SHORT, changes, ready, sign=private)
    assert [one.outcome for one in done.steps if one.outcome != "left out"] == ["done"] * 5
    files = hub.repo(ids_of(ready)[1]).files()
    names = {f"{NAME}.{ending.lstrip('.').lower()}" for ending in endings}
    assert names | {"model.sig", "sbom.cdx.json", "README.md"} <= files.keys()
    for name in names:
        assert f"{name}.vaeconv.json" in files
        assert f"parity-{name}.json" in files
    for name in (f"{NAME}.safetensors", f"{NAME}.sft"):
        assert b"modelspec.title" in files[name][:4096]


@pytest.mark.parametrize("ending", KINDS)
def test_a_format_from_the_other_layout(project: Path, ending: str) -> None:
    shutil.copytree(FIXTURES / "tiny-diffusers", project / "source")
    changes: Tables = {
        "source": {"checkpoint": "source"},
        "output": {"dtypes": ["fp16"], "original_formats": [ending], "modelspec": True},
    }
    make(project, SHORT, changes, last="prune")
    assert (project / "release" / "original" / f"{NAME}{ending}").is_file()


def test_hub_errors_alone_are_errors_of_the_hub(
    project: Path, hub: LoopbackHub, ready: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError):
        make(project, SHORT, ready)


def test_a_source_that_is_not_there_hides_nothing(project: Path) -> None:
    wrong: Tables = {
        "source": {"checkpoint": "nope.ckpt"}, "eval": {"images": "nope"},
        "verify": {"drop_in_for": "nope2"}, "card": {"license": "mti"},
    }  # fmt: skip
    listed = "\n".join(problems_of(project, wrong))
    for said in ("nope.ckpt: No such file", "nope: no such folder", "nope2: No such file", "'mti'"):
        assert said in listed, (said, listed)


# --- what a value may hold ---


def test_a_tag_is_text_and_no_template(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.setenv("WITH_TAG", "{tag}")
    output = {"output": {"folder": "$SECRET/{tag}/${WITH_TAG}"}}
    write_toml(project / "release.toml", SHORT, output)
    found, problems = filled(config_of(project), "v$SECRET")
    assert (found.output.folder, problems) == ("s3cr3t/v$SECRET/{tag}", [])


@pytest.mark.parametrize("tag", ["../../out", "a b", "~", "-x", "a..b", "x.lock", "/a"])
def test_a_tag_that_git_refuses_names_no_folder(project: Path, tag: str) -> None:
    write_toml(project / "release.toml", SHORT, {"output": {"folder": "o/{tag}"}})
    (problem,) = filled(config_of(project), tag)[1]
    assert "is not a name that git allows for a tag" in problem


@pytest.mark.parametrize(
    ("table", "key"), [("output", "folder"), ("output", "original"), ("eval", "images")]
)
@pytest.mark.parametrize("name", ["a" * 400, "a\0b"], ids=["long", "NUL"])
def test_a_name_that_no_file_can_have(project: Path, table: str, key: str, name: str) -> None:
    problems = problems_of(project, {table: {key: name}})
    (said,) = (one for one in problems if one.startswith(f"[{table}]"))
    assert key in said and ("255 bytes" in said or "NUL" in said)


def test_numbers_that_nothing_can_show(project: Path) -> None:
    text = (project / "release.toml").read_text()
    assert "[eval]\n" in text
    huge = text.replace("[eval]\n", f"[eval]\nlimit = 0x{'f' * 5000}\n")
    (project / "release.toml").write_text(huge)
    result = run_here("release", project / "release.toml", "--dry-run")
    assert result.exit_code == 2
    assert "limit: must be a whole number, and is too large" in result.stderr
