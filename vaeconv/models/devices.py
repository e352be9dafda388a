"""Devices on which torch computes, in the same way every time, and their facts for a report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vaeconv._version import __version__
from vaeconv.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    import torch

_MAX_BATCH = 16
_SHARE = 4  # of free memory, one in so many parts is used
_LIVE = 4  # activations of the widest layer that are alive at once
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_DRIVER_PATIENCE = 10.0  # seconds for nvidia-smi, which starts a driver that sleeps


def import_torch() -> Any:
    """Import torch and diffusers' autoencoder.

    Returns:
        The class ``diffusers.AutoencoderKL``; its methods have no types.

    Raises:
        MissingDependencyError: One of them cannot be imported.
    """
    try:
        import torch  # noqa: F401
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingDependencyError(
            f"decoding needs torch and diffusers: {error}", hint="pip install torch diffusers"
        ) from error
    return AutoencoderKL


def pick_device(wanted: str) -> torch.device:
    """Choose where to compute; never another device than the one that was asked for.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        MissingDependencyError: It is not there.
        UsageError: There is no such kind of device.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(
            f"{wanted} is not a device", hint="choose auto, cpu, cuda, cuda:N or mps"
        ) from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MissingDependencyError(
            f"the device {wanted} is not available", hint="--device auto uses the best one that is"
        ) from error
    return device


def fitting_batch(device: torch.device, pixels: int, width: int) -> int:
    """Tell how many images to run at a time: what fits into a share of the free memory.

    Args:
        device: Where.
        pixels: Of one image.
        width: Channels of the widest activation at full resolution.
    """
    if device.type == "cpu":
        return 1  # a larger batch is no faster there
    import torch

    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
    elif not hasattr(os, "sysconf"):
        return 1
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # memory is shared
    return max(1, min(_MAX_BATCH, free // _SHARE // (pixels * width * 4 * _LIVE)))


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute in full fp32 (no TF32) and by deterministic algorithms; restores the settings.

    TF32 keeps 10 bits of a factor, and is cuDNN's default for convolutions: two right decoders
    then differ by 1e-2. Benchmark mode picks algorithms by their time, so not the same ones twice.
    """
    import torch

    os.environ.setdefault(_CUBLAS, ":4096:8")  # read when cuBLAS is first used
    cudnn: Any = torch.backends.cudnn
    flags = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    precision = torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    fills: Any = torch.utils.deterministic
    is_filled = fills.fill_uninitialized_memory
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(True)
        fills.fill_uninitialized_memory = False  # for finding bugs, and costs time
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = flags
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_deterministic)
        fills.fill_uninitialized_memory = is_filled


def describe_versions() -> dict[str, str]:
    """Say which versions decide what is computed of an image; no host names and no paths."""
    import diffusers
    import numpy as np
    import PIL
    import torch

    return {
        "vaeconv": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def describe_environment(device: torch.device | None) -> dict[str, Any]:
    """Say what computed, as versions and flags; no host names and no paths.

    Args:
        device: Where decoding ran; None where it did not, and torch need not be imported.
    """
    import numpy as np

    facts: dict[str, Any] = {
        "vaeconv": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
    }
    if device is None:
        return facts
    import diffusers
    import torch

    cuda: Any = torch.cuda
    backends: Any = torch.backends
    facts |= {
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_allow_tf32": backends.cudnn.allow_tf32,
        "cudnn_benchmark": backends.cudnn.benchmark,
    }
    if device.type == "cuda":
        facts |= {
            "gpu": cuda.get_device_name(device),
            "gpu_memory": cuda.get_device_properties(device).total_memory,
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": backends.cudnn.version(),
        }
    return facts


def _driver_version() -> str | None:
    """Ask nvidia-smi; torch knows only which CUDA version a driver can do."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_DRIVER_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None
