"""How images are prepared, reconstructed and rounded: what decides whether numbers compare."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from vaeconv.common.option_checks import MOST_PIXELS, Range, check_fields, check_value
from vaeconv.common.option_docs import Doc
from vaeconv.weights.idle_options import Rule, refuse_idle

WINDOW = 11  # pixels of a side that SSIM looks at; smaller images have none
FILTERS = ("bicubic", "lanczos", "bilinear", "box", "hamming", "nearest")
_PANEL = "Protocol"
RESIZES = ("shorter-side", "squash", "none")
POSTERIORS = ("mode", "sample")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that changes a metric, but for models, images and metric networks.

    Attributes:
        name: Of the preset that it began with; ``custom`` where something was changed.
        size: Side of an image in pixels.
        resize: ``shorter-side`` and then a centre crop, ``squash`` to a square, or ``none``: a
            centre crop alone.
        filter: Of the resizing, antialiased, as Pillow calls it.
        posterior: ``mode`` (the mean) or ``sample``.
        seed: Of the samples; each image has its own noise, whatever the batches.
        rounds: Whether reconstructions are rounded to 256 steps before they are measured.
        dtype: What the autoencoders run in.

    Example:
        >>> Protocol("small", size=32).size
        32
    """

    name: str = "card-256"
    size: int = 256
    resize: str = "shorter-side"
    filter: str = "bicubic"
    posterior: str = "mode"
    seed: int = 0
    rounds: bool = True
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_fields(
            self,
            size=Range(1, most=MOST_PIXELS),
            resize=RESIZES,
            filter=FILTERS,
            posterior=POSTERIORS,
            dtype=DTYPES,
        )

    def changed(self, **changes: Any) -> Protocol:
        """Change some knobs; None leaves one as it is.

        Raises:
            UsageError: A knob has no such setting.
        """
        wanted = {name: value for name, value in changes.items() if value is not None}
        protocol = replace(self, **wanted)
        return protocol if protocol == self else replace(protocol, name="custom")

    def describe(self) -> str:
        """Say it in one line."""
        how = {
            "shorter-side": f"shorter side to {self.size}, {self.filter}, centre crop",
            "squash": f"to {self.size}x{self.size}, {self.filter}",
            "none": f"centre crop of {self.size}x{self.size}",
        }[self.resize]
        drawn = self.posterior if self.posterior == "mode" else f"sample, seed {self.seed}"
        rounded = "rounded to uint8" if self.rounds else "not rounded"
        return f"{how}; posterior {drawn}; clamped, {rounded}; {self.dtype}"


# What the Stable Diffusion cards say is "256x256"; the rest is the usual practice, and a guess.
PRESETS = {
    "card-256": Protocol(),
    "card-256-squash": Protocol("card-256-squash", resize="squash"),
    "card-256-sample": Protocol("card-256-sample", posterior="sample"),
}


def preset(name: str) -> Protocol:
    """Find a preset.

    Raises:
        UsageError: There is none of that name.
    """
    check_value("protocol", name, tuple(PRESETS))
    return PRESETS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolOptions:
    """A preset, and what of it is changed; each option says what it does.

    Example:
        >>> ProtocolOptions(size=512).made().size
        512
    """

    protocol: Annotated[
        str,
        Doc(
            "Preset: card-256, card-256-squash or card-256-sample; the options below change it.",
            "NAME",
            _PANEL,
            suggested=("card-256", "card-256-squash", "card-256-sample"),
        ),
    ] = "card-256"
    size: Annotated[
        int | None,
        Doc("Side of the square images, in pixels; 256 in the presets.", "PIXELS", _PANEL, least=1),
    ] = None
    resize: Annotated[
        str | None,
        Doc(
            "How images become square: shorter-side (then a centre crop), squash, or none (a "
            "centre crop alone); by default as in the preset.",
            "HOW",
            _PANEL,
            suggested=RESIZES,
        ),
    ] = None
    filter: Annotated[
        str | None,
        Doc(
            "Antialiased filter that resizes: bicubic (in the presets), lanczos, bilinear, box, "
            "hamming or nearest.",
            "NAME",
            _PANEL,
            suggested=FILTERS,
        ),
    ] = None
    posterior: Annotated[
        str | None,
        Doc(
            "Latent to decode: mode (the posterior's mean) or sample; by default as in the preset.",
            "HOW",
            _PANEL,
            suggested=POSTERIORS,
        ),
    ] = None
    seed: Annotated[
        int | None, Doc("Random seed for posterior samples; 0 in the presets.", "N", _PANEL)
    ] = None
    rounds: Annotated[
        bool | None,
        Doc(
            "Round reconstructions to the 256 steps of uint8 before measuring, as the presets do.",
            panel=_PANEL,
            flags=("--uint8/--no-uint8",),
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Doc(
            "Type that the autoencoders run in: fp32 (in the presets), fp16 or bf16.",
            "TYPE",
            _PANEL,
            suggested=tuple(DTYPES),
        ),
    ] = None

    def made(self) -> Protocol:
        """Make the protocol.

        Raises:
            UsageError: A knob has no such setting, or has no effect.
        """
        changes = asdict(self)
        begun = preset(changes.pop("protocol"))
        is_drawn = (self.posterior or begun.posterior) == "sample"
        is_resized = (self.resize or begun.resize) != "none"
        refuse_idle(
            [
                Rule("--seed", self.seed is not None, is_drawn, "only --posterior sample draws"),
                Rule("--filter", self.filter is not None, is_resized,
                     "--resize none filters nothing"),
            ]
        )  # fmt: skip
        return begun.changed(**changes)
