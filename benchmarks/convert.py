"""Measures ``vaeconv convert`` against ``cp`` and diffusers, all in one run.

    python -m benchmarks.convert --dir DIR [--runs N] [--slow-runs N]

Every figure is a whole process, started by this one: wall time from start to exit, peak memory
from ``wait4``. The work alternates (one run of each in a round), the page cache is warm, earlier
writes are flushed before the clock starts, and outputs are removed after it stops. Ratios are
taken within a round and the median of them is printed, so that a slow spell of the machine hits
both sides. Standard library only, and nothing large is imported here: a child's peak memory
can't read lower than what this process had when it started it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

WEIGHTS = "diffusion_pytorch_model.safetensors"
FAMILY = ("--family", "sd1")
MIB = 1024 * 1024

DIFFUSERS = """
import sys
from diffusers import AutoencoderKL
checkpoint, config, output, dtype = sys.argv[1:]
model = AutoencoderKL.from_single_file(checkpoint, config=config, local_files_only=True)
(model.half() if dtype == "fp16" else model).save_pretrained(output)
"""

KL_F8_CONFIG = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Attributes:
        name: What the table calls it.
        command: The process to start; it writes ``output``, or nothing.
        output: Removed after each run.
        floors: Names of the cases that its time is divided by: ``cp`` and ``cp`` with fsync.
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


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie while the benchmark runs."""

    small: Path
    full: Path
    work: Path

    @property
    def config(self) -> Path:
        """The folder with the config that diffusers needs when it's offline."""
        return self.work / "config"

    @property
    def fp32(self) -> Path:
        """A converted folder: what ``cp`` copies and the way back reads."""
        return self.work / "fp32"

    @property
    def fp16(self) -> Path:
        """The same in half precision."""
        return self.work / "fp16"


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


def copy_cases(name: str, source: Path, work: Path) -> list[Case]:
    """Returns the two floors for an output of this size."""
    target = work / f"copy-{name}.safetensors"
    flushed = work / f"flushed-{name}.safetensors"
    sync = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))"
    if sys.platform == "darwin":
        script = f'cp "$1" "$2" && "{sys.executable}" -S -c "{sync}" "$2"'
        command = ("sh", "-c", script, "sh", str(source), str(flushed))
    else:
        command = ("dd", f"if={source}", f"of={flushed}", "bs=1M", "conv=fsync", "status=none")
    return [
        Case(f"cp {name}", ("cp", str(source), str(target)), target),
        Case(f"cp {name}, fsync", command, flushed),
    ]


def vaeconv_cases(paths: Paths, program: str) -> list[Case]:
    """Returns what vaeconv is asked to do."""
    fp32 = ("cp fp32", "cp fp32, fsync")
    fp16 = ("cp fp16", "cp fp16, fsync")

    def convert(
        name: str,
        source: Path,
        target: str,
        *options: str,
        floors: tuple[str, str],
    ) -> Case:
        output = paths.work / target
        return Case(name, (program, "convert", str(source), str(output), *options), output, floors)

    cases = [
        Case("vaeconv --help", (program, "--help")),
        convert(
            "ckpt to diffusers, --no-check",
            paths.small,
            "no-check",
            *FAMILY,
            "--no-check",
            floors=fp32,
        ),
        convert("ckpt to diffusers", paths.small, "default", *FAMILY, floors=fp32),
        convert(
            "ckpt to diffusers, fp16", paths.small, "half", *FAMILY, "--dtype", "fp16", floors=fp16
        ),
        convert("diffusers to safetensors", paths.fp32, "back.safetensors", floors=fp32),
        convert("diffusers to ckpt", paths.fp32, "back.ckpt", floors=fp32),
    ]
    if paths.full.exists():
        cases.append(
            convert("VAE out of 7.7 GB", paths.full, "from-full", *FAMILY, floors=fp32),
        )
    return cases


def diffusers_cases(paths: Paths) -> list[Case]:
    """Returns the same work by diffusers."""
    inputs = [("diffusers: ckpt to diffusers", paths.small, "fp32")]
    inputs.append(("diffusers: ckpt to diffusers, fp16", paths.small, "fp16"))
    if paths.full.exists():
        inputs.append(("diffusers: VAE out of 7.7 GB", paths.full, "fp32"))
    cases = []
    for name, source, dtype in inputs:
        output = paths.work / f"theirs-{len(cases)}"
        arguments = (str(source), str(paths.config), str(output), dtype)
        command = (sys.executable, "-c", DIFFUSERS, *arguments)
        floors = (f"cp {dtype}", f"cp {dtype}, fsync")
        cases.append(Case(name, command, output, floors, slow=True))
    return cases


def prepare(paths: Paths, program: str) -> None:
    """Makes what the cases read: diffusers' config, both converted folders, a warm cache."""
    paths.config.mkdir()
    config = paths.config / "config.json"
    config.write_text(json.dumps(KL_F8_CONFIG, indent=2), encoding="utf-8")
    log = paths.work / "log"
    for output, dtype in ((paths.fp32, "keep"), (paths.fp16, "fp16")):
        options = (*FAMILY, "--dtype", dtype)
        run_process((program, "convert", str(paths.small), str(output), *options), log)
        warm_up(output / WEIGHTS)
    warm_up(paths.small)
    if paths.full.exists():
        warm_up(paths.full)


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


def format_table(cases: Sequence[Case], samples: dict[str, list[Sample]]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| work | runs | wall | × `cp` | × `cp`, fsync | peak memory |",
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


def format_ratios(samples: dict[str, list[Sample]]) -> str:
    """Returns the comparisons that aren't with ``cp``."""
    questions = [
        ("VAE out of 7.7 GB", "ckpt to diffusers"),
        ("diffusers: ckpt to diffusers", "ckpt to diffusers"),
        ("diffusers: ckpt to diffusers, fp16", "ckpt to diffusers, fp16"),
        ("diffusers: VAE out of 7.7 GB", "VAE out of 7.7 GB"),
    ]
    return "\n".join(
        f"- {left} takes {pair(samples[left], samples[right])} × the time of {right}"
        for left, right in questions
        if left in samples and right in samples
    )


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Measure vaeconv convert.")
    parser.add_argument("--dir", type=Path, required=True, help="where make_inputs put the files")
    parser.add_argument("--runs", type=int, default=7, help="rounds that count")
    parser.add_argument("--slow-runs", type=int, default=3, help="rounds that diffusers takes part")
    parser.add_argument("--skip-diffusers", action="store_true", help="vaeconv and cp only")
    parser.add_argument(
        "--program",
        default=str(Path(sys.executable).with_name("vaeconv")),
        help="the vaeconv to measure; by default the one beside this Python",
    )
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    options = parse_arguments()
    folder = options.dir.resolve()
    paths = Paths(folder / "kl-f8.ckpt", folder / "sd-full.ckpt", folder / "work")
    remove(paths.work)
    paths.work.mkdir()
    try:
        prepare(paths, options.program)
        cases = copy_cases("fp32", paths.fp32 / WEIGHTS, paths.work)
        cases += copy_cases("fp16", paths.fp16 / WEIGHTS, paths.work)
        cases += vaeconv_cases(paths, options.program)
        if not options.skip_diffusers:
            cases += diffusers_cases(paths)
        log = paths.work / "log"
        samples = take_samples(cases, log, runs=options.runs, slow_runs=options.slow_runs)
    finally:
        remove(paths.work)
    print(format_table(cases, samples))
    print()
    print(format_ratios(samples))


if __name__ == "__main__":
    main()
