"""Distances between results, against torch, numpy and diffusers' own image processor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from vaeconv.parity.distance import Distance, combine, measure, to_uint8


def picture(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.7


def test_every_measure_is_its_formula() -> None:
    one = picture(1, 3, 3, 8, 6)
    other = one + picture(2, 3, 3, 8, 6) * torch.tensor([1e-3, 0.05, 1.0]).view(3, 1, 1, 1)
    for index, found in enumerate(measure(one, other)):
        a, b = (x[index].double().numpy().ravel() for x in (one, other))
        gap = np.abs(a - b)
        assert found.max_abs == pytest.approx(gap.max(), rel=1e-12)
        assert found.mean_abs == pytest.approx(gap.mean(), rel=1e-12)
        assert found.rmse == pytest.approx(np.sqrt((gap**2).mean()), rel=1e-12)
        assert found.psnr == pytest.approx(20 * np.log10(2 / np.sqrt((gap**2).mean())), rel=1e-12)
        assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert found.largest == pytest.approx(np.abs(a).max(), rel=1e-12)


def test_pixels_are_those_that_diffusers_saves() -> None:
    values = torch.cat(
        [picture(3, 1, 3, 20, 20), torch.linspace(-1.2, 1.2, 1200).view(1, 3, 20, 20)]
    )
    judged = VaeImageProcessor.numpy_to_pil(
        VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(values))
    )
    for found, image in zip(to_uint8(values), judged, strict=True):
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))


def test_the_fraction_of_pixels_that_differ() -> None:
    one = torch.zeros(1, 1, 10, 10)
    other = one.clone()
    other.view(-1)[:7] = 2.5 / 127.5  # two steps
    other.view(-1)[7:20] = 1e-5  # none
    assert measure(one, other)[0].uint8 == pytest.approx(0.07)
    beyond = measure(torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), 5.0))[0]
    assert (beyond.uint8, beyond.max_abs) == (0.0, 2.0)  # both white


def test_what_is_equal() -> None:
    (found,) = measure(picture(1, 1, 3, 4, 4), picture(1, 1, 3, 4, 4))
    assert (found.max_abs, found.rmse, found.psnr, found.uint8) == (0.0, 0.0, math.inf, 0.0)
    assert found.cosine == pytest.approx(1)
    assert found.document()["psnr"] == "inf"
    (zeros,) = measure(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert zeros.cosine == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("both", [False, True])
def test_what_is_not_finite_has_no_distance(value: float, both: bool) -> None:
    one, other = picture(1, 2, 3, 4, 4), picture(1, 2, 3, 4, 4)
    one[1, 0, 0, 0] = value
    if both:
        other[1, 0, 0, 0] = value
    found = measure(one, other)
    assert found[0].max_abs == 0
    assert found[1] == Distance(None)
    assert measure(other, one)[1] == Distance(None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_results_are_measured_without_more_rounding(dtype: torch.dtype) -> None:
    one, other = picture(1, 1, 3, 64, 64).to(dtype), picture(2, 1, 3, 64, 64).to(dtype)
    gap = (one.double() - other.double()).abs()
    (found,) = measure(one, other)
    assert found.max_abs == gap.max().item()
    assert found.mean_abs == pytest.approx(gap.mean().item(), rel=1e-12)


def test_the_worst_of_several() -> None:
    one = Distance(0.1, 0.02, 0.03, 40.0, 0.9, 0.5, 2.0)
    other = Distance(0.2, 0.01, 0.04, 30.0, 0.95, 0.25, 3.0)
    assert combine([one, other]) == Distance(0.2, 0.02, 0.04, 30.0, 0.9, 0.5, 3.0)
    assert combine([one, Distance(None)]) == Distance(None)
    assert combine([]) == Distance(None)
