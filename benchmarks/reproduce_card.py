"""The published table of the Stable Diffusion decoders, and ours beside it.

``python -m benchmarks.reproduce_card --out card.json``: fetches the three autoencoders of the cards
of ``stabilityai/sd-vae-ft-mse`` and ``…-ft-ema`` and COCO 2017 val, evaluates them under each
protocol, and prints both tables and the gaps. The code behind the published numbers was never
published, so each protocol is a guess at one knob; see ``docs/reproduce-the-card.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vaeconv import EvalOptions, ModelSpec, evaluate
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.evaluation.metric_networks import NETWORKS
from vaeconv.evaluation.protocol import PRESETS

_HUB = "https://huggingface.co/stabilityai"
_TITLES = {"rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "psim": "PSIM"}
IMAGES_URL = "http://images.cocodataset.org/zips/val2017.zip"
Value = tuple[float, float | None]  # mean and deviation; rFID has no deviation


@dataclass(frozen=True)
class Published:
    """A row of the card, as it was published."""

    name: str
    train_steps: int
    url: str
    comment: str
    metrics: Mapping[str, Value]


CARD = (
    Published(
        "original", 246803, "https://ommer-lab.com/files/latent-diffusion/kl-f8.zip",
        "as used in SD",
        {"rfid": (4.99, None), "psnr": (23.4, 3.8), "ssim": (0.69, 0.14), "psim": (1.01, 0.28)},
    ),
    Published(
        "ft-EMA", 560001,
        f"{_HUB}/sd-vae-ft-ema-original/resolve/main/vae-ft-ema-560000-ema-pruned.ckpt",
        "slightly better overall, with EMA",
        {"rfid": (4.42, None), "psnr": (23.8, 3.9), "ssim": (0.69, 0.13), "psim": (0.96, 0.27)},
    ),
    Published(
        "ft-MSE", 840001,
        f"{_HUB}/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.ckpt",
        "resumed with EMA from ft-EMA, emphasis on MSE (rec. loss = MSE + 0.1 * LPIPS), "
        "smoother outputs",
        {"rfid": (4.70, None), "psnr": (24.5, 3.7), "ssim": (0.71, 0.13), "psim": (0.92, 0.27)},
    ),
)  # fmt: skip
# Each knob in doubt by itself, against the preset that everything else is from.
PROTOCOLS = (
    PRESETS["card-256"],
    PRESETS["card-256-squash"],
    PRESETS["card-256-sample"],
    replace(PRESETS["card-256"], name="card-256-no-uint8", rounds=False),
    replace(PRESETS["card-256"], name="card-256-lanczos", filter="lanczos"),
)


@dataclass(frozen=True)
class Difference:
    """One number of the card, and ours; ours is None where it was not computed."""

    protocol: str
    model: str
    metric: str
    published: Value
    ours: Value | None

    @property
    def gap(self) -> float | None:
        """Our mean less the card's."""
        return None if self.ours is None else self.ours[0] - self.published[0]


def default_cache() -> Path:
    """The folder for downloads: ``VAECONV_CACHE``, or ``vaeconv`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAECONV_CACHE") or Path(home) / "vaeconv")


def card_specs(cache: Path) -> list[ModelSpec]:
    """The three published autoencoders as models of an evaluation."""
    return [
        ModelSpec(path=str(place_of(row.url, cache)), name=row.name, train_steps=row.train_steps,
                  comment=row.comment, link=row.url)
        for row in CARD
    ]  # fmt: skip


def place_of(url: str, cache: Path) -> Path:
    """Tell where a download lies."""
    return cache / url.rpartition("/")[2]


def compare_with_card(result: Mapping[str, Any]) -> Iterator[Difference]:
    """Set the result of an evaluation beside the card, row by row."""
    models = {model["name"]: model["metrics"] for model in result["models"]}
    for row in CARD:
        for metric, published in row.metrics.items():
            found = models[row.name].get(metric)
            ours: Value | None = None
            if metric == "rfid":
                ours = None if found is None else (found, None)
            elif found and found["mean"] is not None:
                ours = found["mean"], found["std"]
            yield Difference(result["protocol"]["name"], row.name, metric, published, ours)


def nearest_protocol(differences: Sequence[Difference], metric: str) -> tuple[str, float] | None:
    """Find the protocol whose means are nearest to the card's: its name, and the mean gap."""
    gaps: dict[str, list[float]] = {}
    for difference in differences:
        if difference.metric == metric and difference.gap is not None:
            gaps.setdefault(difference.protocol, []).append(abs(difference.gap))
    means = {name: sum(found) / len(found) for name, found in gaps.items()}
    return min(means.items(), key=lambda item: item[1]) if means else None


def comparison_lines(differences: Sequence[Difference]) -> Iterator[str]:
    """Write the card's numbers, ours and the gaps, for each protocol, as a table."""
    form = "{:<18} {:<9} {:<7} {:>14} {:>14} {:>7}"
    yield form.format("protocol", "model", "metric", "card", "ours", "gap")
    for one in differences:
        ours = "not computed" if one.ours is None else _pair(one.ours)
        gap = "-" if one.gap is None else f"{one.gap:+.2f}"
        title = _TITLES[one.metric]
        yield form.format(one.protocol, one.model, title, _pair(one.published), ours, gap)
    for metric, title in _TITLES.items():
        if found := nearest_protocol(differences, metric):
            yield f"{title}: nearest with {found[0]}, {found[1]:.2f} away on average"
    yield "PSIM here is VGG without learned weights; that the card means the same is not verified"


def _pair(value: Value) -> str:
    mean, std = value
    return f"{mean:.2f}" if std is None else f"{mean:.2f} +/- {std:.2f}"


def plan_lines(cache: Path, images: Path | None) -> Iterator[str]:
    """Say what would be fetched, and to where, and what would run."""
    yield "would fetch:"
    for url in _urls(images):
        there = " (there)" if place_of(url, cache).is_file() else ""
        yield f"  {url} to {place_of(url, cache)}{there}"
    yield from (f"  {network.url}, unless it is in torch's cache" for network in NETWORKS)
    names = ", ".join(row.name for row in CARD)
    yield f"would evaluate {names} on {images or place_of(IMAGES_URL, cache)}:"
    yield from (f"  {protocol.name}: {protocol.describe()}" for protocol in PROTOCOLS)


def _urls(images: Path | None) -> list[str]:
    return [*(row.url for row in CARD), *([] if images else [IMAGES_URL])]


def reproduce(
    out: Path, images: Path | None, device: str, on_step: Callable[[str], object]
) -> list[Difference]:
    """Fetch what is missing, evaluate under each protocol, and write each result beside ``out``."""
    cache = default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    for url in _urls(images):
        if not place_of(url, cache).is_file():
            on_step(f"fetching {url}")
            torch.hub.download_url_to_file(url, str(place_of(url, cache)), progress=False)
    differences: list[Difference] = []
    for protocol in PROTOCOLS:
        on_step(f"evaluating under {protocol.name}")
        target = out.with_name(f"{out.stem}.{protocol.name}{out.suffix}")
        result = evaluate(
            card_specs(cache),
            images or place_of(IMAGES_URL, cache),
            EvalOptions(protocol=protocol, device=device, quiet=True),
            parts=target.with_name(f"{target.name}.parts"),
        )
        assert result is not None  # one process
        replace_small_file(target, dump_json(result, indent=1).encode() + b"\n", durable=False)
        differences += compare_with_card(result)
    return differences


def main() -> None:
    """Print the plan, or run it and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("card.json"))
    parser.add_argument("--images", type=Path, help="another copy of COCO 2017 val")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    args = parser.parse_args()
    if args.dry_run:
        lines = plan_lines(default_cache(), args.images)
    else:
        found = reproduce(args.out, args.images, args.device, lambda s: print(s, file=sys.stderr))
        lines = comparison_lines(found)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
