"""Who may ask what, and which function answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.loopback_hub.repository import Commit, Repository
from tests.support.loopback_hub.rules import Answer, Request

if TYPE_CHECKING:
    from tests.support.loopback_hub.hub import LoopbackHub


@dataclass(frozen=True)
class Account:
    """Whom a token stands for, and what it lets them do."""

    name: str
    orgs: tuple[str, ...] = ()
    can_write: bool = True
    only: str | None = None  # the one repository it is for, where it makes none
    scopes: Mapping[str, Sequence[str]] | None = None  # rights of a fine-grained token, by name

    def owns(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)


class Refusal(Exception):
    """An answer that says why not."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["X-Error-Message"] = message
        if code:
            headers["X-Error-Code"] = code
        self.answer = reply({"error": message}, status, headers)


def reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    named = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, named, json.dumps(data).encode())


@dataclass
class Ask:
    """A request, understood as far as all of them are."""

    hub: LoopbackHub
    request: Request
    parts: tuple[str, ...]  # what stands for the names in the route
    query: dict[str, str]

    def json(self) -> dict[str, Any]:
        data = json.loads(self.request.body)
        if not isinstance(data, dict):
            raise Refusal(400, "not an object")
        return data

    def account(self) -> Account:
        account = self._known()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        return account

    def repo(self) -> Repository:
        """Return the repository in the path, if the one who asks may see it."""
        repo_id, account = self.parts[0], self._known()
        if self.request.path.startswith(("/datasets/", "/api/datasets/")):
            repo_id = f"datasets/{repo_id}"
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._reaches(account, repo_id)):
            if account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def repo_to_write(self, *, by_pull_request: bool = False) -> Repository:
        """Return the repository in the path, if the one who asks may push to it."""
        repo, account = self.repo(), self.account()
        if not account.can_write:
            raise Refusal(403, "You must use a write token to upload to a repository.")
        if not by_pull_request and not self._reaches(account, repo.id):
            hint = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise Refusal(403, f"Forbidden: {hint}")
        return repo

    def commit(self, repo: Repository, rev: str) -> Commit:
        if repo.resolve(rev) is None:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return repo.commit(rev)

    def _known(self) -> Account | None:
        if "authorization" not in self.request.headers:
            return None
        account = self.hub.tokens.get(self.request.token or "")
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    @staticmethod
    def _reaches(account: Account | None, repo_id: str) -> bool:
        if account is None or account.only not in (None, repo_id):
            return False
        return account.owns(repo_id.split("/")[0])


Function = Callable[[Ask], Answer]
_NAMES = {"{id}": "([^/]+/[^/]+?)", "{path}": "(.+)"}
_ROUTES: list[tuple[str, str, re.Pattern[str], Function]] = []


def route(methods: str, path: str, host: str = "hub") -> Callable[[Function], Function]:
    """Register what answers requests for a path, where ``{...}`` stands for one part of it."""
    pieces = re.split(r"(\{\w+\})", path)
    pattern = "".join(
        _NAMES.get(piece, "([^/]+)") if piece.startswith("{") else re.escape(piece)
        for piece in pieces
    )

    def register(function: Function) -> Function:
        for method in methods.split():
            _ROUTES.append((method, host, re.compile(pattern), function))
        return function

    return register


def answer(hub: LoopbackHub, request: Request) -> Answer:
    """Do what a request asks for."""
    url = urlsplit(request.path)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    for method, host, pattern, function in _ROUTES:
        match = pattern.fullmatch(url.path)
        if (method, host) == (request.method, request.host) and match:
            parts = tuple(unquote(part) for part in match.groups())
            try:
                return function(Ask(hub, request, parts, query))
            except Refusal as refusal:
                return refusal.answer
    hub.unserved.append(request)
    return Refusal(404, "Sorry, we can't find the page you are looking for.").answer
