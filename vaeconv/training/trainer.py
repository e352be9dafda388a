"""One optimizer step after the other, on all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import CheckFailedError, listed
from vaeconv.evaluation.metrics import Meter
from vaeconv.evaluation.models import sample_posterior
from vaeconv.training.adversary import BETAS, Adversary
from vaeconv.training.base import Base
from vaeconv.training.checkpoint import Parts
from vaeconv.training.images import Schedule, Taken
from vaeconv.training.options import FinetuneOptions
from vaeconv.training.shadows import Shadows

if TYPE_CHECKING:
    import torch


class _Report(NamedTuple):
    """A step as one process saw it.

    Attributes:
        names: Its images, in the order of the stream.
        not_finite: Those of them whose loss is NaN or infinite.
        means: Parts of the loss, over its images.
    """

    names: list[str]
    not_finite: list[str]
    means: dict[str, float]


class Trainer:
    """A decoder on its way.

    The encoder and ``quant_conv`` have no gradient and stay outside of what is distributed. The
    trained part is called as the module that accelerate prepared: through it gradients are
    averaged over processes.

    Args:
        base: The autoencoder; its model is moved and trained in place.
        options: How.
        schedule: Which images make a step.
        meter: Computes LPIPS; None where it has no weight.
        accelerator: ``accelerate.Accelerator``.

    Attributes:
        parts: All that a checkpoint holds.
    """

    def __init__(
        self,
        base: Base,
        options: FinetuneOptions,
        schedule: Schedule,
        meter: Meter | None,
        accelerator: Any,
    ) -> None:
        import torch

        from vaeconv.training.networks import TrainedPart

        self._options, self._schedule = options, schedule
        self._meter, self._accelerator = meter, accelerator
        self._device: torch.device = accelerator.device
        self._model = base.model.to(self._device).requires_grad_(False)
        part = TrainedPart(self._model, recomputes=options.gradient_checkpointing)
        part.requires_grad_(True)
        self._parameters = list(part.parameters())
        shadows = Shadows(dict(part.named_parameters()), options.ema_decay)
        self._optimizer = torch.optim.Adam(self._parameters, lr=options.lr, betas=BETAS)
        adversary = Adversary(base, options, self._device) if options.adversarial else None
        optimizers = [self._optimizer, *([adversary.optimizer] if adversary else [])]
        self._adversary = adversary
        self.parts = Parts(base, shadows, optimizers, adversary.module if adversary else None)
        self._net = accelerator.prepare_model(torch.compile(part) if options.compiles else part)

    def check_equal(self) -> None:
        """Check that all processes hold the same weights.

        Raises:
            CheckFailedError: They do not; gradients did not come together.
        """
        import torch

        sums = torch.stack([one.detach().double().sum() for one in self._parameters])
        if len({tuple(one) for one in self._schedule.world.gather(sums.tolist())}) > 1:
            raise CheckFailedError("the processes hold different weights, so none are saved")

    def step(self, step: int, taken: Sequence[Taken]) -> dict[str, float]:
        """Take one step.

        Args:
            step: Its number, from 0.
            taken: This process's images, batch after batch.

        Returns:
            Of all processes: ``loss`` and its parts ``pixel`` and ``lpips`` for an element, with a
            discriminator ``adversarial``, ``adversarial_weight`` and ``discriminator``, then
            ``grad_norm`` before clipping, and ``lr``.

        Raises:
            CheckFailedError: The loss or the gradient is not finite; nothing was changed.
        """
        import torch

        options, size = self._options, self._schedule.batch
        self._optimizer.zero_grad()
        starts = range(0, len(taken), size)
        reports = [
            self._add_gradient(step, taken[at : at + size], is_last=at == starts[-1])
            for at in starts
        ]
        # Without a limit this only measures.
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, options.clip or math.inf).item()
        means = _mean([one.means for one in reports])
        everywhere = self._schedule.world.gather(
            _Report(
                [name for one in reports for name in one.names],
                [name for one in reports for name in one.not_finite],
                means,
            )
        )
        _check_finite(step, everywhere, norm)
        means = _mean([one.means for one in everywhere])
        lr = options.lr * min(1.0, (step + 1) / max(1, options.warmup))
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        if self._adversary and self._adversary.is_on(step):
            self._adversary.step(lr, lambda one: self._accelerator.reduce(one, "mean"))
        self.parts.shadows.update()
        loss = means["pixel"] + options.loss.lpips * means["lpips"]
        return {"loss": loss, **means, "grad_norm": norm, "lr": lr}

    def _add_gradient(self, step: int, batch: Sequence[Taken], *, is_last: bool) -> _Report:
        """Run a batch forth and back; gradients of processes come together with the last one."""
        from contextlib import nullcontext

        import torch

        from vaeconv.training.loss import reconstruction_loss

        pixel, weight = self._options.loss
        images = self._to_device(batch)
        latents = self._encode(images, batch)
        together = nullcontext() if is_last else self._accelerator.no_sync(self._net)
        with together:
            with self._autocast():
                decoded = self._net(latents)
            decoded = decoded.float()
            loss = reconstruction_loss(
                images, decoded, pixel=pixel, weight=weight, meter=self._meter
            )
            total = loss.total
            more: dict[str, torch.Tensor] = {}
            if self._adversary and self._adversary.is_on(step):
                last_layer = self._model.decoder.conv_out.weight
                more["adversarial"], balance = self._adversary.judge(total, decoded, last_layer)
                more["adversarial_weight"] = balance
                total = total + balance * more["adversarial"]
            self._accelerator.backward(total)
            if more and self._adversary:
                more["discriminator"] = self._adversary.learn(
                    images, decoded, self._accelerator.backward
                )
        each = torch.stack([loss.pixel, loss.lpips]).detach().tolist()
        names = [one.name for one in batch]
        totals = [a + weight * b for a, b in zip(*each, strict=True)]
        means = dict(zip(("pixel", "lpips"), (sum(one) / len(one) for one in each), strict=True))
        return _Report(
            names,
            [name for name, one in zip(names, totals, strict=True) if not math.isfinite(one)],
            {**means, **{name: one.item() for name, one in more.items()}},
        )

    def _to_device(self, batch: Sequence[Taken]) -> torch.Tensor:
        """Give a batch as float32 from -1 to 1."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack([one.pixels for one in batch]))
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self._device, non_blocking=True).float() / 127.5 - 1

    def _encode(self, images: torch.Tensor, batch: Sequence[Taken]) -> torch.Tensor:
        """Encode, and keep nothing for a gradient."""
        import torch

        with torch.no_grad():
            with self._autocast():
                moments = self._model.encode(images)
            mean: torch.Tensor
            mean, logvar = moments.float().chunk(2, dim=1)
            if self._options.posterior == "mode":
                return mean
            return sample_posterior(mean, logvar, [one.at for one in batch], self._options.seed)

    def _autocast(self) -> Any:
        import torch

        is_on = self._options.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=is_on)


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in values) / len(values) for name in values[0]}


def _check_finite(step: int, reports: Sequence[_Report], norm: float) -> None:
    bad = [name for one in reports for name in one.not_finite]
    if not bad and math.isfinite(norm):
        return
    if bad:
        said = f"the loss of {listed(bad)}"
    else:
        said = f"the gradient; its images are {listed([n for one in reports for n in one.names])}"
    raise CheckFailedError(
        f"NaN or infinity in step {step + 1}, in {said}",
        hint="the step was not taken, and the last checkpoint is as it was; try a smaller --lr, a "
        "--clip, or --precision fp32",
    )
