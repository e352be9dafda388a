"""Conversions against diffusers' own converter, and against a second implementation's pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.compare import is_same
from fixtures.make_fixtures import make_weights, random_tensor
from tests.support.closeness import LIMITS, gap
from tests.support.compvis import DDConfig
from vaeconv import ConvertOptions, ScalingOptions, convert
from vaeconv.models.compvis import CompVisAutoencoder

SD = DDConfig(ch=32)
UPSCALER = DDConfig(ch=32, ch_mult=(1, 2, 4))
SIXTEEN = DDConfig(ch=32, z_channels=16, quant=False)

# The vae/config.json of the models on the Hub, with a quarter of the width.
PLAIN = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 128, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
NO_QUANT = PLAIN | {
    "latent_channels": 16,
    "mid_block_add_attention": True,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
HUB: dict[str, tuple[DDConfig, dict[str, Any]]] = {
    "sd1": (SD, PLAIN | {"sample_size": 512, "scaling_factor": 0.18215}),
    "sdxl": (SD, PLAIN | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
    "x4-upscaler": (
        UPSCALER,
        PLAIN
        | {
            "block_out_channels": [32, 64, 128],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "sample_size": 256,
            "scaling_factor": 0.08333,
        },
    ),
    "sd3": (
        SIXTEEN,
        NO_QUANT
        | {
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "force_upcast": True,
            "latents_mean": None,
            "latents_std": None,
        },
    ),
    "flux1": (
        SIXTEEN,
        NO_QUANT | {"sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    ),
}


def write_source(path: Path, weights: dict[str, Tensor], prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in weights.items()}
    if prefix:
        state["model.diffusion_model.time_embed.0.bias"] = torch.zeros(3)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 3}, path)


@contextmanager
def no_warnings_of_diffusers() -> Iterator[None]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    messages = [record.getMessage() for record in records]
    assert [m for m in messages if "`accelerate` was not found" not in m] == []


def load_converted(folder: Path) -> Any:
    """Load with diffusers, which must have nothing to say about it."""
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    with no_warnings_of_diffusers():
        model, info = DiffusersAutoencoderKL.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


FILES = {
    "vae.safetensors": "",
    "vae.ckpt": "",
    "full.safetensors": "first_stage_model.",
    "full.ckpt": "first_stage_model.",
    "comfy.safetensors": "vae.",
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("sd1", name) for name in FILES),
        *((family, name) for family in HUB for name in ("vae.safetensors", "full.ckpt")
          if family != "sd1"),
    ],
)  # fmt: skip
def test_conversion_is_that_of_from_single_file(tmp_path: Path, family: str, name: str) -> None:
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    config, hub_config = HUB[family]
    source, reference = tmp_path / name, tmp_path / "reference"
    write_source(source, make_weights(config, torch.float32, seed=11), FILES[name])
    reference.mkdir()
    (reference / "config.json").write_text(json.dumps(hub_config), encoding="utf-8")
    theirs = DiffusersAutoencoderKL.from_single_file(
        str(source), config=str(reference), local_files_only=True
    )
    folder = tmp_path / "out"
    convert(source, folder, ConvertOptions(scaling=ScalingOptions(family=family)))
    ours = load_converted(folder)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(is_same(found[key], expected[key]) for key in expected)
    written = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert written.keys() == expected.keys()
    assert all(is_same(written[key], expected[key]) for key in expected)
    # What the Hub's config leaves out has the class default.
    private = {"_name_or_path", "_diffusers_version", "_use_default_values"}
    assert {k: v for k, v in ours.config.items() if k not in private} == {
        k: v for k, v in theirs.config.items() if k not in private
    }


CONFIGS = {
    "kl-f4": DDConfig(ch=32, ch_mult=(1, 2, 4), z_channels=3),
    "kl-f8": SD,
    "kl-f16": DDConfig(ch=32, ch_mult=(1, 1, 2, 2, 4), z_channels=16, attn_levels=frozenset({4})),
    "kl-f32": DDConfig(
        ch=32, ch_mult=(1, 1, 2, 2, 4, 4), z_channels=64, attn_levels=frozenset({4, 5})
    ),
    "no-quant": SIXTEEN,
    "attention-free": DDConfig(
        ch=32, ch_mult=(1, 2, 4), num_res_blocks=4, mid_attn=False, quant=False
    ),
    "everywhere": DDConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_levels=frozenset({0, 1})),
    "mask": DDConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, in_channels=4, out_ch=1),
}


def load_reference(weights: dict[str, Tensor], config: DDConfig) -> CompVisAutoencoder:
    model = CompVisAutoencoder(config.topology)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def differences(theirs: Any, ours: CompVisAutoencoder, config: DDConfig) -> tuple[float, float]:
    """How far the moments and the pictures are apart."""
    side = 2 ** (len(config.ch_mult) - 1)
    picture = random_tensor("picture", (1, config.in_channels, 2 * side, 4 * side), seed=1)
    latent = random_tensor("latent", (1, config.z_channels, 2, 4), seed=1)
    with torch.inference_mode():
        moments, decoded = ours.encode(picture), ours.decode(latent)
        assert moments.std() > 0.01
        assert decoded.std() > 0.01
        return gap(theirs._encode(picture), moments), gap(theirs.decode(latent).sample, decoded)


@pytest.mark.parametrize("name", CONFIGS)
def test_converted_model_computes_what_the_reference_computes(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    weights = make_weights(config, torch.float32, seed=12)
    torch.save({"state_dict": weights}, tmp_path / "m.ckpt")
    scaling = ScalingOptions(scaling_factor=1.0, shift_factor=0.0)
    convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(scaling=scaling))
    theirs, ours = load_converted(tmp_path / "out"), load_reference(weights, config)
    assert max(differences(theirs, ours, config)) <= LIMITS["fp32"]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("mid_block.resnets.0.conv1.bias", "mid_block.resnets.1.conv1.bias"),
        ("mid_block.attentions.0.to_q.weight", "mid_block.attentions.0.to_k.weight"),
    ],
)
def test_planted_swap_of_two_tensors_shows_in_the_pictures(
    tmp_path: Path, part: str, one: str, two: str
) -> None:
    config = CONFIGS["kl-f4"]
    weights = make_weights(config, torch.float32, seed=12)
    save_file(weights, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "out")
    path = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    left, right = f"{part}.{one}", f"{part}.{two}"
    save_file(state | {left: state[right], right: state[left]}, path)
    errors = differences(load_converted(tmp_path / "out"), load_reference(weights, config), config)
    assert max(errors) > LIMITS["fp32"]


@pytest.mark.parametrize("target", ["back.ckpt", "back.safetensors"])
@pytest.mark.parametrize("name", ["kl-f16", "no-quant"])
def test_a_folder_of_save_pretrained_becomes_a_compvis_model(
    tmp_path: Path, name: str, target: str
) -> None:
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    config = CONFIGS[name]
    levels = range(len(config.ch_mult))
    torch.manual_seed(0)
    theirs = DiffusersAutoencoderKL(
        block_out_channels=config.widths,
        down_block_types=[
            "AttnDownEncoderBlock2D" if i in config.attn_levels else "DownEncoderBlock2D"
            for i in levels
        ],
        up_block_types=[
            "AttnUpDecoderBlock2D" if i in config.attn_levels else "UpDecoderBlock2D"
            for i in reversed(levels)
        ],
        layers_per_block=2,
        latent_channels=config.z_channels,
        use_quant_conv=config.quant,
        use_post_quant_conv=config.quant,
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / target)
    if target.endswith(".ckpt"):
        weights = torch.load(tmp_path / target, weights_only=True)["state_dict"]
    else:
        weights = load_file(tmp_path / target)
    ours = load_reference(weights, config)
    assert max(differences(theirs, ours, config)) <= LIMITS["fp32"]


def test_old_names_are_those_that_diffusers_still_loads(tmp_path: Path) -> None:
    config = CONFIGS["kl-f16"]
    save_file(make_weights(config, torch.float32, seed=13), tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "new")
    convert(tmp_path / "m.safetensors", tmp_path / "old", ConvertOptions(legacy_names=True))
    names = load_file(tmp_path / "old" / "diffusion_pytorch_model.safetensors").keys()
    assert "encoder.mid_block.attentions.0.query.weight" in names
    assert not any("to_" in name for name in names)
    new = load_converted(tmp_path / "new").state_dict()
    old = load_converted(tmp_path / "old").state_dict()
    assert new.keys() == old.keys()
    assert all(is_same(new[key], old[key]) for key in new)
