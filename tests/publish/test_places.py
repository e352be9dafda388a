"""Paths of a machine are taken out of what is published; addresses and people's words are not."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeconv.publish.places import hide_places, hide_places_in_text, is_place

PLACES = (
    "/home/user/vae/last.ckpt",
    "/home/my user/a (b) [c]+$^/last one.ckpt",
    "/private/tmp/x/last.ckpt",
    "/tmp/last.ckpt",
    "~/vae/last.ckpt",
    "~user/vae/last.ckpt",
    r"C:\Users\user\last.ckpt",
    "d:/vae/last.ckpt",
    r"\\server\share\last.ckpt",
    "file:///home/user/last%20one.ckpt",
    "/home/a&b/<c>/last.ckpt",
)
KEPT = (
    "https://example.org/data/vae",
    "https://example.org/?path=/data/vae&x=1",
    "hf://user/vae/data/vae/last.ckpt",
    "[notes](https://example.org/data/vae), **and/or** 1/2/3",
    "256/256 pixels; w/h/c; /half",
    "data:image/png;base64,AAA+/ab/cd/ef==",
    "release/diffusers",
    "../last.ckpt",
    "</td><br/>",
    "/",
    "",
)


@pytest.mark.parametrize("place", PLACES)
def test_of_a_path_in_a_field_the_name_is_left(place: str) -> None:
    name = "last one.ckpt" if "last one" in place or "%20" in place else "last.ckpt"
    assert is_place(place)
    assert hide_places({"sides": [{"name": place}]}) == {"sides": [{"name": name}]}
    said = {"path": place, "problems": [f"{place}: no such file", f"see {place}."]}
    assert hide_places(said) == {
        "path": name, "problems": [f"{name}: no such file", f"see {name}."],
    }  # fmt: skip


@pytest.mark.parametrize("place", [one for one in PLACES if not set(" <&") & set(one)])
def test_a_path_that_nobody_knew_of_is_found_in_a_sentence(place: str) -> None:
    name = "last one.ckpt" if "%20" in place else "last.ckpt"
    for said in ("{}", "{}: no", "at {}, twice", "({})", "'{}'", "<td>{}</td>", "key={} x"):
        assert hide_places_in_text(said.format(place)) == said.format(name), said


@pytest.mark.parametrize("place", PLACES)
def test_a_known_path_is_found_in_markup(place: str) -> None:
    page = f"<td title='{html.escape(place)}'>{html.escape(place)}</td>"
    hidden = hide_places_in_text(page, known=[place])
    assert "user" not in hidden and "home" not in hidden and "vae" not in hidden
    assert hidden.endswith("ckpt</td>")


@pytest.mark.parametrize("text", KEPT)
@pytest.mark.parametrize("root", ["/data", "/", "/tmp", "/home/user"])
def test_what_is_no_path_of_this_machine_stays(text: str, root: str) -> None:
    assert hide_places_in_text(text, root=Path(root)) == text
    said = {"link": text, "problems": [text], "models": [{"name": text, "path": text}]}
    assert hide_places(said, root=Path(root)) == said


def test_inside_the_root_the_way_is_told() -> None:
    root = Path("/data")
    said = {
        "path": "/data/release/diffusers",
        "problems": ["/data/a/last.ckpt: no", "in /data", "/database/a/b: no", "see /data/../x/y"],
    }
    assert hide_places(said, root=root) == {
        "path": "release/diffusers",
        "problems": ["a/last.ckpt: no", "in data", "b: no", "see y"],
    }
    assert hide_places({"path": "/home/user/x"}, root=Path("/")) == {"path": "x"}


def test_what_people_wrote_stays() -> None:
    said = {"comment": "see /data/notes/x", "link": "/data/vae", "title": "/data/a/b"}
    assert hide_places(said, root=Path("/data")) == said


def test_a_root_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "private"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    said = {"problems": [f"{link}/a/x.ckpt and {real}/a/x.ckpt"]}
    assert hide_places(said, root=link) == {"problems": ["a/x.ckpt and a/x.ckpt"]}


LETTERS = st.characters(blacklist_characters="/\0", blacklist_categories=["Cs", "Cc"])


@given(st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=2, max_size=4))
def test_any_path_in_a_field_is_hidden(parts: list[str]) -> None:
    place = "/" + "/".join(parts)
    hidden = hide_places({"path": place, "problems": [f"{place}: no"]})
    assert not is_place(hidden["path"]) or "\\" in place or set(parts[-1]) & set("~:")
    assert f"{place}: no" not in hidden["problems"]
    json.dumps(hidden)


@pytest.mark.parametrize(
    "text", ["abcdefghij+" * 30_000 + " /", "a+" * 99_000 + "/", "a/" * 90_000]
)
def test_a_long_text_takes_linear_time(text: str) -> None:
    assert len(hide_places_in_text(text)) <= len(text)
