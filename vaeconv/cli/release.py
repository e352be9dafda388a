"""``vaeconv release``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vaeconv.cli.declare import declare
from vaeconv.cli.sink import Sink
from vaeconv.effects import Rule, refuse_idle
from vaeconv.errors import OutputExistsError, VaeconvError
from vaeconv.option_docs import Doc

if TYPE_CHECKING:
    from vaeconv.publish.release import Release

File = Annotated[
    Path, Doc("Release file: what to release, and its gates.", "FILE.toml", is_argument=True)
]
First = Annotated[
    str | None,
    Doc("Do this step and those after it again, even if they are done.", "STEP", flags=("--from",)),
]
Last = Annotated[str | None, Doc("Stop after this step.", "STEP", flags=("--until",))]
Init = Annotated[bool, Doc("Write a release file with every key, its meaning and its default.")]
Tag = Annotated[
    str | None,
    Doc(
        "Tag of this release: stands for {tag} in the release file, and tags both commits if no "
        "value has {tag}. By default VAECONV_TAG, or the tag of the CI job (GitHub, GitLab), "
        "which only fill in {tag}.",
        "TAG",
    ),
]
Sign = Annotated[
    Path | None,
    Doc(
        "Private key in PEM to sign what is published with (pip install 'vaeconv\\[sign]').",
        "KEY",
    ),
]
DryRun = Annotated[
    bool,
    Doc(
        "Look at everything that is needed, here and on the Hub, print which steps would run and "
        "which repositories would be created, and do nothing."
    ),
]


@declare
def release(
    sink: Sink,
    file: File = Path("release.toml"),
    first: First = None,
    last: Last = None,
    init: Init = False,
    tag: Tag = None,
    sign: Sign = None,
    dry_run: DryRun = False,
) -> None:
    """Make a release: convert, prune, verify, eval, compare, card, push.

    All that it needs is looked at first, and what is missing is listed at once. Steps that are
    done, and whose inputs are the same, are not done again. The first gate that says no (parity,
    PSNR, rFID) ends it with exit code 4, and nothing is pushed unless all said yes.

    Examples:

        vaeconv release --init

        vaeconv release --until card

        vaeconv release release.toml --tag v1.2
    """
    from vaeconv.publish.release import release as run
    from vaeconv.publish.release_config import read_release

    given = {"--from": first, "--until": last, "--sign": sign, "--dry-run": dry_run}
    why = "--init only writes the file"
    refuse_idle(Rule(name, bool(value), not init, why) for name, value in given.items())
    if init:
        _write_file(file, sink)
        return

    def tell(step: str) -> None:
        if sink.is_shown:
            sys.stderr.write(f"{step} …\n")
            sys.stderr.flush()

    with sink.steps() as steps:
        try:
            problems: list[VaeconvError] = []
            config = read_release(file, problems)
            done = run(
                config,
                file.absolute().parent,
                first=first,
                last=last,
                tag=tag,
                found=problems,
                sign=sign,
                dry_run=dry_run,
                on_step=tell,
                on_progress=steps.advance if sink.is_shown else None,
            )
        except VaeconvError as error:
            _annotate(error)
            _tell_failure(error)
            raise
    _tell_ci(done)
    sink.show(
        "release",
        lambda: _document(done, dry_run=dry_run),
        lambda: _lines(done),
        notes=[f"note: {one.repo_id}: {note}" for one in done.pushed for note in one.notes],
    )


def _write_file(file: Path, sink: Sink) -> None:
    from vaeconv.checkpoint.atomic import replace_small_file
    from vaeconv.names import check_ending
    from vaeconv.publish.release_config import commented_file

    check_ending(file, (".toml",), "a release file")
    if file.exists():
        raise OutputExistsError("exists", where=str(file), hint="remove it, or name another")
    replace_small_file(file, commented_file().encode(), durable=False)
    sink.show("release", lambda: {"written": [str(file)]}, lambda: [f"wrote {file}"])


def _lines(done: Release) -> Iterator[str]:
    for step in done.steps:
        yield f"{step.name}: {step.outcome}{_said({} if step.name == 'push' else step.facts)}"
    yield from (f"  {one.repo_id} {one.oid} {one.url}".rstrip() for one in done.pushed)
    yield from (f"  {one.describe()}" for one in done.destinations)


def _said(facts: dict[str, Any]) -> str:
    text = "; ".join(f"{key} {_plain(value)}" for key, value in facts.items() if value)
    return f" ({text})" if text else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join("plain" if one is None else _plain(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _document(done: Release, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "folder": str(done.folder),
        "steps": [step._asdict() for step in done.steps],
        "pushed": [
            {**one._asdict(), "changed": list(one.changed), "unchanged": list(one.unchanged)}
            for one in done.pushed
        ],
        **({"repositories": [one._asdict() for one in done.destinations]} if dry_run else {}),
    }


def _annotate(error: VaeconvError) -> None:
    """Show the failure at the job, where this runs in one."""
    from vaeconv.parity.report import annotation

    said = annotation("\n".join([str(error), *error.details]), "release")
    if said:
        sys.stderr.write(said + "\n")


def _tell_failure(error: VaeconvError) -> None:
    """Write the verdict into the job's summary, and all that is wrong."""
    from vaeconv.errors import one_line

    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        head, *details = (one_line(one).replace("`", "'") for one in (str(error), *error.details))
        lines = [f"**stopped**: `{head}`", "", *(f"- `{one}`" for one in details)]
        _append(summary, "\n".join(["### vaeconv release", "", *lines]).rstrip() + "\n")


def _tell_ci(done: Release) -> None:
    """Write the job's summary and outputs (``GITHUB_STEP_SUMMARY``, ``GITHUB_OUTPUT``)."""
    from vaeconv.errors import one_line
    from vaeconv.evaluate.tables import format_markdown
    from vaeconv.publish.documents import read_document

    summary, output = os.environ.get("GITHUB_STEP_SUMMARY"), os.environ.get("GITHUB_OUTPUT")
    if summary:
        lines = ["### vaeconv release", "", f"**{_verdict(done)}**", ""]
        lines += [f"- {step.name}: {step.outcome}" for step in done.steps]
        lines += [
            f"- [{one.repo_id}](https://huggingface.co/{one.repo_id}) at {one.oid}"
            for one in done.pushed
        ]
        evaluation = done.folder / "diffusers" / "eval.json"
        if evaluation.is_file():
            lines += ["", format_markdown([read_document(evaluation, "eval")])]
        _append(summary, "\n".join(lines) + "\n")
    if output:
        facts = {
            "folder": one_line(str(done.folder)),
            "pushed": "true" if any(one.is_new for one in done.pushed) else "false",
            "repo_ids": " ".join(one.repo_id for one in done.pushed),
            "commits": " ".join(one.oid or "" for one in done.pushed),
        }
        _append(output, "".join(f"{key}={value}\n" for key, value in facts.items()))


def _verdict(done: Release) -> str:
    """Say in a few words what came of it."""
    if any(one.is_new for one in done.pushed):
        return "published"
    if done.pushed:
        return "nothing changed since it was published"
    return "not pushed"


def _append(path: str, text: str) -> None:
    from vaeconv.errors import OutputError

    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from error
