"""The config: topology and scaling as diffusers' ``config.json``, and configs that were given.

Four spellings are read: diffusers' own JSON, and YAML with a ``ddconfig`` at
``model.params.ddconfig`` (CompVis first stages), under ``model.params.first_stage_config.params``
(LDM, Stable Diffusion), or split into ``encoder_config`` and ``decoder_config`` (sgm).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from vaeconv.autoencoder.refusals import refuse
from vaeconv.autoencoder.topology import Topology
from vaeconv.errors import ConfigMismatchError, MalformedCheckpointError, UnsupportedModelError

CLASS_NAME = "AutoencoderKL"
# The diffusers release whose constructor the fields below are; a constant, so that the bytes of
# config.json do not depend on what is installed.
DIFFUSERS_VERSION = "0.42.1"
NORM_NUM_GROUPS = 32
_CLASS_DEFAULT_SCALING = 0.18215
_DOWN = {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"}
_UP = {False: "UpDecoderBlock2D", True: "AttnUpDecoderBlock2D"}


class Scaling(NamedTuple):
    """How latents relate to what a diffusion model sees: ``(z - shift) * scaling_factor``.

    Attributes:
        scaling_factor: Multiplies the latent.
        shift_factor: Subtracted from the latent before; None for none.
        latents_mean: Per channel.
        latents_std: Per channel.
        source: Where the values came from, in words.
    """

    scaling_factor: float
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    source: str = ""


class GivenConfig(NamedTuple):
    """What a config that came with the weights, or was given, says; None where it is silent."""

    name: str
    in_channels: int | None = None
    out_channels: int | None = None
    channels: tuple[int, ...] | None = None
    layers_per_block: int | None = None
    latent_channels: int | None = None
    level_attention: tuple[bool, ...] | None = None
    mid_attention: bool | None = None
    quant_conv: bool | None = None
    post_quant_conv: bool | None = None
    norm_num_groups: int | None = None
    act_fn: str | None = None
    sample_size: int | None = None
    force_upcast: bool | None = None
    scaling: Scaling | None = None

    def check(self, topology: Topology) -> None:
        """Compare with what the tensors say.

        Raises:
            ConfigMismatchError: They disagree; the tensors cannot be wrong about shapes.
        """
        for name in topology._fields:
            said, found = getattr(self, name), getattr(topology, name)
            if said is not None and said != found:
                raise ConfigMismatchError(
                    f"the config says {name} {_plain(said)}, the tensors say {_plain(found)}",
                    where=self.name,
                    hint="give the right one with --config, or take this one away",
                )
        groups = self.norm_num_groups or NORM_NUM_GROUPS
        if any(width % groups for width in topology.channels):
            raise UnsupportedModelError(
                f"widths {list(topology.channels)} are not all divisible by the {groups} groups "
                "of the normalisation that the config says",
                where=self.name,
            )

    def check_compvis(self) -> None:
        """Check that CompVis code, which leaves no choice in these, computes the same.

        Raises:
            UnsupportedModelError: It does not (``Normalize`` and ``nonlinearity`` in
                ``ldm/modules/diffusionmodules/model.py``).
        """
        for name, said, fixed in (
            ("norm_num_groups", self.norm_num_groups, (NORM_NUM_GROUPS,)),
            ("act_fn", self.act_fn, ("silu", "swish")),
        ):
            if said is not None and said not in fixed:
                raise UnsupportedModelError(
                    f"the config says {name} {said}; the CompVis layout always means {fixed[0]}",
                    where=self.name,
                    hint="keep it in the diffusers layout",
                )


def build_config(
    topology: Topology, scaling: Scaling, *, sample_size: int, given: GivenConfig | None = None
) -> dict[str, Any]:
    """Write every field of ``AutoencoderKL`` explicitly.

    Args:
        topology: The architecture.
        scaling: Factors for latents.
        sample_size: Training resolution in pixels, where ``given`` has none.
        given: Takes precedence in what shapes do not tell.

    Raises:
        UnsupportedModelError: Group normalisation does not divide the widths.
    """
    groups = (given and given.norm_num_groups) or NORM_NUM_GROUPS
    if any(width % groups for width in topology.channels):
        raise UnsupportedModelError(
            f"widths {list(topology.channels)} are not all divisible by the {groups} groups of "
            "the normalisation",
            hint="give the training config with --config",
        )
    return {
        "_class_name": CLASS_NAME,
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": (given and given.act_fn) or "silu",
        "block_out_channels": list(topology.channels),
        "down_block_types": [_DOWN[attention] for attention in topology.level_attention],
        "force_upcast": True if given is None or given.force_upcast is None else given.force_upcast,
        "in_channels": topology.in_channels,
        "latent_channels": topology.latent_channels,
        "latents_mean": _list(scaling.latents_mean),
        "latents_std": _list(scaling.latents_std),
        "layers_per_block": topology.layers_per_block,
        "mid_block_add_attention": topology.mid_attention,
        "norm_num_groups": groups,
        "out_channels": topology.out_channels,
        "sample_size": (given and given.sample_size) or sample_size,
        "scaling_factor": scaling.scaling_factor,
        "shift_factor": scaling.shift_factor,
        "up_block_types": [_UP[attention] for attention in reversed(topology.level_attention)],
        "use_post_quant_conv": topology.post_quant_conv,
        "use_quant_conv": topology.quant_conv,
    }


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Serialise as diffusers does: sorted keys, two spaces."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def parse_config(text: str, name: str) -> GivenConfig:
    """Read a config in any of the four spellings.

    Raises:
        MalformedCheckpointError: It is neither JSON nor YAML, or its values have wrong types.
        UnsupportedModelError: It is the config of another class.
    """
    document = _load(text, name)
    try:
        if "_class_name" in document or "block_out_channels" in document:
            return _from_diffusers(document, name)
        return _from_compvis(document, name)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise MalformedCheckpointError(
            f"not a config of an autoencoder ({type(error).__name__}: {error})", where=name
        ) from error


def _load(text: str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        import yaml

        try:
            document = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise MalformedCheckpointError("neither JSON nor YAML", where=name) from error
    if not isinstance(document, dict):
        raise MalformedCheckpointError("not a config: it holds no fields", where=name)
    return document


def _from_diffusers(document: dict[str, Any], name: str) -> GivenConfig:
    kind = document.get("_class_name", CLASS_NAME)
    if kind != CLASS_NAME:
        raise refuse(f"a config of {kind}", "it is another class", name)
    down, up = document.get("down_block_types"), document.get("up_block_types")
    attention = None
    if down is not None:
        attention = tuple(_index(_DOWN, block, name) for block in down)
        if up is not None and attention != tuple(_index(_UP, b, name) for b in reversed(up)):
            raise ConfigMismatchError(
                "attention is on other levels in down_block_types than in up_block_types",
                where=name,
            )
    # Files of early diffusers leave fields out; the class defaults applied then.
    scaling = _number(document.get("scaling_factor"))
    return GivenConfig(
        name=name,
        in_channels=document.get("in_channels"),
        out_channels=document.get("out_channels"),
        channels=_ints(document.get("block_out_channels")),
        layers_per_block=document.get("layers_per_block"),
        latent_channels=document.get("latent_channels"),
        level_attention=attention,
        mid_attention=document.get("mid_block_add_attention"),
        quant_conv=document.get("use_quant_conv"),
        post_quant_conv=document.get("use_post_quant_conv"),
        norm_num_groups=_positive(document.get("norm_num_groups")),
        act_fn=_text(document.get("act_fn")),
        sample_size=_positive(document.get("sample_size")),
        force_upcast=_boolean(document.get("force_upcast")),
        scaling=Scaling(
            _CLASS_DEFAULT_SCALING if scaling is None else scaling,
            _number(document.get("shift_factor")),
            _numbers(document.get("latents_mean")),
            _numbers(document.get("latents_std")),
            f"diffusers' class default, as {_file(name)} has none"
            if scaling is None
            else _file(name),
        ),
    )


def _from_compvis(document: dict[str, Any], name: str) -> GivenConfig:
    params = document["model"]["params"]
    factor = _number(params.get("scale_factor"))
    stage = (params.get("first_stage_config") or {}).get("params") or params
    dd = stage.get("ddconfig") or (stage.get("encoder_config") or {}).get("params")
    if not isinstance(dd, dict):
        raise KeyError("model.params has no ddconfig, first_stage_config or encoder_config")
    if dd.get("attn_type") == "linear":
        raise refuse("an autoencoder with linear attention", "diffusers has none", name)
    if dd.get("tanh_out"):
        raise refuse("an autoencoder with tanh_out", "diffusers has no tanh at the end", name)
    if not dd.get("double_z", True):
        raise refuse("a VQ model, or one without a posterior (double_z: false)", "no moments", name)
    multipliers = dd["ch_mult"]
    resolution = dd.get("resolution")
    attention = None
    if resolution is not None:
        sizes = set(dd.get("attn_resolutions") or ())
        attention = tuple(resolution // 2**level in sizes for level in range(len(multipliers)))
    has_quant = True if "embed_dim" in stage else None
    return GivenConfig(
        name=name,
        in_channels=dd.get("in_channels"),
        out_channels=dd.get("out_ch"),
        channels=tuple(int(dd["ch"] * m) for m in multipliers),
        layers_per_block=dd.get("num_res_blocks"),
        latent_channels=dd.get("z_channels"),
        level_attention=attention,
        mid_attention=dd.get("attn_type", "vanilla") != "none",
        quant_conv=has_quant,
        post_quant_conv=has_quant,
        sample_size=resolution,
        scaling=None
        if factor is None
        else Scaling(factor, source=f"scale_factor in {_file(name)}"),
    )


def _index(types: Mapping[bool, str], block: str, name: str) -> bool:
    for attention, spelled in types.items():
        if spelled == block:
            return attention
    raise refuse(f"an autoencoder with {block} blocks", "only plain and attention blocks", name)


def _file(name: str) -> str:
    """Name a config without its folder, which is another one on the next machine."""
    return name.rpartition("/")[2]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _list(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _ints(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(int(value) for value in values)


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(_finite, values))


def _text(value: Any) -> str | None:
    if value is not None and type(value) is not str:
        raise ValueError(f"{value!r} is not text")
    return value


def _boolean(value: Any) -> bool | None:
    if value is not None and type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _positive(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    return value


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number
