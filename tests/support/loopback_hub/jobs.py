"""Answers about jobs: each runs for real, as a process of this machine, in a folder of its own."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.loopback_hub.routes import Ask, Refusal, reply, route
from tests.support.loopback_hub.rules import Answer

_START = "2026-01-01T00:00:00.000Z"


@dataclass
class Job:
    """A job, and its process."""

    spec: dict[str, Any]
    owner: str
    process: subprocess.Popen[bytes]
    log: Path
    is_told: bool = False  # all lines of one that has ended: the real log ends with the job

    def describe(self, number: str) -> dict[str, Any]:
        code = self.process.poll() if self.is_told else None
        stage = "RUNNING" if code is None else "ERROR" if code else "COMPLETED"
        return {
            "id": number,
            "createdAt": _START,
            "dockerImage": self.spec["dockerImage"],
            "command": self.spec["command"],
            "flavor": self.spec["flavor"],
            "owner": {"id": "1", "name": self.owner, "type": "user"},
            "status": {"stage": stage, "message": None},
        }


@route("POST", "/api/jobs/{name}")
def start(ask: Ask) -> Answer:
    account, spec, hub = ask.account(), ask.json(), ask.hub
    if hub.job_env is None or not account.owns(ask.parts[0]):
        raise Refusal(403, "no jobs here")
    number = f"{len(hub.jobs):024x}"
    folder = hub.job_folder / number
    folder.mkdir(parents=True)
    log = folder.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*spec["command"], *spec["arguments"]],
            cwd=folder,
            env={**hub.job_env, **spec["environment"], **spec.get("secrets", {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    hub.jobs[number] = Job(spec, ask.parts[0], process, log)
    return reply(hub.jobs[number].describe(number))


@route("GET", "/api/jobs/{name}/{number}")
def inspect(ask: Ask) -> Answer:
    return reply(_job(ask).describe(ask.parts[1]))


@route("GET", "/api/jobs/{name}/{number}/logs")
def logs(ask: Ask) -> Answer:
    """Give the lines so far, as events; the client asks again until the job has ended."""
    job = _job(ask)
    job.is_told = job.process.poll() is not None
    lines = job.log.read_text(errors="replace").split("\n")[:-1]
    events = [f"data: {json.dumps({'data': line, 'timestamp': _START})}\n\n" for line in lines]
    return Answer(200, {"Content-Type": "text/event-stream"}, "".join(events).encode())


def _job(ask: Ask) -> Job:
    job = ask.hub.jobs.get(ask.parts[1])
    if job is None:
        raise Refusal(404, "no such job")
    ask.account()
    return job
