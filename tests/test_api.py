"""The API of Python: what there is, that every example of it runs, and what its pages say."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import vaeconv
from docs.make_api import TARGET, make_api
from tests.publish.pushes import small_hub
from vaeconv.errors import UsageError, name_parameters

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


KNOWN_BAD = {
    "options of nobody": lambda: vaeconv.inspect(CKPT, 5),
    "options of another": lambda: vaeconv.inspect(CKPT, vaeconv.ConvertOptions()),
    "text as options": lambda: vaeconv.convert(CKPT, "out", "x"),
    "number as options": lambda: vaeconv.verify(CKPT, CKPT, 5),
    "prune": lambda: vaeconv.prune(CKPT, "out", 5),
    "evaluate": lambda: vaeconv.evaluate([CKPT], "images", 5),
    "compare": lambda: vaeconv.compare([CKPT], "images", "out", 5),
    "push": lambda: vaeconv.push("out", "a/b", 5),
    "number as output": lambda: vaeconv.convert(CKPT, 5),
    "none as output": lambda: vaeconv.convert(CKPT, None),
    "bytes as output": lambda: vaeconv.convert(CKPT, b"x"),
    "output of prune": lambda: vaeconv.prune(CKPT, 5),
    "no models": lambda: vaeconv.evaluate(None, "images"),
    "one model": lambda: vaeconv.evaluate(CKPT, "images"),
    "number as model": lambda: vaeconv.evaluate([5], "images"),
    "no images": lambda: vaeconv.evaluate([CKPT], None),
    "compared number": lambda: vaeconv.compare(5, "images", "out"),
    "compared without images": lambda: vaeconv.compare([CKPT], None, "out"),
    "compared to nowhere": lambda: vaeconv.compare([CKPT], "images", None),
    "release": lambda: vaeconv.release(5),
    "scaling": lambda: vaeconv.ConvertOptions(scaling=vaeconv.ScalingOptions("x")),
    "reading": lambda: vaeconv.VerifyOptions(a=vaeconv.ModelOptions(5)),
}


@pytest.mark.parametrize("call", KNOWN_BAD.values(), ids=KNOWN_BAD)
def test_a_call_with_something_else_says_what_it_takes(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"must be|is not"):
        call()
    assert not list(tmp_path.iterdir())
