"""One repository on the Hub: the local cache first, then the network."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from vaeconv.checkpoint.hub.address import HubLocation
from vaeconv.checkpoint.hub.client import (
    NAME,
    VERSION,
    ask,
    hidden_bars,
    not_a_hub,
    request_headers,
)
from vaeconv.checkpoint.hub.http import Retry, UnreachableError
from vaeconv.checkpoint.hub.range_source import RangeSource
from vaeconv.checkpoint.local_source import FileSource
from vaeconv.checkpoint.shared import current, is_sharing
from vaeconv.checkpoint.source import ByteSource
from vaeconv.checkpoint.tree import stays_inside
from vaeconv.errors import MalformedCheckpointError

Progress = Callable[[int], None]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_LISTING_TIMEOUT = 30.0

logger = logging.getLogger(__name__)


class Repository:
    """A model repository at one revision, as this run sees it.

    Args:
        location: The repository and the revision; its path plays no role.
        download: Fetch files whole, into the cache.
        on_progress: Called with the number of bytes of each piece that arrived.
        retry: How patient to be.
    """

    def __init__(
        self, location: HubLocation, download: bool, on_progress: Progress | None, retry: Retry
    ) -> None:
        self.root = str(HubLocation(location.repo_id, location.revision))
        self._id = location.repo_id
        self._revision = location.revision or "main"
        self._download = download
        self._on_progress = on_progress
        self._retry = retry
        self._shared = current()

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
        kept = self._shared.remote.get((self._id, revision, path))
        if kept:
            return kept.retain()
        cached = self._cached(path, revision)
        if cached and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision)):
            return FileSource(cached)
        url = hf_hub_url(self._id, path, revision=revision)
        headers = request_headers()
        try:
            metadata = ask(
                lambda: get_hf_file_metadata(url, timeout=self._retry.connect, headers=headers),
                name,
                self._retry,
                tries=1 if cached else self._retry.tries,
            )
        except UnreachableError as error:
            if not cached:
                raise
            logger.warning("%s; using the cached copy", error)
            self._pin(cached.parts[cached.parts.index("snapshots") + 1])
            return FileSource(cached)
        size, etag, found = metadata.size, metadata.etag, metadata.commit_hash
        if size is None or not etag or not found or not _COMMIT.fullmatch(found):
            raise not_a_hub(name)
        self._pin(found)
        if self._download:
            return self._downloaded(path, found, name)
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
        if is_sharing():
            self._shared.remote[self._id, found, path] = source.retain()
        return source

    def list_files(self, *, tries: int | None = None) -> tuple[str, frozenset[str]]:
        """Return the commit that the revision names now, and the paths of all files in it.

        Raises:
            UnreachableError: The Hub cannot be asked.
            HubError: It refuses.
        """
        from huggingface_hub import HfApi

        known = self._shared.listings.get((self._id, self._wanted))
        if known is not None:
            return self._wanted, known
        info = ask(
            lambda: HfApi(library_name=NAME, library_version=VERSION).model_info(
                self._id, revision=self._wanted, timeout=_LISTING_TIMEOUT
            ),
            self.root,
            self._retry,
            tries=tries or self._retry.tries,
        )
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise not_a_hub(self.root)
        files = (sibling.rfilename for sibling in info.siblings or ())
        self._pin(info.sha)
        found = frozenset(filter(stays_inside, files))
        self._shared.listings[self._id, info.sha] = found
        return info.sha, found

    def cached_folder(self, path: str) -> Path | None:
        """Return the cache's copy of a folder; it holds what was downloaded, not all there is."""
        commit = self._wanted
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (self._storage() / "refs" / commit).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        place = self._storage() / "snapshots" / commit / path
        return place if _COMMIT.fullmatch(commit) and place.is_dir() else None

    def _downloaded(self, path: str, commit: str, name: str) -> ByteSource:
        from huggingface_hub import hf_hub_download

        # Asked for by the revision's own name, so that offline runs find it by that name too. The
        # client retries by itself, and waits long: one try, once the Hub has answered us.
        with hidden_bars():
            place = Path(
                ask(
                    lambda: hf_hub_download(
                        self._id,
                        path,
                        revision=self._revision,
                        library_name=NAME,
                        library_version=VERSION,
                        etag_timeout=self._retry.connect,
                    ),
                    name,
                    self._retry,
                    tries=1,
                )
            )
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
