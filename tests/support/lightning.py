"""Training checkpoints as PyTorch Lightning 1.4 wrote them, without having Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from tests.support.compvis import DDConfig

CALLBACK_MODULE = "pytorch_lightning.callbacks.model_checkpoint"

# What an autoencoder with LPIPS and a discriminator keeps under `loss.`: the names are those of
# taming's modules, the discriminator is as small as it gets.
LOSS_SHAPES: dict[str, tuple[int, ...]] = {
    "loss.logvar": (),
    "loss.perceptual_loss.scaling_layer.shift": (1, 3, 1, 1),
    "loss.perceptual_loss.scaling_layer.scale": (1, 3, 1, 1),
    "loss.perceptual_loss.net.slice1.0.weight": (64, 3, 3, 3),
    "loss.perceptual_loss.net.slice1.0.bias": (64,),
    "loss.perceptual_loss.lin0.model.1.weight": (1, 64, 1, 1),
    "loss.discriminator.main.0.weight": (8, 3, 4, 4),
    "loss.discriminator.main.0.bias": (8,),
    "loss.discriminator.main.2.weight": (16, 8, 4, 4),
    "loss.discriminator.main.3.weight": (16,),
    "loss.discriminator.main.3.bias": (16,),
    "loss.discriminator.main.3.running_mean": (16,),
    "loss.discriminator.main.3.running_var": (16,),
    "loss.discriminator.main.3.num_batches_tracked": (),
    "loss.discriminator.main.5.weight": (1, 16, 4, 4),
    "loss.discriminator.main.5.bias": (1,),
}


class ModelCheckpoint:
    """Stands for Lightning's callback while a checkpoint is saved or loaded."""


@contextmanager
def fake_lightning() -> Iterator[type]:
    """Lets pickle find ``pytorch_lightning...ModelCheckpoint``, and yields that class."""
    parts = CALLBACK_MODULE.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {name: sys.modules.get(name) for name in names}
    callback = type("ModelCheckpoint", (ModelCheckpoint,), {"__module__": CALLBACK_MODULE})
    for name in names:
        sys.modules[name] = ModuleType(name)
    vars(sys.modules[CALLBACK_MODULE])["ModelCheckpoint"] = callback
    try:
        yield callback
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def make_adam_state(
    parameters: Sequence[Tensor], moment: Callable[[int, Tensor], tuple[Tensor, Tensor]], step: int
) -> dict[str, Any]:
    """Builds what ``torch.optim.Adam.state_dict`` returns after ``step`` steps."""
    state = {}
    for index, parameter in enumerate(parameters):
        first, second = moment(index, parameter)
        state[index] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    group = {
        "lr": 4.5e-06,
        "betas": (0.5, 0.9),
        "eps": 1e-08,
        "weight_decay": 0,
        "amsgrad": False,
        "params": list(range(len(parameters))),
    }
    return {"state": state, "param_groups": [group]}


def make_hyper_parameters(config: DDConfig, *, resolution: int = 64) -> Any:
    """Builds the OmegaConf object that holds a run's ``ddconfig``."""
    return OmegaConf.create(
        {
            "embed_dim": config.z_channels,
            "monitor": "val/rec_loss",
            "ddconfig": {
                "double_z": True,
                "z_channels": config.z_channels,
                "resolution": resolution,
                "in_channels": config.in_channels,
                "out_ch": config.out_ch,
                "ch": config.ch,
                "ch_mult": list(config.ch_mult),
                "num_res_blocks": config.num_res_blocks,
                "attn_resolutions": [resolution >> i for i in sorted(config.attn_levels)],
                "dropout": 0.0,
            },
            "lossconfig": {
                "target": "ldm.modules.losses.LPIPSWithDiscriminator",
                "params": {"disc_start": 50001, "kl_weight": 1e-06, "disc_weight": 0.5},
            },
        }
    )


def make_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    callback: type,
    best_score: Tensor,
    optimizer_states: Sequence[Mapping[str, Any]] = (),
    config: DDConfig | None = None,
    global_step: int = 50_000,
) -> dict[str, Any]:
    """Builds the dictionary of a training checkpoint.

    Args:
        state_dict: All of the model: weights, loss, EMA.
        callback: The class from ``fake_lightning``, which Lightning 1.4 used as a key.
        best_score: What that callback watches.
        optimizer_states: One for each optimizer.
        config: What the hyper parameters say; none are stored without it.
        global_step: Optimizer steps that were taken.
    """
    checkpoint: dict[str, Any] = {
        "epoch": 3,
        "global_step": global_step,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": dict(state_dict),
        "callbacks": {
            callback: {
                "monitor": "val/rec_loss",
                "best_model_score": best_score,
                "best_model_path": "checkpoints/epoch=000003.ckpt",
                "current_score": best_score,
                "dirpath": "checkpoints",
            }
        },
        "optimizer_states": [dict(state) for state in optimizer_states],
        "lr_schedulers": [],
    }
    if config is not None:
        checkpoint["hparams_name"] = "kwargs"
        checkpoint["hyper_parameters"] = make_hyper_parameters(config)
    return checkpoint
