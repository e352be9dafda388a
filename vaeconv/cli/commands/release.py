"""``vaeconv release``."""

from __future__ import annotations

import sys

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import ReleaseJob
from vaeconv.cli.output import Sink
from vaeconv.errors import VaeconvError


@declare
def release(job: ReleaseJob, sink: Sink) -> None:
    """Make a release: convert, prune, verify, eval, compare, card, push.

    All that it needs is looked at first, and what is missing is listed at once. Steps that are
    done, and whose inputs are the same, are not done again. The first gate that says no (parity,
    PSNR, rFID) ends it with exit code 4, and nothing is pushed unless all said yes.

    Examples:

        vaeconv release --init

        vaeconv release --until card

        vaeconv release release.toml --tag v1.2
    """
    from vaeconv.cli.github import tell_failure, tell_job
    from vaeconv.cli.render.release import (
        release_document,
        release_lines,
        release_notes,
        show_release_file,
        steps_table,
    )
    from vaeconv.publish.release.config import write_release_file
    from vaeconv.publish.release.release import StepResult
    from vaeconv.publish.release.release import release as run

    job.refuse_idle()
    if job.init:
        write_release_file(job.file)
        show_release_file(job.file, sink)
        return

    results: list[StepResult] = []

    def tell(step: str) -> None:
        if sink.is_shown:
            sys.stderr.write(f"{step} …\n")
            sys.stderr.flush()

    with sink.steps() as steps:
        try:
            done = run(
                job.file,
                first=job.first,
                last=job.last,
                tag=job.tag,
                sign=job.sign,
                dry_run=job.dry_run,
                on_step=tell,
                on_result=results.append,
                on_progress=steps.advance if sink.is_shown else None,
            )
        except VaeconvError as error:
            tell_failure(error, results)
            if results and sink.is_shown:
                sink.show("release", dict, lambda: [steps_table(results)])
            raise
    tell_job(done)
    sink.show(
        "release",
        lambda: release_document(done, dry_run=job.dry_run),
        lambda: release_lines(done, dry_run=job.dry_run, verbose=sink.verbose),
        notes=release_notes(done),
    )
