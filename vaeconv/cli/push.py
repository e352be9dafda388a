"""``vaeconv push``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeconv.cli.options import AllowZeros, Json, Quiet, Verbose

if TYPE_CHECKING:
    from vaeconv.publish.pushing import Pushed

CHECKS = "Checks"


def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder to publish.", show_default=False),
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hub.", show_default=False)
    ],
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="The branch; made where it is not there.")
    ] = "main",
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--no-private",
            show_default=False,
            help="Whether a repository that is made is private.",
        ),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr/--no-create-pr", help="Open a pull request instead.")
    ] = False,
    tag: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Tag the commit, such as v1.0."),
    ] = None,
    commit_message: Annotated[
        str | None, typer.Option(metavar="TEXT", show_default=False, help="Of the commit.")
    ] = None,
    repo_type: Annotated[str, typer.Option(metavar="TYPE", help="model.")] = "model",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", show_default=False, help="Publish only these; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", show_default=False, help="Leave these out; repeatable."),
    ] = None,
    follow_symlinks: Annotated[
        bool,
        typer.Option(
            "--follow-symlinks",
            help="Publish what links lead to also where that is outside DIR, as in a folder of the "
            "Hub's cache.",
        ),
    ] = False,
    original: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="REPO_ID FILE",
            show_default=False,
            help="Publish the CompVis file as well, in a repository of its own; each card leads to "
            "the other.",
        ),
    ] = None,
    card: Annotated[
        str,
        typer.Option(
            metavar="merge|replace",
            help="A card that people edited on the Hub: merge keeps their words and stops at a "
            "contradiction, replace publishes the one in DIR.",
        ),
    ] = "merge",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the folder, the token and the repository, say what would be added, "
            "replaced and deleted, and change nothing.",
        ),
    ] = False,
    allow_zeros: AllowZeros = False,
    parity: Annotated[
        bool,
        typer.Option(
            "--parity/--no-parity",
            rich_help_panel=CHECKS,
            help="Every file of weights must be in a report of vaeconv verify that passed.",
        ),
    ] = True,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=CHECKS,
            show_default=False,
            help="A parity report; by default parity*.json in DIR. Repeatable.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", rich_help_panel=CHECKS, help="Download what was published, and compare."
        ),
    ] = False,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            rich_help_panel=CHECKS,
            show_default=False,
            help="Sign with a private key, PEM (pip install 'vaeconv\\[sign]').",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, rich_help_panel=CHECKS, help="For everything."),
    ] = 3600.0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Publish a folder on the Hub as one commit, after checking that it may be.

    What is there already is not sent again, and where nothing changed, there is no commit. Weights
    of an older release that would be loaded in place of the new ones, and reports that no longer
    fit, are deleted in the same commit. The token is the client's own: hf auth login, HF_TOKEN, or
    OIDC in a CI job.

    Examples:

        vaeconv push out/ user/my-vae --dry-run

        vaeconv push out/ user/my-vae --tag v1.0 --verify

        vaeconv push out/ user/my-vae --original user/my-vae-original my-vae.safetensors

        vaeconv push out/ user/my-vae --create-pr
    """  # fmt: skip
    from vaeconv.cli.progress import StepProgress
    from vaeconv.cli.render import print_json
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.publish.originals import Original, push_both
    from vaeconv.publish.push_options import PushOptions
    from vaeconv.publish.pushing import push as run

    refuse_idle([Rule("--report", bool(report), parity, "--no-parity wants none")])
    shown = not (quiet or json)
    with StepProgress(enabled=shown) as steps:
        options = PushOptions(
            revision=revision,
            private=private,
            create_pr=create_pr,
            tag=tag,
            message=commit_message,
            repo_type=repo_type,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            follow_symlinks=follow_symlinks,
            card=card,
            parity=parity,
            allow_zeros=allow_zeros,
            reports=tuple(report or ()),
            sign=sign,
            verify=verify,
            timeout=timeout,
            on_progress=steps.advance if shown else None,
        )
        done = (
            push_both(folder, repo_id, Original(*original), options, dry_run=dry_run)
            if original
            else (run(folder, repo_id, options, dry_run=dry_run),)
        )
    if json:
        first, *others = ({**one._asdict(), "dry_run": dry_run} for one in done)
        print_json("push", {**first, "original": others[0] if others else None})
        return
    if not quiet:
        for one in done:
            _print(one, dry_run=dry_run, names=verbose or dry_run)


def _print(done: Pushed, *, dry_run: bool, names: bool) -> None:
    from vaeconv.cli.render import print_notes
    from vaeconv.errors import one_line

    if done.left_out:
        print_notes([f"note: never published, and left out: {', '.join(done.left_out)}"])
    print_notes(f"note: {note}" for note in done.notes)
    verb = "would publish" if dry_run else "published"
    if not (done.changed or done.deleted):
        lines = [f"nothing changed: {done.repo_id} has all {len(done.unchanged)} files"]
    elif not (done.is_new or dry_run):
        lines = [f"nothing changed: a pull request to {done.repo_id} has all files"]
    else:
        lines = [f"{verb} {len(done.changed)} files to {done.repo_id}, branch {done.revision}"]
    if dry_run or done.creates:
        lines.append(f"  {_state(done, dry_run=dry_run)}")
    if names:
        lines += [
            f"  {path}" + " (replaces another)" * (path in done.replaced) for path in done.changed
        ]
        lines += [f"  {path} (there)" for path in done.unchanged]
    gone = "would be deleted" if dry_run else "deleted"
    lines += [f"  {path} ({gone}: of an older release)" for path in done.deleted]
    if done.oid:
        lines.append(f"  commit {done.oid}{f', tag {done.tag}' if done.tag else ''}")
    if done.url:
        lines.append(f"  {done.url}")
    if done.is_verified:
        lines.append("  downloaded again, and equal")
    sys.stdout.writelines(one_line(line) + "\n" for line in lines)


def _state(done: Pushed, *, dry_run: bool) -> str:
    """Say whether the repository is there, and who may see it."""
    from vaeconv.publish.access import visibility

    verb = "is there"
    if done.creates:
        verb = "would be created" if dry_run else "was created"
    return f"the repository {verb}, {visibility(done.is_private)}"
