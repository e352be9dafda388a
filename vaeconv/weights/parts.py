"""The parts of a full checkpoint, as people name them; light, as the command line lists them."""

from __future__ import annotations

from enum import Enum


class Part(str, Enum):
    """Parts of a checkpoint that can be kept or dropped."""

    UNET = "unet"
    VAE = "vae"
    TEXT_ENCODER = "text-encoder"
    SCHEDULE = "schedule"
    LOSS = "loss"
    OTHER = "other"
