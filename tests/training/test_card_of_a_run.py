"""A release that begins with a run's checkpoint says on its card how it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.runs import run
from tests.training.runs import train
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.publish.card.training_facts import training_facts

RELEASE = """
[source]
checkpoint = "run/last.ckpt"
scaling_factor = 0.18215
[card]
license = "mit"
[card.facts]
Images = "holiday photographs"
[verify]
device = "cpu"
"""


def test_the_card_has_a_table_on_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", 2, recipe="ft-mse")
    (tmp_path / "release.toml").write_text(RELEASE)
    monkeypatch.chdir(tmp_path)
    done = run("release", "--until", "card")
    assert done.exit_code == 0, done.output
    (card,) = [path for path in tmp_path.rglob("README.md") if path.parent.name == "diffusers"]
    text = card.read_text()
    for name, value in {
        "Base": "`tiny-kl.ckpt`", "Recipe": "ft-mse: MSE + 0 LPIPS", "Steps": "2",
        "Batch": "2 images of 16 pixels, random crop", "Images": "holiday photographs",
        "Learning rate": "0.001", "Weights": "EMA, decay 0.9999",
    }.items():  # fmt: skip
        assert f"| {name} | {value} |" in text, name


def test_facts_are_read_without_executing_anything_and_may_be_missing(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    with open_checkpoint(tmp_path / "run" / "last.ckpt") as checkpoint:
        found: dict[str, Any] = dict(checkpoint.run_facts)
    assert found["global_step"] == 1 and found["base_name"] == "tiny-kl.ckpt"
    assert training_facts(found, ema=False)["Weights"] == "of the last step"
    hostile = {"base_name": "![x](https://example.org/p.png) `", "data_name": "<b>"}
    table = training_facts({**found, **hostile}, ema=False)
    assert table["Base"] == "`![x](https://example.org/p.png) '`"
    assert table["Images"].endswith(" of `<b>`")
    for wrong in ({"recipe": "[x](y)"}, {"lr": 10**400}, {"size": "16"}, {"crop": "a b"}):
        assert training_facts({**found, **wrong}, ema=False) == {}
    del found["lr"]
    assert training_facts(found, ema=True) == {}
    with open_checkpoint("fixtures/tiny-kl.ckpt") as checkpoint:
        assert checkpoint.run_facts == {}
