"""Commands that usually follow another one, told where people look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaeconv.publish.card.meta import CardMeta
    from vaeconv.weights.convert import Conversion
    from vaeconv.weights.options import ConvertOptions, PruneOptions
    from vaeconv.weights.prune import Pruning

Words = tuple[object, ...]
NOTHING: Words = ()


def after_conversion(result: Conversion, output: str, options: ConvertOptions) -> Words:
    """Prove that the output is the same autoencoder; nothing where it need not be."""
    if not result.written or options.drop or _differs(options):
        return NOTHING
    scaling = options.scaling
    known = _flags(
        family=scaling.family,
        scaling_factor=scaling.scaling_factor,
        shift_factor=scaling.shift_factor,
        config=options.config,
    )
    return _verification(result, output, options, known)


def after_pruning(result: Pruning, output: str, options: PruneOptions) -> Words:
    """Prove that what was kept is the same autoencoder."""
    if not result.written or result.layout is None or options.vae or _differs(options):
        return NOTHING
    return _verification(result, output, options)


def _verification(
    result: Conversion | Pruning,
    output: str,
    options: ConvertOptions | PruneOptions,
    known: Sequence[object] = (),
) -> Words:
    is_folder = result.config is not None  # whose variant the options name, else the source's
    flags = _flags(
        ema=options.ema,
        variant_a=None if is_folder else options.variant,
        variant_b=options.variant if is_folder else None,
        allow_zeros=options.copy.allow_zeros,
        salvage=options.salvage,
    )
    return "verify", *flags, *known, result.source, output


def into_card(models: Iterable[str | None], flag: str, file: Path | None) -> Words:
    """Put a file into the card of the first model that is a folder, such as is published."""
    folder = next((one for one in models if one and Path(one).is_dir()), None)
    return ("card", folder, flag, file) if folder and file else NOTHING


def after_card(folder: Path, meta: CardMeta) -> Words:
    """Look at what would be published."""
    return "push", folder, meta.repo_id or "OWNER/NAME", "--dry-run"


def _differs(options: ConvertOptions | PruneOptions) -> bool:
    """Tell if the output may differ on purpose, or is of one among several autoencoders."""
    copy = options.copy
    return bool(copy.clamp or copy.allow_nonfinite or options.source_prefix)


def _flags(**given: Any) -> list[object]:
    words: list[object] = []
    for name, value in given.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return words
