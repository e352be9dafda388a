"""Decoded images for people: of both models, and how they differ as a heat map."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import make_folder
from vaeconv.pages.lettering import Lettering, spell, wrap
from vaeconv.pages.png import encode_png, enlargement
from vaeconv.parity.report.tables import describe_distance

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vaeconv.parity.compare_outputs import Decoded

    Values = npt.NDArray[np.floating]
    Pixels = npt.NDArray[np.uint8]

# From no difference to the largest; each is lighter than the one before, and none is pink.
ANCHORS = (
    (9, 11, 34), (46, 40, 126), (18, 110, 160), (58, 172, 112), (240, 196, 64), (255, 250, 226),
)  # fmt: skip
NOT_FINITE = (255, 0, 255)
_SLUG_LIMIT = 40

_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 30), (110, 110, 116)
_MIN_CELL, _MIN_EM, _MAX_EM = 224, 14, 40  # pixels
_EMS = 18  # that a panel is wide
_BAR_EMS = 8  # that its colour bar is, at least


class HeatMap(NamedTuple):
    """Map of the differences of two images.

    Attributes:
        rgb: The picture, ``[h, w, 3]``.
        text: The factor that differences were multiplied by to get from 0 to 1, or why none is.
        bar: Its colours from no difference to the largest, ``[1, n, 3]``.
        largest: The largest difference of finite values; None where no pixel is finite.
        is_finite: Whether all pixels are.
    """

    rgb: Pixels
    text: str
    bar: Pixels
    largest: float | None
    is_finite: bool


def write_images(folder: Path, decoded: Sequence[Decoded], labels: tuple[str, str]) -> list[Path]:
    """Write a PNG for each decoded latent, in place of older ones of the same names.

    Args:
        folder: Made if it is absent.
        decoded: What to show.
        labels: What to call the models.

    Returns:
        The files.

    Raises:
        OutputError: The folder cannot be made, or a file not written.
    """
    make_folder(folder)
    paths = []
    for index, one in enumerate(decoded):
        path = folder / f"{index:02d}-{_slug(one.dtype)}-{_slug(one.name)}.png"
        replace_small_file(path, encode_png(_compose(one, labels)), durable=False)
        paths.append(path)
    return paths


def _slug(name: str) -> str:
    """Keep of a stranger's name what is harmless in the name of a file."""
    words = re.sub("[^a-z0-9]+", "-", name.lower())[:_SLUG_LIMIT]
    return words.strip("-") or "unnamed"


# --- arrays ---


def to_rgb(image: Values) -> Pixels:
    """Turn ``[c, h, w]`` with values from -1 to 1 into ``[h, w, 3]``, as diffusers rounds.

    Values beyond are clamped, the first three channels shown, or the first alone as grey; pixels
    with NaN or infinity are magenta.
    """
    import numpy as np

    is_finite = np.isfinite(image).all(axis=0)
    shown = image[:3] if image.shape[0] >= 3 else image[:1].repeat(3, axis=0)
    half = np.float32(0.5)
    levels = np.clip(np.where(is_finite, shown, 0).astype(np.float32) * half + half, 0, 1)
    rgb: Pixels = np.rint(levels * 255).astype(np.uint8).transpose(1, 2, 0).copy()
    rgb[~is_finite] = NOT_FINITE
    return rgb


def heat_map(one: Values, other: Values) -> HeatMap:
    """Draw the largest difference of each pixel's channels, amplified so that it can be seen.

    The factor is the largest of 1, 2, 5, 10, ... (or 0.5, 0.2, ...) with which no difference
    exceeds 1, where the colours end.
    """
    import numpy as np

    is_finite = (np.isfinite(one) & np.isfinite(other)).all(axis=0)
    sound = [np.where(is_finite, values, 0).astype(np.float64) for values in (one, other)]
    gap = np.abs(sound[0] - sound[1]).max(axis=0)
    largest = float(gap.max()) if is_finite.any() else None
    factor = amplification(largest) if largest else 0.0
    rgb = _paint(gap * factor)
    rgb[~is_finite] = NOT_FINITE
    bar = _paint(np.linspace(0, (largest or 0.0) * factor, 256)[None, :])
    all_finite = bool(is_finite.all())
    return HeatMap(rgb, _say_factor(factor, largest, all_finite), bar, largest, all_finite)


def amplification(largest: float) -> float:
    """Find the largest factor of the series 1, 2, 5 that brings a difference to at most 1."""
    exponent = math.floor(-math.log10(largest))
    factors = [
        mantissa * 10.0**power
        for power in (exponent - 1, exponent, exponent + 1)
        for mantissa in (1, 2, 5)
    ]
    return max(factor for factor in factors if factor * largest <= 1)


def _say_factor(factor: float, largest: float | None, is_finite: bool) -> str:
    if largest is None:
        return "not finite"
    if not largest:
        return "identical" if is_finite else "identical where finite"
    if 1e-2 <= factor < 1e5:
        return f"×{factor:g}"
    mantissa, _, exponent = f"{factor:.0e}".partition("e")
    return f"×{mantissa}e{int(exponent)}"


def _paint(levels: npt.NDArray[np.float64]) -> Pixels:
    """Colour levels ``[h, w]`` from 0 to 1."""
    import numpy as np

    stops = np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(levels, stops, values) for values in zip(*ANCHORS, strict=True)]
    painted: Pixels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return painted


# --- the three panels ---


def _compose(one: Decoded, labels: tuple[str, str]) -> Pixels:
    """Put both images and their heat map side by side, with text above and a legend below."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = one.images[0].shape[1:]
    scale = enlargement(height, width)
    size = width * scale, height * scale
    cell = max(size[0], _MIN_CELL)
    em = min(max(cell // _EMS, _MIN_EM), _MAX_EM)
    line, lefts = em * 3 // 2, [em + number * (cell + em) for number in range(3)]
    top = 2 * em + 3 * line
    legend = top + size[1] + em // 2
    sheet = Image.new("RGB", (3 * cell + 4 * em, legend + 2 * line + em), _PAPER)
    draw, lettering = ImageDraw.Draw(sheet), Lettering(em)

    def write(
        x: int, y: int, text: str, room: int, *, faint: bool = True, is_right: bool = False
    ) -> None:
        (line,) = wrap(spell(text), lettering.width, room)
        left = x - round(lettering.width(line)) if is_right else x
        lettering.draw(draw, left, y, line, _FAINT if faint else _INK)

    def paste(rgb: Pixels, x: int, y: int, size: tuple[int, int]) -> None:
        sheet.paste(Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST), (x, y))

    heat = heat_map(*one.images)
    write(em, em, one.name, sheet.width - 2 * em, faint=False)
    facts = f"decode {one.dtype} · {describe_distance(one.outcome)}"
    write(em, em + line, facts, sheet.width - 2 * em)
    captions = (*labels, f"|{labels[0]} - {labels[1]}|  {heat.text}")
    panels = (*map(to_rgb, one.images), heat.rgb)
    for left, caption, rgb in zip(lefts, captions, panels, strict=True):
        write(left, top - line, caption, cell, faint=False)
        paste(rgb, left, top, size)
    if not heat.is_finite:
        write(lefts[0], legend, "magenta: NaN or infinity", 2 * cell)
    if heat.largest:
        left, bar = lefts[2], max(size[0], _BAR_EMS * em)
        paste(heat.bar, left, legend, (bar, em * 2 // 3))
        write(left, legend + em, "0", bar // 2)
        write(left + bar, legend + em, f"{heat.largest:.1e}", bar // 2, is_right=True)
    pixels: Pixels = np.array(sheet)
    return pixels
