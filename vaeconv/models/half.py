"""Half precision on a CPU as a GPU computes it: products of fp16 or bf16 values, summed in fp32.

Few CPUs can multiply them, and what torch does on the others takes some 40 times as long as fp32.
So values are widened for what sums products, where fp32 is fast, and the result is rounded back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_HALVES = frozenset((torch.float16, torch.bfloat16))
_SUMS_OF_PRODUCTS = frozenset(("conv2d", "linear", "bmm", "scaled_dot_product_attention"))


class _Fp32Sums(TorchFunctionMode):
    """Runs what sums products in fp32."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        kinds = {one.dtype for one in tensors if one.dtype is not torch.bool}  # as of a mask
        is_sum = getattr(function, "__name__", "") in _SUMS_OF_PRODUCTS
        # Of operands of several types torch says that it does not multiply them.
        if not is_sum or len(kinds) != 1 or not kinds <= _HALVES or kwargs.get("out") is not None:
            return function(*args, **kwargs)
        values = {name: _widened(value) for name, value in kwargs.items()}
        return function(*map(_widened, args), **values).to(*kinds)


def _widened(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.dtype in _HALVES
    return value.float() if is_half else value


def fp32_sums(data: torch.Tensor) -> AbstractContextManager[Any]:
    """Let a model sum in fp32 while it runs on data.

    Args:
        data: What the model is given; nothing changes unless it is fp16 or bf16 on a CPU.

    Example:
        >>> halves = torch.ones(1, 4096, dtype=torch.float16)
        >>> with fp32_sums(halves):
        ...     torch.nn.functional.linear(halves, halves).item()
        4096.0
    """
    is_half = data.device.type == "cpu" and data.dtype in _HALVES
    return _Fp32Sums() if is_half else nullcontext()
