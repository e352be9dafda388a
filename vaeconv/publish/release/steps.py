"""The steps of a release, in their order."""

from __future__ import annotations

from collections.abc import Callable

from vaeconv.publish.files import checked_files
from vaeconv.publish.hub.push import publish_files
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import Deadline
from vaeconv.publish.release.results import describe, measure, show
from vaeconv.publish.release.weights import convert_folder, prove, write_originals
from vaeconv.publish.release.work import Outcome, Work


def publish(work: Work) -> Outcome:
    """Push both folders; what the second would be refused for is refused before the first goes."""
    project = work.project
    table = project.config.push
    options = PushOptions(
        revision=table.revision,
        private=table.private,
        tag=table.tag,
        message=table.message,
        allow_zeros=project.config.source.allow_zeros,
        verify=table.verify,
        sign=work.sign,
        on_progress=work.on_progress,
    )
    repositories = {project.diffusers: table.repo_id, project.original: table.original_repo_id}
    wanted = [folder for folder, repo_id in repositories.items() if repo_id]
    files = {folder: checked_files(folder, options) for folder in wanted}
    pushed = tuple(
        publish_files(folder, listed, repositories[folder], options, Deadline(options.timeout))
        for folder, listed in files.items()
    )
    commits = {one.repo_id: one.oid for one in pushed}
    new = [one.repo_id for one in pushed if one.is_new]
    return Outcome((), {"commits": commits, "new": new}, pushed)


STEPS: dict[str, Callable[[Work], Outcome]] = {
    "convert": convert_folder,
    "prune": write_originals,
    "verify": prove,
    "eval": measure,
    "compare": show,
    "card": describe,
    "push": publish,
}
