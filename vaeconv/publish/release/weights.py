"""Files of weights of a release: how each is written, and what it would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vaeconv.autoencoder.topology import Layout
from vaeconv.publish.release.project import Project
from vaeconv.weights.convert import Conversion, convert
from vaeconv.weights.options import ConvertOptions, CopyOptions, PruneOptions
from vaeconv.weights.output_names import KINDS, OutputKind
from vaeconv.weights.plan import Plan
from vaeconv.weights.prune import prune


def plans(project: Project, place_of: Callable[[Path], Path]) -> Iterator[Plan]:
    """Plan all files of weights, and write none.

    Args:
        project: The release.
        place_of: Gives the place that a file or folder is planned for.

    Raises:
        VaeconvError: One cannot be made; as the step that would make it.
    """
    folder = place_of(project.diffusers)
    for dtype, variant in project.variants:
        yield write_variant(project, folder, dtype, variant, dry_run=True).plan
    for target in project.originals:
        yield write_original(project, place_of(target), dry_run=True)


def write_variant(
    project: Project, folder: Path, dtype: str, variant: str | None, *, dry_run: bool = False
) -> Conversion:
    """Write weights in a dtype, and the config, into a diffusers folder."""
    options = ConvertOptions(
        dtype=dtype,
        variant=variant,
        scaling=project.scaling,
        config=project.path(project.config.source.config),
        ema=project.takes_ema,
        metadata=project.metadata(Layout.DIFFUSERS),
        **_common(project),
    )
    return convert(project.source, folder, options, dry_run=dry_run)


def write_original(project: Project, target: Path, *, dry_run: bool = False) -> Plan:
    """Write a CompVis file, pruned where the source is in that layout."""
    is_pickle = KINDS[target.suffix] is OutputKind.TORCH_ZIP
    how = {
        "dtype": project.config.output.original_dtype,
        "manifest": True,
        "metadata": {} if is_pickle else project.metadata(Layout.COMPVIS),
        **_common(project),
    }
    if project.detected.autoencoder.layout is Layout.COMPVIS:
        pruning = PruneOptions(ema=project.takes_ema, vae_only=True, **how)
        return prune(project.source, target, pruning, dry_run=dry_run).plan
    return convert(project.source, target, ConvertOptions(**how), dry_run=dry_run).plan


def _common(project: Project) -> dict[str, Any]:
    source = project.config.source
    return {
        "source_prefix": source.source_prefix,
        "copy": CopyOptions(allow_zeros=source.allow_zeros),
        "overwrite": True,
        "hash_source": True,
    }
