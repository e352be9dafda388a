"""Check a card without a network: front matter, links to files, numbers of its tables."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vaeconv.errors import InputError
from vaeconv.evaluation.tables import make_tables, markdown_table
from vaeconv.publish.card.card import CARD, metric_title, names_in
from vaeconv.publish.card.front_matter import Card, read_card
from vaeconv.publish.card.rules import front_problems
from vaeconv.publish.card.sections import find_sections

# Neither part can run over the beginning of another link, so that looking takes linear time.
_LINK = re.compile(
    r"\]\(((?:[^()\s]|\([^()\s]*\))+)(?:\s[^()]*)?\)"
    r"|<img\s[^<>]*?src=[\"']?([^\"'\s<>]+)"
)
_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|#|//")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_TICKS = re.compile(r"`+")


def check_card(
    folder: Path,
    evaluations: Sequence[Mapping[str, Any]] = (),
    *,
    published: Collection[str] | None = None,
) -> list[str]:
    """List what is wrong with a card; empty where nothing is.

    Args:
        folder: The release that it lies in.
        evaluations: Results whose numbers the tables must have.
        published: Paths that links may lead to; None for every file in the folder.

    Raises:
        InputError: An evaluation is none.
    """
    path = folder / CARD
    try:
        card = read_card(path)
    except InputError as error:
        kind = "" if error.what.startswith("the front matter") else "the card cannot be read: "
        return [f"{kind}{error.what}" + (f"; {error.hint}" if error.hint else "")]
    if not card.has_front:
        return ["the card has no front matter"]
    problems = [
        *_reading_problems(path, card),
        *_absences(card.front),
        *front_problems(card.front, published=names_in(folder) if published is None else published),
        *_link_problems(folder, card.body, published),
    ]
    front, body = card.front, card.body
    try:
        problems += _table_problems(body, evaluations)
        if not any(problem.startswith("model-index") for problem in problems):
            problems += _index_problems(front, evaluations)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"not a result of vaeconv eval ({type(error).__name__}: {error})"
        ) from error
    return problems


def _reading_problems(path: Path, card: Card) -> Iterator[str]:
    """Name what keeps the Hub's client from reading the front matter as it is meant."""
    from huggingface_hub import metadata_load

    try:
        seen = metadata_load(path)
    except Exception:  # noqa: BLE001 - yaml and the client raise many kinds
        seen = None
    if not card.is_first or (seen or {}) != card.front:
        yield (
            "the Hub's client does not read the front matter correctly: only a line of three "
            "hyphens stands above it, and one below; vaeconv card writes it again"
        )
    elif path.read_bytes().startswith(codecs.BOM_UTF8):
        yield "it begins with a byte order mark; vaeconv card writes it again"


def _absences(front: Mapping[str, Any]) -> Iterator[str]:
    if not front.get("license"):
        yield (
            'the front matter names no license: put license = "mit", or another, into card.toml, '
            "or below [card] in the release file"
        )
    if front.get("library_name") != "diffusers":
        yield "the front matter does not say library_name: diffusers"


def _link_problems(folder: Path, body: str, published: Collection[str] | None) -> Iterator[str]:
    """Name links to files that are not there, or that lie outside the release."""
    root = folder.absolute()
    for match in _LINK.finditer(without_code(body)):
        target = match[1] or match[2]
        if _REMOTE.match(target):
            continue
        path = Path(os.path.normpath(root / unquote(target.partition("#")[0])))
        if root not in path.parents:
            yield f"the link {target} leads out of the release"
        elif not _is_there(path, root, published):
            yield f"the link {target} leads to nothing"


def without_code(text: str) -> str:
    """Leave code out of Markdown: what stands in it is neither a link nor a heading."""
    kept: list[str] = []
    fence = ""  # that the code we are in began with
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found and not (found[1][0] == "`" and "`" in found[2]):
            fence = found[1]
        else:
            kept.append(_without_spans(line))
    return "".join(kept)


def _without_spans(line: str) -> str:
    """Leave out what stands between two runs of equally many backticks."""
    runs = list(_TICKS.finditer(line))
    last = {len(run[0]): at for at, run in enumerate(runs)}  # where the last of a length stands
    kept, at, start = [], 0, 0
    while at < len(runs):
        length = len(runs[at][0])
        if last[length] > at:
            kept.append(line[start : runs[at].start()])
            at = next(other for other in range(at + 1, len(runs)) if len(runs[other][0]) == length)
            start = runs[at].end()
        at += 1
    return "".join([*kept, line[start:]])


def _is_there(path: Path, root: Path, published: Collection[str] | None) -> bool:
    if published is not None:
        name = path.relative_to(root).as_posix()
        return any(one == name or one.startswith(f"{name}/") for one in published)
    try:
        return path.exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _table_problems(body: str, evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not evaluations:
        return
    section = find_sections(body).get("evaluation", "")
    for table in make_tables(evaluations):
        for line in markdown_table(table):
            if line not in section:
                yield f"the tables lack a line of the evaluation: {line}"


def _index_problems(
    front: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Name metrics of the model-index that no evaluation has."""
    known = {
        (metric_title(result, name), value if name == "rfid" else value["mean"])
        for result in evaluations
        for model in result["models"]
        for name, value in model["metrics"].items()
    }
    for entry in front.get("model-index") or ():
        for result in entry["results"]:
            for metric in result["metrics"]:
                if known and (metric.get("name"), metric.get("value")) not in known:
                    yield (
                        f"the model-index has {metric.get('name')} {metric.get('value')}, "
                        "which no evaluation has"
                    )
