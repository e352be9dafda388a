"""What a repository on the loopback Hub is: commits that hold files, and names that point to them.

Hashes are git's own: of blobs, trees and commits, and of the pointer in place of an LFS file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

# The Hub's own list is longer; these are the ones that matter here.
LFS_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".png", ".jpg", ".zip")
GIT_ATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()
_EPOCH = 1_700_000_000


def git_hash(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes = field(repr=False)
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores of an LFS file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}")
        return "\n".join((*lines, f"size {len(self.content)}", "")).encode()

    @property
    def oid(self) -> str:
        return git_hash("blob", self.pointer if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


Files = Mapping[str, File]


@dataclass(frozen=True)
class Commit:
    """A commit; ``parent`` is None for the first one only."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    time: int
    files: Files

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def folders(files: Files) -> dict[str, str]:
    """Return the hashes of the folders by their paths; that of the root is ''."""
    children: dict[str, dict[str, tuple[bytes, str]]] = {"": {}}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = (b"100644", file.oid)
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})
    hashes = {}
    for folder in sorted(children, key=lambda path: (path.count("/"), path), reverse=True):
        # git sorts a folder as if its name ended in a slash.
        entries = sorted(children[folder].items(), key=lambda e: e[0] + "/" * (e[1][0] == b"40000"))
        body = b"".join(b"%b %b\0" % (m, n.encode()) + bytes.fromhex(h) for n, (m, h) in entries)
        hashes[folder] = git_hash("tree", body)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = (b"40000", hashes[folder])
    return hashes


@dataclass
class Repository:
    """A model's repository, from its first commit on."""

    id: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # name to commit, as the next two
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)  # pull requests that were closed
    tag_messages: dict[str, str | None] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict, repr=False)  # committed or not
    _commits: dict[str, Commit] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        first = {".gitattributes": File(GIT_ATTRIBUTES)}
        self.branches["main"] = self.store(None, first, "initial commit", author="system")

    # What tests read

    def head(self, ref: str = "main") -> str:
        """Return the commit that a revision stands for."""
        oid = self.resolve(ref)
        if oid is None:
            raise KeyError(f"{self.id} has no {ref}")
        return oid

    def commit(self, ref: str = "main") -> Commit:
        return self._commits[self.head(ref)]

    def commits(self, ref: str = "main") -> list[Commit]:
        """Return a revision's history, the newest first."""
        history = []
        oid: str | None = self.head(ref)
        while oid is not None:
            history.append(self._commits[oid])
            oid = history[-1].parent
        return history

    def commit_count(self, ref: str = "main") -> int:
        """Count a revision's commits, without the one that made the repository."""
        return len(self.commits(ref)) - 1

    def files(self, ref: str = "main") -> dict[str, bytes]:
        """Return all that was pushed: ``.gitattributes`` is the Hub's own."""
        files = self.commit(ref).files.items()
        return {path: file.content for path, file in files if path != ".gitattributes"}

    # What the Hub does

    def resolve(self, ref: str) -> str | None:
        pull = re.fullmatch(r"refs/pr/(\d+)", ref)
        if pull:
            return self.pulls.get(int(pull[1]))
        found = self.branches.get(ref) or self.tags.get(ref)
        if found is None and re.fullmatch(r"[0-9a-f]{7,40}", ref):
            matching = [oid for oid in self._commits if oid.startswith(ref)]
            found = matching[0] if len(matching) == 1 else None
        return found

    def store(
        self, parent: str | None, files: Files, title: str, message: str = "", author: str = "user"
    ) -> str:
        """Keep a commit that no name points to yet."""
        time = _EPOCH + len(self._commits)  # so no two are equal
        who = f"{author} <{author}@loopback> {time} +0000"
        above = f"parent {parent}\n" if parent else ""
        body = f"tree {folders(files)['']}\n{above}author {who}\ncommitter {who}\n\n{title}\n"
        oid = git_hash("commit", (body + (f"\n{message}\n" if message else "")).encode())
        self._commits[oid] = Commit(oid, parent, title, message, author, time, dict(files))
        return oid
