"""Merging generated sections into a card: properties that hold for any card."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from vaeconv.publish.card.sections import PROSE, Section, find_sections, inner_text, merge_sections

NAMES = [*PROSE, "usage", "original", "evaluation", "pictures", "provenance"]
words = st.text("ab \n#`|<>-!", min_size=1, max_size=12).filter(lambda text: text.strip())
bodies = words.map(str.strip)


@st.composite
def made_sections(draw: st.DrawFn) -> list[Section]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    names.sort(key=NAMES.index)
    return [Section(name, draw(bodies), is_prose=name in PROSE) for name in names]


@st.composite
def cards(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A card, and what people wrote in it."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    parts, written = [], []
    for name in names:
        if draw(st.booleans()):
            written.append(draw(bodies))
            parts.append(written[-1])
        parts.append(Section(name, draw(bodies)).marked)
    written.append(draw(bodies))
    return "\n\n".join([*parts, written[-1]]), written


def outside(text: str) -> list[str]:
    """What stands outside of markers, without the room around it."""
    rest = re.sub(r"<!-- vaeconv:begin ([\w-]+) -->\n.*?<!-- vaeconv:end \1 -->", "\0", text,
                  flags=re.DOTALL)  # fmt: skip
    return [one.strip() for one in rest.split("\0") if one.strip()]


@given(cards(), made_sections())
def test_what_people_wrote_stays_in_its_order(
    card: tuple[str, list[str]], sections: list[Section]
) -> None:
    text, written = card
    merged = merge_sections(text, sections)
    assert "".join("".join(outside(merged)).split()) == "".join("".join(written).split())


@given(cards(), made_sections())
def test_each_section_is_there_once_as_it_was_made(
    card: tuple[str, list[str]], sections: list[Section]
) -> None:
    text, _ = card
    before = find_sections(text)
    merged = merge_sections(text, sections)
    after = {name: inner_text(marked) for name, marked in find_sections(merged).items()}
    expected = {one.name: one.text for one in sections if not one.is_prose or one.name in before}
    kept = {name: inner_text(before[name]) for name in PROSE if name in before}
    assert after == {**kept, **expected}
    assert all(merged.count(f"vaeconv:begin {name} ") == 1 for name in after)


@given(cards(), made_sections())
def test_merging_again_changes_nothing(
    card: tuple[str, list[str]], sections: list[Section]
) -> None:
    merged = merge_sections(card[0], sections)
    assert merge_sections(merged, sections) == merged


@given(made_sections())
def test_sections_come_in_their_order_in_an_empty_card(sections: list[Section]) -> None:
    found = list(find_sections(merge_sections("", sections)))
    assert found == [section.name for section in sections if not section.is_prose]
