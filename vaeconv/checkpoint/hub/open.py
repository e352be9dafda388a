"""Open a file or a folder on the Hugging Face Hub."""

from __future__ import annotations

import logging

from vaeconv.checkpoint.hub.address import HubLocation
from vaeconv.checkpoint.hub.environment import check_environment
from vaeconv.checkpoint.hub.http import NoSuchFileError, Retry, UnreachableError
from vaeconv.checkpoint.hub.repository import Progress, Repository
from vaeconv.checkpoint.source import ByteSource
from vaeconv.checkpoint.tree import FileTree, LocalTree, checked
from vaeconv.errors import CheckpointNotFoundError, HubError

_LEVELS = 2

logger = logging.getLogger(__name__)


def open_hub(
    location: HubLocation,
    *,
    download: bool = False,
    on_progress: Progress | None = None,
    retry: Retry | None = None,
) -> ByteSource | FileTree:
    """Open a file, or a folder, in a repository on the Hub.

    What the local cache holds is used from there; of other files only those parts travel that
    are read. All is read at the commit that the revision names now.

    Args:
        location: Where it is.
        download: Fetch files whole, into the cache.
        on_progress: Called with the number of bytes of each piece that arrived; by turns from
            several threads.
        retry: How patient to be.

    Raises:
        HubError: It is not there, may not be read, or the network failed.
        UsageError: The environment says something impossible to the client.
    """
    check_environment()
    repository = Repository(location, download, on_progress, retry or Retry())
    if location.path is None:
        return _open_folder(repository, "")
    try:
        return repository.open(location.path)
    except NoSuchFileError:
        return _open_folder(repository, location.path)
    except UnreachableError:
        if not repository.cached_folder(location.path):
            raise
        return _open_folder(repository, location.path)


def _open_folder(repository: Repository, path: str) -> FileTree:
    from huggingface_hub import constants

    snapshot = repository.cached_folder(path)
    if snapshot and constants.HF_HUB_OFFLINE:
        return LocalTree(snapshot)
    try:
        commit, files = repository.list_files(tries=1 if snapshot else None)
    except UnreachableError as error:
        if not snapshot:
            raise
        logger.warning("%s; using the cached copy", error)
        return LocalTree(snapshot)
    prefix = f"{path}/" if path else ""
    if prefix and not any(file.startswith(prefix) for file in files):
        raise HubError(
            "no such file or folder in the repository",
            where=f"{repository.root}/{path}",
            hint="check the path and the revision",
        )
    return HubFiles(repository, commit, prefix, files)


class HubFiles:
    """A folder in a repository on the Hub, at one commit; see ``FileTree``."""

    def __init__(
        self, repository: Repository, commit: str, prefix: str, files: frozenset[str]
    ) -> None:
        self._repository = repository
        self._commit = commit
        self._prefix = prefix
        self._files = files  # of the whole repository

    @property
    def name(self) -> str:
        """Return the address."""
        return f"{self._repository.root}/{self._prefix}".rstrip("/")

    def names(self) -> list[str]:
        """List the files, at most two levels deep."""
        below = (f[len(self._prefix) :] for f in self._files if f.startswith(self._prefix))
        return sorted(name for name in below if name.count("/") < _LEVELS)

    def holds(self, name: str) -> bool:
        """Tell whether a file is called so."""
        return self._prefix + name in self._files

    def open(self, name: str) -> ByteSource:
        """Open one of the files."""
        path = self._prefix + checked(name, self.name)
        if path not in self._files:
            raise CheckpointNotFoundError(f"no file {name} in this folder", where=self.name)
        return self._repository.open(path, self._commit)

    def subtree(self, name: str) -> HubFiles:
        """Return the view of a folder inside this one."""
        prefix = f"{self._prefix}{checked(name, self.name)}/"
        if not any(file.startswith(prefix) for file in self._files):
            raise CheckpointNotFoundError(f"no folder {name} in this folder", where=self.name)
        return HubFiles(self._repository, self._commit, prefix, self._files)
