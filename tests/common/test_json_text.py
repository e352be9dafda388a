"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from vaeconv.common.json_text import dump_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside) | st.tuples(inside),
    max_leaves=10,
)


def strict(text: str) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(VALUES, st.booleans())
def test_what_is_read_is_what_was_written_but_for_numbers_that_are_none(value, is_ascii):
    text = dump_json(value, ascii=is_ascii)
    text.encode()
    assert strict(text) == finite(value)


def test_half_a_pair_is_escaped():
    text = dump_json(["caf\udce9 \u00fc"], indent=None, ascii=False)
    assert text == '["caf\\udce9 \u00fc"]'
