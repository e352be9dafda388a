"""An open checkpoint, its autoencoder, and how it is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

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
from vaeconv.weights.detect import Survey, decide, survey_checkpoint
from vaeconv.weights.ema import choose_average, no_average, shadow_of
from vaeconv.weights.parameters import weight_dtype
from vaeconv.weights.plan import KEEP, Row


class SideOptions(NamedTuple):
    """Options of reading a model; each says what it does.

    Attributes:
        on_fetch: Called with the bytes that arrived from the Hub.

    Example:
        >>> SideOptions(variant="fp16").variant
        'fp16'
    """

    variant: docs.Variant = None
    source_prefix: docs.SourcePrefix = None
    allow_zeros: docs.AllowZeros = False
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def validate(self) -> None:
        """Check types and values.

        Raises:
            UsageError: One is not allowed.
        """
        check_fields(self)


# A field of this kind says how one model is read; a command has options for all models at once.
OfOneModel = Annotated[SideOptions, "no options of a command"]


@dataclass(frozen=True, slots=True)
class Side:
    """An autoencoder to compare.

    Attributes:
        label: ``A``, ``B`` or ``BASE``.
        checkpoint: The open file or folder.
        survey: What is in it.
        rows: Every tensor, in its own naming and dtype.
        others: Of tensors that have EMA weights, what ``rows`` leaves out: that, or the raw
            weights.
        scaling: Its scaling: what its config or its file states, else what ``convert`` would decide
            for it; None where ``convert`` would not know.
        doubt: Why ``convert`` would not know, and what settles it; None where it would.
        is_stated: Whether the scaling is more than an assumption from shapes.
        told: What the options say of a folder whose config states its scaling; None where nothing.
        problem: Why it is not the autoencoder that it says it is; None where it is.
        allow_zeros: Whether weights may be zero where no training leaves zeros.
    """

    label: str
    checkpoint: Checkpoint
    survey: Survey
    rows: Mapping[NamePair, Row]
    others: Mapping[NamePair, Row]
    scaling: Scaling | None
    doubt: str | None = None
    is_stated: bool = True
    told: Scaling | None = None
    problem: str | None = None
    allow_zeros: bool = False

    @property
    def name(self) -> str:
        """The file or folder, as the user named it."""
        return self.checkpoint.name

    @property
    def topology(self) -> Topology:
        """The model's architecture."""
        return self.survey.autoencoder.topology

    @property
    def layout(self) -> Layout:
        """The layout of the model's keys."""
        return self.survey.autoencoder.layout

    @property
    def groups(self) -> int:
        """Groups of its normalisation."""
        groups = self.survey.given.norm_num_groups if self.survey.given else None
        return NORM_NUM_GROUPS if groups is None else groups

    @property
    def activation(self) -> str:
        """Its activation function; ``swish`` is another word for ``silu``."""
        name = self.survey.given.act_fn if self.survey.given else None
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
            given=self.survey.given,
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


def open_side(
    path: str | os.PathLike[str],
    label: str,
    options: SideOptions,
    *,
    ema: bool,
    scaling: ScalingOptions = ScalingOptions(),
    config: Path | None = None,
) -> Side:
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
            survey = survey_checkpoint(checkpoint, prefix=options.source_prefix, config=provided)
        except ConfigMismatchError as error:
            problem = error.what
            bare = replace(checkpoint, config=None)
            survey = survey_checkpoint(bare, prefix=options.source_prefix)
        raw, averages = _make_rows(checkpoint, survey, ema=ema)
        default = ScalingOptions()
        decision, doubt = _decide(checkpoint, survey, default if is_configured else scaling)
        is_told = is_configured and scaling != default
        side = Side(
            label,
            checkpoint,
            survey,
            rows={**raw, **averages} if ema else raw,
            others={pair: raw[pair] for pair in averages} if ema else averages,
            scaling=decision.scaling if decision else None,
            doubt=doubt,
            is_stated=decision is not None and decision.warning is None,
            told=decide(checkpoint, survey, scaling).scaling if is_told else None,
            problem=problem,
            allow_zeros=options.allow_zeros,
        )
        stack.pop_all()  # it is open from here on
    return side


def _make_rows(
    checkpoint: Checkpoint, survey: Survey, *, ema: bool
) -> tuple[dict[NamePair, Row], dict[NamePair, Row]]:
    """Make a row of each tensor, and one of its EMA weights where there are some."""
    autoencoder, shadows = survey.autoencoder, survey.ema.shadows
    if ema and shadows:
        shadows = choose_average(checkpoint, survey)
    raw, averages = {}, {}
    for pair, key in autoencoder.keys.items():
        tensor = checkpoint.tensors[key]
        dtype = weight_dtype(tensor, KEEP, checkpoint.name)
        row = Row(pair.name(autoencoder.layout), tensor, pair.shape(autoencoder.layout), dtype)
        raw[pair] = row
        shadow = shadows.get(pair.compvis)
        if shadow and (ema or shadow != key):
            average = shadow_of(tensor, checkpoint.tensors[shadow], checkpoint.name)
            dtype = weight_dtype(average, KEEP, checkpoint.name)
            averages[pair] = row._replace(source=average, dtype=dtype, is_ema=True)
    return raw, averages


def _decide(
    checkpoint: Checkpoint, survey: Survey, options: ScalingOptions
) -> tuple[Decision | None, str | None]:
    """Decide as ``convert`` does, or say why it would not know."""
    try:
        decision = decide(checkpoint, survey, options)
    except AmbiguousInputError as error:
        if options != ScalingOptions():  # an answer of which a part is missing
            raise
        return None, f"{error.what}: {error.hint}"
    if not decision.is_known:
        return None, "its shapes belong to no known family: pass --scaling-factor"
    return decision, None


def check_averages(sides: list[Side]) -> None:
    """Check that one model at least has the EMA weights that were asked for.

    Raises:
        EmaError: None has.
    """
    if not any(row.is_ema for side in sides for row in side.rows.values()):
        raise no_average(sides[0].checkpoint, sides[0].survey)
