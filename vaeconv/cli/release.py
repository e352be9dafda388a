"""``vaeconv release``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeconv.cli.options import Json, Quiet, Verbose

if TYPE_CHECKING:
    from vaeconv.errors import VaeconvError
    from vaeconv.publish.release import Release


def release(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.toml", help="What to release, and its gates.")
    ] = Path("release.toml"),
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP",
            show_default=False,
            help="Do this step and those after it again, whatever is done.",
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--until", metavar="STEP", show_default=False, help="Stop after this step."),
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Write FILE with every key, its meaning and default.")
    ] = False,
    tag: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            show_default=False,
            help="Tag of this release: what {tag} in FILE stands for, and the tag of both commits "
            "where no value of FILE has {tag}. By default VAECONV_TAG, or the tag of the CI job "
            "(GitHub, GitLab), which fill in {tag} only.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            show_default=False,
            help="Sign what is published with a private key, PEM (pip install 'vaeconv\\[sign]').",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Look at everything that is needed, here and on the Hub, say which steps would "
            "run and which repositories would be made, and do nothing.",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a release: convert, prune, verify, eval, compare, card, push.

    All that it needs is looked at first, and what is missing is listed at once. Steps that are
    done, and whose inputs are the same, are not done again. The first gate that says no (parity,
    PSNR, rFID) ends it with exit code 4, and nothing is pushed unless all said yes.

    Examples:

        vaeconv release --init

        vaeconv release --until card

        vaeconv release release.toml --tag v1.2
    """  # fmt: skip
    from vaeconv.checkpoint.atomic import replace_small_file
    from vaeconv.cli.progress import StepProgress
    from vaeconv.cli.render import print_json, print_notes
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.errors import OutputExistsError, VaeconvError, one_line
    from vaeconv.names import check_ending
    from vaeconv.publish.release import release as run
    from vaeconv.publish.release_config import commented_file, read_release

    why = "--init only writes the file"
    refuse_idle(
        [
            Rule("--from", first is not None, not init, why),
            Rule("--until", last is not None, not init, why),
            Rule("--sign", sign is not None, not init, why),
            Rule("--dry-run", dry_run, not init, why),
        ]
    )
    if init:
        check_ending(file, (".toml",), "a release file")
        if file.exists():
            raise OutputExistsError("exists", where=str(file), hint="remove it, or name another")
        replace_small_file(file, commented_file().encode(), durable=False)
        if not quiet:
            sys.stdout.write(one_line(f"wrote {file}") + "\n")
        return
    shown = not (quiet or json)

    def tell(step: str) -> None:
        if shown:
            sys.stderr.write(f"{step} …\n")
            sys.stderr.flush()

    with StepProgress(enabled=shown) as steps:
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
                on_progress=steps.advance if shown else None,
            )
        except VaeconvError as error:
            _annotate(error)
            _tell_failure(error)
            raise
    _tell_ci(done)
    if json:
        print_json("release", _document(done, dry_run=dry_run))
    elif not quiet:
        print_notes(f"note: {one.repo_id}: {note}" for one in done.pushed for note in one.notes)
        lines = [
            f"{step.name}: {step.outcome}{_said({} if step.name == 'push' else step.facts)}"
            for step in done.steps
        ]
        lines += [f"  {one.repo_id} {one.oid} {one.url}".rstrip() for one in done.pushed]
        lines += [f"  {one.describe()}" for one in done.destinations]
        sys.stdout.writelines(one_line(line) + "\n" for line in lines)


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
