"""Attention on a level of one half only, as MAR's KL-16 has it: by names, by diffusers, and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.autoencoder.topologies import make_topology
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Topology
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions

BASE = make_topology((1, 2), 4, ch=32, layers=1)
HALVES = [
    BASE._replace(encoder_attention=(False, True)),
    BASE._replace(decoder_attention=(True, False)),
    BASE._replace(encoder_attention=(True, False), decoder_attention=(False, True)),
]


@pytest.mark.parametrize("topology", HALVES, ids=["encoder", "decoder", "crossed"])
def test_diffusers_computes_the_same_and_the_way_back_is_exact(
    topology: Topology, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = CompVisAutoencoder(topology).eval()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    options = ConvertOptions(scaling=ScalingOptions(scaling_factor=0.2))
    convert(tmp_path / "a.safetensors", tmp_path / "out", options)
    theirs = AutoencoderKL.from_pretrained(str(tmp_path / "out"))
    with torch.no_grad():
        x, z = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
        for mine, other in (
            (model.encode(x), theirs.encode(x).latent_dist.parameters),
            (model.decode(z), theirs.decode(z).sample),
        ):
            assert (mine - other).abs().max() <= 1e-4 * mine.abs().max()
    convert(tmp_path / "out", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
