"""Names of EMA weights beside the raw weights that they follow.

Trainers save it as a state dict of its own, under a name that says so. LitEma is different:

``ldm/modules/ema.py`` registers one buffer per trainable parameter under the parameter's name
with all dots removed. The way back is ambiguous, so names are only ever built forward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from vaeconv.common.ema_names import names_ema

PREFIX = "model_ema."
DECAY, NUM_UPDATES = "decay", "num_updates"  # behind the prefix
_MAX_DEPTH = 32  # dots in a key
# (1 + n) / (10 + n) warms the EMA up; before some 20 steps the random start shows.
WARM_UPDATES = 20


class EmaKeys(NamedTuple):
    """EMA weights that a checkpoint holds for the autoencoder.

    Attributes:
        shadows: Raw CompVis name to the key of its shadow, for parameters that have one.
        keys: Number of keys that belong to an EMA, of any kind.
        covers_unet: Whether the EMA belongs to a diffusion model instead.
        prefix: What the keys of the shadows begin with.
        others: Further EMAs of the same autoencoder, each by its prefix.
        is_whole: Whether the autoencoder that was found is an EMA itself; its shadows are its
            own keys then.
    """

    shadows: Mapping[str, str]
    keys: int
    covers_unet: bool
    prefix: str = PREFIX
    others: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    is_whole: bool = False


def find_shadows(parameters: Mapping[str, str], keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Find EMA weights of parameters: whole names behind a prefix, or LitEma's without dots.

    Args:
        parameters: Spellings of the raw names, with dots; each with what to call it in the result.
        keys: All keys of the state dict.

    Returns:
        What the keys of each EMA begin with, and its shadows by the names of ``parameters``.
        Of an EMA of an EMA only the outer one.
    """
    dotless = {spelled.replace(".", ""): name for spelled, name in parameters.items()}
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        at = key.find(".") + 1
        while 0 < at and key.count(".") <= _MAX_DEPTH:
            rest = key[at:]
            name = parameters.get(rest) or ("" if "." in rest else dotless.get(rest))
            if name:
                if names_ema(key[:at]):
                    groups.setdefault(key[:at], {}).setdefault(name, key)
                break
            at = key.find(".", at) + 1
    return {
        prefix: shadows
        for prefix, shadows in groups.items()
        if not any(prefix.startswith(other) for other in groups if other != prefix)
    }


def detect_ema(
    parameters: Mapping[str, str],
    keys: Mapping[str, object],
    prefix: str,
    ema_keys: Collection[str],
) -> EmaKeys:
    """Look for shadows of an autoencoder's parameters.

    Args:
        parameters: CompVis names of the parameters, without prefix, and what their keys are called
            behind it.
        keys: All keys of the state dict.
        prefix: The autoencoder's prefix; a nested EMA lies under it, too.
        ema_keys: Those keys that belong to an EMA, of whatever.
    """
    spellings = {
        spelled: name for name, bare in parameters.items() for spelled in (bare, prefix + bare)
    }
    own = {prefix + bare for bare in parameters.values()}
    groups = find_shadows(spellings, (key for key in keys if key not in own))
    # LitEma's inside the autoencoder is its own, and that of the whole model fills its gaps.
    lit = [groups.pop(group) for group in (prefix + PREFIX, PREFIX) if group in groups]
    if lit:
        joined = {name: key for shadows in reversed(lit) for name, key in shadows.items()}
        groups = {PREFIX: joined, **groups}
    found, shadows = next(iter(groups.items()), (PREFIX, {}))
    others = {group: shadows for group, shadows in groups.items() if group != found}
    covers_unet = any("diffusion_model" in key for key in ema_keys)
    return EmaKeys(shadows, len(ema_keys), covers_unet, found, others)
