"""How to evaluate: the options, each declared with what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.errors import UsageError
from vaeconv.evaluation.metrics import METRICS
from vaeconv.evaluation.protocol import PRESETS, WINDOW, Protocol
from vaeconv.evaluation.samples import Sample
from vaeconv.models.open_model import ModelOptions, OfOneModel

_METRICS_PANEL, _SPEED = "Metrics", "Speed"


def metric_list(text: str) -> tuple[str, ...]:
    """Read names of metrics, separated by commas, into their own order."""
    wanted = [name.strip() for name in text.lower().split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METRICS]
    return (*(name for name in METRICS if name in wanted), *unknown)


def number_or_auto(text: str) -> int | None:
    """Read a whole number; ``auto`` is None.

    Raises:
        UsageError: It is neither.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text!r} is neither auto nor a whole number")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation; each says what it does.

    Attributes:
        protocol: How images are prepared and reconstructed.
        weights: Files with weights of metric networks, by network.
        discards: Discard the progress of another run, in place of an error.
        reading: How to read the models.
        on_sample: Called with each of the worst and the best images, once all are measured.
        quiet: Draw no progress bar while fetching weights.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Example:
        >>> EvalOptions(metrics=("psnr", "ssim"), limit=100).metrics
        ('psnr', 'ssim')
    """

    protocol: Annotated[Protocol, "made of ProtocolOptions"] = PRESETS["card-256"]
    limit: docs.Limit = None
    strict: Annotated[
        bool,
        Doc("Fail if an image cannot be read.", flags=("--strict/--no-strict",)),
    ] = False
    latent_stats: Annotated[
        bool,
        Doc("Measure mean and deviation of the latents, and the scaling factor that follows."),
    ] = False
    metrics: Annotated[
        tuple[str, ...],
        Doc(
            "Metrics to compute, separated by commas: rfid, psnr, ssim, psim and lpips.",
            "LIST",
            _METRICS_PANEL,
            choices=METRICS,
            parse=metric_list,
        ),
    ] = METRICS
    allow_missing: Annotated[
        bool,
        Doc(
            "Leave out metrics whose network weights are not found, instead of exit code 7.",
            panel=_METRICS_PANEL,
            flags=("--allow-missing-metrics",),
        ),
    ] = False
    weights: dict[str, Path] = field(default_factory=dict)
    may_download: Annotated[
        bool,
        Doc(
            "Download no weights of metric networks.",
            panel=_METRICS_PANEL,
            flags=(" /--offline",),
        ),
    ] = True
    device: docs.Device = "auto"
    batch_size: Annotated[
        int | None,
        Doc(
            "Images that run at a time; by default, and with auto, as many as fit.",
            "N",
            _SPEED,
            least=1,
            parse=number_or_auto,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Doc("Threads that read images; by default one for each core.", "N", _SPEED, least=1),
    ] = None
    channels_last: Annotated[
        bool,
        Doc("Store activations with channels last, which is faster on some GPUs.", panel=_SPEED),
    ] = False
    compiles: Annotated[
        bool,
        Doc("Compile encoder and decoder with torch.compile.", panel=_SPEED, flags=("--compile",)),
    ] = False
    expect_world_size: Annotated[
        int | None,
        Doc("Refuse to run in more or fewer processes than this.", "N", _SPEED, least=1),
    ] = None
    restart: Annotated[bool, Doc("Discard saved progress and start over.")] = False
    discards: bool = False
    reading: OfOneModel = ModelOptions()
    on_sample: Callable[[Sample], None] | None = None
    quiet: bool = False
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.metrics:
            raise UsageError("metrics are empty", hint=f"there are {', '.join(METRICS)}")
        size = self.protocol.size
        if set(self.metrics) == {"ssim"} and size < WINDOW and not self.latent_stats:
            raise UsageError(f"images of {size} pixels are too small for SSIM")
