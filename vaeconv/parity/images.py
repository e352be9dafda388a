"""Read pictures from files: upright, in the channels of an autoencoder, resized and cropped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.errors import CheckpointNotFoundError, InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # Pillow knows more, and runs others
MAX_PIXELS = 150_000_000  # of one picture; more is refused, as a decompression bomb
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Picture(NamedTuple):
    """A picture that was read.

    Attributes:
        name: Its file's name without the ending.
        pixels: uint8, ``[c, h, w]``.
    """

    name: str
    pixels: Any


def list_images(path: Path) -> list[Path]:
    """List the pictures in a folder by their names' endings, sorted; or one file.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointNotFoundError("no such file or folder", where=str(path))
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not found:
        raise CheckpointNotFoundError(
            "no pictures in this folder",
            where=str(path),
            hint=f"names of pictures end in {', '.join(SUFFIXES)}",
        )
    return found


def read_images(
    paths: Sequence[Path], *, channels: int, size: int, factor: int
) -> Iterator[Picture]:
    """Read pictures, the shorter side resized, the middle cut out as a square.

    Args:
        paths: The files.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        size: Side of the result in pixels; rounded down to a multiple of ``factor``.
        factor: How many times smaller a latent is.

    Raises:
        InputError: One is not a picture, is damaged, or is too large to be honest.
    """
    side = size // factor * factor
    mode = _MODES.get(channels)
    if not side or mode is None:
        raise InputError(f"cannot make pictures of {channels} channels and {size} pixels")
    names: set[str] = set()
    for path in paths:
        name = path.stem if path.stem not in names else path.name
        names.add(name)
        yield Picture(name, _read(path, mode, side))


def _read(path: Path, mode: str, side: int) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with quiet_pillow(), Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError("a decompression bomb")
            image = flatten(ImageOps.exif_transpose(opened), mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"not a picture that can be read ({error})", where=str(path)) from error
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(fitted)
    return np.ascontiguousarray(
        pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[np.newaxis]
    )


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Let Pillow say nothing of odd metadata and large pictures; sizes are checked here.

    Filters belong to the whole process: to be entered by the thread that starts others.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def flatten(image: Any, mode: str) -> Any:
    """Convert a Pillow image of any mode.

    16-bit grey is scaled to 8 bits; a picture of floats by its largest value. Where ``mode`` has no
    alpha, what is transparent is laid on white.
    """
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError("holds NaN or infinity")
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=1.0)), 1.0)
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
    if mode != "RGBA" and ("A" in image.getbands() or "transparency" in image.info):
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, image)
    return image.convert(mode)
