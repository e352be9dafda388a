"""The base of a fine-tuning: an autoencoder in either layout, as modules that can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.errors import InputError
from vaeconv.evaluation.models import hash_weights
from vaeconv.models.load import check_module, load_compvis, load_row
from vaeconv.models.open_model import ModelOptions, check_ema, open_model
from vaeconv.weights.plan import Row

if TYPE_CHECKING:
    import torch

# What "only the decoder part" means here; post_quant_conv is the decoder's first layer.
TRAINED = ("decoder.", "post_quant_conv.")
DISCRIMINATOR = "loss.discriminator."


class Base(NamedTuple):
    """An autoencoder to start from.

    Attributes:
        name: Its address, or the name of its file or folder; no path of this machine.
        topology: Its architecture.
        model: ``CompVisAutoencoder`` in fp32 on the CPU, in evaluation mode; nothing of it is a
            view of the file.
        stored: Tensors that are not trained, by their CompVis names, as the file stores them.
        discriminator: Tensors of the discriminator that came along, in fp32; empty where none did.
        weights_sha256: Of the weights, whatever layout they came in.
    """

    name: str
    topology: Topology
    model: Any
    stored: Mapping[str, torch.Tensor]
    discriminator: Mapping[str, torch.Tensor]
    weights_sha256: str


def load_base(path: str, options: ModelOptions, *, ema: bool, size: int) -> Base:
    """Load an autoencoder to train.

    Args:
        path: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        options: Options of reading it.
        ema: Start from the EMA weights of tensors that have some.
        size: Side of the images to train on, in pixels.

    Raises:
        InputError: It cannot be read, or is none that the CompVis layout can express.
        EmaError: It has no EMA weights, and they were asked for.
        UsageError: It cannot take images of that size.
    """
    opened = open_model(path, "BASE", options, ema=ema)
    try:
        if opened.problem:
            raise InputError(opened.problem, where=opened.name)
        if opened.detected.provided:
            opened.detected.provided.check_compvis()
        opened.check_size(size)
        if ema:
            check_ema([opened])
        rows = [
            row._replace(name=pair.compvis, shape=pair.shape(Layout.COMPVIS))
            for pair, row in opened.rows.items()
        ]
        model = load_compvis(opened.topology, rows).module
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        if not opened.allow_zeros:
            check_module(model, opened.name)
        prefix = opened.detected.autoencoder.prefix + DISCRIMINATOR
        return Base(
            opened.name if "://" in opened.name else Path(opened.name).absolute().name,
            opened.topology,
            model,
            {row.name: load_row(row).clone() for row in rows if not row.name.startswith(TRAINED)},
            {
                name.removeprefix(prefix): load_row(Row(name, one, one.shape, one.dtype)).float()
                for name, one in opened.checkpoint.tensors.items()
                if name.startswith(prefix)
            },
            hash_weights(model),
        )
    finally:
        opened.close()
