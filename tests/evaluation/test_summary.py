"""From records of pictures to numbers: means, deviations, latents, reasons."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.closeness import magnitude, near
from vaeconv.evaluation.document import (
    Statistic,
    count_reasons,
    summarise_latents,
    summarise_metric,
    summarise_model,
)
from vaeconv.evaluation.metrics import INFINITE

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_mean_and_deviation_are_those_of_numpy(values: list[float]) -> None:
    found = summarise_metric(values)
    scale = magnitude(values)
    assert found.mean == near(np.mean(values), "fp64", scale=scale)
    assert found.std == near(np.std(values), "fp64", scale=scale)  # of the population
    assert (found.number, found.infinite, found.invalid) == (len(values), 0, 0)


def test_a_small_deviation_of_large_values() -> None:
    """Where a mean of squares less a square of means would give anything."""
    values = [1e9 + step for step in (0.0, 0.25, 0.5, 0.75)]
    found = summarise_metric(values)
    assert found.mean == 1e9 + 0.375
    assert found.std == near(np.std([0, 0.25, 0.5, 0.75]), "fp64")


def test_order_does_not_matter_to_the_bit() -> None:
    generator = random.Random(5)
    values = [generator.gauss(30, 5) * 10 ** generator.randint(-3, 3) for _ in range(500)]
    expected = summarise_metric(values)
    for _ in range(5):
        generator.shuffle(values)
        assert summarise_metric(values) == expected


def test_what_is_no_number_is_counted_and_left_out() -> None:
    values = [30.0, INFINITE, None, 40.0, INFINITE, 20, None, None]
    assert summarise_metric(values) == Statistic(30.0, math.sqrt(200 / 3), 3, 2, 3)
    assert summarise_metric([INFINITE, INFINITE]) == Statistic(None, None, 0, 2, 0)
    assert summarise_metric([None]) == Statistic(None, None, 0, 0, 1)
    assert summarise_metric([]) == Statistic(None, None, 0)
    assert summarise_metric([25.5]) == Statistic(25.5, 0.0, 1)


def test_each_model_has_its_own_metrics() -> None:
    records = [
        {"at": n, "models": [{"psnr": 20.0 + n, "ssim": 0.5}, {"psnr": 30.0 + n, "lpips": 0.1 * n}]}
        for n in range(3)
    ]
    first, second = (summarise_model(records, at) for at in range(2))
    assert list(first) == ["psnr", "ssim"]
    assert list(second) == ["psnr", "lpips"]
    assert first["psnr"] == {
        "mean": 21.0, "std": math.sqrt(2 / 3), "number": 3, "infinite": 0, "invalid": 0,
    }  # fmt: skip
    assert second["psnr"]["mean"] == 31.0
    assert second["lpips"]["mean"] == near(0.1, "fp64")


def test_metrics_stand_in_the_order_of_the_card() -> None:
    record = {"models": [{"lpips": 0.1, "psim": 1.0, "ssim": 0.5, "psnr": 30.0, "latents": {}}]}
    assert list(summarise_model([record], 0)) == ["psnr", "ssim", "psim", "lpips"]


def test_a_metric_that_only_some_pictures_have() -> None:
    records = [{"models": [{"psnr": 30.0}]}, {"models": [{"psnr": 20.0, "ssim": 0.5}]}]
    found = summarise_model(records, 0)
    assert (found["ssim"]["mean"], found["ssim"]["number"]) == (0.5, 1)


# --- latents ---


def records_of(batches: list[torch.Tensor]) -> list[dict[str, Any]]:
    """One record for each latent ``[c, h, w]``, beside another model's."""
    records = []
    for latent in batches:
        wide = latent.double().flatten(1)
        stats = {
            "sum": wide.sum(dim=1).tolist(),
            "squares": wide.square().sum(dim=1).tolist(),
            "number": wide.shape[1],
        }
        other = {"sum": [1.0], "squares": [1.0], "number": 1}
        records.append({"models": [{"latents": other}, {"psnr": 1.0, "latents": stats}]})
    return records


@pytest.mark.parametrize("seed", range(3))
def test_latents_are_those_of_all_pictures_together(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([5.0, 1.0, 0.2, 9.0]).reshape(4, 1, 1)
    shift = torch.tensor([0.0, 3.0, -1.0, 0.5]).reshape(4, 1, 1)
    latents = [
        torch.randn(4, height, width, generator=generator) * scale + shift
        for height, width in ((8, 8), (4, 16), (2, 3), (1, 1))
    ]
    found = summarise_latents(records_of(latents), 1)
    assert found is not None
    flat = torch.cat([one.double().flatten(1) for one in latents], dim=1)
    assert found["values_per_channel"] == flat.shape[1] == 135
    scale = magnitude(flat)
    assert found["mean"] == near(flat.mean().item(), "fp64", scale=scale)
    assert found["std"] == near(flat.std(correction=0).item(), "fp64", scale=scale)
    assert found["scaling_factor"] == near(1 / flat.std(correction=0).item(), "fp64")
    assert found["channel_mean"] == near(flat.mean(dim=1).tolist(), "fp64", scale=scale)
    assert found["channel_std"] == near(flat.std(dim=1, correction=0).tolist(), "fp64", scale=scale)


def test_the_scaling_factor_brings_latents_to_unit_deviation() -> None:
    latents = [
        torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(n)) * 5.5 for n in (1, 2)
    ]
    found = summarise_latents(records_of(latents), 1)
    assert found is not None
    scaled = [one.double() * found["scaling_factor"] for one in latents]
    again = summarise_latents(records_of(scaled), 1)
    assert again is not None
    assert again["std"] == near(1, "fp64")


def test_latents_that_are_all_the_same_have_no_scaling() -> None:
    found = summarise_latents(records_of([torch.full((4, 2, 2), 0.1)] * 3), 1)
    assert found is not None
    assert found["mean"] == near(0.1)  # of fp32
    # The root of a difference of squares that should be none.
    assert found["std"] == near(0, scale=0.1)
    assert found["channel_std"] == near([0] * 4, scale=0.1)
    zeros = summarise_latents(records_of([torch.zeros(4, 2, 2)]), 1)
    assert zeros is not None
    assert (zeros["std"], zeros["scaling_factor"]) == (0, None)


def test_no_latents_were_asked_for() -> None:
    assert summarise_latents([{"models": [{"psnr": 1.0}]}], 0) is None
    assert summarise_latents([], 0) is None


# --- reasons ---


def test_reasons_are_counted() -> None:
    records = [
        {"at": 0, "models": []},
        {"at": 1, "skipped": "larger than 1 GiB"},
        {"at": 2, "skipped": "a decompression bomb"},
        {"at": 3, "skipped": "larger than 1 GiB"},
    ]
    found = count_reasons(records, "skipped")
    assert found == {"a decompression bomb": 1, "larger than 1 GiB": 2}
    assert list(found) == sorted(found)
    assert count_reasons([{"at": 0, "models": []}], "skipped") == {}
