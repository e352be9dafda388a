"""Read an image: upright, in the channels of an autoencoder, as a square."""

from __future__ import annotations

import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Any, NamedTuple

from vaeconv.common.notes import Note, note
from vaeconv.errors import InputError, UnsupportedModelError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # Pillow knows more, and runs others
MAX_PIXELS = 150_000_000  # of one image; more is refused, as a decompression bomb
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_ASPECT = 64
_LARGE = 1 << 24  # pixels of an image that is read alone, whatever else is read at once
_STRIP = 64  # rows that are scaled at a time
_TAIL = 8  # zeros end one byte in so many of a file that was cut short; in flat WebPs, one in 20

FIRST_FRAME = "the first of several frames"


class LeftOut(NamedTuple):
    """A file that is not used, and why.

    Attributes:
        name: Its path in the folder or zip file.
        reason: In words; the same words for all files of a kind.
    """

    name: str
    reason: str


def image_mode(channels: int, name: str) -> str:
    """Give Pillow's mode of images with so many channels: grey, RGB or RGBA.

    Args:
        channels: That an autoencoder takes.
        name: The autoencoder's.

    Raises:
        UnsupportedModelError: No image has so many.
    """
    if channels not in _MODES:
        raise UnsupportedModelError(
            f"takes images of {channels} channels; image files have 1 (grey), 3 (RGB) or 4 (RGBA)",
            where=name,
        )
    return _MODES[channels]


def count_left_out(left_out: Sequence[LeftOut]) -> str:
    """Say how many files are not used, for each reason."""
    counts = Counter(one.reason for one in left_out)
    noun = "file is" if len(left_out) == 1 else "files are"
    kinds = "; ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"{len(left_out)} {noun} not used: {kinds}"


def left_out_notes(left_out: Sequence[LeftOut], *, verbose: bool) -> list[Note]:
    """Say how many files were not used, and with ``verbose`` which."""
    if not left_out:
        return []
    named = [note(f"{one.name}: {one.reason}") for one in left_out] if verbose else []
    hint = "" if verbose else " (--verbose names them)"
    return [note(f"{count_left_out(left_out)}{hint}"), *named]


def prepare(
    data: bytes,
    mode: str,
    side: int,
    *,
    resize: str = "shorter-side",
    filter_name: str = "bicubic",
) -> tuple[Any, str | None]:
    """Decode an image and bring it to a square; see :func:`decode` and :func:`to_square`.

    Returns:
        uint8 ``[c, side, side]``, and what is to be said of it, if anything.

    Raises:
        InputError: It is damaged, no image, too large to be honest, or too small to be cropped.
    """
    with alone_if_large(data):
        image, remark = decode(data, mode)
        if not remark and min(image.size) < side and resize != "none":
            remark = f"enlarged to {side} pixels"
        return to_square(image, side, resize=resize, filter_name=filter_name), remark


def check_head(file: IO[bytes]) -> None:
    """Check that a file begins as an image, before all of it is read.

    Raises:
        InputError: It does not.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS):
            pass
    except Exception as error:  # decoders raise what they like for odd bytes
        raise InputError("not an image of a known format, or cut short") from error


_alone = threading.Lock()


def alone_if_large(data: bytes) -> AbstractContextManager[Any]:
    """Let an image of many pixels be decoded and reduced while no other such one is."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            is_large = opened.width * opened.height > _LARGE
    except Exception:  # noqa: BLE001 - what is wrong with it shows when it is decoded
        is_large = False
    return _alone if is_large else nullcontext()


def decode(data: bytes, mode: str) -> tuple[Any, str | None]:
    """Decode an image: upright by its EXIF orientation, and in another mode.

    16-bit grey is scaled to 8 bits, CMYK and palettes are converted, and where ``mode`` has no
    alpha, what is transparent is laid on white. Of several frames the first is taken.

    Returns:
        A Pillow image, and what is to be said of it, if anything.

    Raises:
        InputError: It is no image, damaged, cut short, or too large to be honest.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise InputError("empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError("a decompression bomb")
            _check_end(data, opened.format)
            frames = getattr(opened, "n_frames", 1)
            opened.load()
            image = flatten(ImageOps.exif_transpose(opened), mode)
    except Image.DecompressionBombError as error:
        raise InputError("a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise InputError("not an image of a known format, or cut short") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise what they like for odd bytes
        if "truncated" in str(error).lower():
            raise InputError("cut short") from error
        raise InputError(f"damaged ({type(error).__name__})") from error
    # A phone's photograph carries a small preview as a second frame.
    is_partial = frames > 1 and opened.format not in ("JPEG", "MPO")
    return image, FIRST_FRAME if is_partial else None


def _check_end(data: bytes, kind: str | None) -> None:
    """Find what decoders pass over: a tail of zeros, as a download leaves that claims its space."""
    from PIL import Image

    if kind == "PNG":
        with Image.open(io.BytesIO(data), formats=("PNG",)) as twin:
            twin.verify()  # every checksum, up to the last chunk
    elif kind == "WEBP":
        end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
        if not any(data[end - end // _TAIL : end]):
            raise InputError("cut short")


def to_square(
    image: Any, side: int, *, resize: str = "shorter-side", filter_name: str = "bicubic"
) -> Any:
    """Bring an image to a square.

    Args:
        image: Of Pillow.
        side: In pixels.
        resize: ``shorter-side`` and then a centre crop, ``squash``, or ``none``: only the crop.
        filter_name: Of the resizing, antialiased, as Pillow calls it.

    Returns:
        uint8 ``[c, side, side]``.

    Raises:
        InputError: It is too small to be cropped.
    """
    import numpy as np
    from PIL import Image

    resampling = Image.Resampling[filter_name.upper()]
    if resize == "squash":
        image = image.resize((side, side), resampling)
    elif resize == "shorter-side":
        image = _cut_ends(image)
        scale = side / min(image.size)
        # Never below the side, whatever rounding does to the longer one.
        size = tuple(max(side, round(length * scale)) for length in image.size)
        image = image.resize((size[0], size[1]), resampling)
    if min(image.size) < side:
        raise InputError(f"{image.width}x{image.height} pixels, less than {side}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cut_ends(image: Any) -> Any:
    """Cut the ends of a very long image, which no centre crop shows, before it is enlarged."""
    longest = min(image.size) * _MAX_ASPECT
    left, top = (max(0, (length - longest) // 2) for length in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Let Pillow say nothing of odd metadata and large images, and load no part of an image.

    Sizes are checked here. Both belong to the whole process: to be entered by the thread that
    starts others.
    """
    from PIL import Image, ImageFile

    loads_parts = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = loads_parts


def flatten(image: Any, mode: str) -> Any:
    """Convert a Pillow image of any mode.

    16-bit grey is scaled to 8 bits; an image of floats by its largest value. Where ``mode`` has no
    alpha, what is transparent is laid on white.

    Raises:
        InputError: It holds NaN or infinity.
    """
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        strips = [values[at : at + _STRIP] for at in range(0, len(values), _STRIP)]
        if not all(np.isfinite(strip).all() for strip in strips):
            raise InputError("holds NaN or infinity")
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=1.0)), 1.0)
        levels = np.empty(values.shape, np.uint8)
        for at, strip in zip(range(0, len(values), _STRIP), strips, strict=True):
            scaled = strip.astype(np.float64) / top * 255
            levels[at : at + _STRIP] = np.clip(scaled, 0, 255).round()
        image = Image.fromarray(levels)
    if mode != "RGBA" and ("A" in image.getbands() or "transparency" in image.info):
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(paper, image)
    return image.convert(mode)
