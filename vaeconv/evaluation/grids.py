"""Side-by-side reconstructions: candidates first, the original last, as in the cards."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.errors import OutputError
from vaeconv.pages.lettering import Lettering, wrap

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

FORMATS = ("png", "webp")
_WEBP_SIDE = 16383
_EM, _BAR, _LINE = 13, 22, 17  # pixels of a label's letters, of one line, of each further line
_LINES = 3  # that a name may take
_WIDEST = "999.99 dB"  # a value's room, so that all rows of a comparison are of one height
_TILE = 256  # pixels that a smaller image is enlarged to, at least
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_BOX = (255, 0, 140)


class Panel(NamedTuple):
    """One image of a row.

    Attributes:
        label: What stands under it: a name.
        pixels: uint8 ``[h, w, 3]``.
        value: A number that stands behind the name, or under it; never shortened.
    """

    label: str
    pixels: Pixels
    value: str = ""


def merge_panels(panels: Sequence[Panel], *, labels: bool, zoom: int = 0) -> Any:
    """Put images side by side, without a gap as in the cards; small ones are enlarged.

    Args:
        panels: Candidates, and the original last.
        labels: Whether to write each panel's label under it.
        zoom: Side of the square to show enlarged in a second row, where candidates differ most
            from the original; 0 for none.

    Returns:
        A Pillow image.
    """
    from PIL import Image, ImageDraw

    height, width = panels[0].pixels.shape[:2]
    images = [Image.fromarray(panel.pixels) for panel in panels]
    crops = []
    if zoom:
        box = find_largest_difference([panel.pixels for panel in panels], min(zoom, height, width))
        corner = box[0], box[1], box[0] + box[2], box[1] + box[2]
        crops = [image.crop(corner) for image in images]
        for image in images:
            frame = corner[0], corner[1], corner[2] - 1, corner[3] - 1
            ImageDraw.Draw(image).rectangle(frame, outline=_BOX)
    factor = enlargement(height, width)
    height, width = height * factor, width * factor
    lettering = Lettering(_EM)
    texts = [_label_lines(panel, lettering, width) if labels else [] for panel in panels]
    most = max(map(len, texts))
    bar = _BAR + (most - 1) * _LINE if most else 0
    total = height + (width if zoom else 0) + bar
    sheet = Image.new("RGB", (width * len(panels), total), _PAPER)
    draw = ImageDraw.Draw(sheet)
    nearest = Image.Resampling.NEAREST
    for at, lines in enumerate(texts):
        left = at * width
        sheet.paste(images[at].resize((width, height), nearest), (left, 0))
        if zoom:
            sheet.paste(crops[at].resize((width, width), nearest), (left, height))
        for number, line in enumerate(lines):
            margin = (width - lettering.width(line)) / 2
            top = total - bar + 3 + number * _LINE
            lettering.draw(draw, left + margin, top, line, _INK)
    return sheet


def enlargement(height: int, width: int) -> int:
    """Tell by which whole factor an image is enlarged so that no side is below 256 pixels."""
    return max(1, math.ceil(_TILE / min(height, width)))


def _label_lines(panel: Panel, lettering: Lettering, width: int) -> list[str]:
    """Write name and value in one line where there is room, and the value in its own if not."""
    room = width - 4
    name = wrap(panel.label, lettering.width, room, _LINES)
    if not panel.value:
        return name
    if len(name) == 1 and lettering.width(f"{name[0]}  {_WIDEST}") <= room:
        return [f"{name[0]}  {panel.value}".strip()]
    return [*name, panel.value]


def find_largest_difference(images: Sequence[Pixels], side: int) -> tuple[int, int, int]:
    """Find the square where candidates differ most from the original, which is the last.

    Returns:
        ``(left, top, side)``.
    """
    import numpy as np

    original = images[-1].astype(np.int64)
    differences = [np.abs(image.astype(np.int64) - original).sum(axis=2) for image in images[:-1]]
    total = np.sum(differences, axis=0)
    # Sums over all squares, from sums over all rectangles that begin in the corner.
    corner = np.pad(total.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = corner[side:, side:] - corner[:-side, side:] - corner[side:, :-side]
    sums = sums + corner[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), side


def contact_sheet(images: Sequence[Any], columns: int, form: str = "png") -> Any:
    """Put merged images of one size into a grid, of more columns where WebP ends."""
    from PIL import Image

    width, height = images[0].size
    gap = 4
    if form == "webp":
        most = max(1, _WEBP_SIDE // (height + gap))
        columns = max(columns, math.ceil(len(images) / most))
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, _PAPER)
    for at, image in enumerate(images):
        row, column = divmod(at, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def save_image(image: Any, path: Path) -> None:
    """Write an image losslessly, the same bytes every time.

    Raises:
        OutputError: It cannot be written.
    """
    buffer = io.BytesIO()
    if path.suffix == ".webp":
        if max(image.size) > _WEBP_SIDE:
            raise OutputError(
                f"{image.width}x{image.height} pixels are more than WebP holds",
                where=str(path),
                hint="--format png",
            )
        image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    else:
        image.save(buffer, "PNG", optimize=False, compress_level=6)
    replace_small_file(path, buffer.getvalue(), durable=False)
