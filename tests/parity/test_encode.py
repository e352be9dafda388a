"""``vaeconv latents``: pictures in, reference latents out, with diffusers and Pillow as judges."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import Result

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near
from tests.support.compvis import DDConfig
from tests.support.pairs import check, run
from tests.support.samples import save_ckpt, weights_of

MODEL = FIXTURES / "tiny-diffusers"
CKPT = FIXTURES / "tiny-kl.ckpt"


def gradient(width: int, height: int) -> Image.Image:
    """A picture in which no two corners are alike."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype("u1"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    gradient(40, 30).save(folder / "wide.png")
    gradient(20, 32).save(folder / "high.webp", lossless=True)
    (folder / "notes.txt").write_text("no picture")
    return folder


def latents(*args: object, code: int = 0) -> Result:
    result = run("latents", *args, "--device", "cpu")
    assert result.exit_code == code, result.stderr
    return result


def encode_alone(picture: Image.Image, folder: Path, name: str = "p.png", **save: Any) -> Tensor:
    """The pixels that a picture is read as, at 16 x 16."""
    folder.mkdir(exist_ok=True)
    picture.save(folder / name, **save)
    out = folder.with_suffix(".safetensors")
    latents(folder / name, out, "--model", MODEL, "--size", 16)
    return load_file(out)[f"image.{Path(name).stem}"]


def test_latents_are_the_mode_that_diffusers_finds(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    result = latents(photos, out, "--model", CKPT, "--size", 24)
    tensors = load_file(out)
    assert sorted(tensors) == ["image.high", "image.wide", "latent.high", "latent.wide"]
    model = AutoencoderKL.from_pretrained(MODEL, torch_dtype=torch.float32)
    for name in ("high", "wide"):
        pixels, latent = tensors[f"image.{name}"], tensors[f"latent.{name}"]
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 24, 24))
        assert (latent.dtype, tuple(latent.shape)) == (torch.float32, (4, 12, 12))
        with torch.inference_mode():
            judged = model.encode(pixels[None].float() / 127.5 - 1).latent_dist.mode()[0]
        assert_near(latent, judged)
        assert latent.std() > 0.01
    assert "encoded 2 images on cpu to latents of 4x12x12" in result.stdout
    with safe_open(out, "pt") as file:
        about = json.loads(file.metadata()["vaeconv"])
    assert about == {"format": "vaeconv-latents-1", "model": "tiny-kl.ckpt", "size": 24}


def test_a_picture_is_resized_by_its_shorter_side_and_cut_in_its_middle(
    tmp_path: Path, photos: Path
) -> None:
    latents(photos, tmp_path / "r.safetensors", "--model", MODEL, "--size", 20)
    tensors = load_file(tmp_path / "r.safetensors")
    wide = gradient(40, 30).resize((27, 20), Image.Resampling.BICUBIC).crop((3, 0, 23, 20))
    judged = torch.from_numpy(np.asarray(wide).copy()).permute(2, 0, 1)
    assert torch.equal(tensors["image.wide"], judged)
    high = gradient(20, 32).crop((0, 6, 20, 26))
    judged = torch.from_numpy(np.asarray(high).copy()).permute(2, 0, 1)
    assert torch.equal(tensors["image.high"], judged)


def test_the_same_bytes_twice(tmp_path: Path, photos: Path) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for file in files:
        latents(photos, file, "--model", MODEL, "--size", 16)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_verify_takes_what_was_written(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    latents(photos, out, "--model", CKPT, "--size", 16)
    result = check(CKPT, MODEL, out)
    assert result.ok
    assert result.same is not None
    assert [(one.kind, one.name) for one in result.same.outcomes] == [
        ("decode", "high"), ("decode", "wide"), ("encode", "high"), ("encode", "wide"),
    ]  # fmt: skip
    assert result.same.outcomes[0].shape == (3, 16, 16)


# --- pictures of every kind ---

ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("value", "undo"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_turned_picture_is_put_upright(
    tmp_path: Path, value: int, undo: Image.Transpose | None
) -> None:
    upright = gradient(16, 16)
    turned = upright.transpose(undo) if undo is not None else upright
    exif = Image.Exif()
    exif[ORIENTATION] = value
    found = encode_alone(turned, tmp_path / "p", exif=exif)
    assert torch.equal(found, torch.from_numpy(np.asarray(upright).copy()).permute(2, 0, 1))


def test_a_turned_jpeg_is_put_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = gradient(16, 16).transpose(Image.Transpose.ROTATE_90)
    found = encode_alone(turned, tmp_path / "p", "p.jpg", exif=exif, quality=95).int()
    upright = torch.from_numpy(np.asarray(gradient(16, 16)).astype("i4")).permute(2, 0, 1)
    assert (found - upright).abs().float().mean() < 6


def palette() -> Image.Image:
    image = Image.new("P", (16, 16), 7)
    image.putpalette([*[0] * 21, 10, 200, 30, *[0] * (768 - 24)])
    return image


@pytest.mark.parametrize(
    ("image", "name", "colour"),
    [
        (Image.new("L", (16, 16), 90), "p.png", (90, 90, 90)),
        (Image.new("LA", (16, 16), (90, 128)), "p.png", (172, 172, 172)),  # on white
        (Image.new("1", (16, 16), 1), "p.png", (255, 255, 255)),
        (palette(), "p.png", (10, 200, 30)),
        (palette(), "p.gif", (10, 200, 30)),
        (Image.new("RGBA", (16, 16), (200, 10, 20, 255)), "p.png", (200, 10, 20)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "p.tif", (255, 0, 0)),
        (Image.new("RGB", (16, 16), (1, 2, 3)), "p.BMP", (1, 2, 3)),
    ],
    ids=["L", "LA", "1", "P", "gif", "RGBA", "CMYK", "bmp"],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, name: str, colour: tuple[int, ...]
) -> None:
    found = encode_alone(image, tmp_path / "p", name)
    assert found.shape == (3, 16, 16)
    assert found.flatten(1).T.unique(dim=0).tolist() == [list(colour)]


def test_pictures_of_16_bits_are_read(tmp_path: Path) -> None:
    deep = Image.fromarray(np.zeros((16, 16), "u2"))
    assert deep.mode == "I;16"
    assert encode_alone(deep, tmp_path / "p").unique().tolist() == [0]


def test_a_tiny_picture_is_enlarged(tmp_path: Path) -> None:
    found = encode_alone(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "p")
    assert found.flatten(1).T.unique(dim=0).tolist() == [[9, 8, 7]]


def test_a_model_of_one_channel_sees_grey(tmp_path: Path, photos: Path) -> None:
    config = DDConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, in_channels=1, out_ch=1)
    model = save_ckpt(tmp_path / "grey.ckpt", weights_of(config))
    latents(photos, tmp_path / "r.safetensors", "--model", model, "--size", 20)
    tensors = load_file(tmp_path / "r.safetensors")
    assert tensors["image.high"].shape == (1, 20, 20)
    grey = gradient(20, 32).convert("L").crop((0, 6, 20, 26))
    assert torch.equal(tensors["image.high"][0], torch.from_numpy(np.asarray(grey).copy()))


def test_two_pictures_of_one_name_are_both_kept(tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (16, 16), (9, 8, 7)).save(photos / "wide.bmp")
    latents(photos, tmp_path / "r.safetensors", "--model", MODEL, "--size", 16)
    tensors = load_file(tmp_path / "r.safetensors")
    names = sorted(name for name in tensors if name.startswith("image."))
    assert names == ["image.high", "image.wide", "image.wide.png"]
    assert tensors["image.wide"].flatten(1).T.unique(dim=0).tolist() == [[9, 8, 7]]


# --- pictures that are none ---


def truncated(path: Path) -> None:
    whole = io.BytesIO()
    gradient(256, 256).save(whole, "JPEG", quality=95)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A head of 2.5 gigapixels, and hardly anything behind it."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def large(path: Path) -> None:
    """Beyond what is read, and below where Pillow itself refuses."""
    head = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def page(path: Path) -> None:
    path.write_bytes(b"<!doctype html><title>404</title>")


@pytest.mark.parametrize("write", [truncated, bomb, large, page, Path.touch])
def test_what_is_no_picture_is_named(
    tmp_path: Path, photos: Path, write: Callable[[Path], None]
) -> None:
    write(photos / "zzz.jpg")
    out = tmp_path / "r.safetensors"
    for name in ("high.webp", "wide.png"):
        (photos / name).unlink()
    result = latents(photos, out, "--model", MODEL, "--size", 16, code=3)
    said = {
        truncated: "cut short",
        bomb: "a decompression bomb",
        large: "a decompression bomb",
        page: "not an image of a known format, or cut short",
        Path.touch: "empty",
    }
    assert f"zzz.jpg: {said[write]}" in result.stderr
    assert "Warning" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    out = tmp_path / "r.safetensors"
    result = latents(tmp_path / "empty", out, "--model", MODEL, code=3)
    assert "no images in it" in result.stderr
    result = latents(tmp_path / "none", out, "--model", MODEL, code=3)
    assert "no such folder, zip file or image" in result.stderr
    assert not out.exists()


# --- options ---


def test_only_the_first_pictures_are_taken(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    (photos / "zzz.png").write_bytes(b"never looked at")
    latents(photos, out, "--model", MODEL, "--size", 16, "--limit", 1)
    assert sorted(load_file(out)) == ["image.high", "latent.high"]
    assert run("latents", photos, out, "--model", MODEL, "--limit", 0).exit_code == 2


@pytest.mark.parametrize(("size", "nearest"), [(17, 16), (19, 20), (1, 2)])
def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_does(
    tmp_path: Path, photos: Path, size: int, nearest: int
) -> None:
    result = latents(photos, tmp_path / "r.safetensors", "--model", MODEL, "--size", size, code=2)
    assert f"{size} pixels do not divide by 2" in result.stderr
    assert f"use --size {nearest}\n" in result.stderr


def test_an_output_that_is_there_stays(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    out.write_bytes(b"precious")
    latents(photos, out, "--model", MODEL, "--size", 16, code=5)
    assert out.read_bytes() == b"precious"
    latents(photos, out, "--model", MODEL, "--size", 16, "--overwrite")
    assert len(load_file(out)) == 4


def test_an_output_that_is_there_stays_where_replacing_it_fails(
    tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "r.safetensors"
    out.write_bytes(b"precious")
    for path in (photos / "high.webp", photos / "wide.png"):
        path.write_bytes(b"no image")
    latents(photos, out, "--model", MODEL, "--size", 16, "--overwrite", code=3)
    assert out.read_bytes() == b"precious"


def test_the_model_is_never_overwritten(tmp_path: Path, photos: Path) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes((FIXTURES / "tiny-kl.safetensors").read_bytes())
    before = model.read_bytes()
    result = run("latents", photos, model, "--model", model, "--overwrite", "--size", 16)
    assert result.exit_code != 0
    assert model.read_bytes() == before


def test_json_tells_what_was_written(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    document = json.loads(latents(photos, out, "--model", MODEL, "--size", 16, "--json").stdout)
    assert document == {
        "schema_version": 1,
        "command": "latents",
        "ok": True,
        "path": str(out),
        "bytes": out.stat().st_size,
        "names": ["high", "wide"],
        "latent": [4, 8, 8],
        "device": "cpu",
        "images": None,
        "left_out": [{"name": "notes.txt", "reason": "with another ending"}],
    }
    failed = latents(photos, out, "--model", MODEL, "--json", code=5)
    assert json.loads(failed.stdout)["ok"] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_no_cpu(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "r.safetensors"
    result = run("latents", photos, out, "--model", MODEL, "--device", "cuda")
    assert result.exit_code == 7
    assert not out.exists()


def test_bad_models_are_bad_input(tmp_path: Path, photos: Path) -> None:
    result = latents(photos, tmp_path / "r.safetensors", "--model", photos / "wide.png", code=3)
    assert "wide.png" in result.stderr
    assert run("latents", photos, tmp_path / "r.safetensors").exit_code == 2  # no --model


def test_the_installed_entry_point(tmp_path: Path, photos: Path) -> None:
    entry = Path(sys.executable).with_name("vaeconv")
    out = tmp_path / "r.safetensors"
    done = subprocess.run(
        [entry, "latents", photos, out, "--model", MODEL, "--size", "16", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "encoded 2 images" in done.stdout
    again = tmp_path / "again.safetensors"
    latents(photos, again, "--model", MODEL, "--size", 16)
    for name, tensor in load_file(out).items():
        assert_near(tensor, load_file(again)[name])


def test_pictures_of_16_bits_keep_their_greys(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((16, 16), 90 * 257, "u2"))
    assert encode_alone(deep, tmp_path / "p").unique().tolist() == [90]


def test_an_image_that_cannot_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    out = tmp_path / "r.safetensors"
    result = latents(photos, out, "--model", MODEL, "--size", 16, "--verbose")
    assert "broken.png: not an image" in result.stderr
    found = json.loads(latents(photos, out, "--model", MODEL, "--size", 16, "--overwrite",
                               "--json").stdout)  # fmt: skip
    assert found["names"] == ["high", "wide"]
    assert {one["name"] for one in found["left_out"]} == {"broken.png", "notes.txt"}
    for name in ("high.webp", "wide.png"):
        (photos / name).unlink()
    result = latents(photos, tmp_path / "n.safetensors", "--model", MODEL, code=3)
    assert "no image can be used, such as broken.png" in result.stderr
