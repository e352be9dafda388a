"""Both layouts at once: the CompVis file in its own repository, each card leading to the other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.leftovers import scratch_folder
from vaeconv.common.option_checks import options_of
from vaeconv.errors import (
    CheckFailedError,
    CheckpointNotFoundError,
    InputError,
    UsageError,
    VaeconvError,
)
from vaeconv.publish.card.card import CARD, CardInputs, assemble_card
from vaeconv.publish.card.check import without_code
from vaeconv.publish.card.front_matter import join_card, read_card, split_card
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.card.sections import (
    Section,
    find_sections,
    inner_text,
    merge_sections,
    original_section,
    prose_sections,
    provenance_section,
)
from vaeconv.publish.documents import parity_reports, read_document, read_manifest, read_parity
from vaeconv.publish.files import checked_files, hash_file
from vaeconv.publish.hub.push import Pushed, publish_files
from vaeconv.publish.hub.push_options import PushOptions, check_options
from vaeconv.publish.hub.repository import fetch, list_published
from vaeconv.publish.hub.session import Deadline
from vaeconv.weights.detect import detect
from vaeconv.weights.manifest import MANIFEST
from vaeconv.weights.output_names import is_utf8

# What the cards of both repositories say alike.
_SHARED = ("usage", "original", "evaluation")


class Original(NamedTuple):
    """The CompVis layout of a release.

    Attributes:
        repo_id: ``owner/name`` of its repository.
        file: The file.
    """

    repo_id: str
    file: Path


def push_both(
    folder: Path,
    repo_id: str,
    original: Original,
    options: PushOptions | None = None,
    *,
    dry_run: bool = False,
) -> tuple[Pushed, Pushed]:
    """Publish a folder, and the CompVis file in a repository of its own: one commit to each.

    Everything is checked before anything is published. The card in the folder gets a section that
    leads to the file, and stays so; the other card is made from it, and of a card that is published
    there, what people wrote stays.

    Args:
        folder: The release in the diffusers layout.
        repo_id: ``owner/name`` of where it goes.
        original: The CompVis file, and where it goes.
        options: How; ``include`` and ``exclude`` are for the folder.
        dry_run: Check everything here, look at the repositories, and change nothing.

    Raises:
        CheckFailedError: The release may not be published as it is.
        HubError: The Hub refused, or did not answer.
        UsageError: The options do not fit together, or the file is of another layout.
        VaeconvError: The file cannot be read.
    """
    options = options_of(PushOptions, options)
    for name in (repo_id, original.repo_id):
        check_options(name, options)
    if repo_id == original.repo_id:
        raise UsageError("both layouts cannot go to one repository", where=repo_id)
    if not is_utf8(original.file.name):
        raise UsageError(
            "its name is not UTF-8", where=str(original.file), hint="no repository can have it"
        )
    _check_layout(original.file)
    deadline = Deadline(options.timeout)
    proofs = _find_proofs(folder, original.file, options)
    of_folder = options.reports or tuple(parity_reports(folder))
    options = replace(options, reports=tuple(dict.fromkeys([*of_folder, *proofs])))
    files = checked_files(folder, options)
    card = _linked_card(folder / CARD, original)
    with scratch_folder() as room:
        staged = room / original.repo_id.rpartition("/")[2]
        staged.mkdir()
        others = replace(
            options, include=(), exclude=(), reports=tuple(proofs), follow_symlinks=True
        )
        published = list_published(original.repo_id, others, deadline)
        if CARD in published:
            fetch(CARD, original.repo_id, others, deadline, staged)
        _stage(staged, card, repo_id, original, proofs)
        original_files = checked_files(staged, others, remote=published)
        path = room / CARD if dry_run else folder / CARD
        replace_small_file(path, card.encode(), durable=not dry_run)
        linked = [hash_file(path, CARD) if file.path == CARD else file for file in files]
        return (
            publish_files(folder, linked, repo_id, options, deadline, dry_run=dry_run),
            publish_files(
                staged, original_files, original.repo_id, others, deadline, dry_run=dry_run
            ),
        )


def _check_layout(file: Path) -> None:
    if not file.is_file():
        raise CheckpointNotFoundError("no such file", where=str(file))
    with open_checkpoint(file) as checkpoint:
        if detect(checkpoint).autoencoder.layout is not Layout.COMPVIS:
            raise UsageError(
                "it is not in the CompVis layout",
                where=str(file),
                hint=f"vaeconv convert DIR {file.with_suffix('.ckpt').name} writes that layout",
            )


def _linked_card(path: Path, original: Original) -> str:
    """Put the way to the CompVis file into the text of a card.

    A card in which people wrote a link to that repository is left as it is.
    """
    try:
        card = read_card(path)
    except InputError as error:
        raise CheckFailedError(error.what, where=str(path), hint=error.hint) from error
    sections = find_sections(card.body)
    address = rf"huggingface\.co/{re.escape(original.repo_id)}(?![\w-]|\.\w)"
    if "original" not in sections and re.search(address, card.body):
        return path.read_bytes().decode()
    found = original_section(original.repo_id, original.file.name)
    kept = [
        Section(name, inner_text(text)) for name, text in sections.items() if name != found.name
    ]
    place = next((n for n, one in enumerate(kept, 1) if one.name == "usage"), 0)
    return join_card(card.front, merge_sections(card.body, [*kept[:place], found, *kept[place:]]))


def _stage(
    staged: Path, card: str, repo_id: str, original: Original, proofs: Sequence[Path]
) -> None:
    """Fill a folder with the file, its manifest, the reports that prove it, and its card."""
    file = original.file
    manifest = file.with_name(f"{file.name}.{MANIFEST}")
    for source in (file, *([manifest] if manifest.is_file() else []), *proofs):
        _place(source, staged / source.name)
    parity = read_document(proofs[0], "verify") if proofs else None
    text = _original_card(staged, card, repo_id, parity)
    replace_small_file(staged / CARD, text.encode(), durable=False)


def _place(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # not allowed everywhere
        shutil.copyfile(source, target)


def _find_proofs(folder: Path, file: Path, options: PushOptions) -> list[Path]:
    """Find the reports that are about the file: among those given, in the folder, beside it.

    Of reports of one name the first is taken: they go into one folder.
    """
    reports = options.reports or (*parity_reports(folder), *parity_reports(file.parent))
    sha256 = hash_file(file, file.name).sha256
    found: dict[str, Path] = {}
    for report in reports:
        with suppress(VaeconvError):  # which the check of the release says
            if sha256 in read_parity(report).sha256s:
                found.setdefault(report.name, report)
    return list(found.values())


def _original_card(staged: Path, card: str, repo_id: str, parity: Any) -> str:
    """Make the CompVis file's card from the other one, or bring the published one up to date."""
    other = split_card(card)
    sections = find_sections(other.body)
    lines = without_code(other.body).splitlines()
    heading = next((line[2:] for line in lines if line.startswith("# ")), repo_id)
    meta = CardMeta(
        title=f"{heading}, CompVis layout",
        summary=f"The weights of [{repo_id}](https://huggingface.co/{repo_id}) in the CompVis "
        "layout.",
    )
    made = [
        *prose_sections(meta.title, meta),
        *(Section(name, inner_text(sections[name])) for name in _SHARED if name in sections),
        provenance_section(read_manifest(staged), parity, __version__),
    ]
    return assemble_card(CardInputs(staged, meta=meta), other.front, made)
