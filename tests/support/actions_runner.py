"""A runner for workflows of GitHub Actions and for our own action, as far as these go.

Steps with ``run:`` run in bash, in their order, with the files that a runner gives them
(``GITHUB_OUTPUT``, ``GITHUB_ENV``, ``GITHUB_PATH``, ``GITHUB_STEP_SUMMARY``). Each job has a
machine of its own: a fresh workspace, home and temporary folder. Actions of others are played: a
checkout copies the repository, caches keep folders between jobs, an artifact is noted. The step
of our action that installs vaeconv is left out unless the runner is told to install: its output
is the Python of the tests then.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.workflow_values import as_text, fill, holds, read_values, read_workflow

ROOT = Path(__file__).parents[2]
_OWN = "vaeconv/vaeconv"
# --- what jobs leave behind ---


@dataclass
class Done:
    """What became of a step or a job."""

    outcome: str = "success"
    outputs: dict[str, str] = field(default_factory=dict)
    said: str = ""
    steps: dict[str, Done] = field(default_factory=dict)
    summary: str = ""
    artifacts: list[list[Path]] = field(default_factory=list)


@dataclass
class Runner:
    """Runs workflows in a repository.

    Attributes:
        repository: The folder that is checked out.
        room: Where machines and caches are.
        env: The environment of every machine.
        github: The context of that name, such as ``ref``.
        secrets: Those of the repository.
        installs: Whether vaeconv is installed by the action; the tests' own is used where not.
        packages: Folders of packages that the Python which the action makes finds installed.
    """

    repository: Path
    room: Path
    env: Mapping[str, str]
    github: dict[str, str]
    secrets: dict[str, str] = field(default_factory=dict)
    installs: bool = False
    packages: Sequence[str] = ()
    caches: dict[tuple[str, str], Path] = field(default_factory=dict)
    machines: int = 0

    def run(
        self, workflow: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
    ) -> dict[str, Done]:
        """Run the jobs of a workflow; those of a workflow that it calls are in its place."""
        contexts = {"github": self.github, "secrets": self.secrets, "inputs": dict(inputs or {})}
        found: dict[str, Done] = {}
        for name, job in workflow["jobs"].items():
            if not holds(job.get("if"), contexts, failed=False):
                found[name] = Done("skipped")
            elif "uses" in job:
                found |= self._call(job, contexts)
            else:
                self.machines += 1
                found[name] = Machine(self, contexts, self.room / f"machine{self.machines}").run(
                    job
                )
        return found

    def _call(self, job: Mapping[str, Any], contexts: Mapping[str, Any]) -> dict[str, Done]:
        path = re.fullmatch(rf"{_OWN}/(.+)@v1", job["uses"])
        assert path, job["uses"]
        called = read_workflow((ROOT / path[1]).read_text())
        declared = called["on"]["workflow_call"]
        given = fill(job.get("with", {}), contexts)
        assert given.keys() <= declared["inputs"].keys()
        inputs = {name: one.get("default", "") for name, one in declared["inputs"].items()} | given
        secrets = fill(job.get("secrets", {}), contexts)
        assert secrets.keys() <= declared["secrets"].keys()
        inner = Runner(**{**vars(self), "secrets": secrets})
        try:
            return inner.run(called, inputs)
        finally:
            self.machines = inner.machines


class Machine:
    """One job's machine."""

    def __init__(self, runner: Runner, contexts: Mapping[str, Any], room: Path) -> None:
        self._runner = runner
        self._room = room
        # Where they lie is the same on every machine, and part of a cache.
        self.workspace, self._temp = runner.room / "workspace", runner.room / "temporary"
        self._home = runner.room / "home"
        for folder in (self.workspace, self._temp, self._home):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        room.mkdir(parents=True)
        if runner.packages:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            site = self._temp / "vaeconv/venv/lib" / version / "site-packages"
            site.mkdir(parents=True)
            (site / "packages.pth").write_text("\n".join(runner.packages))
        machine = {"os": "Linux", "arch": "X64", "temp": str(self._temp)}
        self._contexts = {**contexts, "runner": machine, "env": {}, "job": {}}
        self._summary = room / "summary.md"
        self._env = {
            **runner.env,
            "CI": "true",
            "HOME": str(self._home),
            "TORCH_HOME": str(self._home / ".cache/torch"),
            "RUNNER_TEMP": str(self._temp),
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_STEP_SUMMARY": str(self._summary),
            **{f"GITHUB_{name.upper()}": value for name, value in runner.github.items()},
        }
        self._paths: list[str] = []
        self._saved_at_end: list[Mapping[str, str]] = []
        self._job = Done()

    def run(self, job: Mapping[str, Any]) -> Done:
        """Run the steps of a job."""
        self._env |= {
            name: as_text(one) for name, one in fill(job.get("env", {}), self._contexts).items()
        }
        outcome, self._job.steps = self._run_steps(job["steps"], self._contexts, {})
        self._job.outcome = outcome
        for given in self._saved_at_end if outcome == "success" else ():
            self._save(given)
        contexts = {**self._contexts, "steps": _facts(self._job.steps)}
        outputs = fill(job.get("outputs", {}), contexts)
        self._job.outputs = {name: as_text(one) for name, one in outputs.items()}
        self._job.summary = self._summary.read_text() if self._summary.exists() else ""
        self._job.said = "".join(one.said for one in self._job.steps.values())
        return self._job

    def _run_steps(
        self, steps: list[dict[str, Any]], contexts: Mapping[str, Any], env: Mapping[str, str]
    ) -> tuple[str, dict[str, Done]]:
        found: dict[str, Done] = {}
        failed = False
        for number, step in enumerate(steps):
            name = step.get("id") or f"step{number}"
            known = {**contexts, "steps": _facts(found), "env": {**self._env, **env}}
            if not holds(step.get("if"), known, failed):
                found[name] = Done("skipped")
                continue
            given = fill(step.get("env", {}), known, failed)
            own = {**env, **{key: as_text(one) for key, one in given.items()}}
            if "run" in step:
                found[name] = self._run_script(step, known, own)
            else:
                found[name] = self._use(step, known, own)
            failed |= found[name].outcome == "failure"
        return ("failure" if failed else "success"), found

    # --- run: ---

    def _run_script(
        self, step: Mapping[str, Any], contexts: Mapping[str, Any], env: Mapping[str, str]
    ) -> Done:
        assert "${{" not in step["run"], "values get into scripts by env"
        if step.get("id") == "install" and not self._runner.installs:
            return Done(outputs={"python": sys.executable})
        script = self._room / "script.sh"
        script.write_text(step["run"])
        files = {name: self._room / name for name in ("OUTPUT", "ENV", "PATH")}
        for file in files.values():
            file.write_text("")
        strict = step.get("shell") == "bash"
        shell = ["bash", *(["--noprofile", "--norc", "-eo", "pipefail"] if strict else ["-e"])]
        folder = as_text(fill(step.get("working-directory", "."), contexts))
        path = os.pathsep.join([*self._paths, self._env["PATH"]])
        done = subprocess.run(
            [*shell, script],
            cwd=self.workspace / folder,
            env={
                **self._env, "PATH": path, **env,
                **{f"GITHUB_{name}": str(file) for name, file in files.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
        self._paths[:0] = files["PATH"].read_text().split("\n")[:-1]
        self._env |= read_values(files["ENV"].read_text())
        outcome = "failure" if done.returncode else "success"
        return Done(outcome, read_values(files["OUTPUT"].read_text()), done.stdout)

    # --- uses: ---

    def _use(
        self, step: Mapping[str, Any], contexts: Mapping[str, Any], env: Mapping[str, str]
    ) -> Done:
        action, _, _ = step["uses"].partition("@")
        given = {name: as_text(one) for name, one in fill(step.get("with", {}), contexts).items()}
        if action == _OWN:
            return self._use_ours(given, contexts, env)
        played = {
            "actions/checkout": self._check_out,
            "actions/setup-python": lambda given: Done(),
            "actions/cache": self._restore_and_save,
            "actions/cache/restore": self._restore,
            "actions/cache/save": self._save,
            "actions/upload-artifact": self._keep,
        }
        return played[action](given)

    def _use_ours(
        self, given: Mapping[str, str], contexts: Mapping[str, Any], env: Mapping[str, str]
    ) -> Done:
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        assert given.keys() <= action["inputs"].keys()
        inputs = {name: one["default"] for name, one in action["inputs"].items()} | given
        inner = {name: contexts[name] for name in ("github", "runner", "env", "job")}
        outcome, steps = self._run_steps(
            action["runs"]["steps"],
            {**inner, "inputs": inputs},
            {**env, "GITHUB_ACTION_PATH": str(ROOT)},
        )
        known = {**inner, "inputs": inputs, "steps": _facts(steps)}
        outputs = {
            name: as_text(fill(one["value"], known)) for name, one in action["outputs"].items()
        }
        return Done(outcome, outputs, "".join(one.said for one in steps.values()), steps)

    def _check_out(self, given: Mapping[str, str]) -> Done:
        shutil.copytree(self._runner.repository, self.workspace, dirs_exist_ok=True)
        return Done()

    def _restore(self, given: Mapping[str, str]) -> Done:
        keys = [given["key"], *given.get("restore-keys", "").split()]
        caches = self._runner.caches
        for wanted in keys:
            for path, key in reversed(caches):  # the newest first
                if path == given["path"] and key.startswith(wanted):
                    target = self._place(path)
                    if caches[path, key].is_dir():
                        shutil.copytree(caches[path, key], target, dirs_exist_ok=True)
                    else:
                        shutil.copy2(caches[path, key], target)
                    hit = as_text(key == given["key"])
                    return Done(outputs={"cache-matched-key": key, "cache-hit": hit})
        return Done(outputs={"cache-matched-key": "", "cache-hit": ""})

    def _restore_and_save(self, given: Mapping[str, str]) -> Done:
        found = self._restore(given)
        if found.outputs["cache-hit"] != "true":
            self._saved_at_end.append(given)
        return found

    def _save(self, given: Mapping[str, str]) -> Done:
        path, key = given["path"], given["key"]
        assert key and "," not in key and len(key) <= 512
        kept = self._runner.room / f"cache{len(self._runner.caches)}"
        place = self._place(path)
        # Of which the real one only warns.
        if not place.exists() or (path, key) in self._runner.caches:
            return Done()
        (shutil.copytree if place.is_dir() else shutil.copy2)(place, kept)
        self._runner.caches[path, key] = kept
        return Done()

    def _keep(self, given: Mapping[str, str]) -> Done:
        patterns = [
            Path(one).relative_to(self.workspace) for one in given["path"].split("\n") if one
        ]
        self._job.artifacts.append(
            sorted(file for one in patterns for file in self.workspace.glob(str(one)))
        )
        return Done()

    def _place(self, path: str) -> Path:
        return self.workspace / path.replace("~", str(self._home), 1)


def _facts(steps: Mapping[str, Done]) -> dict[str, Any]:
    return {
        name: {"outputs": one.outputs, "outcome": one.outcome, "conclusion": one.outcome}
        for name, one in steps.items()
    }
