"""The card that is here and the one on the Hub, which people edit there: neither is lost."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any, NamedTuple

from vaeconv.common.wording import plural
from vaeconv.errors import CheckFailedError
from vaeconv.publish.card.front_matter import join_card, split_card
from vaeconv.publish.card.sections import PROSE, Section, find_sections, inner_text, merge_sections

# What vaeconv writes into front matter: a release has the say.
_GENERATED = (
    "library_name", "base_model", "base_model_relation", "datasets", "model-index", "inference",
)  # fmt: skip
# What neither side may change behind the other's back.
_DECIDED = ("license", "license_name", "license_link")
_SHOWN = 60  # characters of a line in a message


class Merged(NamedTuple):
    """Card that was merged from two.

    Attributes:
        text: The card.
        notes: What was kept of the Hub's, and what was replaced.
    """

    text: str
    notes: list[str]


def merge_cards(here: str, there: str, where: str) -> Merged:
    """Merge the card of a release with the one that is published.

    Outside of the sections that vaeconv marks the Hub's words stay; in front matter its keys stay,
    and the release has the say in what vaeconv generates.

    Args:
        here: The card of the release.
        there: The published one.
        where: What to call the published one in errors.

    Raises:
        CheckFailedError: Both have words that the other lacks, or they state different licences.
        InputError: The front matter of one is broken.
    """
    ours, theirs = split_card(here, "README.md"), split_card(there, where)
    conflicts = [
        f"{key} is {theirs.front[key]!r} on the Hub and {ours.front[key]!r} here"
        for key in _DECIDED
        if key in theirs.front and key in ours.front and theirs.front[key] != ours.front[key]
    ]
    added, lost = _differences(_own_lines(ours.body), _own_lines(theirs.body))
    if added and lost:
        conflicts.append(
            f"the card on the Hub says {_shown(lost[0])}, which the one here does not, and the one "
            f"here says {_shown(added[0])}, which the Hub's does not"
        )
    if conflicts:
        raise CheckFailedError(
            "the card was edited on the Hub: " + "; ".join(conflicts),
            where=where,
            hint="merge both in README.md, or pass --card replace to publish the one here",
        )
    notes = []
    front, replaced = _merge_front(ours.front, theirs.front)
    kept = [key for key in theirs.front if key not in ours.front]
    if kept:
        notes.append(f"README.md keeps {', '.join(kept)} of the card on the Hub")
    notes += [
        f"README.md: {key} stays {theirs.front[key]!r} as on the Hub, and is {value!r} here"
        for key, value in ours.front.items()
        if key in theirs.front and front[key] == theirs.front[key] != value and key != "tags"
    ]
    if added:
        notes.append(
            f"README.md adds {plural(len(added), 'line')} that the card on the Hub does not have"
        )
    notes += [
        f"README.md: {key} was {theirs.front[key]!r} on the Hub, and is {front[key]!r} now"
        for key in replaced
    ]
    body = ours.body
    if lost:
        notes.append(f"README.md keeps {plural(len(lost), 'line')} that people wrote on the Hub")
        sections = [
            Section(name, inner_text(text), is_prose=name in PROSE)
            for name, text in find_sections(ours.body).items()
        ]
        body = merge_sections(theirs.body, sections)
    if front == ours.front and body == ours.body:
        return Merged(here, notes)
    if front == theirs.front and theirs.is_first and theirs.has_front:
        plain = there.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        head = plain[: len(plain) - len(theirs.body)].lstrip()  # as people wrote it
        blank = theirs.body[: len(theirs.body) - len(theirs.body.lstrip("\n"))]
        return Merged(head + blank + body.lstrip("\n"), notes)
    return Merged(join_card(front, body), notes)


def _merge_front(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Merge front matter in the Hub's order; name the keys whose value on the Hub is replaced."""
    merged = dict(theirs)
    replaced = []
    for key, value in ours.items():
        if key == "tags" and isinstance(theirs.get(key), list) and isinstance(value, list):
            merged[key] = [*theirs[key], *(one for one in value if one not in theirs[key])]
        elif key not in theirs:
            merged[key] = value
        elif key in _GENERATED and theirs[key] != value:
            merged[key] = value
            if key != "model-index":
                replaced.append(key)
    return merged, replaced


def _own_lines(body: str) -> list[str]:
    """Lines outside of the sections that vaeconv writes; how many empty ones there are is alike."""
    for section in find_sections(body).values():
        body = body.replace(section, "")
    return [line.rstrip() for line in body.splitlines() if line.strip()]


def _differences(ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    """List the lines that are only here, and only there, in their place."""
    added, lost = [], []
    for kind, start, stop, begin, end in SequenceMatcher(
        None, theirs, ours, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            lost += theirs[start:stop]
            added += ours[begin:end]
    return added, lost


def _shown(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "…")
