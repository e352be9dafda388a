"""Write a plan's output: a diffusers folder or a CompVis file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import dump_config
from vaeconv.checkpoint.dtypes import CastLoss
from vaeconv.checkpoint.open import open_checkpoint
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
from vaeconv.common.notes import Note, issue_warnings, note, warning
from vaeconv.common.wording import plural
from vaeconv.errors import OutputError
from vaeconv.weights.execute import copy_rows
from vaeconv.weights.manifest import MANIFEST, dump_manifest, kept_files, kept_notes, source_name
from vaeconv.weights.options import ConvertOptions, PruneOptions
from vaeconv.weights.output_names import OutputKind, check_order, is_address, is_file
from vaeconv.weights.plan import Plan, Row
from vaeconv.weights.shards import shard_index, split_rows, stale_names

_OVERHEAD = 1024  # bytes per tensor, more than a header or a zip file's directory takes


class Written(NamedTuple):
    """One file that was written.

    Attributes:
        path: Where.
        size: Bytes.
        sha256: Its hash in hexadecimal; None where it was not asked for.
        losses: What a cast lost beyond rounding, by tensor.
        source_crcs: CRC-32 of each tensor's source; empty where nothing was checked.
    """

    path: Path
    size: int
    sha256: str | None
    losses: Mapping[str, CastLoss] = MappingProxyType({})
    source_crcs: Mapping[str, int] = MappingProxyType({})

    def entry(self, dtype: str | None = None) -> dict[str, Any]:
        """Describe the file for the manifest; weights with the dtype that was asked for."""
        known = {"dtype": dtype} if dtype else {}
        return {"size": self.size, "sha256": self.sha256, **known}


def open_sources(
    stack: ExitStack,
    sources: Sequence[str | os.PathLike[str]],
    kind: OutputKind,
    target: Path,
    options: ConvertOptions | PruneOptions,
) -> list[Checkpoint]:
    """Open what an output is made of, for as long as the stack is open.

    Raises:
        InputError: One is not there, bad or unsafe.
        OutputError: The output must not be written, which is known before anything is fetched.
        HubError: A source on the Hub cannot be fetched.
    """
    check_order(sources, target)
    if any(is_address(os.fspath(source)) for source in sources):
        check_target(target, sources, overwrite=options.overwrite)
    return [
        stack.enter_context(
            open_checkpoint(
                source,
                variant=None if kind is OutputKind.FOLDER else options.variant,
                salvage=options.salvage,
                download=options.download,
                on_fetch=options.on_fetch,
            )
        )
        for source in sources
    ]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output to write.

    Attributes:
        target: The file or folder.
        kind: Which of the two, and in which container.
        checkpoints: Where the plan's tensors come from; the first is what the manifest names.
        plan: What to write.
        config: The folder's config.
        facts: What the manifest says beyond what the plan tells.
        metadata: Entries of the safetensors header beside ``format``.
        options: How to write.
        max_shard_size: Bytes of a shard in a folder; None for one file.
    """

    target: Path
    kind: OutputKind
    checkpoints: Sequence[Checkpoint]
    plan: Plan
    config: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    metadata: Mapping[str, str]
    options: ConvertOptions | PruneOptions
    max_shard_size: int | None = None

    def write(self) -> tuple[tuple[Written, ...], Plan]:
        """Write all files, atomically and, with ``copy.check``, durably.

        Returns:
            The weights and what goes with them; the plan, with notes on what happened.

        Raises:
            InputError: The source turns out to be bad while it is read.
            OutputError: The output cannot be written.
        """
        if self.kind is OutputKind.TORCH_ZIP:
            unsaved = next((row for row in self.plan.rows if not row.dtype.storage), None)
            if unsaved:
                raise OutputError(
                    f"torch has no storage class for {unsaved.dtype.torch_name} ({unsaved.name})",
                    where=str(self.target),
                    hint="write a .safetensors file",
                )
        facts = self._facts()
        if self.kind is OutputKind.FOLDER:
            written, notes = self._write_folder(facts)
        else:
            written, notes = self._write_file(facts), []
        notes = [*self.plan.notes, *_cast_notes(written), *notes]
        issue_warnings(notes)
        return tuple(written), self.plan._replace(notes=tuple(notes))

    def _facts(self) -> dict[str, Any]:
        first, (ema, raw) = self.checkpoints[0], self.plan.ema_counts
        source: dict[str, Any] = {"name": Path(first.name).name, "size": first.size}
        if self.options.hash_source:
            hashes = [hash_bytes(file) for file in first.sources]
            source["sha256"] = hashes[0] if len(hashes) == 1 else hashes
        return {
            **self.facts,
            "source": source,
            "dtype": self.options.dtype,
            "tensors": len(self.plan.rows),
            "ema": {"ema": ema, "raw": raw},
            "dropped": self.plan.drop_counts(),
        }

    def _write_file(self, facts: dict[str, Any]) -> list[Written]:
        target = self.target
        written = [self._write_weights(target, target, self.plan.rows)]
        beside = target.with_name(target.name + "." + MANIFEST)
        # One that is there would tell of the file before; a name may be too long for one.
        if self.options.manifest or os.path.isfile(beside):  # noqa: PTH113
            _add_fingerprint(facts, written)
            data = dump_manifest(facts, {target.name: written[0].entry(facts["dtype"])})
            replace_small_file(beside, data, durable=self.options.copy.check)
            written.append(Written(beside, len(data), None))
        return written

    def _write_folder(self, facts: dict[str, Any]) -> tuple[list[Written], list[Note]]:
        target, variant, check = self.target, self.options.variant, self.options.copy.check
        assert self.config is not None
        small = {CONFIG: dump_config(self.config)}
        shards = split_rows(self.plan.rows, self.max_shard_size)
        names = [weights_name(variant)]
        if len(shards) > 1:
            names = shard_names(variant, len(shards))
            small[index_name(variant)] = shard_index(names, shards)
        own = {*names, *small}
        stale = frozenset(stale_names(target, variant, own))
        with staged_folder(
            target, overwrite=self.options.overwrite, durable=check, stale=stale
        ) as folder:
            written = [
                self._write_weights(folder / name, target / name, rows)
                for name, rows in zip(names, shards, strict=True)
            ]
            _add_fingerprint(facts, written)
            entries = {file.path.name: file.entry(facts["dtype"]) for file in written}
            for name, data in small.items():
                write_small_file(folder / name, data, durable=check)
                file = Written(target / name, len(data), hashlib.sha256(data).hexdigest())
                written.append(file)
                entries[name] = file.entry()
            kept = kept_files(target, own | stale, facts["source"], check=check)
            data = dump_manifest(facts, {**kept.same, **entries}, kept.others)
            write_small_file(folder / MANIFEST, data, durable=check)
        written.append(Written(target / MANIFEST, len(data), None))
        return written, kept_notes(target, kept, stale)

    def _write_weights(self, place: Path, target: Path, rows: Sequence[Row]) -> Written:
        copy, total = self.options.copy, self.plan.nbytes
        if report := copy.on_progress:
            copy = replace(copy, on_progress=lambda count, _: report(count, total))
        specs = [(row.name, row.dtype, row.shape) for row in rows]
        if self.kind is OutputKind.TORCH_ZIP:
            file = lay_out_torch_zip(specs)
        else:
            file = lay_out_safetensors(specs, self.metadata)
        overwrite = self.options.overwrite or place != target
        with staged_file(place, overwrite=overwrite, durable=copy.check) as fd:
            copied = copy_rows(fd, file, rows, copy, where=str(target))
            for checkpoint in self.checkpoints:
                checkpoint.check_unchanged()
        return Written(target, file.size, *copied)


def _add_fingerprint(facts: dict[str, Any], written: Sequence[Written]) -> None:
    """Add what tells these weights from others, without reading them again."""
    crcs = sorted((name, crc) for file in written for name, crc in file.source_crcs.items())
    if crcs:
        facts["source"]["fingerprint"] = hashlib.sha256(json.dumps(crcs).encode()).hexdigest()


def _cast_notes(written: Sequence[Written]) -> Iterator[Note]:
    losses = {name: loss for file in written for name, loss in file.losses.items()}
    flushed = [loss.flushed for loss in losses.values() if loss.flushed]
    if flushed:
        yield note(
            f"{plural(sum(flushed), 'value')} in {plural(len(flushed), 'tensor')} became zero: "
            "too small for the dtype"
        )
    clamped = {name: loss for name, loss in losses.items() if loss.clamped}
    if clamped:
        worst = max(clamped, key=lambda name: clamped[name].overflow)
        yield warning(
            f"{plural(sum(loss.clamped for loss in clamped.values()), 'value')} in "
            f"{plural(len(clamped), 'tensor')} were clamped: too large for the dtype; the "
            f"largest was {clamped[worst].overflow:g}, in {worst}"
        )
