"""The evaluation of the Stable Diffusion decoder fine-tunes, as published, and ours beside it.

Numbers and links are those of the cards of ``stabilityai/sd-vae-ft-mse`` and ``…-ft-ema``: COCO
2017 val, 256x256, 5000 images. The code behind them was never published, so the protocol is a guess
at every knob below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint.writers.writable import check_writable, translated
from vaeconv.errors import HubError, UsageError
from vaeconv.evaluation.metric_networks import NETS
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.protocol import PRESETS, Protocol

_HUB = "https://huggingface.co/stabilityai"


class Published(NamedTuple):
    """A row of the card.

    Attributes:
        name: The model.
        train_steps: As the card has them.
        url: The checkpoint.
        comment: What the card says of it.
        metrics: Mean and deviation of each; rFID has no deviation.
    """

    name: str
    train_steps: int
    url: str
    comment: str
    metrics: Mapping[str, tuple[float, float | None]]


CARD: tuple[Published, ...] = (
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
IMAGES_URL = "http://images.cocodataset.org/zips/val2017.zip"
# Each knob in doubt by itself, against the preset that everything else is from.
PROTOCOLS: tuple[Protocol, ...] = (
    PRESETS["card-256"],
    PRESETS["card-256-squash"],
    PRESETS["card-256-sample"],
    PRESETS["card-256"]._replace(name="card-256-no-uint8", rounds=False),
    PRESETS["card-256"]._replace(name="card-256-lanczos", filter="lanczos"),
)


class Download(NamedTuple):
    """A file that reproducing the card needs.

    Attributes:
        url: Where it is.
        target: Where it goes.
        is_there: Whether it is there.
    """

    url: str
    target: Path
    is_there: bool


def default_cache() -> Path:
    """The folder for downloads: ``VAECONV_CACHE``, or ``vaeconv`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VAECONV_CACHE") or Path(home) / "vaeconv")


def plan_downloads(cache: Path) -> list[Download]:
    """List what is needed, and what of it is there; nets have a cache of their own."""
    files = [(row.url, cache / row.url.rpartition("/")[2]) for row in CARD]
    files.append((IMAGES_URL, cache / IMAGES_URL.rpartition("/")[2]))
    return [Download(url, target, target.is_file()) for url, target in files]


def net_urls() -> list[str]:
    """Addresses of the metric nets, which are looked for in torch's cache first."""
    return [net.url for net in NETS]


def fetch(download: Download, *, quiet: bool) -> None:
    """Fetch a file, whole or not at all.

    Raises:
        HubError: It cannot be fetched.
        OutputError: The cache cannot be written.
    """
    import torch

    with translated(download.target), suppress(FileExistsError):  # a file is there: said below
        download.target.parent.mkdir(parents=True, exist_ok=True)
    check_writable(download.target)
    try:
        torch.hub.download_url_to_file(download.url, str(download.target), progress=not quiet)
    except (OSError, RuntimeError) as error:
        raise HubError(
            f"cannot be fetched ({error})",
            where=download.url,
            hint=f"fetch it by other means to {download.target}",
        ) from error


def card_specs(cache: Path) -> list[ModelSpec]:
    """The three published autoencoders as models of an evaluation."""
    return [
        ModelSpec(
            path=str(cache / row.url.rpartition("/")[2]),
            name=row.name,
            train_steps=row.train_steps,
            comment=row.comment,
            link=row.url,
        )
        for row in CARD
    ]


class Difference(NamedTuple):
    """One number of the card, and ours.

    Attributes:
        protocol: That ours was made by.
        model: The row.
        metric: The column.
        published: The card's mean and deviation.
        ours: Our mean and deviation; None where it was not computed.
    """

    protocol: str
    model: str
    metric: str
    published: tuple[float, float | None]
    ours: tuple[float, float | None] | None

    @property
    def gap(self) -> float | None:
        """Our mean less the card's."""
        return None if self.ours is None else self.ours[0] - self.published[0]


def compare_with_card(result: Mapping[str, Any]) -> list[Difference]:
    """Set a result beside the card, row by row.

    Args:
        result: Of an evaluation of the card's models, by their names there.

    Raises:
        UsageError: None of the card's models is in it.
    """
    models = {model["name"]: model["metrics"] for model in result["models"]}
    found = list(_differences(result["protocol"]["name"], models))
    if not found:
        raise UsageError(f"none of the models is called {', '.join(row.name for row in CARD)}")
    return found


def _differences(protocol: str, models: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    for row in CARD:
        metrics = models.get(row.name)
        if metrics is None:
            continue
        for name, published in row.metrics.items():
            found = metrics.get(name)
            ours: tuple[float, float | None] | None = None
            if name == "rfid":
                ours = None if found is None else (found, None)
            elif found and found["mean"] is not None:
                ours = found["mean"], found["std"]
            yield Difference(protocol, row.name, name, published, ours)


def nearest_protocol(differences: Sequence[Difference], metric: str) -> tuple[str, float] | None:
    """Find the protocol whose means are nearest to the card's: its name, and the mean gap."""
    gaps: dict[str, list[float]] = {}
    for one in differences:
        if one.metric == metric and one.gap is not None:
            gaps.setdefault(one.protocol, []).append(abs(one.gap))
    means = {name: sum(found) / len(found) for name, found in gaps.items()}
    return min(means.items(), key=lambda item: item[1]) if means else None


def protocol_file(out: Path, protocol: Protocol) -> Path:
    """Name the result of one protocol."""
    return out.with_name(f"{out.stem}.{protocol.name}{out.suffix}")
