"""Runs whole processes by turns and prints what they took; the same for every benchmark.

Every figure is a whole process, started by this one: wall time from start to exit, peak memory
from ``wait4``. The work alternates (one run of each in a round), the page cache is warm, earlier
writes are flushed before the clock starts, and outputs are removed after it stops. Ratios are
taken within a round and the median of them is printed, so that a slow spell of the machine hits
both sides. Standard library only, and nothing large is imported here: a child's peak memory
can't read lower than what this process had when it started it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Attributes:
        name: What the table calls it.
        command: The process to start; it writes ``output``, or nothing.
        output: Removed after each run.
        floors: Names of the cases that its time is divided by: without and with fsync.
        slow: Runs in the first rounds only.
    """

    name: str
    command: tuple[str, ...]
    output: Path | None = None
    floors: tuple[str, str] | None = None
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took: seconds of wall time, bytes of memory at the peak."""

    wall: float
    peak: int


def run_process(command: Sequence[str], log: Path) -> Sample:
    """Runs ``command`` to its end, its output in ``log``.

    Raises:
        RuntimeError: It failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], list(command), environment, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Sample(wall, usage.ru_maxrss * unit)


def remove(path: Path) -> None:
    """Removes a file or a folder, and the manifest that a single file may have got."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".vaeconv.json").unlink(missing_ok=True)


def measure(case: Case, log: Path) -> Sample:
    """Runs a case once, from flushed to removed."""
    os.sync()
    try:
        return run_process(case.command, log)
    finally:
        if case.output is not None:
            remove(case.output)


def warm_up(path: Path) -> None:
    """Reads a file, so that the page cache holds it."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass


def take_samples(
    cases: Sequence[Case], log: Path, *, runs: int, slow_runs: int
) -> dict[str, list[Sample]]:
    """Runs the rounds; a first one warms everything up and isn't counted."""
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for number in range(runs + 1):
        for case in cases:
            if case.slow and number > slow_runs:
                continue
            sample = measure(case, log)
            if number:
                samples[case.name].append(sample)
        print(f"round {number} of {runs}", file=sys.stderr)
    return samples


def pair(samples: Sequence[Sample], floor: Sequence[Sample]) -> str:
    """Returns the median of the ratios within each round."""
    return f"{median(mine.wall / its.wall for mine, its in zip(samples, floor, strict=False)):.2f}"


def format_table(
    cases: Sequence[Case], samples: dict[str, list[Sample]], *, floor: str = "`cp`"
) -> str:
    """Returns the Markdown table."""
    lines = [
        f"| work | runs | wall | × {floor} | × {floor}, fsync | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        mine = samples[case.name]
        floors = ["–", "–"]
        if case.floors is not None:
            floors = [pair(mine, samples[name]) for name in case.floors]
        wall = median(sample.wall for sample in mine) * 1000
        peak = max(sample.peak for sample in mine) / MIB
        cells = [case.name, str(len(mine)), f"{wall:,.0f} ms", *floors, f"{peak:,.0f} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_ratios(questions: Sequence[tuple[str, str]], samples: dict[str, list[Sample]]) -> str:
    """Returns how many times the second of each pair the first takes, where both were run."""
    return "\n".join(
        f"- {left} takes {pair(samples[left], samples[right])} × the time of {right}"
        for left, right in questions
        if left in samples and right in samples
    )
