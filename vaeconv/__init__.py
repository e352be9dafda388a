"""vaeconv: Stable Diffusion autoencoders between layouts, right to the bit.

The public API; each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaeconv._version import __version__

if TYPE_CHECKING:
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.checkpoint.open import open_checkpoint
    from vaeconv.conversion import Conversion, ConvertOptions, convert
    from vaeconv.errors import VaeconvError
    from vaeconv.executor import CopyOptions
    from vaeconv.prune_options import PruneOptions
    from vaeconv.pruning import Pruning, prune

__all__ = [
    "Conversion",
    "ConvertOptions",
    "CopyOptions",
    "PruneOptions",
    "Pruning",
    "ScalingOptions",
    "VaeconvError",
    "__version__",
    "convert",
    "open_checkpoint",
    "prune",
]

_HOMES = {
    "Conversion": "vaeconv.conversion",
    "ConvertOptions": "vaeconv.conversion",
    "CopyOptions": "vaeconv.executor",
    "PruneOptions": "vaeconv.prune_options",
    "Pruning": "vaeconv.pruning",
    "ScalingOptions": "vaeconv.autoencoder.scaling",
    "VaeconvError": "vaeconv.errors",
    "convert": "vaeconv.conversion",
    "open_checkpoint": "vaeconv.checkpoint.open",
    "prune": "vaeconv.pruning",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
