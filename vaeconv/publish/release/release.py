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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint import system
from vaeconv.checkpoint.source import shared_sources
from vaeconv.common.option_checks import not_among, path_text
from vaeconv.errors import OutputError, UsageError, VaeconvError, raise_all
from vaeconv.publish.hub.access import Destination
from vaeconv.publish.hub.push import Pushed
from vaeconv.publish.release.check import check_config
from vaeconv.publish.release.config import ReleaseConfig, read_release
from vaeconv.publish.release.preflight import Preflight
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.state import State
from vaeconv.publish.release.steps import STEPS
from vaeconv.publish.release.values import fill_in
from vaeconv.publish.release.work import Work

_NAMES = tuple(STEPS)
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
    found: list[VaeconvError] = []
    if not isinstance(config, ReleaseConfig):
        file = Path(path_text("config", config))
        root = root or file.absolute().parent
        config = read_release(file, found)
    unfilled: list[VaeconvError] = []
    config = fill_in(config, tag, unfilled)
    problems = [*found, *unfilled, *check_config(config)]
    work = Work(Project(config, root or Path()), sign=sign, on_progress=on_progress)
    names = _NAMES[: _NAMES.index(last) + 1] if last else _NAMES
    folder = work.project.folder
    with shared_sources(), ExitStack() as stack:
        is_locked = not dry_run and stack.enter_context(_locked(folder))
        state = State(folder)
        results = () if unfilled else _look(work, state, names, first, problems)
        # A step that cannot be planned is looked at like those that are to be done.
        due = {*names} - {one.name for one in results if one.outcome != "to do"}
        if problems:  # nothing is planned by values that are wrong
            due -= {"convert", "prune"}
        if unfilled:
            due = {"push"} if config.push.repo_id and "push" in names else set()
        preflight = Preflight(work.project, due, sign, problems, needs_token=not dry_run)
        destinations = preflight.run()
        raise_all(problems, where="the release cannot begin")
        if dry_run:
            return Release(results, folder, (), destinations)
        has_original = bool(work.project.originals)
        _make_folders(
            [folder, work.project.diffusers, *([work.project.original] if has_original else [])]
        )
        if not is_locked:
            stack.enter_context(_locked(folder))
        return _run(work, state, names, first, on_step, on_result)


def _look(
    work: Work,
    state: State,
    names: Sequence[str],
    first: str | None,
    problems: list[VaeconvError],
) -> tuple[StepResult, ...]:
    """Tell what would be done, and add to the problems what stands against it."""
    results = []
    if work.on_progress:
        work.on_progress("looking at what is needed", 0, 1)
    for name in names:
        work = work._replace(is_forced=work.is_forced or name == first)
        try:
            result, _ = _run_step(name, work, state, dry_run=True, on_step=None)
            results.append(result)
        except VaeconvError as error:
            problems.append(error)
    return tuple(results)


def _run(
    work: Work,
    state: State,
    names: Sequence[str],
    first: str | None,
    on_step: Callable[[str], None] | None,
    on_result: Callable[[StepResult], None] | None,
) -> Release:
    results: list[StepResult] = []
    pushed: tuple[Pushed, ...] = ()
    for name in names:
        work = work._replace(is_forced=work.is_forced or name == first)
        started = time.monotonic()
        try:
            result, found = _run_step(name, work, state, dry_run=False, on_step=on_step)
        except VaeconvError:
            if on_result:
                on_result(StepResult(name, "failed", {}, time.monotonic() - started))
            raise
        results.append(result)
        if on_result:
            on_result(result)
        pushed += found
    return Release(tuple(results), work.project.folder, pushed)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep other releases out of a folder; gives whether it is there.

    Raises:
        OutputError: Another one is being made there.
    """
    if not folder.is_dir():
        yield False
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(system.locked(folder.resolve()))
        except BlockingIOError as error:
            raise OutputError(
                "another release is being made here",
                where=str(folder),
                hint="wait until it is done",
            ) from error
        except OSError:  # nothing can be locked here
            pass
        yield True


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
    started = time.monotonic()
    done = STEPS[name](work._replace(retire=partial(state.retire, name)))
    state.end(name, inputs, done.outputs, done.facts)
    return StepResult(name, "done", done.facts, time.monotonic() - started), done.pushed


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
            project.images(table.images), project.content(table.baseline),
            [project.content(str(file)) for file in project.networks.values()],
        ] if table.images else None,
        "compare": lambda: [
            weights, asdict(pictures), others(), project.images(pictures.images),
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
