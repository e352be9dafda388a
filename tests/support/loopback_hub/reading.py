"""Answers about what is in a repository, and the files themselves."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import parse_qs

from tests.support.loopback_hub.repository import Commit, File, Repository, folders
from tests.support.loopback_hub.routes import Ask, Refusal, reply, route
from tests.support.loopback_hub.rules import Answer


@route("GET", "/api/datasets/{id}/revision/{rev}")
@route("GET", "/api/models/{id}/revision/{rev}")
@route("GET", "/api/models/{id}")
def model_info(ask: Ask) -> Answer:
    repo = ask.repo()
    commit = ask.commit(repo, ask.parts[1] if ask.parts[1:] else "main")
    siblings: list[dict[str, Any]] = []
    for path, file in commit.files.items():
        siblings.append({"rfilename": path})
        if ask.query.get("blobs") == "true":
            siblings[-1] |= {"size": len(file.content), "blobId": file.oid}
            if file.is_lfs:
                siblings[-1]["lfs"] = {**_lfs(file), "sha256": file.sha256}
    return reply(
        {
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.commits()[-1].date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
    )


@route("GET", "/api/datasets/{id}")
@route("GET", "/api/spaces/{id}")
def other_info(ask: Ask) -> Answer:
    """Answer about a repository of another type: there are some by name only."""
    repo_id, kind = ask.parts[0], ask.request.path.split("/")[2]
    if f"{kind}/{repo_id}" not in ask.hub.others:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return reply({"id": repo_id, "sha": "0" * 40, "private": False, "siblings": []})


@route("GET", "/api/models/{id}/refs")
def refs(ask: Ask) -> Answer:
    repo = ask.repo()

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    found = {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags)}
    if "include_prs" in ask.query:
        found["pullRequests"] = listed("pr", {str(n): oid for n, oid in repo.pulls.items()})
    return reply({**found, "converts": []})


@route("GET", "/api/datasets/{id}/tree/{rev}/{path}")
@route("GET", "/api/datasets/{id}/tree/{rev}")
@route("GET", "/api/models/{id}/tree/{rev}/{path}")
@route("GET", "/api/models/{id}/tree/{rev}")
def tree(ask: Ask) -> Answer:
    commit = ask.commit(ask.repo(), ask.parts[1])
    above = "".join(f"{part}/" for part in ask.parts[2:])
    entries = [entry for entry in _entries(commit) if entry["path"].startswith(above)]
    if above and not entries:
        raise _entry_missing(commit, above[:-1])
    if ask.query.get("recursive") != "true":
        entries = [entry for entry in entries if "/" not in entry["path"][len(above) :]]
    return reply(entries)


@route("POST", "/api/datasets/{id}/paths-info/{rev}")
@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(ask: Ask) -> Answer:
    commit = ask.commit(ask.repo(), ask.parts[1])
    wanted = parse_qs(ask.request.body.decode()).get("paths", [])
    return reply([entry for entry in _entries(commit) if entry["path"] in wanted])


@route("GET", "/api/models/{id}/commits/{rev}")
def commits(ask: Ask) -> Answer:
    repo = ask.repo()
    history = repo.commits(ask.commit(repo, ask.parts[1]).oid)
    return reply(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in history
        ]
    )


@route("GET", "/api/models/{id}/discussions/{number}")
def discussion(ask: Ask) -> Answer:
    """Answer about a pull request; there are no other discussions here."""
    repo, number = ask.repo(), int(ask.parts[1])
    if number not in repo.pulls:
        raise Refusal(404, "Discussion not found")
    commit = repo.commit(f"refs/pr/{number}")
    return reply(
        {
            "num": number,
            "title": commit.title,
            "author": {"name": commit.author},
            "createdAt": commit.date,
            "status": "closed" if number in repo.closed else "open",
            "repo": {"name": repo.id, "type": "model"},
            "isPullRequest": True,
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": [],
            "events": [],
        }
    )


@route("HEAD GET", "/datasets/{id}/resolve/{rev}/{path}")
@route("HEAD GET", "/{id}/resolve/{rev}/{path}")
def resolve(ask: Ask) -> Answer:
    repo = ask.repo()
    commit = ask.commit(repo, ask.parts[1])
    file = commit.files.get(ask.parts[2])
    if file is None:
        raise _entry_missing(commit, ask.parts[2])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
    if not file.is_lfs:
        return _content(ask, file.content, headers)
    headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    headers["Location"] = f"{ask.hub.storage_endpoint}/{repo.id}/blob/{file.sha256}"
    return Answer(302, headers)


@route("HEAD GET", "/datasets/{id}/blob/{sha256}", host="storage")
@route("HEAD GET", "/{id}/blob/{sha256}", host="storage")
def blob(ask: Ask) -> Answer:
    kind = "datasets/" if ask.request.path.startswith("/datasets/") else ""
    repo: Repository | None = ask.hub.repos.get(kind + ask.parts[0])
    content = repo.lfs.get(ask.parts[1]) if repo else None
    if content is None:
        return Answer(403)
    # Storage has its own idea of an ETag, which no cache may be named after.
    return _content(ask, content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})


def _content(ask: Ask, content: bytes, headers: dict[str, str]) -> Answer:
    """Answer with a file or the range of it that was asked for."""
    headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = ask.request.headers.get("range")
    if wanted is None:
        return Answer(200, headers, content)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if match is None:
        raise Refusal(400, f"no such ranges here: {wanted}")
    start = int(match[1])
    if start >= len(content):
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(content)}"})
    part = content[start : int(match[2]) + 1 if match[2] else None]
    span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return Answer(206, {**headers, "Content-Range": span}, part)


def _entry_missing(commit: Commit, path: str) -> Refusal:
    return Refusal(404, f"{path}: Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)


def _entries(commit: Commit) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "oid": oid, "size": 0}
        for path, oid in folders(commit.files).items()
        if path
    ]
    for path, file in commit.files.items():
        size = len(file.content)
        entries.append({"type": "file", "path": path, "oid": file.oid, "size": size})
        if file.is_lfs:
            entries[-1]["lfs"] = {**_lfs(file), "oid": file.sha256}
    return sorted(entries, key=lambda entry: str(entry["path"]))


def _lfs(file: File) -> dict[str, int]:
    return {"size": len(file.content), "pointerSize": len(file.pointer)}
