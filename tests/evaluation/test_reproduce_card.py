"""The script that sets the published table beside ours: its numbers, its plan, a small run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import reproduce_card
from benchmarks.reproduce_card import (
    CARD,
    IMAGES_URL,
    PROTOCOLS,
    Difference,
    card_specs,
    compare_with_card,
    comparison_lines,
    default_cache,
    nearest_protocol,
    place_of,
    plan_lines,
)
from tests.evaluation.runs import KL, write_tiles
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.protocol import Protocol

# The card's table as it was published, but for spaces.
TABLE = """
| original | 246803 | 4.99 | 23.4 +/- 3.8 | 0.69 +/- 0.14 | 1.01 +/- 0.28 |
| ft-EMA | 560001 | 4.42 | 23.8 +/- 3.9 | 0.69 +/- 0.13 | 0.96 +/- 0.27 |
| ft-MSE | 840001 | 4.70 | 24.5 +/- 3.7 | 0.71 +/- 0.13 | 0.92 +/- 0.27 |
"""


def test_the_numbers_are_those_of_the_card() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.split("\n") if line
    ]
    for row, published in zip(rows, CARD, strict=True):
        name, steps, rfid, *pairs = row
        assert (published.name, published.train_steps) == (name, int(steps))
        assert published.metrics["rfid"] == (float(rfid), None)
        for metric, pair in zip(("psnr", "ssim", "psim"), pairs, strict=True):
            assert published.metrics[metric] == tuple(map(float, pair.split(" +/- ")))


def test_protocols_change_one_knob_each() -> None:
    base = Protocol()
    changes = [
        {key: value for key, value in asdict(protocol).items()
         if key != "name" and value != getattr(base, key)}
        for protocol in PROTOCOLS
    ]  # fmt: skip
    assert changes == [
        {}, {"resize": "squash"}, {"posterior": "sample"}, {"rounds": False}, {"filter": "lanczos"},
    ]  # fmt: skip


def test_the_plan_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    place_of(CARD[1].url, tmp_path).write_bytes(b"there")
    lines = list(plan_lines(tmp_path, None))
    assert [line.endswith("(there)") for line in lines[1:5]] == [False, True, False, False]
    assert lines[4] == f"  {IMAGES_URL} to {tmp_path / 'val2017.zip'}"
    assert lines[8] == f"would evaluate original, ft-EMA, ft-MSE on {tmp_path / 'val2017.zip'}:"
    assert lines[9:] == [f"  {one.name}: {one.describe()}" for one in PROTOCOLS]
    assert IMAGES_URL not in "".join(plan_lines(tmp_path, Path("mine")))


def test_the_cache_is_where_the_user_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VAECONV_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    monkeypatch.delenv("VAECONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "vaeconv"


def test_stand_ins_are_fetched_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.copy(KL, place_of(CARD[0].url, cache))
    wanted: list[str] = []

    def pretend(url: str, target: str, **options: Any) -> None:
        wanted.append(url)
        shutil.copy(KL, target)

    def small(**options: Any) -> EvalOptions:
        return EvalOptions(**options, metrics=("psnr",))

    monkeypatch.setenv("VAECONV_CACHE", str(cache))
    monkeypatch.setattr(torch.hub, "download_url_to_file", pretend)
    monkeypatch.setattr(reproduce_card, "EvalOptions", small)
    protocols = tuple(replace(one, size=32) for one in PROTOCOLS[:2])
    monkeypatch.setattr(reproduce_card, "PROTOCOLS", protocols)
    photos = write_tiles(tmp_path / "pictures", 2, width=96, height=64)
    found = reproduce_card.reproduce(tmp_path / "card.json", photos, "cpu", lambda step: None)
    assert wanted == [row.url for row in CARD[1:]]
    for protocol in protocols:
        result = json.loads((tmp_path / f"card.{protocol.name}.json").read_text())
        assert [model["name"] for model in result["models"]] == ["original", "ft-EMA", "ft-MSE"]
        ours = [one.ours for one in found if (one.protocol, one.metric) == (protocol.name, "psnr")]
        assert ours == [(model["metrics"]["psnr"]["mean"], model["metrics"]["psnr"]["std"])
                        for model in result["models"]]  # fmt: skip
    assert [spec.link for spec in card_specs(cache)] == [row.url for row in CARD]


def made_up(name: str, psnr: float | None, rfid: float | None = None) -> dict[str, Any]:
    def metrics(off: float) -> dict[str, Any]:
        found: dict[str, Any] = {"ssim": {"mean": 0.7, "std": 0.1}}
        if psnr is not None:
            found["psnr"] = {"mean": psnr + off, "std": 3.5}
        if rfid is not None:
            found["rfid"] = rfid + off
        return found

    models = [{"name": row.name, "metrics": metrics(at)} for at, row in enumerate(CARD)]
    return {"protocol": {"name": name}, "models": models}


def test_gaps_are_ours_less_the_card_s() -> None:
    differences = list(compare_with_card(made_up("p", 23.0, 5.0)))
    assert len(differences) == 3 * 4
    gaps = {(one.model, one.metric): one.gap for one in differences}
    assert gaps["original", "psnr"] == pytest.approx(-0.4)
    assert gaps["ft-EMA", "psnr"] == pytest.approx(0.2)
    assert gaps["original", "rfid"] == pytest.approx(0.01)
    assert gaps["original", "psim"] is None
    ours = {(one.model, one.metric): one.ours for one in differences}
    assert ours["original", "psnr"] == (23.0, 3.5)
    assert ours["original", "rfid"] == (5.0, None)


def test_the_nearest_protocol_is_that_of_the_smallest_mean_gap() -> None:
    signs = [Difference(name, row.name, "psnr", row.metrics["psnr"],
                        (row.metrics["psnr"][0] + off, 1.0))
             for name, offs in (("mixed", (9.0, -9.0, 0.0)), ("even", (1.0, 1.0, 1.0)))
             for row, off in zip(CARD, offs, strict=True)]  # fmt: skip
    # Above and below do not cancel each other.
    assert nearest_protocol(signs, "psnr") == ("even", pytest.approx(1.0))
    assert nearest_protocol(signs, "psim") is None


def test_what_was_not_computed_is_said() -> None:
    lines = list(comparison_lines(list(compare_with_card(made_up("p", None)))))
    rows = [line for line in lines if "PSNR" in line or "rFID" in line]
    assert len(rows) == 6
    assert all(row.split()[-3:] == ["not", "computed", "-"] for row in rows)
    assert "SSIM: nearest with p, 0.01 away on average" in lines


def test_a_mean_that_is_none_is_no_number() -> None:
    result = made_up("p", 23.0)
    result["models"][0]["metrics"]["psnr"] = {"mean": None, "std": None}
    assert [one.ours for one in compare_with_card(result)][1] is None
