"""``vaeconv prune``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeconv.cli.options import (
    AllowNonfinite,
    AllowZeros,
    Check,
    Clamp,
    Device,
    Download,
    DryRun,
    DTypeChoice,
    HashSource,
    Json,
    Manifest,
    Metadata,
    NoMetadata,
    Overwrite,
    Quiet,
    Salvage,
    SourcePrefix,
    Variant,
    Verbose,
    parse_metadata,
    parse_size,
    with_dot,
)
from vaeconv.parts import Part

if TYPE_CHECKING:
    from vaeconv.plan import Row
    from vaeconv.prune_options import Probe, Probed, PruneOptions
    from vaeconv.pruning import Pruning

PARTS, PROBE = "Parts", "Probe"


def prune(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="IN OUT",
            help="The checkpoint, as for convert, and the file to write; a folder where IN is a "
            "diffusers folder. With --out-dir any number of checkpoints.",
            show_default=False,
        ),
    ],
    ema: Annotated[
        bool,
        typer.Option(
            "--ema/--no-ema",
            help="Put EMA weights in place of the raw ones where a tensor has them.",
        ),
    ] = False,
    dtype: Annotated[
        DTypeChoice,
        typer.Option(
            help="Cast parameters. Noise schedules, scales of quantised weights, statistics and "
            "integers stay."
        ),
    ] = DTypeChoice.FP16,
    fp16_except: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            show_default=False,
            help="Keys that keep their dtype, such as 'decoder.conv_out.*'; repeatable.",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Prune several checkpoints into this folder."
        ),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    manifest: Manifest = False,
    metadata: Metadata = None,
    no_metadata: NoMetadata = False,
    variant: Variant = None,
    max_shard_size: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            show_default=False,
            parser=parse_size,
            help="Cut a folder's weights into files of at most this size, such as 500MB.",
        ),
    ] = None,
    vae_only: Annotated[
        bool,
        typer.Option(
            "--vae-only",
            rich_help_panel=PARTS,
            help="Keep the autoencoder alone, without its prefix.",
        ),
    ] = False,
    keep: Annotated[
        list[Part] | None,
        typer.Option(
            rich_help_panel=PARTS,
            show_default=False,
            help="Keep a part that is dropped by default (loss), or by --vae-only; repeatable.",
        ),
    ] = None,
    drop: Annotated[
        list[Part] | None,
        typer.Option(rich_help_panel=PARTS, show_default=False, help="Drop a part; repeatable."),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=PARTS,
            show_default=False,
            help="Put this autoencoder, of any layout, in place of the one in a full checkpoint.",
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            rich_help_panel=PARTS,
            show_default=False,
            help="What the autoencoder's keys begin with in OUT; by default what they do in IN, "
            "and where it has none what they do in its kind, such as vae. beside FLUX.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            rich_help_panel=PROBE,
            help="Decode a latent in fp16 and fp32 first, report the largest activation, and set "
            "force_upcast in a folder's config by it. Imports torch.",
        ),
    ] = False,
    require_fp16_decode: Annotated[
        bool,
        typer.Option(
            "--require-fp16-decode",
            rich_help_panel=PROBE,
            help="Probe, and end with exit code 4 where fp16 decoding is not finite.",
        ),
    ] = False,
    device: Device = "auto",
    check: Check = True,
    allow_nonfinite: AllowNonfinite = False,
    allow_zeros: AllowZeros = False,
    clamp: Clamp = False,
    hash_source: HashSource = False,
    source_prefix: SourcePrefix = None,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a checkpoint again with only what inference needs, in fp16.

    Layout and names stay. Optimizer, callbacks, loss and EMA are left out; --ema folds the EMA
    over the raw weights first. Of a full checkpoint everything but those is kept.

    Examples:

        vaeconv prune --ema last.ckpt vae.safetensors

        vaeconv prune --ema --dtype bf16 v1-5-full.ckpt v1-5-ema.safetensors

        vaeconv prune --vae-only v1-5-full.ckpt vae.safetensors

        vaeconv prune --vae out/ v1-5-full.ckpt v1-5-new-vae.safetensors

        vaeconv prune --ema --out-dir pruned/ a.ckpt b.ckpt c.ckpt
    """  # fmt: skip
    from vaeconv.cli.pruned import print_batch, print_single
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.executor import CopyOptions
    from vaeconv.prune_options import PruneOptions

    has_probe = probe or require_fp16_decode
    refuse_idle([Rule("--device", device != "auto", has_probe, "only --probe computes")])
    jobs = _pair(paths, out_dir)
    options = PruneOptions(
        dtype=dtype.value,
        fp16_except=tuple(fp16_except or ()),
        ema=ema,
        vae_only=vae_only,
        keep=frozenset(keep or ()),
        drop=frozenset(drop or ()),
        vae=vae,
        prefix=None if prefix is None else with_dot(prefix) or "",
        source_prefix=with_dot(source_prefix),
        variant=variant,
        max_shard_size=max_shard_size,
        salvage=salvage,
        download=download,
        overwrite=overwrite,
        hash_source=hash_source,
        manifest=manifest,
        metadata=parse_metadata(metadata),
        keep_metadata=not no_metadata,
        probe=_make_probe(device) if has_probe else None,
        require_fp16=require_fp16_decode,
        copy=CopyOptions(
            check=check, allow_nonfinite=allow_nonfinite, allow_zeros=allow_zeros, clamp=clamp
        ),
    )
    shown = not (quiet or json)
    if out_dir is None:
        ((source, target),) = jobs
        started = time.monotonic()
        result = _run(source, target, options, dry_run=dry_run, shown=shown)
        seconds = time.monotonic() - started
        print_single(result, json=json, quiet=quiet, verbose=verbose, seconds=seconds)
        return
    code = print_batch(
        jobs,
        lambda source, target: _run(
            source, target, _fitting(options, (source, target), jobs), dry_run=dry_run, shown=shown
        ),
        json=json,
        quiet=quiet,
    )
    raise typer.Exit(code)


def _run(source: str, target: str, options: PruneOptions, *, dry_run: bool, shown: bool) -> Pruning:
    from vaeconv.cli.progress import ByteProgress
    from vaeconv.pruning import prune

    name = Path(source).name
    with (
        ByteProgress(f"fetching {name}", enabled=shown) as fetching,
        ByteProgress(f"pruning {name}", enabled=shown) as copying,
    ):
        copy = options.copy._replace(on_progress=copying.advance)
        options = replace(options, copy=copy, on_fetch=fetching.advance)
        return prune(source, target, options, dry_run=dry_run)


def _fitting(
    options: PruneOptions, job: tuple[str, str], jobs: Sequence[tuple[str, str]]
) -> PruneOptions:
    """Leave out of one job of several what only others can use, such as the shards of folders."""
    from vaeconv.names import output_kind

    def idle(source: str, target: str) -> set[str]:
        rules = options.rules(*output_kind(target), source)
        return {rule.option for rule in rules if rule.is_given and not rule.has_effect}

    everywhere = set(idle(*job)).intersection(*(idle(*one) for one in jobs))
    spare = idle(*job) - everywhere
    fields = {option[2:].replace("-", "_") for option in spare}
    return replace(options, **{name: getattr(type(options)(), name) for name in fields})


def _make_probe(device: str) -> Probe:
    def probe(rows: Sequence[Row], config: Mapping[str, Any]) -> Probed:
        from vaeconv.parity.probe import probe_decoder

        return probe_decoder(rows, config, device=device)

    return probe


def _pair(paths: list[str], out_dir: Path | None) -> list[tuple[str, str]]:
    """Tell the output of each input.

    Raises:
        UsageError: One is missing, or two would be the same.
    """
    from vaeconv.errors import CheckpointNotFoundError, OutputError, UsageError, raise_all
    from vaeconv.names import batch_targets, is_address

    if out_dir is None:
        if len(paths) != 2:
            raise UsageError(
                f"IN and OUT are needed, and there are {len(paths)} names",
                hint="to prune several checkpoints, name a folder with --out-dir",
            )
        return [(paths[0], paths[1])]
    targets = batch_targets(paths, out_dir)
    missing = [one for one in paths if not is_address(one) and not Path(one).exists()]
    raise_all([CheckpointNotFoundError("No such file or directory", where=one) for one in missing])
    if not out_dir.is_dir():
        raise OutputError("is not a folder", where=str(out_dir), hint=f"mkdir -p '{out_dir}'")
    return targets
