"""Files and folders of a repository on the Hub: the local cache first, then the network."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from vaeconv.checkpoint.hub.address import HubLocation
from vaeconv.checkpoint.hub.client import (
    ask,
    check_environment,
    fetch_whole,
    hub_api,
    request_headers,
)
from vaeconv.checkpoint.hub.failures import NoSuchFileError, Retry, UnreachableError, not_a_hub
from vaeconv.checkpoint.hub.range_source import RangeSource
from vaeconv.checkpoint.source import ByteSource, FileSource, shared_now
from vaeconv.checkpoint.tree import FileTree, LocalTree, checked, stays_inside
from vaeconv.errors import CheckpointNotFoundError, HubError, MalformedCheckpointError

Progress = Callable[[int], None]

COMMIT = re.compile(r"[0-9a-f]{40}")
LISTING_TIMEOUT = 30.0
_HASH = re.compile(r"[0-9a-f]{40,64}")
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
        return repository.open_folder("")
    try:
        return repository.open(location.path)
    except NoSuchFileError:
        return repository.open_folder(location.path)
    except UnreachableError:
        if not repository.cached_folder(location.path):
            raise
        return repository.open_folder(location.path)


class Repository:
    """A model repository at one revision, as this run sees it.

    Args:
        location: The repository and the revision; its path plays no role.
        downloads: Fetch files whole, into the cache.
        on_progress: Called with the number of bytes of each piece that arrived.
        retry: How patient to be.
    """

    def __init__(
        self, location: HubLocation, downloads: bool, on_progress: Progress | None, retry: Retry
    ) -> None:
        self.root = str(HubLocation(location.repo_id, location.revision))
        self._id = location.repo_id
        self._revision = location.revision or "main"
        self._downloads = downloads
        self._on_progress = on_progress
        self._retry = retry
        self._shared = shared_now()

    @property
    def _wanted(self) -> str:
        """The commit that the revision named when it was first asked for, or the revision."""
        return self._shared.commits.get((self._id, self._revision), self._revision)

    def _pin(self, commit: str) -> None:
        self._shared.commits.setdefault((self._id, self._revision), commit)

    def open(self, path: str, commit: str | None = None) -> ByteSource:
        """Open a file, as it is at a commit where that is known already.

        Raises:
            NoSuchFileError: The repository is there, the file is not.
            HubError: Anything else stands against it.
        """
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        name = f"{self.root}/{path}"
        revision = commit or self._wanted
        remote = self._shared.remote
        if remote and (self._id, revision, path) in remote:
            return remote[self._id, revision, path].retain()
        cached = self._cached(path, revision)
        if cached and (constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision)):
            return FileSource(cached)
        url = hf_hub_url(self._id, path, revision=revision)
        headers = request_headers()
        try:
            metadata = ask(
                lambda: get_hf_file_metadata(url, timeout=self._retry.connect, headers=headers),
                name,
                self._retry,
                tries=1 if cached else None,
            )
        except UnreachableError as error:
            if not cached:
                raise
            logger.warning("%s; using the cached copy", error)
            self._pin(cached.parts[cached.parts.index("snapshots") + 1])
            return FileSource(cached)
        size, etag, found = metadata.size, metadata.etag, metadata.commit_hash
        if size is None or not etag or not found or not COMMIT.fullmatch(found):
            raise not_a_hub(name)
        self._pin(found)
        if self._downloads:
            return self._download(path, found, name)
        held = self._cached(path, found) or self._blob(etag)
        if held:
            return FileSource(held)
        source = RangeSource(
            hf_hub_url(self._id, path, revision=found),
            name=name,
            size=size,
            etag=etag,
            headers=headers,
            on_progress=self._on_progress,
            retry=self._retry,
        )
        if remote is not None:
            remote[self._id, found, path] = source.retain()
        return source

    def open_folder(self, path: str) -> FileTree:
        """Open a folder, from the cache where the Hub cannot be asked.

        Raises:
            HubError: It is not there, or may not be read.
        """
        from huggingface_hub import constants

        snapshot = self.cached_folder(path)
        if snapshot and constants.HF_HUB_OFFLINE:
            return LocalTree(snapshot)
        try:
            commit, files = self._list_files(tries=1 if snapshot else None)
        except UnreachableError as error:
            if not snapshot:
                raise
            logger.warning("%s; using the cached copy", error)
            return LocalTree(snapshot)
        prefix = f"{path}/" if path else ""
        if prefix and not any(file.startswith(prefix) for file in files):
            raise HubError(
                "no such file or folder in the repository",
                where=f"{self.root}/{path}",
                hint="check the path and the revision",
            )
        return HubFiles(self, commit, prefix, files)

    def _list_files(self, tries: int | None) -> tuple[str, frozenset[str]]:
        """Return the commit that the revision names now, and the paths of all files in it."""
        known = self._shared.listings.get((self._id, self._wanted))
        if known is not None:
            return self._wanted, known
        info = ask(
            lambda: hub_api().model_info(self._id, revision=self._wanted, timeout=LISTING_TIMEOUT),
            self.root,
            self._retry,
            tries=tries,
        )
        if not info.sha or not COMMIT.fullmatch(info.sha):
            raise not_a_hub(self.root)
        self._pin(info.sha)
        names = (sibling.rfilename for sibling in info.siblings or ())
        files = self._shared.listings[self._id, info.sha] = frozenset(filter(stays_inside, names))
        return info.sha, files

    def cached_folder(self, path: str) -> Path | None:
        """Return the cache's copy of a folder; it holds what was downloaded, not all there is."""
        commit = self._wanted
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self._storage() / "refs" / commit).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        place = self._storage() / "snapshots" / commit / path
        return place if COMMIT.fullmatch(commit) and place.is_dir() else None

    def _download(self, path: str, commit: str, name: str) -> ByteSource:
        # Asked for by the revision's own name, so that offline runs find it by that name too. The
        # client retries by itself, and waits long: one try, once the Hub has answered us.
        place = fetch_whole(self._id, path, self._revision, "model", name, self._retry, tries=1)
        if commit not in place.parts:
            raise MalformedCheckpointError(
                "changed on the server while it was being read", where=name, hint="run again"
            )
        source = FileSource(place)
        if self._on_progress:
            self._on_progress(source.size)
        return source

    def _cached(self, path: str, revision: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._id, path, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _storage(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self._id.replace('/', '--')}"

    def _blob(self, etag: str) -> Path | None:
        # The ETag comes from a server: only a plain hash may become part of a path.
        place = self._storage() / "blobs" / etag
        return place if _HASH.fullmatch(etag) and place.is_file() else None


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
