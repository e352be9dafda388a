"""A verification as CI shows it: test cases of JUnit, and on GitHub a summary and annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.errors import OutputError, one_line, printable
from vaeconv.parity.report.tables import Row, distance_table, weight_table
from vaeconv.parity.result import Verification

_SUMMARY = "GITHUB_STEP_SUMMARY"


def junit(result: Verification) -> bytes:
    """Write the checks as test cases: one for the files of each pair, one for each reference."""
    suite = ElementTree.Element("testsuite", name="vaeconv verify")
    cases = list(_cases(result))
    for classname, name, kind, texts in cases:
        case = ElementTree.SubElement(
            suite, "testcase", name=_xml(name), classname=classname, time="0"
        )
        if texts:
            state = ElementTree.SubElement(case, kind, message=_xml(texts[0]))
            state.text = _xml("\n".join(texts)) if kind == "failure" else None
    suite.set("tests", str(len(cases)))
    for attribute, kind in (("skipped", "skipped"), ("failures", "failure")):
        suite.set(attribute, str(sum(bool(case[3]) and case[2] == kind for case in cases)))
    suite.set("time", f"{sum(result.timing.values()):.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _cases(result: Verification) -> Iterator[tuple[str, str, str, list[str]]]:
    """List each case: class, name, what it may be besides passed, and why it is."""
    named = [("verify." + ".".join(one.labels), one) for one in result.comparisons]
    for classname, comparison in named:
        of_outcomes = {one.problem for one in comparison.outcomes}
        files = [problem for problem in comparison.problems if problem not in of_outcomes]
        yield classname, "weights, architecture and scaling", "failure", files
        for one in comparison.outcomes:
            name = f"{one.kind} {one.dtype} {one.name}"
            yield classname, name, "failure", [one.problem] if one.problem else []
    for classname, comparison in named:
        for reason in comparison.unproven:
            yield classname, "scaling", "skipped", [f"unproven is {reason}"]


def _xml(text: str) -> str:
    """Write out what XML 1.0 has no way to say, as a terminal would show it."""
    return printable(text, keep="\t\n").replace("\ufffe", "").replace("\uffff", "")


def markdown(result: Verification) -> str:
    """Write the summary that a CI job shows."""
    lines = [f"### vaeconv verify: {result.outcome}", ""]
    for comparison in result.comparisons:
        lines.append(f"**{_escaped(comparison.verdict)}.**")
        lines += [*(f"- {_escaped(problem)}" for problem in comparison.problems), ""]
    models = []
    for model in result.models:
        dtypes = ", ".join(BY_CODE[code].label for code in model.dtypes)
        hashes = ", ".join(str(file["sha256"])[:16] for file in model.files if file["sha256"])
        models.append((model.label, model.name, model.layout.value, dtypes, hashes or "-"))
    lines += _markdown_table(("side", "file", "layout", "dtype", "sha256"), models)
    lines += _markdown_table(*weight_table(result.comparisons))
    for comparison in result.comparisons:
        if comparison.outcomes:
            lines += _markdown_table(*distance_table(comparison))
    environment = ", ".join(f"{name} {value}" for name, value in result.environment.items())
    return "\n".join([*lines, f"<sub>{_escaped(environment)}</sub>", ""])


def _markdown_table(head: Row, rows: Sequence[Row]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines] + [""]


def _escaped(text: str) -> str:
    """Keep text from files from becoming markup, or anything but one line of text."""
    text = one_line(text)
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return " ".join(text.split())


def check_summary() -> None:
    """Check before the work that the job's summary can be written, where there is one.

    Raises:
        OutputError: It cannot.
    """
    path = os.environ.get(_SUMMARY)
    if not path:
        return
    try:
        Path(path).open("a").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot be written: {reason}",
            where=f"{_SUMMARY}={path}",
            hint="unset it, or correct it",
        ) from error


def append_summary(result: Verification) -> None:
    """Append to the job's summary, where there is one.

    Raises:
        OutputError: It cannot be written.
    """
    path = os.environ.get(_SUMMARY)
    if not path:
        return
    try:
        with Path(path).open("ab") as file:
            file.write(markdown(result).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"the summary cannot be written: {error.strerror}", where=path) from error


def annotation(message: str, command: str = "verify") -> str | None:
    """Format an error of a command that GitHub shows at the job; None elsewhere.

    Escapes as ``escapeData`` in actions/toolkit does.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return None
    escaped = printable(message, keep="\n").replace("%", "%25").replace("\n", "%0A")
    return f"::error title=vaeconv {command}::{escaped}"
