"""Account for every key of a state dict: part of the autoencoder, dropped by a rule, or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import NamedTuple

from vaeconv.autoencoder.ema import PREFIX as EMA_PREFIX
from vaeconv.autoencoder.infer import detect_layout, infer_topology
from vaeconv.autoencoder.keys import NameMap, NamePair, Shape, expand_rules
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.autoencoder.unsupported import find_unsupported
from vaeconv.common.ema_names import names_ema
from vaeconv.errors import InputError, UnmappedKeysError, UnsupportedModelError


class DropReason(str, Enum):
    """Reason why a key is left out."""

    EMA = "ema"
    LOSS = "loss"
    UNET = "unet"
    VAE = "vae"
    TEXT_ENCODER = "text encoder"
    SCHEDULE = "schedule"
    LATENT_SCALING = "latent scaling"
    NOT_A_TENSOR = "not a tensor"
    OTHER_AUTOENCODER = "other autoencoder"
    OTHER_STATE_DICT = "other state dict"
    REPLACED = "replaced"
    REQUESTED = "requested"
    UNKNOWN = "unknown"


# Beginnings of keys, after the prefix of the autoencoder or at the top of a full checkpoint.
_DROPPED: tuple[tuple[DropReason, tuple[str, ...]], ...] = (
    (DropReason.EMA, (EMA_PREFIX,)),
    (DropReason.LOSS, ("loss.", "discriminator.", "perceptual_loss.", "colorize")),
    (
        DropReason.UNET,
        ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "control_model."),
    ),
    (
        DropReason.TEXT_ENCODER,
        ("cond_stage_model.", "conditioner.", "text_encoder", "text_model.", "embedding_manager."),
    ),
    (
        DropReason.SCHEDULE,
        (
            "betas", "alphas_cumprod", "sqrt_", "log_one_minus_alphas_cumprod", "posterior_",
            "logvar", "lvlb_weights", "ddim_", "denoiser.", "model_sampling.",
        ),
    ),
    (DropReason.LATENT_SCALING, ("scale_factor", "edm_mean", "edm_std", "edm_vae")),
)  # fmt: skip

# What the keys of an autoencoder begin with, behind its prefix.
ROOTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ANCHORS = tuple(
    f"{side}.{end}.weight" for side in ("encoder", "decoder") for end in ("conv_in", "conv_out")
)
# What lies here is part of another model, whatever it looks like; under ``conditioner.`` video
# checkpoints hold a second VAE encoder, which conditions and is not the autoencoder.
_NOT_THE_AUTOENCODER = tuple(
    beginning
    for reason, beginnings in _DROPPED
    if reason in (DropReason.LOSS, DropReason.UNET, DropReason.TEXT_ENCODER)
    for beginning in beginnings
)


class Autoencoder(NamedTuple):
    """An autoencoder found in a state dict, every key accounted for.

    Attributes:
        prefix: What its keys begin with.
        layout: Their naming.
        topology: The architecture.
        keys: Each tensor of the architecture, and its key in the state dict.
        dropped: All other keys, with the reason.
    """

    prefix: str
    layout: Layout
    topology: Topology
    keys: Mapping[NamePair, str]
    dropped: Mapping[str, DropReason]


def find_prefixes(shapes: Mapping[str, Shape]) -> list[str]:
    """List the prefixes under which an autoencoder begins, in the order of the keys."""
    prefixes: dict[str, None] = {}
    for name in shapes:
        if name.endswith(_ANCHORS):
            prefix = name[: -len(next(a for a in _ANCHORS if name.endswith(a)))]
            if (not prefix or prefix.endswith(".")) and not is_elsewhere(prefix):
                prefixes[prefix] = None
    return list(prefixes)


def is_elsewhere(prefix: str) -> bool:
    """Tell if the keys under a prefix are part of another model, whatever they look like."""
    return any("." + beginning in "." + prefix for beginning in _NOT_THE_AUTOENCODER)


def match_autoencoder(
    shapes: Mapping[str, Shape],
    prefix: str,
    *,
    where: str,
    drop: tuple[str, ...] = (),
    others: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> Autoencoder:
    """Recognise the autoencoder under a prefix, and account for every key.

    Args:
        shapes: All keys of the state dict, and their shapes.
        prefix: Prefix of the autoencoder's keys.
        where: The file, for messages.
        drop: Patterns of keys to leave out on request.
        others: Prefixes of further autoencoders that were not chosen.
        beside: What the keys of each state dict beside the proper one begin with.

    Raises:
        UnsupportedModelError: It is another kind of model, named where it is known.
        UnmappedKeysError: Keys are missing, unknown or wrongly shaped.
    """
    try:
        return _account(shapes, prefix, where, drop, others, beside)
    except (UnsupportedModelError, UnmappedKeysError) as error:
        inside = {
            name: shape
            for name, shape in shapes.items()
            if name.startswith(prefix)
            and (not name.startswith(beside) or prefix.startswith(beside))
        }
        raise find_unsupported(inside, where) or error from error


def no_autoencoder(shapes: Mapping[str, Shape], where: str) -> InputError:
    """Say that no autoencoder is in a state dict, naming what is there where that is known."""
    known = find_unsupported(shapes, where)
    if known:
        return known
    parts = sorted({reason.value for name in shapes if (reason := drop_reason(name, ""))})
    holds = f"; it holds: {', '.join(parts)}" if parts else ""
    first = next(iter(shapes), "")
    return UnsupportedModelError(
        f"no autoencoder in it: no key ends in encoder.conv_in.weight or "
        f"decoder.conv_in.weight{holds} (first key: {first})",
        where=where,
    )


def drop_reason(name: str, prefix: str, beside: tuple[str, ...] = ()) -> DropReason | None:
    """Find the rule by which a key is left out.

    Args:
        name: The key.
        prefix: Prefix of the autoencoder's keys.
        beside: What the keys of each state dict beside the proper one begin with.
    """
    candidates = {name, name[len(prefix) :]} if name.startswith(prefix) else {name}
    root = next((root for root in beside if name.startswith(root)), "")
    if names_ema(root) or any(names_ema(one[: one.find(".") + 1]) for one in candidates):
        return DropReason.EMA
    if root and not prefix.startswith(root):
        return DropReason.OTHER_STATE_DICT
    for reason, beginnings in _DROPPED:
        if any(candidate.startswith(beginnings) for candidate in candidates):
            return reason
    return None


def _account(
    shapes: Mapping[str, Shape],
    prefix: str,
    where: str,
    drop: tuple[str, ...],
    others: tuple[str, ...],
    beside: tuple[str, ...],
) -> Autoencoder:
    inside: dict[str, Shape] = {}
    dropped: dict[str, DropReason] = {}
    other_beginnings = tuple(other + root for other in others for root in ROOTS)
    for name, shape in shapes.items():
        bare = name[len(prefix) :]
        if any(fnmatchcase(name, pattern) for pattern in drop):
            dropped[name] = DropReason.REQUESTED
        elif name.startswith(prefix) and bare.startswith(ROOTS):
            inside[bare] = shape
        else:
            reason = drop_reason(name, prefix, beside)
            if reason is not DropReason.EMA and others and name.startswith(other_beginnings):
                reason = DropReason.OTHER_AUTOENCODER
            dropped[name] = reason or DropReason.UNKNOWN
    layout = detect_layout(inside, where)
    topology = infer_topology(inside, layout, where)
    name_map = NameMap(expand_rules(topology))
    keys: dict[NamePair, str] = {}
    misshaped: list[str] = []
    # Whatever lies under its prefix is the autoencoder's; without one, the whole state dict.
    unexpected = [n for n, r in dropped.items() if r is DropReason.UNKNOWN and n.startswith(prefix)]
    for bare, shape in inside.items():
        pair = name_map.find(layout, bare)
        if pair is None or pair in keys:
            unexpected.append(prefix + bare)
        elif not pair.accepts(shape):
            misshaped.append(f"{prefix}{bare} {list(shape)}, not {list(pair.shape(layout))}")
            keys[pair] = prefix + bare
        else:
            keys[pair] = prefix + bare
    missing = [prefix + pair.name(layout) for pair in name_map.pairs if pair not in keys]
    if missing or unexpected or misshaped:
        raise UnmappedKeysError(
            missing=missing, unexpected=unexpected, misshaped=misshaped, where=where
        )
    return Autoencoder(prefix, layout, topology, keys, dropped)
