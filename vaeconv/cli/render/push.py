"""A push, as text."""

from __future__ import annotations

from collections.abc import Iterator

from vaeconv.common.notes import Note, note
from vaeconv.common.wording import plural
from vaeconv.publish.hub.access import visibility
from vaeconv.publish.hub.push import Pushed

_IS_PULL = "/discussions/"  # in the address of a pull request


def push_notes(done: Pushed) -> Iterator[Note]:
    """Say what the user should know beside the result."""
    if done.left_out:
        yield note(f"left out, as never published: {', '.join(done.left_out)}")
    yield from map(note, done.notes)


def push_lines(done: Pushed, *, dry_run: bool, names: bool) -> list[str]:
    """Tell a person what was published, or would be."""
    verb = "would publish" if dry_run else "published"
    if not (done.changed or done.deleted):
        lines = [f"nothing changed: {done.repo_id} has all {plural(len(done.unchanged), 'file')}"]
    elif not (done.is_new or dry_run):
        lines = [f"nothing changed: a pull request to {done.repo_id} has all files"]
    else:
        files = plural(len(done.changed), "file")
        lines = [f"{verb} {files} to {done.repo_id}, branch {done.revision}"]
        if _IS_PULL in done.url:
            lines = [f"opened a pull request to {done.repo_id} with {files}: nothing is published"]
    if dry_run or done.creates:
        lines.append(f"  {_state(done, dry_run=dry_run)}")
    if names:
        lines += [
            f"  {path}" + " (replaces another)" * (path in done.replaced) for path in done.changed
        ]
        lines += [f"  {path} (there)" for path in done.unchanged]
    gone = "would be deleted" if dry_run else "deleted"
    lines += [f"  {path} ({gone}: of an older release)" for path in done.deleted]
    if done.oid:
        lines.append(f"  commit {done.oid}{f', tag {done.tag}' if done.tag else ''}")
    if done.url:
        lines.append(f"  {done.url}")
    if done.is_verified:
        lines.append("  downloaded again, and equal")
    return lines


def _state(done: Pushed, *, dry_run: bool) -> str:
    """Say whether the repository is there, and who may see it."""
    verb = "is there"
    if done.creates:
        verb = "would be created" if dry_run else "was created"
    return f"the repository {verb}, {visibility(done.is_private)}"
