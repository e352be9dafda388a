"""The CompVis modules against diffusers, and against arithmetic written another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fixtures.make_fixtures import FOLDER as FIXTURES
from fixtures.make_fixtures import make_weights, random_tensor
from tests.autoencoder.topologies import ask_outsiders, build_diffusers, diffusers_config
from tests.support.closeness import assert_near, gap
from tests.support.compvis import DDConfig
from vaeconv.autoencoder.keys import expand_rules
from vaeconv.autoencoder.topology import Layout
from vaeconv.models.compvis import (
    AttnBlock,
    CompVisAutoencoder,
    Downsample,
    Middle,
    ResnetBlock,
    Upsample,
)
from vaeconv.models.load import load_compvis, load_diffusers
from vaeconv.models.open_model import ModelOptions, open_model
from vaeconv.weights.plan import Row

# The published shapes, at a quarter of their width.
MODELS = {
    "kl-f4": DDConfig(ch=32, ch_mult=(1, 2, 4), z_channels=3),
    "kl-f8": DDConfig(ch=32, ch_mult=(1, 2, 4, 4)),
    "kl-f16": DDConfig(
        ch=32, ch_mult=(1, 1, 2, 2, 4), attn_levels=frozenset({4}), z_channels=16
    ),
    "kl-f32": DDConfig(
        ch=32, ch_mult=(1, 1, 2, 2, 4, 4), attn_levels=frozenset({4, 5}), z_channels=64
    ),
    "sd3": DDConfig(ch=32, ch_mult=(1, 2, 4, 4), z_channels=16, quant=False),
    "attention-free": DDConfig(
        ch=32, ch_mult=(1, 2, 4), num_res_blocks=4, mid_attn=False, quant=False
    ),
    "grey": DDConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, in_channels=1, out_ch=4),
}  # fmt: skip


State = dict[str, Tensor]


def default_weights(config: DDConfig) -> State:
    """Weights as torch starts with them, whose results stay around one."""
    torch.manual_seed(3)
    return CompVisAutoencoder(config.topology).state_dict()


def random_weights(config: DDConfig) -> State:
    """No two of them alike, the normalisations' neither."""
    return make_weights(config, torch.float32, seed=11)


def build(config: DDConfig, weights: State) -> CompVisAutoencoder:
    model = CompVisAutoencoder(config.topology)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def build_theirs(config: DDConfig, weights: State) -> Any:
    """Diffusers' model with the same weights; which is which, outsiders tell by running both."""
    told = ask_outsiders(config.topology)
    assert weights.keys() == told.pairs.keys()
    renamed = {
        told.pairs[name]: tensor.reshape(told.diffusers[told.pairs[name]])
        for name, tensor in weights.items()
    }
    model = build_diffusers(diffusers_config(config.topology))
    model.load_state_dict(renamed, strict=True, assign=True)
    return model.eval()


def noise(*shape: int, seed: int = 4) -> Tensor:
    return random_tensor(f"{shape}", shape, seed) * 2


def references(config: DDConfig) -> tuple[Tensor, Tensor]:
    """A latent and a picture that are not square."""
    factor = 2 ** (len(config.ch_mult) - 1)
    latent = noise(2, config.z_channels, 2, 3)
    return latent, noise(2, config.in_channels, 3 * factor, 2 * factor) / 2


def run_ours(config: DDConfig, weights: State, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    model = build(config, weights).to(dtype)
    latent, picture = (one.to(dtype) for one in references(config))
    with torch.inference_mode():
        return model.decode(latent), model.encode(picture)


def run_theirs(config: DDConfig, weights: State) -> tuple[Tensor, Tensor]:
    """What diffusers makes of it in float64, where rounding is nothing."""
    model = build_theirs(config, weights)
    nn.Module.to(model, torch.float64)  # not its own, which has something to say
    latent, picture = (one.double() for one in references(config))
    with torch.inference_mode():
        return model.decode(latent).sample, model.encode(picture).latent_dist.parameters


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("make", [default_weights, random_weights])
def test_in_fp64_both_implementations_agree(name: str, make: Callable[[DDConfig], State]) -> None:
    config = MODELS[name]
    weights, factor = make(config), 2 ** (len(config.ch_mult) - 1)
    decoded, moments = run_ours(config, weights, torch.float64)
    assert decoded.shape == (2, config.out_ch, 2 * factor, 3 * factor)
    assert moments.shape == (2, 2 * config.z_channels, 3, 2)
    for found, judged in zip((decoded, moments), run_theirs(config, weights), strict=True):
        assert judged.std() > 0.01
        assert_near(found, judged)


@pytest.mark.parametrize("name", MODELS)
def test_in_fp32_both_implementations_agree(name: str) -> None:
    config = MODELS[name]
    weights = default_weights(config)
    both = zip(run_ours(config, weights, torch.float32), run_theirs(config, weights), strict=True)
    for found, judged in both:
        assert_near(found, judged)


@pytest.mark.parametrize("name", MODELS)
def test_normalisations_are_those_of_diffusers(name: str) -> None:
    """Another epsilon in one of them moves a result by as little as 3e-6 of its magnitude."""
    topology = MODELS[name].topology
    with torch.device("meta"):
        ours: nn.Module = CompVisAutoencoder(topology)
        theirs = build_diffusers(diffusers_config(topology))
    renamed = {
        pair.diffusers.removesuffix(".weight"): pair.compvis.removesuffix(".weight")
        for pair in expand_rules(topology)
    }
    found = {
        path: (module.num_groups, module.eps)
        for path, module in ours.named_modules()
        if isinstance(module, nn.GroupNorm)
    }
    expected = {
        renamed[path]: (module.num_groups, module.eps)
        for path, module in theirs.named_modules()
        if isinstance(module, nn.GroupNorm)
    }
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_those_of_the_key_table(name: str) -> None:
    topology = MODELS[name].topology
    with torch.device("meta"):
        model = CompVisAutoencoder(topology)
    found = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    table = {pair.compvis: pair.shape(Layout.COMPVIS) for pair in expand_rules(topology)}
    assert found == table


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_loading_is_strict(change: str) -> None:
    config = MODELS["grey"]
    weights = make_weights(config, torch.float32, seed=11)
    if change == "missing":
        del weights["decoder.mid.attn_1.k.bias"]
    elif change == "unexpected":
        weights["decoder.mid.attn_1.k.gain"] = torch.ones(1)
    else:
        weights["quant_conv.bias"] = torch.ones(3)
    with pytest.raises(RuntimeError, match="in loading state_dict"):
        CompVisAutoencoder(config.topology).load_state_dict(weights, strict=True)


@pytest.mark.parametrize("layout", ["compvis", "diffusers"])
def test_what_verify_runs_is_loaded_strictly(layout: str) -> None:
    is_ours = layout == "compvis"
    source = FIXTURES / ("tiny-kl.safetensors" if is_ours else "tiny-diffusers")
    side = open_model(source, "A", ModelOptions(), ema=False)
    rows, config = list(side.rows.values()), diffusers_config(side.topology)

    def load(some: list[Row]) -> Any:
        model = load_compvis(side.topology, some) if is_ours else load_diffusers(config, some)
        return model.module

    try:
        model = load(rows)
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        assert not model.training
        for wrong in (rows[:-1], [*rows, rows[0]._replace(name="decoder.nothing")]):
            with pytest.raises(RuntimeError, match="in loading state_dict"):
                load(wrong)
    finally:
        side.close()


# --- the pieces, one by one ---


def with_weights(module: nn.Module, seed: int = 2) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.data = random_tensor(name, tuple(parameter.shape), seed)
    return module.eval()


def normalise(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group by group, in float64, with the epsilon inside the root."""
    groups = x.double().reshape(x.shape[0], 32, -1)
    mean = groups.mean(dim=2, keepdim=True)
    variance = (groups - mean).square().mean(dim=2, keepdim=True)
    normed = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return normed * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]


def test_a_downsampler_looks_right_and_down_only() -> None:
    """Padded all round, every output would sit one pixel up and left."""
    x = noise(1, 1, 6, 8)
    for row, column in ((0, 0), (1, 2), (2, 2)):
        sampler = Downsample(1)
        sampler.conv.weight.data.zero_()
        sampler.conv.weight.data[0, 0, row, column] = 1
        sampler.conv.bias.data.zero_()
        with torch.inference_mode():
            found = sampler(x)
        expected = torch.zeros(1, 1, 3, 4)
        for i in range(3):
            for j in range(4):
                if 2 * i + row < 6 and 2 * j + column < 8:
                    expected[0, 0, i, j] = x[0, 0, 2 * i + row, 2 * j + column]
        assert_near(found, expected)


def test_an_encoder_pads_the_far_edges_only() -> None:
    """What the first pixels see is the same with more picture behind them, and the last's isn't."""
    sampler = with_weights(Downsample(32))
    x = noise(1, 32, 8, 8)
    with torch.inference_mode():
        whole, part = sampler(x), sampler(x[..., :6, :6])
    assert_near(part[..., :2, :2], whole[..., :2, :2])
    assert gap(part[..., 2, :3], whole[..., 2, :3]) > 1e-2
    assert gap(part[..., :3, 2], whole[..., :3, 2]) > 1e-2


def test_an_upsampler_repeats_pixels() -> None:
    sampler = with_weights(Upsample(32))
    x = noise(1, 32, 3, 4)
    with torch.inference_mode():
        repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        judged = functional.conv2d(repeated, sampler.conv.weight, sampler.conv.bias, padding=1)
        assert_near(sampler(x), judged)


@pytest.mark.parametrize("widths", [(32, 32), (32, 64), (64, 32)])
def test_a_resnet_block_is_its_formula(widths: tuple[int, int]) -> None:
    block = with_weights(ResnetBlock(*widths))
    assert (block.nin_shortcut is None) is (widths[0] == widths[1])
    x = noise(2, widths[0], 5, 4)

    def conv(data: Tensor, layer: nn.Conv2d) -> Tensor:
        return functional.conv2d(
            data, layer.weight.double(), layer.bias.double(), padding=layer.kernel_size[0] // 2
        )

    with torch.inference_mode():
        h = normalise(x, block.norm1)
        h = conv(h / (1 + torch.exp(-h)), block.conv1)
        h = normalise(h, block.norm2)
        h = conv(h / (1 + torch.exp(-h)), block.conv2)
        kept = x.double()
        if block.nin_shortcut is not None:
            kept = conv(kept, block.nin_shortcut)
        assert_near(block(x), kept + h)


def test_attention_is_that_of_torch() -> None:
    block = with_weights(AttnBlock(64))
    x = noise(2, 64, 3, 5)
    with torch.inference_mode():
        rows = normalise(x, block.norm).float().flatten(2).transpose(1, 2)
        query, key, value = (
            functional.linear(rows, layer.weight[:, :, 0, 0], layer.bias)
            for layer in (block.q, block.k, block.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out = functional.linear(mixed, block.proj_out.weight[:, :, 0, 0], block.proj_out.bias)
        judged = x + out.transpose(1, 2).reshape(x.shape)
        assert_near(block(x), judged)


def test_a_middle_without_attention_has_two_blocks() -> None:
    middle = with_weights(Middle(32, attention=False))
    assert not [name for name, _ in middle.named_parameters() if "attn" in name]
    x = noise(1, 32, 3, 3)
    with torch.inference_mode():
        assert_near(middle(x), middle.block_2(middle.block_1(x)))


def test_quantisation_is_where_it_belongs() -> None:
    """Behind the encoder and before the decoder, and nowhere where there is none."""
    config = MODELS["grey"]
    model = build(config, random_weights(config))
    latent, picture = noise(1, 4, 2, 2), noise(1, 1, 4, 4)
    with torch.inference_mode():
        plain = model.encoder(picture)
        assert_near(model.encode(picture), model.quant_conv(plain))
        assert gap(model.encode(picture), plain) > 1e-2
        assert_near(model.decode(latent), model.decoder(model.post_quant_conv(latent)))
    bare = CompVisAutoencoder(MODELS["sd3"].topology)
    assert bare.quant_conv is None
    assert bare.post_quant_conv is None
