"""Read configs that were given, or came with the weights.

Four spellings are read: diffusers' own JSON, and YAML with a ``ddconfig`` at
``model.params.ddconfig`` (CompVis first stages), under ``model.params.first_stage_config.params``
(LDM, Stable Diffusion), or split into ``encoder_config`` and ``decoder_config`` (sgm).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from vaeconv.autoencoder.config import (
    CLASS_NAME,
    DOWN_BLOCKS,
    UP_BLOCKS,
    ProvidedConfig,
    Scaling,
)
from vaeconv.autoencoder.unsupported import refuse
from vaeconv.errors import MalformedCheckpointError

_CLASS_DEFAULT_SCALING = 0.18215
_MAX_LEVELS = 32  # a real one has at most six
_MAX_BITS = 63  # of a number
_MAX_NODES = 1 << 18  # of YAML; a config has a hundred, and a file of 1 MiB at most half of this
_SAME_CLASS = ("FlaxAutoencoderKL",)
_ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
_FIELDS = frozenset(
    "_class_name _diffusers_version act_fn block_out_channels down_block_types force_upcast "
    "in_channels latent_channels latents_mean latents_std layers_per_block "
    "mid_block_add_attention norm_num_groups out_channels sample_size scaling_factor "
    "shift_factor up_block_types use_post_quant_conv use_quant_conv".split()
)


def parse_config(text: str, name: str) -> ProvidedConfig:
    """Read a config in any of the four spellings.

    Raises:
        MalformedCheckpointError: It is neither JSON nor YAML, or its values have wrong types.
        UnsupportedModelError: It is the config of another class.
    """
    document = _load(text, name)
    try:
        return (_from_compvis if "model" in document else _from_diffusers)(document, name)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise MalformedCheckpointError(
            f"not a config of an autoencoder ({type(error).__name__}: {error})", where=name
        ) from error


def _load(text: str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = _load_yaml(text, name)
    if not isinstance(document, dict):
        raise MalformedCheckpointError("not a config: it holds no fields", where=name)
    _check_numbers(document, name)
    return document


def _check_numbers(document: dict[str, Any], name: str) -> None:
    """Refuse numbers that cost time to compute with, or even to show."""
    left: list[Any] = [document]
    seen: set[int] = set()  # of YAML one value may stand in many places
    while left:
        one = left.pop()
        if isinstance(one, dict | list) and id(one) not in seen:
            seen.add(id(one))
            left += [*one, *one.values()] if isinstance(one, dict) else one
        elif isinstance(one, int) and one.bit_length() > _MAX_BITS:
            raise MalformedCheckpointError("not a config: a number is too large", where=name)


def _load_yaml(text: str, name: str) -> Any:
    """Read YAML whose aliases, written out, are no more than a config can be."""
    import yaml

    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MAX_NODES + 1  # of what holds itself
            inner = node.value if isinstance(node.value, list) else []
            nodes = [one for entry in inner for one in (entry if type(entry) is tuple else [entry])]
            sizes[id(node)] = 1 + sum(map(size_of, nodes))
        return sizes[id(node)]

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and size_of(node) > _MAX_NODES:
            raise MalformedCheckpointError("its YAML aliases expand to too much", where=name)
        return loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MalformedCheckpointError("neither JSON nor YAML", where=name) from error


def _from_diffusers(document: dict[str, Any], name: str) -> ProvidedConfig:
    # What diffusers' from_pretrained makes of these: autoencoder_kl.py, configuration_utils.py.
    left_out = document.get("_use_default_values") or ()
    document = {key: value for key, value in document.items() if key not in left_out}
    if document and not document.keys() & _FIELDS:
        raise KeyError("none of the fields of AutoencoderKL, and no model")
    kind = document.get("_class_name", CLASS_NAME)
    if not {CLASS_NAME, *_SAME_CLASS} & set(kind if isinstance(kind, list) else [kind]):
        raise refuse(f"a config of {kind}", "it is another class", name)
    down, up = document.get("down_block_types"), document.get("up_block_types")
    # Files of early diffusers leave fields out; the class defaults applied then.
    scaling = _number(document.get("scaling_factor"))
    return ProvidedConfig(
        name=name,
        in_channels=document.get("in_channels"),
        out_channels=document.get("out_channels"),
        channels=_ints(document.get("block_out_channels")),
        layers_per_block=document.get("layers_per_block"),
        latent_channels=document.get("latent_channels"),
        encoder_attention=None
        if down is None
        else tuple(_index(DOWN_BLOCKS, block, name) for block in _levels(down)),
        decoder_attention=None
        if up is None
        else tuple(_index(UP_BLOCKS, block, name) for block in reversed(_levels(up))),
        mid_attention=_truth(document.get("mid_block_add_attention")),
        quant_conv=_truth(document.get("use_quant_conv")),
        post_quant_conv=_truth(document.get("use_post_quant_conv")),
        norm_num_groups=_positive(document.get("norm_num_groups")),
        act_fn=_activation(document.get("act_fn")),
        sample_size=_size(document.get("sample_size")),
        # Unlike the others, null is a value: pipelines ask no more than whether it is true.
        force_upcast=bool(document["force_upcast"]) if "force_upcast" in document else None,
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


def _from_compvis(document: dict[str, Any], name: str) -> ProvidedConfig:
    params = document["model"]["params"]
    factor = _number(params.get("scale_factor"))
    stage = (params.get("first_stage_config") or {}).get("params") or params
    halves = [(stage.get(f"{half}_config") or {}).get("params") for half in ("encoder", "decoder")]
    dd = stage.get("ddconfig") or halves[0]
    if not isinstance(dd, dict):
        raise KeyError("model.params has no ddconfig, first_stage_config or encoder_config")
    if dd.get("attn_type") == "linear":
        raise refuse("an autoencoder with linear attention", "diffusers has none", name)
    if dd.get("tanh_out"):
        raise refuse("an autoencoder with tanh_out", "diffusers has no tanh at the end", name)
    if not dd.get("double_z", True):
        raise refuse("a VQ model, or one without a posterior (double_z: false)", "no moments", name)
    width, multipliers = _whole(dd["ch"]), _levels(dd["ch_mult"])
    attention = _attention(dd)
    # ``${...}`` of sgm, which stands for the encoder's parameters, is text here.
    decoder = halves[1] if "ddconfig" not in stage and isinstance(halves[1], dict) else None
    has_quant = True if "embed_dim" in stage else None
    return ProvidedConfig(
        name=name,
        in_channels=dd.get("in_channels"),
        out_channels=dd.get("out_ch"),
        channels=tuple(int(width * _finite(one)) for one in multipliers),
        layers_per_block=dd.get("num_res_blocks"),
        latent_channels=dd.get("z_channels"),
        encoder_attention=attention if decoder else None,
        decoder_attention=_attention(decoder) if decoder else None,
        level_attention=None if decoder else attention,
        mid_attention=dd.get("attn_type", "vanilla") != "none",
        quant_conv=has_quant,
        post_quant_conv=has_quant,
        sample_size=dd.get("resolution"),
        scaling=None
        if factor is None
        else Scaling(factor, source=f"scale_factor in {_file(name)}"),
    )


def _attention(dd: Mapping[str, Any]) -> tuple[bool, ...] | None:
    """Tell the levels with attention: those whose resolution in training is listed."""
    resolution = dd.get("resolution")
    if resolution is None:
        return None
    sizes, side = set(dd.get("attn_resolutions") or ()), _whole(resolution)
    return tuple(side // 2**level in sizes for level in range(len(_levels(dd["ch_mult"]))))


def _levels(values: Any) -> list[Any]:
    """Read a list that has an entry for each level of a model."""
    if not isinstance(values, list | tuple) or not 0 < len(values) <= _MAX_LEVELS:
        raise ValueError(f"not a list of 1 to {_MAX_LEVELS} levels")
    return list(values)


def _index(types: Mapping[bool, str], block: str, name: str) -> bool:
    for attention, spelled in types.items():
        if spelled == block.removeprefix("UNetRes"):
            return attention
    raise refuse(f"an autoencoder with {block} blocks", "only plain and attention blocks", name)


def _file(name: str) -> str:
    """Name a config without its folder, which is another one on the next machine."""
    return name.rpartition("/")[2]


def _ints(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(map(_whole, _levels(values)))


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is not None and not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list of numbers")
    return None if values is None else tuple(map(_finite, values))


def _activation(value: Any) -> str | None:
    if value is not None and (type(value) is not str or value.lower() not in _ACTIVATIONS):
        raise ValueError(f"{value!r} is no activation function of diffusers")
    return None if value is None else value.lower()


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _size(value: Any) -> int | tuple[int, ...] | None:
    """Read ``sample_size``: a number, or height and width."""
    if isinstance(value, list) and value:
        return tuple(map(_whole, value))
    return _positive(value)


def _positive(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _whole(value: Any) -> int:
    if type(value) not in (int, float) or value != int(value) or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    return int(value)


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number
