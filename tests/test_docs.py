"""The README, the changelog and the help say what is so."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.make_readme import refill
from docs.make_reference import make_reference
from vaeconv import __version__, errors
from vaeconv.cli.group import COMMANDS
from vaeconv.cli.stopping import SIGNALS
from vaeconv.cli.streams import BROKEN_PIPE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENTRY = Path(sys.executable).with_name("vaeconv")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


def steady(text: str) -> str:
    """Leave out what differs from run to run and from processor to processor: times, distances."""
    text = re.sub(r"in \d+\.\d\d s", "in # s", text)
    computed = re.compile(r"^ .*(?:e-\d\d|\+/-|PSNR).*$|(?<=A: out|B: ema).*$", re.MULTILINE)
    return computed.sub(lambda line: " ".join(re.sub(r"[\d.e+-]+", "#", line[0]).split()), text)


def test_every_output_of_the_readme_is_whole_and_true():
    assert len(blocks("console")) >= 5
    assert steady(refill(README)) == steady(README), "make reference runs the commands again"


def test_a_wrong_output_is_seen():
    changed = README.replace("120 tensors, 438 kB", "121 tensors, 438 kB")
    assert steady(changed) != steady(README)
    assert steady("  decode  2.4e-06  ok") == steady("  decode  1.0e-07   ok")


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
    assert done.stdout.splitlines()[0] == "[32, 32]"
    assert done.stdout.splitlines()[-1] == "True []"


def test_the_command_list_is_the_programs():
    listed = re.findall(r"^\| `vaeconv ([\w-]+)", README, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_the_exit_codes_are_the_programs():
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
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
        [sys.executable, "docs/make_picture.py", "fixtures/tiny-kl.ckpt", str(picture)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    shown = text_of(picture)
    assert any("vaeconv inspect fixtures/tiny-kl.ckpt" in line for line in shown)
    assert shown == text_of(ROOT / "docs" / "inspect.svg")


def test_the_reference_of_commands_is_what_the_help_says() -> None:
    said = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert said == make_reference(), "make reference writes it"
