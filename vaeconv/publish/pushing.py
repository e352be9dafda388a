"""Publish a folder as one commit, and never as two."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.errors import CheckFailedError, HubError, UsageError, VaeconvError
from vaeconv.publish.hub_session import (
    WAITS,
    Deadline,
    ask,
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
    if options.create_pr and (options.revision != "main" or options.tag):
        raise UsageError(
            "--create-pr goes with neither --revision nor --tag",
            hint="a pull request goes to main, and gets its tag once it is merged",
        )


def push_files(
    files: Sequence[ReleaseFile], repo_id: str, options: PushOptions, *, dry_run: bool = False
) -> Pushed:
    """Publish files that were checked."""
    deadline = Deadline(options.timeout)
    with bounded_client(deadline) as api:
        pusher = _Push(api, files, repo_id, options, deadline)
        try:
            return within(options.timeout, lambda: pusher.run(dry_run=dry_run))
        except VaeconvError:
            raise
        except Exception as error:
            raise explain(error, repo_id) from error


class _Push:
    """One push on its way."""

    def __init__(
        self,
        api: Any,
        files: Sequence[ReleaseFile],
        repo_id: str,
        options: PushOptions,
        deadline: Deadline,
    ) -> None:
        self._api = api
        self._deadline = deadline
        self._files = files
        self._repo = repo_id
        self._options = options
        self._report = options.on_progress or (lambda step, done, total: None)

    def run(self, *, dry_run: bool) -> Pushed:
        head = self._find_head(may_create=not dry_run)
        changed = self._changed(head)
        unchanged = tuple(f.path for f in self._files if f not in changed)
        result = Pushed(
            self._repo,
            self._options.revision,
            head,
            "",
            tuple(file.path for file in changed),
            unchanged,
            None,
            is_new=False,
        )
        if self._options.tag and head:
            self._check_tag(None if changed else head)
        if dry_run:
            return result._replace(oid=None)
        if changed:
            oid, url = self._commit(changed, head)
            result = result._replace(oid=oid, url=url, is_new=True)
        if self._options.tag and result.oid:
            self._tag(result.oid)
            result = result._replace(tag=self._options.tag)
        if self._options.verify and result.oid:
            self._verify(result.oid)
            result = result._replace(is_verified=True)
        return result

    def _find_head(self, *, may_create: bool) -> str | None:
        """Find the commit that the branch is at; make the repository, or the branch, for a push."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        options = self._options
        try:
            return self._sha(options.revision)
        except RevisionNotFoundError:
            if not may_create:
                return None
            self._make_branch()
        except RepositoryNotFoundError:
            if not may_create:
                return None
            ask(
                lambda: self._api.create_repo(
                    self._repo, private=options.private, repo_type=options.repo_type, exist_ok=True
                ),
                self._deadline,
            )
            if options.revision != "main":
                self._make_branch()
        return self._sha(options.revision)

    def _make_branch(self) -> None:
        ask(
            lambda: self._api.create_branch(
                self._repo,
                branch=self._options.revision,
                repo_type=self._options.repo_type,
                exist_ok=True,
            ),
            self._deadline,
        )

    def _sha(self, revision: str) -> str | None:
        info = ask(
            lambda: self._api.repo_info(
                self._repo, revision=revision, repo_type=self._options.repo_type
            ),
            self._deadline,
        )
        sha: str | None = info.sha
        return sha

    def _changed(self, revision: str | None) -> list[ReleaseFile]:
        """List the files that are not at a revision as they are here."""
        if revision is None:
            return list(self._files)
        entries = ask(
            lambda: list(
                self._api.list_repo_tree(
                    self._repo,
                    recursive=True,
                    revision=revision,
                    repo_type=self._options.repo_type,
                )
            ),
            self._deadline,
        )
        remote = {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
        return [file for file in self._files if not _is_there(file, remote.get(file.path))]

    def _commit(self, changed: Sequence[ReleaseFile], head: str | None) -> tuple[str, str]:
        """Commit, and where the answer is lost, look before anything is done again.

        Raises:
            CheckFailedError: A file is no longer what was checked.
        """
        from huggingface_hub import CommitOperationAdd

        options = self._options
        self._report("uploading", 0, len(changed))
        operations = []
        for file in changed:
            try:
                operation = CommitOperationAdd(file.path, str(file.local))
            except (OSError, ValueError):  # what the client says of a file that has gone
                raise _has_changed(file) from None
            if operation.upload_info.sha256.hex() != file.sha256:
                raise _has_changed(file)
            operations.append(operation)
        for wait in (*WAITS, None):
            try:
                self._deadline.check()
                done = self._api.create_commit(
                    self._repo,
                    operations,
                    commit_message=options.message or _message(changed),
                    repo_type=options.repo_type,
                    revision=None if options.create_pr else options.revision,
                    create_pr=options.create_pr,
                    parent_commit=head,
                )
            except VaeconvError:  # the time is over
                raise
            except Exception as error:
                if options.create_pr or not is_lost(error):
                    raise
                found = self._find_lost(changed)
                if found is not None:
                    return found, ""
                if wait is None or status_of(error) == 412:
                    raise
                # It was not made: the head is where it was, or the next try is refused.
                self._deadline.check()
                time.sleep(wait)
            else:
                self._report("uploading", len(changed), len(changed))
                return done.oid, done.pr_url or done.commit_url
        raise AssertionError

    def _find_lost(self, changed: Sequence[ReleaseFile]) -> str | None:
        """Tell whether a commit whose answer is lost was made: its files are at the head."""
        try:
            head = self._sha(self._options.revision)
            present = head is not None and not self._changed(head)
        except Exception as error:
            if status_of(error) is not None:
                return None
            raise HubError(
                "the answer to the commit was lost, and the Hub cannot be asked",
                where=self._repo,
                hint="push again: a commit that was made is recognised",
            ) from error
        return head if present else None

    def _tag(self, oid: str) -> None:
        """Put the tag on the commit; one that stands elsewhere is left, and is an error."""
        tag = self._options.tag
        present = self._find_tag()
        if present is None:
            try:
                ask(
                    lambda: self._api.create_tag(
                        self._repo, tag=tag, revision=oid, repo_type=self._options.repo_type
                    ),
                    self._deadline,
                )
            except Exception as error:
                if not is_lost(error) and status_of(error) != 409:
                    raise
                present = self._find_tag()
                if present is None:
                    raise
            else:
                return
        if present != oid:
            raise self._misplaced(present)

    def _check_tag(self, oid: str | None) -> None:
        """Refuse, before anything is done, a tag that stands on another commit than it would."""
        present = self._find_tag()
        if present is not None and present != oid:
            raise self._misplaced(present)

    def _misplaced(self, present: str) -> HubError:
        return HubError(
            f"the tag {self._options.tag} stands on another commit, {present}",
            where=self._repo,
            hint="choose another tag, or remove that one: hf repo tag delete",
        )

    def _find_tag(self) -> str | None:
        refs = ask(
            lambda: self._api.list_repo_refs(self._repo, repo_type=self._options.repo_type),
            self._deadline,
        )
        for tag in refs.tags:
            if tag.name == self._options.tag:
                commit: str = tag.target_commit
                return commit
        return None

    def _verify(self, oid: str) -> None:
        """Download what was published, and compare.

        Raises:
            CheckFailedError: A file came back different.
        """
        with tempfile.TemporaryDirectory() as folder:
            for number, file in enumerate(self._files):
                self._report("downloading", number, len(self._files))
                path = ask(partial(self._download, file.path, oid, folder), self._deadline)
                if hash_file(Path(path), file.path).sha256 != file.sha256:
                    raise CheckFailedError(
                        f"{file.path} came back different from what was published",
                        where=self._repo,
                    )
                Path(path).unlink()

    def _download(self, path: str, oid: str, folder: str) -> str:
        """Download a file into a folder, whatever a cache may have of it."""
        found: str = self._api.hf_hub_download(
            self._repo,
            path,
            revision=oid,
            repo_type=self._options.repo_type,
            local_dir=folder,
            force_download=True,
        )
        return found


def _has_changed(file: ReleaseFile) -> CheckFailedError:
    return CheckFailedError("it changed after it was checked", where=str(file.local))


def _is_there(file: ReleaseFile, remote: Any) -> bool:
    if remote is None or remote.size != file.size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == file.sha256)
    return bool(remote.blob_id == file.blob)


def _message(changed: Sequence[ReleaseFile]) -> str:
    names = [file.path for file in changed]
    first = ", ".join(names[:3])
    return f"Publish {first}" + (f" and {len(names) - 3} more" if names[3:] else "")
