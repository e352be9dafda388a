"""PSNR and SSIM of single pictures, against torchmetrics, scikit-image and what theory says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from tests.support.closeness import assert_near, near, near_metric
from vaeconv.evaluation.image_metrics import psnr, ssim

# Where crops of real pictures begin, and their height and width.
CROPS = {
    "astronaut": (40, 170, 96, 96),
    "coffee": (120, 200, 64, 128),
    "chelsea": (60, 120, 101, 75),
    "camera": (90, 180, 96, 96),
    "page": (20, 30, 80, 120),
    "rocket": (100, 250, 96, 96),
}


def real(name: str) -> Any:
    """A crop as float64 ``[h, w, c]`` from 0 to 1, of 256 steps."""
    top, left, height, width = CROPS[name]
    picture = getattr(skimage.data, name)()
    picture = picture[:, :, np.newaxis] if picture.ndim == 2 else picture
    return picture[top : top + height, left : left + width].astype("f8") / 255


def noisy(picture: Any) -> Any:
    return picture + np.random.default_rng(5).normal(0, 0.08, picture.shape)


DISTORTIONS: dict[str, Callable[[Any], Any]] = {
    "noise": noisy,
    "blur": lambda picture: gaussian_filter(picture, (2, 2, 0)),
    "shift": lambda picture: picture + 0.07,
    "contrast": lambda picture: 0.5 + (picture - 0.5) * 0.6,
    "few steps": lambda picture: np.round(picture * 7) / 7,
    "negative": lambda picture: 1 - picture,
    "one step": lambda picture: picture + 1 / 255,
    "mirrored": lambda picture: picture[:, ::-1],
}


METRICS = {"psnr": psnr, "ssim": ssim}


def as_batch(*pictures: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.stack([torch.from_numpy(one.transpose(2, 0, 1).copy()) for one in pictures]).to(
        dtype
    )


def pair(name: str, how: str) -> tuple[Any, Any]:
    picture = real(name)
    return picture, np.clip(DISTORTIONS[how](picture), 0, 1)


@pytest.mark.parametrize("how", DISTORTIONS)
@pytest.mark.parametrize("name", CROPS)
def test_outsiders_agree(name: str, how: str) -> None:
    picture, other = pair(name, how)
    one, two = as_batch(picture), as_batch(other)
    found = psnr(one, two).item(), ssim(one, two).item()
    assert found[0] == near(peak_signal_noise_ratio(picture, other, data_range=1))
    judged = structural_similarity(
        picture,
        other,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=2,
    )  # its mean leaves out five pixels at each border: the valid region
    assert ssim(one, two).item() == near_metric("ssim", judged)


@pytest.mark.parametrize("how", DISTORTIONS)
def test_torchmetrics_agrees_for_each_picture_of_a_batch(how: str) -> None:
    pairs = [pair(name, how) for name in ("astronaut", "rocket")]
    one, two = as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs))
    judge = PeakSignalNoiseRatio(data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert_near(psnr(one, two), judge(two, one))
    _, full = structural_similarity_index_measure(
        two, one, data_range=1.0, reduction="none", return_full_image=True
    )
    # Its own mean is over a map as large as the picture, made by mirroring the borders.
    valid = full[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    assert ssim(one, two).tolist() == near_metric("ssim", valid.tolist())


def test_channels_are_measured_one_by_one() -> None:
    picture, other = pair("coffee", "noise")
    other[:, :, 1] = picture[:, :, 1]
    one, two = as_batch(picture), as_batch(other)
    single = torch.stack([ssim(one[:, c : c + 1], two[:, c : c + 1]) for c in range(3)])
    assert single[1].item() == near_metric("ssim", 1)
    assert single[0].item() < 0.95
    assert ssim(one, two).tolist() == near_metric("ssim", single.mean(dim=0).tolist())
    errors = torch.stack([10 ** (-psnr(one[:, c : c + 1], two[:, c : c + 1]) / 10) for c in (0, 2)])
    expected = -10 * (errors.sum(dim=0) / 3).log10()
    assert_near(psnr(one, two), expected)


def test_any_number_of_channels() -> None:
    picture = np.concatenate([real("astronaut"), real("rocket")], axis=2)[:, :, :4]
    other = np.clip(noisy(picture), 0, 1)
    found = ssim(as_batch(picture), as_batch(other)).item()
    judged = structural_similarity(
        picture, other, gaussian_weights=True, use_sample_covariance=False, data_range=1,
        channel_axis=2,
    )  # fmt: skip
    assert found == near_metric("ssim", judged)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    pairs = [pair(name, "noise") for name in ("astronaut", "rocket")]
    pairs.append(pair("astronaut", "blur"))
    one, two = as_batch(*(a for a, _ in pairs)), as_batch(*(b for _, b in pairs))
    for name, metric in METRICS.items():
        together = metric(one, two)
        assert together.shape == (3,)
        alone = torch.cat([metric(one[n : n + 1], two[n : n + 1]) for n in range(3)])
        assert together.tolist() == near_metric(name, alone.tolist(), rounded=False)
        assert len(set(together.tolist())) == 3


def test_which_is_the_original_does_not_matter() -> None:
    one, two = map(as_batch, pair("chelsea", "blur"))
    for name, metric in METRICS.items():
        assert metric(one, two).item() == near_metric(name, metric(two, one).item(), rounded=False)


def test_one_window_by_the_definition() -> None:
    generator = np.random.default_rng(8)
    one, two = generator.random((2, 11, 11))
    weights = np.array(
        [[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / 4.5) for x in range(11)] for y in range(11)]
    )
    weights /= weights.sum()
    mean = [(weights * picture).sum() for picture in (one, two)]
    variance = [
        (weights * (picture - m) ** 2).sum() for picture, m in zip((one, two), mean, strict=True)
    ]
    covariance = (weights * (one - mean[0]) * (two - mean[1])).sum()
    luminance = (2 * mean[0] * mean[1] + 1e-4) / (mean[0] ** 2 + mean[1] ** 2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (sum(variance) + 9e-4)
    found = ssim(*(torch.from_numpy(one_)[None, None] for one_ in (one, two)))
    assert found.item() == near_metric("ssim", luminance * structure)


def test_only_whole_windows_count() -> None:
    """What is at the border weighs little: the corner is in one window's corner."""
    picture = as_batch(real("camera"), dtype=torch.float64)
    changed = picture.clone()
    changed[..., 0, 0] = 1 - changed[..., 0, 0].round()
    spoilt = picture.clone()
    spoilt[..., 48, 48] = 1 - spoilt[..., 48, 48].round()
    corner, middle = (1 - ssim(picture, one).item() for one in (changed, spoilt))
    assert 0 < corner < middle / 1e3


# --- what theory says ---


def grey_picture(size: int = 320) -> Any:
    """Soft waves around the middle grey: noise of some percent never reaches black or white."""
    rows, columns = np.mgrid[:size, :size] / size
    waves = 0.5 + 0.1 * np.sin(12 * rows) * np.cos(9 * columns)
    return np.stack([waves, waves.T, 1 - waves], axis=2)


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.03, 0.08])
def test_noise_gives_the_psnr_that_follows_from_its_sigma(sigma: float) -> None:
    picture = grey_picture()
    other = picture + np.random.default_rng(3).normal(0, sigma, picture.shape)
    found = psnr(as_batch(picture), as_batch(other)).item()
    assert found == pytest.approx(-20 * math.log10(sigma), abs=0.05)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_rounding_to_256_steps_adds_its_own_noise(sigma: float) -> None:
    picture = np.round(grey_picture() * 255) / 255
    other = picture + np.random.default_rng(4).normal(0, sigma, picture.shape)
    rounded = np.round(np.clip(other, 0, 1) * 255) / 255
    found = psnr(as_batch(picture), as_batch(rounded)).item()
    expected = -10 * math.log10(sigma**2 + 1 / (12 * 255**2))
    assert found == pytest.approx(expected, abs=0.05)


def test_known_distances() -> None:
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert psnr(black, white).item() == 0
    assert psnr(black, white / 10).item() == near(20)
    # Constant pictures: only the first factor of SSIM is left, C1 / (1 + C1).
    assert ssim(black, white).item() == near_metric("ssim", 1e-4 / 1.0001)


@pytest.mark.parametrize("name", CROPS)
def test_equal_pictures(name: str) -> None:
    picture = as_batch(real(name))
    assert psnr(picture, picture.clone()).item() == math.inf
    assert ssim(picture, picture.clone()).item() == near_metric("ssim", 1)


def test_half_of_a_batch_may_be_equal() -> None:
    picture, other = map(as_batch, pair("coffee", "blur"))
    found = psnr(torch.cat([picture, picture]), torch.cat([other, picture]))
    assert math.isfinite(found[0])
    assert found[1] == math.inf


def test_what_is_not_finite_spoils_its_own_picture_alone() -> None:
    one, two = map(as_batch, pair("rocket", "noise"))
    broken = two.clone()
    broken[0, 1, 40, 40] = math.nan
    for name, metric in METRICS.items():
        found = metric(torch.cat([one, one]), torch.cat([broken, two]))
        assert math.isnan(found[0])
        expected = metric(one, two).item()
        assert found[1].item() == near_metric(name, expected, rounded=False)


def test_double_precision_stays_double() -> None:
    one, two = (as_batch(picture, dtype=torch.float64) for picture in pair("page", "noise"))
    for name, metric in METRICS.items():
        wide, narrow = metric(one, two), metric(one.float(), two.float())
        assert wide.dtype == torch.float64
        assert narrow.dtype == torch.float32
        assert wide.item() == near_metric(name, narrow.item(), rounded=False)
