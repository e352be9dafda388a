"""Files in a dataset on the Hub, at one commit; each is fetched into the client's cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vaeconv.checkpoint.hub.address import HubLocation
from vaeconv.checkpoint.hub.client import ask, check_environment, fetch_whole, hub_api
from vaeconv.checkpoint.hub.failures import Retry, not_a_hub
from vaeconv.checkpoint.hub.repository import COMMIT, LISTING_TIMEOUT
from vaeconv.checkpoint.source import shared_now
from vaeconv.checkpoint.tree import stays_inside
from vaeconv.errors import CheckpointNotFoundError, HubError, InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile, RepoFolder

T = TypeVar("T")

_KIND = "dataset"
_MOST = 200_000  # files that are listed
_WILDCARD = re.compile(r"[*?\[]")


class Dataset:
    """The files of a dataset that an address names: one, those in a folder, or by a pattern.

    Args:
        location: Where; its path may have ``*``, ``?`` and ``[…]``, which match slashes as well.
        retry: How patient to be.

    Attributes:
        place: The address as it was given.
        source: The address at the commit that the revision names now; all is read at it.
        label: The dataset and the path in it.
        sizes: Bytes of each file, by its name in the folder.

    Raises:
        CheckpointNotFoundError: It has no such file.
        HubError: It is not there, may not be read, or the network failed.
        InputError: It has more files than are listed.
    """

    def __init__(self, location: HubLocation, retry: Retry | None = None) -> None:
        check_environment()
        self._id = location.repo_id
        self._retry = retry or Retry()
        self.place = str(location)
        self._commit = self._find_commit(location.revision or "main")
        self.source = str(HubLocation(self._id, self._commit, location.path, _KIND))
        self.label = f"{self._id}/{location.path}" if location.path else self._id
        self._prefix, self.sizes = self._list(location.path or "")
        if not self.sizes:
            raise CheckpointNotFoundError("no such file in the dataset", where=self.place)

    def fetch(self, name: str) -> Path:
        """Fetch a file, unless the cache has it.

        Raises:
            HubError: It cannot be fetched.
        """
        path = self._prefix + name
        where = f"{self.place}: {path}"
        retry = self._retry
        place = fetch_whole(self._id, path, self._commit, _KIND, where, retry, tries=retry.tries)
        if place.stat().st_size != self.sizes[name]:
            raise HubError("another size than the Hub has listed", where=where, hint="run again")
        return place

    def _find_commit(self, revision: str) -> str:
        """Ask which commit a revision names; in a run that shares its sources, once."""
        pinned = shared_now().commits
        key = f"{_KIND}s/{self._id}", revision
        if key not in pinned:
            commit = self._ask(
                lambda api: (
                    api.dataset_info(self._id, revision=revision, timeout=LISTING_TIMEOUT).sha
                )
            )
            if not commit or not COMMIT.fullmatch(commit):
                raise not_a_hub(self.place)
            pinned[key] = commit
        return pinned[key]

    def _list(self, path: str) -> tuple[str, dict[str, int]]:
        """List files: the folder that they are in, and their sizes by what follows it."""
        from huggingface_hub.hf_api import RepoFile

        folder, pattern = path, "*"
        if wildcard := _WILDCARD.search(path):
            folder, pattern = path[: wildcard.start()].rpartition("/")[0], path
        entries: list[RepoFile | RepoFolder] = []
        if folder == path != "":
            entries = self._ask(
                lambda api: api.get_paths_info(
                    self._id, [path], repo_type=_KIND, revision=self._commit
                )
            )
            if not any(entry.path == path for entry in entries):
                return "", {}
        if any(isinstance(entry, RepoFile) for entry in entries):
            folder = path.rpartition("/")[0]
        else:
            entries = self._list_tree(folder)
        prefix = f"{folder}/" if folder else ""
        return prefix, {
            entry.path[len(prefix) :]: entry.size
            for entry in entries
            if isinstance(entry, RepoFile)
            and entry.path.startswith(prefix)
            and stays_inside(entry.path)
            and fnmatchcase(entry.path, pattern)
        }

    def _list_tree(self, folder: str) -> list[RepoFile | RepoFolder]:
        entries = self._ask(
            lambda api: list(
                islice(
                    api.list_repo_tree(
                        self._id,
                        folder or None,
                        recursive=True,
                        repo_type=_KIND,
                        revision=self._commit,
                    ),
                    _MOST + 1,
                )
            )
        )
        if len(entries) > _MOST:
            raise InputError(
                f"it has more than {_MOST} files",
                where=self.place,
                hint="name a folder or a zip file in it",
            )
        return entries

    def _ask(self, call: Callable[[HfApi], T]) -> T:
        return ask(lambda: call(hub_api()), self.place, self._retry)
