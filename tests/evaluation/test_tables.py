"""Tables of results: the card's columns, Markdown and LaTeX that stay what they are."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from markdown_it import MarkdownIt

from vaeconv.evaluation.protocol import Protocol
from vaeconv.evaluation.tables import Table, format_latex, format_markdown, make_tables

Row = dict[str, Any]


def statistic(mean: float | None, std: float | None, **counts: int) -> dict[str, Any]:
    return {"mean": mean, "std": std, "number": 5000, "infinite": 0, "invalid": 0, **counts}


def metrics_of(rfid: float, psnr: float, ssim: float, psim: float) -> dict[str, Any]:
    return {
        "rfid": rfid,
        "psnr": statistic(psnr, 4.49),
        "ssim": statistic(ssim, 0.1349),
        "psim": statistic(psim, 0.2851),
    }


def model(name: str = "original", **said: Any) -> Row:
    metrics = said.pop("metrics", None) or metrics_of(4.994, 23.44, 0.694, 1.006)
    return {"name": name, "train_steps": None, "link": "", "comment": "", "metrics": metrics} | said


def result(*models: Row, protocol: Protocol | None = None, **pictures: Any) -> dict[str, Any]:
    protocol = protocol or Protocol()
    return {
        "protocol": {**asdict(protocol), "description": protocol.describe()},
        "pictures": {
            "name": "val2017",
            "sha256": "ab" * 32,
            "fingerprint": "cd" * 32,
            "number": 5000,
        }
        | pictures,
        "nets": [{"name": "vgg16", "file": "v.pth", "sha256": "cd" * 32, "is_published": True}],
        "models": list(models) or [model()],
    }


CARD = result(
    model("original", train_steps=246803, link="https://example.org/a.zip", comment="as trained"),
    model(
        "ft-EMA",
        train_steps=560001,
        metrics=metrics_of(4.42, 23.81, 0.685, 0.96),
        comment="slightly better overall, with EMA",
    ),
)


def only(results: list[dict[str, Any]]) -> Table:
    (table,) = make_tables(results)
    return table


# --- what is in a table ---


def test_columns_are_in_the_order_of_the_card() -> None:
    table = only([CARD])
    assert table.head == (
        "Model", "train steps", "rFID", "PSNR", "SSIM", "PSIM (VGG, unweighted)", "Link",
        "Comments",
    )  # fmt: skip
    assert table.rows == (
        ("original", "246803", "4.99", "23.4 +/- 4.5", "0.69 +/- 0.13", "1.01 +/- 0.29",
         "https://example.org/a.zip", "as trained"),
        ("ft-EMA", "560001", "4.42", "23.8 +/- 4.5", "0.69 +/- 0.13", "0.96 +/- 0.29", "",
         "slightly better overall, with EMA"),
    )  # fmt: skip
    assert table.title == "val2017 (256x256, 5000 images)"
    assert table.protocol == Protocol().describe()
    assert {table.head[at] for at in table.left} == {"Model", "Link", "Comments"}


def test_columns_without_anything_are_left_out() -> None:
    bare = model(metrics={"psnr": statistic(30.0, 1.0)})
    table = only([result(bare)])
    assert table.head == ("Model", "PSNR")
    assert table.left == {0}
    other = model("other", metrics={"psnr": statistic(31.0, 1.0), "lpips": statistic(0.12345, 0.1)})
    table = only([result(bare, other)])
    assert table.head == ("Model", "PSNR", "LPIPS")
    assert [row[2] for row in table.rows] == ["-", "0.123 +/- 0.100"]


def test_steps_of_nought_are_steps() -> None:
    table = only([result(model(train_steps=0), model("b"))])
    assert [row[table.head.index("train steps")] for row in table.rows] == ["0", "-"]


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        (statistic(25.04, 0.0), "25.0 +/- 0.0"),
        (statistic(None, None, infinite=5), "inf"),
        (statistic(None, None, invalid=5), "not finite"),
        (statistic(40.0, 2.0, infinite=2), "40.0 +/- 2.0 (2 equal)"),
        (statistic(40.0, 2.0, invalid=1), "40.0 +/- 2.0 (1 not finite)"),
        (statistic(40.0, 2.0, infinite=2, invalid=1), "40.0 +/- 2.0 (2 equal, 1 not finite)"),
    ],
)
def test_pictures_that_have_no_number_are_told(found: dict[str, Any], cell: str) -> None:
    assert only([result(model(metrics={"psnr": found}))]).rows[0][1] == cell


def test_no_rfid_is_no_zero() -> None:
    without = {"rfid": None, "psnr": statistic(30.0, 1.0)}
    found = model("b", metrics={"rfid": 0.0, "psnr": statistic(30.0, 1.0)})
    table = only([result(model("a", metrics=without), found)])
    assert [row[1] for row in table.rows] == ["-", "0.00"]
    assert "rFID" not in only([result(model("a", metrics=without))]).head


# --- what shares a table ---


def test_results_of_one_protocol_and_set_share_a_table() -> None:
    table = only([result(model("a")), result(model("b"), model("c"))])
    assert [row[0] for row in table.rows] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "other",
    [
        result(model("b"), protocol=Protocol().changed(filter="lanczos")),
        result(model("b"), protocol=Protocol().changed(size=512)),
        result(model("b"), protocol=Protocol().changed(posterior="sample")),
        result(model("b"), protocol=Protocol().changed(dtype="fp16")),
        result(model("b"), sha256="ef" * 32),
        result(model("b"), number=4999),
        {**result(model("b")), "nets": []},
        {
            **result(model("b")),
            "nets": [{**result()["nets"][0], "sha256": "01" * 32, "is_published": False}],
        },
    ],
    ids=["filter", "size", "posterior", "dtype", "pictures", "number", "no nets", "other nets"],
)
def test_what_cannot_be_compared_never_shares_a_table(other: dict[str, Any]) -> None:
    tables = make_tables([result(model("a")), other, result(model("c"))])
    assert [[row[0] for row in table.rows] for table in tables] == [["a", "c"], ["b"]]
    for written in (format_markdown, format_latex):
        text = written([result(model("a")), other])
        assert text.count(tables[0].protocol) + text.count(tables[1].protocol) >= 2
    assert format_markdown([result(model("a")), other]).count("###") == 2
    assert format_latex([result(model("a")), other]).count(r"\begin{tabular}") == 2


# --- Markdown ---

# Names that would break a table, or put something into the page, were they left as they are.
HOSTILE = [
    "a|b",
    "a || b|",
    "|",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><h1>x",
    "two\nlines",
    "two\n\nparagraphs | here",
    "tab\there\r\nand back",
    "100 % & more",
    "--- | ---",
    "# heading",
    "\N{SNOWMAN} ünïcode",
]


def read_markdown(text: str) -> tuple[list[list[str]], list[Any]]:
    """Every row of cells, with their text, and all tokens."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and before.type in ("td_open", "th_open"):
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows, tokens


def test_markdown_reads_back() -> None:
    table = only([CARD])
    text = format_markdown([CARD])
    rows, tokens = read_markdown(text)
    assert rows == [list(table.head), *(list(row) for row in table.rows)]
    (heading,) = (b.content for a, b in pairwise(tokens)
                  if a.type == "heading_open")  # fmt: skip
    assert heading == table.title
    assert f"_{table.protocol}_" in text
    aligned = [token.attrGet("style") for token in tokens if token.type == "th_open"]
    assert [style == "text-align:right" for style in aligned] == [
        at not in table.left for at in range(len(table.head))
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_words_stay_words_in_markdown(name: str) -> None:
    document = result(
        model(name, comment=f"comment {name}", link=f"link {name}"), model("second"), name=name
    )
    rows, tokens = read_markdown(format_markdown([document]))
    plain = " ".join(name.split())
    head = list(only([document]).head)
    assert rows[0] == head
    assert [len(row) for row in rows] == [len(head)] * 3
    first = dict(zip(head, rows[1], strict=True))
    assert (first["Model"], first["Comments"]) == (plain, f"comment {plain}")
    assert first["Link"] == f"link {plain}"
    assert rows[2][0] == "second"
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == kinds.count("table_open") == 1
    inner = [child.type for token in tokens for child in token.children or []]
    assert not {"html_block", "html_inline"} & {*kinds, *inner}


CONTROLS = "a\x1b[31m\x9b2J\x07\u202e\u200b\r\n::warning::\0"


def test_nothing_of_a_document_controls_a_terminal_or_a_job() -> None:
    document = result(
        model(CONTROLS, comment=CONTROLS, link=f"https://x.org/{CONTROLS}"), name=CONTROLS
    )
    document["protocol"]["description"] = CONTROLS
    document["titles"] = {"psnr": f'PSNR |\n\n# x <img src="y"> {CONTROLS}'}
    markdown = format_markdown([document])
    for text in (markdown, format_latex([document])):
        assert not re.search(r"[^\n\x20-\x7e]", text)
        assert not any(line.startswith("::") for line in text.splitlines())
    rows, tokens = read_markdown(markdown)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == kinds.count("table_open") == 1
    assert {len(row) for row in rows} == {7}
    assert "<img" not in markdown


def test_several_tables_in_one_page() -> None:
    text = format_markdown([CARD, result(model("b"), sha256="ef" * 32, name="other")])
    _, tokens = read_markdown(text)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == kinds.count("heading_open") == 2
    assert kinds.index("table_open") < len(kinds) - 1 - kinds[::-1].index("heading_open")


# --- LaTeX ---

ESCAPES = {
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}",
    r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textbackslash{}": "\\",
    r"$\pm$": "+/-",
}  # fmt: skip
TOKEN = re.compile("|".join(map(re.escape, ESCAPES)) + r"|[^&%$#_{}~^\\]", re.DOTALL)


def read_cell(text: str) -> str:
    """Undo the escapes; anything special that is not one of them fails."""
    read, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match is not None, f"not escaped: {text[at:]}"
        read.append(ESCAPES.get(match[0], match[0]))
        at = match.end()
    return "".join(read)


def read_latex(text: str) -> tuple[str, list[list[str]]]:
    """Letters of the columns, and every row of cells, of a single table."""
    pattern = (
        r"(%[^\n]*)\n\\begin{tabular}{([lr]+)}\n\\toprule\n(.*)\n\\bottomrule\n\\end{tabular}\n"
    )
    match = re.fullmatch(pattern, text, re.DOTALL)
    assert match is not None, text
    head, rest = match[3].split("\n\\midrule\n")
    rows = []
    for line in [head, *rest.split("\n")]:
        assert line.endswith(r" \\")
        cells = re.split(r" (?<!\\)& ", line.removesuffix(r" \\"))
        rows.append([read_cell(cell) for cell in cells])
    return match[2], rows


def test_latex_reads_back() -> None:
    table = only([CARD])
    text = format_latex([CARD])
    columns, rows = read_latex(text)
    assert columns == "lrrrrrll"
    assert rows == [list(table.head), *(list(row) for row in table.rows)]
    assert text.startswith(f"% {table.title}; {table.protocol}\n")
    assert r"23.4 $\pm$ 4.5" in text
    assert "+/-" not in text


SPECIAL = [
    r"50 % & more_$5 #1 {a}^~\end",
    r"\input{/etc/passwd}",
    r"\\",
    "%",
    "$$x$$",
    "}{",
    r"\verb|x|",
    "a_b_c",
    r"\textbackslash{}",
]


@pytest.mark.parametrize("name", SPECIAL)
def test_special_characters_stay_themselves_in_latex(name: str) -> None:
    document = result(model(name, comment=f"x {name} x", train_steps=7), model("second"))
    text = format_latex([document])
    _, rows = read_latex(text)
    assert rows[1][0] == name
    assert rows[1][-1] == f"x {name} x"
    assert rows[2][0] == "second"
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for char in bare:
        depth += {"{": 1, "}": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0


def test_a_name_of_pictures_cannot_leave_its_comment() -> None:
    text = format_latex([result(name="pictures\n\\input{/etc/passwd}")])
    lines = text.split("\n")
    assert lines[0].startswith(r"% pictures \input")
    assert not any("input" in line for line in lines[1:])


def test_several_tables_in_latex() -> None:
    text = format_latex([CARD, result(model("b"), sha256="ef" * 32, name="other")])
    parts = text.split("\n% ")
    assert len(parts) == 2
    assert read_latex(parts[0])[1][1][0] == "original"
    assert read_latex("% " + parts[1])[1][1][0] == "b"
