"""Checks of the values of a release file, alone and together; no other file is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from vaeconv.errors import UsageError, VaeconvError
from vaeconv.evaluation.distributed import read_world
from vaeconv.publish.hub.push_options import PushOptions, check_options
from vaeconv.publish.modelspec import source_date
from vaeconv.publish.release.config import EvalTable, OutputTable, ReleaseConfig
from vaeconv.weights.manifest import MANIFEST
from vaeconv.weights.output_names import KINDS, ending_of, no_path

_Rule = tuple[bool, str, str | None]  # whether it is broken, what is wrong then, and a hint


def check_config(config: ReleaseConfig) -> list[VaeconvError]:
    """List what is wrong with the values of a release file; empty where nothing is."""
    problems: list[VaeconvError] = []
    with noted(problems):
        _check_process()
    problems += [
        UsageError(what, hint=hint) for is_broken, what, hint in _rules(config) if is_broken
    ]
    push = config.push
    for repo_id in filter(None, (push.repo_id, push.original_repo_id)):
        with noted(problems, "[push] "):
            check_options(repo_id, PushOptions(revision=push.revision, tag=push.tag))
    if config.output.modelspec or config.output.sbom:  # which have a date
        with noted(problems):
            source_date()
    return problems


@contextmanager
def noted(problems: list[VaeconvError], head: str = "") -> Iterator[None]:
    """Add what is raised inside the block to the problems; the head goes before what is wrong."""
    try:
        yield
    except VaeconvError as error:
        problems.append(UsageError(head + error.what, hint=error.hint) if head else error)


def _check_process() -> None:
    """Refuse to be one of several processes, each of which would make the same release."""
    world_size = read_world().size
    if world_size > 1:
        raise UsageError(
            f"a release is made by one process, and WORLD_SIZE is {world_size}",
            hint="start it without torchrun or accelerate launch",
        )


def _rules(config: ReleaseConfig) -> Iterator[_Rule]:
    source, output, push = config.source, config.output, config.push
    yield (
        source.scaling_factor is None and source.family is None,
        "[source] needs scaling_factor or family",
        "a release has to name its scaling; vaeconv inspect shows what the file says of it",
    )
    is_address = "://" in output.folder
    yield is_address, "[output] folder is a folder here, and this is an address", None
    if output.original:
        yield from _original_rules(output)
    yield from _eval_rules(config.eval)
    if original := push.original_repo_id:
        what = "[push] original_repo_id"
        yield not output.original, f"{what} needs a name in [output] original", None
        yield not push.repo_id, f"{what} needs repo_id", None
        yield original == push.repo_id, f"{what} is another repository than repo_id", None


def _original_rules(table: OutputTable) -> Iterator[_Rule]:
    name, what = table.original, "[output] original"
    formats = [one.lstrip(".").lower() for one in table.original_formats]
    yield not formats, f"{what} needs original_formats", None
    yield len(set(formats)) != len(formats), "[output] original_formats are each once", None
    is_path = PurePosixPath(name).name != name or "\\" in name
    yield is_path, f"{what} = {name!r} is not the name of a file", None
    reason = no_path(f"{name}.{max(formats, key=len, default='')}.{MANIFEST}")
    yield reason is not None, f"{what}, with its ending and .{MANIFEST}, {reason}", None
    yield (
        ending_of(name) in KINDS,
        f"{what} is a name without its ending, and {name} has one",
        "endings are listed in original_formats",
    )


def _eval_rules(table: EvalTable) -> Iterator[_Rule]:
    """List rules of keys that need images, and one of several metrics."""
    needs: list[tuple[str, object, tuple[str, ...]]] = [
        ("min_psnr", table.min_psnr, ("psnr",)),
        ("baseline", table.baseline, ("rfid",)),
        *((key, file or None, network.serves) for key, network, file in table.networks()),
    ]
    for key, value, metrics in needs:
        if value is not None:
            yield not table.images, f"[eval] {key} needs images", None
            is_idle = bool(table.images) and {*table.metrics}.isdisjoint(metrics)
            yield is_idle, f"[eval] {key} needs {' or '.join(metrics)} in metrics", None
    is_idle = table.baseline is None and table.max_rfid_regression != 0
    yield is_idle, "[eval] max_rfid_regression needs baseline", None
