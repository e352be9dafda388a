"""A release: convert, prune, verify, eval, compare, card, push, from one file.

It can be run again after any failure: each step's inputs are hashed, and a step that is done, and
whose inputs are the same, is not done again. What a step wrote must still be what it wrote: a file
that changed since is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.shared import shared_sources
from vaeconv.errors import OutputError, UsageError
from vaeconv.option_checks import not_among
from vaeconv.publish.pushing import Pushed
from vaeconv.publish.release_config import ReleaseConfig
from vaeconv.publish.release_project import Project
from vaeconv.publish.release_state import State
from vaeconv.publish.release_steps import STEPS
from vaeconv.publish.release_work import Work

_NAMES = tuple(STEPS)
# A card is people's as well, and the Hub may have changed: both are looked at each time.
_ALWAYS = ("card", "push")


class StepResult(NamedTuple):
    """What became of a step.

    Attributes:
        name: Of the step.
        outcome: ``done``, ``unchanged``, ``to do`` or ``left out``.
        facts: What there is to say of it.
    """

    name: str
    outcome: str
    facts: dict[str, Any]


class Release(NamedTuple):
    """What became of a release.

    Attributes:
        steps: In their order.
        folder: Where everything is.
        pushed: What was published, repository by repository.
    """

    steps: tuple[StepResult, ...]
    folder: Path
    pushed: tuple[Pushed, ...]


def release(
    config: ReleaseConfig,
    root: Path,
    *,
    first: str | None = None,
    last: str | None = None,
    sign: Path | None = None,
    dry_run: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Release:
    """Make a release, as far as it is not made yet.

    Args:
        config: What to release.
        root: The folder that paths in it are taken from.
        first: Do this step and those after it again, whatever is done.
        last: Stop after this step.
        sign: A private key (PEM) to sign what is published with, which needs the extra ``sign``.
        dry_run: Say what would be done, and do nothing.
        on_step: Called with the name of each step that runs.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Raises:
        CheckFailedError: A gate said no, or a file is not what a step wrote.
        VaeconvError: A step failed, as its function says.
    """
    check_steps(first, last)
    with shared_sources():
        return _release(
            Work(Project(config, root), sign=sign, on_progress=on_progress),
            first=first,
            last=last,
            dry_run=dry_run,
            on_step=on_step,
        )


def _release(
    work: Work,
    *,
    first: str | None,
    last: str | None,
    dry_run: bool,
    on_step: Callable[[str], None] | None,
) -> Release:
    if not dry_run:
        _make_folders([work.project.folder, work.project.diffusers, work.project.original])
    state = State(work.project.folder)
    results: list[StepResult] = []
    pushed: tuple[Pushed, ...] = ()
    for name in _NAMES[: _NAMES.index(last) + 1] if last else _NAMES:
        work = work._replace(is_forced=work.is_forced or name == first)
        result, found = _run_step(name, work, state, dry_run=dry_run, on_step=on_step)
        results.append(result)
        pushed += found
    return Release(tuple(results), work.project.folder, pushed)


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


def _run_step(
    name: str,
    work: Work,
    state: State,
    *,
    dry_run: bool,
    on_step: Callable[[str], None] | None,
) -> tuple[StepResult, tuple[Pushed, ...]]:
    inputs = _hash_inputs(name, work.project, state)
    if inputs is None:
        if not dry_run:
            state.forget(name)
        return StepResult(name, "left out", {}), ()
    known = state.get(name)
    is_known = known is not None and known.inputs == inputs and name not in _ALWAYS
    if known and is_known and not work.is_forced and state.stands(name):
        return StepResult(name, "unchanged", known.facts), ()
    if dry_run:
        return StepResult(name, "to do", {}), ()
    if on_step:
        on_step(name)
    state.begin(name)
    done = STEPS[name](work)
    state.end(name, inputs, done.outputs, done.facts)
    return StepResult(name, "done", done.facts), done.pushed


def _make_folders(folders: Sequence[Path]) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {error.strerror}", where=str(folders[0])) from error


def _hash_inputs(name: str, project: Project, state: State) -> str | None:
    """Hash what decides a step's result; None where the step is not wanted."""
    config = project.config
    table, pictures = config.eval, config.compare
    weights = [
        __version__,
        asdict(config.source),
        project.source_sha256(),
        {key: value for key, value in asdict(config.output).items() if key != "sbom"},
        project.content(config.source.config),
        [project.metadata(layout) for layout in Layout],
    ]

    def others() -> list[Any]:
        return [
            project.own_model.name,
            table.protocol,
            table.device,
            project.content(table.models),
            [project.content(model.path) for model in project.other_models],
        ]

    wanted: dict[str, Callable[[], Any]] = {
        "convert": lambda: weights,
        "prune": lambda: weights if config.output.original else None,
        "verify": lambda: [
            weights, asdict(config.verify), project.content(config.verify.latents),
            project.content(config.verify.drop_in_for),
        ],
        "eval": lambda: [
            weights, asdict(table), others(),
            project.content(table.images), project.content(table.baseline),
        ] if table.images else None,
        "compare": lambda: [
            weights, asdict(pictures), others(), project.content(pictures.images),
        ] if pictures.images else None,
        "card": lambda: [
            weights, asdict(config.card), asdict(config.push),
            [state.get(step) for step in _NAMES[:5]],
        ],
        "push": lambda: [asdict(config.push)] if config.push.repo_id else None,
    }  # fmt: skip
    facts = wanted[name]()
    if facts is None:
        return None
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
