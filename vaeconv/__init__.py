"""vaeconv: Stable Diffusion autoencoders between layouts, right to the bit.

The public API; each name is imported when it is first used.
"""

from __future__ import annotations

from vaeconv._version import __version__

TYPE_CHECKING = False  # typing takes longer to import than everything here

if TYPE_CHECKING:
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.checkpoint.open import open_checkpoint
    from vaeconv.checkpoint.types import Checkpoint
    from vaeconv.common.notes import Level, Note, VaeconvWarning
    from vaeconv.errors import VaeconvError
    from vaeconv.evaluation.compare import Compared, CompareOptions, compare
    from vaeconv.evaluation.eval_options import EvalOptions
    from vaeconv.evaluation.evaluate import EvalResult, evaluate
    from vaeconv.evaluation.models import ModelSpec
    from vaeconv.evaluation.protocol import Protocol
    from vaeconv.models.open_model import SideOptions
    from vaeconv.parity.compare_outputs import Limits
    from vaeconv.parity.encode import Encoded, encode_images
    from vaeconv.parity.options import VerifyOptions
    from vaeconv.parity.result import Verification
    from vaeconv.parity.verify import verify
    from vaeconv.publish.card.card import CardInputs, make_card
    from vaeconv.publish.card.meta import CardMeta
    from vaeconv.publish.hub.push import Pushed, push
    from vaeconv.publish.hub.push_options import PushOptions
    from vaeconv.publish.release.config import ReleaseConfig
    from vaeconv.publish.release.release import Release, release
    from vaeconv.weights.convert import Conversion, ConvertOptions, convert
    from vaeconv.weights.execute import CopyOptions
    from vaeconv.weights.inspect import Inspection, InspectOptions, inspect
    from vaeconv.weights.prune import Pruning, prune
    from vaeconv.weights.prune_options import PruneOptions

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
    "CardInputs": "vaeconv.publish.card.card",
    "CardMeta": "vaeconv.publish.card.meta",
    "Checkpoint": "vaeconv.checkpoint.types",
    "Compared": "vaeconv.evaluation.compare",
    "CompareOptions": "vaeconv.evaluation.compare",
    "Conversion": "vaeconv.weights.convert",
    "ConvertOptions": "vaeconv.weights.convert",
    "CopyOptions": "vaeconv.weights.execute",
    "Encoded": "vaeconv.parity.encode",
    "EvalResult": "vaeconv.evaluation.evaluate",
    "EvalOptions": "vaeconv.evaluation.eval_options",
    "InspectOptions": "vaeconv.weights.inspect",
    "Inspection": "vaeconv.weights.inspect",
    "Level": "vaeconv.common.notes",
    "Limits": "vaeconv.parity.compare_outputs",
    "ModelSpec": "vaeconv.evaluation.models",
    "Note": "vaeconv.common.notes",
    "Protocol": "vaeconv.evaluation.protocol",
    "PruneOptions": "vaeconv.weights.prune_options",
    "Pruning": "vaeconv.weights.prune",
    "PushOptions": "vaeconv.publish.hub.push_options",
    "Pushed": "vaeconv.publish.hub.push",
    "Release": "vaeconv.publish.release.release",
    "ReleaseConfig": "vaeconv.publish.release.config",
    "ScalingOptions": "vaeconv.autoencoder.scaling",
    "SideOptions": "vaeconv.models.open_model",
    "VaeconvError": "vaeconv.errors",
    "VaeconvWarning": "vaeconv.common.notes",
    "Verification": "vaeconv.parity.result",
    "VerifyOptions": "vaeconv.parity.options",
    "compare": "vaeconv.evaluation.compare",
    "convert": "vaeconv.weights.convert",
    "encode_images": "vaeconv.parity.encode",
    "evaluate": "vaeconv.evaluation.evaluate",
    "inspect": "vaeconv.weights.inspect",
    "make_card": "vaeconv.publish.card.card",
    "open_checkpoint": "vaeconv.checkpoint.open",
    "prune": "vaeconv.weights.prune",
    "push": "vaeconv.publish.hub.push",
    "release": "vaeconv.publish.release.release",
    "verify": "vaeconv.parity.verify",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
