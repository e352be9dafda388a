"""Every other autoencoder that diffusers has is refused, whatever its keys look like."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import pytest
import torch

from tests.autoencoder.topologies import (
    SD1,
    SD3,
    Shapes,
    ask_outsiders,
    make_topology,
    shapes_of,
)
from vaeconv.autoencoder.match import find_prefixes, match_autoencoder, no_autoencoder
from vaeconv.errors import InputError, UnmappedKeysError, UnsupportedModelError

# diffusers' audio autoencoders use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def refuse(shapes: Shapes, prefix: str = "") -> InputError:
    """Look for an autoencoder in a state dict of these shapes; it must not be found."""
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    found = find_prefixes(shapes)
    if not found:
        return no_autoencoder(shapes, "model.ckpt")
    with pytest.raises(InputError) as caught:
        match_autoencoder(shapes, found[0], where="model.ckpt")
    return caught.value


def assert_named(error: InputError, words: str) -> None:
    assert isinstance(error, UnsupportedModelError), error
    assert words in str(error)
    assert "model.ckpt" in str(error)
    assert error.exit_code == 3


@cache
def diffusers_autoencoders() -> dict[str, type[Any]]:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.models import autoencoders

    modules = [
        importlib.import_module(f"{autoencoders.__name__}.{module.name}")
        for module in pkgutil.iter_modules(autoencoders.__path__)
    ]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, ModelMixin)
        and issubclass(value, ConfigMixin)
        and value.__module__.startswith(autoencoders.__name__)
    }


ARGUMENTS: dict[str, dict[str, Any]] = {
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 64,
        "block_out_channels": (128, 256, 512),
        "layers_per_block": 2,
        "spatial_compression_ratio": 4,
        "sample_size": 384,
    },
}


@cache
def diffusers_shapes(name: str) -> Shapes:
    with torch.device("meta"):
        return shapes_of(diffusers_autoencoders()[name](**ARGUMENTS.get(name, {})))


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("VQModel", "VQ model"),
        ("AutoencoderKLFlux2", "FLUX.2"),
        ("AutoencoderKLTemporalDecoder", "Stable Video Diffusion"),
        ("AutoencoderKLWan", "Wan"),
        ("AutoencoderKLQwenImage", "Qwen-Image"),
        ("AutoencoderKLHunyuanVideo", "HunyuanVideo"),
        ("AutoencoderKLHunyuanVideo15", "HunyuanVideo"),
        ("AutoencoderKLHunyuanImage", "HunyuanImage"),
        ("AutoencoderKLCogVideoX", "CogVideoX"),
        ("AutoencoderKLLTXVideo", "LTX-Video"),
        ("AutoencoderKLLTX2Video", "LTX-Video"),
        ("AutoencoderKLCosmos", "video"),
        ("AutoencoderKLMochi", "video"),
        ("AutoencoderDC", "AutoencoderDC"),
        ("AutoencoderTiny", "TAESD"),
        ("AsymmetricAutoencoderKL", "AsymmetricAutoencoderKL"),
        ("AutoencoderOobleck", "audio"),
    ],
)
def test_diffusers_models_of_other_classes_are_refused_by_name(
    name: str, words: str, prefix: str
) -> None:
    assert_named(refuse(diffusers_shapes(name), prefix), words)


def test_no_other_class_of_diffusers_passes() -> None:
    built = []
    for name in diffusers_autoencoders():
        if name == "AutoencoderKL":
            continue
        try:
            shapes = diffusers_shapes(name)
        except (TypeError, NameError):  # needs arguments of its own, or transformers
            continue
        assert refuse(shapes).exit_code == 3
        assert refuse(shapes, "vae.").exit_code == 3
        built.append(name)
    assert len(built) > 10


# --- in the CompVis layout ---


def compvis(**changes: tuple[int, ...] | None) -> Shapes:
    """SD1's shapes with some changed, added or taken away; ``__`` stands for a dot."""
    shapes = dict(ask_outsiders(SD1).compvis)
    for key, shape in changes.items():
        name = key.replace("__", ".")
        if shape is None:
            shapes = {n: s for n, s in shapes.items() if not n.startswith(name)}
        else:
            shapes[name] = shape
    return shapes


def make_vq(codebook: str) -> Shapes:
    return compvis(
        encoder__conv_out__weight=(4, 512, 3, 3),
        encoder__conv_out__bias=(4,),
        quant_conv__weight=(4, 4, 1, 1),
        quant_conv__bias=(4,),
    ) | {codebook: (16384, 4)}


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize(
    "codebook", ["quantize.embedding.weight", "regularization.embedding.weight"]
)
def test_vq_models_are_refused_for_their_codebook(codebook: str, prefix: str) -> None:
    assert_named(refuse(make_vq(codebook), prefix), "codebook")


def test_a_codebook_alone_is_enough() -> None:
    shapes = compvis() | {"quantize.embedding.weight": (16384, 4)}
    assert_named(refuse(shapes, "first_stage_model."), "codebook")


def test_an_encoder_without_moments_is_refused() -> None:
    shapes = make_vq("x")
    del shapes["x"]
    assert_named(refuse(shapes), "double_z")


@pytest.mark.parametrize("embed_dim", [3, 8])
def test_an_embed_dim_unlike_z_is_refused_with_both_numbers(embed_dim: int) -> None:
    shapes = compvis(
        quant_conv__weight=(2 * embed_dim, 8, 1, 1),
        quant_conv__bias=(2 * embed_dim,),
        post_quant_conv__weight=(4, embed_dim, 1, 1),
    )
    assert_named(refuse(shapes), f"embed_dim {embed_dim} and z_channels 4")


def test_a_narrower_decoder_is_refused() -> None:
    narrow = ask_outsiders(make_topology((1, 2, 4, 4), 4, ch=64)).compvis
    shapes = {n: narrow[n] if n.startswith("decoder.") else s for n, s in compvis().items()}
    assert_named(refuse(shapes), "asymmetric")


def test_a_decoder_with_as_many_blocks_as_the_encoder_is_refused() -> None:
    shapes = {n: s for n, s in compvis().items() if ".block.2." not in n}
    assert_named(refuse(shapes), "2 resnet blocks per encoder level and 2 per decoder")


def test_linear_attention_is_refused() -> None:
    shapes = compvis(encoder__mid__attn_1=None, decoder__mid__attn_1=None) | {
        "encoder.mid.attn_1.to_qkv.weight": (1536, 512, 1, 1),
        "encoder.mid.attn_1.to_out.weight": (512, 512, 1, 1),
    }
    assert_named(refuse(shapes), "linear attention")


def test_resampling_without_convolutions_is_refused() -> None:
    shapes = {n: s for n, s in compvis().items() if "sample.conv" not in n}
    assert_named(refuse(shapes), "resampling")


@pytest.mark.parametrize("block", ["encoder.down.1.block.0", "decoder.up.0.block.0"])
def test_wide_shortcuts_are_refused(block: str) -> None:
    shapes = compvis()
    channels = shapes.pop(f"{block}.nin_shortcut.weight")[:2]
    shapes[f"{block}.conv_shortcut.bias"] = shapes.pop(f"{block}.nin_shortcut.bias")
    shapes[f"{block}.conv_shortcut.weight"] = (*channels, 3, 3)
    assert_named(refuse(shapes), "3x3 shortcuts")


def test_a_first_multiple_other_than_one_is_refused() -> None:
    shapes = compvis(
        encoder__conv_in__weight=(64, 3, 3, 3),
        encoder__conv_in__bias=(64,),
        encoder__down__0__block__0__norm1__weight=(64,),
        encoder__down__0__block__0__norm1__bias=(64,),
        encoder__down__0__block__0__conv1__weight=(128, 64, 3, 3),
    ) | {
        "encoder.down.0.block.0.nin_shortcut.weight": (128, 64, 1, 1),
        "encoder.down.0.block.0.nin_shortcut.bias": (128,),
    }
    assert_named(refuse(shapes), "ch_mult does not begin with 1")


def flux2_original() -> Shapes:
    shapes = dict(ask_outsiders(make_topology((1, 2, 4, 4), 32)).compvis)
    moved = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    for old, new in moved.items():
        for parameter in ("weight", "bias"):
            shapes[new + parameter] = shapes.pop(old + parameter)
    return shapes | {
        "bn.running_mean": (128,),
        "bn.running_var": (128,),
        "bn.num_batches_tracked": (),
    }


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_flux2_in_its_original_layout_is_refused(prefix: str) -> None:
    shapes = flux2_original()
    assert len(shapes) == 251
    assert_named(refuse(shapes, prefix), "FLUX.2")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("decoder.up.0.block.0.time_stack.in_layers.2.weight", (128, 128, 3, 1, 1), "Stable Video"),
        ("decoder.mid.block_1.mix_factor", (1,), "Stable Video"),
        ("decoder.up.0.block.0.conv1.conv.weight", (128, 128, 3, 3, 3), "video"),
    ],
)
def test_a_temporal_decoder_is_refused(key: str, shape: tuple[int, ...], words: str) -> None:
    assert_named(refuse(compvis() | {key: shape}, "first_stage_model."), words)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("decoder.middle.0.residual.0.gamma", "Wan"),
        ("decoder.conv_in.conv.weight", "HunyuanVideo"),
        ("decoder.up_blocks.0.res_blocks.0.conv1.conv.weight", ""),
        ("per_channel_statistics.mean-of-means", "LTX"),
        ("decoder.stages.1.op_list.0.main.conv.weight", "AutoencoderDC"),
        ("decoder.1.weight", "TAESD"),
        ("taesd_decoder.1.weight", "TAESD"),
        ("vquantizer.codebook.weight", "Stable Cascade"),
        ("decoder.unpatcher3d.wavelets", "Cosmos"),
    ],
)
def test_original_files_of_other_families_are_refused(key: str, words: str) -> None:
    assert_named(refuse({key: (8, 8), "encoder.something.weight": (1,)}), words)


def test_a_checkpoint_without_an_autoencoder_says_what_it_holds() -> None:
    error = refuse({"model.diffusion_model.time_embed.0.weight": (4, 4), "betas": (9,)})
    assert_named(error, "it holds: schedule, unet")


def test_an_autoencoder_that_adds_up_is_not_refused() -> None:
    for topology in (SD1, SD3):
        for prefix in ("", "first_stage_model."):
            shapes = {prefix + n: s for n, s in ask_outsiders(topology).compvis.items()}
            found = match_autoencoder(shapes, prefix, where="x")
            assert found.topology == topology


def test_unmapped_keys_are_not_taken_for_a_family() -> None:
    error = refuse(compvis() | {"encoder.extra.weight": (1,)})
    assert isinstance(error, UnmappedKeysError)
    assert error.unexpected == ("encoder.extra.weight",)


def test_batch_norms_of_other_networks_are_not_flux2() -> None:
    shapes = {f"{one}.bn.{leaf}": (16,) for one in ("base.0", "extras.1")
              for leaf in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    assert "FLUX" not in str(refuse(shapes))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_half_is_named(half: str) -> None:
    whole = dict(ask_outsiders(make_topology((1, 2), 4)).compvis)
    other = {name: shape for name, shape in whole.items() if not name.startswith(f"{half}.")}
    assert f"all of {half}.*" in str(refuse(other))
