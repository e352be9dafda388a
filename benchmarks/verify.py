"""Measures ``vaeconv verify``: ``python -m benchmarks.verify --dir DIR [--device auto]``.

First the whole command on a full-size kl-f8 pair. Then, in one process and by turns, its decode
loop against a bare ``vae.decode`` loop over the same batches, which is what decoding must cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.topology import Layout
from vaeconv.models.devices import describe_environment, pick_device, reproducible
from vaeconv.models.open_model import ModelOptions, open_model
from vaeconv.parity.compare_outputs import DTYPES, Limits, Runner
from vaeconv.parity.references import DECODE, ReferenceSet, batches, built_in_set

VAECONV = str(Path(sys.executable).with_name("vaeconv"))


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Converts the 335 MB checkpoint, where that is not done yet."""
    checkpoint, converted = folder / "kl-f8.ckpt", folder / "kl-f8"
    if not converted.exists():
        command = [
            VAECONV,
            "convert",
            str(checkpoint),
            str(converted),
            "--scaling-factor",
            "0.18215",
        ]
        subprocess.run([*command, "--quiet"], check=True)
    return checkpoint, converted


def time_command(pair: tuple[Path, Path], device: str, runs: int) -> None:
    """Runs the whole command, and prints its wall time and how it says it was spent."""
    walls, splits = [], []
    for _ in range(runs):
        command = [VAECONV, "verify", "--json", "--device", device, *map(str, pair)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=True)
        walls.append(time.perf_counter() - started)
        splits.append(json.loads(done.stdout)["timing"])
    print(f"vaeconv verify, whole command: {statistics.median(walls):.1f} s (median of {runs})")
    for step in splits[0]:
        print(f"  {step}: {statistics.median(split[step] for split in splits):.2f} s")


def repeat(references: ReferenceSet, times: int) -> ReferenceSet:
    """Gives more of the same latents, so that a GPU has something to do."""
    latents = [one for one in references.latents if "large" in one.name] * times
    return references._replace(latents=tuple(latents))


def time_loops(pair: tuple[Path, Path], device: torch.device, dtype: str, times: int) -> None:
    """Decodes the same batches in verify's loop and in a bare one, by turns."""
    number = getattr(torch, DTYPES[dtype])
    sides = [open_model(path, path.name, ModelOptions(), ema=False) for path in pair]
    models = sides[0].load(), sides[1].load()
    vae = next(model for model in models if model.layout is Layout.DIFFUSERS)
    references = repeat(built_in_set(sides[0].topology, Scaling(0.18215)), times)
    runner = Runner((vae, vae), ("A", "B"), sides[0].topology, device, limits=Limits())
    size = runner._fitting(references.latents, DECODE)

    def loop() -> None:
        runner.run(references.latents, dtype, DECODE)

    def bare() -> None:
        """Decode twice, as verify does for two sides."""
        with torch.inference_mode():
            for batch in batches(references.latents, size):
                data = torch.stack([torch.from_numpy(one.data) for one in batch])
                for _ in range(2):
                    vae.module.decode(data.to(device, number))
        if device.type == "cuda":
            torch.cuda.synchronize()

    with reproducible():
        print(json.dumps(describe_environment(device), indent=2))
        for work in (loop, bare):
            work()
        ratios, walls = [], []
        for _ in range(5):
            mine, its = timed(loop), timed(bare)
            ratios.append(mine / its)
            walls.append(mine)
    shape = list(references.latents[0].data.shape)
    print(
        f"{dtype}, {times} latents of {shape} in batches of {size}: "
        f"verify's loop {statistics.median(walls):.2f} s, "
        f"{statistics.median(ratios):.3f} x a bare vae.decode loop"
    )


def timed(work: Callable[[], None]) -> float:
    """Returns seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where make_inputs put its files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", nargs="*", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--latents", type=int, default=2, help="64 or more for a GPU")
    arguments = parser.parse_args()
    pair = make_pair(arguments.dir)
    time_command(pair, arguments.device, arguments.runs)
    for dtype in arguments.dtype:
        time_loops(pair, pick_device(arguments.device), dtype, arguments.latents)


if __name__ == "__main__":
    main()
