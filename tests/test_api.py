"""The API of Python: what there is, that every example of it runs, and what its pages say."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import vaeconv
from docs.make_api import TARGET, make_api
from tests.publish.pushes import small_hub
from vaeconv.errors import name_parameters

ROOT = Path(__file__).parents[1]
CKPT = ROOT / "fixtures" / "tiny-kl.ckpt"
NAMES = [name for name in vaeconv.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    with small_hub() as hub:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.examples"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=hub.env(tmp_path_factory.mktemp("home")),
        )
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(
    name: str, examples: dict[str, tuple[int, str]]
) -> None:
    number, wrong = examples[name]
    assert number, "no example"
    assert not wrong, wrong


def test_the_names_are_listed() -> None:
    assert dir(vaeconv) == sorted(vaeconv.__all__)
    functions = "inspect convert prune verify encode_images compare make_card push release"
    assert {*functions.split(), "open_checkpoint"} <= set(vaeconv.__all__)


def test_the_page_is_what_the_docstrings_say() -> None:
    assert TARGET.read_text(encoding="utf-8") == make_api(), "make reference writes it"


def test_warnings_reach_those_who_want_them(tmp_path: Path) -> None:
    with pytest.warns(vaeconv.VaeconvWarning, match="pass the one .* scaling_factor$") as caught:
        vaeconv.convert(CKPT, tmp_path / "out")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = vaeconv.ScalingOptions(scaling_factor=0.5)
        vaeconv.convert(CKPT, tmp_path / "b", vaeconv.ConvertOptions(scaling=known))


def test_errors_name_parameters_in_python_and_options_on_the_command_line() -> None:
    with pytest.raises(vaeconv.VaeconvError) as caught:
        vaeconv.convert(CKPT, "out.ckpt", vaeconv.ConvertOptions(legacy_names=True))
    assert "--" not in str(caught.value) and "legacy_names has no effect" in str(caught.value)
    assert "--legacy-names has no effect" in caught.value.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pass --family or --no-check", "pass family or check=False"),
        ("see vaeconv inspect --keys; or --ema", "see vaeconv inspect --keys; or ema"),
        ("a--b and x -- y", "a--b and x -- y"),
    ],
)
def test_options_become_parameters(text: str, said: str) -> None:
    assert name_parameters(text) == said
