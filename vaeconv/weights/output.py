"""Write a plan's output: a diffusers folder or a CompVis file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import dump_config
from vaeconv.checkpoint.dtypes import CastLoss
from vaeconv.checkpoint.readers.folder import (
    CONFIG,
    index_name,
    shard_names,
    weights_name,
)
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.checkpoint.writers.atomic import (
    replace_small_file,
    staged_file,
    staged_folder,
    write_small_file,
)
from vaeconv.checkpoint.writers.layout import lay_out_safetensors, lay_out_torch_zip
from vaeconv.checkpoint.writers.writable import check_output
from vaeconv.common.notes import Note, note, warning
from vaeconv.common.wording import plural
from vaeconv.errors import OutputError
from vaeconv.weights.execute import CopyOptions, copy_rows
from vaeconv.weights.manifest import MANIFEST, dump_manifest, kept_files, kept_notes, source_name
from vaeconv.weights.output_names import OutputKind, is_address, is_file
from vaeconv.weights.plan import Plan, Row
from vaeconv.weights.shards import shard_index, split_rows, stale_names

_OVERHEAD = 1024  # bytes per tensor, more than a header or a zip file's directory takes


class Output(NamedTuple):
    """Place of an output, and what goes with the weights.

    Attributes:
        target: The file or folder.
        kind: Which of the two, and in which container.
        variant: Variant in a folder's file name.
        config: The folder's config.
        facts: What the manifest says of the plan.
        max_shard_size: Bytes of a shard in a folder; None for one file.
        metadata: Entries of the safetensors header beside ``format``.
    """

    target: Path
    kind: OutputKind
    variant: str | None
    config: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    max_shard_size: int | None = None
    metadata: Mapping[str, str] = MappingProxyType({})


class Written(NamedTuple):
    """One file that was written.

    Attributes:
        path: Where.
        size: Bytes.
        sha256: Its hash in hexadecimal; None where it was not asked for.
        losses: What a cast lost beyond rounding, by tensor.
        source_crcs: CRC-32 of each tensor's source; empty where nothing was checked.
        notes: What the user should know of it.
    """

    path: Path
    size: int
    sha256: str | None
    losses: Mapping[str, CastLoss] = MappingProxyType({})
    source_crcs: Mapping[str, int] = MappingProxyType({})
    notes: tuple[Note, ...] = ()


def check_target(
    target: Path,
    sources: Sequence[str | os.PathLike[str]],
    *,
    overwrite: bool,
    plan: Plan | None = None,
) -> None:
    """Refuse an output that must not be written.

    Args:
        target: The file or folder to write.
        sources: What is read, by whatever name.
        overwrite: Replace an existing output.
        plan: What would be written.

    Raises:
        OutputError: As :func:`~vaeconv.checkpoint.writers.writable.check_output`.
    """
    texts = [os.fspath(source) for source in sources]
    local = [Path(text) for text in texts if not is_address(text) and os.path.lexists(text)]
    hint = "--overwrite replaces it"
    if plan and is_file(target) and _looks_like_the_input(target, local, plan):
        hint = "IN comes before OUT: are they swapped?"
    check_output(target, local, overwrite=overwrite, hint=hint)


def _looks_like_the_input(target: Path, sources: Sequence[Path], plan: Plan) -> bool:
    """Whether a file that is in the way is rather what somebody wanted to read.

    So it is where it is larger than what would replace it, or where the input was made from it.
    Nobody is told then how to lose it.
    """
    largest = plan.nbytes + _OVERHEAD * (len(plan.rows) + 1)
    return target.stat().st_size > largest or any(
        source_name(source) == target.name for source in sources
    )


def write_output(
    output: Output,
    checkpoints: Sequence[Checkpoint],
    plan: Plan,
    *,
    overwrite: bool,
    manifest: bool,
    hash_source: bool,
    copy: CopyOptions,
) -> tuple[Written, ...]:
    """Write all files of an output, atomically and, with ``copy.check``, durably.

    Args:
        output: Where, and what goes with the weights.
        checkpoints: Where the plan's tensors come from; the first is what the manifest names.
        plan: What to write.
        overwrite: Replace an existing output.
        manifest: Whether a single file gets a manifest beside it.
        hash_source: Whether the manifest has the hash of the first checkpoint's files.
        copy: How carefully.

    Returns:
        The weights, then what goes with them.

    Raises:
        InputError: The source turns out to be bad while it is read.
        OutputError: The output cannot be written.
    """
    if output.kind is OutputKind.TORCH_ZIP:
        unsaved = next((row for row in plan.rows if not row.dtype.storage), None)
        if unsaved:
            raise OutputError(
                f"torch has no storage class for {unsaved.dtype.torch_name} ({unsaved.name})",
                where=str(output.target),
                hint="write a .safetensors file",
            )
    facts = {**output.facts}
    if hash_source:
        hashes = [hash_bytes(source) for source in checkpoints[0].sources]
        facts["source"] = {**facts["source"], "sha256": hashes[0] if len(hashes) == 1 else hashes}
    if copy.on_progress:
        copy = copy._replace(on_progress=_of_total(copy.on_progress, plan.nbytes))
    job = _Job(output, checkpoints, plan, facts, overwrite, copy)
    return job.write_folder() if output.kind is OutputKind.FOLDER else job.write_file(manifest)


def _of_total(on_progress: Callable[[int, int], None], total: int) -> Callable[[int, int], None]:
    return lambda count, _: on_progress(count, total)


@dataclass(frozen=True, slots=True)
class _Job:
    """One output to write; see :func:`write_output`."""

    output: Output
    checkpoints: Sequence[Checkpoint]
    plan: Plan
    facts: dict[str, Any]
    overwrite: bool
    copy: CopyOptions

    def write_file(self, manifest: bool) -> tuple[Written, ...]:
        target = self.output.target
        written = [self._write_weights(target, target, self.plan.rows, overwrite=self.overwrite)]
        beside = target.with_name(target.name + "." + MANIFEST)
        # One that is there would tell of the file before; a name may be too long for one.
        if manifest or os.path.isfile(beside):  # noqa: PTH113
            facts = self._facts(written)
            data = dump_manifest(facts, {target.name: _entry(written[0], facts)})
            replace_small_file(beside, data, durable=self.copy.check)
            written.append(Written(beside, len(data), None))
        return tuple(written)

    def write_folder(self) -> tuple[Written, ...]:
        target, variant, durable = self.output.target, self.output.variant, self.copy.check
        assert self.output.config is not None
        shards = split_rows(self.plan.rows, self.output.max_shard_size)
        names = shard_names(variant, len(shards)) if len(shards) > 1 else [weights_name(variant)]
        own = {*names, *([index_name(variant)] if len(shards) > 1 else []), CONFIG}
        stale = frozenset(stale_names(target, variant, own))
        with staged_folder(
            target, overwrite=self.overwrite, durable=durable, stale=stale
        ) as folder:
            written = [
                self._write_weights(folder / name, target / name, rows, overwrite=True)
                for name, rows in zip(names, shards, strict=True)
            ]
            facts = self._facts(written)
            small = {CONFIG: dump_config(self.output.config)}
            if len(shards) > 1:
                small[index_name(variant)] = shard_index(names, shards)
            for name, data in small.items():
                write_small_file(folder / name, data, durable=durable)
                digest = hashlib.sha256(data).hexdigest()
                written.append(Written(target / name, len(data), digest))
            kept = kept_files(target, own | stale, facts["source"], check=self.copy.check)
            entries = {
                **kept.same,
                **{w.path.name: _entry(w, facts if w.path.name in names else None)
                   for w in written},
            }  # fmt: skip
            data = dump_manifest(facts, entries, kept.others)
            write_small_file(folder / MANIFEST, data, durable=durable)
        notes = tuple(kept_notes(target, kept, stale))
        return (*written, Written(target / MANIFEST, len(data), None, notes=notes))

    def _facts(self, written: Sequence[Written]) -> dict[str, Any]:
        """Add to the facts what tells these weights from others, without reading them again."""
        crcs = sorted((name, crc) for file in written for name, crc in file.source_crcs.items())
        if not crcs:
            return self.facts
        fingerprint = hashlib.sha256(json.dumps(crcs).encode()).hexdigest()
        return {**self.facts, "source": {**self.facts["source"], "fingerprint": fingerprint}}

    def _write_weights(
        self, place: Path, target: Path, rows: Sequence[Row], *, overwrite: bool
    ) -> Written:
        specs = [(row.name, row.dtype, row.shape) for row in rows]
        is_zip = self.output.kind is OutputKind.TORCH_ZIP
        if is_zip:
            file = lay_out_torch_zip(specs)
        else:
            file = lay_out_safetensors(specs, self.output.metadata)
        with staged_file(place, overwrite=overwrite, durable=self.copy.check) as fd:
            copied = copy_rows(fd, file, rows, self.copy, where=str(target))
            for checkpoint in self.checkpoints:
                checkpoint.check_unchanged()
        return Written(target, file.size, copied.sha256, copied.losses, copied.source_crcs)


def written_notes(written: Sequence[Written]) -> list[Note]:
    """Say what casts lost beyond rounding, and what else is in a folder that was written to."""
    return [*_cast_notes(written), *(note for file in written for note in file.notes)]


def _cast_notes(written: Sequence[Written]) -> list[Note]:
    losses = {name: loss for file in written for name, loss in file.losses.items()}
    flushed = [loss.flushed for loss in losses.values() if loss.flushed]
    notes = []
    if flushed:
        notes.append(
            note(
                f"{plural(sum(flushed), 'value')} in {plural(len(flushed), 'tensor')} became zero: "
                "too small for the dtype"
            )
        )
    clamped = {name: loss for name, loss in losses.items() if loss.clamped}
    if clamped:
        worst = max(clamped, key=lambda name: clamped[name].overflow)
        notes.append(
            warning(
                f"{plural(sum(loss.clamped for loss in clamped.values()), 'value')} in "
                f"{plural(len(clamped), 'tensor')} were clamped: too large for the dtype; the "
                f"largest was {clamped[worst].overflow:g}, in {worst}"
            )
        )
    return notes


def _entry(written: Written, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    dtype = {"dtype": facts["dtype"]} if facts else {}
    return {"size": written.size, "sha256": written.sha256, **dtype}
