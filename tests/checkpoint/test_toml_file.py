"""TOML files become dataclasses, or one line that says what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vaeconv.checkpoint.toml_file import build, read_toml
from vaeconv.errors import UsageError
from vaeconv.publish.card.meta import CardMeta, read_meta


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int
    ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    switch: bool = False
    limit: float | None = None
    texts: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    inner: Inner | None = None


def test_every_kind_of_value() -> None:
    table = {
        "name": "n",
        "switch": True,
        "limit": 3,
        "texts": ["a", "b"],
        "facts": {"x": [1]},
        "inner": {"number": 7, "ratio": 2},
    }
    found = build(Outer, table, "file")
    assert found == Outer(
        name="n", switch=True, limit=3.0, texts=("a", "b"), facts={"x": [1]},
        inner=Inner(number=7, ratio=2.0),
    )  # fmt: skip
    assert isinstance(found.limit, float)
    assert build(Outer, {"name": "n"}, "file") == Outer(name="n")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": 1}, "file: name: must be a text"),
        ({"name": "n", "switch": "yes"}, "file: switch: must be true or false"),
        ({"name": "n", "switch": 1}, "file: switch: must be true or false"),
        ({"name": "n", "limit": True}, "file: limit: must be a number"),
        ({"name": "n", "limit": "3"}, "file: limit: must be a number"),
        ({"name": "n", "texts": "a"}, "file: texts: must be a list of texts"),
        ({"name": "n", "texts": ["a", 1]}, "file: texts: must be a list of texts"),
        ({"name": "n", "facts": []}, "file: facts: must be a table"),
        ({"name": "n", "inner": 3}, "file: inner: must be a table"),
        ({"name": "n", "inner": {"number": 1.5}}, "file: inner: number: must be a whole number"),
        ({"name": "n", "inner": {"number": True}}, "file: inner: number: must be a whole number"),
        ({"name": "n", "inner": {"nummer": 1}}, "file: inner: unknown key nummer; did you mean "
                                                "number?"),
        ({"name": "n", "inner": {}}, "file: inner: number must be given"),
        ({}, "file: name must be given"),
        ({"nmae": "n"}, "file: unknown key nmae; did you mean name?"),
        ({"name": "n", "zzz": 1}, "file: unknown key zzz; known: name, switch, limit, texts, "
                                  "facts, inner"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Outer, table, "file")
    assert str(caught.value) == said


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"a = 1\na = 2", b"[" * 5000])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not a (TOML|UTF-8 text) file"):
        read_toml(path)
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("none", "No such file"), (".", "not a regular"), ("pipe", "not a regular")):
        with pytest.raises(UsageError, match=said):
            read_toml(tmp_path / name)


def test_the_facts_of_a_card(tmp_path: Path) -> None:
    path = tmp_path / "meta.toml"
    path.write_text('title = "T"\ntags = ["a"]\n[facts]\nsteps = 3\n')
    assert read_meta(path) == CardMeta(title="T", tags=("a",), facts={"steps": 3})
    path.write_text('licence = "mit"')
    with pytest.raises(UsageError, match=r"unknown key licence; did you mean license\?"):
        read_meta(path)


def test_every_problem_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    text = '\n'.join([
        "nmae = 1  # a typo", "texts = [1]", 'facts = """', "limit = no key", '"""', "[inner]",
        "ratio = nan", "",
    ])  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    with pytest.raises(UsageError) as caught:
        build(Outer, read_toml(path), str(path))
    assert caught.value.text == f"{path}: 5 problems"
    assert caught.value.details == (
        f"{path}:1: unknown key nmae; did you mean name?",
        f"{path}:2: texts: must be a list of texts",
        f"{path}:3: facts: must be a table",
        f"{path}:7: inner: ratio: must be a number, and is nan",
        f"{path}:6: inner: number must be given",
    )


def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    for text, line in (("a = 1\nb = \n", 2), ("[t]\n\na = 1\na = 2\n", 4)):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"at line {line}"):
            read_toml(path)
    with pytest.raises(UsageError, match="No such file"):
        read_toml(tmp_path / "none.toml")


def test_blanks_and_many_problems_take_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    lines = [f"odd{at} = 1" for at in range(20_000)]
    path.write_text("\n".join([" " * 300_000, 'name = "a"', "\t" * 300_000, *lines]))
    with pytest.raises(UsageError) as caught:
        build(Outer, read_toml(path), str(path))
    assert any(f"{path}:20003: unknown key odd19999" in one for one in caught.value.details)
