"""Both layouts at once: the CompVis file in its own repository, each card linking the other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.errors import CheckFailedError, CheckpointNotFoundError
from vaeconv.publish.card import CARD, CardInputs, make_card, variants_of
from vaeconv.publish.meta import CardMeta
from vaeconv.publish.sections import Section, find_sections, merge_sections, usage_section


def link_cards(folder: Path, repo_id: str, original_repo_id: str, file: str) -> CardMeta:
    """Write both repositories into the section on use of the card in a folder.

    Args:
        folder: The release in the diffusers layout, with its card.
        repo_id: Where it goes.
        original_repo_id: Where the CompVis file goes.
        file: That file's name.

    Returns:
        What the card says, for the other one.

    Raises:
        CheckFailedError: There is no card, or it cannot be read.
    """
    from huggingface_hub import ModelCard

    path = folder / CARD
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckFailedError(
            f"its card cannot be read ({error})", where=str(path), hint="vaeconv card writes one"
        ) from error
    data: Any = card.data
    front = data.to_dict()
    title = next((line[2:] for line in card.text.splitlines() if line.startswith("# ")), "")
    base = front.get("base_model") or ""
    meta = CardMeta(
        title=title,
        repo_id=repo_id,
        original_repo_id=original_repo_id,
        original_file=file,
        license=str(front.get("license") or ""),
        base_model=base[0] if isinstance(base, list) else base,
        tags=tuple(front.get("tags") or ()),
    )
    usage = usage_section(meta, variants_of(folder))
    kept = [
        Section(name, text.partition("\n")[2].rpartition("\n")[0])
        for name, text in find_sections(card.text).items()
        if name != usage.name
    ]
    front_matter = card.content[: len(card.content) - len(card.text)]
    merged = merge_sections(card.text, [usage, *kept])
    replace_small_file(path, f"{front_matter}\n{merged}".encode(), durable=True)
    return meta


def stage_original(file: Path, folder: Path, meta: CardMeta, reports: Sequence[Path]) -> Path:
    """Put a CompVis file, its manifest, its reports and a card into a folder of their own.

    Args:
        file: The file.
        folder: An empty folder.
        meta: Of the other card.
        reports: Parity reports to publish beside it.

    Raises:
        CheckpointNotFoundError: There is no such file.
        InputError: The card cannot be made.
    """
    if not file.is_file():
        raise CheckpointNotFoundError("no such file", where=str(file))
    beside = file.with_name(f"{file.name}.vaeconv.json")
    for source in (file, *([beside] if beside.is_file() else []), *reports):
        target = folder / source.name
        try:
            target.hardlink_to(source)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    title = f"{meta.title}, CompVis layout" if meta.title else ""
    summary = (
        f"The weights of [{meta.repo_id}](https://huggingface.co/{meta.repo_id}) in the CompVis "
        "layout."
    )
    card = make_card(CardInputs(folder, meta=replace(meta, title=title, summary=summary)))
    replace_small_file(folder / CARD, card.encode(), durable=False)
    return folder
