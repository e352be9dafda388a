"""Publish a folder as one commit, and never as two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vaeconv.common.leftovers import scratch_folder
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import plural
from vaeconv.errors import CheckFailedError
from vaeconv.publish.card.card import CARD
from vaeconv.publish.documents import parity_reports, read_parity
from vaeconv.publish.files import ReleaseFile, checked_files, hash_file
from vaeconv.publish.hub.access import look
from vaeconv.publish.hub.commit import commit_files
from vaeconv.publish.hub.published import card_line, with_published_card
from vaeconv.publish.hub.push_options import PushOptions, check_options
from vaeconv.publish.hub.repository import Remote, differing, fetch, with_remote
from vaeconv.publish.hub.session import Deadline
from vaeconv.publish.hub.stale import find_outdated, loaded_file, other_variants, weights_of
from vaeconv.publish.selection import select_files
from vaeconv.publish.signing import SIGNATURE, settle_signature


class Pushed(NamedTuple):
    """Result of a push, or of its dry run.

    Attributes:
        repo_id: ``owner/name``.
        revision: The branch.
        oid: Commit that has these files; None for a dry run, or if there is none yet.
        url: Address of the commit or pull request; empty if there is none.
        changed: Paths that were new or different.
        unchanged: Paths that were there already.
        tag: The tag that stands on the commit; None for none.
        is_new: True if a commit was made.
        is_verified: True if the published files were downloaded and compared.
        replaced: Those of the changed paths that were there, and different.
        deleted: Paths that were there of an older release, and would win over the new files or
            contradict them.
        left_out: Paths in the folder that are never published.
        creates: True if the repository is, or would be, created.
        is_private: True if the repository is private; None if its namespace decides.
        notes: Notes and warnings for the user.

    Example:
        >>> done = push("release-files", "user/my-vae", PushOptions(parity=False), dry_run=True)
        >>> done.changed, done.is_new
        (('README.md', 'config.json', 'diffusion_pytorch_model.safetensors'), False)
    """

    repo_id: str
    revision: str
    oid: str | None
    url: str
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    tag: str | None
    is_new: bool
    is_verified: bool = False
    replaced: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    creates: bool = False
    is_private: bool | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = f"{plural(len(self.changed), 'file')} changed, {len(self.unchanged)} unchanged"
        verb = "published to" if self.is_new else "nothing published to"
        tag = f", tag {self.tag}" if self.tag else ""
        return f"{verb} {self.repo_id}: {files}{tag}" + (f"\n  {self.url}" if self.url else "")


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PushOptions | None = None,
    *,
    dry_run: bool = False,
) -> Pushed:
    """Publish a folder: local checks, then exactly one commit, then the tag.

    A commit names the head that it follows, so what somebody else pushed in between is never
    overwritten. Where an answer is lost, the repository is compared with the files before anything
    is done again.

    Args:
        folder: Folder of weights, config, card and images.
        repo_id: ``owner/name``.
        options: Options of the push.
        dry_run: Check everything here, look at the repository, and change nothing.

    Raises:
        CheckFailedError: The release may not be published as it is.
        HubError: The Hub refused, or did not answer.
        UsageError: The options do not fit together.
        OutputError: There is nothing to publish.
        CheckpointNotFoundError: The folder does not exist.

    Example:
        >>> print(push("release-files", "user/my-vae", PushOptions(parity=False), dry_run=True))
        nothing published to user/my-vae: 3 files changed, 0 unchanged
    """
    options = options_of(PushOptions, options)
    check_options(repo_id, options)
    deadline = Deadline(options.timeout)
    folder = Path(folder)
    files = checked_files(folder, options)
    return publish_files(folder, files, repo_id, options, deadline, dry_run=dry_run)


def publish_files(
    folder: Path,
    files: Sequence[ReleaseFile],
    repo_id: str,
    options: PushOptions,
    deadline: Deadline,
    *,
    dry_run: bool = False,
) -> Pushed:
    """Publish files of a folder that were checked, signed where that is wanted.

    Raises:
        HubError: The Hub refused, or did not answer.
        InputError: The key cannot be used.
    """
    reports = (options.reports or parity_reports(folder)) if options.parity else ()
    unproven = [
        f"{path.name} could not prove {one}"
        for path in reports
        for one in read_parity(path).unproven
    ]
    with scratch_folder() as room:
        if options.sign:
            target = (room if dry_run else folder) / SIGNATURE
            files = _with_signature(folder, files, repo_id, options, deadline, target)
        done = push_files(files, repo_id, options, deadline, dry_run=dry_run)
    return done._replace(
        left_out=tuple(select_files(folder, exclude=options.exclude).left_out),
        notes=(*unproven, *done.notes),
    )


def _with_signature(
    folder: Path,
    files: Sequence[ReleaseFile],
    repo_id: str,
    options: PushOptions,
    deadline: Deadline,
    target: Path,
) -> list[ReleaseFile]:
    """Sign the files, or take the signature that fits: from the folder, or the one published."""
    assert options.sign is not None
    listed = {file.local for file in files}
    with scratch_folder() as room:
        signature = settle_signature(
            folder,
            options.sign,
            target,
            leave_out=[one for one in folder.rglob("*") if one.is_file() and one not in listed],
            candidates=(
                lambda: folder / SIGNATURE,
                lambda: fetch(SIGNATURE, repo_id, options, deadline, room),
            ),
        )
        if signature.parent == room:
            signature = Path(shutil.copyfile(signature, target))
    return sorted([*files, hash_file(signature, SIGNATURE)], key=lambda file: file.path)


def push_files(
    files: Sequence[ReleaseFile],
    repo_id: str,
    options: PushOptions,
    deadline: Deadline | None = None,
    *,
    dry_run: bool = False,
) -> Pushed:
    """Publish files that were checked."""
    return with_remote(
        repo_id,
        options,
        deadline or Deadline(options.timeout),
        lambda remote: _run(remote, files, options, dry_run=dry_run),
    )


def _run(
    remote: Remote, files: Sequence[ReleaseFile], options: PushOptions, *, dry_run: bool
) -> Pushed:
    """Look at what is there, commit what differs, and put the tag."""
    report = options.on_progress or (lambda step, done, total: None)
    found = look(remote, options, namesakes=dry_run)
    head = found.head
    if head is None and not dry_run:
        head = remote.find_head(private=options.private, may_create=True)
    tree = remote.tree(head)
    with scratch_folder() as room:
        own = {file.path: file.blob for file in files}.get(CARD)
        files, notes = with_published_card(remote, files, tree, head, options, room)
        changed = differing(files, tree)
        pushed = {file.path: file.sha256 for file in files}
        gone = find_outdated(
            pushed, tree, lambda path: remote.download(path, head, room / "published")
        )
        if changed:
            notes += [f"{path} stays, of an earlier push" for path in other_variants(pushed, tree)]
        result = Pushed(
            remote.repo_id,
            remote.revision,
            oid=None if dry_run else head,
            url="",
            changed=tuple(file.path for file in changed),
            unchanged=tuple(file.path for file in files if file not in changed),
            tag=None,
            is_new=False,
            replaced=tuple(file.path for file in changed if file.path in tree),
            deleted=tuple(gone),
            creates=not found.exists,
            is_private=found.private,
            notes=(*found.notes, *notes),
        )
        if options.tag:
            remote.check_tag(options.tag, found.tagged, None if changed or gone else head)
        if dry_run:
            return result
        if changed or gone:
            made = remote.find_pull(files, gone) if options.create_pr else None
            is_new = made is None
            if made is None:
                is_own = any(file.path == CARD and file.blob == own for file in changed)
                report("uploading", 0, 0)
                made = commit_files(
                    remote,
                    changed,
                    head,
                    tree,
                    gone=gone,
                    description=card_line(own) if own and is_own else "",
                    message=options.message,
                    create_pr=options.create_pr,
                )
            result = result._replace(oid=made.oid, url=made.url, is_new=is_new)
        if options.tag and result.oid:
            remote.put_tag(options.tag, result.oid)
            result = result._replace(tag=options.tag)
        if options.verify and result.oid:
            _verify(remote, files, result.oid, report)
            result = result._replace(is_verified=True)
    return result


def _verify(
    remote: Remote,
    files: Sequence[ReleaseFile],
    oid: str,
    report: Callable[[str, int, int], None],
) -> None:
    """Download what was published, compare, and see that it is what diffusers loads.

    Raises:
        CheckFailedError: A file came back different, or another one is loaded in its place.
    """
    paths = remote.tree(oid).keys()
    pushed = {file.path for file in files}
    for weights in {one for one in map(weights_of, pushed) if one}:
        for safetensors in (True, False):
            first = loaded_file(weights, paths, safetensors=safetensors)
            if first and first not in pushed:
                raise CheckFailedError(
                    f"diffusers loads {first}, which was not published", where=remote.repo_id
                )
    with scratch_folder() as folder:
        for number, file in enumerate(files):
            report("downloading", number, len(files))
            path = remote.download(file.path, oid, folder)
            if hash_file(path, file.path).sha256 != file.sha256:
                raise CheckFailedError(
                    f"{file.path} came back different from what was published",
                    where=remote.repo_id,
                )
            path.unlink()
