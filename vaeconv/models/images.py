"""Read images: which files are some, upright, in the channels of an autoencoder, as a square."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from vaeconv.common.notes import Note, note
from vaeconv.errors import CheckpointNotFoundError, InputError, UnsupportedModelError
from vaeconv.weights.output_names import KINDS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # Pillow knows more, and runs others
MAX_PIXELS = 150_000_000  # of one image; more is refused, as a decompression bomb
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_ASPECT = 64
_LARGE = 1 << 24  # pixels of an image that is read alone, whatever else is read at once
_STRIP = 64  # rows that are scaled at a time
_TAIL = 8  # zeros end one byte in so many of a file that was cut short; in flat WebPs, one in 20

OTHER_ENDING, HIDDEN = "with another ending", "hidden"
FIRST_FRAME = "the first of several frames"


class LeftOut(NamedTuple):
    """A file that is not used, and why.

    Attributes:
        name: Its path in the folder or zip file.
        reason: In words; the same words for all files of a kind.
    """

    name: str
    reason: str


class Picture(NamedTuple):
    """An image that was read.

    Attributes:
        name: Its path in the folder without the ending, or with it where another has the same.
        pixels: uint8, ``[c, h, w]``.
    """

    name: str
    pixels: Any


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


# --- which files ---


def reason_by_name(name: str) -> str | None:
    """Tell by its path why a file is no image to use; None where it may be one.

    Hidden are, beside what the user hid, thumbnails and the checkpoints of notebooks.
    """
    if any(part.startswith(".") and part != ".." for part in name.split("/")):
        return HIDDEN
    return None if name.lower().endswith(SUFFIXES) else OTHER_ENDING


def list_images(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """List the files in a folder and in its folders, as paths with slashes, sorted.

    Returns:
        The images by their names, and what is none, or cannot be reached, with the reason.
    """
    found: list[str] = []
    left_out: list[LeftOut] = []

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        left_out.append(LeftOut(f"{name}/", f"cannot be listed ({error.strerror})"))

    for root, folders, names in os.walk(folder, onerror=unlisted):
        for name in (*folders, *names):
            path = Path(root, name)
            inner = path.relative_to(folder).as_posix()
            if name in folders:
                if path.is_symlink():
                    left_out.append(LeftOut(f"{inner}/", "a link to a folder is not followed"))
                continue
            reason = reason_by_name(inner) or _reason_by_kind(path)
            if reason:
                left_out.append(LeftOut(inner, reason))
            else:
                found.append(inner)
    return sorted(found), sorted(left_out)


def _reason_by_kind(path: Path) -> str | None:
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return "a link to nothing"
        return f"cannot be read ({error.strerror})"
    return None if stat.S_ISREG(kind) else "not a regular file"


def has_weights(name: str) -> bool:
    """Tell by its name whether a file is a checkpoint."""
    return Path(name).suffix.lower() in KINDS


def not_images(place: str, what: str) -> CheckpointNotFoundError:
    """Make the error of a checkpoint in the place of images."""
    return CheckpointNotFoundError(what, where=place, hint="see --help for their order")


def no_images(place: str, left_out: Sequence[LeftOut]) -> CheckpointNotFoundError:
    """Make the error of a folder or zip file without images; it says what is there instead."""
    if any(has_weights(one.name) for one in left_out):
        return not_images(place, "holds a checkpoint, and no images")
    there = f"; {count_left_out(left_out)}" if left_out else ""
    return CheckpointNotFoundError(
        f"no images in it{there}",
        where=place,
        hint=f"names of images end in {', '.join(SUFFIXES)}",
    )


def count_left_out(left_out: Sequence[LeftOut]) -> str:
    """Say how many files are not used, for each reason."""
    counts: dict[str, int] = {}
    for one in left_out:
        counts[one.reason] = counts.get(one.reason, 0) + 1
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


# --- what is in them ---


def read_images(
    read: Callable[[str], bytes],
    names: Sequence[str],
    *,
    mode: str,
    size: int,
    broken: list[LeftOut],
) -> Iterator[Picture]:
    """Read images, the shorter side resized, the middle cut out as a square.

    One that is no image, is damaged, or is too large to be honest is left out.

    Args:
        read: Reads one, by its name.
        names: Their paths in the folder.
        mode: Of Pillow, as :func:`image_mode` gives it.
        size: Side of the result in pixels.
        broken: Where those that cannot be read are added.
    """
    used: set[str] = set()
    for name in names:
        stem = name.rpartition(".")[0] or name
        known = name if stem in used else stem
        used.add(known)
        try:
            data = read(name)
            with quiet_pillow(), alone_if_large(data):
                image, _ = decode(data, mode)
                pixels = to_square(image, size)
        except InputError as error:
            broken.append(LeftOut(name, error.what))
        else:
            yield Picture(known, pixels)


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
