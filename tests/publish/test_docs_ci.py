"""The workflow and the release file in docs/release-in-ci.md are what they say they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from vaeconv.publish.release_config import commented_file, read_release

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "release-in-ci.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return found


def test_the_workflow_has_what_a_release_needs() -> None:
    workflow = yaml.safe_load(block("yaml"))
    assert workflow["permissions"] == {"contents": "read", "id-token": "write"}
    assert workflow[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads "on" as true
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] > 0
    assert "HF_OIDC_RESOURCE" in job["env"]
    for step in job["steps"]:
        assert step.keys() <= {"uses", "with", "run", "id", "if", "env", "name"}
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert any(command.startswith("vaeconv release release.toml") for command in commands)
    assert "HF_TOKEN" not in block("yaml")


def test_github_s_schema_finds_nothing_wrong(tmp_path: Path) -> None:
    judge = Path(sys.executable).with_name("check-jsonschema")
    documented, spoiled = tmp_path / "release.yml", tmp_path / "spoiled.yml"
    documented.write_text(block("yaml"), encoding="utf-8")
    spoiled.write_text(block("yaml").replace("runs-on", "runs-at"), encoding="utf-8")
    ours = (ROOT / ".github" / "workflows").glob("*.yml")
    for files, code in (([documented, *ours], 0), ([spoiled], 1)):
        done = subprocess.run(
            [judge, "--builtin-schema", "vendor.github-workflows", *files], check=False
        )
        assert done.returncode == code


def test_the_release_file_is_one(tmp_path: Path) -> None:
    file = tmp_path / "release.toml"
    file.write_text(block("toml"), encoding="utf-8")
    config = read_release(file)
    assert config.source.scaling_factor == 0.18215
    assert config.push.repo_id == "user/my-vae"


def test_the_outputs_are_those_of_the_command() -> None:
    source = ROOT / "vaeconv" / "cli" / "github.py"
    for name in ("folder", "pushed", "repo_ids", "commits"):
        assert f"`{name}`" in TEXT
        assert f'"{name}":' in source.read_text(encoding="utf-8")


def test_the_reference_of_keys_is_what_init_writes() -> None:
    text = (ROOT / "docs" / "release-file.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found.rstrip() == commented_file().rstrip(), "vaeconv release --init writes it"
