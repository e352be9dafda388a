"""Models that look like an autoencoder and are not an ``AutoencoderKL``: named, with the reason.

Only consulted where the keys of a checkpoint do not add up, to turn a wall of names into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from vaeconv.errors import UnsupportedModelError


class Unsupported(NamedTuple):
    """One recognisable model.

    Attributes:
        family: What people call it.
        reason: Why AutoencoderKL cannot express it.
        keys: Patterns of tensor names, any of which gives it away.
    """

    family: str
    reason: str
    keys: tuple[str, ...]


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        "a VQ model (VQModel)",
        "it quantises latents with a codebook",
        ("*quantize.embedding.weight", "*regularization.embedding.weight", "*quantize.embed"),
    ),
    Unsupported(
        "the FLUX.2 autoencoder (AutoencoderKLFlux2)",
        "it normalises patched latents with batch statistics",
        ("bn.running_mean", "vae.bn.running_mean", "first_stage_model.bn.running_mean"),
    ),
    Unsupported(
        "a temporal video decoder (Stable Video Diffusion)",
        "its decoder mixes frames",
        ("*time_stack*", "*mix_factor*", "*time_mix_conv*", "*temporal_res_block*"),
    ),
    Unsupported(
        "the LTX-Video autoencoder",
        "it is made of 3-D convolutions with per-channel statistics",
        (
            "*per_channel_statistics.*",
            "*res_blocks.*.conv.conv.weight",
            "*mid_block.resnets.2.conv1.conv.weight",
        ),
    ),
    Unsupported(
        "a causal video autoencoder, such as HunyuanVideo's or CogVideoX's",
        "it is made of causal 3-D convolutions",
        ("*decoder.conv_in.conv.weight",),
    ),
    Unsupported(
        "the Wan or Qwen-Image video autoencoder",
        "it is made of causal 3-D convolutions",
        ("*middle.0.residual.0.gamma", "*mid_block.resnets.0.norm1.gamma"),
    ),
    Unsupported("the Cosmos tokenizer", "it works on wavelets", ("*unpatcher3d.*", "*patcher3d.*")),
    Unsupported(
        "the Mochi video autoencoder",
        "it is made of 3-D blocks",
        ("*decoder.blocks.0.0.weight", "*decoder.blocks.0.0.bias"),
    ),
    Unsupported(
        "a deep compression autoencoder (AutoencoderDC)",
        "its stages are residual pixel shuffles",
        (
            "*stages.*.op_list.*",
            "*encoder.project_in.*",
            "*decoder.project_out.*",
            "*encoder.down_blocks.?.0.conv_out.conv_inverted.weight",
            "*encoder.down_blocks.0.0.conv2.weight",
        ),
    ),
    Unsupported(
        "the HunyuanImage autoencoder",
        "its levels are pixel shuffles",
        ("*encoder.down_blocks.0.conv1.weight",),
    ),
    Unsupported(
        "an asymmetric autoencoder (AsymmetricAutoencoderKL)",
        "its decoder also takes the masked image",
        ("*decoder.condition_encoder.*", "*decoder.encoder.*"),
    ),
    Unsupported(
        "a tiny autoencoder (TAESD, AutoencoderTiny)",
        "it has no posterior and other blocks",
        (
            "decoder.1.weight",
            "taesd_decoder.1.weight",
            "*encoder.layers.0.weight",
            "*decoder.layers.0.weight",
        ),
    ),
    Unsupported(
        "the Stable Cascade (Paella) VQ model",
        "it has a codebook",
        ("*vquantizer.codebook.weight",),
    ),
    Unsupported(
        "an audio autoencoder (Oobleck)",
        "it is made of 1-D convolutions with weight norm",
        ("*.weight_g", "*.snake1.alpha"),
    ),
    Unsupported(
        "an autoencoder with linear attention (attn_type: linear)",
        "diffusers has only full attention there",
        ("*.to_qkv.weight",),
    ),
    Unsupported(
        "an autoencoder with 3x3 shortcuts (use_conv_shortcut)",
        "diffusers has only 1x1 shortcuts",
        ("*.block.*.conv_shortcut.weight", "*.block_1.conv_shortcut.weight"),
    ),
)


def find_unsupported(
    shapes: Mapping[str, tuple[int, ...]], where: str
) -> UnsupportedModelError | None:
    """Name the model that these tensors belong to, where it is one that is known and refused."""
    for unsupported in UNSUPPORTED:
        for pattern in unsupported.keys:
            if any(fnmatchcase(name, pattern) for name in shapes):
                return refuse(unsupported.family, unsupported.reason, where)
    if any(len(shape) == 5 and "conv" in name for name, shape in shapes.items()):
        return refuse("a video autoencoder", "it has 3-D convolutions", where)
    return None


def refuse(family: str, reason: str, where: str) -> UnsupportedModelError:
    """Word the refusal of a model."""
    return UnsupportedModelError(
        f"this is {family}, which AutoencoderKL cannot express: {reason}", where=where
    )
