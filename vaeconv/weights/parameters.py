"""Which tensors are parameters. The one rule of what a cast may change.

A cast is for parameters: what training changed and a network multiplies by. Everything else keeps
its dtype and its bits: noise schedules, scales of quantised weights, statistics, counters, indices.
A parameter is recognised, not assumed: a tensor whose name says nothing stays as it is, which
costs bytes and never accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping

from vaeconv.autoencoder.match import DropReason, drop_reason
from vaeconv.checkpoint.dtypes import BY_OPTION, DType
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.common.notes import Note, note
from vaeconv.common.wording import plural
from vaeconv.errors import UnsupportedModelError
from vaeconv.weights.plan import KEEP

# Last components of keys under which modules keep what they train: torch's own modules, weight
# norm, then the embeddings and tables of vision transformers, CLIP, DiT, PixArt, SD3 and Wan.
_PARAMETERS = frozenset(
    (
        "weight", "bias", "in_proj_weight", "in_proj_bias", "weight_g", "weight_v",
        "positional_embedding", "class_embedding", "text_projection", "pos_embed",
        "y_embedding", "register_tokens", "cls_token", "mask_token", "scale_shift_table",
        "modulation", "gamma", "relative_position_bias_table", "positional_encoding", "emb_pos",
    )
)  # fmt: skip
# Parts of a checkpoint that hold no parameters, whatever their keys end in.
_NO_NETWORK = (DropReason.SCHEDULE, DropReason.LATENT_SCALING)
# Whole numbers that are no quantised weights: indices, counters and masks.
_COUNTS = ("I64", "U64", "BOOL")
_WEIGHT = "weight"  # in the last component of a quantised weight: weight, qweight, weight_packed
# Parts of a noise schedule that divide by a value that reaches zero, or take its logarithm: with
# zero terminal SNR (arXiv 2305.08891) they hold infinity by definition.
_DIVERGENT = frozenset(
    (
        "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
        "log_one_minus_alphas_cumprod", "posterior_log_variance", "posterior_log_variance_clipped",
        "lvlb_weights", "sigmas", "log_sigmas", "sigma_max", "log_snr", "snr", "ddim_sigmas",
        "ddim_sigmas_for_original_num_steps",
    )
)  # fmt: skip


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def may_be_infinite(name: str) -> bool:
    """Tell if a tensor of this name may hold infinity by definition; NaN is never allowed."""
    return _split(name)[1] in _DIVERGENT


class Parameters:
    """Tells parameters from other tensors of a state dict.

    Args:
        tensors: The whole state dict: what lies beside a tensor counts, too.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._quantised = {name for name, tensor in tensors.items() if is_quantised(name, tensor)}
        # A marker, such as ``scaled_fp8``, is no weight: what lies beside it is not quantised.
        self._modules = {module for module, leaf in map(_split, self._quantised) if _WEIGHT in leaf}

    def has(self, name: str, tensor: Tensor) -> bool:
        """Tell if a tensor is a parameter, so that a cast applies to it.

        Args:
            name: Its key in the state dict.
            tensor: The tensor.
        """
        module, leaf = _split(name)
        return (
            tensor.dtype.is_float
            and leaf in _PARAMETERS
            and module not in self._modules
            and module not in self._quantised  # bitsandbytes: to_q.weight.absmax
            and drop_reason(name, "") not in _NO_NETWORK
        )


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Tell if a tensor holds codes, of 8-bit floats or packed integers, that scales go with."""
    code = tensor.dtype.code
    if code.startswith("F8_"):
        return True
    return not tensor.dtype.is_float and code not in _COUNTS and _WEIGHT in _split(name)[1]


def weight_dtype(tensor: Tensor, wanted: str, where: str) -> DType:
    """Tell the element type of an autoencoder's weight in the output.

    Every tensor of an autoencoder is a parameter.

    Args:
        tensor: The weight.
        wanted: ``keep``, or the type to cast to as the command line calls it.
        where: The file, for messages.

    Raises:
        UnsupportedModelError: It is not of floating point, or of a type that cannot be cast.
    """
    dtype = tensor.dtype
    if not dtype.is_float and (wanted != KEEP or not dtype.code.startswith("F8_")):
        raise UnsupportedModelError(
            f"tensor {tensor.name} holds {dtype.torch_name}; weights are floating point",
            where=where,
        )
    return dtype if wanted == KEEP else BY_OPTION[wanted]


def kept_note(left: Mapping[str, Tensor], wanted: str) -> list[Note]:
    """Say which tensors a cast leaves alone: those that are quantised, and those that may be.

    Args:
        left: By name, the tensors that it does not apply to.
        wanted: ``keep``, or the type to cast to.
    """
    if wanted == KEEP:
        return []
    notes = []
    codes = [name for name, tensor in left.items() if is_quantised(name, tensor)]
    others = [
        name
        for name, tensor in left.items()
        if tensor.dtype.is_float and tensor.dtype is not BY_OPTION[wanted]
    ]
    if codes:
        notes.append(
            note(
                f"not cast: {plural(len(codes), 'quantised tensor')} with their scales, such as "
                f"{codes[0]}"
            )
        )
    if others:
        notes.append(
            note(
                f"not cast: {plural(len(others), 'tensor')} of unknown purpose, such as {others[0]}"
            )
        )
    return notes
