"""The real huggingface_hub in a process of its own, which does what it is told.

Run as a program it reads Python code, a JSON object a line, and answers each with the value of the
last expression, or with the exception and those behind it. The client's sleeps are noted, and not
slept.
"""

from __future__ import annotations

import ast
import json
import queue
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Failure:
    """An exception in the client's process."""

    types: tuple[str, ...]  # its class and those above it
    message: str
    status: int | None  # of its response, if it has one
    cause: Failure | None

    @property
    def type(self) -> str:
        return self.types[0]


@dataclass(frozen=True)
class Outcome:
    """What came of some code."""

    value: Any
    failure: Failure | None
    slept: list[float]


class Client:
    """The process, seen from the test's side; ``start`` makes one.

    Code finds ``api``, an ``HfApi``, the package as ``hub``, ``httpx2``, ``os`` and the names that
    a call passes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def begin(self, code: str, **names: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"code": code, "names": names}, default=str) + "\n")
        self._process.stdin.flush()

    def end(self, timeout: float = 60) -> Outcome:
        """Wait for the outcome of what was begun; ``queue.Empty`` if there is none in time."""
        data = json.loads(self._lines.get(timeout=timeout))
        return Outcome(data["value"], _failure(data["failures"]), data["slept"])

    def run(self, code: str, **names: Any) -> Outcome:
        self.begin(code, **names)
        return self.end()

    def get(self, code: str, **names: Any) -> Any:
        """Return the value of some code that must not fail."""
        outcome = self.run(code, **names)
        assert outcome.failure is None, outcome.failure
        return outcome.value

    def fail(self, code: str, **names: Any) -> Failure:
        """Return the exception of some code that must fail."""
        outcome = self.run(code, **names)
        assert outcome.failure is not None, outcome.value
        return outcome.failure

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)


@contextmanager
def start(env: Mapping[str, str], log: Path) -> Iterator[Client]:
    """Run a client until the end of the block; what it prints goes to a file."""
    command = [sys.executable, "-u", __file__]
    pipe = subprocess.PIPE
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=file, text=True) as run,
    ):
        try:
            yield Client(run)
        finally:
            run.kill()


def _failure(chain: list[dict[str, Any]]) -> Failure | None:
    failure = None
    for link in reversed(chain):
        failure = Failure(tuple(link["types"]), link["message"], link["status"], failure)
    return failure


def _describe(error: BaseException | None) -> list[dict[str, Any]]:
    chain = []
    while error is not None:
        types = [kind.__name__ for kind in type(error).__mro__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        chain.append({"types": types, "message": str(error), "status": status})
        error = error.__cause__
    return chain


def _evaluate(code: str, space: dict[str, Any]) -> Any:
    *statements, last = ast.parse(code).body
    exec(compile(ast.Module(statements, []), "<told>", "exec"), space)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<told>", "eval"), space)
    return exec(compile(ast.Module([last], []), "<told>", "exec"), space)


def _main() -> None:
    import os

    import httpx2
    import huggingface_hub
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    slept: list[float] = []
    for module in (_http, file_download):
        module.time = types.SimpleNamespace(**{**vars(time), "sleep": slept.append})  # type: ignore[attr-defined]
    out, sys.stdout = sys.stdout, sys.stderr
    space = {"api": huggingface_hub.HfApi(), "hub": huggingface_hub, "httpx2": httpx2, "os": os}
    for line in sys.stdin:
        told = json.loads(line)
        slept.clear()
        value, failures = None, []
        try:
            value = _evaluate(told["code"], space | told["names"])
        except Exception as error:  # noqa: BLE001 - all of them are what is asked for
            failures = _describe(error)
        answer = {"value": value, "failures": failures, "slept": slept}
        print(json.dumps(answer, default=str), file=out)


if __name__ == "__main__":
    _main()
