"""Measures ``vaeconv convert`` against ``cp`` and diffusers, all in one run.

python -m benchmarks.convert --dir DIR [--runs N] [--slow-runs N]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import (
    Case,
    format_ratios,
    format_table,
    remove,
    run_process,
    take_samples,
    warm_up,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
FAMILY = ("--family", "sd1")

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

QUESTIONS = [
    ("VAE out of 7.7 GB", "ckpt to diffusers"),
    ("diffusers: ckpt to diffusers", "ckpt to diffusers"),
    ("diffusers: ckpt to diffusers", "ckpt to diffusers, --no-check"),
    ("diffusers: ckpt to diffusers, fp16", "ckpt to diffusers, fp16"),
    ("diffusers: ckpt to diffusers, fp16", "ckpt to diffusers, fp16, --no-check"),
    ("diffusers: VAE out of 7.7 GB", "VAE out of 7.7 GB"),
]


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


def hash_case(source: Path) -> Case:
    """Returns the least that knowing an output's hash takes."""
    tool = ("shasum", "-a", "256") if sys.platform == "darwin" else ("sha256sum",)
    return Case("sha256sum fp32", (*tool, str(source)), floors=("cp fp32", "cp fp32, fsync"))


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
        convert(
            "ckpt to diffusers, fp16, --no-check",
            paths.small,
            "half-no-check",
            *FAMILY,
            "--dtype",
            "fp16",
            "--no-check",
            floors=fp16,
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
        cases.append(hash_case(paths.fp32 / WEIGHTS))
        cases += vaeconv_cases(paths, options.program)
        if not options.skip_diffusers:
            cases += diffusers_cases(paths)
        log = paths.work / "log"
        samples = take_samples(cases, log, runs=options.runs, slow_runs=options.slow_runs)
    finally:
        remove(paths.work)
    print(format_table(cases, samples))
    print()
    print(format_ratios(QUESTIONS, samples))


if __name__ == "__main__":
    main()
