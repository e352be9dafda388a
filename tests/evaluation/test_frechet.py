"""The Fréchet distance: against torchmetrics, closed forms, and sets without full rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from tests.support.closeness import assert_near, magnitude, near
from vaeconv.errors import InputError
from vaeconv.evaluation.frechet import Moments, frechet_distance, moments_of, no_moments


def draw(
    seed: int, number: int, dimensions: int, *, shift: float = 0.0, spread: float = 1.0
) -> Any:
    """Features that are correlated, and not Gaussian: rectified, as those of a net are."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dimensions, dimensions)) / dimensions**0.5
    drawn = generator.normal(size=(number, dimensions)) @ mixing
    return np.maximum(drawn * spread + 0.3 + shift, 0)


def distance(one: Any, other: Any) -> float:
    return frechet_distance(moments_of(one), moments_of(other))


def judged(one: Any, other: Any) -> float:
    """The same without any root: the trace of it is a sum of singular values of centred sets.

    ``tr (S1 S2)^½ = |X1 X2ᵀ|_* / √((n1 - 1)(n2 - 1))`` for centred ``X``, whatever their rank.
    """
    gap = one.mean(axis=0) - other.mean(axis=0)
    centred = [x - x.mean(axis=0) for x in (one, other)]
    scales = [len(x) - 1 for x in centred]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum((x**2).sum() / scale for x, scale in zip(centred, scales, strict=True))
    return float(gap @ gap + traces - 2 * shared / (scales[0] * scales[1]) ** 0.5)


# --- outsiders ---


class Colours(torch.nn.Module):
    """A small extractor: random projections of coarse pixels."""

    num_features = 24

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.weights = torch.randn(3 * 16, self.num_features, generator=generator)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        coarse = torch.nn.functional.adaptive_avg_pool2d(pictures.float() / 255, 4)
        return torch.tanh(coarse.flatten(1) @ self.weights)


@pytest.mark.parametrize("strength", [4, 40])
def test_torchmetrics_agrees(strength: int) -> None:
    generator = torch.Generator().manual_seed(strength)
    real = torch.randint(0, 256, (200, 3, 12, 12), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-strength, strength + 1, real.shape, generator=generator)
    made = (real.int() * 3 // 4 + noise).clamp(0, 255).to(torch.uint8)[:150]
    extract = Colours()
    judge = FrechetInceptionDistance(feature=extract).set_dtype(torch.float64)
    for batch in real.split(64):
        judge.update(batch, real=True)
    for batch in made.split(64):
        judge.update(batch, real=False)
    expected = judge.compute().item()
    assert expected > 0.01
    assert distance(extract(real), extract(made)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_matrix_square_root_agrees(seed: int) -> None:
    one = draw(seed, 400, 12)
    other = draw(seed + 50, 300, 12, shift=0.2, spread=1.7)
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    assert max(map(np.linalg.cond, covariances)) < 1e6
    gap = one.mean(axis=0) - other.mean(axis=0)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert distance(one, other) == near(expected, "fp64")


# --- closed forms ---


def traces(*sets: Any) -> float:
    return sum(float(one.astype("f8").var(axis=0, ddof=1).sum()) for one in sets)


def exact(seed: int, mean: Any, deviations: Any, number: int = 50) -> Any:
    """Features whose mean and covariance are exactly these, the latter diagonal."""
    drawn = np.random.default_rng(seed).normal(size=(number, len(deviations)))
    orthonormal, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
    return mean + orthonormal * (number - 1) ** 0.5 * deviations


def test_gaussians_with_independent_dimensions() -> None:
    means = np.array([0.0, 2.0, -1.0, 0.5]), np.array([1.0, 2.0, 1.0, 0.0])
    deviations = np.array([1.0, 0.5, 2.0, 0.1]), np.array([3.0, 0.5, 1.0, 0.7])
    sets = [exact(n, means[n], deviations[n], 50 + 30 * n) for n in (0, 1)]
    expected = ((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum()
    assert distance(*sets) == near(expected, "fp64")
    turn, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(4, 4)))
    assert distance(*(x @ turn for x in sets)) == near(expected, "fp64")


def test_one_dimension() -> None:
    one, other = np.array([[0.0], [2.0], [4.0]]), np.array([[10.0], [11.0]])
    # Means 2 and 10.5, variances 4 and 1/2 with n - 1.
    assert distance(one, other) == near(8.5**2 + (2 - 0.5**0.5) ** 2, "fp64")


def test_scaled_features_scale_the_distance_by_the_square() -> None:
    one, other = draw(1, 60, 10), draw(2, 60, 10, shift=0.4)
    assert distance(3 * one, 3 * other) == near(9 * distance(one, other), "fp64")


def test_a_shift_of_both_changes_nothing_and_of_one_adds_its_square() -> None:
    one, other = draw(1, 60, 10), draw(2, 80, 10, spread=1.5)
    base = distance(one, other)
    assert base > 0.1
    assert distance(one + 7, other + 7) == near(base, "fp64")
    step = np.zeros(10)
    step[3] = 5
    gap = (one.mean(axis=0) - other.mean(axis=0))[3]
    expected = base - gap**2 + (gap + 5) ** 2
    assert distance(one + step, other) == near(expected, "fp64")


def test_symmetric() -> None:
    one, other = draw(1, 30, 40), draw(2, 50, 40, shift=0.1)
    assert distance(one, other) == near(distance(other, one), "root", scale=traces(one, other))


# --- fewer pictures than dimensions ---


@pytest.mark.parametrize("number", [2, 3, 20, 64])
def test_a_set_is_no_distance_from_itself(number: int) -> None:
    features = draw(7, number, 500)
    found = distance(features, features[::-1])
    assert found >= 0
    assert found == near(0, "root", scale=traces(features))


def test_it_is_never_negative() -> None:
    for seed in range(30):
        features = draw(seed, 5, 16) * 10.0 ** (seed % 5)
        assert distance(features, features) >= 0


@pytest.mark.parametrize(
    ("numbers", "dimensions"), [((10, 10), 64), ((8, 30), 64), ((2, 2), 300), ((40, 500), 200)]
)
def test_sets_without_full_rank(numbers: tuple[int, int], dimensions: int) -> None:
    one = draw(3, numbers[0], dimensions)
    other = draw(4, numbers[1], dimensions, shift=0.05)
    assert distance(one, other) == near(judged(one, other), "root", scale=traces(one, other))


def test_a_small_change_of_few_pictures_gives_a_small_distance() -> None:
    one = draw(3, 20, 300)
    other = one + np.random.default_rng(0).normal(0, 1e-2, one.shape)
    expected = judged(one, other)
    assert 1e-4 < expected < 0.05
    assert distance(one, other) == near(expected, "root", scale=traces(one, other))


def test_a_thousand_features_in_float32() -> None:
    one = draw(3, 24, 1000).astype("f4")
    other = (one[::-1] + draw(5, 24, 1000, shift=-0.2).astype("f4") / 20).astype("f4")
    expected = judged(one.astype("f8"), other.astype("f8"))
    assert distance(one, other) == near(expected, "root", scale=traces(one, other))


def test_equal_pictures_all_over() -> None:
    one, other = np.tile([1.0, 2.0, 3.0], (5, 1)), np.tile([1.0, 2.0, 5.0], (5, 1))
    assert distance(one, one) == 0
    assert distance(one, other) == near(4, "fp64")


# --- moments ---


def test_mean_and_covariance_are_those_of_numpy() -> None:
    features = draw(1, 37, 9)
    moments = moments_of(features)
    assert moments.number == 37
    assert_near(moments.mean, features.mean(axis=0), "fp64", scale=magnitude(features))
    assert_near(moments.covariance, np.cov(features, rowvar=False), "fp64")
    assert np.array_equal(moments.covariance, moments.covariance.T)


def test_sums_are_taken_in_float64() -> None:
    features = np.full((4096, 2), 3, "f4")
    features[0] = 3e7  # in float32, threes would drown in it; in float64 all is exact
    moments = moments_of(features)
    assert moments.total.dtype == moments.outer.dtype == np.float64
    assert moments.total[0] == 3e7 + 4095 * 3
    assert moments.outer[0, 1] == 9e14 + 4095 * 9
    half = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float16)
    assert moments_of(half).total.tolist() == half.double().sum(dim=0).tolist()


@given(
    rows=st.lists(st.tuples(*[st.integers(-1000, 1000)] * 3), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
@settings(deadline=None, max_examples=100)
def test_joined_moments_are_those_of_all(rows: list[tuple[int, ...]], cuts: list[int]) -> None:
    """Whole numbers add up exactly, so that every split gives the same to the bit."""
    features = np.array(rows, "f8")
    joined = no_moments(3)
    for part in np.split(features, sorted(cuts)):
        joined = joined.joined(moments_of(part))
    together = moments_of(features)
    assert joined.number == together.number == len(rows)
    assert np.array_equal(joined.total, together.total)
    assert np.array_equal(joined.outer, together.outer)


@given(cut=st.integers(2, 58), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_a_split_does_not_move_the_distance(cut: int, seed: int) -> None:
    one, other = draw(seed, 60, 8), draw(seed + 90, 60, 8, shift=0.3)
    whole = distance(one, other)
    split = moments_of(one[cut:]).joined(moments_of(one[:cut]))
    assert frechet_distance(split, moments_of(other)) == near(whole, "fp64")


def test_joining_leaves_both_as_they_were() -> None:
    one, other = moments_of(draw(1, 5, 4)), moments_of(draw(2, 6, 4))
    kept = [Moments(m.number, m.total.copy(), m.outer.copy()) for m in (one, other)]
    one.joined(other)
    for before, after in zip(kept, (one, other), strict=True):
        assert before.number == after.number
        assert np.array_equal(before.total, after.total)
        assert np.array_equal(before.outer, after.outer)


@pytest.mark.parametrize("number", [0, 1])
def test_a_distance_needs_two_pictures_in_each_set(number: int) -> None:
    few = moments_of(np.ones((number, 4))) if number else no_moments(4)
    enough = moments_of(draw(1, 6, 4))
    for sets in ((few, enough), (enough, few)):
        with pytest.raises(InputError, match="at least two images"):
            frechet_distance(*sets)
