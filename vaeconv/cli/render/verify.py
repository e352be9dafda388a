"""Text and reports of ``vaeconv verify``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.checkpoint.readers.folder import CONFIG, STEM
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import check_writable
from vaeconv.cli.following import NOTHING, Words
from vaeconv.cli.output import Sink
from vaeconv.cli.screen import Line, Style, Styled, Table
from vaeconv.common.option_docs import REPORTS, Doc
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import CheckFailedError, OutputError, OutputExistsError
from vaeconv.parity.compare_outputs import by_kind
from vaeconv.parity.compare_weights import Match
from vaeconv.parity.report.ci import annotation, append_summary, check_summary, junit
from vaeconv.parity.report.document import report_document, write_report
from vaeconv.parity.report.tables import distance_table, weight_table, worst_table
from vaeconv.publish.places import hide_places, hide_places_in_text
from vaeconv.weights.output_names import check_ending

if TYPE_CHECKING:
    from vaeconv.parity.compare_outputs import Decoded
    from vaeconv.parity.result import Comparison, ModelFacts, Verification

_HEAD = 1 << 16  # bytes in which a report says what it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Files to write beside the verdict."""

    report: Annotated[Path | None, Doc("JSON report to write.", "FILE", REPORTS)] = None
    pictures: Annotated[
        Path | None,
        Doc(
            "Folder to write a PNG into for each latent: A, B, and their difference amplified.",
            "DIR",
            REPORTS,
        ),
    ] = None
    html: Annotated[
        Path | None,
        Doc("HTML page to write, with all of it; it needs no network.", "FILE", REPORTS),
    ] = None
    junit: Annotated[Path | None, Doc("JUnit XML to write.", "FILE", REPORTS)] = None

    def check(self, sources: Sequence[str]) -> None:
        """Check before the work that they can be written, and are none of the files compared.

        Raises:
            OutputError: A folder is not there, or a report would replace weights or their config.
            UsageError: A name ends in something else than what is written.
        """
        outputs = (
            (self.report, (".json",), "a report"),
            (self.html, (".html", ".htm"), "a page"),
            (self.junit, (".xml",), "JUnit XML"),
            (self.pictures, (), "--pictures"),
        )
        wanted = [(path, endings, what) for path, endings, what in outputs if path is not None]
        for path, endings, what in wanted:
            check_ending(path, endings, what)
        files = list(_files_of(sources))
        for path, endings, _ in wanted:
            check_writable(path, is_folder=not endings)
            if path.exists() and any(path.samefile(file) for file in files):
                raise OutputError(
                    "is one of the files compared", where=str(path), hint="write to another place"
                )
            if endings and path.exists() and not _is_report(path):
                raise OutputExistsError(
                    "exists, and is no report of vaeconv verify",
                    where=str(path),
                    hint="remove it, or name another",
                )
        check_summary()

    def write(
        self, result: Verification, document: dict[str, Any], decoded: Sequence[Decoded]
    ) -> list[Path]:
        """Write them all; they may be published, and name no folders of this machine.

        Raises:
            OutputError: One cannot be written.
        """

        def write_text(path: Path, text: str) -> None:
            text = hide_places_in_text(text, known=[model.name for model in result.models])
            replace_small_file(path, text.encode(), durable=False)

        pictures: list[Path] = []
        if self.report:
            write_report(self.report, hide_places(document))
        if self.junit:
            write_text(self.junit, junit(result).decode())
        if self.pictures:
            from vaeconv.parity.report.panels import write_images

            pictures = write_images(self.pictures, decoded, result.labels)
        if self.html:
            from vaeconv.parity.report.page import make_page

            write_text(self.html, make_page(result, decoded))
        return [path for path in (self.report, self.junit, *pictures, self.html) if path]


def _files_of(sources: Sequence[str]) -> Iterator[Path]:
    """List the local files that models consist of."""
    for source in map(Path, sources):
        if source.is_file():
            yield source
        for folder in (source, source / "vae"):
            if folder.is_dir():
                yield from folder.glob(f"{STEM}*")
                yield from folder.glob(CONFIG)


def _is_report(path: Path) -> bool:
    """Whether an earlier run wrote a file, so that it may be replaced; an empty one may be, too."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    marks = [b"(vaeconv verify)</title>", b'<testsuite name="vaeconv verify"']
    if path.suffix == ".json":
        marks = [b'"command": "verify"']
    return not head.strip() or any(mark in head for mark in marks)


def publish_result(
    result: Verification,
    outputs: Outputs,
    decoded: Sequence[Decoded],
    sink: Sink,
    *,
    then: Words = NOTHING,
) -> None:
    """Print a verification, write what was asked for, and raise where it failed.

    Raises:
        CheckFailedError: The verdict is no.
        OutputError: A file cannot be written.
    """
    failure = None
    try:
        result.check()
    except CheckFailedError as error:
        failure = error
    document = report_document(result)
    envelope = {"schema_version": 1, "command": "verify", **document}
    written = outputs.write(result, envelope, decoded)
    append_summary(result)
    if failure:
        said = annotation("\n".join([failure.text, *failure.details]))
        if said:
            sys.stderr.write(said + "\n")
        if sink.is_shown:
            failure.details = ()  # the verdict lists them
    sink.show(
        "verify",
        lambda: document,
        lambda: [*_lines(result, verbose=sink.verbose), *(f"wrote {path}" for path in written)],
        notes=result.notes,
        failure=failure,
        then=then,
    )


def _lines(result: Verification, *, verbose: bool) -> Iterator[Line]:
    """Tell a person the verdict, what it rests on, and what is open."""
    for comparison in result.comparisons:
        style = Style.DOUBTFUL if comparison.unproven else Style.GOOD
        style = Style.BAD if comparison.problems else style
        yield Styled(f"{comparison.outcome}: {comparison.judgement}", style)
        yield from (f"  {problem}" for problem in comparison.problems)
        yield from (f"  {text}" for text in _proved(comparison))
        if not comparison.problems:
            yield from (f"  not proved: {reason}" for reason in comparison.unproven)
    yield ""
    yield from map(_model_line, result.models)
    yield from ("", Table(*weight_table(result.comparisons), left=2))
    for comparison in result.comparisons:
        if comparison.outcomes:
            cells = (distance_table if verbose else worst_table)(comparison)
            yield from ("", Table(*cells, left=2 if verbose else 3, last_left=True))
    if result.references:
        yield from ("", f"references: {result.references.source}")
    if verbose:
        yield from (f"  {name}: {value}" for name, value in result.environment.items())
        yield from (f"  {step}: {seconds:.2f} s" for step, seconds in result.timing.items())


def _proved(comparison: Comparison) -> Iterator[str]:
    """Say what agrees, of weights and of what was computed; nothing where that failed."""
    weights, part = comparison.weights, " of the encoder" if comparison.decoder else ""
    if weights.is_same:
        rounded = weights.number(Match.ROUNDED)
        how = f"equal, {rounded} of them after rounding" if rounded else "bit-equal"
        yield f"proved: all {plural(len(weights.results), 'tensor')}{part} are {how}"
    agreed = [
        f"{kind} in {dtype}"
        for (kind, dtype), found in by_kind(comparison.outcomes).items()
        if not any(one.problem for one in found) and any(one.limit < math.inf for one in found)
    ]
    if agreed:
        yield f"proved: same results within the limits: {', '.join(agreed)}"


def _model_line(model: ModelFacts) -> str:
    dtypes = ", ".join(BY_CODE[code].label for code in model.dtypes)
    size = human_size(sum(file["size"] for file in model.files))
    ema = f", EMA weights for {plural(model.ema, 'tensor')}" if model.ema else ""
    variant = f", variant {model.variant}" if model.variant else ""
    return f"{model.label}: {model.name} ({model.layout.value}, {dtypes}, {size}{variant}{ema})"
