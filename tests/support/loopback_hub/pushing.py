"""Answers to what changes a repository: uploads, commits, branches and tags."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from tests.support.loopback_hub.accounts import check_card
from tests.support.loopback_hub.repository import LFS_SUFFIXES, File, Repository
from tests.support.loopback_hub.routes import Ask, Refusal, reply, route
from tests.support.loopback_hub.rules import Answer


@dataclass
class Upload:
    """An upload that was agreed upon."""

    repo: Repository
    oid: str
    size: int
    part_size: int | None
    parts: dict[int, bytes] = field(default_factory=dict)


def is_lfs(path: str, size: int, limit: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > limit)


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(ask: Ask) -> Answer:
    repo = ask.repo_to_write(by_pull_request="create_pr" in ask.query)
    there = ask.commit(repo, ask.parts[1]).files
    files, wanted = [], ask.json()
    ignore = wanted.get("gitIgnore")
    if ignore is None and ".gitignore" in there:
        ignore = there[".gitignore"].content.decode()
    for asked in wanted["files"]:
        path = asked["path"]
        lfs = is_lfs(path, asked["size"], ask.hub.regular_limit)
        files.append(
            {
                "path": path,
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": any(fnmatch(path, line) for line in (ignore or "").splitlines()),
                "oid": there[path].etag if path in there else None,
            }
        )
    return reply({"files": files})


@route("POST", "/{id}.git/info/lfs/objects/batch")
def batch(ask: Ask) -> Answer:
    wanted = ask.json()
    # Who opens a pull request names no revision.
    repo = ask.repo_to_write(by_pull_request="ref" not in wanted)
    if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
        raise Refusal(422, "only uploads by their sha256")
    objects = [_instructions(ask, repo, asked["oid"], asked["size"]) for asked in wanted["objects"]]
    return reply({"transfer": "basic", "objects": objects})


def _instructions(ask: Ask, repo: Repository, oid: str, size: int) -> dict[str, Any]:
    if oid in repo.lfs:
        return {"oid": oid, "size": size}
    hub, ticket = ask.hub, secrets.token_hex(8)
    in_parts = size > hub.multipart_over
    hub.uploads[ticket] = Upload(repo, oid, size, hub.part_size if in_parts else None)
    href = f"{hub.storage_endpoint}/{repo.id}/lfs/{oid}?ticket={ticket}"
    upload: dict[str, Any] = {"href": href}
    if in_parts:
        count = -(-size // hub.part_size)
        upload["href"] = f"{hub.endpoint}/api/complete_multipart?ticket={ticket}"
        upload["header"] = {"chunk_size": str(hub.part_size)}
        upload["header"] |= {str(n): f"{href}&part={n}" for n in range(1, count + 1)}
    verify = {"href": f"{hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"}
    return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}


@route("PUT", "/{id}/lfs/{sha256}", host="storage")
def put(ask: Ask) -> Answer:
    upload, body = _upload(ask), ask.request.body
    etag = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
    if (ask.parts[0], ask.parts[1]) != (upload.repo.id, upload.oid):
        return Answer(403)
    if upload.part_size is None:
        _keep(upload, body)
        return Answer(200, etag)
    number = int(ask.query["part"])
    start = (number - 1) * upload.part_size
    if not 0 < len(body) == min(upload.part_size, upload.size - start):
        raise Refusal(400, f"part {number} has {len(body)} bytes")
    upload.parts[number] = body
    return Answer(200, etag)


@route("POST", "/api/complete_multipart")
def complete(ask: Ask) -> Answer:
    upload, wanted = _upload(ask), ask.json()
    etags = {n: f'"{hashlib.md5(part).hexdigest()}"' for n, part in upload.parts.items()}
    if etags != {part["partNumber"]: part["etag"] for part in wanted["parts"]}:
        raise Refusal(400, "these aren't the parts that were uploaded")
    _keep(upload, b"".join(upload.parts[number] for number in sorted(upload.parts)))
    return reply({})


@route("POST", "/{id}.git/info/lfs/objects/verify")
def verify(ask: Ask) -> Answer:
    repo, wanted = ask.repo_to_write(by_pull_request=True), ask.json()
    if len(repo.lfs.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refusal(404, "the object isn't there")
    return reply({})


def _upload(ask: Ask) -> Upload:
    upload = ask.hub.uploads.get(ask.query.get("ticket", ""))
    if upload is None:
        raise Refusal(403, "no such ticket")
    return upload


def _keep(upload: Upload, content: bytes) -> None:
    if len(content) != upload.size or hashlib.sha256(content).hexdigest() != upload.oid:
        raise Refusal(400, "the content doesn't match its sha256")
    upload.repo.lfs[upload.oid] = content


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(ask: Ask) -> Answer:
    by_pull_request, rev = "create_pr" in ask.query, ask.parts[1]
    repo = ask.repo_to_write(by_pull_request=by_pull_request)
    head = ask.commit(repo, rev)
    lines = [json.loads(line) for line in ask.request.body.splitlines()]
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise Refusal(400, "a commit starts with a header that has a summary")
    header, parent = lines[0]["value"], lines[0]["value"].get("parentCommit")
    if parent is not None and by_pull_request:
        head = ask.commit(repo, parent)
    elif parent is not None and repo.resolve(parent) != head.oid:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines[1:]:
        _apply(ask, repo, files, line["key"], line["value"])
    message = header.get("description", "")
    author = ask.account().name
    oid = repo.store(head.oid, files, header["summary"], message, author)
    done = {"success": True, "commitOid": oid}
    done["commitUrl"] = f"{ask.hub.endpoint}/{repo.id}/commit/{oid}"
    pull = re.fullmatch(r"refs/pr/(\d+)", rev)
    if by_pull_request:
        number = len(repo.pulls) + 1
        repo.pulls[number] = oid
        done["pullRequestUrl"] = f"{ask.hub.endpoint}/{repo.id}/discussions/{number}"
    elif pull:
        repo.pulls[int(pull[1])] = oid
    elif rev in repo.branches:
        repo.branches[rev] = oid
    else:
        raise Refusal(400, f"{rev} is no branch")
    return reply(done)


def _apply(
    ask: Ask, repo: Repository, files: dict[str, File], key: str, value: dict[str, Any]
) -> None:
    """Apply one line of a commit to the files."""
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if len(content) > ask.hub.regular_limit:
            raise Refusal(400, f"Your push was rejected because {path} is too large for git")
        errors = check_card(content.decode())[0] if path == "README.md" else []
        if errors:
            raise Refusal(400, f"Your push was rejected: invalid metadata: {errors[0]}")
        files[path] = File(content)
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs:
            reason = "an LFS pointer pointed to a file that does not exist"
            raise Refusal(400, f"Your push was rejected because {reason}: {path}")
        files[path] = File(repo.lfs[value["oid"]], is_lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        inside = path.rstrip("/") + "/"
        gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(inside))]
        if not gone:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise Refusal(400, f"no operation is called {key}")


@route("POST", "/api/models/{id}/branch/{branch}")
def create_branch(ask: Ask) -> Answer:
    repo, name = ask.repo_to_write(), ask.parts[1]
    start = ask.commit(repo, ask.json().get("startingPoint", "main"))
    _add(repo.branches, name, start.oid)
    return reply({})


@route("DELETE", "/api/models/{id}/branch/{branch}")
def delete_branch(ask: Ask) -> Answer:
    repo, name = ask.repo_to_write(), ask.parts[1]
    if name == "main":
        raise Refusal(403, "main can't be deleted")
    return _remove(repo.branches, name)


@route("POST", "/api/models/{id}/tag/{rev}")
def create_tag(ask: Ask) -> Answer:
    repo, wanted = ask.repo_to_write(), ask.json()
    target = ask.commit(repo, ask.parts[1])
    _add(repo.tags, wanted["tag"], target.oid)
    repo.tag_messages[wanted["tag"]] = wanted.get("message")
    return reply({})


@route("DELETE", "/api/models/{id}/tag/{tag}")
def delete_tag(ask: Ask) -> Answer:
    return _remove(ask.repo_to_write().tags, ask.parts[1])


def _add(names: dict[str, str], name: str, oid: str) -> None:
    if name.startswith("refs/") or not re.fullmatch(r"(?!.*\.\.)[\w.+/-]+", name):
        raise Refusal(400, f"Invalid reference name: {name}")
    if name in names:
        raise Refusal(409, f"Reference {name} exists already")
    names[name] = oid


def _remove(names: dict[str, str], name: str) -> Answer:
    if names.pop(name, None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return reply({})
