"""EMA weights of what is trained, to the bit as LDM's ``LitEma`` computes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vaeconv.autoencoder.ema import DECAY, NUM_UPDATES, PREFIX

if TYPE_CHECKING:
    import torch


def shadow_name(name: str) -> str:
    """Name the shadow of a parameter in a checkpoint: a buffer's name has no dots."""
    return PREFIX + name.replace(".", "")


class Shadows:
    """An exponential moving average of parameters, which begins as they are.

    ``ldm/modules/ema.py``: in the n-th update ``d = min(decay, (1 + n) / (10 + n))`` and ``shadow
    -= (1 - d) * (shadow - parameter)``, everything in float32. LDM updates once a batch, also
    between steps where gradients are accumulated; here an update belongs to an optimizer step.

    Args:
        parameters: By name, on their device; they are remembered.
        decay: The share that a late update keeps.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        import torch

        self._parameters = dict(parameters)
        self._shadows = {name: one.detach().clone() for name, one in parameters.items()}
        self._decay = torch.tensor(decay, dtype=torch.float32)
        self._updates = torch.tensor(0, dtype=torch.int32)

    def update(self) -> None:
        """Take in the parameters as they are now."""
        import torch

        self._updates += 1
        warm = (1 + self._updates) / (10 + self._updates)
        taken = 1.0 - torch.minimum(self._decay, warm)
        with torch.no_grad():
            for name, shadow in self._shadows.items():
                shadow.sub_(taken * (shadow - self._parameters[name]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the modules run with the EMA weights inside the block."""
        raw = {name: one.data for name, one in self._parameters.items()}
        try:
            for name, shadow in self._shadows.items():
                self._parameters[name].data = shadow
            yield
        finally:
            for name, data in raw.items():
                self._parameters[name].data = data

    def state(self) -> dict[str, torch.Tensor]:
        """Give the entries of a checkpoint's state dict: decay, number of updates, shadows."""
        named = {shadow_name(name): one for name, one in self._shadows.items()}
        return {PREFIX + DECAY: self._decay, PREFIX + NUM_UPDATES: self._updates, **named}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take shadows and their number of updates from a checkpoint's state dict."""
        self._updates.copy_(state[PREFIX + NUM_UPDATES])
        for name, shadow in self._shadows.items():
            shadow.copy_(state[shadow_name(name)])
