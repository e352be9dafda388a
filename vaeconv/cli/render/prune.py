"""Text of ``vaeconv prune``: the account of one checkpoint, or of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vaeconv.cli.output import Sink, describe_error, print_error, print_notes
from vaeconv.cli.render.convert import (
    config_document,
    files_document,
    output_document,
    row_document,
    row_lines,
)
from vaeconv.cli.screen import Line, Style, Styled, Table
from vaeconv.common.notes import Note
from vaeconv.common.wording import human_size
from vaeconv.errors import VaeconvError
from vaeconv.weights.prune import Pruning

_MEANING = {"replaced": "raw weights (replaced)"}


def pruning_lines(result: Pruning, *, seconds: float, verbose: bool) -> Iterator[Line]:
    """Tell a person what was kept and dropped, or would be."""
    verb = "pruned" if result.written else "would prune"
    time = f", in {seconds:.2f} s" if result.written else ""
    yield Styled(
        f"{verb} {result.source} ({result.container}, {human_size(result.size)}) "
        f"to {result.output} (weights {human_size(result.plan.nbytes)}){time}",
        Style.STRONG,
        len(verb),
    )
    yield _account(result)
    if result.probe:
        yield f"  probe: {result.probe.describe()}"
    yield from row_lines(result, verbose=verbose)


def print_batch(
    jobs: Sequence[tuple[str, str]],
    run: Callable[[str, str], Pruning],
    sink: Sink,
) -> int:
    """Prune one checkpoint after the other; one that fails doesn't stop the rest.

    Returns:
        The exit code of the worst.
    """
    done: list[tuple[str, Pruning | VaeconvError]] = []
    for source, target in jobs:
        try:
            result = run(source, target)
        except VaeconvError as error:
            done.append((source, error))
            if not sink.json:
                print_error(error.text)
            continue
        done.append((source, result))
        if sink.is_shown:
            print_notes(Note(note.level, f"{source}: {note.text}") for note in result.plan.notes)
    codes = [result.exit_code for _, result in done if isinstance(result, VaeconvError)]
    sink.show(
        "prune",
        lambda: {"ok": not codes, "results": [_document(*pair) for pair in done]},
        lambda: [_batch_table(done)],
    )
    return max(codes, default=0)


def _document(source: str, result: Pruning | VaeconvError) -> dict[str, Any]:
    """Describe one of several prunings, or why there was none."""
    if isinstance(result, VaeconvError):
        return {"ok": False, "source": {"name": source}, "error": describe_error(result)}
    return {"ok": True, **pruning_document(result)}


def pruning_document(result: Pruning) -> dict[str, Any]:
    """Describe a pruning for machines."""
    document: dict[str, Any] = {
        "dry_run": not result.written,
        "source": {"name": result.source, "container": result.container, "bytes": result.size},
        **output_document(result),
        "groups": [
            {"name": group.name, "kept": group.is_kept, "tensors": group.tensors,
             "bytes_before": group.before, "bytes_after": group.after}
            for group in result.groups
        ],
        **config_document(result),
        "probe": result.probe.document() if result.probe else None,
        **files_document(result),
    }  # fmt: skip
    if not result.written:
        document["rows"] = [{**row_document(row), "is_ema": row.is_ema} for row in result.plan.rows]
    return document


def _account(result: Pruning) -> Table:
    rows = [
        (
            "keep" if group.is_kept else "drop",
            _MEANING.get(group.name, group.name),
            f"{group.tensors}",
            human_size(group.before),
            human_size(group.after) if group.is_kept else "-",
        )
        for group in result.groups
    ]
    return Table(("", "part", "tensors", "before", "after"), rows, left=2)


def _batch_table(done: Iterable[tuple[str, Pruning | VaeconvError]]) -> Table:
    rows = []
    for source, result in done:
        if isinstance(result, VaeconvError):
            rows.append((source, "-", "-", f"failed ({result.exit_code}): {result.what}"))
        else:
            sizes = human_size(result.size), human_size(result.plan.nbytes)
            rows.append((source, *sizes, str(result.output)))
    return Table(("checkpoint", "before", "after", "result"), rows, last_left=True)
