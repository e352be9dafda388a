"""The card that is published, and what becomes of it when a release is pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaeconv.errors import CheckFailedError, InputError, counted
from vaeconv.publish.card.card import CARD
from vaeconv.publish.card.check import check_card
from vaeconv.publish.card.merge import merge_cards
from vaeconv.publish.files import ReleaseFile, hash_file
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.repository import Remote, differing


def card_line(blob: str) -> str:
    """The line of a commit that knows a card again: of a folder, and not edited since."""
    return f"vaeconv-card: {blob}"


def with_published_card(
    remote: Remote,
    files: Sequence[ReleaseFile],
    tree: Mapping[str, Any],
    head: str | None,
    options: PushOptions,
    room: Path,
) -> tuple[list[ReleaseFile], list[str]]:
    """Put the card that is published into the one that is pushed.

    One that a push published as it was in its folder has no words of people: the one here replaces
    it. The commit names the head that it was read at, so that no later edit is lost.

    Raises:
        CheckFailedError: They contradict each other, or the card of both may not be published.
    """
    card = next((file for file in files if file.path == CARD), None)
    if card is None or head is None or options.card == "replace" or not differing([card], tree):
        return list(files), []
    if CARD not in tree:
        return list(files), []
    if remote.says(card_line(tree[CARD].blob_id)):
        return list(files), []
    where = f"{remote.repo_id}/{CARD}"
    place = remote.download(CARD, head, room)
    try:
        there = place.read_bytes().decode("utf-8")
        merged = merge_cards(card.local.read_bytes().decode("utf-8"), there, where)
    except (UnicodeDecodeError, InputError) as error:
        reason = error.what if isinstance(error, InputError) else "it is not UTF-8 text"
        raise CheckFailedError(
            f"cannot be merged: {reason}",
            where=where,
            hint="fix it on the Hub, or pass --card replace to publish the one here",
        ) from error
    path = room / "merged" / CARD
    path.parent.mkdir()
    path.write_bytes(merged.text.encode())
    problems = check_card(path.parent, published={*tree, *(file.path for file in files)})
    if problems:
        what, details = counted("the card of both may not be published", problems)
        raise CheckFailedError(what, where=where, details=details)
    linked = hash_file(path, CARD)
    return [linked if file is card else file for file in files], merged.notes
