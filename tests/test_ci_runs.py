"""The action, the reusable workflow and the workflows of docs/release-in-ci.md, run as CI does.

All against the loopback Hub. The step that installs vaeconv runs in one test, and is replaced by
the environment of the tests in the others.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import TOKEN, small_hub
from tests.publish.releases import write_project, write_toml
from tests.publish.test_signing import make_key
from tests.support.actions_runner import Done, Runner
from tests.support.loopback_hub import LoopbackHub
from tests.support.workflow_values import read_workflow
from vaeconv.publish.signing import SIGNATURE, verify_signature

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "release-in-ci.md").read_text(encoding="utf-8")
MODEL = "user/my-vae"
Tables = dict[str, dict[str, Any]]
SHORT: Tables = {
    "output": {"original": None, "dtypes": ["fp16"]},
    "eval": {"images": None},
    "compare": {"images": None},
    "push": {"repo_id": MODEL, "tag": "{tag}"},
}
TAG = {"ref": "refs/tags/v1.0", "ref_name": "v1.0", "ref_type": "tag"}
PULL = {"ref": "refs/pull/7/merge", "ref_name": "7/merge", "ref_type": "branch"}


def documented(name: str) -> dict[str, Any]:
    """The workflow of a name that the document shows."""
    blocks = map(read_workflow, re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
    (found,) = (one for one in blocks if one.get("name") == name)
    return found


def with_token() -> dict[str, Any]:
    """The workflow in one line, with secrets in place of an identity."""
    workflow = documented("release")
    job = workflow["jobs"]["release"]
    del job["with"]
    names = {"token": "HF_TOKEN", "signing-key": "SIGNING_KEY"}
    job["secrets"] = {name: f"${{{{ secrets.{secret} }}}}" for name, secret in names.items()}
    return workflow


def use(ci: Runner, *later: dict[str, Any], **inputs: str) -> Done:
    """Use the action after a checkout, and before later steps."""
    given = {name.replace("_", "-"): value for name, value in inputs.items()}
    passed = {name: f"${{{{ inputs.{name} }}}}" for name in given}
    ours = {"id": "ours", "uses": "vaeconv/vaeconv@v1", "with": passed}
    steps = [{"uses": "actions/checkout@v6"}, ours, *later]
    return ci.run({"jobs": {"job": {"steps": steps}}}, given)["job"]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with small_hub() as hub:
        yield hub


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", SHORT)


def runner(
    hub: LoopbackHub, project: Path, github: dict[str, str], env: dict[str, str], **options: Any
) -> Runner:
    room = project.parent
    return Runner(project, room / "ci", hub.env(room / "hf", None, **env), github, **options)


def steps_of(job: Done) -> dict[str, str]:
    """What became of the action's steps in a job."""
    (action,) = (one for one in job.steps.values() if one.steps)
    return {name: one.outcome for name, one in action.steps.items()}


def test_one_line_releases_on_a_tag_and_again(hub: LoopbackHub, project: Path) -> None:
    hub.create_repo(MODEL)
    hub.trust("id-token", MODEL)
    ci = runner(hub, project, TAG, {"HF_OIDC_ID_TOKEN": "id-token"})
    jobs = ci.run(documented("release"))
    done = jobs["release"]
    assert (jobs["dry-run"].outcome, done.outcome) == ("skipped", "success"), done.said
    repo = hub.repo(MODEL)
    commit = repo.head()
    outputs = {"pushed": "true", "repo_ids": MODEL, "commits": commit}
    assert done.outputs == outputs
    assert repo.tags == {"v1.0": commit}
    assert "**published**" in done.summary
    assert steps_of(done)["save-work"] == "success"

    again = ci.run(documented("release"))["release"]
    assert again.outputs == {**outputs, "pushed": "false"}
    assert "**nothing changed since it was published**" in again.summary
    assert "| convert | unchanged | 0.0 s |\n" in again.summary, (
        "the work folder came from the cache"
    )
    assert steps_of(again)["save-work"] == "skipped", "it is what was restored"
    assert repo.head() == commit


def test_a_pull_request_gets_a_dry_run_without_a_secret(hub: LoopbackHub, project: Path) -> None:
    ci = runner(hub, project, PULL, {})
    jobs = ci.run(documented("release"))
    done = jobs["dry-run"]
    assert (done.outcome, jobs["release"].outcome) == ("success", "skipped"), done.said
    assert "**a dry run: nothing was done**" in done.summary
    assert f"- {MODEL} would be created" in done.summary
    assert "no token is set" in done.summary
    assert hub.repos == {}
    assert steps_of(done)["save-work"] == "skipped", "there is no work"


def test_a_gate_that_says_no_and_then_yes(hub: LoopbackHub, project: Path, tmp_path: Path) -> None:
    """With secrets, which go nowhere but to the Hub and into the signature."""
    private, public = make_key(tmp_path)
    secrets = {"HF_TOKEN": TOKEN, "SIGNING_KEY": private.read_text()}
    gate: Tables = {"eval": {"images": "pictures", "metrics": ["psnr"], "min_psnr": 99.0}}
    write_toml(project / "release.toml", SHORT, gate)
    ci = runner(hub, project, TAG, {}, secrets=secrets)
    done = ci.run(with_token())["release"]
    assert done.outcome == "failure"
    assert "### vaeconv release" in done.summary
    assert "**stopped**" in done.summary
    (annotation,) = (one for one in done.said.splitlines() if one.startswith("::error"))
    assert "PSNR" in annotation
    steps = steps_of(done)
    assert (steps["run"], steps["keys"], steps["save-work"]) == ("failure", "success", "success")
    (reports,) = done.artifacts
    assert [path.name for path in reports] == ["eval.json", "parity.json"]
    assert hub.repos == {}

    write_toml(project / "release.toml", SHORT, gate, {"eval": {"min_psnr": 1.0}})
    again = ci.run(with_token())["release"]
    assert again.outputs["pushed"] == "true"
    assert "| convert | unchanged | 0.0 s |\n| prune | left out |" in again.summary
    assert steps_of(again)["save-work"] == "success"
    assert TOKEN not in again.said + again.summary
    assert list((tmp_path / "ci").rglob("*.pem")) == [], "the key is in no cache"
    download = tmp_path / "download"
    for path, content in hub.repo(MODEL).files().items():
        (download / path).parent.mkdir(parents=True, exist_ok=True)
        (download / path).write_bytes(content)
    assert (download / SIGNATURE).exists()
    verify_signature(download, public)


@pytest.mark.slow
def test_the_action_installs_vaeconv(hub: LoopbackHub, project: Path, tmp_path: Path) -> None:
    """With the packages that the tests have: no index is asked."""
    env = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0 turns isolation off
    ci = runner(hub, project, PULL, env, installs=True, packages=sys.path)
    later = {"id": "later", "run": "command -v vaeconv"}
    done = use(ci, later, command="inspect tiny-kl.ckpt", extras="sign")
    assert done.outcome == "success", done.said
    assert "EMA" in done.said
    assert done.steps["later"].said.strip() == str(tmp_path / "ci/temporary/vaeconv/bin/vaeconv")
    missing = use(ci, command="inspect tiny-kl.ckpt", version="1.0 --pre")
    assert missing.outcome == "failure"
    assert "Invalid requirement" in missing.said, "a version is one argument"
    assert steps_of(missing)["keys"] == "skipped"


HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned`; touch pwned & |\n%0A ${{ x }} *'


def test_hostile_values_stay_values(hub: LoopbackHub, project: Path) -> None:
    folder = project / "a folder $(touch pwned)"
    folder.mkdir()
    name = f"{HOSTILE}.toml"
    write_toml(folder / name, SHORT, {"source": {"checkpoint": "../tiny-kl.ckpt"}})
    ci = runner(hub, project, PULL, {})
    place = {"working_directory": folder.name, "release_file": name}
    done = use(ci, **place, tag=HOSTILE, dry_run="true")
    assert done.outcome == "failure"
    assert "nothing is missing" not in done.said
    assert "is not a name that git allows" in done.said, done.said
    done = use(ci, **place, dry_run="true")
    assert done.outcome == "success", done.said
    assert "nothing is missing" in done.said

    quoted = "inspect '../tiny-kl.ckpt'\n --json"
    done = use(ci, **place, command=quoted)
    assert done.outcome == "success", done.said
    for command in ("inspect $(touch pwned)", "inspect `touch pwned`", "inspect a; touch pwned"):
        done = use(ci, **place, command=command)
        assert done.outcome == "failure", command
    done = use(ci, command="inspect 'a")
    assert "::error title=vaeconv::the input command cannot be read" in done.said
    done = use(ci, command=" ")
    assert "::error title=vaeconv::the input command is empty" in done.said
    done = use(ci, release_file="-x.toml")
    assert "-x.toml" in done.said and "no such option" not in done.said.lower()
    assert not list(project.parent.rglob("pwned"))


def test_other_commands_have_no_work_folder(hub: LoopbackHub, project: Path) -> None:
    ci = runner(hub, project, PULL, {})
    copy = "convert tiny-kl.ckpt 'a copy' --scaling-factor 0.18215"
    for command in (copy, "verify tiny-kl.ckpt pictures"):
        done = use(ci, command=command, cache="false" if command == copy else "true")
        steps = steps_of(done)
        assert steps["run"] == ("success" if command == copy else "failure"), done.said
        assert steps["keys"] == ("skipped" if command == copy else "success")
        assert steps["save-work"] == "skipped"


def test_images_are_fetched_once(hub: LoopbackHub, project: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "val"), "zip", FIXTURES / "pictures")
    gate: Tables = {"eval": {"images": "val.zip", "metrics": ["psnr"], "min_psnr": 1.0}}
    write_toml(project / "release.toml", SHORT, gate)
    ci = runner(hub, project, TAG, {})
    workflow = documented("release with images")
    workflow["jobs"]["release"]["env"] = {}
    step, release = workflow["jobs"]["release"]["steps"][2:4]
    release["with"] = {"dry-run": "true"}  # which looks at the images
    step["env"]["ADDRESS"] = (tmp_path / "val.zip").as_uri()
    wrong = ci.run(workflow)["release"]
    assert (wrong.outcome, wrong.steps["release"].outcome) == ("failure", "skipped")
    assert "val.zip: FAILED" in wrong.said
    step["env"]["SHA256"] = hashlib.sha256((tmp_path / "val.zip").read_bytes()).hexdigest()
    done = ci.run(workflow)["release"]
    assert done.outcome == "success", done.said
    (tmp_path / "val.zip").unlink()
    again = ci.run(workflow)["release"]
    assert (again.outcome, again.steps["step2"].outcome) == ("success", "skipped"), again.said


@pytest.mark.slow
def test_a_signature_from_between_two_steps(
    hub: LoopbackHub, project: Path, tmp_path: Path
) -> None:
    """With a key in place of the identity, for which Sigstore would be asked."""
    private, public = make_key(tmp_path)
    output = {"output": {"original": "tiny", "original_formats": ["safetensors"], "sbom": True}}
    write_toml(project / "release.toml", SHORT, output)
    hub.create_repo(MODEL)
    hub.trust("id-token", MODEL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    github = {**TAG, "workflow_ref": "user/my-vae/.github/workflows/release.yml@refs/tags/v1.0"}
    ci = runner(hub, project, github, {"HF_OIDC_ID_TOKEN": "id-token", "PATH": path})
    workflow = documented("release signed without a key")
    step = workflow["jobs"]["release"]["steps"][2]
    for old, new in (
        ("sign sigstore --use_ambient_credentials", f"sign key --private_key {private}"),
        (
            'verify sigstore --identity "$IDENTITY" --identity_provider "$ISSUER"',
            f"verify key --public_key {public}",
        ),
    ):
        assert step["run"].count(old) == 1
        step["run"] = step["run"].replace(old, new)
    done = ci.run(workflow)["release"]
    assert done.outcome == "success", done.said
    repo = hub.repo(MODEL)
    assert done.said.count("Signing succeeded") == 2
    assert "push: done" in done.said
    download = tmp_path / "download"
    for name, content in repo.files().items():
        (download / name).parent.mkdir(parents=True, exist_ok=True)
        (download / name).write_bytes(content)
    verify_signature(download, public)
    commit = repo.head()
    again = ci.run(workflow)["release"]
    assert (again.outcome, repo.head()) == ("success", commit), again.said
    assert "Signing succeeded" not in again.said


@pytest.mark.skipif(sys.version_info < (3, 11), reason="hf jobs run came with a later client")
@pytest.mark.slow
def test_a_job_on_the_hub_makes_the_release(
    hub: LoopbackHub, project: Path, tmp_path: Path
) -> None:
    """The job runs here for real, its clone and all, but for the image and the mounted images."""
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{project.as_uri()}.insteadOf",
           "GIT_CONFIG_VALUE_0": "https://github.com/user/my-vae", "PIP_NO_INDEX": "1"}  # fmt: skip
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "a"], ["tag", "v1.0"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    hub.run_jobs(tmp_path / "jobs", hub.env(tmp_path / "job-home", None, **git))
    github = {**TAG, "server_url": "https://github.com", "repository": "user/my-vae"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for env in (hub.job_env, ci_env := {"PATH": path, "PIP_NO_INDEX": "1"}):
        env["PATH"] = path
    ci = runner(hub, project, github, ci_env, secrets={"HF_TOKEN": TOKEN})
    done = ci.run(documented("release on the Hub"))["release"]
    assert done.outcome == "success", done.said
    assert "push: done" in done.said, done.said
    assert TOKEN not in done.said
    assert hub.repo(MODEL).tags == {"v1.0": hub.repo(MODEL).head()}
    (job,) = hub.jobs.values()
    assert job.spec["flavor"] == "a10g-small"
    assert job.spec["timeoutSeconds"] == 3 * 3600
    assert job.spec["volumes"][0]["mountPath"] == "/images"

    (project / "release.toml").write_text("")
    subprocess.run(["git", *author, "commit", "-qam", "b"], cwd=project, check=True)
    subprocess.run(["git", "tag", "-f", "v1.0"], cwd=project, check=True, capture_output=True)
    done = ci.run(documented("release on the Hub"))["release"]
    assert done.outcome == "failure", "the workflow fails where the job does"
    assert "[source] must be given" in done.said


@pytest.mark.slow
def test_the_gate_of_each_change(hub: LoopbackHub, project: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[0]
    text = text.replace("hf://user/my-training/last.ckpt", "tiny-kl.ckpt").replace("23.0", "1.0")
    (project / "gate.toml").write_text(text)
    (project / "pictures").rename(project / "gate-images")
    done = runner(hub, project, PULL, {}).run(documented("gate"))["gate"]
    assert done.outcome == "success", done.said
    assert "- eval: done" in done.summary
    assert hub.requests == []
