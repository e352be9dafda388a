"""A release, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaeconv.cli.output import Sink
from vaeconv.cli.screen import Line, Style, Styled, Table
from vaeconv.common.notes import Note, note
from vaeconv.common.wording import plural
from vaeconv.publish.release.release import Release, StepResult


def release_lines(done: Release, *, dry_run: bool, verbose: bool) -> Iterator[Line]:
    """Tell a person what was published, and what became of each step; verbosely, of each file."""
    for one in done.pushed:
        verb = "published" if one.is_new else "nothing changed:"
        tag = f", tag {one.tag}" if one.tag else ""
        files = f"{len(one.changed)} of {plural(len(one.changed) + len(one.unchanged), 'file')}"
        yield Styled(f"{verb} {one.repo_id} ({files} changed{tag})", Style.GOOD)
        yield from (f"  {fact}" for fact in (one.oid and f"commit {one.oid}", one.url) if fact)
        if verbose:
            yield from (f"  changed: {name}" for name in one.changed)
            yield from (f"  unchanged: {name}" for name in one.unchanged)
    if dry_run:
        yield Styled("nothing is missing: this release can be made", Style.GOOD)
    yield from (f"  {one.describe()}" for one in done.destinations)
    yield steps_table(done.steps)
    if not dry_run:
        yield f"  all files are in {done.folder}"


def steps_table(steps: Sequence[StepResult]) -> Table:
    """Make the table of what became of each step."""
    rows = [
        (step.name, step.outcome, f"{step.seconds:.1f} s" if step.seconds else "",
         _said({} if step.name == "push" else step.facts))
        for step in steps
    ]  # fmt: skip
    if any(row[2:] != ("", "") for row in rows):
        return Table(("step", "outcome", "time", "result"), rows, left=2, last_left=True)
    return Table(("step", "outcome"), [row[:2] for row in rows], left=2)


def show_release_file(file: Path, sink: Sink) -> None:
    """Name the release file that was written."""
    sink.show(
        "release",
        lambda: {"written": [str(file)]},
        lambda: [f"wrote {file}: fill in its keys"],
        then=("release", file, "--dry-run"),
    )


def release_notes(done: Release) -> list[Note]:
    """Tell what else there is to know of the repositories."""
    pairs = [(one.repo_id, one.notes) for one in done.pushed]
    pairs += [(one.repo_id, one.notes) for one in done.destinations]
    return [note(f"{repo_id}: {text}") for repo_id, notes in pairs for text in notes]


def _said(facts: dict[str, Any]) -> str:
    return "; ".join(f"{key} {_plain(value)}" for key, value in facts.items() if value)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join("default" if one is None else _plain(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def release_document(done: Release, *, dry_run: bool) -> dict[str, Any]:
    """Describe a release for machines."""
    return {
        "dry_run": dry_run,
        "folder": str(done.folder),
        "steps": [step._asdict() for step in done.steps],
        "pushed": [
            {**one._asdict(), "changed": list(one.changed), "unchanged": list(one.unchanged)}
            for one in done.pushed
        ],
        **({"repositories": [one._asdict() for one in done.destinations]} if dry_run else {}),
    }
