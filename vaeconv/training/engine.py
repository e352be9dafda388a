"""The engine: accelerate, started so that all processes see each other, or none begins."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeconv._version import __version__
from vaeconv.errors import MissingDependencyError, UsageError
from vaeconv.evaluation.distributed import World, device_of, join_world, read_world
from vaeconv.training.options import FinetuneOptions

if TYPE_CHECKING:
    import torch

_KINDS = ("NO", "MULTI_GPU", "MULTI_CPU")  # as accelerate calls them


def start_engine(options: FinetuneOptions, folder: Path) -> tuple[Any, World]:
    """Join the other processes, and start accelerate on this one's device.

    Weights and optimizer stay in fp32 whatever the launcher says of precision: this is cast by
    ``--precision``, around the network alone.

    Args:
        options: Device, accumulation, tracker and number of processes.
        folder: Where a tracker may write.

    Returns:
        An ``accelerate.Accelerator``, and this process among all.

    Raises:
        MissingDependencyError: accelerate, the device or the tracker is missing.
        UsageError: There are more or fewer processes than expected, or they do not see each other.
        HubError: The other processes cannot be reached.
    """
    try:
        import torch
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise MissingDependencyError(
            f"finetune needs torch and accelerate: {error}", hint="pip install 'vaeconv[train]'"
        ) from error
    device = device_of(options.device, read_world())
    is_cuda = device.type == "cuda"
    world = join_world(
        options.expect_world_size, backend="cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    )
    if is_cuda:
        torch.cuda.set_device(device)
    if options.track and find_spec(options.track) is None:
        raise MissingDependencyError(
            f"{options.track} is not installed", hint=f"pip install {options.track}"
        )
    accelerator = Accelerator(
        # Without it, processes that torchrun starts where there is no GPU would each train alone.
        cpu=device.type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=options.accumulate),
        log_with=options.track,
        project_dir=str(folder),
    )
    check_processes(accelerator.num_processes, world)
    kind = accelerator.distributed_type.value
    if kind not in _KINDS:
        raise UsageError(
            f"the launcher asks for {kind}, and finetune only copies the decoder to each process",
            hint="set the distributed type of accelerate to multi-GPU",
        )
    return accelerator, world


def check_processes(number: int, world: World) -> None:
    """Check that accelerate sees as many processes as were started.

    Raises:
        UsageError: It sees others; each would train a decoder of its own.
    """
    if number != world.size:
        raise UsageError(
            f"processes that were started: {world.size}; that see each other: {number}",
            hint="start them with torchrun, or with accelerate launch and one kind of device",
        )


def describe_engine() -> dict[str, str]:
    """Say which versions compute."""
    import accelerate
    import torch

    return {
        "vaeconv": __version__,
        "torch": str(torch.__version__),
        "accelerate": accelerate.__version__,
    }


def used_memory(device: torch.device) -> int | None:
    """Tell the most memory that was used so far, in bytes: of a GPU, else of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(ImportError):  # Windows has none
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested facts into what trackers take: numbers and text, by paths with slashes.

    Example:
        >>> flatten({"step": 1, "val": {"raw": {"psnr": 24.5}}, "clip": None})
        {'step': 1, 'val/raw/psnr': 24.5, 'clip': 'null'}
    """
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            plain = isinstance(value, int | float | str)
            flat[prefix + name] = value if plain else json.dumps(value)
    return flat
