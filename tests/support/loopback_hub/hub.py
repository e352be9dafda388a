"""The loopback Hub itself: its state, and what tests do with it."""

from __future__ import annotations

import os
import re
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Imported for the routes that they register.
from tests.support.loopback_hub import accounts, reading  # noqa: F401
from tests.support.loopback_hub.jobs import Job
from tests.support.loopback_hub.pushing import Upload, is_lfs
from tests.support.loopback_hub.repository import File, Repository
from tests.support.loopback_hub.routes import Account, answer
from tests.support.loopback_hub.rules import Action, Answer, Request, Rule
from tests.support.loopback_hub.wire import Server

MIB = 1 << 20
# What would lead a client elsewhere, or make it another one than the test wants.
_FOREIGN = re.compile(
    r"(HF|HUGGING_?FACE(_HUB)?|ACTIONS|GITHUB)_.*|.*_proxy|DISABLE_TELEMETRY", re.IGNORECASE
)


class LoopbackHub:
    """Two servers and all that they know; use it as a context manager.

    Args:
        tokens: Whom the tokens stand for: an account, or the name of one.
        multipart_over: Uploads of more bytes are made in parts.
        part_size: Bytes of each part but the last.
        regular_limit: Files of more bytes are LFS files, whatever their name.
    """

    def __init__(
        self,
        tokens: Mapping[str, str | Account] | None = None,
        *,
        multipart_over: int = 2 * MIB,
        part_size: int = MIB,
        regular_limit: int = 10 * MIB,
    ) -> None:
        self.tokens = {
            token: Account(who) if isinstance(who, str) else who
            for token, who in (tokens or {}).items()
        }
        self.multipart_over = multipart_over
        self.part_size = part_size
        self.regular_limit = regular_limit
        self.repos: dict[str, Repository] = {}
        self.others: set[str] = set()  # such as "datasets/user/name"
        self.trusted: set[tuple[str, str]] = set()
        self.uploads: dict[str, Upload] = {}
        self.jobs: dict[str, Job] = {}
        self.job_env: Mapping[str, str] | None = None
        self.job_folder = Path()
        self.requests: list[Request] = []
        self.unserved: list[Request] = []
        self.rules: list[Rule] = []
        self.stopped = threading.Event()
        self._bugs: list[str] = []
        self._lock = threading.RLock()
        self._servers = [Server(self, "hub"), Server(self, "storage")]
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.storage_endpoint = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> LoopbackHub:
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stopped.set()
        for job in self.jobs.values():
            job.process.kill()
            job.process.wait()
        for server in self._servers:
            server.stop()
        if self._bugs and kind is None:
            raise AssertionError("the loopback Hub failed:\n" + "\n".join(self._bugs))

    # For clients

    def env(self, home: Path, token: str | None = "", **more: str) -> dict[str, str]:
        """Return an environment in which a new process talks to this Hub.

        Args:
            home: The client's cache and settings.
            token: Its token; the Hub's first one unless given, none at all if None.
            more: More variables, or other values.
        """
        if token == "":
            token = next(iter(self.tokens), None)
        env = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }
        if token is not None:
            env["HF_TOKEN"] = token
        return env | more

    def run_jobs(self, folder: Path, env: Mapping[str, str]) -> None:
        """Run the jobs that are asked for, in a folder and with an environment."""
        self.job_folder, self.job_env = folder, env

    def trust(self, id_token: str, repo_id: str) -> None:
        """Exchange an id token for one that may push to a repository."""
        self.trusted.add((id_token, repo_id))

    # What's there

    def create_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, *, private: bool = False
    ) -> Repository:
        """Make a repository without a client; with files it has one commit of them."""
        with self._lock:
            repo = self.repos[repo_id] = Repository(repo_id, private)
            if files:
                self.move_head(repo_id, files)
        return repo

    def repo(self, repo_id: str) -> Repository:
        return self.repos[repo_id]

    def move_head(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, branch: str = "main"
    ) -> str:
        """Commit to a branch as somebody else, and return the commit."""
        with self._lock:
            repo = self.repos[repo_id]
            head = repo.commit(branch)
            added = {}
            for path, content in (files or {"by-somebody-else.txt": head.oid.encode()}).items():
                lfs = is_lfs(path, len(content), self.regular_limit)
                added[path] = file = File(content, lfs)
                if lfs:
                    repo.lfs[file.sha256] = content
            oid = repo.store(head.oid, {**head.files, **added}, "Move on", author="somebody")
            repo.branches[branch] = oid
        return oid

    # Faults and what was asked

    def add_rule(self, *actions: Action, **where: Any) -> Rule:
        """Add a rule; see ``rules.Rule`` for what it says where."""
        rule = Rule(actions, **where)
        with self._lock:
            self.rules.append(rule)
        return rule

    def asked(self, method: str = "", path: str = "", host: str = "") -> list[Request]:
        """Return the requests so far that match, as rules do."""
        wanted = Rule((), method, path, host)
        with self._lock:
            return [request for request in self.requests if wanted.matches(request)]

    # For the servers

    def actions_for(self, request: Request) -> tuple[Action, ...]:
        """Note a request, and find out what is to happen to it."""
        if request.path == "/api/agent-harnesses":  # the client's own business
            return ()
        with self._lock:
            self.requests.append(request)
            rule = next((rule for rule in self.rules if rule.applies(request)), None)
        return rule.actions if rule else ()

    def answer(self, request: Request) -> Answer:
        try:
            with self._lock:
                return answer(self, request)
        except Exception:  # noqa: BLE001 - it is raised when the Hub stops
            self._bugs.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return Answer(501)  # which no client tries again
