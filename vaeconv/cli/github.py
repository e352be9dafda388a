"""A release in a job of GitHub Actions: annotation, summary and outputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vaeconv.errors import OutputError, VaeconvError, one_line
from vaeconv.publish.release.release import Release, StepResult


def tell_failure(error: VaeconvError, results: Sequence[StepResult]) -> None:
    """Show the failure at the job, and write all that is wrong and the steps into its summary."""
    from vaeconv.parity.report.ci import annotation

    if said := annotation("\n".join([error.text, *error.details]), "release"):
        sys.stderr.write(said + "\n")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        head, *details = (one_line(one).replace("`", "'") for one in (error.text, *error.details))
        lines = [f"**stopped**: `{head}`", "", *(f"- `{one}`" for one in details)]
        lines += ["", *_steps(results)] if results else []
        _append(summary, "\n".join(["### vaeconv release", "", *lines]).rstrip() + "\n")


def tell_job(done: Release) -> None:
    """Write the job's summary and outputs (``GITHUB_STEP_SUMMARY``, ``GITHUB_OUTPUT``)."""
    from vaeconv.evaluation.tables import format_markdown
    from vaeconv.publish.documents import read_document

    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        lines = ["### vaeconv release", "", f"**{_verdict(done)}**", ""]
        lines += [
            f"- [{one.repo_id}](https://huggingface.co/{one.repo_id}) at {one.oid}"
            for one in done.pushed
        ]
        for one in done.destinations:
            lines += [f"- {one.describe()}", *(f"  - {note}" for note in one.notes)]
        lines += ["", *_steps(done.steps)]
        evaluation = done.folder / "diffusers" / "eval.json"
        if evaluation.is_file():
            lines += ["", format_markdown([read_document(evaluation, "eval")])]
        _append(summary, "\n".join(lines) + "\n")
    if output := os.environ.get("GITHUB_OUTPUT"):
        facts = {
            "folder": one_line(str(done.folder)),
            "pushed": "true" if any(one.is_new for one in done.pushed) else "false",
            "repo_ids": " ".join(one.repo_id for one in done.pushed),
            "commits": " ".join(one.oid or "" for one in done.pushed),
        }
        _append(output, "".join(f"{key}={value}\n" for key, value in facts.items()))


def _steps(results: Sequence[StepResult]) -> list[str]:
    """Write the table of steps in Markdown."""
    rows = [f"| {step.name} | {step.outcome} | {step.seconds:.1f} s |" for step in results]
    return ["| step | outcome | time |", "|---|---|---:|", *rows]


def _verdict(done: Release) -> str:
    """Say in a few words what came of it."""
    if any(one.is_new for one in done.pushed):
        return "published"
    if done.pushed:
        return "nothing changed since it was published"
    if any(step.outcome == "to do" for step in done.steps):
        return "a dry run: nothing was done"
    return "not pushed"


def _append(path: str, text: str) -> None:
    try:
        with Path(path).open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from error
