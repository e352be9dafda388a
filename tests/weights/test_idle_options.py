"""Options that have no effect in a call are wrong usage, from the command line and from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.support.samples import in_diffusers, prefixed, save_ckpt, save_folder, weights_of
from vaeconv import ConvertOptions, CopyOptions, PruneOptions, convert, prune
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.cli import app
from vaeconv.errors import UsageError
from vaeconv.weights.inspect import inspect
from vaeconv.weights.options import InspectOptions, Part


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    save_ckpt(folder / "model.ckpt", weights_of())
    save_folder(folder / "model", in_diffusers(weights_of()))
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 8)}
    save_file(unet | prefixed(weights_of()), folder / "full.safetensors")
    save_file(unet, folder / "unet.safetensors")
    return folder


def refused(here: Path, *args: object) -> str:
    before = sorted(here.iterdir())
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 2, (args, done.stderr)
    assert "has no effect here" in done.output
    assert "--json" in args or done.stderr.count("\n") == 1
    assert sorted(here.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize(
    ("source", "output", "options"),
    [
        ("model.ckpt", "x.ckpt", ["--family", "sd1"]),
        ("model.ckpt", "x.safetensors", ["--scaling-factor", "0.5"]),
        ("model.ckpt", "x.safetensors", ["--shift-factor", "0.5"]),
        ("model", "x.safetensors", ["--legacy-names"]),
        ("model.ckpt", "x.safetensors", ["--variant", "fp16"]),
        ("model", "x.ckpt", ["--metadata", "a=b"]),
        ("model", "x.ckpt", ["--clamp"]),
        ("model.ckpt", "x", ["--clamp"]),
        ("model.ckpt", "x", ["--manifest"]),
        ("model", "x.ckpt", ["--hash-source"]),
        ("model", "x.ckpt", ["--allow-nonfinite", "--no-check"]),
        ("model.ckpt", "x", ["--download"]),
        ("model.ckpt", "x", ["--drop", "losss.*"]),
        ("full.safetensors", "x", ["--prefix", "first_stage_model", "--source-prefix",
                                   "first_stage_model"]),
    ],
)  # fmt: skip
def test_convert(here: Path, source: str, output: str, options: list[str]) -> None:
    assert options[0] in refused(here, "convert", *options, here / source, here / output)


@pytest.mark.parametrize(
    ("source", "output", "options"),
    [
        ("model.ckpt", "x.ckpt", ["--max-shard-size", "1MB"]),
        ("model.ckpt", "x.ckpt", ["--variant", "fp16"]),
        ("model", "x", ["--manifest"]),
        ("model.ckpt", "x.ckpt", ["--hash-source"]),
        ("model.ckpt", "x.ckpt", ["--metadata", "a=b"]),
        ("model.ckpt", "x.ckpt", ["--clamp", "--dtype", "keep"]),
        ("model.ckpt", "x.ckpt", ["--fp16-except", "*", "--dtype", "keep"]),
        ("model.ckpt", "x.ckpt", ["--fp16-except", "decoder.conv_outt.*"]),
        ("model.ckpt", "x.ckpt", ["--download"]),
        ("model.ckpt", "x.ckpt", ["--device", "cpu"]),
        ("full.safetensors", "x.ckpt", ["--keep", "unet"]),
        ("full.safetensors", "x.ckpt", ["--drop", "loss"]),
        ("full.safetensors", "x.ckpt", ["--drop", "unet", "--vae-only"]),
        ("full.safetensors", "x.ckpt", ["--keep", "loss", "--drop", "loss"]),
        ("full.safetensors", "x.ckpt", ["--vae", "model", "--vae-only"]),
        ("full.safetensors", "x.ckpt", ["--drop", "vae", "--vae", "model"]),
        ("full.safetensors", "x.ckpt", ["--prefix", "vae", "--drop", "vae"]),
        ("unet.safetensors", "x.ckpt", ["--prefix", "vae"]),
        ("unet.safetensors", "x.ckpt", ["--source-prefix", "vae"]),
    ],
)
def test_prune(here: Path, source: str, output: str, options: list[str]) -> None:
    given = [str(here / "model") if option == "model" else option for option in options]
    said = refused(here, "prune", *given, here / source, here / output)
    assert any(option in said for option in options if option.startswith("--"))


@pytest.mark.parametrize(
    "args",
    [
        ["inspect", "--variant", "fp16", "model.ckpt"],
        ["inspect", "--download", "model.ckpt"],
        ["verify", "--weights-only", "--no-encode", "model.ckpt", "model"],
        ["verify", "--weights-only", "--device", "cpu", "model.ckpt", "model"],
        ["verify", "--weights-only", "--dtype", "fp16", "model.ckpt", "model"],
        ["verify", "--weights-only", "--atol", "1", "model.ckpt", "model"],
        ["verify", "--weights-only", "--tile", "8", "model.ckpt", "model"],
        ["verify", "--weights-only", "--pictures", "pictures", "model.ckpt", "model"],
        ["verify", "--variant-a", "fp16", "model.ckpt", "model"],
        ["verify", "--variant-b", "fp16", "model", "--drop-in-for", "model"],
        ["verify", "--download", "model.ckpt", "model"],
        ["latents", ".", "x.safetensors", "--model", "model.ckpt", "--variant", "fp16"],
        ["latents", ".", "x.safetensors", "--model", "model", "--download"],
        ["eval", "--add", "x.json", "--restart"],
        ["eval", "--add", "x.json", "--images", "."],
        ["eval", "model", "--images", ".", "--out", "x.json", "--seed", "3"],
        [
            "eval",
            "model",
            "--images",
            ".",
            "--out",
            "x.json",
            "--resize",
            "none",
            "--filter",
            "box",
        ],
        ["eval", "model", "--metrics", "psnr", "--lpips-weights", "x"],
        ["eval", "model", "--json", "--format", "latex"],
        ["compare", "model", "--images", ".", "--out", "x", "--download"],
        ["card", ".", "--check", "--sbom"],
        ["card", ".", "--check", "--meta", "x.toml"],
        ["release", "--init", "--until", "eval"],
        ["push", ".", "a/b", "--no-parity", "--report", "x.json"],
    ],
)
def test_other_commands(here: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.chdir(here)
    refused(here, *args)


@pytest.mark.parametrize(
    "options",
    [
        {"scaling": ScalingOptions(family="sd1")},
        {"copy": CopyOptions(clamp=True)},
        {"legacy_names": True},
        {"download": True},
        {"drop": ("nothing",)},
        {"metadata": {"a": "b"}},
    ],
)
def test_from_python(here: Path, options: dict[str, Any]) -> None:
    for dry_run in (False, True):
        with pytest.raises(UsageError, match="has no effect here"):
            convert(here / "model", here / "x.ckpt", ConvertOptions(**options), dry_run=dry_run)
    with pytest.raises(UsageError, match="has no effect here"):
        inspect(here / "model.ckpt", InspectOptions(variant="fp16"))
    with pytest.raises(UsageError, match="require_fp16_decode has no effect"):
        prune(here / "model", here / "x.ckpt", PruneOptions(require_fp16=True))
    with pytest.raises(UsageError, match="keep unet has no effect"):
        prune(here / "model", here / "x.ckpt", PruneOptions(keep=frozenset({Part.UNET})))


@pytest.mark.parametrize(
    ("command", "source", "output", "options"),
    [
        ("convert", "model.ckpt", "a", ["--allow-nonfinite", "--overwrite", "--variant", "fp16"]),
        ("convert", "model.ckpt", "b", ["--no-metadata", "--hash-source", "--salvage"]),
        ("convert", "model", "c.ckpt", ["--manifest", "--hash-source"]),
        ("convert", "model.ckpt", "d", ["--dtype", "fp16", "--clamp"]),
        ("prune", "full.safetensors", "e.ckpt", ["--keep", "loss", "--fp16-except",
                                                 "first_stage_model.*"]),
        ("prune", "model", "f", ["--max-shard-size", "1MB"]),
    ],
)  # fmt: skip
def test_what_finds_nothing_to_do_by_chance_is_fine(
    here: Path, tmp_path: Path, command: str, source: str, output: str, options: list[str]
) -> None:
    args = [command, *options, here / source, tmp_path / output]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.stderr


def test_a_batch_takes_what_some_of_it_can_use(here: Path, tmp_path: Path) -> None:
    options = ["--max-shard-size", "300kB", "--manifest", "--hash-source"]
    args = [
        "prune",
        *options,
        "--out-dir",
        tmp_path,
        here / "model.ckpt",
        here / "full.safetensors",
    ]
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 2 and "--max-shard-size has no effect" in done.stderr
    (here / "model").rename(here / "folder")
    try:
        args = ["prune", *options, "--out-dir", tmp_path, here / "model.ckpt", here / "folder"]
        done = CliRunner().invoke(app, [str(arg) for arg in args])
    finally:
        (here / "folder").rename(here / "model")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "model.safetensors.vaeconv.json").is_file()
    assert list((tmp_path / "folder").glob("*-of-*"))
