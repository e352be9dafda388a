"""Files of ``vaeconv eval``: what may be replaced, and earlier results that are read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.writers.writable import check_writable
from vaeconv.cli.output import print_notes
from vaeconv.cli.render.eval import table_lines
from vaeconv.common.notes import note
from vaeconv.errors import InputError, OutputExistsError
from vaeconv.evaluation.partial_results import read_digest
from vaeconv.evaluation.tables import format_latex, format_markdown, identity_of
from vaeconv.publish.documents import MAX_REPORT, read_document
from vaeconv.weights.output_names import check_ending


def parts_of(out: Path) -> Path:
    """Name the folder of progress that lies beside a result."""
    return out.with_name(out.name + ".parts")


def check_result(out: Path, parts: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, unless it is the result of the run whose progress lies beside it.

    Whether that run is the one that is asked for shows when its models are open.

    Raises:
        OutputExistsError: Something else is there, and may not be replaced.
        OutputError: It cannot be written.
    """
    check_writable(out)
    if out.exists() and not overwrite and not _belongs(out, parts):
        raise another_result(out)


def another_result(out: Path) -> OutputExistsError:
    """Return the error of an output that another run wrote."""
    return OutputExistsError(
        "exists, and is not the result of this run", where=str(out), hint="--overwrite replaces it"
    )


def _belongs(out: Path, parts: Path) -> bool:
    """Tell whether a file is the result of the run that left progress in a folder."""
    try:
        document = json.loads(read_text_file(out, MAX_REPORT))
        named = document.get("run_sha256")
    except (InputError, ValueError, AttributeError, RecursionError):
        return False
    return named is not None and named == read_digest(parts)


def may_discard(out: Path, parts: Path, restart: bool, overwrite: bool) -> bool:
    """Tell whether another run's progress may go.

    It may where that was asked for, and with its own result, which --overwrite replaces.
    """
    if not out.exists():
        return restart
    return overwrite and (restart or _belongs(out, parts))


def check_page(page: Path, *, overwrite: bool) -> None:
    """Check before the work that a page can be written, and replaces nothing unasked.

    Raises:
        OutputError: It cannot be written, or something is there.
        UsageError: Its name ends in something else than a page's.
    """
    check_ending(page, (".html", ".htm"), "a page")
    check_writable(page)
    if page.exists() and not overwrite:
        raise OutputExistsError("exists", where=str(page), hint="--overwrite replaces it")


@contextmanager
def read_as_result(path: Path) -> Iterator[None]:
    """Say of a file that fails to be used as a result that it is none.

    Raises:
        InputError: The block could not use it.
    """
    try:
        yield
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        raise InputError(f"not a result of vaeconv eval ({error!r})", where=str(path)) from error


def read_result(path: Path) -> dict[str, Any]:
    """Read an earlier result.

    Raises:
        InputError: It is none.
    """
    with read_as_result(path):
        document = read_document(path, "eval")
        for make in (table_lines, format_markdown, format_latex):
            make([document])
        is_old = identity_of(document) is None
    if is_old:
        print_notes(
            [
                note(
                    f"{path} knows its images by names and sizes only, so it gets a table of its "
                    "own; measure again to compare"
                )
            ]
        )
    return dict(document)
