"""Under which prefix a full checkpoint of each kind keeps its autoencoder.

Sources: ``vae_key_prefix`` in ComfyUI's ``comfy/supported_models.py``, the kinds by the keys that
its ``comfy/model_detection.py`` tells them by; for Stable Diffusion the CompVis code itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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
