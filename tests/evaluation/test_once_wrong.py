"""Evaluations that once went wrong: emptied shards, other averages, odd names and numbers."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.evaluation.runs import FOLDER, KL, ROOT, SIZE, measure, run, run_eval, spec, torchrun
from tests.evaluation.test_partial_results import ALL, ROW, assert_same, cut
from tests.support.samples import save_ckpt, weights_of
from vaeconv.errors import UsageError


@pytest.mark.usefixtures("small_inception")
def test_a_run_that_is_done_has_its_rfid_again(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    first = measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
    again = measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
    assert_same(again, first)


@pytest.mark.usefixtures("small_inception")
@pytest.mark.parametrize("size", [0, ROW - 1])
def test_a_shard_without_a_whole_row(
    tmp_path: Path, photos: Path, networks: dict[str, Path], size: int
) -> None:
    first = measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
    cut(tmp_path / "parts" / "shard-0000-0000.f32", size)
    assert_same(measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks), first)


@pytest.mark.usefixtures("small_inception")
def test_a_shard_of_skipped_pictures_only(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "999.png").write_text("damaged")
    first = measure([KL], folder, tmp_path / "parts", metrics=ALL, weights=networks)
    cut(tmp_path / "parts" / "shard-0000-0000.jsonl", -5)
    assert_same(measure([KL], folder, tmp_path / "parts", metrics=ALL, weights=networks), first)


def test_the_average_is_another_run(tmp_path: Path, photos: Path) -> None:
    measure([spec(KL, name="x")], photos, tmp_path / "parts")
    with pytest.raises(UsageError, match="another run"):
        measure([spec(KL, name="x", ema=True)], photos, tmp_path / "parts")


def test_another_config_is_another_run(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(FOLDER, folder)
    measure([spec(folder, name="x")], photos, tmp_path / "parts")
    config = json.loads((folder / "config.json").read_text())
    config["norm_num_groups"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="another run"):
        measure([spec(folder, name="x")], photos, tmp_path / "parts")


def test_latents_that_are_not_finite_have_no_scaling(tmp_path: Path, photos: Path) -> None:
    weights = weights_of()
    weights["quant_conv.bias"] = torch.full_like(weights["quant_conv.bias"], math.nan)
    broken = save_ckpt(tmp_path / "broken.ckpt", weights)
    found = measure([broken], photos, tmp_path / "parts", latent_stats=True)
    assert found["models"][0]["metrics"]["psnr"]["invalid"] == 5
    result = run_eval(broken, "--images", photos, "--out", tmp_path / "o.json", "--latent-stats")
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_processes_join_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "joins.py").write_text(
        "from vaeconv.evaluation.distributed import join_world\n"
        "for _ in range(8):\n"
        "    world = join_world(2)\n"
        "    for _ in range(3):\n"
        "        assert world.gather(world.rank) == [0, 1]\n"
    )
    done = torchrun(2, "joins", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 0, done.stderr


def test_long_names_are_cut(tmp_path: Path, photos: Path) -> None:
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as bundle:
        for end in "ab":
            bundle.write(photos / "000.png", "x" * 300 + end + ".png")
    result = run("compare", KL, "--images", tmp_path / "long.zip", "--out", tmp_path / "m",
                 "--size", SIZE, "--device", "cpu")  # fmt: skip
    assert result.exit_code in (0, 5), result.stderr
    assert "internal error" not in result.stderr


def test_a_sheet_too_tall_for_webp_is_no_internal_error(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaeconv.errors import VaeconvError
    from vaeconv.evaluation.grids import save_image

    try:
        save_image(Image.new("RGB", (8, 16384)), tmp_path / "x.webp")
    except VaeconvError:
        pass


@pytest.mark.parametrize(
    "text",
    ["model = 5", "[[model]]\npath = 'x'\nname = 5", "[[model]]\npath = 'x'\ncomment = 3",
     "[[model]]\npath = 'x'\ntrain_steps = 'many'", "[[model]]\npath = 'x'\nema = 'no'"],
)  # fmt: skip
def test_values_of_another_type_are_refused(tmp_path: Path, photos: Path, text: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    result = run_eval("--models", tmp_path / "m.toml", "--images", photos, "--out",
                      tmp_path / "o.json")  # fmt: skip
    assert result.exit_code == 2, result.stderr
    assert str(tmp_path / "m.toml") in result.stderr


def test_a_seed_that_torch_cannot_take(tmp_path: Path, photos: Path) -> None:
    result = run_eval(KL, "--images", photos, "--out", tmp_path / "o.json", "--posterior",
                      "sample", "--seed", 10**15)  # fmt: skip
    assert "internal error" not in result.stderr


def test_half_a_result_cannot_be_added(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "protocol": {"description": "x", "size": 2}, "nets": [],
        "pictures": {"sha256": "", "number": 1, "name": "n"},
        "models": [{"name": "a", "train_steps": 1, "metrics": {}, "link": "", "comment": ""}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert "internal error" not in run("eval", "--add", tmp_path / "a.json").stderr
