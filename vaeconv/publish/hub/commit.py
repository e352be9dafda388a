"""Exactly one commit, whatever becomes of the answer to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from vaeconv.errors import CheckFailedError, HubError, VaeconvError
from vaeconv.publish.files import ReleaseFile
from vaeconv.publish.hub.repository import IGNORE, Commit, Remote
from vaeconv.publish.hub.session import WAITS, is_lost, status_of


def commit_files(
    remote: Remote,
    files: Sequence[ReleaseFile],
    head: str | None,
    tree: Mapping[str, Any],
    *,
    gone: Sequence[str] = (),
    description: str = "",
    message: str | None = None,
    create_pr: bool = False,
) -> Commit:
    """Commit files on top of a head; where the answer is lost, look before doing it again.

    Args:
        remote: Where to.
        files: What changed.
        head: The commit that they were compared with; None for an empty repository.
        tree: What that commit has.
        gone: Paths that are deleted in the same commit.
        description: What stands below the message.
        message: Of the commit; None for one that names the files.
        create_pr: Open a pull request instead of a commit to the branch.

    Raises:
        CheckFailedError: A file is no longer what was checked.
        HubError: The repository leaves files out, or cannot be asked what became of the commit.
        Exception: What the client says, for ``explain``.
    """
    from huggingface_hub import CommitOperationDelete

    additions = _operations(files)
    operations = [*additions, *(CommitOperationDelete(path) for path in gone)]
    where: dict[str, Any] = {
        "revision": None if create_pr else remote.revision,
        "create_pr": create_pr,
    }
    if IGNORE in tree:
        remote.check_ignored(additions, **where)
    for wait in (*WAITS, None):
        try:
            remote.deadline.check()
            done = remote.api.create_commit(
                remote.repo_id,
                operations,
                commit_message=message or _message(files, gone),
                commit_description=description,
                parent_commit=head,
                repo_type=remote.repo_type,
                **where,
            )
        except VaeconvError:  # the time is over
            raise
        except Exception as error:
            if not is_lost(error):
                raise
            found = _find_lost(remote, files, gone, head, create_pr=create_pr)
            if found is not None:
                return found
            # A pull request may be made a moment later, and no parent would refuse a second one.
            if create_pr or wait is None or status_of(error) == 412:
                raise
            # It was not made: the head is where it was, or the next try is refused.
            remote.deadline.check()
            time.sleep(wait)
        else:
            return Commit(done.oid, done.pr_url or done.commit_url)
    raise AssertionError


def _operations(files: Sequence[ReleaseFile]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    operations = []
    for file in files:
        try:
            operation = CommitOperationAdd(file.path, str(file.local))
        except (OSError, ValueError):  # what the client says of a file that has gone
            raise _has_changed(file) from None
        if operation.upload_info.sha256.hex() != file.sha256:
            raise _has_changed(file)
        operations.append(operation)
    return operations


def _find_lost(
    remote: Remote,
    files: Sequence[ReleaseFile],
    gone: Sequence[str],
    head: str | None,
    *,
    create_pr: bool,
) -> Commit | None:
    """Find a commit that was made though no answer came.

    Ours is the one right after the head that it named: somebody may have pushed on top since.
    """
    try:
        if create_pr:
            return remote.find_pull(files, gone)
        oid = remote.child_of(head)
        return Commit(oid, "") if oid and remote.has(files, oid, gone) else None
    except Exception as error:
        if status_of(error) is not None:
            return None
        raise HubError(
            "the answer to the commit was lost, and the Hub cannot be asked",
            where=remote.repo_id,
            hint="push again: a commit that was made is recognised",
        ) from error


def _has_changed(file: ReleaseFile) -> CheckFailedError:
    return CheckFailedError("it changed after it was checked", where=str(file.local))


def _message(files: Sequence[ReleaseFile], gone: Sequence[str]) -> str:
    names = [file.path for file in files] or list(gone)
    first = ", ".join(names[:3])
    return f"{'Publish' if files else 'Remove'} {first}" + (
        f" and {len(names) - 3} more" if names[3:] else ""
    )
