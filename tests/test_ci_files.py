"""The action, the workflows and docs/release-in-ci.md: what must hold before any of them runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.workflow_values import read_workflow
from vaeconv import __version__
from vaeconv.publish.release.config import commented_file, read_release

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
REUSABLE = ROOT / ".github" / "workflows" / "vaeconv-release.yml"
TEXT = (ROOT / "docs" / "release-in-ci.md").read_text(encoding="utf-8")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
# A version, or a whole commit with the version beside it. PyPA keeps a branch for theirs.
PINNED = re.compile(
    r"[\w./-]+@(v\d+|[0-9a-f]{40}  # v\d+\.\d+\.\d+)|pypa/gh-action-pypi-publish@release/v1"
)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)


def documented() -> dict[str, str]:
    """The workflows in the document, by name: whole ones, and the first with each of its parts."""
    whole, parts = [], []
    for text in blocks("yaml"):
        (parts if text.startswith(" ") else whole).append(text)
    found = {read_workflow(text)["name"]: text for text in whole}
    one_line = found["release"]
    for number, part in enumerate(parts):
        key = part.split("\n")[0]
        kept = one_line.partition("    with:\n")[0] if "with:" in key else one_line
        found[f"release with part {number}"] = kept + part
    return found


def written(folder: Path) -> list[Path]:
    """All workflows as files; those of the document among them."""
    place = folder / ".github" / "workflows"
    place.mkdir(parents=True)
    for name, text in documented().items():
        (place / f"{name}.yml").write_text(text, encoding="utf-8")
    for path in WORKFLOWS:
        shutil.copy(path, place / f"ours-{path.name}")
    return sorted(place.iterdir())


def every_step() -> Iterator[tuple[str, dict[str, Any]]]:
    for step in ACTION["runs"]["steps"]:
        yield "action.yml", step
    texts = {path.name: path.read_text(encoding="utf-8") for path in WORKFLOWS} | documented()
    for name, text in texts.items():
        for job in read_workflow(text)["jobs"].values():
            for step in job.get("steps", [{"uses": job.get("uses"), "with": job.get("with", {})}]):
                yield name, step


# --- outside judges ---


def test_the_schemas_find_nothing_wrong(tmp_path: Path) -> None:
    judge = Path(sys.executable).with_name("check-jsonschema")
    files = written(tmp_path)
    spoiled = {"workflow": tmp_path / "spoiled.yml", "action": tmp_path / "action.yml"}
    spoiled["workflow"].write_text(files[0].read_text().replace("permissions", "permission"))
    spoiled["action"].write_text((ROOT / "action.yml").read_text().replace("using", "use"))
    for schema, good, bad in (
        ("workflows", files, spoiled["workflow"]),
        ("actions", [ROOT / "action.yml"], spoiled["action"]),
    ):
        for listed, code in ((good, 0), ([bad], 1)):
            command = [judge, "--builtin-schema", f"vendor.github-{schema}", *listed]
            assert subprocess.run(command, check=False).returncode == code, listed


def test_actionlint_finds_nothing_wrong(tmp_path: Path) -> None:
    """With inputs of actions by their versions: it knows those, and no commits."""
    judge = shutil.which("actionlint")
    if judge is None:
        pytest.skip("actionlint is not on the path; CI has it")
    files = written(tmp_path)

    def judged(paths: list[Path]) -> str:
        for path in paths:
            text = re.sub(r"@[0-9a-f]{40}  # (v\d+)\S*", r"@\1", path.read_text())
            path.write_text(text)
        done = subprocess.run(
            [judge, "-no-color", *paths], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        return done.stdout + done.stderr

    assert judged(files) == ""
    planted = tmp_path / "planted.yml"
    for old, new, said in (
        ("inputs.release-file", "inputs.release-fil", 'property "release-fil" is not defined'),
        ("persist-credentials", "persist", 'input "persist" is not defined'),
        ("ubuntu-latest", "ubuntu-newest", 'label "ubuntu-newest" is unknown'),
        ("contents: read", "content: read", 'unknown permission scope "content"'),
    ):
        text = REUSABLE.read_text(encoding="utf-8")
        assert old in text
        planted.write_text(text.replace(old, new))
        assert said in judged([planted])


# --- our own ---


def test_no_value_gets_into_a_script_but_by_the_environment() -> None:
    scripts = [(name, step["run"]) for name, step in every_step() if "run" in step]
    assert len(scripts) > 10
    assert [one for one in scripts if "${{" in one[1]] == []


def test_everything_that_is_used_is_pinned() -> None:
    texts = [*documented().values(), (ROOT / "action.yml").read_text(encoding="utf-8")]
    texts += [path.read_text(encoding="utf-8") for path in WORKFLOWS]
    used = [found for text in texts for found in re.findall(r"uses: *(.+)", text)]
    assert len(used) > 20
    assert [one for one in used if not PINNED.fullmatch(one.strip())] == []
    installed = re.findall(r"pip install.*?'?(\S+?)==([\d.]+)", TEXT)
    limits = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(installed) == 2
    for name, version in installed:
        assert version == __version__ if name == "vaeconv" else f"{name}=={version}" in limits


def test_inputs_that_are_given_exist() -> None:
    called = read_workflow(REUSABLE.read_text(encoding="utf-8"))["on"]["workflow_call"]["inputs"]
    known = {"vaeconv/vaeconv@v1": ACTION["inputs"]}
    known["vaeconv/vaeconv/.github/workflows/vaeconv-release.yml@v1"] = called
    ours = [(name, step) for name, step in every_step() if step.get("uses") in known]
    assert len(ours) >= 5
    for name, step in ours:
        assert step.get("with", {}).keys() <= known[step["uses"]].keys(), name


def test_every_input_is_used() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8").partition("\nruns:")[2]
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == ACTION["inputs"].keys()
    reusable = REUSABLE.read_text(encoding="utf-8")
    declared = read_workflow(reusable)["on"]["workflow_call"]
    assert set(re.findall(r"inputs\.([\w-]+)", reusable)) == declared["inputs"].keys()
    assert set(re.findall(r"secrets\.([\w-]+)", reusable)) == declared["secrets"].keys()


def test_what_steps_read_of_others_is_there() -> None:
    """Outputs of the script's steps are those that it tells; of caches, those that they have."""
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    script = (ROOT / ".github" / "action" / "steps.py").read_text(encoding="utf-8")
    told = {
        "run": set(OUTPUTS),
        "install": {"python"},
        "places": {"networks", "work", "prefix", "is-new"},
        "keys": {"pip", "networks", "work"},
        **{f"restore-{name}": {"cache-matched-key"} for name in ("pip", "networks", "work")},
    }
    used = set(re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", text))
    assert {step for step, _ in used} == told.keys()
    assert all(name in told[step] for step, name in used)
    assert all(f'"{name}": ' in script for name in told["places"])
    read = set(re.findall(r"_input\(\"(\w+)\"\)", script)) | {"NETWORKS", "WORK"}
    given = set(re.findall(r"\bIN_(\w+): ", text))
    assert read <= given
    assert {f"{name}_PREFIX" for name in ("PIP", "NETWORKS", "WORK")} <= given


OUTPUTS = ("folder", "pushed", "repo_ids", "commits")


def test_the_outputs_are_those_of_the_command() -> None:
    source = (ROOT / "vaeconv" / "cli" / "github.py").read_text(encoding="utf-8")
    assert tuple(ACTION["outputs"]) == OUTPUTS
    for name in OUTPUTS:
        assert f"`{name}`" in TEXT
        assert f'"{name}":' in source
        assert f"steps.run.outputs.{name}" in ACTION["outputs"][name]["value"]


def test_pull_requests_get_no_secret_and_no_identity() -> None:
    workflow = read_workflow(REUSABLE.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    dry_run, release = workflow["jobs"]["dry-run"], workflow["jobs"]["release"]
    assert "permissions" not in dry_run and "env" not in dry_run
    assert dry_run["runs-on"] == "ubuntu-latest"
    assert "secrets" not in str(dry_run)
    assert release["permissions"]["id-token"] == "write"
    for job in (dry_run, release):
        assert job["timeout-minutes"] and job["concurrency"]
        assert job["steps"][0]["with"]["persist-credentials"] is False


def test_the_table_of_inputs_is_the_action_s() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \|", TEXT.partition("## Versions")[0], re.MULTILINE)
    assert [name for name, _ in rows] == [
        *("command", "release-file", "tag", "dry-run", "working-directory", "token"),
        *("signing-key", "version", "extras", "torch", "python-version", "cache"),
    ]
    assert {name for name, _ in rows} == ACTION["inputs"].keys()
    for name, said in rows:
        default = ACTION["inputs"][name]["default"]
        assert said == f"`{default}`" or default == "", name


def test_the_release_files_are_some(tmp_path: Path) -> None:
    gate, whole = blocks("toml")
    file = tmp_path / "release.toml"
    file.write_text(gate, encoding="utf-8")
    assert read_release(file).eval.min_psnr == 23.0
    file.write_text(whole, encoding="utf-8")
    config = read_release(file)
    assert config.source.scaling_factor == 0.18215
    assert config.push.repo_id == "user/my-vae"


def test_the_reference_of_keys_is_what_init_writes() -> None:
    text = (ROOT / "docs" / "release-file.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found.rstrip() == commented_file().rstrip(), "vaeconv release --init writes it"


@pytest.mark.parametrize(
    "folder", ["~nouser/x", "a" * 400, "a\\u0000b", "/", "..", "$HOME/../../../.."]
)
def test_any_release_file_leaves_the_command_to_say_what_is_wrong(
    tmp_path: Path, folder: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "release.toml").write_text(f'[output]\nfolder = "{folder}"\n')
    assert places_of(project)["work"] in ("", str(project / folder))


def test_a_release_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert places_of(tmp_path)["work"] == ""
    (tmp_path / "release.toml").write_text("a = " + "[" * 5000)
    assert places_of(tmp_path)["work"] == ""
    (tmp_path / "release.toml").unlink()
    os.mkfifo(tmp_path / "release.toml")
    assert places_of(tmp_path)["work"] == ""


def test_a_tag_is_no_variable(tmp_path: Path) -> None:
    (tmp_path / "release.toml").write_text('[output]\nfolder = "$PART/{tag}"\n')
    found = places_of(tmp_path, IN_TAG="v$PART", PART="o")
    assert found["work"] == str(tmp_path / "o" / "v$PART")


def places_of(folder: Path, **env: str) -> dict[str, str]:
    script, output = ROOT / ".github" / "action" / "steps.py", folder / "told"
    settings = {**os.environ, "IN_COMMAND": "release", "GITHUB_OUTPUT": str(output), **env}
    subprocess.run([sys.executable, script, "places"], cwd=folder, env=settings, check=True,
                   timeout=60)  # fmt: skip
    lines = output.read_text().splitlines()
    output.unlink()
    return {lines[at].partition("<<")[0]: lines[at + 1] for at in range(0, len(lines), 3)}
