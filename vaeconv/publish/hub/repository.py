"""A repository on the Hub, seen at one branch."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from vaeconv.checkpoint.hub.client import request_headers
from vaeconv.errors import HubError, VaeconvError
from vaeconv.publish.files import ReleaseFile
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import (
    Answer,
    Deadline,
    ask,
    bounded_client,
    explain,
    is_lost,
    status_of,
    trusted_for,
    within,
)

IGNORE = ".gitignore"
_PULLS = 10  # newest pull requests that are looked at for one with the same files


class Commit(NamedTuple):
    """A commit, or a pull request.

    Attributes:
        oid: Of the commit.
        url: Of the pull request or the commit; empty where its answer was lost.
    """

    oid: str
    url: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository at a branch. What gets no answer is asked again, where that does no harm.

    Attributes:
        api: The Hub's client.
        repo_id: ``owner/name``.
        repo_type: ``model``, ``dataset`` or ``space``.
        revision: The branch.
        deadline: What all requests together may take.
    """

    api: Any
    repo_id: str
    repo_type: str
    revision: str
    deadline: Deadline

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        call: Callable[..., Any] = getattr(self.api, method)
        return ask(
            lambda: call(self.repo_id, *args, repo_type=self.repo_type, **options), self.deadline
        )

    def info(self) -> Any:
        """Read the Hub's facts of the repository; None if none can be seen."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._ask("repo_info")
        except RepositoryNotFoundError:
            return None

    def find_head(self, *, private: bool | None = None, may_create: bool = False) -> str | None:
        """Find the commit that the branch is at; None where there is no branch or repository.

        Args:
            private: Whether a repository that is made is private.
            may_create: Make the repository, or the branch, where it is not there.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def head() -> str | None:
            sha: str | None = self._ask("repo_info", revision=self.revision).sha
            return sha

        try:
            return head()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if not may_create:
                return None
            if isinstance(error, RepositoryNotFoundError):
                self._ask("create_repo", private=private, exist_ok=True)
        if self.revision != "main":
            self._ask("create_branch", branch=self.revision, exist_ok=True)
        return head()

    def tree(self, commit: str | None) -> dict[str, Any]:
        """List the files at a commit by their paths, with what the client says of each."""
        if commit is None:
            return {}

        def read() -> list[Any]:  # it comes page by page, each of which is a request
            return list(
                self.api.list_repo_tree(
                    self.repo_id, recursive=True, revision=commit, repo_type=self.repo_type
                )
            )

        return {one.path: one for one in ask(read, self.deadline) if hasattr(one, "blob_id")}

    def has(
        self, files: Sequence[ReleaseFile], commit: str | None, gone: Sequence[str] = ()
    ) -> bool:
        """Tell whether files are at a commit as they are here, and others are not."""
        tree = self.tree(commit)
        return commit is not None and not differing(files, tree) and not set(gone) & tree.keys()

    def _commits(self) -> list[Any]:
        return list(self._ask("list_repo_commits", revision=self.revision))

    def child_of(self, parent: str | None) -> str | None:
        """Find the commit that came right after another one; None where there is none."""
        oids = [commit.commit_id for commit in self._commits()]
        place = oids.index(parent) if parent in oids else len(oids)
        return oids[place - 1] if place else None

    def says(self, line: str) -> bool:
        """Tell if a commit of the branch has a line in its description."""
        return any(line in (commit.message or "").splitlines() for commit in self._commits())

    def find_pull(self, files: Sequence[ReleaseFile], gone: Sequence[str] = ()) -> Commit | None:
        """Find an open pull request that has these files already, and none of those."""
        refs = self._ask("list_repo_refs", include_pull_requests=True).pull_requests or ()
        known = {int(one.ref.rpartition("/")[2]): one.target_commit for one in refs}
        for number, oid in sorted(known.items(), reverse=True)[:_PULLS]:
            if self.has(files, oid, gone):
                details = self._ask("get_discussion_details", number)
                if details.status in ("open", "draft"):
                    return Commit(oid, details.url)
        return None

    def find_tag(self, name: str) -> str | None:
        """Find the commit that a tag stands on."""
        tags = self._ask("list_repo_refs").tags
        return next((one.target_commit for one in tags if one.name == name), None)

    def check_tag(self, name: str, present: str | None, commit: str | None) -> None:
        """Refuse a tag that stands on another commit than it would.

        Args:
            name: The tag.
            present: The commit that it stands on; None for none.
            commit: The commit that it would stand on; None for one that is not made yet.

        Raises:
            HubError: It stands elsewhere.
        """
        if present not in (None, commit):
            raise HubError(
                f"the tag {name} stands on another commit, {present}",
                where=self.repo_id,
                hint="choose another tag, or remove that one: hf repo tag delete",
            )

    def put_tag(self, name: str, commit: str) -> None:
        """Put a tag on a commit; one that stands elsewhere is left.

        Raises:
            HubError: It stands elsewhere.
        """
        present = self.find_tag(name)
        if present is None:
            try:
                self._ask("create_tag", tag=name, revision=commit)
            except Exception as error:
                if not is_lost(error) and status_of(error) != 409:
                    raise
                present = self.find_tag(name)
                if present is None:
                    raise
        self.check_tag(name, present, commit)

    def check_ignored(
        self, operations: Sequence[Any], *, revision: str | None, create_pr: bool
    ) -> None:
        """Refuse files that a ``.gitignore`` keeps out: the client leaves them out without a word.

        Args:
            operations: ``CommitOperationAdd`` of each file.
            revision: The branch; None for main.
            create_pr: Whether it is for a pull request.

        Raises:
            HubError: There are some.
        """
        from huggingface_hub import get_session, hf_raise_for_status

        address = f"{self.api.endpoint}/api/{self.repo_type}s/{self.repo_id}/preupload/"
        files = [
            {
                "path": one.path_in_repo,
                "sample": base64.b64encode(one.upload_info.sample).decode(),
                "size": one.upload_info.size,
            }
            for one in operations
        ]

        def call() -> list[str]:
            response = get_session().post(
                address + quote(revision or "main", safe=""),
                json={"files": files},
                params={"create_pr": "1"} if create_pr else None,
                headers=request_headers(),
            )
            hf_raise_for_status(response)
            return [one["path"] for one in response.json()["files"] if one["shouldIgnore"]]

        ignored = ask(call, self.deadline)
        if ignored:
            raise HubError(
                f"a line of {IGNORE} keeps {', '.join(ignored)} out of the repository",
                where=self.repo_id,
                hint=f"remove it from {IGNORE}, or leave the file out with --exclude",
            )

    def download(self, path: str, commit: str | None, folder: Path) -> Path:
        """Download a file into a folder, whatever a cache may have of it."""
        return Path(
            self._ask(
                "hf_hub_download", path, revision=commit, local_dir=str(folder), force_download=True
            )
        )


def differing(files: Sequence[ReleaseFile], tree: Mapping[str, Any]) -> list[ReleaseFile]:
    """List the files that a tree does not have as they are here."""
    return [file for file in files if not _is_there(file, tree.get(file.path))]


def _is_there(file: ReleaseFile, remote: Any) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == file.sha256)
    return bool(remote.blob_id == file.blob)


def fetch(
    path: str, repo_id: str, options: PushOptions, deadline: Deadline, folder: Path
) -> Path | None:
    """Download a file that is published; None where there is none.

    Raises:
        HubError: The Hub refused, or did not answer.
    """

    def work(remote: Remote) -> Path | None:
        head = remote.find_head()
        if head is None or path not in remote.tree(head):
            return None
        return remote.download(path, head, folder)

    return with_remote(repo_id, options, deadline, work)


def list_published(repo_id: str, options: PushOptions, deadline: Deadline) -> list[str]:
    """List the paths that a repository has.

    Raises:
        HubError: The Hub refused, or did not answer.
    """
    return with_remote(
        repo_id, options, deadline, lambda remote: list(remote.tree(remote.find_head()))
    )


def with_remote(
    repo_id: str, options: PushOptions, deadline: Deadline, work: Callable[[Remote], Answer]
) -> Answer:
    """Do something with a repository, in bounded time, with errors explained."""
    with (
        bounded_client(deadline, shows=options.on_progress is not None) as api,
        trusted_for(repo_id, options.repo_type),
    ):
        remote = Remote(api, repo_id, options.repo_type, options.revision, deadline)
        try:
            return within(deadline, lambda: work(remote))
        except VaeconvError:
            raise
        except Exception as error:
            raise explain(error, repo_id) from error
