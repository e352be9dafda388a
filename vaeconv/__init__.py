"""vaeconv: Stable Diffusion autoencoders between layouts, right to the bit.

The public API; each name is imported when it is first used.
"""

from __future__ import annotations

from vaeconv._version import __version__

TYPE_CHECKING = False  # typing takes longer to import than everything here

if TYPE_CHECKING:
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.checkpoint.base import Checkpoint
    from vaeconv.checkpoint.open import open_checkpoint
    from vaeconv.conversion import Conversion, ConvertOptions, convert
    from vaeconv.errors import VaeconvError
    from vaeconv.evaluation.comparing import Compared, CompareOptions, compare
    from vaeconv.evaluation.eval_options import EvalOptions
    from vaeconv.evaluation.evaluation import EvalResult, evaluate
    from vaeconv.evaluation.models import ModelSpec
    from vaeconv.evaluation.protocol import Protocol
    from vaeconv.executor import CopyOptions
    from vaeconv.inspection import Inspection, InspectOptions, inspect
    from vaeconv.notes import Level, Note, VaeconvWarning
    from vaeconv.parity.behaviour import Limits
    from vaeconv.parity.encoding import Encoded, encode_images
    from vaeconv.parity.side import SideOptions
    from vaeconv.parity.verdict import Verification
    from vaeconv.parity.verification import VerifyOptions, verify
    from vaeconv.prune_options import PruneOptions
    from vaeconv.pruning import Pruning, prune
    from vaeconv.publish.card import CardInputs, make_card
    from vaeconv.publish.meta import CardMeta
    from vaeconv.publish.push_options import PushOptions
    from vaeconv.publish.pushing import Pushed, push
    from vaeconv.publish.release import Release, release
    from vaeconv.publish.release_config import ReleaseConfig

__all__ = [
    "CardInputs",
    "CardMeta",
    "Checkpoint",
    "CompareOptions",
    "Compared",
    "Conversion",
    "ConvertOptions",
    "CopyOptions",
    "Encoded",
    "EvalOptions",
    "EvalResult",
    "InspectOptions",
    "Inspection",
    "Level",
    "Limits",
    "ModelSpec",
    "Note",
    "Protocol",
    "PruneOptions",
    "Pruning",
    "PushOptions",
    "Pushed",
    "Release",
    "ReleaseConfig",
    "ScalingOptions",
    "SideOptions",
    "VaeconvError",
    "VaeconvWarning",
    "Verification",
    "VerifyOptions",
    "__version__",
    "compare",
    "convert",
    "encode_images",
    "evaluate",
    "inspect",
    "make_card",
    "open_checkpoint",
    "prune",
    "push",
    "release",
    "verify",
]

_HOMES = {
    "CardInputs": "vaeconv.publish.card",
    "CardMeta": "vaeconv.publish.meta",
    "Checkpoint": "vaeconv.checkpoint.base",
    "Compared": "vaeconv.evaluation.comparing",
    "CompareOptions": "vaeconv.evaluation.comparing",
    "Conversion": "vaeconv.conversion",
    "ConvertOptions": "vaeconv.conversion",
    "CopyOptions": "vaeconv.executor",
    "Encoded": "vaeconv.parity.encoding",
    "EvalResult": "vaeconv.evaluation.evaluation",
    "EvalOptions": "vaeconv.evaluation.eval_options",
    "InspectOptions": "vaeconv.inspection",
    "Inspection": "vaeconv.inspection",
    "Level": "vaeconv.notes",
    "Limits": "vaeconv.parity.behaviour",
    "ModelSpec": "vaeconv.evaluation.models",
    "Note": "vaeconv.notes",
    "Protocol": "vaeconv.evaluation.protocol",
    "PruneOptions": "vaeconv.prune_options",
    "Pruning": "vaeconv.pruning",
    "PushOptions": "vaeconv.publish.push_options",
    "Pushed": "vaeconv.publish.pushing",
    "Release": "vaeconv.publish.release",
    "ReleaseConfig": "vaeconv.publish.release_config",
    "ScalingOptions": "vaeconv.autoencoder.scaling",
    "SideOptions": "vaeconv.parity.side",
    "VaeconvError": "vaeconv.errors",
    "VaeconvWarning": "vaeconv.notes",
    "Verification": "vaeconv.parity.verdict",
    "VerifyOptions": "vaeconv.parity.verification",
    "compare": "vaeconv.evaluation.comparing",
    "convert": "vaeconv.conversion",
    "encode_images": "vaeconv.parity.encoding",
    "evaluate": "vaeconv.evaluation.evaluation",
    "inspect": "vaeconv.inspection",
    "make_card": "vaeconv.publish.card",
    "open_checkpoint": "vaeconv.checkpoint.open",
    "prune": "vaeconv.pruning",
    "push": "vaeconv.publish.pushing",
    "release": "vaeconv.publish.release",
    "verify": "vaeconv.parity.verification",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
