"""How pictures are prepared, reconstructed and rounded: what decides whether numbers compare."""

from __future__ import annotations

from typing import Any, NamedTuple

from vaeconv.option_checks import MOST_PIXELS, Range, check_fields, check_value

FILTERS = ("bicubic", "lanczos", "bilinear", "box", "hamming", "nearest")
RESIZES = ("shorter-side", "squash", "none")
POSTERIORS = ("mode", "sample")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Protocol(NamedTuple):
    """Everything that changes a metric, but for models, pictures and metric nets.

    Attributes:
        name: Of the preset that it began with; ``custom`` where something was changed.
        size: Side of a picture in pixels.
        resize: ``shorter-side`` and then a centre crop, ``squash`` to a square, or ``none``: a
            centre crop alone.
        filter: Of the resizing, antialiased, as Pillow calls it.
        posterior: ``mode`` (the mean) or ``sample``.
        seed: Of the samples; each picture has its own noise, whatever the batches.
        rounds: Whether reconstructions are rounded to 256 steps before they are measured.
        dtype: What the autoencoders run in.
    """

    name: str = "card-256"
    size: int = 256
    resize: str = "shorter-side"
    filter: str = "bicubic"
    posterior: str = "mode"
    seed: int = 0
    rounds: bool = True
    dtype: str = "fp32"

    def validate(self) -> None:
        """Check types and values.

        Raises:
            UsageError: A knob has no such setting.
        """
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
        protocol = self._replace(**wanted)
        protocol.validate()
        return protocol if protocol == self else protocol._replace(name="custom")

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
