"""The adversarial loss: a discriminator that learns beside the decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vaeconv.errors import UnmappedKeysError
from vaeconv.training.base import DISCRIMINATOR, Base
from vaeconv.training.options import FinetuneOptions

if TYPE_CHECKING:
    import torch

BETAS = (0.5, 0.9)  # of both optimizers


class Adversary:
    """A discriminator with its optimizer.

    LDM gives the discriminator a second encode and sample, and decodes with the decoder that was
    just updated; here it learns from the same reconstructions, for half of the time.

    Args:
        base: Where a discriminator may come from.
        options: Weight, start, learning rate and seed.
        device: Where all is computed.

    Raises:
        UnmappedKeysError: The base's discriminator is of another architecture.
    """

    def __init__(self, base: Base, options: FinetuneOptions, device: torch.device) -> None:
        import torch

        from vaeconv.training.networks import Discriminator

        self._options = options
        self.module = Discriminator(base.topology.out_channels)
        if base.discriminator:
            expected = {name: one.shape for name, one in self.module.state_dict().items()}
            found = {name: one.shape for name, one in base.discriminator.items()}
            if expected != found:
                odd = [DISCRIMINATOR + name for name, shape in found.items()
                       if expected.get(name) != shape]  # fmt: skip
                missing = [DISCRIMINATOR + name for name in expected.keys() - found.keys()]
                raise UnmappedKeysError(misshaped=odd, missing=sorted(missing), where=base.name)
            self.module.load_state_dict(dict(base.discriminator))
        else:
            self.module.initialise(options.seed)
        self.module.to(device).train()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=options.lr, betas=BETAS)

    def is_on(self, step: int) -> bool:
        """Tell if the loss has begun; LDM multiplies it by 0 until then."""
        return step >= self._options.adversarial_start

    def judge(
        self, loss: torch.Tensor, decoded: torch.Tensor, last_layer: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the decoder's adversarial loss and its adaptive weight, both scalars.

        Args:
            loss: Of the reconstruction.
            decoded: float32 ``[b, c, h, w]``, with its graph.
            last_layer: The weight of the decoder's last convolution.
        """
        from vaeconv.training.loss import adaptive_weight

        self.module.requires_grad_(False)  # the decoder's gradient is none of its own
        adversarial = -self.module(decoded).mean()
        weight = adaptive_weight(loss, adversarial, last_layer) * self._options.adversarial
        return adversarial, weight

    def learn(
        self, images: torch.Tensor, decoded: torch.Tensor, backward: Callable[[Any], None]
    ) -> torch.Tensor:
        """Add the gradient of the discriminator's loss on a batch; gives the loss, a scalar."""
        from vaeconv.training.loss import hinge_loss

        self.module.requires_grad_(True)
        loss = hinge_loss(self.module(images), self.module(decoded.detach()))
        backward(loss)
        return loss.detach()

    def step(self, lr: float, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take a step with the gradients of all processes.

        Args:
            lr: Learning rate.
            reduce: Gives the mean of a tensor over all processes.
        """
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
