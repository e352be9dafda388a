"""Draw text of any script into images: the same pixels on every machine.

Pillow's own font has little beyond ASCII. The other characters of the Basic Multilingual Plane come
from GNU Unifont, whose glyphs are bitmaps of 8x16 or 16x16; what neither has is spelled by its code
point. Text runs from left to right, as it is stored; letters are not joined.
"""

from __future__ import annotations

import lzma
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeconv.errors import one_line

if TYPE_CHECKING:
    from PIL import Image

ELLIPSIS = "…"
_GLYPHS = Path(__file__).parent / "unifont" / "unifont-15.0.01.hex.xz"
_HEIGHT, _BASELINE = 16, 14  # pixels of a glyph; rows of it above the line that letters stand on
_OWN = frozenset(map(chr, range(0x20, 0x7F))) | {"…", "·"}  # taken from Pillow's font
_EM = 14  # pixels of Pillow's font that a glyph of 16 goes with
# A number is never taken apart: 24.31, -840000, 1.2e-05.
_TOKEN = re.compile(r"[+-]?\d(?:[\d.,]*\d)?(?:e[+-]?\d+)?|.", re.DOTALL)
_BREAKS = " -_/.,:"
_NEW_LINE = re.compile(r"\r\n|[\r\n\u2028\u2029]")


class Lettering:
    """Text of one size.

    Args:
        em: Size of the font in pixels.
    """

    def __init__(self, em: int) -> None:
        from PIL import ImageFont

        self.em = em
        font: Any = ImageFont.load_default(em)
        self._font = font
        self._scale = max(1, em // _EM)
        ascent = font.getmetrics()[0]
        self._rise = ascent - _BASELINE * self._scale

    def width(self, text: str) -> float:
        """Tell how wide a text is, in pixels."""
        return sum(self._advance(run, is_own) for run, is_own in _runs(text))

    def _advance(self, run: str, is_own: bool) -> float:
        if is_own:
            return float(self._font.getlength(run))
        return 0 if unicodedata.combining(run) else _width(run) * self._scale

    def draw(self, draw: Any, left: float, top: float, text: str, fill: Any) -> None:
        """Draw a text with Pillow.

        Args:
            draw: Pillow's ``ImageDraw``.
            left: Where it begins.
            top: Of its line.
            text: In one line.
            fill: Its colour.
        """
        for run, is_own in _runs(text):
            advance = self._advance(run, is_own)
            if is_own:
                draw.text((left, top), run, fill=fill, font=self._font, anchor="la")
            else:
                glyph = _image(run, self._scale)
                # A combining mark lies over the letter before it.
                at = left if advance else left - glyph.width
                draw.bitmap((round(at), round(top + self._rise)), glyph, fill=fill)
            left += advance


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Cut a text into what Pillow's font has, and single glyphs."""
    for is_own, chars in groupby(spell(text), _OWN.__contains__):
        if is_own:
            yield "".join(chars), True
        else:
            yield from ((char, False) for char in chars)


@lru_cache(4096)
def spell(text: str) -> str:
    """Write what no font has by its code point, and what is no text by its escape."""
    composed = unicodedata.normalize("NFC", one_line(text))
    return "".join(
        char if char in _OWN or _rows(ord(char)) else f"U+{ord(char):04X}" for char in composed
    )


@cache
def _glyphs() -> bytes:
    return b"\n" + lzma.decompress(_GLYPHS.read_bytes())


@cache
def _rows(code: int) -> bytes:
    """Give a glyph's rows of pixels, a bit each; nothing where there is none."""
    data = _glyphs()
    head = f"\n{code:04X}:".encode()
    at = data.find(head)
    if at < 0:
        return b""
    return bytes.fromhex(data[at + len(head) : data.index(b"\n", at + 1)].decode())


def _width(char: str) -> int:
    return len(_rows(ord(char))) * 8 // _HEIGHT


@cache
def _image(char: str, scale: int) -> Image.Image:
    from PIL import Image

    width = _width(char)
    glyph = Image.frombytes("1", (width, _HEIGHT), _rows(ord(char)))
    return glyph.resize((width * scale, _HEIGHT * scale), Image.Resampling.NEAREST)


# --- where a text does not fit ---


def wrap(text: str, width: Callable[[str], float], room: float, lines: int = 1) -> list[str]:
    """Break a text into lines that fit, with an ellipsis where it does not end.

    Lines end at new lines, and otherwise behind a blank or a mark where there is one, and never
    within a number.

    Args:
        text: With new lines, if any.
        width: Measures a text in one line.
        room: For a line.
        lines: How many there may be.
    """
    rest = [token for part in _NEW_LINE.split(text) for token in (*_tokens(part), "\n")][:-1]
    found: list[str] = []
    while rest:
        count = _fitting(rest, width, room)
        is_over = count < len(rest)
        if is_over and len(found) + 1 == lines:
            found.append(_shortened(rest[:count], width, room))
            break
        if is_over and rest[count] != "\n":
            count = _break_before(rest, count, width, room)
        if not count and rest[0] != "\n":  # wider than a line by itself
            rest[:1] = [ELLIPSIS] if width(ELLIPSIS) <= room else []
            continue
        found.append("".join(rest[:count]).strip())
        rest = rest[count + (is_over and rest[count] == "\n") :]
    return found or [""]


def _tokens(text: str) -> list[str]:
    """Cut a text into numbers and single characters, each with its combining marks."""
    tokens: list[str] = []
    for token in _TOKEN.findall(unicodedata.normalize("NFC", text)):
        if tokens and unicodedata.combining(token[0]):
            tokens[-1] += token
        else:
            tokens.append(token)
    return tokens


def _fitting(tokens: list[str], width: Callable[[str], float], room: float) -> int:
    """Count the tokens that fit into a line."""
    line = ""
    for count, token in enumerate(tokens):
        line += token
        if token == "\n" or width(line.rstrip()) > room:
            return count
    return len(tokens)


def _break_before(tokens: list[str], count: int, width: Callable[[str], float], room: float) -> int:
    """Find where to break a line of so many tokens: behind a mark that leaves half of it full."""
    for at in range(count, 0, -1):
        if width("".join(tokens[:at])) < room / 2:
            break
        if tokens[at - 1][-1] in _BREAKS:
            return at
    return count


def _shortened(tokens: list[str], width: Callable[[str], float], room: float) -> str:
    """Give the beginning of a text with an ellipsis; nothing where not even that fits."""
    for count in range(len(tokens), -1, -1):
        line = "".join(tokens[:count]).rstrip() + ELLIPSIS
        if width(line) <= room:
            return line
    return ""
