"""A repository on the Hub, seen at one branch."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from vaeconv._version import __version__
from vaeconv.errors import VaeconvError
from vaeconv.publish.files import ReleaseFile
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import Deadline, ask, bounded_client, explain, trusted_for, within

Answer = TypeVar("Answer")
IGNORE = ".gitignore"
_PULLS = 10  # newest pull requests that are looked at for one with the same files


class Pull(NamedTuple):
    """A pull request.

    Attributes:
        oid: Of the commit that it is at.
        url: Where it is discussed.
    """

    oid: str
    url: str


class Remote:
    """A repository at a branch. What gets no answer is asked again, where that does no harm.

    Args:
        api: The Hub's client.
        repo_id: ``owner/name``.
        repo_type: ``model``, ``dataset`` or ``space``.
        revision: The branch.
        deadline: What all requests together may take.
    """

    def __init__(
        self, api: Any, repo_id: str, repo_type: str, revision: str, deadline: Deadline
    ) -> None:
        self.api = api
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.revision = revision
        self.deadline = deadline

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

    def head(self) -> str | None:
        """The commit that the branch is at."""
        sha: str | None = self._ask("repo_info", revision=self.revision).sha
        return sha

    def find_head(self, *, private: bool | None = None, may_create: bool = False) -> str | None:
        """Find the commit that the branch is at; None where there is no branch or repository.

        Args:
            private: Whether a repository that is made is private.
            may_create: Make the repository, or the branch, where it is not there.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            return self.head()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if not may_create:
                return None
            if isinstance(error, RepositoryNotFoundError):
                self._ask("create_repo", private=private, exist_ok=True)
        if self.revision != "main":
            self._ask("create_branch", branch=self.revision, exist_ok=True)
        return self.head()

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

    def child_of(self, parent: str | None) -> str | None:
        """Find the commit that came right after another one; None where there is none."""
        commits = self._ask("list_repo_commits", revision=self.revision)
        oids = [commit.commit_id for commit in commits]
        place = oids.index(parent) if parent in oids else len(oids)
        return oids[place - 1] if place else None

    def says(self, line: str) -> bool:
        """Tell if a commit of the branch has a line in its description."""
        commits = self._ask("list_repo_commits", revision=self.revision)
        return any(line in (commit.message or "").splitlines() for commit in commits)

    def find_pull(self, files: Sequence[ReleaseFile], gone: Sequence[str] = ()) -> Pull | None:
        """Find an open pull request that has these files already, and none of those."""
        for number, oid in self._pulls():
            if self.has(files, oid, gone):
                details = self._ask("get_discussion_details", number)
                if details.status in ("open", "draft"):
                    return Pull(oid, details.url)
        return None

    def _pulls(self) -> Iterator[tuple[int, str]]:
        refs = self._ask("list_repo_refs", include_pull_requests=True).pull_requests or ()
        known = {int(one.ref.rpartition("/")[2]): one.target_commit for one in refs}
        yield from sorted(known.items(), reverse=True)[:_PULLS]

    def find_tag(self, name: str) -> str | None:
        """Find the commit that a tag stands on."""
        for tag in self._ask("list_repo_refs").tags:
            if tag.name == name:
                commit: str = tag.target_commit
                return commit
        return None

    def make_tag(self, name: str, commit: str) -> None:
        """Put a tag on a commit."""
        self._ask("create_tag", tag=name, revision=commit)

    def ignored(
        self, operations: Sequence[Any], *, revision: str | None, create_pr: bool
    ) -> list[str]:
        """Ask which files a ``.gitignore`` keeps out: the client leaves them out and does not say.

        Args:
            operations: ``CommitOperationAdd`` of each file.
            revision: The branch; None for main.
            create_pr: Whether it is for a pull request.
        """
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        address = f"{self.api.endpoint}/api/{self.repo_type}s/{self.repo_id}/preupload/"
        body: dict[str, Any] = {
            "files": [
                {
                    "path": one.path_in_repo,
                    "sample": base64.b64encode(one.upload_info.sample).decode(),
                    "size": one.upload_info.size,
                }
                for one in operations
            ]
        }

        def call() -> list[str]:
            response = get_session().post(
                address + quote(revision or "main", safe=""),
                json=body,
                params={"create_pr": "1"} if create_pr else None,
                headers=build_hf_headers(library_name="vaeconv", library_version=__version__),
            )
            hf_raise_for_status(response)
            return [one["path"] for one in response.json()["files"] if one["shouldIgnore"]]

        return ask(call, self.deadline)

    def download(self, path: str, commit: str, folder: str) -> str:
        """Download a file into a folder, whatever a cache may have of it."""
        found: str = self._ask(
            "hf_hub_download", path, revision=commit, local_dir=folder, force_download=True
        )
        return found


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
        return Path(remote.download(path, head, str(folder)))

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
    shows = options.on_progress is not None
    with (
        bounded_client(deadline, shows=shows) as api,
        trusted_for(repo_id, options.repo_type),
    ):
        remote = Remote(api, repo_id, options.repo_type, options.revision, deadline)
        try:
            return within(deadline, lambda: work(remote))
        except VaeconvError:
            raise
        except Exception as error:
            raise explain(error, repo_id) from error
