"""The README, the changelog and the help say what is so."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs.make_readme import refill
from docs.make_reference import make_reference
from vaeconv import __version__, errors
from vaeconv.cli.group import COMMANDS, app
from vaeconv.cli.render.release import release_document
from vaeconv.cli.stopping import SIGNALS
from vaeconv.cli.streams import BROKEN_PIPE
from vaeconv.evaluation.models import read_models_file
from vaeconv.publish.card.meta import CardMeta, read_meta
from vaeconv.publish.hub.push import Pushed
from vaeconv.publish.release.release import Release, StepResult

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENTRY = Path(sys.executable).with_name("vaeconv")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def steady(text: str) -> str:
    """Leave out what differs from run to run and from processor to processor: times, distances."""
    text = re.sub(r"in \d+\.\d\d s", "in # s", text)
    text = re.sub(r"^(  (?:decode|encode) +\w+ ).* (\w+)$", r"\1# \2", text, flags=re.MULTILINE)
    # Columns are as wide as the name of the worst reference.
    text = re.sub(
        r"^  computed .*$", lambda one: " ".join(one[0].split()), text, flags=re.MULTILINE
    )
    text = re.sub(r"^(step \d+): loss .*(?:\n  .*)*$", r"\1: #", text, flags=re.MULTILINE)
    return re.sub(r"^(  [\w-]+ +)[\d.]+ \+/- .*$", r"\1#", text, flags=re.MULTILINE)


def test_every_output_of_the_readme_is_whole_and_true():
    assert len(blocks("console")) >= 5
    assert steady(refill(README)) == steady(README), "make reference runs the commands again"


def test_a_wrong_output_is_seen():
    changed = README.replace("184 tensors, 2.0 MB", "185 tensors, 2.0 MB")
    assert steady(changed) != steady(README)
    assert steady("  decode  fp32  noise 3x6  ok") == steady("  decode  fp32  smooth 3x6  ok")
    assert steady("  decode  fp32  noise 3x6  ok") != steady("  decode  fp32  noise 3x6  FAILED")
    assert steady("  computed  dtype  of") == steady("  computed  dtype    of")
    assert steady("  computed  dtype  of") != steady("  computed  type  of")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "fixtures", folder / "fixtures")
    return folder


def test_the_python_example_runs(workplace):
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[64, 32, 32, 64]"
    assert done.stdout.splitlines()[-1] == "True []"


def test_the_command_list_is_the_programs():
    listed = re.findall(r"^\| `vaeconv ([\w-]+)", README, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_the_exit_codes_are_the_programs():
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    used = {c.exit_code for c in classes if issubclass(c, errors.VaeconvError)}
    assert table == used | {0, BROKEN_PIPE} | {128 + number for number in SIGNALS}


def test_the_changelog_begins_with_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert versions[0] == __version__
    assert "## [Unreleased]" in changelog


def test_files_that_the_readme_links_to_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)|`((?:docs|benchmarks|fixtures)/[\w./-]+)`", README):
        assert (ROOT / (target[0] or target[1])).exists(), target


def test_the_stations_of_the_design_are_there():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    (ways,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    stations = re.findall(r"\b[a-z]+(?:/[a-z_]+)+", ways)
    assert len(stations) > 40
    for station in stations:
        module = ROOT / "vaeconv" / station
        assert module.with_suffix(".py").exists() or module.is_dir(), station


def text_of(picture: Path) -> list[str]:
    """The lines that an SVG of rich shows; how it draws them changes with rich."""
    words = re.findall(r"<text[^>]* y=\"([\d.]+)\"[^>]*>(.*?)</text>", picture.read_text("utf-8"))
    lines: dict[str, list[str]] = {}
    for line, word in words:
        lines.setdefault(line, []).append(html.unescape(word).replace("\xa0", " "))
    return ["".join(words).rstrip() for words in lines.values()]


def test_the_picture_is_what_inspect_prints_now(tmp_path):
    picture = tmp_path / "inspect.svg"
    subprocess.run(
        [sys.executable, "docs/make_picture.py", "fixtures/trained.ckpt", str(picture)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    shown = text_of(picture)
    assert any("vaeconv inspect fixtures/trained.ckpt" in line for line in shown)
    assert shown == text_of(ROOT / "docs" / "inspect.svg")


def test_the_reference_of_commands_is_what_the_help_says() -> None:
    said = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert said == make_reference(), "make reference writes it"


# --- docs/json.md ---

JSON = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
COMMON = {"schema_version", "command", "ok"}
RUNS = {
    "inspect": "inspect --keys {ckpt}",
    "convert": "convert --dry-run {ckpt} a",
    "prune": "prune --dry-run {ckpt} a.safetensors",
    "verify": "verify --weights-only {ckpt} {ckpt}",
    "latents": "latents {images} a.safetensors --model {ckpt} --size 32",
    "eval": "eval {ckpt} --images {images} --size 32 --metrics psnr --out eval.json",
    "finetune": "finetune {ckpt} --data {images} --out run --steps 1 --lpips 0 --dry-run",
    "compare": "compare {ckpt} --images {images} --size 32 --out merged",
    "card": "card {folder} --dry-run",
}


def documented(command: str) -> set[str]:
    section = JSON.split(f"\n## {command}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    return {field for row in rows for field in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("command", RUNS)
def test_the_fields_of_every_document_are_those_that_the_page_names(
    command, workplace, monkeypatch
):
    fixtures = workplace / "fixtures"
    args = RUNS[command].format(
        ckpt=fixtures / "tiny-kl.ckpt",
        images=fixtures / "pictures",
        folder=fixtures / "tiny-diffusers",
    )
    monkeypatch.chdir(workplace)
    done = CliRunner().invoke(app, [*args.split(), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() - COMMON == documented(command)


def test_the_page_names_the_fields_of_what_needs_a_hub():
    assert documented("push") == {*Pushed._fields, "dry_run", "original"}
    release = Release((), Path(), ())
    known = release_document(release, dry_run=False).keys() | {"repositories"}
    assert known == documented("release")
    assert all(field in JSON for field in StepResult._fields)


def test_every_command_that_knows_json_is_on_the_page():
    assert set(re.findall(r"^## ([a-z-]+)$", JSON, re.MULTILINE)) == set(COMMANDS) - {"completion"}


def test_the_examples_of_files_are_read(tmp_path):
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    models, card = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "models.toml").write_text(models)
    (tmp_path / "card.toml").write_text(card)
    assert [one.name for one in read_models_file(tmp_path / "models.toml")] == ["ft-EMA", ""]
    meta = read_meta(tmp_path / "card.toml")
    stated = {name for name in CardMeta.__dataclass_fields__ if getattr(meta, name)}
    assert stated | {"license_name", "license_link", "inference"} == set(
        CardMeta.__dataclass_fields__
    )


def test_the_page_of_files_names_what_a_manifest_holds(workplace):
    subprocess.run(
        [ENTRY, "convert", "-q", "--ema", "fixtures/tiny-kl.ckpt", "manifest-out"],
        cwd=workplace,
        check=True,
    )
    manifest = json.loads((workplace / "manifest-out" / "vaeconv.json").read_bytes())
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    section = page.split("## vaeconv.json")[1].split("\n## ")[0]
    assert manifest.keys() <= set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("page", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]))
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s:]+)\)", text):
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text("utf-8"), re.MULTILINE)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, target
