"""Families: what shapes cannot tell, as a table. The only place that knows family names.

Sources of the numbers: the ``vae/config.json`` of the named models on the Hub, and for the x4
upscaler ``x4-upscaling.yaml`` of Stability's stablediffusion.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vaeconv.autoencoder.topology import Topology


class Family(NamedTuple):
    """A published family of autoencoders.

    Attributes:
        name: What ``--family`` calls it.
        title: What people call it.
        latent_channels: Channels of the latent.
        levels: Number of resolutions.
        has_quant_convs: Whether it has both quant convolutions.
        scaling_factor: ``latent * scaling_factor`` has about unit variance.
        shift_factor: Subtracted from the latent before that.
        latents_mean: Per channel, in place of a shift.
        latents_std: Per channel.
        sample_size: Pixels that it was trained at; only tiling uses it.
        siblings: Beginnings of keys beside the autoencoder that only this family has.
        built_on: The family whose keys lie beside it as well.
        modelspec: What ModelSpec (https://github.com/Stability-AI/ModelSpec) calls the model that
            it is a part of; empty where it has no name for it.
    """

    name: str
    title: str
    latent_channels: int
    levels: int
    has_quant_convs: bool
    scaling_factor: float
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    sample_size: int = 512
    siblings: tuple[str, ...] = ()
    built_on: str = ""
    modelspec: str = ""

    def fits(self, topology: Topology) -> bool:
        """Tell if an autoencoder of these numbers can be of this family; widths are free."""
        return (
            topology.latent_channels == self.latent_channels
            and topology.levels == self.levels
            and topology.quant_conv == topology.post_quant_conv == self.has_quant_convs
            and not any(topology.level_attention)
            and topology.mid_attention
        )


FAMILIES: tuple[Family, ...] = (
    Family(
        "sd1", "Stable Diffusion 1 and 2 (kl-f8)", 4, 4, True, 0.18215,
        siblings=(
            "cond_stage_model.transformer.text_model.", "cond_stage_model.model.",
            "model.diffusion_model.input_blocks.11.",
        ),
        modelspec="stable-diffusion-v1",
    ),
    Family(
        "playground-v2.5", "Playground v2.5", 4, 4, True, 0.5,
        latents_mean=(-1.6574, 1.886, -1.383, 2.5155),
        latents_std=(8.4927, 5.9022, 6.5498, 5.2299),
        sample_size=1024,
        siblings=("edm_mean", "edm_std"), built_on="sdxl", modelspec="stable-diffusion-xl-v1",
    ),
    Family(
        "sdxl", "Stable Diffusion XL", 4, 4, True, 0.13025, sample_size=1024,
        siblings=("conditioner.embedders.", "model.diffusion_model.label_emb."),
        modelspec="stable-diffusion-xl-v1",
    ),
    Family(
        "x4-upscaler", "Stable Diffusion x4 upscaler", 4, 3, True, 0.08333, sample_size=256,
        siblings=("model.diffusion_model.input_blocks.10.0.skip_connection.",),
    ),
    Family(
        "sd3", "Stable Diffusion 3 and 3.5", 16, 4, False, 1.5305, 0.0609, sample_size=1024,
        siblings=("model.diffusion_model.joint_blocks.", "joint_blocks."),
        modelspec="stable-diffusion-v3-medium",
    ),
    Family(
        "flux1", "FLUX.1", 16, 4, False, 0.3611, 0.1159, sample_size=1024,
        siblings=("model.diffusion_model.double_blocks.", "double_blocks."),
    ),
)  # fmt: skip

BY_NAME = {family.name: family for family in FAMILIES}
# Names that people use for one of the above.
ALIASES = {"sd2": "sd1", "kl-f8": "sd1", "flux": "flux1", "sd3.5": "sd3"}
FAMILY_NAMES = (*BY_NAME, *ALIASES)

# Where shapes leave several families and nothing else decides: the one to assume, with a
# warning. Shapes that are not listed have no safe assumption.
ASSUMED = "sd1"


def fitting_families(topology: Topology) -> tuple[Family, ...]:
    """List the families that an autoencoder's shapes allow."""
    return tuple(family for family in FAMILIES if family.fits(topology))


def family_by_siblings(topology: Topology, names: Iterable[str]) -> tuple[Family, str] | None:
    """Find the family that keys beside the autoencoder give away.

    Returns:
        The family and the key, or None where there is no such key or several disagree.
    """
    fitting = fitting_families(topology)
    found: dict[str, tuple[Family, str]] = {}
    for name in names:
        for family in fitting:
            if name.startswith(family.siblings):
                found.setdefault(family.name, (family, name))
    for family, _ in list(found.values()):
        found.pop(family.built_on, None)
    return next(iter(found.values())) if len(found) == 1 else None


COMPVIS = "first_stage_model."
COMFY = "vae."


class Kind(NamedTuple):
    """A kind of full checkpoint.

    Attributes:
        title: What people call it.
        keys: Beginnings of keys of its diffusion model, behind that model's own prefix.
        prefix: Prefix of the autoencoder's keys.
        also: A prefix under which loaders, ComfyUI and sd-scripts among them, look instead.
    """

    title: str
    keys: tuple[str, ...]
    prefix: str
    also: str = ""


# Sources: ``vae_key_prefix`` in ComfyUI's ``comfy/supported_models.py``, the kinds by the keys that
# its ``comfy/model_detection.py`` tells them by; for Stable Diffusion the CompVis code itself.
KINDS: tuple[Kind, ...] = (
    Kind("a Stable Diffusion UNet", ("input_blocks.", "middle_block.", "output_blocks."), COMPVIS),
    Kind("SD3", ("joint_blocks.",), COMFY, COMPVIS),
    Kind("HiDream", ("double_stream_blocks.", "caption_projection."), COMFY),
    Kind("AuraFlow", ("double_layers.",), COMFY),
    Kind("Hunyuan-DiT", ("mlp_t5.", "text_embedding_padding"), COMFY),
    Kind("HunyuanVideo or HunyuanImage", ("txt_in.individual_token_refiner.",), COMFY),
    Kind("FLUX or Chroma", ("double_blocks.", "distilled_guidance_layer."), COMFY),
    Kind("Lumina or Z-Image", ("cap_embedder.", "context_refiner."), COMFY),
    Kind("Qwen-Image", ("txt_norm.",), COMFY),
    Kind("OmniGen2", ("time_caption_embed.",), COMFY),
    Kind("PixArt", ("t_block.",), COMFY),
    Kind("Wan", ("head.modulation", "patch_embedding."), COMFY),
    Kind("Stable Cascade", ("clf.", "clip_txt_mapper.", "effnet_mapper."), COMFY),
)
# Whatever else there is now is a transformer that ComfyUI packs like the others.
_OTHER = Kind("this kind of diffusion model", (), COMFY)
_MODELS = ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "net.", "model.")


def find_kind(names: Iterable[str]) -> Kind:
    """Tell the kind of a full checkpoint by its keys."""
    bare = {name[len(_model_prefix(name)) :] for name in names}
    for kind in KINDS:
        if any(name.startswith(kind.keys) for name in bare):
            return kind
    return _OTHER


def _model_prefix(name: str) -> str:
    return next((prefix for prefix in _MODELS if name.startswith(prefix)), "")
