"""vaeconv: Stable Diffusion autoencoders between layouts, right to the bit.

The public API; each name is imported when it is first used.
"""

from __future__ import annotations

from vaeconv._version import __version__

TYPE_CHECKING = False  # typing takes longer to import than everything here

if TYPE_CHECKING:
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.checkpoint.open import open_checkpoint
    from vaeconv.conversion import Conversion, ConvertOptions, convert
    from vaeconv.errors import VaeconvError
    from vaeconv.executor import CopyOptions
    from vaeconv.parity.behaviour import Limits
    from vaeconv.parity.encoding import encode_pictures
    from vaeconv.parity.side import SideOptions
    from vaeconv.parity.verdict import Verification
    from vaeconv.parity.verification import VerifyOptions, verify
    from vaeconv.prune_options import PruneOptions
    from vaeconv.pruning import Pruning, prune

__all__ = [
    "Conversion",
    "ConvertOptions",
    "CopyOptions",
    "Limits",
    "PruneOptions",
    "Pruning",
    "ScalingOptions",
    "SideOptions",
    "VaeconvError",
    "Verification",
    "VerifyOptions",
    "__version__",
    "convert",
    "encode_pictures",
    "open_checkpoint",
    "prune",
    "verify",
]

_HOMES = {
    "Conversion": "vaeconv.conversion",
    "ConvertOptions": "vaeconv.conversion",
    "CopyOptions": "vaeconv.executor",
    "Limits": "vaeconv.parity.behaviour",
    "PruneOptions": "vaeconv.prune_options",
    "Pruning": "vaeconv.pruning",
    "ScalingOptions": "vaeconv.autoencoder.scaling",
    "SideOptions": "vaeconv.parity.side",
    "VaeconvError": "vaeconv.errors",
    "Verification": "vaeconv.parity.verdict",
    "VerifyOptions": "vaeconv.parity.verification",
    "convert": "vaeconv.conversion",
    "encode_pictures": "vaeconv.parity.encoding",
    "open_checkpoint": "vaeconv.checkpoint.open",
    "prune": "vaeconv.pruning",
    "verify": "vaeconv.parity.verification",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
