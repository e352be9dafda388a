"""Checks of the values of a release file, alone and together; no other file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from vaeconv.errors import UsageError, VaeconvError
from vaeconv.evaluation.distributed import read_ranks
from vaeconv.evaluation.metric_networks import INCEPTION, LPIPS_HEADS, VGG
from vaeconv.publish.hub.push_options import PushOptions, check_options
from vaeconv.publish.modelspec import source_date
from vaeconv.publish.release.config import (
    EvalTable,
    OutputTable,
    PushTable,
    ReleaseConfig,
    SourceTable,
)
from vaeconv.weights.manifest import MANIFEST
from vaeconv.weights.output_names import KINDS, OutputKind, ending_of, no_path


def check_config(config: ReleaseConfig) -> list[VaeconvError]:
    """List what is wrong with the values of a release file; empty where nothing is."""
    return [
        *_process(),
        *_source(config.source),
        *_output(config.output),
        *_eval(config.eval),
        *_push(config),
        *_date(config),
    ]


def attempt(problems: list[VaeconvError], call: Callable[[], object]) -> None:
    """Do something, and add what it raises to the problems."""
    try:
        call()
    except VaeconvError as error:
        problems.append(error)


def _wrong(table: str, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"[{table}] {what}", hint=hint)


def _process() -> Iterator[VaeconvError]:
    """Refuse to be one of several processes, each of which would make the same release."""
    problems: list[VaeconvError] = []
    ranks = []
    attempt(problems, lambda: ranks.append(read_ranks()))
    yield from problems
    if ranks and ranks[0].world > 1:
        yield UsageError(
            f"a release is made by one process, and WORLD_SIZE is {ranks[0].world}",
            hint="start it without torchrun or accelerate launch",
        )


def _source(table: SourceTable) -> Iterator[UsageError]:
    if table.scaling_factor is None and table.family is None:
        yield _wrong(
            "source",
            "needs scaling_factor or family",
            "a release has to name its scaling; vaeconv inspect shows what the file says of it",
        )


def is_pickle(ending: str) -> bool:
    """Tell if a file with an ending, such as ``.ckpt``, is a torch checkpoint."""
    return KINDS.get(ending.lower()) is OutputKind.TORCH_ZIP


def _output(table: OutputTable) -> Iterator[UsageError]:
    if "://" in table.folder:
        yield _wrong("output", "folder is a folder here, and this is an address")
    if not table.original:
        return
    formats = [one.lstrip(".").lower() for one in table.original_formats]
    if not formats:
        yield _wrong("output", "original needs original_formats")
    if len(set(formats)) != len(formats):
        yield _wrong("output", "original_formats are each once")
    if PurePosixPath(table.original).name != table.original or "\\" in table.original:
        yield _wrong("output", f"original = {table.original!r} is not the name of a file")
    longest = f"{table.original}.{max(formats, key=len, default='')}.{MANIFEST}"
    if reason := no_path(longest):
        yield _wrong("output", f"original, with its ending and .{MANIFEST}, {reason}")
    if ending_of(table.original) in KINDS:
        yield _wrong(
            "output",
            f"original is a name without its ending, and {table.original} has one",
            "endings are listed in original_formats",
        )


def _eval(table: EvalTable) -> Iterator[UsageError]:
    gates = (("min_psnr", table.min_psnr, "psnr"), ("baseline", table.baseline, "rfid"))
    for key, value, metric in gates:
        if value is None:
            continue
        if not table.images:
            yield _wrong("eval", f"{key} needs images")
        elif metric not in table.metrics:
            yield _wrong("eval", f"{key} needs {metric} in metrics")
    networks = (
        ("inception_weights", table.inception_weights, INCEPTION),
        ("vgg_weights", table.vgg_weights, VGG),
        ("lpips_weights", table.lpips_weights, LPIPS_HEADS),
    )
    for key, file, net in networks:
        if file and not table.images:
            yield _wrong("eval", f"{key} needs images")
        elif file and {*table.metrics}.isdisjoint(net.serves):
            yield _wrong("eval", f"{key} needs {' or '.join(net.serves)} in metrics")
    if table.baseline is None and table.max_rfid_regression != 0:
        yield _wrong("eval", "max_rfid_regression needs baseline")


def _push(config: ReleaseConfig) -> Iterator[VaeconvError]:
    table: PushTable = config.push
    if table.original_repo_id and not config.output.original:
        yield _wrong("push", "original_repo_id needs a name in [output] original")
    if table.original_repo_id and not table.repo_id:
        yield _wrong("push", "original_repo_id needs repo_id")
    if table.repo_id and table.repo_id == table.original_repo_id:
        yield _wrong("push", "original_repo_id is another repository than repo_id")
    for repo_id in filter(None, (table.repo_id, table.original_repo_id)):
        problems: list[VaeconvError] = []
        options = PushOptions(revision=table.revision, tag=table.tag)
        attempt(problems, lambda: check_options(repo_id, options))  # noqa: B023 - called at once
        yield from (_wrong("push", one.what, one.hint) for one in problems)


def _date(config: ReleaseConfig) -> Iterator[VaeconvError]:
    """Check the date that headers and bills of materials have."""
    if config.output.modelspec or config.output.sbom:
        problems: list[VaeconvError] = []
        attempt(problems, source_date)
        yield from problems
