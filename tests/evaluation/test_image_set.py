"""Sets of pictures: folders and zip files, odd and damaged pictures, resizing, order."""

from __future__ import annotations

import io
import struct
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from vaeconv.errors import CheckpointNotFoundError, InputError
from vaeconv.evaluation import image_set as images
from vaeconv.evaluation.image_set import ImageSet, Item
from vaeconv.evaluation.protocol import FILTERS, Protocol

SIZE = 32
SMALL = Protocol(size=SIZE)
PLAIN = Protocol(size=SIZE, resize="none")  # crops only, so that pixels stay as they are


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 90, height: int = 60, at: tuple[int, int] = (180, 60)) -> Image.Image:
    left, top = at
    return Image.fromarray(skimage.data.astronaut()).crop((left, top, left + width, top + height))


def marked(mode: str = "RGB") -> Image.Image:
    """32 pixels square and all different: what is turned or mirrored shows."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pixels = np.stack([rows * 8, columns * 8, (rows + columns) * 4], axis=2).astype("u1")
    return Image.fromarray(pixels).convert(mode)


def as_pixels(image: Image.Image) -> Any:
    """What is expected of a picture that needs no resizing: ``[3, h, w]``."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def write(folder: Path, **files: bytes) -> Path:
    """Write files whose names have ``__`` for a slash and ``_`` for a dot before the ending."""
    for name, content in files.items():
        stem, _, ending = name.replace("__", "/").rpartition("_")
        path = folder / f"{stem}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def prepare(data: bytes, protocol: Protocol, channels: int = 3) -> Any:
    """The pixels alone."""
    return images.prepare(data, protocol, channels)[0]


def read_one(folder: Path, content: bytes, name: str = "a.png", protocol: Protocol = SMALL) -> Item:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return ImageSet(folder).read(0, protocol, 3)


# --- which pictures ---


def zipped(folder: Path, path: Path) -> Path:
    """The same files in a zip file, in an order of its own, with entries for folders."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(folder.rglob("*"), reverse=True):
            archive.write(one, one.relative_to(folder))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five pictures at several depths, and files that are none."""
    return write(
        tmp_path / "mixed",
        b_png=encoded(photo()),
        a_JPG=encoded(photo(at=(100, 100)), "JPEG"),
        sub__c_webp=encoded(photo(at=(50, 50)), "WEBP"),
        sub__deeper__d_tiff=encoded(photo(at=(0, 0)), "TIFF"),
        z_bmp=encoded(photo(at=(300, 200)), "BMP"),
        notes_txt=b"not a picture",
        sub__model_ckpt=b"nor this",
    )


def test_a_folder_and_a_zip_file_of_it_hold_the_same(mixed: Path, tmp_path: Path) -> None:
    folder, archive = ImageSet(mixed), ImageSet(zipped(mixed, tmp_path / "mixed.zip"))
    names = ["a.JPG", "b.png", "sub/c.webp", "sub/deeper/d.tiff", "z.bmp"]
    assert folder.names == archive.names == names
    assert len(folder) == len(archive) == 5
    assert folder.fingerprint == archive.fingerprint
    seen = set()
    for index, name in enumerate(names):
        one, other = (some.read(index, SMALL, 3) for some in (folder, archive))
        assert one[:2] == other[:2] == (index, name)
        assert one.reason is other.reason is None
        assert one.pixels.shape == (3, SIZE, SIZE)
        assert one.pixels.dtype == np.uint8
        assert np.array_equal(one.pixels, other.pixels)
        seen.add(one.pixels.tobytes())
    assert len(seen) == 5
    archive.close()
    folder.close()


def test_the_first_few_are_those_of_the_sorted_names(mixed: Path, tmp_path: Path) -> None:
    for path in (mixed, zipped(mixed, tmp_path / "mixed.zip")):
        pictures = ImageSet(path, 2)
        assert pictures.names == ["a.JPG", "b.png"]
        pictures.close()
    assert len(ImageSet(mixed, 100)) == 5


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    content = encoded(photo())
    base = ImageSet(write(tmp_path / "0", a_png=content, b_png=content)).fingerprint
    assert ImageSet(write(tmp_path / "1", a_png=content, b_png=content)).fingerprint == base
    others = [
        write(tmp_path / "2", a_png=content, c_png=content),
        write(tmp_path / "3", a_png=content, b_png=content + b"\0"),
        write(tmp_path / "4", a_png=content, b_png=content, c_png=content),
        write(tmp_path / "5", a_png=content + b"\0", b_png=content[:-1]),
    ]
    hashes = {base, *(ImageSet(folder).fingerprint for folder in others)}
    hashes.add(ImageSet(tmp_path / "0", 1).fingerprint)
    assert len(hashes) == 6


def test_what_holds_no_pictures_is_an_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"no images in it.*\.png"):
        ImageSet(empty)
    write(empty, notes_txt=b"x", png_=b"x")
    with pytest.raises(CheckpointNotFoundError, match="2 files are not used: 2 with another"):
        ImageSet(empty)
    archive = tmp_path / "empty.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "x")
        file.writestr("folder.png/", "")
    with pytest.raises(CheckpointNotFoundError, match="no images in it"):
        ImageSet(archive)
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        ImageSet(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no zip file", encoded(Image.new("L", (9, 9)))])
def test_a_file_that_is_no_zip_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pictures.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match="neither a folder nor a zip file") as caught:
        ImageSet(path)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 3


def test_a_damaged_entry_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    bitmap = encoded(photo(), "BMP")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.bmp", "b.bmp", "c.bmp"):
            archive.writestr(name, bitmap)
    data = bytearray(path.read_bytes())
    second = data.index(b"b.bmp") + len("b.bmp") + 2000
    data[second] ^= 0xFF
    path.write_bytes(data)
    pictures = ImageSet(path)
    items = list(pictures.stream(range(3), SMALL, 3, workers=2, ahead=2))
    pictures.close()
    assert [item.pixels is None for item in items] == [False, True, False]
    assert items[1].reason == "cannot be read (BadZipFile)"
    assert np.array_equal(items[0].pixels, items[2].pixels)


# --- odd pictures ---


def with_orientation(image: Image.Image, value: int, kind: str = "PNG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, kind, exif=exif, **options)


# How a picture was turned before it was stored, so that each value of the tag makes it upright.
STORED: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", STORED)
def test_orientation_is_followed(value: int, kind: str) -> None:
    upright = marked()
    stored = Image.fromarray(np.ascontiguousarray(STORED[value](np.asarray(upright))))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = prepare(with_orientation(stored, value, kind, **options), PLAIN)
    assert np.array_equal(found, as_pixels(upright))


def test_a_turned_photo_is_cropped_upright() -> None:
    image = photo(60, 120)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    found = prepare(with_orientation(turned, 6, "JPEG", quality=95), SMALL)
    expected = prepare(encoded(image), SMALL)
    assert np.abs(found.astype("i4") - expected).mean() < 4


def test_cmyk() -> None:
    image = photo(64, 64)
    found = prepare(encoded(image.convert("CMYK"), "JPEG", quality=98, subsampling=0), SMALL)
    expected = prepare(encoded(image), SMALL)
    assert np.abs(found.astype("i4") - expected).mean() < 4


def test_palettes() -> None:
    image = marked().quantize(200)
    for kind in ("PNG", "GIF", "BMP"):
        assert np.array_equal(prepare(encoded(image, kind), PLAIN), as_pixels(image))


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([200, 0, 0, 0, 0, 90])
    image.paste(1, (0, 0, 16, SIZE))
    found = prepare(encoded(image, transparency=0), PLAIN)
    assert (found[:, :, 16:] == 255).all()
    assert (found[:, :, :16] == np.array([0, 0, 90]).reshape(3, 1, 1)).all()
    alphas = prepare(encoded(image, transparency=bytes([51, 255])), PLAIN)
    expected = np.array([244, 204, 204]).reshape(3, 1, 1)  # a fifth of red, the rest white
    assert np.abs(alphas[:, :, 16:].astype("i4") - expected).max() <= 1


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (SIZE, SIZE), (1, 2, 3))
    image.paste((90, 80, 70), (0, 0, 16, SIZE))
    found = prepare(encoded(image, transparency=(1, 2, 3)), PLAIN)
    assert (found[:, :, 16:] == 255).all()
    assert found[:, 0, 0].tolist() == [90, 80, 70]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_what_is_transparent_lies_on_white(mode: str, alpha: int) -> None:
    image = Image.new("RGBA", (SIZE, SIZE), (100, 100, 100, alpha)).convert(mode)
    found = prepare(encoded(image), PLAIN)
    expected = 100 * alpha / 255 + 255 * (1 - alpha / 255)
    assert np.abs(found.astype("f8") - expected).max() <= 1
    assert (prepare(encoded(image), PLAIN, channels=1) == found[:1]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits(kind: str) -> None:
    wide = np.linspace(0, 65535, SIZE * SIZE).astype("u2").reshape(SIZE, SIZE)
    found = prepare(encoded(Image.fromarray(wide), kind), PLAIN)
    assert np.array_equal(found[0], np.rint(wide / 257).astype("u1"))
    assert (found == found[:1]).all()
    assert prepare(encoded(Image.fromarray(wide), kind), PLAIN, channels=1).shape == (1, 32, 32)


def test_grey_of_16_bits_in_big_endian_order() -> None:
    wide = np.linspace(0, 65535, SIZE * SIZE).astype("u2").reshape(SIZE, SIZE)
    image = Image.frombytes("I;16B", (SIZE, SIZE), wide.astype(">u2").tobytes())
    found = prepare(encoded(image, "TIFF"), PLAIN)
    assert np.array_equal(found[0], np.rint(wide / 257).astype("u1"))


@pytest.mark.parametrize(("top", "scale"), [(1.0, 255), (0.5, 255), (40.0, 255 / 40)])
def test_floats(top: float, scale: float) -> None:
    """From 0 to 1, or, where there is more, to the largest value; what is negative is black."""
    values = np.linspace(-top / 10, top, SIZE * SIZE, dtype="f4").reshape(SIZE, SIZE)
    found = prepare(encoded(Image.fromarray(values), "TIFF"), PLAIN)
    expected = np.clip(values.astype("f8") * scale, 0, 255)
    assert np.abs(found[0] - expected).max() <= 0.501
    assert found.min() == 0
    assert found.max() == round(min(top, 1) * 255)


def test_black_and_white() -> None:
    image = marked("L").point(lambda value: 255 if value > 100 else 0).convert("1")
    found = prepare(encoded(image), PLAIN)
    assert np.array_equal(found, as_pixels(image))
    assert set(np.unique(found)) == {0, 255}


def test_the_first_picture_of_an_animation() -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        found = prepare(data, PLAIN)
        assert found[:, 5, 5].tolist() == [255, 0, 0]
        assert (found == found[:, :1, :1]).all()


def test_grey_and_colour_go_both_ways() -> None:
    grey = marked("L")
    found = prepare(encoded(grey), PLAIN)
    assert np.array_equal(found, np.repeat(np.asarray(grey)[None], 3, axis=0))
    one = prepare(encoded(marked()), PLAIN, channels=1)
    assert np.array_equal(one, np.asarray(marked("L"))[None])


def test_pixels_lie_in_order_in_memory() -> None:
    """torch takes them as they are, and nobody writes into Pillow's."""
    found = prepare(encoded(photo()), SMALL)
    assert found.flags.c_contiguous
    assert found.flags.owndata or found.flags.writeable


# --- what is skipped, and why ---


def test_a_tiny_picture_is_enlarged_unless_nothing_is_resized(tmp_path: Path) -> None:
    tiny = encoded(photo(5, 7))
    for resize in ("shorter-side", "squash"):
        item = read_one(tmp_path, tiny, protocol=Protocol(size=SIZE, resize=resize))
        assert item.reason is None
        assert item.pixels.shape == (3, SIZE, SIZE)
        assert item.pixels.std() > 1
    single = read_one(tmp_path, encoded(Image.new("RGB", (1, 1), (9, 8, 7))))
    assert (single.pixels == np.array([9, 8, 7]).reshape(3, 1, 1)).all()
    item = read_one(tmp_path, tiny, protocol=PLAIN)
    assert item[:4] == (0, "a.png", None, "5x7 pixels, less than 32")
    narrow = read_one(tmp_path, encoded(photo(31, 90)), protocol=PLAIN)
    assert narrow.reason == "31x90 pixels, less than 32"
    assert read_one(tmp_path, encoded(photo(32, 90)), protocol=PLAIN).reason is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"this is no picture, whatever its name says\n",
        encoded(photo())[:200],
        encoded(photo())[:-30],
        encoded(photo(), "JPEG")[:900],
        encoded(photo(), "JPEG")[:10],
        encoded(photo(), "WEBP")[:500],
        encoded(photo(), "BMP")[:3000],
        encoded(photo(), "TIFF")[:4000],
        encoded(photo().quantize(64), "GIF")[:1000],
    ],
    ids=["no bytes", "one byte", "text", "png", "png, late", "jpeg", "jpeg, early", "webp", "bmp",
         "tiff", "gif"],
)  # fmt: skip
def test_damaged_pictures_are_skipped_with_a_reason(tmp_path: Path, content: bytes) -> None:
    item = read_one(tmp_path, content)
    assert item.pixels is None
    assert item.reason is not None
    expected = {b"": "empty"}.get(content)
    known = ("not an image of a known format, or cut short", "cut short", "damaged (OSError)")
    assert item.reason == expected or (expected is None and item.reason in known)
    assert (item.at, item.name) == (0, "a.png")


def test_an_image_that_vanished_ends_the_run(tmp_path: Path) -> None:
    """The folder may be gone whole, and what is left would be measured as if it were the set."""
    pictures = ImageSet(write(tmp_path, a_png=encoded(photo()), b_png=encoded(photo())))
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: is gone since the images were listed"):
        list(pictures.stream(range(2), SMALL, 3, workers=1, ahead=1))
    with pytest.raises(InputError, match=r"a\.png: is gone"):
        list(pictures.hashes(range(2), workers=1))


def test_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    item = read_one(tmp_path, encoded(photo(), "JPEG"), "a.png")
    assert item.reason is None
    assert np.array_equal(item.pixels, prepare(encoded(photo(), "JPEG"), SMALL))


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of one bit per pixel with these chunks behind its header."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    written = b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + written


def png_that_claims(width: int, height: int) -> bytes:
    return png_of(width, height, (b"IDAT", zlib.compress(b"\0" * 1000)))


def test_a_png_with_a_broken_piece_is_skipped(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (SIZE, 5), dtype="u1")
    rows[:, 0] = 0  # no filter
    data = zlib.compress(rows.tobytes())
    good = png_of(SIZE, SIZE, (b"IDAT", data[:100]), (b"IDAT", data[100:]))
    assert read_one(tmp_path, good).reason is None
    broken = png_of(SIZE, SIZE, (b"IDAT", data[:100]), (b"I\0AT", data[100:]))
    # Pillow's way to say that the syntax of a file is wrong.
    assert read_one(tmp_path, broken).reason == "damaged (SyntaxError)"


@pytest.mark.parametrize("is_pillow_guarded", [True, False])
@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (66_666_667, 3)])
def test_bombs_are_refused_by_what_they_claim(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    height: int,
    is_pillow_guarded: bool,
) -> None:
    """Before a pixel is decoded; also where somebody switched off Pillow's own limit."""
    if not is_pillow_guarded:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)

    def load(*args: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    item = read_one(tmp_path, png_that_claims(width, height))
    assert item[:4] == (0, "a.png", None, "a decompression bomb")


def test_as_many_pixels_as_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any) -> None:
        raise OSError

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    item = read_one(tmp_path, png_that_claims(15_000, 10_000))
    assert item.reason == "damaged (OSError)"  # it was to be decoded


def test_a_large_picture_is_no_bomb(tmp_path: Path) -> None:
    large = Image.new("1", (12_000, 8_000), 1)  # 96 million: Pillow only warns of it
    (tmp_path / "a.png").write_bytes(encoded(large))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        (item,) = ImageSet(tmp_path).stream([0], Protocol(size=32), 3, workers=1, ahead=1)
    assert item.reason is None
    assert (item.pixels == 255).all()
    assert seen == []


def test_a_file_of_more_than_a_gigabyte_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate((1 << 30) + 1)

    def read(path: Path) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(Path, "read_bytes", read)
    assert ImageSet(tmp_path).read(0, SMALL, 3).reason == "larger than 1 GiB"


# --- resizing ---


@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize(
    ("width", "height"), [(90, 60), (60, 90), (64, 64), (33, 32), (20, 31), (101, 47)]
)
def test_the_shorter_side_and_then_the_middle(filter_name: str, width: int, height: int) -> None:
    image = photo(width, height)
    found = prepare(encoded(image), Protocol(size=SIZE, filter=filter_name))
    if width < height:
        size = (SIZE, round(height * SIZE / width))
    else:
        size = (round(width * SIZE / height), SIZE)
    resized = image.resize(size, getattr(Image.Resampling, filter_name.upper()))
    rows = np.asarray(resized)
    top, left = (rows.shape[0] - SIZE) // 2, (rows.shape[1] - SIZE) // 2
    assert np.array_equal(found, rows[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1))


@pytest.mark.parametrize("filter_name", FILTERS)
def test_squashed(filter_name: str) -> None:
    image = photo(90, 60)
    found = prepare(encoded(image), Protocol(size=SIZE, resize="squash", filter=filter_name))
    resized = image.resize((SIZE, SIZE), getattr(Image.Resampling, filter_name.upper()))
    assert np.array_equal(found, as_pixels(resized))


def test_only_cropped() -> None:
    image = photo(91, 60)
    found = prepare(encoded(image), PLAIN)
    assert np.array_equal(found, as_pixels(image.crop((29, 14, 61, 46))))


def test_the_ways_to_resize_differ() -> None:
    data = encoded(photo(90, 60))
    made = {
        prepare(data, Protocol(size=SIZE, resize=resize, filter=name)).tobytes()
        for resize in ("shorter-side", "squash", "none")
        for name in ("bicubic", "lanczos", "bilinear", "box")
    }
    assert len(made) == 9  # without resizing there is no filter


@pytest.mark.parametrize(("width", "height"), [(2000, 3), (3, 2000), (1, 500), (1000, 1), (7, 2)])
@pytest.mark.parametrize("resize", ["shorter-side", "squash"])
def test_extreme_shapes(width: int, height: int, resize: str) -> None:
    columns = np.linspace(0, 255, width).astype("u1")[None].repeat(height, axis=0)
    found = prepare(encoded(Image.fromarray(columns)), Protocol(size=SIZE, resize=resize))
    assert found.shape == (3, SIZE, SIZE)
    if width > height:  # the middle of a ramp from black to white is grey
        assert found.mean() == pytest.approx(127, abs=2)


@pytest.mark.parametrize("size", [1, 8, 31, 257])
def test_other_sizes(size: int) -> None:
    assert prepare(encoded(photo()), Protocol(size=size)).shape == (3, size, size)


# --- streams ---


@pytest.fixture
def numbered(tmp_path: Path) -> ImageSet:
    """Forty pictures; the colour of each says which it is."""
    folder = tmp_path / "numbered"
    folder.mkdir()
    for number in range(40):
        image = Image.new("L", (SIZE, SIZE), number)
        (folder / f"{number:02d}.png").write_bytes(encoded(image))
    return ImageSet(folder)


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (1, 5), (8, 3), (8, 100)])
def test_order_is_kept_however_slow_readers_are(
    numbered: ImageSet, monkeypatch: pytest.MonkeyPatch, workers: int, ahead: int
) -> None:
    """With several readers, every fourth picture waits until a later one is there."""
    read = ImageSet.read
    done = [threading.Event() for _ in range(40)]

    def slow(self: ImageSet, index: int, protocol: Protocol, channels: int) -> Item:
        if workers > 1 and index % 4 == 0 and index + 1 < 40:
            assert done[index + 1].wait(30)
        item = read(self, index, protocol, channels)
        done[index].set()
        return item

    monkeypatch.setattr(ImageSet, "read", slow)
    items = list(numbered.stream(range(40), SMALL, 3, workers=workers, ahead=ahead))
    assert [item.at for item in items] == list(range(40))
    assert [item.name for item in items] == numbered.names
    assert [int(item.pixels[0, 0, 0]) for item in items] == list(range(40))


def test_a_stream_goes_by_its_indices(numbered: ImageSet) -> None:
    indices = [33, 2, 2, 17]
    items = list(numbered.stream(indices, SMALL, 1, workers=3, ahead=2))
    assert [item.at for item in items] == indices
    assert [int(item.pixels[0, 0, 0]) for item in items] == indices
    assert all(item.pixels.shape == (1, SIZE, SIZE) for item in items)
    assert list(numbered.stream([], SMALL, 3, workers=2, ahead=2)) == []


def test_not_more_is_read_than_asked_for(
    numbered: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Any, index: int, *args: Any) -> Any:
            asked.append(index)
            return super().submit(function, index, *args)

    monkeypatch.setattr("vaeconv.evaluation.image_set.ThreadPoolExecutor", Pool)
    stream = numbered.stream(range(40), SMALL, 3, workers=4, ahead=5)
    assert asked == []
    for number in range(3):
        assert next(stream).at == number
        assert asked == list(range(number + 5 + 1))
    stream.close()
    assert next(stream, None) is None
    assert len(asked) == 8


def test_what_nobody_waits_for_any_more_is_not_read(
    numbered: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ImageSet.read
    begun: list[int] = []

    def slow(self: ImageSet, index: int, protocol: Protocol, channels: int) -> Item:
        begun.append(index)
        if index:
            time.sleep(0.05)
        return read(self, index, protocol, channels)

    monkeypatch.setattr(ImageSet, "read", slow)
    stream = numbered.stream(range(40), SMALL, 3, workers=1, ahead=30)
    assert next(stream).at == 0
    stream.close()
    assert len(begun) < 10


def test_several_are_read_at_a_time(numbered: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(4, timeout=30)
    read = ImageSet.read

    def meeting(self: ImageSet, index: int, protocol: Protocol, channels: int) -> Item:
        barrier.wait()  # breaks where fewer than four ever meet
        return read(self, index, protocol, channels)

    monkeypatch.setattr(ImageSet, "read", meeting)
    items = list(numbered.stream(range(8), SMALL, 3, workers=4, ahead=4))
    assert [item.at for item in items] == list(range(8))


def test_a_zip_file_is_read_by_several_at_a_time(numbered: ImageSet, tmp_path: Path) -> None:
    pictures = ImageSet(zipped(Path(numbered.place), tmp_path / "numbered.zip"))
    items = list(pictures.stream(range(40), SMALL, 3, workers=8, ahead=16))
    pictures.close()
    assert [int(item.pixels[0, 0, 0]) for item in items] == list(range(40))
    assert all(item.reason is None for item in items)
