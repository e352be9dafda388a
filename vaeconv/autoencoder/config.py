"""The config: topology and scaling as diffusers' ``config.json``, and what a given one may say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from vaeconv.autoencoder.topology import Topology
from vaeconv.common.notes import Note, note
from vaeconv.errors import ConfigMismatchError, UnsupportedModelError

CLASS_NAME = "AutoencoderKL"
# The diffusers release whose constructor the fields below are; a constant, so that the bytes of
# config.json do not depend on what is installed.
DIFFUSERS_VERSION = "0.42.1"
NORM_NUM_GROUPS = 32
DOWN_BLOCKS = {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"}
UP_BLOCKS = {False: "UpDecoderBlock2D", True: "AttnUpDecoderBlock2D"}


class Scaling(NamedTuple):
    """Scaling of latents for a diffusion model: ``(z - shift) * scaling_factor``.

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

    def facts(self) -> dict[str, Any]:
        """Describe it for machines, without what only configs have."""
        return {
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "from": self.source,
        }


class ProvidedConfig(NamedTuple):
    """Fields of a config that came with the weights or was provided; None if it has no such field.

    The fields are those of :class:`Topology`; a CompVis config has ``level_attention`` in place of
    one for each half, and where the halves differ it means that either has attention there.
    """

    name: str
    in_channels: int | None = None
    out_channels: int | None = None
    channels: tuple[int, ...] | None = None
    layers_per_block: int | None = None
    latent_channels: int | None = None
    encoder_attention: tuple[bool, ...] | None = None
    decoder_attention: tuple[bool, ...] | None = None
    level_attention: tuple[bool, ...] | None = None
    mid_attention: bool | None = None
    quant_conv: bool | None = None
    post_quant_conv: bool | None = None
    norm_num_groups: int | None = None
    act_fn: str | None = None
    sample_size: int | tuple[int, ...] | None = None
    force_upcast: bool | None = None
    scaling: Scaling | None = None

    def check(self, topology: Topology) -> None:
        """Compare with what the tensors say.

        Raises:
            ConfigMismatchError: They disagree; the tensors cannot be wrong about shapes.
        """
        for name in (*topology._fields, "level_attention"):
            said, found = getattr(self, name), getattr(topology, name)
            if said is not None and said != found:
                raise ConfigMismatchError(
                    f"the config says {name} {_plain(said)}, the tensors say {_plain(found)}",
                    where=self.name,
                    hint="pass the right config with --config, or remove this one",
                )
        _check_groups(self.norm_num_groups or NORM_NUM_GROUPS, topology, self.name)

    def notes(self, topology: Topology) -> list[Note]:
        """Say where the tensors tell more than this kind of config can; the tensors decide."""
        halves = topology.encoder_attention, topology.decoder_attention
        if self.level_attention is None or halves[0] == halves[1]:
            return []
        levels = [
            f"the {half} has it on {', '.join(f'level {i}' for i, has in enumerate(found) if has)}"
            if any(found)
            else f"the {half} has none"
            for half, found in zip(("encoder", "decoder"), halves, strict=True)
        ]
        return [
            note(
                f"{self.name} has one attention setting for encoder and decoder; in the tensors "
                + " and ".join(levels)
            )
        ]

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
                    f"the config says {name} {said}; CompVis code always uses {fixed[0]}",
                    where=self.name,
                    hint="keep it in the diffusers layout",
                )


def build_config(
    topology: Topology,
    scaling: Scaling,
    *,
    sample_size: int | tuple[int, ...],
    provided: ProvidedConfig | None = None,
) -> dict[str, Any]:
    """Write every field of ``AutoencoderKL`` explicitly.

    Args:
        topology: The architecture.
        scaling: Factors for latents.
        sample_size: Training resolution in pixels, where ``provided`` has none.
        provided: Takes precedence in what shapes do not tell.

    Raises:
        UnsupportedModelError: Group normalisation does not divide the widths.
    """
    groups = (provided and provided.norm_num_groups) or NORM_NUM_GROUPS
    _check_groups(groups, topology, provided.name if provided else None)
    return {
        "_class_name": CLASS_NAME,
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": (provided and provided.act_fn) or "silu",
        "block_out_channels": list(topology.channels),
        "down_block_types": [DOWN_BLOCKS[attention] for attention in topology.encoder_attention],
        "force_upcast": True
        if provided is None or provided.force_upcast is None
        else provided.force_upcast,
        "in_channels": topology.in_channels,
        "latent_channels": topology.latent_channels,
        "latents_mean": _list(scaling.latents_mean),
        "latents_std": _list(scaling.latents_std),
        "layers_per_block": topology.layers_per_block,
        "mid_block_add_attention": topology.mid_attention,
        "norm_num_groups": groups,
        "out_channels": topology.out_channels,
        "sample_size": _plain((provided and provided.sample_size) or sample_size),
        "scaling_factor": scaling.scaling_factor,
        "shift_factor": scaling.shift_factor,
        "up_block_types": [
            UP_BLOCKS[attention] for attention in reversed(topology.decoder_attention)
        ],
        "use_post_quant_conv": topology.post_quant_conv,
        "use_quant_conv": topology.quant_conv,
    }


def _check_groups(groups: int, topology: Topology, where: str | None) -> None:
    if any(width % groups for width in topology.channels):
        raise UnsupportedModelError(
            f"widths {list(topology.channels)} are not all divisible by the {groups} groups of "
            "the normalisation",
            where=where,
            hint="pass the training config with --config",
        )


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Serialise as diffusers does: sorted keys, two spaces."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _list(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
