"""The action, the reusable workflow and the workflows of docs/release-in-ci.md, run as CI does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.publish.pushes import TOKEN, small_hub
from tests.publish.releases import write_project, write_toml
from tests.publish.test_signing import make_key
from tests.support.actions_runner import Done, Runner
from tests.support.loopback_hub import LoopbackHub
from tests.support.workflow_values import read_workflow
from vaeconv.publish.signing import verify_signature

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "release-in-ci.md").read_text(encoding="utf-8")
SHORT: dict[str, dict[str, Any]] = {"eval": {"images": None}, "compare": {"images": None}}
TAG = {"ref": "refs/tags/v1.0", "ref_name": "v1.0", "ref_type": "tag", "event_name": "push"}
PULL = {
    "ref": "refs/pull/7/merge",
    "ref_name": "7/merge",
    "ref_type": "branch",
    "event_name": "pull_request",
}


def documented(name: str) -> dict[str, Any]:
    """The workflow of a name that the document shows."""
    blocks = map(read_workflow, re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
    (found,) = (one for one in blocks if one.get("name") == name)
    return found


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with small_hub() as hub:
        yield hub


def publishes(repo_id: str) -> dict[str, dict[str, Any]]:
    return {"push": {"repo_id": repo_id, "tag": "{tag}"}}


def runner(
    hub: LoopbackHub, tmp_path: Path, github: dict[str, str], **options: Any
) -> Runner:
    project = tmp_path / "project"
    if not project.exists():
        write_project(project, SHORT, publishes("user/my-vae"))
    env = hub.env(tmp_path / "hub-home", None)
    return Runner(project, tmp_path / "ci", env, github, **options)


def step(done: Done, name: str) -> Done:
    """A step of the action, which is the one step of a job that has steps of its own."""
    (action,) = (one for one in done.steps.values() if one.steps)
    return action.steps[name]


def test_a_release_on_a_tag_and_again(hub: LoopbackHub, tmp_path: Path) -> None:
    private, public = make_key(tmp_path)
    secrets = {"HF_TOKEN": TOKEN, "SIGNING_KEY": private.read_text()}
    ci = runner(hub, tmp_path, TAG, secrets=secrets)
    jobs = ci.run(documented("release"))
    done = jobs["release"]
    assert (jobs["dry-run"].outcome, done.outcome) == ("skipped", "success"), done.said
