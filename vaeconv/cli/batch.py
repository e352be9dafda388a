"""Several prunings by one command: outputs of inputs, and what of the options each can use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vaeconv.cli.output import Sink
from vaeconv.common.wording import plural
from vaeconv.errors import CheckpointNotFoundError, OutputError, UsageError, raise_all
from vaeconv.weights.idle_options import pruning_rules
from vaeconv.weights.options import PruneOptions
from vaeconv.weights.output_names import batch_targets, is_address, output_kind
from vaeconv.weights.prune import Pruning, plan_pruning


def pair(paths: list[str], out_dir: Path | None) -> list[tuple[str, str]]:
    """Tell the output of each input.

    Raises:
        UsageError: One is missing, or two would be the same.
    """
    if out_dir is None:
        if len(paths) != 2:
            raise UsageError(
                f"IN and OUT are needed, but got {plural(len(paths), 'name')}",
                hint="to prune several checkpoints, name a folder with --out-dir",
            )
        return [(paths[0], paths[1])]
    targets = batch_targets(paths, out_dir)
    missing = [one for one in paths if not is_address(one) and not Path(one).exists()]
    raise_all([CheckpointNotFoundError("No such file or directory", where=one) for one in missing])
    if not out_dir.is_dir():
        what = "is not a folder" if out_dir.exists() else "no such folder"
        raise OutputError(what, where=str(out_dir), hint=f"mkdir -p {shlex.quote(str(out_dir))}")
    return targets


def fitting(
    options: PruneOptions, job: tuple[str, str], jobs: Sequence[tuple[str, str]]
) -> PruneOptions:
    """Leave out of one job of several what only others can use, such as the shards of folders."""

    def idle(source: str, target: str) -> set[str]:
        rules = pruning_rules(*output_kind(target), source, options, will_probe=True)
        return {rule.option for rule in rules if rule.is_given and not rule.has_effect}

    everywhere = set(idle(*job)).intersection(*(idle(*one) for one in jobs))
    spare = idle(*job) - everywhere
    fields = {option[2:].replace("-", "_") for option in spare}
    return replace(options, **{name: getattr(type(options)(), name) for name in fields})


def run_one(
    source: str,
    target: str,
    options: PruneOptions,
    sink: Sink,
    *,
    dry_run: bool,
    probe_on: str | None,
) -> Pruning:
    """Prune one checkpoint, probed first where a device is named, and show how far it is."""
    name = Path(source).name
    with (
        sink.progress(f"fetching {name}") as fetching,
        sink.progress(f"pruning {name}") as copying,
    ):
        copy = replace(options.copy, on_progress=copying.advance)
        options = replace(options, copy=copy, on_fetch=fetching.advance)
        with plan_pruning(source, target, options, will_probe=probe_on is not None) as planned:
            checked = planned
            if probe_on is not None:
                from vaeconv.models.probe import probe_decoder

                report = probe_decoder(planned.rows, planned.config, device=probe_on)
                checked = planned.with_probe(report)
            return checked.result if dry_run else checked.write()
