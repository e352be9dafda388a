"""A verification as a document: JSON for machines, Markdown for a summary, JUnit for CI."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vaeconv.autoencoder.config import Scaling
from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.errors import OutputError, one_line, printable
from vaeconv.parity.compare_outputs import Outcome, summarise
from vaeconv.parity.compare_weights import Match, TensorResult, WeightResult
from vaeconv.parity.distance import Distance
from vaeconv.parity.result import Comparison, SideFacts, Verification

_SUMMARY = "GITHUB_STEP_SUMMARY"
_OFFENDERS = 20  # tensors that the document lists


def report_document(result: Verification) -> dict[str, Any]:
    """Describe a verification for machines; docs/parity.md says what each field means."""
    references = result.references
    return {
        "ok": result.ok,
        "sides": [_side(side) for side in result.sides],
        "same": _comparison(result.same),
        "drop_in": _comparison(result.drop_in),
        "references": references
        and {
            "source": references.source,
            "sha256": references.sha256,
            "latents": {one.name: list(one.data.shape) for one in references.latents},
            "pictures": {one.name: list(one.data.shape) for one in references.pictures},
        },
        "environment": result.environment,
        "timing": result.timing,
        "problems": result.problems,
        "unproven": result.unproven,
        "notes": [str(note) for note in result.notes],
    }


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write the document as a file.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(path, (dump_json(document) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole, in place of an older one: it is made of what the run found.

    Raises:
        OutputError: It cannot be written.
    """
    replace_small_file(path, data, durable=False)


def _side(side: SideFacts) -> dict[str, Any]:
    return {
        **side._asdict(),
        "layout": side.layout.value,
        "scaling": _scaling(side.scaling),
        "files": list(side.files),
    }


def _scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    facts = scaling._asdict()
    return {**{name: facts[name] for name in facts if name != "source"}, "from": scaling.source}


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    summary = summarise(comparison.outcomes)
    return {
        "sides": list(comparison.labels),
        "ok": not comparison.problems,
        "weights": _weights(comparison.weights),
        "decoder_weights": comparison.decoder and _weights(comparison.decoder),
        "decoded": any(outcome.kind == "decode" for outcome in comparison.outcomes),
        "encoded": any(outcome.kind == "encode" for outcome in comparison.outcomes),
        "worst": [
            {"kind": kind, "dtype": dtype, **distance.document()}
            for (kind, dtype), distance in summary.items()
        ],
        "references": [outcome.document() for outcome in comparison.outcomes],
        "problems": list(comparison.problems),
        "unproven": list(comparison.unproven),
    }


def _weights(weights: WeightResult) -> dict[str, Any]:
    return {
        "ok": weights.is_same,
        "tensors": len(weights.results),
        **{match.name.lower(): weights.number(match) for match in Match},
        "missing": list(weights.missing),
        "unexpected": list(weights.unexpected),
        "worst": [_offender(result) for result in weights.different[:_OFFENDERS]],
    }


def _offender(result: TensorResult) -> dict[str, Any]:
    return {
        "names": list(result.names),
        "dtypes": list(result.dtypes),
        "differing_elements": result.differing,
        "max_abs": result.max_abs,
        "position": list(result.position),
        "values": [value if math.isfinite(value) else None for value in result.values],
    }


# --- tables of text, for the terminal, the page and the summary ---

Row = tuple[str, ...]


def weight_table(comparisons: Sequence[Comparison]) -> tuple[Row, list[Row]]:
    """Head and rows of the table of weights."""
    rows = []
    for comparison in comparisons:
        labels = " and ".join(comparison.labels)
        parts = [("encoder", comparison.weights), ("decoder", comparison.decoder)]
        if comparison.decoder is None:
            parts = [("all", comparison.weights)]
        for part, weights in parts:
            if weights:
                absent = len(weights.missing) + len(weights.unexpected)
                counts = [weights.number(match) for match in Match]
                rows.append((labels, part, *map(str, (*counts, absent))))
    # As short as they can be: the table is to fit a terminal of 80 columns.
    return ("models", "tensors", "bit-equal", "rounded", "different", "in one only"), rows


def distance_table(comparison: Comparison) -> tuple[Row, list[Row]]:
    """Head and rows of the table of distances: each reference, then the worst of each kind."""
    head = (
        "",
        "reference",
        "max abs",
        "mean abs",
        "RMSE",
        "PSNR",
        "cosine",
        "8-bit differ",
        "limit",
        "",
    )
    summary = summarise(comparison.outcomes)
    rows = [
        (
            f"{one.kind} {one.dtype}",
            f"{one.name} {size_of(one)}",
            *_numbers(one.distance, one.kind),
            f"{one.limit:.1e}" if 0 < one.limit < math.inf else "-",
            "FAIL" if one.problem else "ok" if one.limit < math.inf else "not judged",
        )
        for one in comparison.outcomes
    ]
    for (kind, dtype), distance in summary.items():
        rows.append((f"{kind} {dtype}", "worst", *_numbers(distance, kind), "", ""))
    return head, rows


def worst_table(comparison: Comparison) -> tuple[Row, list[Row]]:
    """Head and rows of the table of what was computed: a row for each kind and type.

    A row names the reference whose results are farthest apart in relation to their limit.
    """
    rows: list[Row] = []
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in comparison.outcomes:
        groups.setdefault((one.kind, one.dtype), []).append(one)
    for (kind, dtype), found in groups.items():
        worst = max(found, key=_strain)
        failed = sum(one.problem is not None for one in found)
        rows.append((
            kind, dtype, f"{worst.name} {size_of(worst)}", f"{len(found)}",
            _numbers(worst.distance, kind)[0] if worst.limit < math.inf or not worst.problem
            else f"PSNR {_numbers(worst.distance, kind)[3]}",
            f"{worst.limit:.1e}" if 0 < worst.limit < math.inf else "-",
            f"{failed} FAILED" if failed else "ok" if worst.limit < math.inf else "not judged",
        ))  # fmt: skip
    return ("computed", "dtype", "worst reference", "references", "max abs", "limit", ""), rows


def _strain(outcome: Outcome) -> tuple[bool, float]:
    """Order outcomes by how near they are to failing."""
    found, limit = outcome.distance.max_abs, outcome.limit
    if found is None:
        return True, math.inf
    return outcome.problem is not None, found / limit if 0 < limit < math.inf else found


def size_of(outcome: Outcome) -> str:
    """Say how large a result is."""
    return "x".join(map(str, outcome.shape))


def _numbers(distance: Distance, kind: str) -> Row:
    if distance.max_abs is None:
        return ("not finite", "-", "-", "-", "-", "-")
    psnr = "inf" if distance.psnr == math.inf else f"{distance.psnr:.1f} dB"
    pixels = f"{distance.uint8:.2%}" if kind == "decode" else "-"
    return (
        f"{distance.max_abs:.1e}", f"{distance.mean_abs:.1e}", f"{distance.rmse:.1e}", psnr,
        f"{distance.cosine:.6f}", pixels,
    )  # fmt: skip


def verdict(comparison: Comparison) -> str:
    """Say the verdict in one line, with what is unproven."""
    reasons = " and ".join(comparison.unproven)
    is_open = reasons and not comparison.problems
    return comparison.judgement + (f", but not proved: {reasons}" if is_open else "")


def outcome(result: Verification) -> str:
    """Say the outcome in a few words."""
    if not result.ok:
        return "FAILED"
    return "passed, but not everything was proved" if result.unproven else "passed"


def comparisons_of(result: Verification) -> list[Comparison]:
    """List the comparisons that were made."""
    return [comparison for comparison in (result.same, result.drop_in) if comparison]


# --- Markdown ---


def markdown(result: Verification) -> str:
    """Write the summary that a CI job shows."""
    lines = [f"### vaeconv verify: {outcome(result)}", ""]
    for comparison in comparisons_of(result):
        lines.append(f"**{_escaped(verdict(comparison))}.**")
        lines += [f"- {_escaped(problem)}" for problem in comparison.problems]
        lines.append("")
    sides = [
        (
            side.label,
            side.name,
            side.layout.value,
            ", ".join(BY_CODE[code].label for code in side.dtypes),
            _hash_of(side),
        )
        for side in result.sides
    ]
    lines += _markdown_table(("side", "file", "layout", "dtype", "sha256"), sides)
    lines += _markdown_table(*weight_table(comparisons_of(result)))
    for comparison in comparisons_of(result):
        if comparison.outcomes:
            lines += _markdown_table(*distance_table(comparison))
    environment = ", ".join(f"{name} {value}" for name, value in result.environment.items())
    lines += [f"<sub>{_escaped(environment)}</sub>", ""]
    return "\n".join(lines)


def _hash_of(side: SideFacts) -> str:
    return ", ".join(str(file["sha256"])[:16] for file in side.files if file["sha256"]) or "-"


def _markdown_table(head: Row, rows: Sequence[Row]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines] + [""]


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
        with Path(path).open("a"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot be written: {reason}",
            where=f"{_SUMMARY}={path}",
            hint="unset it, or correct it",
        ) from error


def append_summary(result: Verification) -> None:
    """Append to the job's summary, where there is one (``GITHUB_STEP_SUMMARY``).

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


# --- JUnit ---


def junit(result: Verification) -> bytes:
    """Write the checks as test cases: one for the files of each pair, one for each reference."""
    suite = ElementTree.Element("testsuite", name="vaeconv verify")
    cases = list(_cases(result))
    for name, classname, problems in cases:
        name = _xml(name)
        case = ElementTree.SubElement(suite, "testcase", name=name, classname=classname, time="0")
        if problems:
            failure = ElementTree.SubElement(case, "failure", message=_xml(problems[0]))
            failure.text = _xml("\n".join(problems))
    unproven = [
        ("verify." + ".".join(one.labels), reason)
        for one in comparisons_of(result)
        for reason in one.unproven
    ]
    for classname, reason in unproven:
        case = ElementTree.SubElement(
            suite, "testcase", name="scaling", classname=classname, time="0"
        )
        ElementTree.SubElement(case, "skipped", message=_xml(f"unproven is {reason}"))
    suite.set("tests", str(len(cases) + len(unproven)))
    suite.set("skipped", str(len(unproven)))
    suite.set("failures", str(sum(bool(problems) for *_, problems in cases)))
    suite.set("time", f"{sum(result.timing.values()):.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _cases(result: Verification) -> Iterator[tuple[str, str, list[str]]]:
    for comparison in comparisons_of(result):
        classname = "verify." + ".".join(comparison.labels)
        of_outcomes = {one.problem for one in comparison.outcomes}
        files = [problem for problem in comparison.problems if problem not in of_outcomes]
        yield "weights, architecture and scaling", classname, files
        for one in comparison.outcomes:
            name = f"{one.kind} {one.dtype} {one.name}"
            yield name, classname, [one.problem] if one.problem else []


def _xml(text: str) -> str:
    """Write out what XML 1.0 has no way to say, as a terminal would show it."""
    return printable(text, keep="\t\n").replace("\ufffe", "").replace("\uffff", "")
