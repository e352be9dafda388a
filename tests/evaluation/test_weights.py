"""Raw and EMA weights of one checkpoint as two rows, and sets of a single image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.runs import KL, RAW, SIZE, Document, run, run_eval


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Document:
    out = tmp_path_factory.mktemp("both") / "eval.json"
    done = run_eval(KL, "--raw-and-ema", "--images", photos, "--limit", 2, "--out", out)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(out.read_text()))


def test_both_weights_are_two_rows_of_one_run(both: Document, photos: Path, tmp_path: Path) -> None:
    one, other = both["models"]
    assert (one["name"], other["name"]) == (f"{KL.name} raw", f"{KL.name} EMA")
    assert (one["ema"], other["ema"]) == (False, True)
    assert one["weights_sha256"] != other["weights_sha256"]
    given = ("--images", photos, "--limit", 2, "--out", tmp_path / "e.json")
    assert run_eval(KL, "--ema", *given).exit_code == 0
    (alone,) = json.loads((tmp_path / "e.json").read_text())["models"]
    assert alone["weights_sha256"] == other["weights_sha256"]
    assert alone["metrics"] == other["metrics"]


def test_names_and_comments_are_of_both_rows(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "eval.json"
    done = run_eval(KL, "--raw-and-ema", "--name", "mine", "--train-steps", 7, "--images", photos,
                    "--limit", 1, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    models = json.loads(out.read_text())["models"]
    assert [one["name"] for one in models] == ["mine raw", "mine EMA"]
    assert [one["train_steps"] for one in models] == [7, 7]


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_checkpoint_without_ema_says_so(command: str, tmp_path: Path, photos: Path) -> None:
    out = tmp_path / ("e.json" if command == "eval" else "m")
    metrics = ("--metrics", "psnr") if command == "eval" else ()
    given = ("--images", photos, "--out", out, "--size", SIZE, *metrics)
    done = run(command, KL, RAW, "--raw-and-ema", *given)
    assert done.exit_code == 3
    assert f"{RAW}: --ema: there are no EMA weights in it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_options_without_effect_are_refused(command: str, tmp_path: Path, photos: Path) -> None:
    out = tmp_path / ("e.json" if command == "eval" else "m")
    given = ("--images", photos, "--out", out)
    done = run(command, KL, "--raw-and-ema", "--ema", *given)
    assert (done.exit_code, "--ema has no effect" in done.stderr) == (2, True)
    (tmp_path / "models.toml").write_text(f"[[model]]\npath = '{KL}'\n")
    done = run(command, "--models", tmp_path / "models.toml", "--raw-and-ema", *given)
    assert (done.exit_code, "--raw-and-ema has no effect" in done.stderr) == (2, True)


def test_a_single_image_is_a_set(tmp_path: Path, photos: Path) -> None:
    done = run("compare", KL, "--raw-and-ema", "--images", photos / "001.png", "--size", SIZE,
               "--out", tmp_path / "m", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["order"] == [f"{KL.name} raw", f"{KL.name} EMA", "original"]
    assert [Path(one["path"]).name for one in found["pictures"]] == ["001_merged.png"]
    out = tmp_path / "e.json"
    done = run_eval(KL, "--images", photos / "001.png", "--out", out)
    assert done.exit_code == 0, done.output
    images = json.loads(out.read_text())["pictures"]
    assert (images["name"], images["number"], images["source"]) == ("001.png", 1, None)
    refused = run_eval(KL, "--images", photos / "001.png", "--out", out, "--limit", 1)
    assert refused.exit_code == 0  # the same image, so the same run
