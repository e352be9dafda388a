"""A release: convert, prune, verify, eval, compare, card, push, from one file.

It can be run again after any failure: each step's inputs are hashed, and a step that is done, and
whose inputs are the same, is not done again. What a step wrote must still be what it wrote: a file
that changed since is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.source import shared_sources
from vaeconv.common.option_checks import not_among, path_text
from vaeconv.errors import OutputError, UsageError, VaeconvError, raise_all
from vaeconv.publish.hub.access import Destination
from vaeconv.publish.hub.push import Pushed
from vaeconv.publish.release.check import check_config, noted
from vaeconv.publish.release.config import PATHS, ReleaseConfig, read_release
from vaeconv.publish.release.preflight import Preflight
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.state import State, locked
from vaeconv.publish.release.steps import STEPS, Work
from vaeconv.publish.release.values import fill_in

_NAMES = tuple(STEPS)
# Tables and keys that decide what a step writes.
_WEIGHTS = ("source", "output")
_INPUTS = {
    "convert": _WEIGHTS,
    "prune": _WEIGHTS,
    "verify": (*_WEIGHTS, "verify"),
    "eval": (*_WEIGHTS, "eval"),
    "compare": (*_WEIGHTS, "compare", "eval.protocol", "eval.device", "eval.models"),
    "card": (*_WEIGHTS, "card", "push"),
    "push": ("push",),
}
# A step is left out without this key.
_SWITCHES = {
    "prune": "output.original",
    "eval": "eval.images",
    "compare": "compare.images",
    "push": "push.repo_id",
}
# A card is people's as well, and the Hub may have changed: both are looked at each time.
_ALWAYS = ("card", "push")


class StepResult(NamedTuple):
    """Result of one release step.

    Attributes:
        name: Name of the step.
        outcome: ``done``, ``unchanged``, ``to do``, ``left out`` or ``failed``.
        facts: What the step found, such as counts and metrics.
        seconds: How long it took; 0 where nothing was done.
    """

    name: str
    outcome: str
    facts: dict[str, Any]
    seconds: float = 0.0


class Release(NamedTuple):
    """Result of a release, or of its dry run.

    Attributes:
        steps: In their order.
        folder: Folder of all files of the release.
        pushed: Result of each push, repository by repository.
        destinations: Repositories as a dry run found them.

    Example:
        >>> done = release("release.toml", last="prune")
        >>> [step.outcome for step in done.steps]
        ['done', 'done']
    """

    steps: tuple[StepResult, ...]
    folder: Path
    pushed: tuple[Pushed, ...]
    destinations: tuple[Destination, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [
                f"release in {self.folder}",
                *(f"  {step.name}: {step.outcome}" for step in self.steps),
                *map(str, self.pushed),
            ]
        )


def release(
    config: ReleaseConfig | str | os.PathLike[str],
    root: Path | None = None,
    *,
    first: str | None = None,
    last: str | None = None,
    tag: str | None = None,
    sign: Path | None = None,
    dry_run: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_result: Callable[[StepResult], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Release:
    """Make a release, as far as it is not made yet.

    Before anything is done, all that it needs is looked at, on this machine and on the Hub. Of a
    source on the Hub each byte is fetched at most once, at the commit that its revision names now.

    Args:
        config: Path of a release file, or the configuration that it would hold.
        root: The folder that paths in it are taken from; by default that of the release file, or
            the current one.
        first: Do this step and those after it again, whatever is done.
        last: Stop after this step.
        tag: What ``{tag}`` in values stands for, and what tags the commits where no value has it;
            None for the tag that the environment has.
        sign: A private key (PEM) to sign what is published with, which needs the extra ``sign``.
        dry_run: Look at everything, say what would be done, and do nothing. Needs no token for
            the Hub: without one, notes say what is not checked.
        on_step: Called with the name of each step that runs.
        on_result: Called with the result of each step, also of those that nothing is done in.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Raises:
        UsageError: There is no such step; values are wrong, or do not fit each other.
        CheckFailedError: A gate said no, or a file is not what a step wrote.
        OutputError: Another release is being made in the folder, or it cannot be written.
        VaeconvError: Something is missing, or a step failed, as its function says. Where several
            things are wrong before it begins, ``details`` lists them all.

    Example:
        >>> done = release("release.toml", last="verify", dry_run=True)
        >>> [f"{step.name}: {step.outcome}" for step in done.steps]
        ['convert: to do', 'prune: to do', 'verify: to do']
    """
    check_steps(first, last)
    problems: list[VaeconvError] = []
    if not isinstance(config, ReleaseConfig):
        file = Path(path_text("config", config))
        root = root or file.absolute().parent
        config = read_release(file, problems)
    unfilled: list[VaeconvError] = []
    config = fill_in(config, tag, unfilled)
    problems += [*unfilled, *check_config(config)]
    project = Project(config, root or Path())
    names = _NAMES[: _NAMES.index(last) + 1] if last else _NAMES
    with shared_sources(), ExitStack() as stack:
        is_locked = not dry_run and stack.enter_context(locked(project.folder))
        redone = _NAMES[_NAMES.index(first) :] if first else ()
        work = Work(project, State(project.folder), redone, sign, on_progress)
        results: list[StepResult] = []
        # A step that cannot be looked at is one that is to be done.
        due = set(names)
        if unfilled:
            due = {"push"} if config.push.repo_id and "push" in names else set()
        else:
            if on_progress:
                on_progress("looking at what is needed", 0, 1)
            for name in names:
                with noted(problems):
                    results.append(_look(name, work)[0])
            due -= {one.name for one in results if one.outcome != "to do"}
        if problems:  # nothing is planned by values that are wrong
            due -= {"convert", "prune"}
        preflight = Preflight(project, due, sign, problems, needs_token=not dry_run)
        destinations = preflight.run()
        raise_all(problems, where="the release cannot begin")
        if dry_run:
            return Release(tuple(results), project.folder, (), destinations)
        _make_folders([project.folder, *project.folders])
        if not is_locked:
            stack.enter_context(locked(project.folder))
        return _run(work, names, on_step, on_result)


def _run(
    work: Work,
    names: Sequence[str],
    on_step: Callable[[str], None] | None,
    on_result: Callable[[StepResult], None] | None,
) -> Release:
    results: list[StepResult] = []
    for name in names:
        started = time.monotonic()
        try:
            results.append(_do(name, work, on_step))
        except VaeconvError:
            if on_result:
                on_result(StepResult(name, "failed", {}, time.monotonic() - started))
            raise
        if on_result:
            on_result(results[-1])
    return Release(tuple(results), work.project.folder, tuple(work.pushed))


def _do(name: str, work: Work, on_step: Callable[[str], None] | None) -> StepResult:
    """Do a step, if it is to be done."""
    result, inputs = _look(name, work)
    if result.outcome == "left out":
        work.state.forget(name)
    if result.outcome != "to do":
        return result
    if on_step:
        on_step(name)
    work.state.begin(name)
    started = time.monotonic()
    outputs, facts = STEPS[name](work)
    work.state.end(name, inputs, outputs, facts)
    return StepResult(name, "done", facts, time.monotonic() - started)


def _look(name: str, work: Work) -> tuple[StepResult, str]:
    """Tell if a step is to be done, and hash its inputs."""
    if name in _SWITCHES and not attrgetter(_SWITCHES[name])(work.project.config):
        return StepResult(name, "left out", {}), ""
    inputs = _hash_inputs(name, work.project)
    known = work.state.get(name)
    is_done = known is not None and known.inputs == inputs
    is_done = is_done and name not in _ALWAYS and name not in work.redone
    if known and is_done and work.state.stands(name):
        return StepResult(name, "unchanged", known.facts), inputs
    return StepResult(name, "to do", {}), inputs


def _hash_inputs(name: str, project: Project) -> str:
    """Hash what decides a step's result: values, and what is in the files that they name."""
    facts: list[Any] = [__version__, [project.metadata(layout) for layout in Layout]]
    for part in _INPUTS[name]:
        table, _, only = part.partition(".")
        values = asdict(getattr(project.config, table))
        for key in [only] if only else values:
            if (table, key) != ("output", "sbom"):  # which the card's step writes
                facts.append([key, values[key], _content(project, table, key, values[key])])
    if name in ("eval", "compare"):
        models = [project.content(model.path) for model in project.other_models]
        facts += [project.own_model.name, models]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _content(project: Project, table: str, key: str, value: Any) -> Any:
    if (table, key) not in PATHS or not value or table == "output":
        return None
    if key == "checkpoint":
        return project.source_sha256
    return project.images(value) if key == "images" else project.content(value)


def check_steps(first: str | None, last: str | None) -> None:
    """Check the names of steps.

    Raises:
        UsageError: There is no such step, or the last comes before the first.
    """
    for name in (one for one in (first, last) if one is not None):
        if name not in _NAMES:
            raise not_among("step", name, _NAMES)
    if first and last and _NAMES.index(first) > _NAMES.index(last):
        raise UsageError(f"--from {first} comes after --until {last}")


def _make_folders(folders: Sequence[Path]) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=str(folders[0])) from error
