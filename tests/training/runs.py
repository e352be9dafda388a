"""Runs of a tiny decoder on tiny images, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fixtures.make_fixtures import FOLDER as FIXTURES
from vaeconv.training.finetune import Finetuned, finetune
from vaeconv.training.options import FinetuneOptions

BASE = FIXTURES / "tiny-kl.ckpt"
RAW = FIXTURES / "tiny-kl.safetensors"
IMAGES = FIXTURES / "pictures"
TINY: dict[str, Any] = {
    "lpips": 0, "size": 16, "batch_size": 2, "device": "cpu", "workers": 0, "log_every": 1,
    "save_every": 2, "lr": 1e-3,
}  # fmt: skip


def train(
    out: Path, steps: int = 4, *, base: Path = BASE, data: Path = IMAGES, **options: Any
) -> Finetuned:
    """Run in this process, on the CPU, without LPIPS unless told."""
    done = finetune(base, data, out, FinetuneOptions(steps=steps, **{**TINY, **options}))
    assert done is not None
    return done


def load(path: Path) -> dict[str, Any]:
    """A checkpoint as torch reads it that executes nothing."""
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's last checkpoint."""
    found: dict[str, torch.Tensor] = load(run / "last.ckpt")["state_dict"]
    return found


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics, without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "now"} for line in lines]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ in a bit."""
    if isinstance(one, torch.Tensor):
        same = (isinstance(other, torch.Tensor) and one.dtype == other.dtype
                and one.shape == other.shape and torch.equal(bits(one), bits(other)))  # fmt: skip
        return [] if same else [path]
    if isinstance(one, Mapping):
        if not isinstance(other, Mapping) or list(one) != list(other):
            return [f"{path} has other keys"]
        return [said for key in one for said in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list):
        if not isinstance(other, list) or len(one) != len(other):
            return [f"{path} has another length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [said for at, pair in pairs for said in differences(*pair, f"{path}/{at}")]
    return [] if one == other else [f"{path}: {one} is not {other}"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_same_runs(one: Path, other: Path) -> None:
    """Raw weights, EMA, optimizer and metrics are equal to the bit."""
    assert differences(load(one / "last.ckpt"), load(other / "last.ckpt")) == []
    assert metrics_of(one) == metrics_of(other)
