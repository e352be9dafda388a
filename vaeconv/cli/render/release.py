"""A release, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vaeconv.publish.release import Release


def release_lines(done: Release) -> Iterator[str]:
    """Tell a person what became of each step."""
    for step in done.steps:
        yield f"{step.name}: {step.outcome}{_said({} if step.name == 'push' else step.facts)}"
    yield from (f"  {one.repo_id} {one.oid} {one.url}".rstrip() for one in done.pushed)
    yield from (f"  {one.describe()}" for one in done.destinations)


def release_notes(done: Release) -> list[str]:
    """Tell what else there is to know of the repositories."""
    pairs = [(one.repo_id, one.notes) for one in done.pushed]
    pairs += [(one.repo_id, one.notes) for one in done.destinations]
    return [f"note: {repo_id}: {note}" for repo_id, notes in pairs for note in notes]


def _said(facts: dict[str, Any]) -> str:
    text = "; ".join(f"{key} {_plain(value)}" for key, value in facts.items() if value)
    return f" ({text})" if text else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join("plain" if one is None else _plain(one) for one in value)
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
