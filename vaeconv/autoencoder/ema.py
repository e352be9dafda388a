"""LitEma: how an exponential moving average lies in a CompVis checkpoint.

``ldm/modules/ema.py`` registers one buffer per trainable parameter under the parameter's name
with all dots removed. The way back is ambiguous, so names are only ever built forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

PREFIX = "model_ema."
DECAY = PREFIX + "decay"
NUM_UPDATES = PREFIX + "num_updates"
_MODEL = "model."
# (1 + n) / (10 + n) warms the average up; before some 20 steps the random start shows.
WARM_UPDATES = 20


def shadow_name(name: str) -> str:
    """Name the shadow of a raw parameter.

    >>> shadow_name("decoder.conv_in.weight")
    'model_ema.decoderconv_inweight'
    """
    return PREFIX + name.replace(".", "")


def model_shadows(keys: Mapping[str, object]) -> dict[str, str]:
    """Find the shadows of a diffusion model in a full checkpoint.

    ``LatentDiffusion`` averages ``self.model``, so the shadow of ``model.diffusion_model.…`` is
    named without the first component.

    Returns:
        The key of each averaged parameter, and that of its shadow.
    """
    names = (key for key in keys if key.startswith(_MODEL + "diffusion_model."))
    shadows = {name: shadow_name(name[len(_MODEL) :]) for name in names}
    return {name: shadow for name, shadow in shadows.items() if shadow in keys}


class EmaSurvey(NamedTuple):
    """What EMA a checkpoint holds for the autoencoder.

    Attributes:
        shadows: Raw CompVis name to the key of its shadow, for parameters that have one.
        keys: Number of ``model_ema.*`` keys of any kind.
        covers_unet: Whether the average belongs to a diffusion model instead.
    """

    shadows: Mapping[str, str]
    keys: int
    covers_unet: bool


def survey_ema(names: Iterable[str], keys: Mapping[str, object], prefix: str) -> EmaSurvey:
    """Look for shadows of an autoencoder's parameters.

    Args:
        names: CompVis names of the parameters, without prefix.
        keys: All keys of the state dict.
        prefix: The autoencoder's prefix; a nested average lies under it, too.
    """
    shadows: dict[str, str] = {}
    for name in names:
        for key in (prefix + shadow_name(name), shadow_name(prefix + name)):
            if key in keys:
                shadows[name] = key
                break
    ema_keys = [key for key in keys if key.startswith((PREFIX, prefix + PREFIX))]
    covers_unet = any(key.startswith(PREFIX + "diffusion_model") for key in ema_keys)
    return EmaSurvey(shadows, len(ema_keys), covers_unet)
