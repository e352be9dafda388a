"""Say everything about a checkpoint that can be said without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vaeconv.autoencoder.match import Autoencoder, drop_reason, find_prefixes
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.readers.state_dict import NAMELESS_HINT
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.checkpoint.types import Checkpoint, Sibling
from vaeconv.common.ema_names import names_ema
from vaeconv.common.notes import Note, note, warning
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import AmbiguousInputError, InputError, name_parameters
from vaeconv.weights.detect import (
    Detected,
    decide_config,
    detect,
    read_config,
    read_ema_facts,
)
from vaeconv.weights.ema import nameless_ema
from vaeconv.weights.idle_options import reading_rules, refuse_idle, variant_rule
from vaeconv.weights.options import InspectOptions
from vaeconv.weights.zeros import find_in_tensors


class Part(NamedTuple):
    """Tensors that belong together.

    Attributes:
        name: ``encoder``, ``decoder``, ``ema``, ``unet``, …
        tensors: How many.
        parameters: Their elements.
        nbytes: Their bytes.
    """

    name: str
    tensors: int
    parameters: int
    nbytes: int


class KeyLine(NamedTuple):
    """One tensor of the state dict.

    Attributes:
        name: Its key.
        dtype: Its element type, as in safetensors.
        shape: Its sizes.
        role: Its name in the other layout, or why ``convert`` leaves it out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Result of an inspection: what is in a checkpoint.

    Attributes:
        name: The checkpoint, as it was named.
        container: Kind of the file, such as ``safetensors``.
        size: Bytes of all files.
        wrapper: Keys that lead to the state dict.
        parts: The state dict by parts.
        dtypes: Number of the autoencoder's tensors by element type.
        layout: Naming; None where there is no autoencoder.
        prefix: Prefix of the autoencoder's keys.
        family: The family, or what it could be.
        scaling: Scaling factor, shift factor, and where they came from.
        config: The config that ``convert`` would write; None where it would refuse.
        ema: Counts, number of updates and decay of the EMA; empty if there is none.
        siblings: Other entries beside the state dict.
        globals: Names in the pickle that are not plain torch data, with their verdict.
        nonfinite: Tensors that hold NaN or infinity; None if this was not checked.
        metadata: Entries of a safetensors header.
        sha256: Hash of each file; empty if not requested.
        keys: Every tensor.
        notes: Notes and warnings for the user.
        problem: Why ``convert`` would refuse; None where it would not.

    Example:
        >>> report = inspect("fixtures/tiny-kl.ckpt")
        >>> report.layout, report.ema["num_updates"], report.config["latent_channels"]
        ('compvis', 50000, 4)
    """

    name: str
    container: str
    size: int
    wrapper: tuple[str, ...]
    parts: tuple[Part, ...]
    dtypes: Mapping[str, int]
    layout: str | None
    prefix: str | None
    family: str | None
    scaling: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    ema: Mapping[str, Any]
    siblings: tuple[Sibling, ...]
    globals: tuple[tuple[str, str], ...]
    nonfinite: tuple[str, ...] | None
    metadata: Mapping[str, str]
    sha256: tuple[str, ...]
    keys: tuple[KeyLine, ...]
    notes: tuple[Note, ...]
    problem: InputError | None

    def __str__(self) -> str:
        what = f"autoencoder in the {self.layout} layout" if self.layout else "no autoencoder"
        lines = [f"{self.name}: {what} ({self.container}, {human_size(self.size)})"]
        lines += [f"  {part.name}: {plural(part.tensors, 'tensor')}" for part in self.parts]
        if self.scaling:
            factor, source = self.scaling["scaling_factor"], self.scaling["from"]
            lines.append(f"  scaling factor {factor:g} ({source})")
        if self.problem:
            lines.append(f"  {self.problem}")
        return name_parameters("\n".join(lines))


def inspect(source: AnyModel, options: InspectOptions | None = None) -> Inspection:
    """Look at a checkpoint.

    Args:
        source: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        options: Options of the inspection.

    Returns:
        What was found; where ``convert`` would refuse, with the reason.

    Raises:
        InputError: The source cannot be opened at all, or is damaged.
        HubError: The Hub or the network failed.
        UsageError: An option has no effect.

    Example:
        >>> print(inspect("fixtures/tiny-noquant.safetensors"))
        fixtures/tiny-noquant.safetensors: autoencoder in the compvis layout (safetensors, 1.4 MB)
          decoder: 68 tensors
          encoder: 52 tensors
          scaling factor 1 (assumed, as the shapes belong to no known family)
    """
    options, source = options_of(InspectOptions, options), as_source(source)
    refuse_idle(reading_rules([source], download=options.download))
    with open_checkpoint(
        source,
        variant=options.variant,
        salvage=options.salvage,
        download=options.download,
        on_fetch=options.on_fetch,
    ) as checkpoint:
        refuse_idle([variant_rule(options.variant, None, [checkpoint])])
        detected, problem = None, None
        if options.config:  # no part of the checkpoint: what is wrong with it is no finding
            read_config(checkpoint, options.config)
        try:
            detected = detect(checkpoint, prefix=options.source_prefix, config=options.config)
        except InputError as error:
            problem = error
        return _describe(checkpoint, detected, problem, options)


def _describe(
    checkpoint: Checkpoint,
    detected: Detected | None,
    problem: InputError | None,
    options: InspectOptions,
) -> Inspection:
    autoencoder = detected.autoencoder if detected else None
    keys = autoencoder.keys.values() if autoencoder else checkpoint.tensors
    own = [checkpoint.tensors[key] for key in keys]
    notes = list(detected.notes) if detected else []
    if nameless := nameless_ema(checkpoint):
        notes.append(note(f"{nameless}, which --ema cannot use; {NAMELESS_HINT}"))
    family, scaling, config = None, None, None
    if detected:
        try:
            named = ScalingOptions(family=options.family)
            decision, config = decide_config(checkpoint, detected, named)
            family = decision.family.name if decision.family else None
            scaling = decision.scaling.facts()
            notes += decision.notes()
        except AmbiguousInputError as error:
            family = "undecided"
            notes.append(warning(error.text))
        except InputError as error:
            problem = error
    nonfinite = None
    # Looking at values costs the download of the weights where they are remote.
    if options.check and autoencoder and "://" not in checkpoint.name:
        found, zeros = find_in_tensors(own, checkpoint.name)
        nonfinite, problem = tuple(found), problem or zeros
    return Inspection(
        name=checkpoint.name,
        container=checkpoint.container,
        size=checkpoint.size,
        wrapper=checkpoint.wrapper,
        parts=_parts(checkpoint, autoencoder),
        dtypes=dict(Counter(tensor.dtype.code for tensor in own)),
        layout=autoencoder.layout.value if autoencoder else None,
        prefix=autoencoder.prefix if autoencoder else None,
        family=family,
        scaling=scaling,
        config=config,
        ema=_ema(checkpoint, detected) if detected else {},
        siblings=(*_states_beside(checkpoint, detected), *checkpoint.read_siblings()),
        globals=tuple(use for use in checkpoint.globals if use[1] in ("placeholder", "unsafe")),
        nonfinite=nonfinite,
        metadata=checkpoint.metadata,
        sha256=tuple(map(hash_bytes, checkpoint.sources)) if options.hash_source else (),
        keys=tuple(_key_lines(checkpoint, autoencoder)),
        notes=tuple(notes),
        problem=problem,
    )


def _ema(checkpoint: Checkpoint, detected: Detected) -> dict[str, Any]:
    if not detected.ema.keys:
        return {}
    updates, decay = read_ema_facts(checkpoint, detected)
    return {
        "prefix": detected.ema.prefix,
        "others": list(detected.ema.others),
        "is_whole": detected.ema.is_whole,
        "keys": detected.ema.keys,
        "autoencoder_tensors": len(detected.ema.shadows),
        "of": len(detected.autoencoder.keys),
        "covers_unet": detected.ema.covers_unet,
        "num_updates": updates,
        "decay": decay,
    }


def _parts(checkpoint: Checkpoint, autoencoder: Autoencoder | None) -> tuple[Part, ...]:
    totals: dict[str, list[int]] = {}
    own = {key: pair for pair, key in autoencoder.keys.items()} if autoencoder else {}
    beside = _without_own(checkpoint, autoencoder)
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(beside):
            continue
        if name in own:
            part = own[name].compvis.partition(".")[0]
        elif autoencoder:
            part = autoencoder.dropped[name].value
        else:
            reason = drop_reason(name, "", checkpoint.beside)
            part = reason.value if reason else name.partition(".")[0]
        total = totals.setdefault(part, [0, 0, 0])
        total[0] += 1
        total[1] += tensor.numel
        total[2] += tensor.nbytes
    return tuple(Part(name, *total) for name, total in totals.items())


def _without_own(checkpoint: Checkpoint, autoencoder: Autoencoder | None) -> tuple[str, ...]:
    """Name the state dicts beside the proper one that the autoencoder is not in."""
    prefix = autoencoder.prefix if autoencoder else ""
    return tuple(root for root in checkpoint.beside if not prefix.startswith(root))


def _states_beside(checkpoint: Checkpoint, detected: Detected | None) -> Iterator[Sibling]:
    """Say what is in each state dict beside that of the autoencoder."""
    found = find_prefixes({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    for root in _without_own(checkpoint, detected.autoencoder if detected else None):
        names = [name for name in checkpoint.tensors if name.startswith(root)]
        tensors = [checkpoint.tensors[name] for name in names]
        emas = (
            {detected.ema.prefix: detected.ema.shadows, **detected.ema.others} if detected else {}
        )
        covered = max((len(s) for p, s in emas.items() if p.startswith(root)), default=0)
        has_one = any(prefix.startswith(root) for prefix in found)
        if names_ema(root):
            kind = "EMA"
            if covered and detected:
                total = plural(len(detected.autoencoder.keys), "tensor")
                kind += f" of the autoencoder, {covered} of {total}"
            elif any("diffusion_model" in name for name in names):
                kind += " of the diffusion model"
        elif has_one:
            kind = "an autoencoder" if not detected else "another autoencoder"
        else:
            reasons = {drop_reason(name[len(root) :], "") or drop_reason(name, "")
                       for name in names}  # fmt: skip
            kind = ", ".join(sorted(r.value for r in reasons if r)) or "state dict"
        yield Sibling(root, kind, len(names), sum(tensor.nbytes for tensor in tensors))


def _key_lines(checkpoint: Checkpoint, autoencoder: Autoencoder | None) -> Iterator[KeyLine]:
    roles: dict[str, str] = {}
    if autoencoder:
        other = Layout.DIFFUSERS if autoencoder.layout is Layout.COMPVIS else Layout.COMPVIS
        roles = {key: pair.name(other) for pair, key in autoencoder.keys.items()}
        roles.update({name: f"({r.value})" for name, r in autoencoder.dropped.items()})
    for name, tensor in checkpoint.tensors.items():
        yield KeyLine(name, tensor.dtype.code, tensor.shape, roles.get(name, ""))
