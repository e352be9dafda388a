"""Evaluations of tiny models on tiny pictures, and what else can be said of the same pictures.

As a program it is the command line with the small Inception of the tests::

    python -m tests.evaluation.runs eval MODEL --images DIR --out FILE
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import near, near_metric
from vaeconv.cli import app
from vaeconv.evaluation import inception
from vaeconv.evaluation.evaluate import EvalOptions, evaluate
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.protocol import Protocol, preset

ROOT = FIXTURES.parent
KL = FIXTURES / "tiny-kl.ckpt"
RAW = FIXTURES / "tiny-kl.safetensors"
FOLDER = FIXTURES / "tiny-diffusers"
SIZE = 32
SMALL = preset("card-256").changed(size=SIZE)
WIDTH, SCALE = 16, 100  # features of the small Inception
PHOTOS = ("astronaut", "chelsea", "coffee", "color", "motorcycle_left")
PLAIN = ("psnr", "ssim")  # metrics without a net

Document = dict[str, Any]
Rows = np.ndarray[Any, np.dtype[Any]]


def shrink_inception(patch: Callable[[Any, str, Any], None]) -> None:
    """Have Inception see 75 pixels for 299 and give its first features only.

    Its weights stay what they are. The full one, and the root of its 2048x2048 covariances, would
    take these tests minutes; one test runs it.
    """

    class Small(inception.InceptionV3):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels)[:, :WIDTH] * SCALE

    patch(inception, "InceptionV3", Small)
    patch(inception, "FEATURES", WIDTH)
    patch(inception, "_SIDE", 75)


# --- pictures and weights of nets ---


def write_tiles(folder: Path, count: int, *, width: int = 48, height: int = 40) -> Path:
    """Cut pieces out of photographs, the same number of each as far as it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, tile in zip(range(count), tiles(width, height), strict=False):
        tile.save(folder / f"{number:03d}.png")
    return folder


def tiles(width: int, height: int) -> Iterator[Image.Image]:
    data = Path(skimage.data.__file__).parent
    photos = []
    for name in PHOTOS:
        with Image.open(data / f"{name}.png") as opened:
            photos.append(opened.convert("RGB"))
    for step in range(1, 40):
        for photo in photos:
            left = 97 * step % (photo.width - width)
            top = 61 * step % (photo.height - height)
            yield photo.crop((left, top, left + width, top + height))


def write_nets(folder: Path) -> dict[str, Path]:
    """Write random weights of the metric nets whose features do not vanish."""
    from vaeconv.evaluation.image_metrics import VGG16, WIDTHS

    torch.manual_seed(12)
    paths = {name: folder / f"{name.split()[0]}.pth" for name in ("inception", "vgg16")}
    for name, network in (("inception", inception.InceptionV3()), ("vgg16", VGG16())):
        for parameter in network.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
        torch.save(network.half().state_dict(), paths[name])
    linear = {f"lin{at}.model.1.weight": torch.rand(1, c, 1, 1) for at, c in enumerate(WIDTHS)}
    paths["lpips linear weights"] = folder / "heads.pth"
    torch.save(linear, paths["lpips linear weights"])
    return paths


def variables_of(networks: Mapping[str, Path]) -> dict[str, str]:
    """Environment variables that name the weights."""
    names = {"inception": "INCEPTION", "vgg16": "VGG", "lpips linear weights": "LPIPS"}
    return {f"VAECONV_{names[network]}_WEIGHTS": str(path) for network, path in networks.items()}


# --- runs ---


def spec(path: Path, **said: Any) -> ModelSpec:
    return ModelSpec(path=str(path), **said)


def measure(
    models: Sequence[ModelSpec | Path],
    images: Path,
    parts: Path,
    *,
    protocol: Protocol = SMALL,
    metrics: Sequence[str] = PLAIN,
    **options: Any,
) -> Document:
    """Evaluate in this process on the CPU; pictures of 32 pixels, no nets, unless told."""
    found = evaluate(
        [model if isinstance(model, ModelSpec) else spec(model) for model in models],
        images,
        EvalOptions(
            protocol=protocol,
            metrics=tuple(metrics),
            **{"device": "cpu", "workers": 1, "may_download": False, "quiet": True, **options},
        ),
        parts=parts,
    )
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def run(*args: object, **env: str | None) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], env=env)


def run_eval(*args: object, metrics: str = "psnr,ssim", **env: str | None) -> Result:
    """Run ``vaeconv eval`` with pictures of 32 pixels on the CPU."""
    fixed = ("--size", SIZE, "--device", "cpu", "--metrics", metrics, "--offline")
    return run("eval", *args, *fixed, **env)


def environment(**more: str) -> dict[str, str]:
    """An environment for a process of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def start(
    *args: object, module: str = "tests.evaluation.runs", **env: str
) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(processes: int, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a module in several processes."""
    entry = Path(sys.executable).with_name("torchrun")
    process = subprocess.Popen(
        [str(entry), "--standalone", "--nproc-per-node", str(processes), "-m", *map(str, args)],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, complaints = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends its processes, which are not in its group
        said, complaints = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, said, complaints)


# --- what others make of the same ---


def prepared(path: Path, size: int = SIZE) -> Rows:
    """The shorter side to a size, bicubic, and the middle of it: uint8 ``[h, w, 3]``."""
    with Image.open(path) as image:
        scale = size / min(image.size)
        width, height = (round(length * scale) for length in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(small)[top : top + size, left : left + size]


def rows_near(rows: Rows, path: Path) -> bool:
    """Whether rows are those of a prepared picture, to the bit."""
    return bool((rows == prepared(path)).all())


def rebuilt(model: Any, rows: Rows) -> Rows:
    """What diffusers' own autoencoder makes of a picture: uint8 ``[h, w, 3]``."""
    pixels = torch.from_numpy(rows.transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        latents = model.encode(pixels.float() / 127.5 - 1).latent_dist.mode()
        decoded = model.decode(latents).sample[0]
    unit = (decoded / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).numpy().transpose(1, 2, 0)


METRIC = re.compile(r"(?<=/)(psnr|ssim|psim|lpips|rfid)(?=/|$)")


def assert_results_near(found: Any, expected: Any, *, rounded: bool = True) -> None:
    """Two documents hold the same counts, and numbers as near as other batches may make them."""
    one, other = numbers_of(found), numbers_of(expected)
    assert one.keys() == other.keys()
    for path, value in other.items():
        if metric := METRIC.search(path):
            limit = near_metric(metric[1], value, rounded=rounded)
        else:  # counts, and statistics of latents, which are relative to the largest of them
            scale = max((abs(other[at]) for at in other if "/latents/" in at), default=0.0)
            limit = near(value, scale=scale if "/latents/" in path else 0.0)
        assert one[path] == limit, path


def without_seconds(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in ("seconds", "processes")}


def numbers_of(value: Any, path: str = "") -> dict[str, float]:
    """Every number in a document, by where it stands."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)  # type: ignore[assignment]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return {path: float(value)}
    else:
        return {}
    found: dict[str, float] = {}
    for key, part in parts:
        found |= numbers_of(part, f"{path}/{key}")
    return found


if __name__ == "__main__":
    from vaeconv.cli import main

    shrink_inception(setattr)
    main()
