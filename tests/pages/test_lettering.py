"""Text in images: every script, what no font has, and what does not fit."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from vaeconv.pages.lettering import ELLIPSIS, Lettering, spell, wrap

TEXTS = {
    "ascii": "ft-EMA 24.31 dB",
    "latin": "modèle ß",
    "greek": "Ελληνικά",
    "cyrillic": "Модель",
    "japanese": "日本語モデル",
    "korean": "한국어",
    "hebrew": "שלום",
    "arabic": "عربي",
    "devanagari": "हिन्दी",
    "combining": "e\u0301 x\u20d7",
    "marks": "× → … ·",
}
NUMBER = re.compile(r"\d[\d.,]*\d|\d")


def drawn(text: str, em: int = 14) -> np.ndarray:
    image = Image.new("L", (600, 60), 255)
    Lettering(em).draw(ImageDraw.Draw(image), 20, 20, text, 0)
    return np.asarray(image)


@pytest.mark.parametrize("em", [13, 14, 28, 40])
@pytest.mark.parametrize("name", TEXTS)
def test_every_script_is_drawn_within_its_width(name: str, em: int) -> None:
    text = TEXTS[name]
    ink = np.argwhere(drawn(text, em) < 128)
    width = Lettering(em).width(text)
    assert ink[:, 1].min() >= 18
    assert ink[:, 1].max() <= 20 + width + 2
    assert np.ptp(ink[:, 1]) > width / 2
    assert 12 <= ink[:, 0].min()
    assert ink[:, 0].max() <= 22 + 1.4 * em


def test_characters_look_different() -> None:
    """None is a box that stands for any."""
    seen = {drawn(char).tobytes() for char in "日本語モデル한국어שלוםعربيМодель×→"}
    assert len(seen) == len(set("日本語モデル한국어שלוםعربيМодель×→"))


def test_glyphs_are_those_of_unifont() -> None:
    """As its font in the file says: rows of 日, a bit for each pixel."""
    rows = "00001FF0101010101010101010101FF01010101010101010101010101FF01010"
    expected = np.unpackbits(np.frombuffer(bytes.fromhex(rows), np.uint8)).reshape(16, 16)
    found = drawn("日") < 128
    top, left = np.argwhere(found).min(axis=0) - np.argwhere(expected).min(axis=0)
    np.testing.assert_array_equal(found[top : top + 16, left : left + 16], expected.astype(bool))


def test_ascii_is_as_pillow_draws_it() -> None:
    image = Image.new("L", (600, 60), 255)
    font = ImageFont.load_default(14)
    ImageDraw.Draw(image).text((20, 20), "ft-EMA 24.31 dB", 0, font, anchor="la")
    np.testing.assert_array_equal(drawn("ft-EMA 24.31 dB"), np.asarray(image))


def test_what_no_font_has_is_spelled() -> None:
    assert spell("a😀b") == "aU+1F600b"
    assert spell("\ue000 \U000f0000") == "U+E000 U+F0000"
    assert spell("\U000e0041\u200b") == r"\U000e0041\u200b", "nobody would see them"
    assert spell("tab\there\x00\ud800") == "tab\\there\\x00\\ud800"
    assert spell("e\u0301") == "é"


@pytest.mark.parametrize(
    ("text", "room", "lines", "expected"),
    [
        ("short", 10, 1, ["short"]),
        ("exactly-10", 10, 1, ["exactly-10"]),
        ("abcdefghijkl", 10, 1, ["abcdefghi…"]),
        ("step 840000", 10, 1, ["step…"]),
        ("psnr 24.31", 8, 1, ["psnr…"]),
        ("loss 1.2e-05", 10, 1, ["loss…"]),
        ("840000", 4, 1, ["…"]),
        ("840000", 4, 2, ["…"]),
        ("one two three", 8, 2, ["one two", "three"]),
        ("one two three four", 8, 2, ["one two", "three f…"]),
        ("ft-mse-840000-ema", 10, 2, ["ft-mse", "-840000-e…"]),
        ("ft-mse-840000-ema", 10, 3, ["ft-mse", "-840000-", "ema"]),
        ("a\nb", 10, 2, ["a", "b"]),
        ("a\r\nb\u2028c", 10, 3, ["a", "b", "c"]),
        ("a\nb", 10, 1, ["a…"]),
        ("\n", 10, 3, [""]),
        ("", 10, 1, [""]),
        ("abc", 0, 2, [""]),
    ],
)
def test_lines(text: str, room: int, lines: int, expected: list[str]) -> None:
    assert wrap(text, len, room, lines) == expected


@given(
    st.text(st.sampled_from("ab 日-_.,5071\n\u0301"), max_size=40),
    st.integers(0, 12),
    st.integers(1, 4),
)
@example("5071", 1, 1)
def test_lines_fit_and_no_number_is_taken_apart(text: str, room: int, lines: int) -> None:
    found = wrap(text, len, room, lines)
    assert 1 <= len(found) <= lines
    assert all(len(line) <= room for line in found)
    whole = unicodedata.normalize("NFC", text)
    numbers = NUMBER.findall(whole)
    for line in found:
        for number in NUMBER.findall(line):
            assert number in numbers
    kept = "".join(found).replace(ELLIPSIS, "")
    rest = iter(re.sub(r"\s", "", whole))
    assert all(char in rest for char in re.sub(r"\s", "", kept)), "in order, and nothing added"
