"""``vaeconv prune``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeconv.cli.declare import declare
from vaeconv.cli.sink import Sink
from vaeconv.option_docs import Device, Doc, DryRun
from vaeconv.prune_options import PROBE, Probe, Probed, PruneOptions

if TYPE_CHECKING:
    from vaeconv.plan import Row
    from vaeconv.pruning import Pruning

Paths = Annotated[
    list[str],
    Doc(
        "Checkpoint to read, as for convert, and file to write; a folder where the checkpoint is a "
        "diffusers folder. With --out-dir any number of checkpoints.",
        "IN OUT",
    ),
]


@declare
def prune(
    paths: Paths,
    options: PruneOptions,
    sink: Sink,
    out_dir: Annotated[Path | None, Doc("Folder to prune several checkpoints into.", "DIR")] = None,
    dry_run: DryRun = False,
    probe: Annotated[
        bool,
        Doc(
            "First decode a latent in fp16 and fp32, report the largest activation, and set "
            "force_upcast in a folder's config accordingly. Imports torch.",
            panel=PROBE,
        ),
    ] = False,
    device: Device = "auto",
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
    """
    from vaeconv.cli.pruned import print_batch, print_single
    from vaeconv.effects import Rule, refuse_idle

    has_probe = probe or options.require_fp16
    refuse_idle([Rule("--device", device != "auto", has_probe, "only --probe computes")])
    jobs = _pair(paths, out_dir)
    options = replace(options, probe=_make_probe(device) if has_probe else None)
    if out_dir is None:
        ((source, target),) = jobs
        started = time.monotonic()
        result = _run(source, target, options, sink, dry_run=dry_run)
        print_single(result, sink, seconds=time.monotonic() - started)
        return
    code = print_batch(
        jobs,
        lambda source, target: _run(
            source, target, _fitting(options, (source, target), jobs), sink, dry_run=dry_run
        ),
        sink,
    )
    raise typer.Exit(code)


def _run(source: str, target: str, options: PruneOptions, sink: Sink, *, dry_run: bool) -> Pruning:
    from vaeconv.pruning import prune

    name = Path(source).name
    with (
        sink.progress(f"fetching {name}") as fetching,
        sink.progress(f"pruning {name}") as copying,
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
