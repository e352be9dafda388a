"""An open checkpoint, its autoencoder, and how it is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from vaeconv.autoencoder.config import NORM_NUM_GROUPS, Scaling, build_config
from vaeconv.autoencoder.keys import NamePair
from vaeconv.autoencoder.scaling import DEFAULT_SAMPLE_SIZE, Decision, ScalingOptions
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import check_fields
from vaeconv.errors import AmbiguousInputError, ConfigMismatchError, UsageError
from vaeconv.models.load import Model, check_module, load_compvis, load_diffusers, load_folder
from vaeconv.weights.detect import Detected, decide, detect
from vaeconv.weights.ema import choose_ema, missing_ema, shadow_of
from vaeconv.weights.parameters import weight_dtype
from vaeconv.weights.plan import KEEP, Row


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of reading a model; each says what it does.

    Attributes:
        on_fetch: Called with the bytes that arrived from the Hub.

    Example:
        >>> ModelOptions(variant="fp16").variant
        'fp16'
    """

    variant: docs.Variant = None
    source_prefix: docs.SourcePrefix = None
    allow_zeros: docs.AllowZeros = False
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


# A field of this kind says how one model is read; a command has options for all models at once.
OfOneModel = Annotated[ModelOptions, "no options of a command"]


@dataclass(frozen=True, slots=True)
class OpenModel:
    """An autoencoder to compare.

    Attributes:
        label: ``A``, ``B`` or ``BASE``.
        checkpoint: The open file or folder.
        detected: What is in it.
        rows: Every tensor, in its own naming and dtype.
        others: Of tensors that have EMA weights, what ``rows`` leaves out: that, or the raw
            weights.
        scaling: Its scaling: what its config or its file states, else what ``convert`` would decide
            for it; None where ``convert`` would not know.
        doubt: Why ``convert`` would not know, and what settles it; None where it would.
        is_stated: Whether the scaling is more than an assumption from shapes.
        from_options: Scaling that the options state of a folder whose config states one; else None.
        problem: Why it is not the autoencoder that it says it is; None where it is.
        allow_zeros: Whether weights may be zero where no training leaves zeros.
    """

    label: str
    checkpoint: Checkpoint
    detected: Detected
    rows: Mapping[NamePair, Row]
    others: Mapping[NamePair, Row]
    scaling: Scaling | None
    doubt: str | None = None
    is_stated: bool = True
    from_options: Scaling | None = None
    problem: str | None = None
    allow_zeros: bool = False

    @property
    def name(self) -> str:
        """The file or folder, as the user named it."""
        return self.checkpoint.name

    @property
    def topology(self) -> Topology:
        """The model's architecture."""
        return self.detected.autoencoder.topology

    @property
    def layout(self) -> Layout:
        """The layout of the model's keys."""
        return self.detected.autoencoder.layout

    @property
    def groups(self) -> int:
        """Groups of its normalisation."""
        groups = self.detected.provided.norm_num_groups if self.detected.provided else None
        return NORM_NUM_GROUPS if groups is None else groups

    @property
    def activation(self) -> str:
        """Its activation function; ``swish`` is another word for ``silu``."""
        name = self.detected.provided.act_fn if self.detected.provided else None
        return "silu" if name is None or name == "swish" else name

    def load(self) -> Model:
        """Load it to run in its own layout, in fp32.

        A local diffusers folder is loaded as its users load it, anything else from the same bytes
        that were compared.

        Raises:
            CheckFailedError: diffusers cannot load the folder.
        """
        rows = list(self.rows.values())
        if self.layout is Layout.COMPVIS:
            return load_compvis(self.topology, rows)
        folder = Path(self.name)
        if "://" not in self.name and self.checkpoint.config and folder.is_dir():
            return load_folder(folder, self.checkpoint.variant)
        config = build_config(
            self.topology,
            self.scaling or Scaling(1.0),
            sample_size=DEFAULT_SAMPLE_SIZE,
            provided=self.detected.provided,
        )
        named = [row._replace(name=pair.diffusers) for pair, row in self.rows.items()]
        return load_diffusers(config, named)

    def load_checked(self) -> Model:
        """Load it, and look for what an unfinished download leaves.

        Raises:
            CheckFailedError: diffusers cannot load the folder.
            ZeroWeightsError: Weights are zero that no training leaves so.
        """
        model = self.load()
        if not self.allow_zeros:
            check_module(model.module, self.name)
        return model

    def check_size(self, size: int) -> None:
        """Check that square images of a size can be encoded and come back as large as they were.

        Raises:
            UsageError: The size in pixels is no multiple of :attr:`Topology.downsampling`.
        """
        factor = self.topology.downsampling
        if size % factor:
            nearest = max(1, round(size / factor)) * factor
            raise UsageError(
                f"the autoencoder makes latents {factor} times smaller than images, and {size} "
                f"pixels do not divide by {factor}",
                where=self.name,
                hint=f"use --size {nearest}",
            )

    def close(self) -> None:
        """Close its files."""
        self.checkpoint.close()


def open_model(
    path: str | os.PathLike[str],
    label: str,
    options: ModelOptions,
    *,
    ema: bool,
    scaling: ScalingOptions = ScalingOptions(),
    config: Path | None = None,
) -> OpenModel:
    """Open a model and account for every key.

    Args:
        path: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        label: What to call it.
        options: Options of reading it.
        ema: Use the EMA weights of tensors that have some.
        scaling: What is known of the scaling, as for ``convert``: it comes before what a file says.
            A folder's config is not replaced but compared with it.
        config: A config for a file, in place of the one beside it.

    Raises:
        InputError: It cannot be read, or there is no autoencoder in it whose keys add up.
    """
    with ExitStack() as stack:
        checkpoint = open_checkpoint(
            path,
            variant=options.variant,
            salvage=options.salvage,
            download=options.download,
            on_fetch=options.on_fetch,
        )
        stack.callback(checkpoint.close)
        is_configured = checkpoint.is_folder and checkpoint.config is not None
        provided = None if is_configured else config
        problem = None
        try:
            detected = detect(checkpoint, prefix=options.source_prefix, config=provided)
        except ConfigMismatchError as error:
            problem = error.what
            bare = replace(checkpoint, config=None)
            detected = detect(bare, prefix=options.source_prefix)
        raw, ema_rows = _make_rows(checkpoint, detected, ema=ema)
        default = ScalingOptions()
        decision, doubt = _decide(checkpoint, detected, default if is_configured else scaling)
        is_restated = is_configured and scaling != default
        model = OpenModel(
            label,
            checkpoint,
            detected,
            rows={**raw, **ema_rows} if ema else raw,
            others={pair: raw[pair] for pair in ema_rows} if ema else ema_rows,
            scaling=decision.scaling if decision else None,
            doubt=doubt,
            is_stated=decision is not None and decision.warning is None,
            from_options=decide(checkpoint, detected, scaling).scaling if is_restated else None,
            problem=problem,
            allow_zeros=options.allow_zeros,
        )
        stack.pop_all()  # it is open from here on
    return model


def _make_rows(
    checkpoint: Checkpoint, detected: Detected, *, ema: bool
) -> tuple[dict[NamePair, Row], dict[NamePair, Row]]:
    """Make a row of each tensor, and one of its EMA weights where there are some."""
    autoencoder, shadows = detected.autoencoder, detected.ema.shadows
    if ema and shadows:
        shadows = choose_ema(checkpoint, detected)
    raw, ema_rows = {}, {}
    for pair, key in autoencoder.keys.items():
        tensor = checkpoint.tensors[key]
        dtype = weight_dtype(tensor, KEEP, checkpoint.name)
        row = Row(pair.name(autoencoder.layout), tensor, pair.shape(autoencoder.layout), dtype)
        raw[pair] = row
        shadow = shadows.get(pair.compvis)
        if shadow and (ema or shadow != key):
            ema_tensor = shadow_of(tensor, checkpoint.tensors[shadow], checkpoint.name)
            dtype = weight_dtype(ema_tensor, KEEP, checkpoint.name)
            ema_rows[pair] = row._replace(source=ema_tensor, dtype=dtype, is_ema=True)
    return raw, ema_rows


def _decide(
    checkpoint: Checkpoint, detected: Detected, options: ScalingOptions
) -> tuple[Decision | None, str | None]:
    """Decide as ``convert`` does, or say why it would not know."""
    try:
        decision = decide(checkpoint, detected, options)
    except AmbiguousInputError as error:
        if options != ScalingOptions():  # an answer of which a part is missing
            raise
        return None, f"{error.what}: {error.hint}"
    if not decision.is_known:
        return None, "its shapes belong to no known family: pass --scaling-factor"
    return decision, None


def check_ema(models: list[OpenModel]) -> None:
    """Check that one model at least has the EMA weights that were asked for.

    Raises:
        EmaError: None has.
    """
    if not any(row.is_ema for model in models for row in model.rows.values()):
        raise missing_ema(models[0].checkpoint, models[0].detected)
