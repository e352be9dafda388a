"""A run's checkpoint: the shape of Lightning's, plain data only, and all that a run goes on from.

PyTorch Lightning 1.4, which LDM used, writes such a dictionary (``dump_checkpoint``). What is not
trained stays as the base's file has it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.autoencoder.topology import Topology
from vaeconv.errors import InputError
from vaeconv.training.base import DISCRIMINATOR, TRAINED, Base

if TYPE_CHECKING:
    import torch

    from vaeconv.training.shadows import Shadows

_LIGHTNING = "1.4.2"
_NEEDED = ("global_step", "state_dict", "optimizer_states")


class Parts(NamedTuple):
    """Parts that a checkpoint is made of, and restored into.

    Attributes:
        base: The base, whose model is trained.
        shadows: EMA weights of what is trained.
        optimizers: The decoder's, and the discriminator's where there is one.
        discriminator: None for none.
    """

    base: Base
    shadows: Shadows
    optimizers: Sequence[torch.optim.Optimizer]
    discriminator: torch.nn.Module | None


def make_checkpoint(
    parts: Parts, *, step: int, epoch: int, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather a checkpoint, on the CPU.

    Args:
        parts: What was trained.
        step: Optimizer steps that were taken.
        epoch: Passes over the images that were completed.
        run: Options and facts, as plain data.
    """
    import torch

    base, shadows, optimizers, discriminator = parts
    state = {name: base.stored.get(name, one) for name, one in base.model.state_dict().items()}
    if discriminator is not None:
        state["loss.logvar"] = torch.zeros(())
        state |= {DISCRIMINATOR + key: one for key, one in discriminator.state_dict().items()}
    return {
        "epoch": epoch,
        "global_step": step,
        "pytorch-lightning_version": _LIGHTNING,
        "state_dict": _on_cpu({**state, **shadows.state()}),
        "callbacks": {},
        "optimizer_states": _on_cpu([one.state_dict() for one in optimizers]),
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "embed_dim": base.topology.latent_channels,
            "ddconfig": describe_topology(base.topology, run["size"]),
            "finetune": dict(run),
        },
    }


def describe_topology(topology: Topology, size: int) -> dict[str, Any]:
    """Write an architecture as LDM's ``ddconfig``, for images of so many pixels."""
    first = topology.channels[0]
    return {
        "double_z": True,
        "z_channels": topology.latent_channels,
        "resolution": size,
        "in_channels": topology.in_channels,
        "out_ch": topology.out_channels,
        "ch": first,
        "ch_mult": [width // first if width % first == 0 else width / first
                    for width in topology.channels],
        "num_res_blocks": topology.layers_per_block,
        "attn_resolutions": [size >> i for i, has in enumerate(topology.level_attention) if has],
        "dropout": 0.0,
    }  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's own checkpoint; nothing in it is executed.

    Raises:
        InputError: It is damaged, or no such checkpoint.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        missing = [name for name in _NEEDED if name not in found]
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"the run cannot go on from it ({reason})",
            where=str(path),
            hint="--restart starts over; or remove it, and copy an older step-*.ckpt to its name",
        ) from error
    if missing or not isinstance(found["global_step"], int):
        absent = ", ".join(missing) or "number of steps"
        raise InputError(f"holds no {absent}", where=str(path), hint="--restart starts over")
    return dict(found)


def restore(parts: Parts, checkpoint: Mapping[str, Any]) -> None:
    """Bring all that is trained to where a checkpoint of the same run has it."""
    import torch

    base, shadows, optimizers, discriminator = parts
    state = checkpoint["state_dict"]
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if name.startswith(TRAINED):
                parameter.copy_(state[name])
    shadows.load(state)
    if discriminator is not None:
        names = discriminator.state_dict()
        discriminator.load_state_dict({name: state[DISCRIMINATOR + name] for name in names})
    for optimizer, saved in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        optimizer.load_state_dict(saved)


def _on_cpu(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(one) for one in value]
    return value
