"""Checkpoints on the Hugging Face Hub: addresses, the local cache, files and folders."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from vaeconv.checkpoint.source import ByteSource, FileSource
from vaeconv.checkpoint.tree import FileTree, LocalTree, checked, stays_inside
from vaeconv.errors import (
    CheckpointNotFoundError,
    HubError,
    MalformedCheckpointError,
    OutputError,
    UsageError,
)

if TYPE_CHECKING:
    from vaeconv.checkpoint.remote import Retry

Progress = Callable[[int], None]
T = TypeVar("T")

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_OTHER_KINDS = frozenset({"models", "datasets", "spaces", "kernels", "buckets", "api", "docs"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_ADDRESS = re.compile(r"([^/@]*)/([^/@]*)(?:@(refs/pr/[0-9]+|[^/]*))?(?:/(.*))?", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_LEVELS = 2
_LISTING_TIMEOUT = 30.0
_HOW = "write hf://owner/name[@revision][/path]"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A file or folder in a model repository.

    Args:
        repo_id: ``owner/name``.
        revision: Branch, tag, commit or ``refs/pr/N``; None for the main branch.
        path: Where in the repository; None for its root.

    Raises:
        UsageError: One of them cannot be what it should be.
    """

    repo_id: str
    revision: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        owner, _, name = self.repo_id.partition("/")
        if owner in _OTHER_KINDS:
            raise UsageError(f"{owner} is not a model repository's owner", where=str(self))
        for part in (owner, name):
            if not _NAME.fullmatch(part) or ".." in part or "--" in part:
                raise UsageError(f"{part!r} names no model repository", where=str(self), hint=_HOW)
        for text, what in ((self.revision, "revision"), (self.path, "path in a repository")):
            if text is not None and not stays_inside(text):
                raise UsageError(f"{text!r} is not a {what}", where=str(self), hint=_HOW)

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://{self.repo_id}{revision}" + (f"/{self.path}" if self.path else "")


def parse_location(text: str) -> HubLocation | None:
    """Read ``hf://owner/name[@revision][/path]``, or an address of the Hub's website.

    Returns:
        The location, or None where the text is no address on the Hub.

    Raises:
        UsageError: It is one, but not that of a file or folder in a model repository.
    """
    if text.startswith("hf://"):
        match = _ADDRESS.fullmatch(text[len("hf://") :])
        if not match or match[3] == "":
            raise UsageError("not a complete Hub address", where=text, hint=_HOW)
        revision = unquote(match[3]) if match[3] else None
        return HubLocation(f"{match[1]}/{match[2]}", revision, (match[4] or "").strip("/") or None)
    path = _website_path(text)
    return None if path is None else _parse_website(text, path)


def _website_path(text: str) -> str | None:
    """Return the path below the Hub's root, or None for an address elsewhere."""
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https"):
            return None
        if parts.hostname in _HUB_HOSTS:
            return parts.path
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "").rstrip("/"))
    except ValueError:
        return None
    inside = parts.path.startswith(f"{endpoint.path}/")
    same = endpoint.netloc and endpoint.netloc.lower() == parts.netloc.lower()
    return parts.path[len(endpoint.path) :] if same and inside else None


def _parse_website(text: str, path: str) -> HubLocation:
    parts = path.strip("/").split("/")
    if len(parts) < 2:
        raise UsageError("not the address of a repository", where=text, hint=_HOW)
    repo_id, kind, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
    if kind and (kind[0] not in ("resolve", "blob", "raw", "tree") or not rest):
        raise UsageError("not the address of a file or folder", where=text, hint=_HOW)
    # The website writes refs/pr/1 either way.
    width = 3 if rest[:2] == ["refs", "pr"] else 1
    revision, inner = unquote("/".join(rest[:width])), unquote("/".join(rest[width:]))
    if kind and kind[0] != "tree" and not inner:
        raise UsageError("not the address of a file", where=text, hint=_HOW)
    return HubLocation(repo_id, revision or None, inner or None)


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
    """
    from vaeconv.checkpoint.remote import Retry

    repository = _Repository(location, download, on_progress, retry or Retry())
    if location.path is None:
        return repository.tree("")
    try:
        return repository.file(location.path)
    except _NoSuchFileError:
        return repository.tree(location.path)
    except _UnreachableError:
        if not repository.cached_folder(location.path):
            raise
        return repository.tree(location.path)


class HubFiles:
    """A folder in a repository on the Hub, at one commit; see ``FileTree``."""

    def __init__(
        self, repository: _Repository, commit: str, prefix: str, files: frozenset[str]
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

    def open(self, name: str) -> ByteSource:
        """Open one of the files."""
        path = self._prefix + checked(name, self.name)
        if path not in self._files:
            raise CheckpointNotFoundError(f"no file {name} in this folder", where=self.name)
        return self._repository.file(path, self._commit)

    def subtree(self, name: str) -> HubFiles:
        """Return the view of a folder inside this one."""
        prefix = f"{self._prefix}{checked(name, self.name)}/"
        if not any(file.startswith(prefix) for file in self._files):
            raise CheckpointNotFoundError(f"no folder {name} in this folder", where=self.name)
        return HubFiles(self._repository, self._commit, prefix, self._files)


class _NoSuchFileError(HubError):
    """The repository and the revision are there, the file is not."""


class _UnreachableError(HubError):
    """Nothing was heard from the Hub, or it may not be asked."""


class _Repository:
    """One repository, as this run sees it: the cache first, then the network."""

    def __init__(
        self, location: HubLocation, download: bool, on_progress: Progress | None, retry: Retry
    ) -> None:
        self.root = str(HubLocation(location.repo_id, location.revision))
        self._id = location.repo_id
        self._revision = location.revision or "main"
        self._download = download
        self._on_progress = on_progress
        self._retry = retry

    def file(self, path: str, commit: str | None = None) -> ByteSource:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        name = f"{self.root}/{path}"
        revision = commit or self._revision
        cached = self._cached(path, revision)
        if cached and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision)):
            return FileSource(cached)
        url = hf_hub_url(self._id, path, revision=revision)
        headers = _headers()
        try:
            metadata = self._ask(
                lambda: get_hf_file_metadata(url, timeout=self._retry.connect, headers=headers),
                name,
                tries=1 if cached else self._retry.tries,
            )
        except _UnreachableError as error:
            if not cached:
                raise
            logger.warning("%s; using the cached copy", error)
            return FileSource(cached)
        size, etag, found = metadata.size, metadata.etag, metadata.commit_hash
        if size is None or not etag or not found or not _COMMIT.fullmatch(found):
            raise _not_a_hub(name)
        if self._download:
            return self._downloaded(path, found, name)
        held = self._cached(path, found) or self._blob(etag)
        if held:
            return FileSource(held)
        from vaeconv.checkpoint.remote import RangeSource

        return RangeSource(
            hf_hub_url(self._id, path, revision=found),
            name=name,
            size=size,
            etag=etag,
            headers=headers,
            on_progress=self._on_progress,
            retry=self._retry,
        )

    def tree(self, prefix: str) -> FileTree:
        from huggingface_hub import HfApi, constants

        name = f"{self.root}/{prefix}".rstrip("/")
        snapshot = self.cached_folder(prefix)
        if snapshot and constants.HF_HUB_OFFLINE:
            return LocalTree(snapshot)
        try:
            info = self._ask(
                lambda: HfApi(library_name="vaeconv", library_version=_version()).model_info(
                    self._id, revision=self._revision, timeout=_LISTING_TIMEOUT
                ),
                name,
                tries=1 if snapshot else self._retry.tries,
            )
        except _UnreachableError as error:
            if not snapshot:
                raise
            logger.warning("%s; using the cached copy", error)
            return LocalTree(snapshot)
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise _not_a_hub(name)
        files = frozenset(f.rfilename for f in info.siblings or () if stays_inside(f.rfilename))
        prefix = f"{prefix}/" if prefix else ""
        if prefix and not any(file.startswith(prefix) for file in files):
            raise HubError(
                "no such file or folder in the repository",
                where=name,
                hint="check the path and the revision",
            )
        return HubFiles(self, info.sha, prefix, files)

    def _downloaded(self, path: str, commit: str, name: str) -> ByteSource:
        from huggingface_hub import hf_hub_download

        # Asked for by the revision's own name, so that offline runs find it by that name too. The
        # client retries by itself, and waits long: one try, once the Hub has answered us.
        place = Path(
            self._ask(
                lambda: hf_hub_download(
                    self._id,
                    path,
                    revision=self._revision,
                    library_name="vaeconv",
                    library_version=_version(),
                    etag_timeout=self._retry.connect,
                ),
                name,
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

    def cached_folder(self, prefix: str) -> Path | None:
        commit = self._revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (self._storage() / "refs" / commit).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        place = self._storage() / "snapshots" / commit / prefix
        return place if _COMMIT.fullmatch(commit) and place.is_dir() else None

    def _ask(self, call: Callable[[], T], where: str, *, tries: int) -> T:
        """Call the client library; retry what may pass, translate what it raises."""
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError

        from vaeconv.checkpoint.remote import is_transient, network_errors

        # RuntimeError is what hf_xet raises.
        expected: tuple[type[Exception], ...] = (EntryNotFoundError, RuntimeError)
        expected += network_errors()
        for failures in range(1, tries + 1):
            try:
                return call()
            except expected as error:
                failure = _translate(error, where)
                response = getattr(error, "response", None)
                if response is not None:
                    passing = is_transient(response.status_code)
                else:
                    passing = isinstance(failure, _UnreachableError)
                    passing = passing and not constants.HF_HUB_OFFLINE
                if not passing or failures == tries:
                    raise failure from error
                after = response.headers.get("Retry-After") if response is not None else None
            except (ValueError, TypeError, KeyError) as error:
                raise _not_a_hub(where) from error
            time.sleep(self._retry.delay(failures, after))
        raise AssertionError("unreachable")


def _translate(error: Exception, where: str) -> HubError | OutputError:
    """Turn an exception of the client library into one of ours."""
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    from vaeconv.checkpoint.remote import network_errors, refused, unreachable

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it only says that the cache couldn't help either
    response = getattr(error, "response", None)
    if response is not None:
        failure = refused(response.status_code, response.headers, where)
        if response.headers.get("X-Error-Code") == "EntryNotFound":
            return _NoSuchFileError(failure.what, where=where, hint=failure.hint)
        return failure
    if isinstance(error, FileMetadataError):
        return _not_a_hub(where)
    failure = unreachable(error, where)
    local = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
    if local and not isinstance(error, network_errors()[1:]) and getattr(error, "errno", None):
        return OutputError(
            f"the cache cannot be written: {getattr(error, 'strerror', error)}",
            where=where,
            hint="make room there, or set HF_HOME to another folder",
        )
    return _UnreachableError(failure.what, where=where, hint=failure.hint)


def _not_a_hub(where: str) -> HubError:
    return HubError(
        "the server does not answer like the Hub",
        where=where,
        hint="check HF_ENDPOINT and the proxy settings",
    )


def _version() -> str:
    import vaeconv

    return str(getattr(vaeconv, "__version__", "0"))


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers(library_name="vaeconv", library_version=_version())
