"""The models of an evaluation: how they are named, and how they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.errors import InputError, UsageError
from vaeconv.evaluate.protocol import DTYPES, Protocol
from vaeconv.output import hash_bytes
from vaeconv.parity.loading import Model
from vaeconv.parity.side import Side, SideOptions, check_averages, open_side

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model to evaluate, and what a table says of it.

    Attributes:
        path: Anything that ``convert`` opens.
        name: What to call it; by default what its path ends in.
        train_steps: How long it was trained.
        comment: What to say of it.
        link: Where it is published.
        variant: Which weights of a diffusers folder.
        ema: Use the moving average of tensors that have one.
    """

    path: str
    name: str = ""
    train_steps: int | None = None
    comment: str = ""
    link: str = ""
    variant: str | None = None
    ema: bool = False


def read_models_file(path: Path) -> list[ModelSpec]:
    """Read a TOML file with one ``[[model]]`` table for each model; its keys are ModelSpec's.

    Paths are taken from the file's own folder.

    Raises:
        UsageError: It is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = _parse_toml(text)["model"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"not a file of models ({error})", where=str(path), hint="it has [[model]] tables"
        ) from error
    known = {field.name: field.type for field in fields(ModelSpec)}
    specs = []
    for table in tables if isinstance(tables, list) else [tables]:
        for key in table:
            if key not in known:
                meant = get_close_matches(key, known, 1)
                hint = f"did you mean {meant[0]}?" if meant else f"known: {', '.join(known)}"
                raise UsageError(f"unknown key {key}", where=str(path), hint=hint)
        if not isinstance(table.get("path"), str):
            raise UsageError("a model without a path", where=str(path))
        place = table["path"]
        if "://" not in place:
            place = str(path.parent / place)
        specs.append(ModelSpec(**{**table, "path": place}))
    return specs


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.loads(text)
    return document


def name_models(specs: Sequence[ModelSpec]) -> list[str]:
    """Name each model, by what its path ends in where it has no name; no two alike.

    Raises:
        UsageError: Two were given the same name.
    """
    names = [spec.name or Path(spec.path.rstrip("/")).name for spec in specs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise UsageError(f"two models are called {repeated}", hint="name them with --name")
    return names


class Candidate(NamedTuple):
    """A model that runs.

    Attributes:
        spec: What was said of it.
        name: What it is called.
        side: The open file.
        model: On its device.
        dtype: What it runs in.
        sha256: Of its files.
    """

    spec: ModelSpec
    name: str
    side: Side
    model: Model
    dtype: torch.dtype
    sha256: tuple[str, ...]

    def encode(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and logarithm of the variance, float32 ``[b, z, h, w]``."""
        moments = self.model.encode(pictures.to(self.dtype)).float()
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Give pictures from 0 to 1, float32 ``[b, c, h, w]``; NaN stays NaN."""
        decoded = self.model.decode(latents.to(self.dtype)).float()
        return (decoded / 2 + 0.5).clamp(0, 1)


def load_candidates(
    specs: Sequence[ModelSpec],
    protocol: Protocol,
    device: torch.device,
    stack: ExitStack,
    *,
    how: SideOptions,
    channels_last: bool = False,
    compiles: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> list[Candidate]:
    """Open and load models; their files are closed with the stack.

    Raises:
        InputError: One cannot be read, or its config contradicts its weights.
        UsageError: They take pictures of different channels, or of another size.
    """
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[protocol.dtype])
    candidates: list[Candidate] = []
    for spec, name in zip(specs, name_models(specs), strict=True):
        if on_step:
            on_step(f"loading {name}")
        side = open_side(spec.path, name, how._replace(variant=spec.variant), ema=spec.ema)
        stack.callback(side.close)
        if spec.ema:
            check_averages([side])
        if side.problem:
            raise InputError(side.problem, where=side.name)
        factor = 2 ** (side.topology.levels - 1)
        if protocol.size % factor:
            raise UsageError(
                f"pictures of {protocol.size} pixels do not divide by {name}'s factor {factor}"
            )
        model = side.load()
        model.to(device, dtype)
        if channels_last:
            model.module.to(memory_format=torch.channels_last)
        if compiles:
            model.module.encoder = torch.compile(model.module.encoder)
            model.module.decoder = torch.compile(model.module.decoder)
        sha256 = tuple(hash_bytes(source) for source in side.checkpoint.sources if source.map(0, 1))
        candidates.append(Candidate(spec, name, side, model, dtype, sha256))
    channels = {(c.side.topology.in_channels, c.side.topology.out_channels) for c in candidates}
    if len(channels) > 1 or any(given != made for given, made in channels):
        raise UsageError("the models take or make pictures of different numbers of channels")
    return candidates


def sample_posterior(
    mean: torch.Tensor, logvar: torch.Tensor, indices: Sequence[int], seed: int
) -> torch.Tensor:
    """Draw latents; each picture's noise follows from the seed and its index alone.

    ``DiagonalGaussianDistribution`` in LDM and diffusers clamps the logarithm to -30 to 20.
    """
    import torch

    noise = [
        torch.randn(
            mean.shape[1:], generator=torch.Generator().manual_seed(seed * 1_000_003 + index)
        )
        for index in indices
    ]
    std = (logvar.clamp(-30, 20) / 2).exp()
    return mean + std * torch.stack(noise).to(mean.device)
