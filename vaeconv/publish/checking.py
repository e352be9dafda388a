"""Check a card without a network: front matter, links to files, numbers of its tables."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vaeconv.errors import InputError
from vaeconv.evaluate.tables import make_tables, markdown_table
from vaeconv.publish.card import CARD, metric_title
from vaeconv.publish.sections import find_sections

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s[^)]*)?\)|<img[^>]+src=[\"']?([^\"'\s>]+)")
_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|#|//")
# Of code, brackets beside parentheses are no links.
_CODE = re.compile(r"^(```+|~~~+).*?^\1[`~]*$|(?<!`)(`+)(?!`)[^\n]+?(?<!`)\2(?!`)", re.M | re.S)
_LISTS = ("tags", "datasets")
_TEXTS = ("license", "library_name", "base_model_relation", "pipeline_tag")


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
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return [f"no card that can be read: {error}"]
    front, body, problem = _split(text)
    if problem:
        return [problem]
    problems = [*_front_problems(front), *_link_problems(folder, body, published)]
    try:
        problems += _table_problems(body, evaluations)
        problems += _index_problems(front, evaluations)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"not a result of vaeconv eval ({type(error).__name__}: {error})"
        ) from error
    return problems


def _split(text: str) -> tuple[dict[str, Any], str, str | None]:
    from huggingface_hub import ModelCard

    if not text.lstrip().startswith("---"):
        return {}, text, "the card has no front matter"
    try:
        card = ModelCard(text)
        data: Any = card.data
        return data.to_dict(), card.text, None
    except Exception as error:  # noqa: BLE001 - yaml and the client raise many kinds
        reason = " ".join(str(error).split())
        return {}, text, f"the front matter cannot be read: {reason}"


def _front_problems(front: Mapping[str, Any]) -> Iterator[str]:
    if not front.get("license"):
        yield "the front matter names no license"
    if front.get("library_name") != "diffusers":
        yield "the front matter does not say library_name: diffusers"
    for key in _LISTS:
        value = front.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            yield f"{key} in the front matter is not a list of texts"
    for key in _TEXTS:
        if key in front and not isinstance(front[key], str):
            yield f"{key} in the front matter is not a text"


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
    return _CODE.sub("", text)


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
        for result in entry.get("results", ()):
            for metric in result.get("metrics", ()):
                if known and (metric.get("name"), metric.get("value")) not in known:
                    yield (
                        f"the model-index has {metric.get('name')} {metric.get('value')}, "
                        "which no evaluation has"
                    )
