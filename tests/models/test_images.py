"""Which files are images, which are left out and why, and images that are not whole."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.evaluation.runs import tiles
from vaeconv.errors import CheckpointNotFoundError, InputError, UnsupportedModelError
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.models.image_files import HIDDEN, OTHER_ENDING, list_images, open_images
from vaeconv.models.images import (
    FIRST_FRAME,
    LeftOut,
    alone_if_large,
    count_left_out,
    decode,
    image_mode,
    quiet_pillow,
)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    image = next(tiles(61, 47)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "png": encoded("PNG"),
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "webp": encoded("WEBP"),
    "lossless": encoded("WEBP", lossless=True),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "lzw": encoded("TIFF", compression="tiff_lzw"),
    "gif": encoded("GIF", "P"),
    "ppm": encoded("PPM"),
    "cmyk": encoded("JPEG", "CMYK"),
    "alpha": encoded("PNG", "RGBA"),
}


# --- which files ---


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """One image, and one file of each kind that is none."""
    folder = tmp_path / "odd"
    (folder / ".thumbnails").mkdir(parents=True)
    (folder / "sub").mkdir()
    for name in ("good.png", "sub/good.PNG", ".a.png", ".thumbnails/b.png", "sub/._c.png"):
        (folder / name).write_bytes(KINDS["png"])
    for name in ("notes.txt", "sub/x.heic", "no ending", "good.png.part"):
        (folder / name).write_bytes(b"x")
    return folder


ODD = [
    LeftOut(".a.png", HIDDEN),
    LeftOut(".thumbnails/b.png", HIDDEN),
    LeftOut("good.png.part", OTHER_ENDING),
    LeftOut("no ending", OTHER_ENDING),
    LeftOut("notes.txt", OTHER_ENDING),
    LeftOut("sub/._c.png", HIDDEN),
    LeftOut("sub/x.heic", OTHER_ENDING),
]


def test_every_file_is_an_image_or_left_out_for_a_reason(odd: Path) -> None:
    names, left_out = list_images(odd)
    assert names == ["good.png", "sub/good.PNG"]
    assert left_out == ODD
    files = [path for path in odd.rglob("*") if path.is_file()]
    assert len(names) + len(left_out) == len(files)
    assert count_left_out(left_out) == ("7 files are not used: 3 hidden; 4 with another ending")


def test_what_cannot_be_reached_is_left_out(odd: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.png").write_bytes(KINDS["png"])
    (odd / "link").symlink_to(elsewhere)
    (odd / "cycle").symlink_to(odd)
    (odd / "gone.png").symlink_to(tmp_path / "nothing")
    (odd / "linked.png").symlink_to(elsewhere / "d.png")
    os.mkfifo(odd / "pipe.png")
    (odd / "folder.png").mkdir()
    names, left_out = list_images(odd)
    assert names == ["good.png", "linked.png", "sub/good.PNG"]
    assert set(left_out) - set(ODD) == {
        LeftOut("link/", "a link to a folder is not followed"),
        LeftOut("cycle/", "a link to a folder is not followed"),
        LeftOut("gone.png", "a link to nothing"),
        LeftOut("pipe.png", "not a regular file"),
    }


def test_a_folder_that_cannot_be_listed(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, left_out = list_images(odd)
    assert names == ["good.png"]
    assert LeftOut("sub/", "cannot be listed (Permission denied)") in left_out


def test_members_of_a_zip_file_are_left_out_for_the_same_reasons(odd: Path, tmp_path: Path) -> None:
    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for path in sorted(odd.rglob("*")):
            bundle.write(path, path.relative_to(odd))
        bundle.writestr("__MACOSX/._good.png", b"x")
    images = ImageSet(archive)
    assert images.names == ["good.png", "sub/good.PNG"]
    assert images.left_out == sorted([*ODD, LeftOut("__MACOSX/._good.png", HIDDEN)])
    assert images.fingerprint == ImageSet(odd).fingerprint
    images.close()


def test_a_name_that_a_zip_file_has_twice_is_one_image(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("a.png", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            bundle.writestr("a.png", KINDS["png"])
    images = ImageSet(tmp_path / "x.zip")
    assert images.names == ["a.png"]
    assert images.left_out == [LeftOut("a.png", "another entry has the same name")]
    images.close()


def test_encrypted_members_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("a.png", KINDS["png"])
        bundle.writestr("b.png", KINDS["png"])
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1  # flag of the second entry in the directory
    (tmp_path / "x.zip").write_bytes(data)
    images = ImageSet(tmp_path / "x.zip")
    assert (images.names, images.left_out) == (["a.png"], [LeftOut("b.png", "encrypted")])
    images.close()


# --- what is not whole ---


def pixels_of(data: bytes) -> np.ndarray:
    with quiet_pillow():
        return np.asarray(decode(data, "RGB")[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerant", [False, True])
def test_an_image_that_was_cut_short_is_whole_or_refused(
    kind: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody told Pillow to load parts."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = KINDS[kind]
    whole = pixels_of(data)
    refused = 0
    for length in (*range(0, len(data), len(data) // 24), *range(len(data) - 24, len(data))):
        try:
            found = pixels_of(data[:length])
        except InputError:
            refused += 1
            continue
        np.testing.assert_array_equal(found, whole)
    assert refused >= 12
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize("kind", ["png", "alpha", "jpeg", "progressive", "webp", "lossless", "gif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_tail_of_zeros_is_no_image(kind: str, share: float) -> None:
    """As a download leaves that claims its space before it fetches."""
    data = KINDS[kind]
    kept = int(len(data) * share)
    with pytest.raises(InputError):
        pixels_of(data[:kept] + bytes(len(data) - kept))


def test_a_flat_webp_ends_in_zeros_and_is_whole() -> None:
    for colour in ("black", "white"):
        image = Image.new("RGB", (2048, 2048), colour)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP")
        assert buffer.getvalue().endswith(bytes(100))
        assert pixels_of(buffer.getvalue()).std() == 0


def test_a_damaged_byte_of_a_png_is_found() -> None:
    data = bytearray(KINDS["png"])
    data[len(data) // 2] ^= 4
    with pytest.raises(InputError, match=r"damaged \(SyntaxError\)"):
        pixels_of(bytes(data))


def test_the_first_of_several_frames_is_said() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        assert decode(buffer.getvalue(), "RGB")[1] == FIRST_FRAME
        assert decode(encoded(kind), "RGB")[1] is None


# --- channels ---


def test_channels_that_images_have() -> None:
    assert [image_mode(channels, "x") for channels in (1, 3, 4)] == ["L", "RGB", "RGBA"]
    for channels in (0, 2, 5, 16):
        with pytest.raises(UnsupportedModelError, match=f"m.ckpt: takes images of {channels} "):
            image_mode(channels, "m.ckpt")


def test_alpha_is_kept_where_it_is_wanted() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 128))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert decode(buffer.getvalue(), "RGBA")[0].getpixel((0, 0)) == (10, 20, 30, 128)
    assert decode(buffer.getvalue(), "RGB")[0].getpixel((0, 0)) == (132, 137, 142)
    assert decode(KINDS["jpeg"], "RGBA")[0].getextrema()[3] == (255, 255)


def test_16_bits_and_floats_are_scaled_in_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 1 << 16, (1000, 700), dtype=np.uint16)
    floats = (rng.random((1000, 700)) * 3).astype(np.float32)
    for values, top, name in ((grey, 65535.0, "a.png"), (floats, float(floats.max()), "a.tiff")):
        Image.fromarray(values).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        tracemalloc.start()
        image, _ = decode(data, "L")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        wanted = np.clip(values.astype(np.float64) / top * 255, 0, 255).round()
        assert np.array_equal(np.asarray(image), wanted.astype(np.uint8))
        assert peak < 12 * values.size, "as bytes, without a copy in float64"


def test_large_images_are_read_one_at_a_time() -> None:
    def data_of(side: int) -> bytes:
        file = io.BytesIO()
        Image.new("1", (side, side)).save(file, "PNG")
        return file.getvalue()

    def read() -> None:
        with alone_if_large(large):
            pass

    large, small = data_of(4200), data_of(64)
    with alone_if_large(large), alone_if_large(small), alone_if_large(b"no image"):
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
    reader.join(60)
    assert not reader.is_alive()


def test_what_a_zip_packs_too_well_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    flat = io.BytesIO()
    Image.new("L", (2000, 2000)).save(flat, "BMP")  # packs as well, and is one
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("a.png", bytes(64 << 20))
        bundle.writestr("b.bmp", flat.getvalue())
    files = open_images(tmp_path / "x.zip")
    tracemalloc.start()
    with pytest.raises(InputError, match="not an image"):
        files.read("a.png")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert files.read("b.bmp") == flat.getvalue()
    files.close()


@pytest.mark.parametrize("name", ["a" * 400, "a\0b", "b/" * 3000])
def test_a_name_that_no_folder_can_have_is_no_folder(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_images(name)
    assert caught.value.what.startswith("no such folder")
