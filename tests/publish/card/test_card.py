"""``vaeconv card``: the published card from data, what people wrote, and what is wrong with one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import FP16, PLAIN, parity_of, run_here, write_manifest
from vaeconv.errors import InputError, UsageError
from vaeconv.publish.card.card import CardInputs, make_card, write_card
from vaeconv.publish.card.check import check_card, without_code
from vaeconv.publish.card.meta import CardMeta, read_meta
from vaeconv.publish.card.sections import (
    PROSE,
    Section,
    find_sections,
    merge_sections,
    original_section,
    prose_sections,
)
from vaeconv.publish.documents import read_document

DATA = FIXTURES / "card"
COCO, LAION = DATA / "coco.json", DATA / "laion.json"
MODELS = {
    "original": ("246803", "https://ommer-lab.com/files/latent-diffusion/kl-f8.zip"),
    "ft-EMA": (
        "560001",
        "https://huggingface.co/stabilityai/sd-vae-ft-ema-original/resolve/main/"
        "vae-ft-ema-560000-ema-pruned.ckpt",
    ),
    "ft-MSE": (
        "840001",
        "https://huggingface.co/stabilityai/sd-vae-ft-mse-original/resolve/main/"
        "vae-ft-mse-840000-ema-pruned.ckpt",
    ),
}
COMMENTS = (
    "as used in SD",
    "slightly better overall, with EMA",
    "resumed with EMA from ft-EMA, emphasis on MSE (rec. loss = MSE + 0.1 * LPIPS), "
    "smoother outputs",
)
TABLES = {
    "COCO 2017 (256x256, val, 5000 images)": (
        ("4.99", "23.4 +/- 3.8", "0.69 +/- 0.14", "1.01 +/- 0.28"),
        ("4.42", "23.8 +/- 3.9", "0.69 +/- 0.13", "0.96 +/- 0.27"),
        ("4.70", "24.5 +/- 3.7", "0.71 +/- 0.13", "0.92 +/- 0.27"),
    ),
    "LAION-Aesthetics 5+ (256x256, subset, 10000 images)": (
        ("2.61", "26.0 +/- 4.4", "0.81 +/- 0.12", "0.75 +/- 0.36"),
        ("1.77", "26.7 +/- 4.8", "0.82 +/- 0.12", "0.67 +/- 0.34"),
        ("1.88", "27.3 +/- 4.7", "0.83 +/- 0.11", "0.65 +/- 0.34"),
    ),
}
Change = Callable[[dict[str, Any]], Any]


def make_release(folder: Path) -> Path:
    (folder / "assets").mkdir(parents=True)
    for name in ("00025_merged.png", "00011_merged.png", "sheet.png", "notes.txt"):
        (folder / "assets" / name).write_bytes(b"picture")
    compare = {"command": "compare", "order": ["ft-EMA", "ft-MSE", "original"]}
    (folder / "assets" / "compare.json").write_text(json.dumps(compare))
    for name in (PLAIN, FP16, "config.json"):
        (folder / name).write_bytes(name.encode())
    write_manifest(folder)
    return folder


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def inputs_of(folder: Path, **changes: Any) -> CardInputs:
    inputs = CardInputs(
        folder,
        meta=read_meta(DATA / "card.toml"),
        evaluations=(read_document(COCO, "eval"), read_document(LAION, "eval")),
        parity=parity_of(folder / PLAIN),
        pictures=folder / "assets",
    )
    return inputs._replace(**changes)


def changed(path: Path, change: Change) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    change(document)
    return document


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("\\|", "\0").strip().strip("|").split("|")]


def plain(text: str) -> str:
    return text.replace("\\", "").replace("<", "").replace(">", "")


# --- the published card ---


def test_the_published_card_comes_from_data(release: Path) -> None:
    from huggingface_hub import ModelCard

    text = make_card(inputs_of(release))
    lines = text.splitlines()
    for title, rows in TABLES.items():
        at = lines.index(f"### {title}")
        table = [cells(line) for line in lines[at + 2 : at + 7]]
        assert table[0] == [
            "Model", "train steps", "rFID", "PSNR", "SSIM", "PSIM", "Link", "Comments"
        ]  # fmt: skip
        for row, (name, (steps, link)), numbers, comment in zip(
            table[2:], MODELS.items(), rows, COMMENTS, strict=True
        ):
            assert [plain(cell) for cell in row] == [name, steps, *numbers, link, comment]
    for fact in (
        "# Improved autoencoders: ft-MSE",
        "AutoencoderKL.from_pretrained(\"stabilityai/sd-vae-ft-mse\")",
        "StableDiffusionPipeline.from_pretrained(\"CompVis/stable-diffusion-v1-4\", vae=vae)",
        "from_pretrained(\"stabilityai/sd-vae-ft-mse\", variant=\"fp16\")",
        "(https://huggingface.co/stabilityai/sd-vae-ft-mse-original)",
        "/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors)",
        "| steps of ft-EMA | 313198 |",
        "| steps of ft-MSE after ft-EMA | 280k |",
        "| batch size | 192 (16 A100, 12 on each) |",
        "L1 + LPIPS", "MSE + 0.1 * LPIPS", "LAION-Aesthetics", "LAION-Humans", "OpenImages",
        "#pretrained-autoencoding-models", "Only the decoder was trained", "drop-in replacement",
        "From left to right: ft-EMA, ft-MSE, original.",
        "![00011_merged](assets/00011_merged.png)", "![00025_merged](assets/00025_merged.png)",
    ):  # fmt: skip
        assert fact in text, fact
    assert "sheet.png" not in text and "notes.txt" not in text
    assert "tiny.ckpt and release are the same autoencoder" in text
    assert f"| made from | tiny.ckpt, sha256 {'0' * 64} |" in text
    assert "| checked with | device cpu, torch 2.0 |" in text

    data = ModelCard(text).data
    assert (data.license, data.library_name, data.inference) == ("mit", "diffusers", False)
    assert data.tags == ["stable-diffusion", "stable-diffusion-diffusers", "text-to-image"]
    found = {
        (result.dataset_name, result.metric_name): result.metric_value
        for result in data.eval_results
    }
    # Of this model only, and each number as it was measured.
    expected = {
        (json.loads(path.read_text())["pictures"]["name"], names[name]): value
        if name == "rfid"
        else value["mean"]
        for path in (COCO, LAION)
        for name, value in json.loads(path.read_text())["models"][2]["metrics"].items()
        for names in ({"rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "psim": "PSIM"},)
    }
    assert len(expected) == 8
    assert found == expected
    stds = {r.metric_name: r.metric_args.get("std") for r in data.eval_results[:4]}
    assert stds == {"rFID": None, "PSNR": 3.7, "SSIM": 0.13, "PSIM": 0.27}
    assert {r.metric_args["images"] for r in data.eval_results} == {5000, 10000}
    assert {r.task_type for r in data.eval_results} == {"image-reconstruction"}


def test_it_passes_its_own_check_and_the_hubs(release: Path) -> None:
    from tests.support.loopback_hub.accounts import check_card as check_on_hub

    inputs = inputs_of(release)
    write_card(inputs)
    assert check_card(release, inputs.evaluations) == []
    assert check_on_hub((release / "README.md").read_text()) == ([], [])


def test_the_command(release: Path) -> None:
    options = (
        "--meta", DATA / "card.toml", "--eval", COCO, "--eval", LAION,
        "--pictures", release / "assets",
    )  # fmt: skip
    result = run_here("card", release, *options, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert not (release / "README.md").exists()
    told = json.loads(run_here("card", release, *options, "--json").stdout)
    text = (release / "README.md").read_text()
    assert told["text"] == result.stdout == text
    assert (told["ok"], told["dry_run"]) == (True, False)
    assert run_here("card", release, *options).stdout.startswith("wrote ")
    assert (release / "README.md").read_text() == text
    assert run_here("card", release, "--check", "--eval", COCO, "--eval", LAION).exit_code == 0
    shown = run_here("card", release, *options, "--print").stdout
    assert "Evaluation" in shown and "23.8" in shown
    assert "library_name" not in shown and "<!--" not in shown
    hashes = re.findall(r"[0-9a-f]{64}", text)
    assert hashes
    for digest in hashes:  # in pieces where the column is narrow, and never cut
        assert digest in re.sub(r"\s", "", shown)
    assert run_here("card", release, *options, "--quiet").stdout == ""


# --- merging ---

OWN = """---
license: apache-2.0
my-key: mine
tags:
- my-tag
---

# My own title


Two lines above and below stay.


"""


def test_what_people_wrote_stays(release: Path) -> None:
    inputs = inputs_of(release)
    code = "```python\nimport a\n\n\n\ndef f():\n    return a\n```"
    sections = make_card(inputs)
    marked = find_sections(sections)
    assert list(marked) == [
        "about",
        "training",
        "usage",
        "original",
        "evaluation",
        "pictures",
        "provenance",
    ]
    middle = f"\n\nBetween | them\n\n\n{code}\n\n"
    old = marked["usage"].replace("## Use with diffusers", "Something old")
    text = f"{OWN}{old}{middle}{marked['evaluation']}\n\nAfter\n"
    (release / "README.md").write_text(text)
    made = make_card(inputs)
    assert "Two lines above and below stay.\n\n\n<!-- vaeconv:begin usage -->" in made
    # What is new stands behind what it follows.
    assert f"<!-- vaeconv:end usage -->\n\n{marked['original']}{middle}" in made
    assert f"{middle}{marked['evaluation']}\n\n{marked['pictures']}" in made
    assert made.endswith("\n\nAfter\n")
    assert "# My own title\n\n\nTwo lines" in made
    assert "Something old" not in made and "# Improved" not in made
    front = made.split("---\n")[1]
    assert "my-key: mine" in front and "license: mit" in front
    assert "- my-tag" in front and "- stable-diffusion" in front
    assert find_sections(made) == {name: text for name, text in marked.items() if name not in PROSE}

    (release / "README.md").write_text(made)
    assert make_card(inputs) == made
    (release / "README.md").write_text(make_card(inputs))
    assert make_card(inputs) == made


def test_twice_is_the_same_bytes(release: Path) -> None:
    inputs = inputs_of(release)
    path = write_card(inputs)
    once = path.read_bytes()
    write_card(inputs)
    assert path.read_bytes() == once


def test_a_section_that_is_no_longer_made_goes(release: Path) -> None:
    inputs = inputs_of(release)
    path = write_card(inputs)
    write_card(inputs._replace(pictures=None, parity=None, evaluations=()))
    assert list(find_sections(path.read_text())) == [
        "about",
        "training",
        "usage",
        "original",
        "provenance",
    ]
    assert "\n\n\n" not in path.read_text()


def test_changed_facts_reach_the_card(release: Path) -> None:
    """Where the card has a place for them; what people wrote around it stays."""
    inputs = inputs_of(release)
    path = write_card(inputs)
    begin = "<!-- vaeconv:begin training -->"
    path.write_text(path.read_text().replace(begin, f"Mine.\n\n{begin}\nLost."))
    facts = {"title": "New", "summary": "New summary.", "training": "", "facts": {"steps": 7}}
    meta = replace(inputs.meta, **facts)
    write_card(inputs._replace(meta=meta))
    marked = find_sections(path.read_text())
    text = path.read_text()
    assert "\n# New\n\nNew summary.\n" in marked["about"]
    assert "# Improved" not in text
    assert "| steps | 7 |" in marked["training"] and "313198" not in text
    assert "Mine." in text and "Lost." not in text

    # Without these facts the words of the card are as they were.
    write_card(inputs._replace(meta=CardMeta(repo_id="a/b", model="ft-MSE")))
    again = find_sections(path.read_text())
    assert [again[name] for name in PROSE[:2]] == [marked[name] for name in PROSE[:2]]


def test_the_results_that_people_put_into_front_matter_stay(release: Path) -> None:
    path = write_card(inputs_of(release))
    write_card(CardInputs(release, meta=CardMeta(repo_id="a/b")))
    assert "value: 24.5" in path.read_text()


def test_merging_sections() -> None:
    one, two = Section("one", "1"), Section("two", "2")
    begin, end = "<!-- vaeconv:begin one -->", "<!-- vaeconv:end one -->"
    assert merge_sections("Text", [one]) == f"Text\n\n{one.marked}\n"
    assert merge_sections(f"A\n{begin}\nold\n{end}\nB", [one]) == f"A\n{one.marked}\nB\n"
    assert merge_sections(f"A\n\n{begin}\nold\n{end}\n\nB\n", []) == "A\n\nB\n"
    text = f"{begin}\nold\n{end}\n{begin}\nold\n{end}\n"
    assert merge_sections(text, [one, two]).count("old") == 0
    assert merge_sections(text, [one, two]).count(one.marked) == 1
    assert merge_sections(f"A\n\n{one.marked}\n\nB", [one, two]) == (
        f"A\n\n{one.marked}\n\n{two.marked}\n\nB\n"
    )
    assert merge_sections(f"A\n\n{two.marked}", [one, two]) == (
        f"A\n\n{two.marked}\n\n{one.marked}\n"
    )
    said = Section("about", "3", is_prose=True)
    assert merge_sections("A", [said]) == "A\n"
    assert merge_sections(f"{said.marked}\n\nA", [one]).startswith(f"{said.marked}\n\nA")
    # Not closed: nothing that was made here.
    assert merge_sections(f"{begin}\nold", []) == f"{begin}\nold\n"


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("vae.safetensors", 'load_file("vae.safetensors")'),
        ("vae.sft", 'load_file("vae.sft")'),
        ("vae.ckpt", 'torch.load("vae.ckpt", map_location="cpu", weights_only=True)["state_dict"]'),
    ],
)
def test_how_to_load_the_compvis_file(file: str, load: str) -> None:
    text = original_section("user/tiny-original", file).text
    assert f"load_state_dict({load}, strict=False)" in text
    assert ("import torch\n" in text) == file.endswith(".ckpt")


def test_a_folder_of_something_else_gets_no_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    for place, said in (
        (tmp_path, "holds neither weights nor a manifest"),
        (FIXTURES / "tiny-kl.ckpt", "is a file"),
    ):
        result = run_here("card", place)
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1) and said in result.stderr
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_inputs_from_python(release: Path) -> None:
    with pytest.raises(UsageError, match="it must be CardInputs"):
        make_card(str(release))  # type: ignore[arg-type]
    assert make_card(CardInputs(str(release))) == make_card(CardInputs(release))  # type: ignore[arg-type]


def test_a_title_is_one_heading() -> None:
    (about,) = prose_sections("Two\nlines ", CardMeta(summary="Words."))
    assert about.text == "# Two lines\n\nWords."


@pytest.mark.parametrize("front", ["---\na: [\n---\n", "---\n- a\n---\n", "---\na: b: c\n---\n"])
def test_front_matter_that_cannot_be_read_is_left(release: Path, front: str) -> None:
    (release / "README.md").write_text(f"{front}# Mine\n")
    with pytest.raises(InputError, match="front matter cannot be read"):
        write_card(inputs_of(release))
    assert (release / "README.md").read_text() == f"{front}# Mine\n"
    assert any("front matter" in problem for problem in check_card(release))


def test_a_card_that_is_no_text(release: Path) -> None:
    (release / "README.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        write_card(inputs_of(release))
    (release / "README.md").unlink()
    (release / "README.md").mkdir()
    with pytest.raises(InputError):
        make_card(inputs_of(release))
    assert "the card cannot be read" in check_card(release)[0]


# --- templates ---


def test_a_template_of_ones_own(release: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.j2"
    template.write_text("{{ card_data }}\n# {{ title }} by me\n{{ meta.license }}\n")
    result = run_here("card", release, "--meta", DATA / "card.toml", "--template", template)
    assert result.exit_code == 0, result.stderr
    text = (release / "README.md").read_text()
    assert text.endswith("# Improved autoencoders: ft-MSE by me\nmit\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{{ nothing }}", "the template does not work"),
        (b"{% if %}", "the template does not work"),
        (b"{{ ''.__class__.__mro__ }}", "the template does not work"),
        (b"{{ 1/0 }}", "the template does not work (ZeroDivisionError"),
        (b"{{ range(10**9)|list }}", "the template does not work (OverflowError"),
        (b"{{ 'a'.upper(1, 2) }}", "the template does not work (TypeError"),
        (b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "the template does not work"),
        (b'{% include "/etc/passwd" %}', "the template does not work"),
        (b"{{ " + b"(" * 3000, "the template does not work"),
        (b"\xff", "not a UTF-8 text file"),
        (None, "No such file"),
    ],
)
def test_a_template_that_does_not_work(
    release: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    template = tmp_path / "mine.j2"
    if content is not None:
        template.write_bytes(content)
    result = run_here("card", release, "--template", template)
    assert result.exit_code == 3
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not (release / "README.md").exists()


def test_a_card_on_a_terminal_cannot_control_it(release: Path, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text('summary = "a \\u001b[31m \\u001b]0;b\\u0007 \\u202e"\n')
    for more in ([], ["--print"]):
        result = run_here("card", release, "--meta", tmp_path / "card.toml", "--dry-run", *more)
        assert result.exit_code == 0 and r"\x1b]0;b\x07" in result.stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x80-\x9f\u202e]", result.stdout)


# --- checking ---


@pytest.mark.parametrize(
    "odd", ["[" * 100_000, "<img " * 30_000, "[a](b " * 30_000, "`a``b" * 30_000, "```a\n" * 50_000]
)
def test_a_check_of_an_odd_card_takes_no_longer_than_reading_it(release: Path, odd: str) -> None:
    path = write_card(inputs_of(release))
    path.write_text(path.read_text() + odd)
    assert check_card(release) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a `b` c", "a  c"),
        ("a ``b ` c`` d", "a  d"),
        ("a `b", "a `b"),
        ("`a``b`", ""),
        ("a\n```\n[x](y)\n```\nb", "a\nb"),
        ("a\n```\n[x](y)\n````\nb", "a\nb"),
        ("a\n````\n```\n[x](y)\n````\nb", "a\nb"),
        ("a\n~~~ py\n```\n~~~\nb", "a\nb"),
        ("```a``` b\n[x](y)", " b\n[x](y)"),
    ],
)
def test_code_is_found_as_in_commonmark(text: str, kept: str) -> None:
    assert without_code(text) == kept


GOOD = "---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- vae\n---\n"
FRONTS = {
    "no front matter": ("# Title\n", "no front matter"),
    "no license": ("---\nlibrary_name: diffusers\n---\n", "names no license"),
    "library": ("---\nlicense: mit\n---\n", "library_name: diffusers"),
    "list": (GOOD.replace("- vae", "- 3"), "tags in the front matter is not a list of texts"),
    "datasets": (GOOD.replace("tags", "datasets").replace("\n- vae", " 3"), "datasets in"),
    "text": (GOOD.replace("license: mit", "license: 3"), "license in the front matter is not a"),
    "yaml": ("---\na: [\n---\n", "the front matter cannot be read"),
    "index": (
        GOOD.replace("tags:\n- vae", "model-index: 3"),
        "model-index in the front matter is not a list",
    ),
    "dead": (GOOD + "[a](gone.md)\n", "the link gone.md leads to nothing"),
    "dead with a title": (GOOD + '![a](gone.md "Title")\n', "the link gone.md leads to nothing"),
    "dead in brackets": (GOOD + "[[a]](gone(1).md)\n", "the link gone(1).md leads to nothing"),
    "dead picture": (GOOD + "<img src='assets/gone.png' />\n", "assets/gone.png leads to nothing"),
    "outside": (GOOD + "[a](../secret)\n", "the link ../secret leads out of the release"),
    "absolute": (GOOD + "[a](/etc/passwd)\n", "the link /etc/passwd leads out of the release"),
    "odd": (GOOD + "[a](b%00c)\n", "the link b%00c leads to nothing"),
    "long": (GOOD + f"[a]({'b' * 5000})\n", "the link bbbb"),
}


@pytest.mark.parametrize("kind", FRONTS)
def test_check_names_what_is_wrong(release: Path, kind: str) -> None:
    text, said = FRONTS[kind]
    (release / "README.md").write_text(text)
    result = run_here("card", release, "--check")
    assert result.exit_code == 4
    assert said in result.stdout, result.stdout
    assert result.stderr.count("\n") == 1 and "README.md" in result.stderr
    assert "more" not in result.stderr
    told = json.loads(run_here("card", release, "--check", "--json").stdout)
    assert told["ok"] is False and any(said in problem for problem in told["problems"])
    assert (release / "README.md").read_text() == text


def test_check_lists_all_when_quiet_too(release: Path) -> None:
    (release / "README.md").write_text(GOOD + "[a](none) [b](neither)\n")
    result = run_here("card", release, "--check", "--quiet")
    head, *details = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (4, "")
    assert "the card has problems: 2 problems" in head and len(details) == 2


def test_check_accepts_what_is_right(release: Path) -> None:
    (release / "assets" / "a b.png").write_bytes(b"")
    (release / "README.md").write_text(
        GOOD + "[w](https://x.org/a) [m](mailto:a@b.c) [h](#use) ![p](assets/a%20b.png)\n"
        "[c](config.json#L3) [f](assets)\n\n```python\nblocks[0](x)\n```\n\n`blocks[0](y)`\n"
    )
    result = run_here("card", release, "--check")
    assert (result.exit_code, result.stderr) == (0, ""), result.stdout
    assert "has no problems" in result.stdout


def test_check_knows_what_is_published(release: Path) -> None:
    (release / "README.md").write_text(GOOD + "[f](assets) [c](config.json)\n")
    assert check_card(release, published=["README.md", "assets/a.png", "config.json"]) == []
    for published in (["assets/a.png"], ["assets/a.png", "config.json.bak"]):
        (problem,) = check_card(release, published=published)
        assert problem == "the link config.json leads to nothing", "it lies there, and does not go"
    (problem,) = check_card(release, published=["assets.txt", "config.json"])
    assert problem == "the link assets leads to nothing"


def test_check_compares_the_numbers(release: Path) -> None:
    inputs = inputs_of(release)
    path = write_card(inputs)
    text = path.read_text()
    for old, new, said in (
        ("24.5 +/- 3.7", "25.5 +/- 3.7", "the tables lack a line of the evaluation"),
        ("value: 24.5", "value: 25.5", "the model-index has PSNR 25.5, which no evaluation has"),
        ("840001", "840002", "the tables lack a line"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        problems = check_card(release, inputs.evaluations)
        assert len(problems) >= 1 and said in problems[0], problems
        result = run_here("card", release, "--check", "--eval", COCO, "--eval", LAION)
        assert result.exit_code == 4 and said in result.stdout
        assert check_card(release) == []
    path.unlink()
    assert run_here("card", release, "--check").exit_code == 4


# --- odd data ---

HOSTILE = "a|b\n<!-- vaeconv:end evaluation -->\n# x <script>`c`</script>"


def test_hostile_texts_stay_in_their_place(release: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        for model in document["models"]:
            model["comment"] = HOSTILE
        document["pictures"]["title"] = HOSTILE
        document["protocol"]["description"] = HOSTILE
        document["titles"] = {"psnr": HOSTILE}
        document["nets"] = [
            {"name": f"x`{HOSTILE}", "sha256": f"`\n<b>{'0' * 60}", "file": "f",
             "is_published": True}
        ]  # fmt: skip

    evil = changed(COCO, spoil)
    compare = {"command": "compare", "order": [HOSTILE]}
    (release / "assets" / "compare.json").write_text(json.dumps(compare))
    meta = CardMeta(
        title="T",
        model="ft-MSE",
        repo_id="a/b",
        license="mit",
        facts={"x|y": "1|2\n3", "<!-- vaeconv:end usage -->": "<!-- vaeconv:begin usage -->"},
    )
    parity = parity_of(release / PLAIN)
    parity["sides"][1]["name"] = HOSTILE
    inputs = inputs_of(release, meta=meta, evaluations=(evil,), parity=parity)
    path = write_card(inputs)
    text = path.read_text()
    assert list(find_sections(text)) == [
        "about", "training", "usage", "evaluation", "pictures", "provenance"
    ]  # fmt: skip
    body = text.split("\n---\n", 1)[1]
    assert body.count("<!-- vaeconv:end evaluation -->") == 1
    assert "\n# x" not in text and "<b>" not in text
    for line in text.splitlines():
        if line.startswith(("| ft-", "| original")):
            assert len(cells(line)) == 8, line
    assert "| x\\|y | 1\\|2 3 |" in text
    write_card(inputs)
    assert path.read_text() == text
    assert check_card(release, (evil,)) == []


@pytest.mark.parametrize("field", ["summary", "training", "limits", "original_file"])
def test_what_looks_like_a_marker_is_none(release: Path, field: str) -> None:
    texts = {"original_repo_id": "a/c", "original_file": "f"}
    texts[field] = "<!-- vaeconv:begin usage -->\nmine\n<!-- vaeconv:end usage -->\nmore"
    inputs = CardInputs(release, meta=CardMeta(repo_id="a/b", **texts))
    path = write_card(inputs)
    text = path.read_text()
    assert "mine" in text and text.count("<!-- vaeconv:end usage -->") == 1
    write_card(inputs)
    assert path.read_text() == text


def test_pictures_with_odd_names(release: Path) -> None:
    folder = release / "assets"
    for name in ("a b.png", "c](d).png", "ü.png", "e\nf.png"):
        (folder / name).write_bytes(b"")
    path = write_card(inputs_of(release))
    assert check_card(release) == []
    assert "(assets/a%20b.png)" in path.read_text() and "(assets/e%0Af.png)" in path.read_text()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(InputError, match="its name is not UTF-8"):
        make_card(inputs_of(release))
    result = run_here("card", release, "--pictures", folder)
    assert result.exit_code == 3 and result.stderr.count("\n") == 1
    odd = release / os.fsdecode(b"odd\xff")
    odd.mkdir()
    (odd / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="its name is not UTF-8"):
        make_card(inputs_of(release, pictures=odd))


def test_pictures_must_be_in_the_release(release: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match="inside the folder that is published"):
        make_card(inputs_of(release, pictures=tmp_path / "elsewhere"))
    (release / "empty").mkdir()
    for place, said in (("empty", "no images"), ("nowhere", "not a folder of images")):
        with pytest.raises(InputError, match=said):
            make_card(inputs_of(release, pictures=release / place))


def test_the_model_must_be_in_the_evaluation(release: Path) -> None:
    for name in ("", "ft-XXX"):
        with pytest.raises(UsageError, match="there are original, ft-EMA, ft-MSE"):
            make_card(inputs_of(release, meta=CardMeta(model=name)))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "3", "null", '{"command": 3}', "\x00", "[" * 100000],
    ids=lambda content: content[:5],
)
@pytest.mark.parametrize("option", ["--eval", "--parity"])
def test_a_report_that_is_something_else(
    release: Path, tmp_path: Path, option: str, content: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    for check in ((), ("--check",)) if option == "--eval" else ((),):
        result = run_here("card", release, option, path, *check)
        assert result.exit_code == 3, result.stderr
        assert result.stderr.count("\n") == 1 and "report.json" in result.stderr


@pytest.mark.parametrize(("option", "name"), [("--eval", "eval"), ("--parity", "verify")])
@pytest.mark.parametrize("rest", [{}, {"models": []}, {"sides": 3, "pictures": []}], ids=str)
def test_a_report_without_what_is_needed(
    release: Path, tmp_path: Path, option: str, name: str, rest: dict[str, Any]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"command": name, **rest}))
    result = run_here("card", release, option, path)
    assert result.exit_code == 3, result.stderr
    assert result.stderr.count("\n") == 1
    assert not (release / "README.md").exists()
    if option == "--eval":
        (release / "README.md").write_text(GOOD)
        assert run_here("card", release, option, path, "--check").exit_code == 3


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"outputs": [], "source": {"name": "n"}}', '{"outputs": {}}',
                '{"outputs": {"a": 3}, "source": {"name": "n"}}',
                '{"outputs": {"a": {}}, "source": {"name": "n"}}']
)  # fmt: skip
def test_a_manifest_that_is_none(release: Path, content: str) -> None:
    (release / "vaeconv.json").write_text(content)
    result = run_here("card", release)
    assert result.exit_code == 3, result.stdout
    assert result.stderr.count("\n") == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = run_here("card", tmp_path / "nowhere")
    assert result.exit_code == 3 and result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--check", "--print", "--dry-run"])
def test_it_needs_neither_torch_nor_diffusers(release: Path, option: str) -> None:
    code = (
        "import sys; from vaeconv.cli import app\n"
        "try: app()\n"
        "finally: print({'torch', 'diffusers', 'safetensors.torch'} & set(sys.modules))"
    )
    write_card(inputs_of(release))
    done = subprocess.run(
        [sys.executable, "-c", code, "card", str(release), option],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
