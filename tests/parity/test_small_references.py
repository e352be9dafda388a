"""References that a model or a file cannot have: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.pairs import run, write_references
from tests.support.samples import TINY, save_ckpt, weights_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As many channels at its lowest resolution as groups of the normalisation."""
    return save_ckpt(tmp_path / "model.ckpt", weights_of(TINY))


SMALL = "is too small for this autoencoder: its normalisation needs more than one value in a group"


def test_one_value_in_a_group(model, tmp_path):
    """torch cannot normalise that, and so neither can diffusers."""
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    write_references(small, TINY, side=1, count=1)
    write_references(large, TINY, side=3)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for code, *args in (
        (2, "verify", model, model, "--latents", small),
        (2, "verify", model, model, "--latents", large, "--tile", "2"),
        (0, "verify", model, model, "--latents", large, "--tile", "3"),
        (2, "latents", tmp_path / "picture.png", tmp_path / "o.safetensors", "--model", model,
         "--size", "2"),
    ):  # fmt: skip
        done = run(*args, "--device", "cpu")
        assert done.exit_code == code, done.stderr
        assert (SMALL in done.stderr) == bool(code)
    assert not (tmp_path / "o.safetensors").exists()


def latent(shape: tuple[int, ...] = (4, 4, 4), dtype: torch.dtype = torch.float32) -> Any:
    return torch.ones(shape).to(dtype)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({}, 3),
        ({"other": latent()}, 3),
        ({"latent.a": latent((3, 4, 4))}, 2),
        ({"latent.a": latent((4, 0, 4))}, 2),
        ({"latent.a": latent((1, 4, 4, 4))}, 2),
        ({"latent.a": latent(())}, 2),
        ({"latent.a": latent() * float("nan")}, 3),
        ({"latent.a": latent(dtype=torch.float64) * 1e300}, 3),
        ({"latent.a": latent(), "image.a": latent((3, 8, 8))}, 3),
        ({"latent.a": latent(), "image.a": latent((4, 8, 8), torch.uint8)}, 2),
        ({"latent.a": latent(), "image.a": latent((3, 7, 8), torch.uint8)}, 2),
        ({"latent.a": latent(dtype=torch.bfloat16)}, (0, 3)),
        ({"latent.a": latent(dtype=torch.float8_e4m3fn)}, (0, 3)),
        ({"latent.a": latent(dtype=torch.float16)}, 0),
        ({"latent.a": latent(dtype=torch.int64)}, 3),
        ({"latent.a": latent(dtype=torch.bool)}, 3),
        ({"latent.a": latent(dtype=torch.complex64)}, 3),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_references(tensors, code, model, tmp_path):
    save_file(tensors, tmp_path / "refs.safetensors")
    done = run("verify", model, model, "--latents", tmp_path / "refs.safetensors")
    codes = code if isinstance(code, tuple) else (code,)
    assert done.exit_code in codes, done.stderr
    assert done.exit_code == 0 or done.stderr.count("\n") == 1, done.stderr
    assert "refs.safetensors" in done.stderr + done.stdout


@pytest.mark.parametrize("change", [lambda data: data[:50], lambda data: b"{}", lambda data: b""])
def test_a_file_that_is_broken(change: Callable[[bytes], bytes], model, tmp_path):
    path = write_references(tmp_path / "refs.safetensors", TINY)
    path.write_bytes(change(path.read_bytes()))
    for place in (path, tmp_path, tmp_path / "none"):
        done = run("verify", model, model, "--latents", place)
        assert (done.exit_code, done.stderr.count("\n")) == (3, 1), done.stderr
