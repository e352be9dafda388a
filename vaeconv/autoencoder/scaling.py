"""Decide scaling and shift, which no tensor's shape can tell, and say where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from vaeconv.autoencoder.config import ProvidedConfig, Scaling
from vaeconv.autoencoder.families import (
    ALIASES,
    ASSUMED,
    BY_NAME,
    FAMILY_NAMES,
    Family,
    family_by_siblings,
    fitting_families,
)
from vaeconv.autoencoder.topology import Topology
from vaeconv.common import option_docs as docs
from vaeconv.common.notes import Note, warning
from vaeconv.common.option_checks import Range, check_fields
from vaeconv.errors import AmbiguousInputError, ConfigMismatchError

DEFAULT_SAMPLE_SIZE = 256

FamilyName = Annotated[
    str | None,
    docs.choice(
        "Model family, which decides scaling and shift", "NAME", FAMILY_NAMES, docs.SCALING
    ),
]


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """Scaling as the user knows it; None where it is left to the file.

    Example:
        >>> ScalingOptions(family="sdxl").family
        'sdxl'
        >>> ScalingOptions(scaling_factor=0.18215, shift_factor=0.0).scaling_factor
        0.18215
    """

    scaling_factor: docs.ScalingFactor = None
    shift_factor: docs.ShiftFactor = None
    family: FamilyName = None

    def __post_init__(self) -> None:
        check_fields(self, scaling_factor=Range(0, is_open=True))


class Decision(NamedTuple):
    """Scaling factors, and what is known of them.

    Attributes:
        scaling: The factors, with their source.
        family: The family, where one was told, given away or assumed.
        sample_size: Training resolution in pixels: one number, or height and width.
        warning: What the user should know about an assumption.
    """

    scaling: Scaling
    family: Family | None
    sample_size: int | tuple[int, ...]
    warning: str | None = None

    @property
    def is_known(self) -> bool:
        """True if the factors are more than the 1.0 of shapes that no family has."""
        return self.family is not None or self.warning is None

    def notes(self) -> list[Note]:
        """Warn of an assumption, if there is one."""
        return [warning(self.warning)] if self.warning else []


def decide_scaling(
    topology: Topology,
    options: ScalingOptions,
    provided: ProvidedConfig | None,
    read_stored: Callable[[], Scaling | None],
    siblings: Iterable[str],
    *,
    where: str,
) -> Decision:
    """Take scaling and shift from the first that has them.

    In this order: the options, ``--family``, a config, tensors in the file, keys beside the
    autoencoder; then what the shapes allow.

    Args:
        topology: The architecture.
        options: What the user said.
        provided: A config that came along or was given.
        read_stored: Reads ``scale_factor`` or ``edm_mean``/``edm_std`` from the file.
        siblings: Keys of the state dict outside the autoencoder.
        where: The file, for messages.

    Raises:
        AmbiguousInputError: The shapes belong to families with different factors, none of which
            is safe to assume.
        ConfigMismatchError: ``--family`` does not fit the shapes.
        UsageError: There is no such family, or a factor is no number to scale with.
    """
    family = _named_family(options.family, topology, where)
    if family:
        scaling = _of_family(family, "--family " + family.name)
        base: Decision | None = Decision(scaling, family, family.sample_size)
    else:
        # A factor of one's own also stands in for a stored one that is damaged.
        is_settled = options.scaling_factor is not None
        base = find_stated(
            topology, provided, (lambda: None) if is_settled else read_stored, siblings
        )
    if options.scaling_factor is None and options.shift_factor is None:
        return base or _assume(topology, where)
    if base is None:
        base = _without_base(topology, options, where)
    scaling = base.scaling
    if options.scaling_factor is not None:
        # A factor of one's own replaces the per-channel statistics that belong to another.
        scaling = scaling._replace(
            scaling_factor=options.scaling_factor,
            source="--scaling-factor",
            latents_mean=None,
            latents_std=None,
        )
    if options.shift_factor is not None:
        source = " and ".join(filter(None, (scaling.source, "--shift-factor")))
        scaling = scaling._replace(shift_factor=options.shift_factor, source=source)
    doubt = base.warning if options.scaling_factor is None else None
    return base._replace(scaling=scaling, warning=doubt)


def _named_family(name: str | None, topology: Topology, where: str) -> Family | None:
    if name is None:
        return None
    family = BY_NAME[ALIASES.get(name, name)]
    if not family.fits(topology):
        raise ConfigMismatchError(
            f"--family {name} has {family.latent_channels} latent channels, {family.levels} levels "
            f"and {'' if family.has_quant_convs else 'no '}quant convolutions; the tensors have "
            f"{topology.latent_channels}, {topology.levels} and "
            f"{'' if topology.quant_conv else 'no '}quant convolutions",
            where=where,
        )
    return family


def find_stated(
    topology: Topology,
    provided: ProvidedConfig | None,
    read_stored: Callable[[], Scaling | None],
    siblings: Iterable[str],
) -> Decision | None:
    """Take what the source itself states, or gives away by other keys in it; None if nothing."""
    if provided and provided.scaling:
        return Decision(provided.scaling, None, provided.sample_size or DEFAULT_SAMPLE_SIZE)
    told = family_by_siblings(topology, siblings)
    family = told[0] if told else None
    size = family.sample_size if family else DEFAULT_SAMPLE_SIZE
    stored = read_stored()
    if stored:
        return Decision(stored, family, size)
    if told:
        return Decision(_of_family(told[0], f"the key {told[1]} beside it"), family, size)
    return None


def _assume(topology: Topology, where: str) -> Decision:
    fitting = fitting_families(topology)
    names = [family.name for family in fitting]
    if ASSUMED in names:
        family = BY_NAME[ASSUMED]
        others = " and ".join(f"{f.title} ({f.scaling_factor})" for f in fitting if f is not family)
        return Decision(
            _of_family(family, "assumed from the shapes"),
            family,
            family.sample_size,
            f"assuming the scaling factor {family.scaling_factor} of {family.title}; {others} have "
            "the same shapes, so pass --family to be sure",
        )
    if len(fitting) > 1:
        raise AmbiguousInputError(
            f"the shapes fit {' and '.join(f.title for f in fitting)}, which differ in scaling "
            "and shift factors",
            where=where,
            hint="pass " + " or ".join(f"--family {name}" for name in names),
        )
    hint = f" (--family {names[0]} has {fitting[0].scaling_factor})" if fitting else ""
    return Decision(
        Scaling(1.0, source="assumed, as the shapes belong to no known family"),
        None,
        DEFAULT_SAMPLE_SIZE,
        "assuming the scaling factor 1.0, as these shapes belong to no known family; pass the one "
        f"that the diffusion model was trained with: --scaling-factor{hint}",
    )


def _without_base(topology: Topology, options: ScalingOptions, where: str) -> Decision:
    """Start from the shapes alone where the user gave factors; both must be known."""
    if options.scaling_factor is None:
        return _assume(topology, where)
    shifts = {family.shift_factor for family in fitting_families(topology)}
    if options.shift_factor is None and shifts - {None}:
        raise AmbiguousInputError(
            "autoencoders of these shapes also have a shift factor",
            where=where,
            hint="pass --shift-factor (0 for none) or --family",
        )
    return Decision(Scaling(options.scaling_factor), None, DEFAULT_SAMPLE_SIZE)


def _of_family(family: Family, source: str) -> Scaling:
    return Scaling(
        family.scaling_factor,
        family.shift_factor,
        family.latents_mean,
        family.latents_std,
        source,
    )
