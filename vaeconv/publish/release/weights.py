"""Steps of a release that write weights and prove them; each calls what its command calls."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.readers.folder import CONFIG, weights_name
from vaeconv.models.open_model import SideOptions
from vaeconv.parity.compare_outputs import Limits
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.report.document import report_document, write_report
from vaeconv.parity.verify import verify
from vaeconv.publish.release.check import is_pickle
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.work import Outcome, Work
from vaeconv.weights.convert import ConvertOptions, convert
from vaeconv.weights.execute import CopyOptions
from vaeconv.weights.manifest import MANIFEST, remove_outputs
from vaeconv.weights.plan import Plan
from vaeconv.weights.prune import prune
from vaeconv.weights.prune_options import PruneOptions


def convert_folder(work: Work) -> Outcome:
    """Write the diffusers folder, one variant after the other."""
    project, written = work.project, []
    manifest = project.diffusers / MANIFEST
    # Before: a manifest names weights that stay beside those that it is about.
    names = [CONFIG, MANIFEST, *(weights_name(variant) for _, variant in project.variants)]
    work.retire(project.diffusers / name for name in names)
    remove_outputs(project.diffusers, [weights_name(variant) for _, variant in project.variants])
    manifest.unlink(missing_ok=True)  # each variant adds to what is there
    for dtype, variant in project.variants:
        done = convert(project.source, project.diffusers, _to_folder(project, dtype, variant))
        written += [one.path for one in done.written]
    variants = [variant for _, variant in project.variants]
    return Outcome(sorted({*written, manifest}), {"folder": "diffusers", "variants": variants})


def _to_folder(project: Project, dtype: str, variant: str | None) -> ConvertOptions:
    source = project.config.source
    return ConvertOptions(
        dtype=dtype,
        variant=variant,
        source_prefix=source.source_prefix,
        copy=CopyOptions(allow_zeros=source.allow_zeros),
        scaling=project.scaling,
        config=project.path(source.config) if source.config else None,
        ema=project.takes_average,
        overwrite=True,
        hash_source=True,
        metadata=project.metadata(Layout.DIFFUSERS),
    )


def write_originals(work: Work) -> Outcome:
    """Write the CompVis files, pruned where the source is in that layout."""
    project = work.project
    written: list[Path] = []
    for target in project.originals:
        _write_original(project, target)
        written += [target, target.with_name(f"{target.name}.{MANIFEST}")]
    return Outcome(written, {"files": [path.name for path in project.originals]})


def _write_original(project: Project, target: Path, *, dry_run: bool = False) -> Plan:
    source, output = project.config.source, project.config.output
    metadata = {} if is_pickle(target.suffix) else project.metadata(Layout.COMPVIS)
    if project.layout is Layout.COMPVIS:
        options = PruneOptions(
            dtype=output.original_dtype,
            ema=project.takes_average,
            vae_only=True,
            source_prefix=source.source_prefix,
            copy=CopyOptions(allow_zeros=source.allow_zeros),
            overwrite=True,
            hash_source=True,
            manifest=True,
            metadata=metadata,
        )
        return prune(project.source, target, options, dry_run=dry_run).plan
    how = ConvertOptions(
        dtype=output.original_dtype,
        source_prefix=source.source_prefix,
        copy=CopyOptions(allow_zeros=source.allow_zeros),
        overwrite=True,
        hash_source=True,
        manifest=True,
        metadata=metadata,
    )
    return convert(project.source, target, how, dry_run=dry_run).plan


def plan_bytes(project: Project) -> int:
    """Plan all files of weights, write none, and tell how many bytes they would have together.

    Raises:
        VaeconvError: One cannot be made; as the step that would make it.
    """
    with TemporaryDirectory() as room:

        def place_of(target: Path) -> Path:
            return target if target.parent.is_dir() else Path(room) / target.name

        folder = place_of(project.diffusers)
        plans = [
            convert(project.source, folder, _to_folder(project, *one), dry_run=True).plan
            for one in project.variants
        ]
        plans += [
            _write_original(project, place_of(target), dry_run=True) for target in project.originals
        ]
    return sum(plan.nbytes for plan in plans)


def prove(work: Work) -> Outcome:
    """Prove each file against the source: the gate of parity."""
    project, reports = work.project, []
    for _, variant in project.variants:
        report = project.report_of(variant)
        # What stands in for another model is the plain variant.
        drop_in = project.place(project.config.verify.drop_in_for) if variant is None else None
        _prove_one(work, project.diffusers, variant, report, drop_in)
        reports.append(report)
    for target in project.originals:
        report = project.report_of(original=target)
        _prove_one(work, target, None, report, None)
        reports.append(report)
    names = [path.relative_to(project.folder).as_posix() for path in reports]
    return Outcome(reports, {"verdict": "passed", "reports": names})


def _prove_one(
    work: Work, target: Path, variant: str | None, report: Path, drop_in: str | None
) -> None:
    project = work.project
    source, table = project.config.source, project.config.verify
    sides: list[tuple[Any, SideOptions]] = [
        (
            project.source,
            SideOptions(source_prefix=source.source_prefix, allow_zeros=source.allow_zeros),
        ),
        (target, SideOptions(variant=variant, allow_zeros=source.allow_zeros)),
    ]
    if drop_in:  # what is published stands in for the other, with the scaling that it has
        sides.reverse()
    result = verify(
        sides[0][0],
        sides[1][0],
        VerifyOptions(
            a=sides[0][1],
            b=sides[1][1],
            scaling=project.scaling,
            config=project.path(source.config) if source.config else None,
            ema=project.takes_average,
            device=table.device,
            dtype=table.dtype,
            limits=Limits(),
            latents=project.path(table.latents) if table.latents else None,
            on_progress=work.on_progress,
        ),
        drop_in_for=drop_in,
    )
    write_report(report, project.publishable("verify", report_document(result)))
    result.check()
