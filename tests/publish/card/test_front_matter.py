"""Front matter as people, editors and other tools write it, and what the Hub wants of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.publish.pushes import make_release, run_here
from vaeconv.errors import InputError, UsageError
from vaeconv.publish.card.card import CardInputs, write_card
from vaeconv.publish.card.check import check_card
from vaeconv.publish.card.front_matter import join_card, split_card
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.card.rules import LICENSES, front_problems

FRONT = {"license": "openrail", "library_name": "diffusers", "extra_gated_prompt": "agree"}
LINES = "license: openrail\nlibrary_name: diffusers\nextra_gated_prompt: agree\n"
BODY = "# Mine\n\nText of people.\n"
PLAIN = f"---\n{LINES}---\n\n{BODY}"
ODD = {
    "byte order mark": "\ufeff" + PLAIN,
    "two of them": "\ufeff\ufeff" + PLAIN,
    "windows": "\ufeff" + PLAIN.replace("\n", "\r\n"),
    "old mac": PLAIN.replace("\n", "\r"),
    "blank lines above": f"\n \n\n{PLAIN}",
    "spaces behind the hyphens": PLAIN.replace("---\n", "---  \t\n"),
    "dots at the end": PLAIN.replace("---\n\n", "...\n\n"),
    "a comment above": f"<!-- ours -->\n\n{PLAIN}",
    "a long comment above": f"<!-- ours\n---\nx\n -->\n{PLAIN}",
    "no blank line below": PLAIN.replace("---\n\n", "---\n"),
    "a rule in the text": f"{PLAIN}\n---\n\nmore: text\n\n---\n",
}


@pytest.mark.parametrize("kind", ODD)
def test_front_matter_is_seen_however_it_was_saved(kind: str, tmp_path: Path) -> None:
    card = split_card(ODD[kind])
    assert card.front == FRONT and "Text of people." in card.body
    release = make_release(tmp_path / "release")
    path = release / "README.md"
    path.write_bytes(ODD[kind].encode())
    write_card(CardInputs(release, CardMeta(repo_id="user/tiny")))
    text = path.read_bytes().decode()
    # The judge: the Hub's own client reads one front matter, and everything of people's is there.
    judge = ModelCard(text)
    data: Any = judge.data
    assert {**FRONT, **data.to_dict()} == data.to_dict() and text.startswith("---\nlicense")
    assert "extra_gated" not in judge.text and "Text of people." in judge.text
    assert ("<!-- ours" in judge.text) == ("comment" in kind)
    assert ("more: text" in judge.text) == ("rule" in kind)
    assert "\r" not in text and "\ufeff" not in text
    before = text
    write_card(CardInputs(release, CardMeta(repo_id="user/tiny")))
    assert path.read_text() == before
    assert check_card(release) == []


@pytest.mark.parametrize(
    "kind",
    ["byte order mark", "windows", "dots at the end", "spaces behind the hyphens",
     "a comment above"],
)  # fmt: skip
def test_a_check_says_what_the_client_would_not_see(kind: str, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    (release / "README.md").write_bytes(ODD[kind].encode())
    (problem,) = check_card(release)
    assert "vaeconv card writes it again" in problem


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# No front matter\n",
        "Words\n\n---\n\na: rule\n\n---\n",
        "<!-- c -->\n\n---\n\n- x\n---\n",
    ],
)
def test_what_is_no_front_matter_stays_text(text: str) -> None:
    card = split_card(text)
    assert (card.has_front, card.front, card.body) == (False, {}, text)


def test_empty_front_matter() -> None:
    for text in ("---\n---\n# T\n", "---\n\n---\n# T\n", "---\n# a comment\n---\n# T\n"):
        assert split_card(text) == ({}, "# T\n", True, True)


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("license: mit\nlicense: gpl\n", "the key license twice, again in line 3"),
        ("a:\n  b: 1\n  b: 2\n", "the key b twice"),
        ("a: &x [1]\nb: *x\n", r"refers to itself \(\*x\)"),
        ("a: &x [*x]\n", r"refers to itself \(\*x\)"),
        ("no: 1\n", "key that YAML reads as False"),
        ("1: 1\n", "key that YAML reads as 1"),
        ("a: 2024-02-31\n", "cannot be read"),
        ("a: !!python/object:os.system x\n", "cannot be read"),
        ("a:\tb\n c: [\n", "cannot be read"),
        ("a: " + "[" * 2000 + "\n", "cannot be read"),
    ],
)
def test_front_matter_that_is_refused(front: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_card(f"---\n{front}---\n# T\n")


def test_front_matter_without_an_end() -> None:
    with pytest.raises(InputError, match="has no end"):
        split_card("---\nlicense: mit\n# T\n")


# PyYAML itself writes a next-line character that it does not read back.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")))


@settings(deadline=None)
@given(
    st.dictionaries(TEXTS.filter(bool), TEXTS | st.integers() | st.lists(TEXTS, max_size=3)),
    st.text(),
)
def test_what_is_put_together_comes_apart(front: dict[str, Any], body: str) -> None:
    card = split_card(join_card(front, body))
    assert card.front == front and card.has_front


# --- the Hub's rules ---


RULES = [
    ({"license": "Apache 2.0"}, "did you mean apache-2.0?"),
    ({"license": "Apache License, Version 2.0"}, "did you mean apache-2.0?"),
    ({"license": "MIT"}, "did you mean mit?"),
    ({"license": "The MIT License"}, "did you mean mit?"),
    ({"license": "CC BY-NC 4.0"}, "did you mean cc-by-nc-4.0?"),
    ({"license": "CreativeML Open RAIL-M"}, "did you mean creativeml-openrail-m?"),
    ({"license": "GPLv3"}, "did you mean gpl"),
    ({"license": "my own"}, "license: other, with license_name"),
    ({"license": ["mit", "Apache"]}, "'Apache' is not one that the Hub knows"),
    ({"license": True}, "put quotes around True"),
    ({"license": "other"}, "needs license_name"),
    ({"license": "other", "license_name": "x"}, "needs license_link, or a file LICENSE"),
    ({"license": "other", "license_name": "x", "license_link": "gone.md"}, "neither a URL"),
    ({"license": "other", "license_name": "My License", "license_link": "https://x.org/l"},
     "not an identifier"),
    ({"base_model": "a model of mine"}, "base_model 'a model of mine' is not owner/name"),
    ({"base_model": ["a/b/c"]}, "is not owner/name"),
    ({"base_model": "https://huggingface.co/a/b"}, "is not owner/name"),
    ({"base_model_relation": "finetuned"}, "did you mean finetune?"),
    ({"datasets": ["LAION aesthetics"]}, "datasets 'LAION aesthetics' is not"),
    ({"datasets": "a/b"}, "datasets in the front matter is not a list of texts"),
    ({"tags": [False]}, "put quotes around False"),
    ({"tags": [1.0, "x"]}, "put quotes around 1.0"),
    ({"language": False}, "put quotes around False"),
    ({"language": "english"}, "'english' is not an ISO 639 code"),
    ({"language": ["en", "EN"]}, "'EN' is not an ISO 639 code"),
    ({"pipeline_tag": "image-2-image"}, "did you mean image-to-image?"),
    ({"library_name": 3}, "library_name in the front matter is not a text"),
    ({"thumbnail": "assets/x.png"}, "is not a URL"),
    ({"model-index": {}}, "model-index in the front matter is not a list"),
    ({"model-index": [{"results": []}]}, "model-index[0] has no name"),
    ({"model-index": [{"name": "x"}]}, "has no list of results"),
    ({"model-index": [{"name": "x", "results": [3]}]}, "results[0] cannot be read"),
    ({"model-index": [{"name": "x", "results": [{"task": {"type": "t"}, "dataset": {"type": "d"},
      "metrics": [{"type": "psnr"}]}]}]}, "dataset has no name"),
    ({"model-index": [{"name": "x", "results": [{"task": {"type": "t"}, "dataset":
      {"type": "d", "name": "D"}, "metrics": [{"type": "psnr"}]}]}]}, "metrics[0] has no value"),
]  # fmt: skip


@pytest.mark.parametrize(("front", "said"), RULES)
def test_what_the_hub_would_not_take(front: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in front_problems(front, published=[]))
    # The same from each place that looks.
    release = make_release(tmp_path / "release")
    path = release / "README.md"
    path.write_text(join_card({"library_name": "diffusers", "license": "mit", **front}, "# T\n"))
    told = json.loads(run_here("card", release, "--check", "--json").stdout)["problems"]
    assert any(said in problem for problem in told), told
    pushed = run_here("push", release, "user/x")
    written = run_here("card", release)
    assert (pushed.exit_code, written.exit_code) == (4, 0 if "library_name" in front else 3)
    assert said in pushed.stderr and ("library_name" in front or said in written.stderr)


FINE: list[dict[str, Any]] = [
    *({"license": one} for one in sorted(LICENSES - {"other"})),
    {"license": ["mit", "apache-2.0"]},
    {"license": "other", "license_name": "my-license-1.0", "license_link": "https://x.org/l"},
    {"license": "other", "license_name": "mine", "license_link": "LICENSE.md"},
    {"license": "other", "license_name": "mine"},
    {"base_model": ["stabilityai/sd-vae-ft-mse", "gpt2"], "base_model_relation": "merge"},
    {"datasets": ["a/b", "common_voice"], "language": ["no", "en", "zh-Hant", "code"]},
    {"pipeline_tag": "image-to-image", "thumbnail": "https://x.org/a.png", "anything": [1, {}]},
]


def test_what_the_hub_takes() -> None:
    for front in FINE:
        assert front_problems(front, published=["LICENSE.md", "config.json"]) == [], front


def test_facts_of_a_card_that_the_hub_would_not_take(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    meta = CardMeta(license="Apache 2.0", base_model="my model", datasets=("x y",))
    before = (release / "README.md").read_text()
    with pytest.raises(UsageError, match="3 problems") as caught:
        write_card(CardInputs(release, meta))
    assert "did you mean apache-2.0?" in caught.value.details[0]
    assert (release / "README.md").read_text() == before
    good = CardMeta(license="other", license_name="mine-1.0", license_link="https://x.org/l")
    write_card(CardInputs(release, good))
    assert check_card(release) == []


def test_nothing_of_the_client_s_own_words(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    (release / "README.md").write_text("# Mine\n")
    result = run_here("card", release)
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(
        "warning: push refuses this card: the front matter names no license"
    )
    assert "license" not in (release / "README.md").read_text().split("---")[1]
    result = run_here("push", release, "user/x")
    assert result.stderr.count("\n") == 1 and "names no license" in result.stderr
