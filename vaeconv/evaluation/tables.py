"""Tables of results as in the Stable Diffusion cards: for a terminal, in Markdown, in LaTeX.

Results of different protocols or images never share a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vaeconv.common.wording import plural
from vaeconv.errors import printable
from vaeconv.evaluation.metrics import COLUMNS

_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}

# An underscore inside of a word, as in a file's name, means nothing.
_MARKUP = re.compile(r"[\\`*\[\]!|#~$]|(?<![^\W_])_|_(?![^\W_])")
_ADDRESS = re.compile(r"https?://[^\s|<>`\\]+")


class Table(NamedTuple):
    """One table.

    Attributes:
        title: Which pictures, how many, and of what size.
        protocol: How they were prepared and reconstructed, in words.
        head: Titles of the columns.
        rows: One for each model.
        left: Columns that hold text.
    """

    title: str
    protocol: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int]


def make_tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Make a table of every protocol and set of images.

    Args:
        results: Documents, as :func:`~vaeconv.evaluation.evaluate.evaluate` gives them.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for at, result in enumerate(results):
        alike = identity_of(result)
        groups.setdefault(json.dumps(alike or at), []).append(result)
    return [_make_table(group) for group in groups.values()]


def identity_of(result: Mapping[str, Any]) -> list[Any] | None:
    """Tell what two results must have in common for their numbers to compare.

    Returns:
        Protocol, images by their bytes, and metric networks; None for an older result, which
        knows images by names and sizes only, and so compares with no other.
    """
    protocol, images, networks = result["protocol"], result["pictures"], result["nets"]
    sha256, number = images["sha256"], images["number"]
    if "fingerprint" not in images:
        return None
    weights = sorted([network["name"], network["sha256"]] for network in networks)
    return [protocol["description"], sha256, number, weights]


def _make_table(results: Sequence[Mapping[str, Any]]) -> Table:
    first = results[0]
    protocol, images = first["protocol"], first["pictures"]
    models = [model for result in results for model in result["models"]]
    names = [name for name in COLUMNS if any(name in model["metrics"] for model in models)]
    # A published result may call a metric by its own name.
    titles = {name: COLUMNS[name][0] for name in COLUMNS} | first.get("titles", {})
    # The card's order: rFID, single pictures, then where it is from and what to say.
    columns: list[tuple[str, bool, list[str]]] = [
        ("Model", True, [model["name"] for model in models]),
        ("train steps", False, [_number(model["train_steps"], "") for model in models]),
        ("rFID", False, [_number(model["metrics"].get("rfid"), ".2f") for model in models]),
        *(
            (
                titles[name],
                False,
                [_statistic(model["metrics"].get(name), name) for model in models],
            )
            for name in names
        ),
        ("Link", True, [model["link"] for model in models]),
        ("Comments", True, [model["comment"] for model in models]),
    ]
    shown = [column for column in columns if any(cell not in ("", "-") for cell in column[2])]
    size = protocol["size"]
    described = f"{images['name']} ({size}x{size}, {plural(images['number'], 'image')})"
    return Table(
        _plain(images.get("title") or described),
        _plain(protocol["description"]),
        tuple(_plain(title) for title, _, _ in shown),
        tuple(zip(*(map(_plain, cells) for _, _, cells in shown), strict=True)),
        frozenset(at for at, (_, is_left, _) in enumerate(shown) if is_left),
    )


def _plain(text: str) -> str:
    """Make a line of text of what may come from anybody's file."""
    return printable(" ".join(text.split()))


def _number(value: Any, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _statistic(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None:
        return "-"
    if found["mean"] is None:
        return "inf" if found["infinite"] else "not finite"
    digits = COLUMNS[name][1]
    text = f"{found['mean']:.{digits}f} +/- {found['std']:.{digits}f}"
    marks = [
        f"{found[kind]} {said}"
        for kind, said in (("infinite", "equal"), ("invalid", "not finite"))
        if found[kind]
    ]
    return f"{text} ({', '.join(marks)})" if marks else text


def format_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Write tables in Markdown, as the cards have them."""
    lines: list[str] = []
    for table in make_tables(results):
        lines += [f"### {escape_markdown(table.title)}", "", *markdown_table(table)]
        lines += ["", f"_{escape_markdown(table.protocol)}_", ""]
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    """Write one table in Markdown, without its title."""
    rules = ["---" if at in table.left else "---:" for at in range(len(table.head))]
    head, *rows = (
        "| " + " | ".join(map(escape_markdown, row)) + " |" for row in (table.head, *table.rows)
    )
    return [head, "|" + "|".join(rules) + "|", *rows]


def escape_markdown(text: str) -> str:
    """Keep text from becoming markup; a plain address becomes a link."""
    if _ADDRESS.fullmatch(text):
        return f"<{text}>"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", escaped)


def format_latex(results: Sequence[Mapping[str, Any]]) -> str:
    """Write tables in LaTeX, with booktabs."""
    lines: list[str] = []
    for table in make_tables(results):
        columns = "".join("l" if at in table.left else "r" for at in range(len(table.head)))
        body = [
            " & ".join(
                _escape_latex(cell, is_number=at not in table.left) for at, cell in enumerate(row)
            )
            + r" \\"
            for row in (table.head, *table.rows)
        ]
        lines += [
            f"% {table.title}; {table.protocol}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join(lines)


def _escape_latex(text: str, *, is_number: bool) -> str:
    escaped = "".join(_LATEX.get(char, char) for char in text)
    return escaped.replace("+/-", r"$\pm$") if is_number else escaped
