"""Measures ``vaeconv eval``: ``python -m benchmarks.eval --dir DIR [--device auto]``.

Images per second of a whole evaluation, from reading images to writing records, against a bare
loop that encodes and decodes the same batches, in one process and by turns. Start-up and loading
are left out of both.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.verify import make_pair
from vaeconv.evaluation.distributed import World
from vaeconv.evaluation.evaluate import EvalOptions, Evaluation
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.models import Candidate, ModelSpec
from vaeconv.evaluation.protocol import DTYPES, PRESETS
from vaeconv.models.devices import pick_device, reproducible


def make_pictures(folder: Path, number: int) -> None:
    """Writes JPEGs of 480x360, as large as COCO's, of smooth noise."""
    generator = np.random.default_rng(1)
    for index in range(number):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((480, 360), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05d}.jpg", quality=90)


def bare_loop(candidate: Candidate, batches: list[torch.Tensor], device: torch.device) -> float:
    """Encodes and decodes batches that lie ready; returns seconds."""
    started = time.perf_counter()
    with reproducible(), torch.inference_mode():
        for batch in batches:
            mean, _ = candidate.encode(batch.to(device))
            candidate.decode(mean)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Runs both by turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where make_inputs put its files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--metrics", default="psnr,ssim", help="those with nets need their weights")
    parser.add_argument("--images", type=int, default=4, help="256 or more for a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    _, converted = make_pair(arguments.dir)
    device = pick_device(arguments.device)
    protocol = PRESETS["card-256"].changed(dtype=arguments.dtype)
    options = EvalOptions(
        protocol=protocol,
        metrics=tuple(arguments.metrics.split(",")),
        device=arguments.device,
        allow_missing=True,
        may_download=False,
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_pictures(Path(folder), arguments.images)
        images = ImageSet(Path(folder))
        parts = Path(folder) / "parts"
        spec = [ModelSpec(path=str(converted))]
        evaluation = Evaluation(spec, images, parts, options, World(), stack)
        size = evaluation.batch_size()
        pixels = [
            torch.from_numpy(images.read(index, protocol, 3).pixels).float() / 127.5 - 1
            for index in range(arguments.images)
        ]
        batches = [torch.stack(pixels[at : at + size]) for at in range(0, len(pixels), size)]
        candidate = evaluation._candidates[0]
        bare_loop(candidate, batches[:1], device)
        ratios, walls = [], []
        for _ in range(arguments.rounds):
            shutil.rmtree(parts, ignore_errors=True)
            started = time.perf_counter()
            evaluation.run()
            wall = time.perf_counter() - started
            walls.append(wall)
            ratios.append(bare_loop(candidate, batches, device) / wall)
    print(
        f"{arguments.images} images, batches of {size}, {arguments.dtype} on {device}, "
        f"{', '.join(evaluation._meter.metrics)}: "
        f"{arguments.images / statistics.median(walls):.2f} images/s, "
        f"{statistics.median(ratios):.3f} of a bare encode and decode loop"
    )


if __name__ == "__main__":
    main()
