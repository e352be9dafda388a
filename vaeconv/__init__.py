"""vaeconv: Stable Diffusion autoencoders between layouts, right to the bit.

The public API; each name is imported when it is first used.
"""

from __future__ import annotations

from vaeconv._version import __version__ as __version__

TYPE_CHECKING = False  # typing takes longer to import than everything here

if TYPE_CHECKING:
    from vaeconv.autoencoder.scaling import ScalingOptions as ScalingOptions
    from vaeconv.checkpoint.open import open_checkpoint as open_checkpoint
    from vaeconv.checkpoint.types import Checkpoint as Checkpoint
    from vaeconv.common.notes import Level as Level
    from vaeconv.common.notes import Note as Note
    from vaeconv.common.notes import VaeconvWarning as VaeconvWarning
    from vaeconv.errors import VaeconvError as VaeconvError
    from vaeconv.evaluation.compare import Compared as Compared
    from vaeconv.evaluation.compare import CompareOptions as CompareOptions
    from vaeconv.evaluation.compare import compare as compare
    from vaeconv.evaluation.eval_options import EvalOptions as EvalOptions
    from vaeconv.evaluation.evaluate import EvalResult as EvalResult
    from vaeconv.evaluation.evaluate import evaluate as evaluate
    from vaeconv.evaluation.models import ModelSpec as ModelSpec
    from vaeconv.evaluation.protocol import Protocol as Protocol
    from vaeconv.models.open_model import ModelOptions as ModelOptions
    from vaeconv.parity.compare_outputs import Limits as Limits
    from vaeconv.parity.encode import Encoded as Encoded
    from vaeconv.parity.encode import encode_images as encode_images
    from vaeconv.parity.options import VerifyOptions as VerifyOptions
    from vaeconv.parity.result import Verification as Verification
    from vaeconv.parity.verify import verify as verify
    from vaeconv.publish.card.card import CardInputs as CardInputs
    from vaeconv.publish.card.card import make_card as make_card
    from vaeconv.publish.card.meta import CardMeta as CardMeta
    from vaeconv.publish.hub.push import Pushed as Pushed
    from vaeconv.publish.hub.push import push as push
    from vaeconv.publish.hub.push_options import PushOptions as PushOptions
    from vaeconv.publish.release.config import ReleaseConfig as ReleaseConfig
    from vaeconv.publish.release.release import Release as Release
    from vaeconv.publish.release.release import release as release
    from vaeconv.training.finetune import Finetuned as Finetuned
    from vaeconv.training.finetune import finetune as finetune
    from vaeconv.training.options import FinetuneOptions as FinetuneOptions
    from vaeconv.weights.convert import Conversion as Conversion
    from vaeconv.weights.convert import convert as convert
    from vaeconv.weights.inspect import Inspection as Inspection
    from vaeconv.weights.inspect import inspect as inspect
    from vaeconv.weights.options import ConvertOptions as ConvertOptions
    from vaeconv.weights.options import CopyOptions as CopyOptions
    from vaeconv.weights.options import InspectOptions as InspectOptions
    from vaeconv.weights.options import PruneOptions as PruneOptions
    from vaeconv.weights.prune import Pruning as Pruning
    from vaeconv.weights.prune import prune as prune

# The same for Python, by the module that a name is from.
_NAMES = {
    "autoencoder.scaling": ("ScalingOptions",),
    "checkpoint.open": ("open_checkpoint",),
    "checkpoint.types": ("Checkpoint",),
    "common.notes": ("Level", "Note", "VaeconvWarning"),
    "errors": ("VaeconvError",),
    "evaluation.compare": ("Compared", "CompareOptions", "compare"),
    "evaluation.eval_options": ("EvalOptions",),
    "evaluation.evaluate": ("EvalResult", "evaluate"),
    "evaluation.models": ("ModelSpec",),
    "evaluation.protocol": ("Protocol",),
    "models.open_model": ("ModelOptions",),
    "parity.compare_outputs": ("Limits",),
    "parity.encode": ("Encoded", "encode_images"),
    "parity.result": ("Verification",),
    "parity.options": ("VerifyOptions",),
    "parity.verify": ("verify",),
    "publish.card.card": ("CardInputs", "make_card"),
    "publish.card.meta": ("CardMeta",),
    "publish.hub.push": ("Pushed", "push"),
    "publish.hub.push_options": ("PushOptions",),
    "publish.release.config": ("ReleaseConfig",),
    "publish.release.release": ("Release", "release"),
    "training.finetune": ("Finetuned", "finetune"),
    "training.options": ("FinetuneOptions",),
    "weights.convert": ("Conversion", "convert"),
    "weights.inspect": ("Inspection", "inspect"),
    "weights.options": ("ConvertOptions", "CopyOptions", "InspectOptions", "PruneOptions"),
    "weights.prune": ("Pruning", "prune"),
}
_HOMES = {name: f"vaeconv.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
