"""Addresses of files and folders on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from vaeconv.checkpoint.tree import stays_inside
from vaeconv.errors import UsageError

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_OTHER_KINDS = frozenset({"models", "datasets", "spaces", "kernels", "buckets", "api", "docs"})
_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".zip", ".json", ".yaml")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_ADDRESS = re.compile(r"([^/@]*)/([^/@]*)(?:@(refs/pr/[0-9]+|[^/]*))?(?:/(.*))?", re.DOTALL)
_HOW = "write hf://owner/name[@revision][/path]"
_HOW_DATASET = "write hf://datasets/owner/name[@revision][/path]"
_DATASETS = "datasets/"


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A file or folder in a repository of models, or of a dataset.

    Args:
        repo_id: ``owner/name``.
        revision: Branch, tag, commit or ``refs/pr/N``; None for the main branch.
        path: Where in the repository; None for its root.
        kind: ``model`` or ``dataset``.

    Raises:
        UsageError: One of them cannot be what it should be.
    """

    repo_id: str
    revision: str | None = None
    path: str | None = None
    kind: str = "model"

    def __post_init__(self) -> None:
        owner, _, name = self.repo_id.partition("/")
        how = _HOW_DATASET if self.kind == "dataset" else _HOW
        _check_kind(owner, str(self))
        for part in (owner, name):
            if not _NAME.fullmatch(part) or ".." in part or "--" in part:
                raise UsageError(
                    f"{part!r} names no {self.kind} repository", where=str(self), hint=how
                )
        for text, what in ((self.revision, "revision"), (self.path, "path in a repository")):
            if text is not None and not stays_inside(text):
                raise UsageError(f"{text!r} is not a {what}", where=str(self), hint=how)

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        kind = "datasets/" if self.kind == "dataset" else ""
        return f"hf://{kind}{self.repo_id}{revision}" + (f"/{self.path}" if self.path else "")


def _check_kind(owner: str, where: str) -> None:
    if owner in _OTHER_KINDS:
        raise UsageError(
            f"{owner} are not models, and weights are read from model repositories only",
            where=where,
            hint=_HOW,
        )


def parse_location(text: str) -> HubLocation | None:
    """Read ``hf://[models/]owner/name[@revision][/path]``, or an address of the Hub's website.

    Returns:
        The location, or None where the text is no address on the Hub.

    Raises:
        UsageError: It is one, but not that of a file or folder in a model repository.
    """
    if text.startswith("hf://") and any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError("an address on the Hub is UTF-8", where=text)
    if text.startswith("hf://"):
        # The client prints addresses with the type of the repository in front.
        match = _ADDRESS.fullmatch(text[len("hf://") :].removeprefix("models/"))
        if not match or match[3] == "":
            raise UsageError("not a complete Hub address", where=text, hint=_HOW)
        revision = unquote(match[3]) if match[3] else None
        return HubLocation(f"{match[1]}/{match[2]}", revision, (match[4] or "").strip("/") or None)
    path = _website_path(text)
    return None if path is None else _parse_website(text, path)


def parse_dataset(text: str) -> HubLocation | None:
    """Read ``hf://datasets/owner/name[@revision][/path]``, or its address on the Hub's website.

    Returns:
        The location, or None where the text is no address.

    Raises:
        UsageError: It is an address, but not one in a dataset.
    """
    if "://" not in text:
        return None
    website = _website_path(text)
    if website is not None and website.startswith(f"/{_DATASETS}"):
        location = _parse_website(text, website.removeprefix(f"/{_DATASETS}"))
        return replace(location, kind="dataset")
    match = _ADDRESS.fullmatch(text.removeprefix(f"hf://{_DATASETS}"))
    if not text.startswith(f"hf://{_DATASETS}") or not match or match[3] == "":
        raise UsageError("not the address of a dataset", where=text, hint=_HOW_DATASET)
    revision = unquote(match[3]) if match[3] else None
    path = (match[4] or "").strip("/") or None
    return HubLocation(f"{match[1]}/{match[2]}", revision, path, "dataset")


def suggest_address(text: str) -> str | None:
    """Say how to write what looks like a repository, where a local file of this name is not there.

    Returns:
        An address, for ``owner/name`` and the like; None where it looks like a path.
    """
    said = re.match(r"(hf:/?|(www\.)?huggingface\.co/|hf\.co/)(?!/)", text)
    rest = text[said.end() :] if said else text
    parts = rest.removeprefix("models/").rstrip("/").split("/")
    if not said and (len(parts) == 1 or parts[1].endswith(_FILES) or os.path.lexists(parts[0])):
        return None
    try:
        is_page = said and parts[2:3] and parts[2] in ("blob", "resolve", "raw", "tree")
        page = f"https://huggingface.co/{'/'.join(parts)}"
        return str(parse_location(page if is_page else f"hf://{'/'.join(parts)}"))
    except UsageError:
        return None


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
    _check_kind(parts[0], text)
    repo_id, kind, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
    if kind and (kind[0] not in ("resolve", "blob", "raw", "tree") or not rest):
        raise UsageError("not the address of a file or folder", where=text, hint=_HOW)
    # The website writes refs/pr/1 either way.
    width = 3 if rest[:2] == ["refs", "pr"] else 1
    revision, inner = unquote("/".join(rest[:width])), unquote("/".join(rest[width:]))
    if kind and kind[0] != "tree" and not inner:
        raise UsageError("not the address of a file", where=text, hint=_HOW)
    return HubLocation(repo_id, revision or None, inner or None)
