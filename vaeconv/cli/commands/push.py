"""``vaeconv push``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import PushJob
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.weights.idle_options import Rule, refuse_idle

Folder = Annotated[Path, Doc("Folder to publish.", "DIR")]
RepoId = Annotated[str, Doc("Repository on the Hub: owner/name.", "REPO_ID")]


@declare
def push(
    folder: Folder, repo_id: RepoId, options: PushOptions, job: PushJob, *, sink: Sink
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
    """
    from vaeconv.cli.render.push import push_lines, push_notes
    from vaeconv.publish.hub.originals import Original, push_both
    from vaeconv.publish.hub.push import push as run

    why = "--no-parity wants none"
    refuse_idle([Rule("--report", bool(options.reports), options.parity, why)])
    with sink.steps() as steps:
        options = replace(options, on_progress=steps.advance if sink.is_shown else None)
        done = (
            push_both(folder, repo_id, Original(*job.original), options, dry_run=job.dry_run)
            if job.original
            else (run(folder, repo_id, options, dry_run=job.dry_run),)
        )
    first, *others = ({**one._asdict(), "dry_run": job.dry_run} for one in done)
    names = sink.verbose or job.dry_run
    sink.show(
        "push",
        lambda: {**first, "original": others[0] if others else None},
        lambda: [
            line for one in done for line in push_lines(one, dry_run=job.dry_run, names=names)
        ],
        notes=[note for one in done for note in push_notes(one)],
    )
