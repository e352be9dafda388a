"""Several processes as one: who this is, what is its share, and how results come together.

``torchrun`` and ``accelerate launch`` say it in environment variables; alone, a process is rank 0
of 1.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vaeconv.errors import HubError, MissingDependencyError, UsageError, VaeconvError
from vaeconv.evaluation.frechet import Moments
from vaeconv.models.devices import pick_device

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

_MAX_PORT = 65535
_HOW = "torchrun sets these variables; alone, unset them"
_LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by torchrun and accelerate launch for what they start
_HEARTBEAT = 0.5  # seconds between looks at the launcher


class World(NamedTuple):
    """This process among all.

    Attributes:
        rank: Its number.
        size: How many there are, the world size.
        local_rank: Its number on its machine: which GPU is its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def share(self, indices: Sequence[int]) -> list[int]:
        """Take this process's part, without padding: parts differ by one at most."""
        return list(indices[self.rank :: self.size])

    def gather(self, value: Any) -> list[Any]:
        """Give every process's value to every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with _reaching_others():
            distributed.all_gather_object(values, value)
        return values

    def first_then_others(self, work: Callable[[], Result]) -> Result:
        """Do something in the first process, then in the others: what it fetched, they find.

        Raises:
            VaeconvError: It failed in the first process; then it fails in all.
        """
        if self.size == 1:
            return work()
        failure: VaeconvError | None = None
        if self.is_first:
            try:
                result = work()
            except VaeconvError as error:
                failure = error
        told = self.gather(failure and (failure.what, failure.where, failure.exit_code))[0]
        if failure:
            raise failure
        if told:
            echo = VaeconvError(told[0], where=told[1])
            echo.exit_code = told[2]
            raise echo
        return result if self.is_first else work()

    def merge(self, moments: Moments) -> Moments:
        """Add up the moments of all processes, in float64."""
        if self.size == 1:
            return moments
        import numpy as np
        import torch
        from torch import distributed

        flat = np.concatenate([[moments.number], moments.total, moments.outer.ravel()])
        tensor = torch.from_numpy(flat)
        with _reaching_others():
            distributed.all_reduce(tensor)
        size = len(moments.total)
        merged = tensor.numpy()
        outer = merged[1 + size :].reshape(size, size)
        return Moments(round(float(merged[0])), merged[1 : 1 + size], outer)


def read_world() -> World:
    """Read from the environment which process this is; a variable that is empty is not set.

    Raises:
        UsageError: A variable is no number, or they contradict each other.
    """
    world_size = _read_number("WORLD_SIZE", 1)
    rank, local_rank = (_read_number(name, None) for name in ("RANK", "LOCAL_RANK"))
    if world_size is None or world_size < 1:
        raise UsageError(
            f"WORLD_SIZE is {world_size}, and there is one process at least", hint=_HOW
        )
    if world_size > 1 and rank is None:
        raise UsageError(f"WORLD_SIZE is {world_size}, but RANK is not set", hint=_HOW)
    if (rank or 0) >= world_size:
        said = (
            f"WORLD_SIZE is {world_size}"
            if os.environ.get("WORLD_SIZE")
            else "WORLD_SIZE is not set"
        )
        raise UsageError(f"RANK is {rank}, but {said}", hint=_HOW)
    if world_size > 1 and (local_rank or 0) >= world_size:
        raise UsageError(f"LOCAL_RANK is {local_rank}, but WORLD_SIZE is {world_size}", hint=_HOW)
    return World(rank or 0, world_size, local_rank or 0)


def _read_number(name: str, default: int | None) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{name} is {text!r}, which is no whole number", hint=_HOW)
    return int(text)


def join_world(expected: int | None = None, *, backend: str = "gloo") -> World:
    """Join the other processes.

    What is exchanged lies on the CPU, so gloo carries it, whatever computes.

    Args:
        expected: How many processes there must be.
        backend: What carries it, as torch calls it; names gloo for the CPU.

    Raises:
        UsageError: There are more or fewer, or the environment contradicts itself.
        HubError: The other processes cannot be reached.
    """
    world = read_world()
    if expected is not None and world.size != expected:
        raise UsageError(
            f"processes that run: {world.size}; expected: {expected}",
            hint="accelerate launch --cpu starts one; torchrun --nproc-per-node starts many",
        )
    if world.size == 1:
        return world
    from torch import distributed

    # Once, and kept to the end: joining again races with those who have not left yet.
    if not distributed.is_initialized():
        _check_address()
        _stop_with_launcher()
        with _reaching_others():
            distributed.init_process_group(backend, rank=world.rank, world_size=world.size)
        atexit.register(distributed.destroy_process_group)
    return world


def _check_address() -> None:
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise UsageError("WORLD_SIZE is set, but MASTER_ADDR is not", hint=_HOW)
    port = _read_number("MASTER_PORT", None)
    if port is None:
        raise UsageError("WORLD_SIZE is set, but MASTER_PORT is not", hint=_HOW)
    if not 0 < port <= _MAX_PORT:
        raise UsageError(f"MASTER_PORT is {port}, which is no port", hint=_HOW)


def _stop_with_launcher() -> None:
    """End this process when its launcher is killed: whoever goes on would measure beside it."""
    if not os.environ.get(_LAUNCHED):
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_HEARTBEAT)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise HubError(
            f"the other processes cannot be reached ({reason})",
            hint="what was measured is kept; the same command goes on from there",
        ) from error


def device_of(wanted: str, world: World) -> torch.device:
    """Take the process's own GPU where there are several processes.

    Raises:
        MissingDependencyError: There are fewer GPUs than processes, or no such device.
    """
    import torch

    if world.size > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if world.local_rank >= count:
            raise MissingDependencyError(
                f"process {world.local_rank} has no GPU of its own: there are {count}",
                hint="start as many processes as there are GPUs, or use --device cpu",
            )
        return torch.device("cuda", world.local_rank)
    return pick_device(wanted)
