"""Files in a dataset on the Hub, at one commit; each is fetched into the client's cache."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.hub.address import HubLocation
from vaeconv.checkpoint.hub.client import NAME, VERSION, ask, hidden_bars, not_a_hub
from vaeconv.checkpoint.hub.environment import check_environment
from vaeconv.checkpoint.hub.http import Retry
from vaeconv.checkpoint.shared import current
from vaeconv.checkpoint.tree import stays_inside
from vaeconv.errors import CheckpointNotFoundError, HubError, InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_KIND = "dataset"
_MOST = 200_000  # files that are listed
_TIMEOUT = 30.0
_PATTERN = re.compile(r"[*?\[]")


class Dataset:
    """The files of a dataset that an address names: one, those in a folder, or by a pattern.

    Args:
        location: Where; its path may have ``*``, ``?`` and ``[…]``, which match slashes as well.
        retry: How patient to be.

    Attributes:
        commit: The commit that the revision names now; all is read at it.
        sizes: Bytes of each file, by its name in the folder.

    Raises:
        CheckpointNotFoundError: It has no such file.
        HubError: It is not there, may not be read, or the network failed.
        InputError: It has more files than are listed.
    """

    def __init__(self, location: HubLocation, retry: Retry | None = None) -> None:
        check_environment()
        self._location = location
        self._retry = retry or Retry()
        self.place = str(location)
        self.commit = self._find_commit()
        self._prefix, self.sizes = self._list(location.path or "")
        if not self.sizes:
            raise CheckpointNotFoundError("no such file in the dataset", where=self.place)

    @property
    def label(self) -> str:
        """The dataset and the path in it."""
        path = self._location.path
        return f"{self._location.repo_id}/{path}" if path else self._location.repo_id

    @property
    def source(self) -> str:
        """The address at the commit."""
        return str(HubLocation(self._location.repo_id, self.commit, self._location.path, _KIND))

    def fetch(self, name: str) -> Path:
        """Fetch a file, unless the cache has it.

        Raises:
            HubError: It cannot be fetched.
        """
        from huggingface_hub import hf_hub_download

        path = self._prefix + name

        def download() -> str:
            with hidden_bars():
                return hf_hub_download(
                    self._location.repo_id,
                    path,
                    repo_type=_KIND,
                    revision=self.commit,
                    library_name=NAME,
                    library_version=VERSION,
                    etag_timeout=self._retry.connect,
                )

        where = f"{self.place}: {path}"
        place = Path(ask(download, where, self._retry, tries=self._retry.tries))
        if place.stat().st_size != self.sizes[name]:
            raise HubError("another size than the Hub has listed", where=where, hint="run again")
        return place

    def _find_commit(self) -> str:
        """Ask which commit a revision names; in a run that shares its sources, once."""
        repo_id, wanted = self._location.repo_id, self._location.revision or "main"
        pinned = current().commits
        key = f"{_KIND}s/{repo_id}", wanted
        if key not in pinned:
            found: Any = self._ask(
                lambda api: api.repo_info(
                    repo_id, repo_type=_KIND, revision=wanted, timeout=_TIMEOUT
                )
            )
            if not found.sha or not _COMMIT.fullmatch(found.sha):
                raise not_a_hub(self.place)
            pinned[key] = found.sha
        return pinned[key]

    def _list(self, path: str) -> tuple[str, dict[str, int]]:
        """List files: the folder that they are in, and their sizes by what follows it."""
        pattern = ""
        if _PATTERN.search(path):
            pattern = path
            path = path[: _PATTERN.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        elif path:
            (found,) = self._look_up(path) or [None]
            if found is None:
                return "", {}
            if hasattr(found, "size"):
                folder, slash, name = path.rpartition("/")
                return folder + slash, {name: found.size}
        prefix = f"{path}/" if path else ""
        sizes = {
            entry.path[len(prefix) :]: entry.size
            for entry in self._tree(path)
            if hasattr(entry, "size")
            and entry.path.startswith(prefix)
            and stays_inside(entry.path)
            and (not pattern or fnmatchcase(entry.path, pattern))
        }
        return prefix, sizes

    def _look_up(self, path: str) -> list[Any]:
        found: list[Any] = self._ask(
            lambda api: api.get_paths_info(
                self._location.repo_id, [path], repo_type=_KIND, revision=self.commit
            )
        )
        return [one for one in found if one.path == path]

    def _tree(self, folder: str) -> list[Any]:
        entries: list[Any] = self._ask(
            lambda api: list(
                islice(
                    api.list_repo_tree(
                        self._location.repo_id,
                        folder or None,
                        recursive=True,
                        repo_type=_KIND,
                        revision=self.commit,
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

    def _ask(self, call: Any) -> Any:
        from huggingface_hub import HfApi

        api = HfApi(library_name=NAME, library_version=VERSION)
        return ask(lambda: call(api), self.place, self._retry, tries=self._retry.tries)
