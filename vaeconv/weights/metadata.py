"""Entries of a safetensors header: which of a source's stay true of what is made from it.

A licence, a title, merge recipes, how a model was trained: whoever wrote them into a header wants
them to go where the weights go. What tells of the old file's bytes or of parts that are gone does
not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vaeconv.autoencoder.match import DropReason
from vaeconv.common.notes import Note, note, warning
from vaeconv.errors import UsageError, listed
from vaeconv.weights.options import ConvertOptions, PruneOptions
from vaeconv.weights.output_names import OutputKind
from vaeconv.weights.plan import Plan

FORMAT = "format"  # how tensors are to be loaded; written by the layout of the file itself
# Readers refuse headers of some 100 MB, vaeconv ones of 32 MiB; names of tensors need space, too.
_MAX_BYTES = 16 << 20


# Entries that no longer hold; those of ModelSpec 1.0.1 and of sd-scripts, and what others call so.
_OF_BYTES = re.compile(
    r"modelspec\.hash_\w+|sshs_\w+_hash|(?:.*[._])?(?:sha256|md5|crc32|blake3|autov[123])"
    r"|(?:model_|file_)?hash|(?:total_|file_)?size|total_parameters"
)
_OF_DTYPES = re.compile(r"(?!ss_)(?:.*[._])?(?:dtype|precision)")
_OF_NAMES = re.compile(r"modelspec\.implementation(?:_version)?")
_OF_THE_MODEL = re.compile(
    r"(?:modelspec\.)?(?:architecture|implementation(?:_version)?|prediction_type|resolution"
    r"|trigger_phrase|usage_hint|timestep_range|encoder_layer|thumbnail|preprocessor"
    r"|is_negative_embedding)|_quantization_metadata"
)


def make_header(
    source: Mapping[str, str],
    options: ConvertOptions | PruneOptions,
    kind: OutputKind,
    plan: Plan,
    *,
    is_renamed: bool,
) -> tuple[Mapping[str, str], list[Note]]:
    """Decide what the header of an output holds: what stays true of the source's, and the wanted.

    Args:
        source: The source's own entries.
        options: What is wanted; it wins.
        kind: The output's container.
        plan: What is written; tells by how much it differs from the source.
        is_renamed: Whether tensors have names of another codebase.

    Returns:
        The entries beside ``format``, and what of the source's is left out, with the reason.

    Raises:
        UsageError: The output cannot have what is wanted.
    """
    wanted = options.metadata
    _check_entries(wanted)
    own = {key: text for key, text in source.items() if key != FORMAT}
    if not options.keep_metadata:
        own = {}
    if kind is OutputKind.TORCH_ZIP:
        if wanted:
            raise UsageError(
                "a checkpoint has no header for metadata", hint="write a .safetensors file"
            )
        text = (
            f"left out, as a pickle checkpoint has no header: the metadata "
            f"{listed(sorted(own), 5)}; a .safetensors file keeps it, and with --no-metadata this "
            "warning is not shown"
        )
        return {}, [warning(text)] if own else []
    is_cast = any(row.is_cast for row in plan.rows)
    is_part = DropReason.UNET in plan.dropped.values()
    patterns = [_OF_BYTES, *[_OF_DTYPES] * is_cast, *[_OF_NAMES] * is_renamed]
    patterns += [_OF_THE_MODEL] * is_part
    untrue = [
        key for key in own
        if key not in wanted and any(pattern.fullmatch(key) for pattern in patterns)
    ]  # fmt: skip
    kept = {key: text for key, text in own.items() if key not in untrue}
    large = _too_large(kept)
    notes = []
    if untrue:
        text = listed(sorted(untrue), 5)
        notes.append(note(f"left out, as true of the old file only: the metadata {text}"))
    if large:
        notes.append(warning(f"left out, as too large: the metadata {listed(large, 5)}"))
    return {**{key: text for key, text in kept.items() if key not in large}, **wanted}, notes


def _check_entries(wanted: Mapping[str, str]) -> None:
    if FORMAT in wanted:
        raise UsageError("the metadata entry format says how tensors are to be loaded: pt")
    for key, text in wanted.items():
        try:
            (key + text).encode()
        except (TypeError, UnicodeEncodeError) as error:
            raise UsageError(f"the metadata entry {key!r} is not UTF-8 text") from error


def _too_large(entries: Mapping[str, str]) -> list[str]:
    """Name the largest entries, as far as all of them together are too many bytes."""
    sizes = sorted((len((key + text).encode()), key) for key, text in entries.items())
    total, large = 0, []
    for size, key in sizes:
        total += size
        if total > _MAX_BYTES:
            large.append(key)
    return large
