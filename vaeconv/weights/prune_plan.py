"""Decide of every tensor in a checkpoint whether pruning keeps it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from vaeconv.autoencoder.ema import find_shadows
from vaeconv.autoencoder.families import find_kind
from vaeconv.autoencoder.keys import NamePair
from vaeconv.autoencoder.match import DropReason, drop_reason
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.dtypes import BY_OPTION, DType
from vaeconv.checkpoint.tensor import Tensor, check_repeats
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.notes import Note, note
from vaeconv.common.wording import plural
from vaeconv.errors import ConfigMismatchError, UsageError
from vaeconv.weights.candidates import inner_prefix
from vaeconv.weights.detect import Detected
from vaeconv.weights.ema import check_ema_weights, check_single, choose_ema, missing_ema, shadow_of
from vaeconv.weights.options import Part, PruneOptions
from vaeconv.weights.parameters import Parameters, kept_note, may_be_infinite, weight_dtype
from vaeconv.weights.plan import KEEP, Plan, Row
from vaeconv.weights.position_ids import repair_rows

# What a key is for, to the part that it belongs to. What is not here is never kept.
_PART_OF = {
    DropReason.UNET: Part.UNET,
    DropReason.VAE: Part.VAE,
    DropReason.TEXT_ENCODER: Part.TEXT_ENCODER,
    DropReason.SCHEDULE: Part.SCHEDULE,
    DropReason.LATENT_SCALING: Part.SCHEDULE,
    DropReason.LOSS: Part.LOSS,
    DropReason.UNKNOWN: Part.OTHER,
}

# What a diffusion model's EMA may cover.
_AVERAGED = (DropReason.UNET, DropReason.TEXT_ENCODER, DropReason.UNKNOWN)


class Group(NamedTuple):
    """Tensors that share a fate.

    Attributes:
        name: A part that is kept, or the rule by which others are dropped.
        is_kept: Which of the two.
        tensors: How many.
        before: Their bytes in the source.
        after: Their bytes in the output.
    """

    name: str
    is_kept: bool
    tensors: int
    before: int
    after: int = 0


class PrunePlanner:
    """Plans the pruning of one checkpoint.

    Args:
        checkpoint: The open checkpoint.
        detected: What is known of its autoencoder; None where a diffusion model comes without.
        options: What to keep, and as what.
    """

    def __init__(
        self, checkpoint: Checkpoint, detected: Detected | None, options: PruneOptions
    ) -> None:
        self._where = checkpoint.name
        self._checkpoint = checkpoint
        self._detected = detected
        self._options = options
        self._pairs: dict[str, NamePair] = {}  # by name of the output tensor
        self._parameters = Parameters(checkpoint.tensors)
        self._reasons = self._classify()
        self._shadows = self._find_shadows()

    def plan(self, vae: tuple[Checkpoint, Detected] | None = None) -> Plan:
        """Pair every tensor that stays with the one that it is made of, and account for the rest.

        Args:
            vae: Another autoencoder to put in place of the checkpoint's own.

        Raises:
            EmaError: EMA weights were asked for, and there are none.
            UnmappedKeysError: A shadow has another shape than its parameter.
            UnsupportedModelError: A weight of the autoencoder is not of floating point.
            UsageError: Nothing is left, or two tensors would get one name.
            ConfigMismatchError: The other autoencoder is of another architecture.
        """
        notes = list(self._detected.notes) if self._detected else []
        kept = self._options.kept - ({Part.VAE} if vae else set())
        notes += self._ema_notes(kept)
        rows: list[Row] = []
        dropped: dict[str, DropReason] = {}
        left: dict[str, Tensor] = {}  # what the cast that was asked for does not apply to
        for name, tensor in self._checkpoint.tensors.items():
            reason = self._reasons[name]
            if reason is DropReason.VAE and vae:
                dropped[name] = DropReason.REPLACED
            elif _PART_OF.get(reason) not in kept:
                dropped[name] = reason
            else:
                rows.append(self._row(name, tensor))
                if rows[-1].is_ema:
                    dropped[name] = DropReason.REPLACED
                if not (self._is_cast(name, tensor) or self._is_excepted(name)):
                    left[name] = tensor
        notes += kept_note(left, self._options.dtype)
        notes += self._unknown_notes(rows)
        rows, repairs = repair_rows(rows)
        notes += repairs
        if vae:
            rows += self._baked_rows(*vae, has_others=bool(rows))
            notes += self._baked_notes(*vae)
        for row in rows:
            if row.is_ema:
                dropped.pop(row.source.name, None)
        dropped.update(dict.fromkeys(self._checkpoint.non_tensors, DropReason.NOT_A_TENSOR))
        self._check(rows)
        return Plan(tuple(rows), dropped, tuple(notes))

    def autoencoder_rows(self, plan: Plan) -> list[Row]:
        """Give the autoencoder's rows as diffusers names and shapes them."""
        rows = {row.name: row for row in plan.rows}
        return [
            rows[name]._replace(name=pair.diffusers, shape=pair.shape(Layout.DIFFUSERS))
            for name, pair in self._pairs.items()
            if name in rows
        ]

    def account(self, plan: Plan) -> tuple[Group, ...]:
        """Sum up by parts that are kept and rules by which others are dropped, largest first."""
        groups: dict[tuple[str, bool], Group] = {}

        def add(name: str, before: int, after: int = 0, *, is_kept: bool = False) -> None:
            group = groups.get((name, is_kept), Group(name, is_kept, 0, 0))
            groups[name, is_kept] = Group(
                name, is_kept, group.tensors + 1, group.before + before, group.after + after
            )

        raw_of = {shadow: name for name, shadow in self._shadows.items()}
        for row in plan.rows:
            name = raw_of[row.source.name] if row.is_ema else row.source.name
            part = _PART_OF[self._reasons.get(name, DropReason.VAE)]
            add(part.value, row.source.nbytes, row.nbytes, is_kept=True)
        for name, reason in plan.dropped.items():
            tensor = self._checkpoint.tensors.get(name)
            add(reason.value, tensor.nbytes if tensor else 0)
        for one in self._checkpoint.read_siblings():
            if one.tensors:
                groups[one.name, False] = Group(one.name, False, one.tensors, one.nbytes)
        return tuple(sorted(groups.values(), key=lambda group: (not group.is_kept, -group.before)))

    @cached_property
    def _pair_of(self) -> dict[str, NamePair]:
        keys = self._detected.autoencoder.keys if self._detected else {}
        return {key: pair for pair, key in keys.items()}

    def _classify(self) -> dict[str, DropReason]:
        if self._detected is None:
            names = self._checkpoint.tensors
            beside = self._checkpoint.beside
            return {name: drop_reason(name, "", beside) or DropReason.UNKNOWN for name in names}
        autoencoder = self._detected.autoencoder
        own = dict.fromkeys(autoencoder.keys.values(), DropReason.VAE)
        return {**autoencoder.dropped, **own}

    def _find_shadows(self) -> dict[str, str]:
        """Pair each parameter that has a shadow with it: diffusion model's and autoencoder's."""
        spellings: dict[str, str] = {}
        for name, reason in self._reasons.items():
            if reason in _AVERAGED:
                # LatentDiffusion averages ``self.model``, and names the shadows within it.
                spellings |= {name: name, name.removeprefix("model."): name}
        keys = [name for name, reason in self._reasons.items() if reason is DropReason.EMA]
        groups = find_shadows(spellings, keys)
        if groups and self._options.ema:
            check_single(self._checkpoint, groups)
        shadows = next(iter(groups.values()), {})
        if self._detected and self._detected.ema.shadows:
            by_name = self._detected.ema.shadows
            if self._options.ema:
                choose_ema(self._checkpoint, self._detected)
            for pair, key in self._detected.autoencoder.keys.items():
                if pair.compvis in by_name:
                    shadows[key] = by_name[pair.compvis]
        return shadows

    def _row(self, name: str, raw: Tensor) -> Row:
        shadow = self._shadows.get(name)
        if not self._options.ema and shadow != name:
            shadow = None
        tensor = shadow_of(raw, self._checkpoint.tensors[shadow], self._where) if shadow else raw
        is_weight = self._reasons[name] is DropReason.VAE
        output = self._prefix() + name[len(self._own_prefix) :] if is_weight else name
        dtype = self._dtype(name, tensor, is_weight=is_weight)
        if is_weight:
            self._pairs[output] = self._pair_of[name]
        return Row(output, tensor, raw.shape, dtype, shadow is not None, may_be_infinite(name))

    @cached_property
    def _own_prefix(self) -> str:
        if self._detected:
            return self._detected.autoencoder.prefix
        return find_kind(self._checkpoint.tensors).prefix

    def _prefix(self) -> str:
        if self._options.prefix is not None:
            return self._options.prefix
        return "" if self._options.vae_only else inner_prefix(self._checkpoint, self._own_prefix)

    def _is_excepted(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._options.fp16_except)

    def _is_cast(self, name: str, tensor: Tensor) -> bool:
        is_weight = self._reasons[name] is DropReason.VAE
        return is_weight or self._parameters.has(name, tensor)

    def _dtype(self, name: str, tensor: Tensor, *, is_weight: bool) -> DType:
        wanted = KEEP if self._is_excepted(name) else self._options.dtype
        if is_weight:
            return weight_dtype(tensor, wanted, self._where)
        is_cast = wanted != KEEP and self._parameters.has(name, tensor)
        return BY_OPTION[wanted] if is_cast else tensor.dtype

    def _baked_rows(self, vae: Checkpoint, detected: Detected, *, has_others: bool) -> list[Row]:
        if not has_others:
            raise UsageError(
                "--vae puts an autoencoder into a full checkpoint, and this one has nothing else",
                where=self._where,
                hint="to change the layout of an autoencoder: vaeconv convert",
            )
        if self._detected:
            _check_fit(self._detected, detected, vae.name)
        layout = self._detected.autoencoder.layout if self._detected else Layout.COMPVIS
        rows = []
        for pair, key in detected.autoencoder.keys.items():
            name, tensor = self._prefix() + pair.name(layout), vae.tensors[key]
            dtype = self._dtype(name, tensor, is_weight=True)
            self._pairs[name] = pair
            rows.append(Row(name, tensor, pair.shape(layout), dtype))
        return rows

    def _baked_notes(self, vae: Checkpoint, detected: Detected) -> Iterator[Note]:
        yield note(f"the autoencoder comes from {vae.name}")
        if set(vae.metadata) - {"format"}:
            yield note(f"the metadata of {vae.name} is not copied")
        if detected.ema.shadows:
            yield note(
                f"the raw weights of {vae.name} are used; prune it with --ema first to use its EMA"
            )
        if not self._detected and self._options.prefix is None:
            kind = find_kind(self._checkpoint.tensors)
            also = f"some loaders look for {kind.also} there, " if kind.also else ""
            yield note(
                f"the autoencoder's keys begin with {kind.prefix}, as in a checkpoint of "
                f"{kind.title}; {also}--prefix {kind.also or 'NAME'} chooses another prefix"
            )

    def _check(self, rows: list[Row]) -> None:
        if not rows:
            raise UsageError("nothing is left to keep", where=self._where, hint="see --keep")
        seen: set[str] = set()
        for row in rows:
            if row.name in seen:
                raise UsageError(
                    f"two tensors would be called {row.name}",
                    where=self._where,
                    hint="choose another --prefix",
                )
            seen.add(row.name)
        check_repeats([row.source for row in rows])

    def _ema_notes(self, parts: frozenset[Part]) -> Iterator[Note]:
        kept = {
            name: shadow
            for name, shadow in self._shadows.items()
            if _PART_OF[self._reasons[name]] in parts and (self._options.ema or name != shadow)
        }
        if self._options.ema:
            if not kept:
                raise missing_ema(self._checkpoint, self._detected)
            yield from self._ema_counts(kept)
            yield from check_ema_weights(self._checkpoint, self._detected, kept)
        elif kept:
            yield note(
                f"raw weights are kept and the EMA weights of {plural(len(kept), 'tensor')} are "
                "dropped; --ema puts the EMA weights in their place"
            )

    def _unknown_notes(self, rows: list[Row]) -> Iterator[Note]:
        names = [row.name for row in rows if self._reasons.get(row.name) is DropReason.UNKNOWN]
        if names:
            yield note(
                f"kept: {plural(len(names), 'key')} of unknown purpose, such as {names[0]}; "
                "--drop other leaves them out"
            )

    def _ema_counts(self, kept: Mapping[str, str]) -> Iterator[Note]:
        def count(*reasons: DropReason) -> tuple[int, int]:
            names = [name for name, found in self._reasons.items() if found in reasons]
            return sum(name in kept for name in names), len(names)

        has_unet = DropReason.UNET in self._reasons.values()
        model = (DropReason.UNET,) if has_unet else _AVERAGED
        (vae, of_vae), (unet, of_unet) = count(DropReason.VAE), count(*model)
        if unet:
            rest = "" if vae else "; all else, also the autoencoder, has raw weights only"
            total = plural(of_unet, "tensor")
            yield note(f"diffusion model: EMA weights for {unet} of {total}{rest}")
        if vae:
            yield note(
                f"autoencoder: EMA weights for {plural(vae, 'tensor')}, raw weights for "
                f"{of_vae - vae}"
            )


def _check_fit(old: Detected, new: Detected, where: str) -> None:
    for field in old.autoencoder.topology._fields:
        own, given = (getattr(s.autoencoder.topology, field) for s in (old, new))
        if own != given:
            raise ConfigMismatchError(
                f"its {field} is {given}, that of the autoencoder that it would replace {own}",
                where=where,
            )
