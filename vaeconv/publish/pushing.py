"""Publish a folder as one commit, and never as two."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vaeconv.errors import CheckFailedError, HubError, UsageError, VaeconvError
from vaeconv.publish.committing import commit_files
from vaeconv.publish.hub_session import (
    Deadline,
    bounded_client,
    explain,
    is_lost,
    status_of,
    within,
)
from vaeconv.publish.release_files import (
    ReleaseFile,
    check_release,
    hash_file,
    list_release,
    parity_reports,
)
from vaeconv.publish.remote import Remote, differing

# The rules of git check-ref-format.
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[./-]|[./]$|/\.|\.lock(/|$)|^@?$")
_TYPES = ("model", "dataset", "space")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How to push.

    Attributes:
        revision: The branch; made where it is not there.
        private: Whether a repository that is made is private; None for the namespace's default.
        create_pr: Open a pull request instead of a commit to the branch.
        tag: Tag the commit.
        message: Of the commit; None for one that names the files.
        repo_type: ``model``.
        include: Patterns of paths to publish.
        exclude: Patterns of paths to leave out.
        parity: Whether every file of weights must be in a parity report that passed.
        reports: Parity reports; none means those in the folder.
        verify: Download what was published, and compare hashes.
        timeout: Seconds for everything.
        on_progress: Called with what is being done, and how much of it is done of how much.
    """

    revision: str = "main"
    private: bool | None = None
    create_pr: bool = False
    tag: str | None = None
    message: str | None = None
    repo_type: str = "model"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parity: bool = True
    reports: tuple[Path, ...] = ()
    verify: bool = False
    timeout: float = 3600.0
    on_progress: Callable[[str, int, int], None] | None = None


class Pushed(NamedTuple):
    """What was published, or would be.

    Attributes:
        repo_id: ``owner/name``.
        revision: The branch.
        oid: Of the commit that has these files; None for a dry run, or where there is none yet.
        url: Of the commit or pull request; empty for none.
        changed: Paths that were new or different.
        unchanged: Paths that were there already.
        tag: The tag that stands on the commit; None for none.
        is_new: Whether a commit was made.
        is_verified: Whether what was published was downloaded and compared.
    """

    repo_id: str
    revision: str
    oid: str | None
    url: str
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    tag: str | None
    is_new: bool
    is_verified: bool = False


def push(
    folder: Path, repo_id: str, options: PushOptions | None = None, *, dry_run: bool = False
) -> Pushed:
    """Publish a folder: local checks, then exactly one commit, then the tag.

    A commit names the head that it follows, so what somebody else pushed in between is never
    overwritten. Where an answer is lost, the repository is compared with the files before anything
    is done again.

    Args:
        folder: Weights, config, card, pictures.
        repo_id: ``owner/name``.
        options: How.
        dry_run: Check everything here, look at the repository, and change nothing.

    Raises:
        CheckFailedError: The release may not be published as it is.
        HubError: The Hub refused, or did not answer.
        UsageError: The options do not fit together.
        OutputError: There is nothing to publish.
    """
    options = options or PushOptions()
    _check_options(repo_id, options)
    report = options.on_progress or (lambda step, done, total: None)
    report("hashing", 0, 1)
    files = list_release(folder, include=options.include, exclude=options.exclude)
    problems = check_release(
        folder,
        files,
        reports=options.reports or parity_reports(folder),
        needs_parity=options.parity,
    )
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
        raise CheckFailedError(f"not fit to be published: {problems[0]}{more}", where=str(folder))
    report("hashing", 1, 1)
    return push_files(files, repo_id, options, dry_run=dry_run)


def _check_options(repo_id: str, options: PushOptions) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
        is_named = repo_id.count("/") == 1 and all(repo_id.split("/"))
    except HFValidationError:
        is_named = False
    if not is_named:
        raise UsageError(f"{repo_id} is not owner/name")
    if options.repo_type not in _TYPES:
        raise UsageError(
            f"{options.repo_type} is no type of repository", hint=f"known: {', '.join(_TYPES)}"
        )
    for name in filter(None, (options.tag, options.revision)):
        if not _is_ref(name):
            raise UsageError(f"{name} is no name that git allows for a branch or tag")
    if options.create_pr and (options.revision != "main" or options.tag):
        raise UsageError(
            "--create-pr goes with neither --revision nor --tag",
            hint="a pull request goes to main, and gets its tag once it is merged",
        )


def _is_ref(name: str) -> bool:
    """Whether git allows it as a name (``git check-ref-format``)."""
    return not _NO_REF.search(name)


def push_files(
    files: Sequence[ReleaseFile], repo_id: str, options: PushOptions, *, dry_run: bool = False
) -> Pushed:
    """Publish files that were checked."""
    deadline = Deadline(options.timeout)
    with bounded_client(deadline) as api:
        remote = Remote(api, repo_id, options.repo_type, options.revision, deadline)
        try:
            return within(options.timeout, lambda: _run(remote, files, options, dry_run=dry_run))
        except VaeconvError:
            raise
        except Exception as error:
            raise explain(error, repo_id) from error


def _run(
    remote: Remote, files: Sequence[ReleaseFile], options: PushOptions, *, dry_run: bool
) -> Pushed:
    """Look at what is there, commit what differs, and put the tag."""
    report = options.on_progress or (lambda step, done, total: None)
    head = remote.find_head(private=options.private, may_create=not dry_run)
    tree = remote.tree(head)
    changed = differing(files, tree)
    result = Pushed(
        remote.repo_id,
        remote.revision,
        head,
        "",
        tuple(file.path for file in changed),
        tuple(file.path for file in files if file not in changed),
        None,
        is_new=False,
    )
    if options.tag and head:
        _check_tag(remote, options.tag, None if changed else head)
    if dry_run:
        return result._replace(oid=None)
    if changed:
        pull = remote.find_pull(files) if options.create_pr else None
        if pull is None:
            report("uploading", 0, len(changed))
            made = commit_files(
                remote,
                changed,
                head,
                tree,
                message=options.message,
                create_pr=options.create_pr,
            )
            report("uploading", len(changed), len(changed))
            result = result._replace(oid=made.oid, url=made.url, is_new=True)
        else:
            result = result._replace(oid=pull.oid, url=pull.url)
    if options.tag and result.oid:
        _put_tag(remote, options.tag, result.oid)
        result = result._replace(tag=options.tag)
    if options.verify and result.oid:
        _verify(remote, files, result.oid, report)
        result = result._replace(is_verified=True)
    return result


def _check_tag(remote: Remote, tag: str, oid: str | None) -> None:
    """Refuse, before anything is done, a tag that stands on another commit than it would."""
    present = remote.find_tag(tag)
    if present is not None and present != oid:
        raise _misplaced(remote, tag, present)


def _put_tag(remote: Remote, tag: str, oid: str) -> None:
    """Put the tag on the commit; one that stands elsewhere is left, and is an error."""
    present = remote.find_tag(tag)
    if present is None:
        try:
            remote.make_tag(tag, oid)
        except Exception as error:
            if not is_lost(error) and status_of(error) != 409:
                raise
            present = remote.find_tag(tag)
            if present is None:
                raise
        else:
            return
    if present != oid:
        raise _misplaced(remote, tag, present)


def _misplaced(remote: Remote, tag: str, present: str) -> HubError:
    return HubError(
        f"the tag {tag} stands on another commit, {present}",
        where=remote.repo_id,
        hint="choose another tag, or remove that one: hf repo tag delete",
    )


def _verify(
    remote: Remote,
    files: Sequence[ReleaseFile],
    oid: str,
    report: Callable[[str, int, int], None],
) -> None:
    """Download what was published, and compare.

    Raises:
        CheckFailedError: A file came back different.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            report("downloading", number, len(files))
            path = Path(remote.download(file.path, oid, folder))
            if hash_file(path, file.path).sha256 != file.sha256:
                raise CheckFailedError(
                    f"{file.path} came back different from what was published",
                    where=remote.repo_id,
                )
            path.unlink()
