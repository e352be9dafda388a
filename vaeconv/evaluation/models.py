"""The models of an evaluation: how they are named, and how they run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.checkpoint.source import hash_bytes
from vaeconv.checkpoint.toml_file import build, read_toml
from vaeconv.common.option_checks import Range, check_fields, path_text
from vaeconv.errors import InputError, UnsupportedModelError, UsageError
from vaeconv.evaluation.protocol import DTYPES, Protocol
from vaeconv.models.images import image_mode
from vaeconv.models.load import Model
from vaeconv.models.open_model import ModelOptions, OpenModel, check_ema, open_model

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
        ema: Use the EMA weights of tensors that have some.

    Example:
        >>> ModelSpec(path="fixtures/tiny-kl.ckpt", name="ft-EMA", ema=True).name
        'ft-EMA'
    """

    path: str
    name: str = ""
    train_steps: int | None = None
    comment: str = ""
    link: str = ""
    variant: str | None = None
    ema: bool = False

    def __post_init__(self) -> None:
        check_fields(self, train_steps=Range(0))


def read_models_file(path: Path) -> list[ModelSpec]:
    """Read a TOML file with one ``[[model]]`` table for each model; its keys are ModelSpec's.

    Paths are taken from the file's own folder.

    Raises:
        UsageError: It is no such file.
    """
    tables = read_toml(path).get("model")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError("not a file of models", where=str(path), hint="it has [[model]] tables")
    specs = []
    for number, table in enumerate(tables, 1):
        spec = build(ModelSpec, table, f"{path}: model {number}")
        place = spec.path if "://" in spec.path else str(path.parent / spec.path)
        specs.append(replace(spec, path=place))
    return specs


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


def name_specs(
    paths: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    models_file: Path | None,
    *,
    ema: bool,
    both: bool = False,
) -> list[ModelSpec]:
    """Pair models with what is said of the first, of the second, and so on; then those of a file.

    Args:
        paths: The models.
        columns: What is said of them, by fields of :class:`ModelSpec`.
        models_file: A file of more models.
        ema: Use the EMA weights of those that have some.
        both: Make two rows of each: of its raw weights, and of its EMA weights.

    Raises:
        UsageError: There are more names, steps, comments or links than models; two have one name.
    """
    for field, values in columns.items():
        if len(values) > len(paths):
            option = "--" + field.replace("_", "-")
            raise UsageError(f"{len(values)} {option} for {len(paths)} models")
    specs: list[ModelSpec] = []
    for at, path in enumerate(paths):
        said = {field: values[at] for field, values in columns.items() if at < len(values)}
        spec = ModelSpec(path=path, ema=ema, **said)
        if both:
            (name,) = name_models([spec])
            specs.append(replace(spec, name=f"{name} raw"))
            spec = replace(spec, name=f"{name} EMA", ema=True)
        specs.append(spec)
    specs += read_models_file(models_file) if models_file else []
    name_models(specs)
    return specs


def as_specs(models: Sequence[ModelSpec | str | os.PathLike[str]]) -> list[ModelSpec]:
    """Let paths and addresses stand for models of which nothing else is said.

    Raises:
        UsageError: Something else is among them, or it is no list.
    """
    if isinstance(models, str | os.PathLike) or not isinstance(models, Iterable):
        raise UsageError("models is one thing; it must be several: a list of paths")
    if not (models := list(models)):
        raise UsageError("models is empty; it must be one at least")
    return [
        one if isinstance(one, ModelSpec) else ModelSpec(path=path_text("a model", one))
        for one in models
    ]


class Candidate(NamedTuple):
    """A model that runs.

    Attributes:
        spec: What was said of it.
        name: What it is called.
        opened: The open file.
        model: On its device.
        dtype: What it runs in.
        sha256: Of its files, and of the config that came along.
        weights_sha256: Of the weights that run; of a model on the Hub there is no other.
    """

    spec: ModelSpec
    name: str
    opened: OpenModel
    model: Model
    dtype: torch.dtype
    sha256: tuple[str, ...]
    weights_sha256: str

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and logarithm of the variance, float32 ``[b, z, h, w]``."""
        moments = self.model.encode(images.to(self.dtype)).float()
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Give images from 0 to 1, float32 ``[b, c, h, w]``; NaN stays NaN."""
        decoded = self.model.decode(latents.to(self.dtype)).float()
        return (decoded / 2 + 0.5).clamp(0, 1)

    def reconstruct(
        self, images: torch.Tensor, indices: Sequence[int], protocol: Protocol
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode and decode by a protocol.

        Args:
            images: float32 ``[b, c, h, w]`` from -1 to 1.
            indices: Their places in the set: a sample's noise follows from them.
            protocol: How.

        Returns:
            The latents that were decoded, and what :meth:`decode` makes of them.
        """
        latents, logvar = self.encode(images)
        if protocol.posterior == "sample":
            latents = sample_posterior(latents, logvar, indices, protocol.seed)
        return latents, self.decode(latents)


def load_candidates(
    specs: Sequence[ModelSpec],
    protocol: Protocol,
    device: torch.device,
    stack: ExitStack,
    *,
    how: ModelOptions,
    channels_last: bool = False,
    compiles: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Candidate]:
    """Open and load models; their files are closed with the stack.

    Raises:
        EmaError: One of a pair of rows has no EMA weights, or none of all that should.
        InputError: One cannot be read, or its config contradicts its weights.
        UnsupportedModelError: One takes or makes images of channels that no image file has.
        UsageError: They take images of different channels, or of another size.
    """
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[protocol.dtype])
    names = name_models(specs)
    models: list[OpenModel] = []
    for spec, name in zip(specs, names, strict=True):
        on_step(f"opening {name}")
        opened = open_model(spec.path, name, replace(how, variant=spec.variant), ema=spec.ema)
        stack.callback(opened.close)
        models.append(opened)
        _check_model(opened, protocol)
    if wanting := [opened for opened, spec in zip(models, specs, strict=True) if spec.ema]:
        check_ema(wanting)
    raw = {(spec.path, spec.variant) for spec in specs if not spec.ema}
    for spec, opened in zip(specs, models, strict=True):
        if spec.ema and (spec.path, spec.variant) in raw:  # its two rows would be the same
            check_ema([opened])
    _check_channels(models)
    candidates: list[Candidate] = []
    for spec, name, opened in zip(specs, names, models, strict=True):
        on_step(f"loading {name}")
        model = opened.load_checked()
        weights = hash_weights(model.module)
        model.to(device, dtype)
        if channels_last:
            model.module.to(memory_format=torch.channels_last)
        if compiles:
            model.module.encoder = torch.compile(model.module.encoder)
            model.module.decoder = torch.compile(model.module.decoder)
        sha256 = [
            hash_bytes(source)
            for source in opened.checkpoint.sources
            if source.is_local or source.known_sha256()
        ]
        if opened.checkpoint.config:
            sha256.append(hashlib.sha256(opened.checkpoint.config.text.encode()).hexdigest())
        candidates.append(Candidate(spec, name, opened, model, dtype, tuple(sha256), weights))
    return candidates


def _check_model(opened: OpenModel, protocol: Protocol) -> None:
    if opened.problem:
        raise InputError(opened.problem, where=opened.name)
    opened.check_size(protocol.size)
    taken, made = opened.topology.in_channels, opened.topology.out_channels
    if taken != made:
        raise UnsupportedModelError(
            f"takes images of {taken} channels and makes images of {made}: "
            "there is nothing to compare",
            where=opened.name,
        )
    image_mode(taken, opened.name)


def _check_channels(models: Sequence[OpenModel]) -> None:
    channels = {opened.topology.in_channels: opened.label for opened in models}
    if len(channels) > 1:
        said = ", ".join(f"{count} of {name}" for count, name in channels.items())
        raise UsageError(f"the models take images of different numbers of channels: {said}")


def hash_weights(module: torch.nn.Module) -> str:
    """Hash names, dtypes, shapes and bytes of weights (sha256), wherever they were read from."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def sample_posterior(
    mean: torch.Tensor, logvar: torch.Tensor, indices: Sequence[int], seed: int
) -> torch.Tensor:
    """Draw latents; each picture's noise follows from the seed and its index alone.

    ``DiagonalGaussianDistribution`` in LDM and diffusers clamps the logarithm to -30 to 20.
    """
    import torch

    seeds = [(seed * 1_000_003 + index) % 2**63 for index in indices]
    noise = [
        torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(one)) for one in seeds
    ]
    std = (logvar.clamp(-30, 20) / 2).exp()
    return mean + std * torch.stack(noise).to(mean.device)
