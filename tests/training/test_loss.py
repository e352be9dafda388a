"""The loss and the discriminator, against taming's own code and against LDM's formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.test_perceptual import HEADS, batch
from tests.support.closeness import assert_near
from tests.training.oracles import taming_losses
from vaeconv.evaluation.image_metrics import lpips, read_linear_weights
from vaeconv.evaluation.metrics import Meter
from vaeconv.training.loss import adaptive_weight, hinge_loss, reconstruction_loss
from vaeconv.training.networks import Discriminator

CPU = torch.device("cpu")
LOSSES = [("l1", 1.0), ("mse", 0.1), ("l1", 0.0)]


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of VGG16 whose features do not vanish."""
    from vaeconv.evaluation.image_metrics import VGG16

    torch.manual_seed(15)
    net = VGG16()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def meter(vgg: Path) -> Meter:
    return Meter(("lpips",), {"vgg16": vgg, "lpips linear weights": HEADS}, CPU, may_download=False)


@pytest.fixture(scope="module")
def taming(vgg: Path) -> Any:
    return taming_losses(torch.load(vgg, weights_only=True))


def images() -> tuple[Tensor, Tensor]:
    original, other = batch()
    return original, other.clone().requires_grad_(True)


def gradient(total: Tensor, decoded: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, decoded, retain_graph=True)
    return found


def test_the_loss_and_its_gradient_are_tamings(taming: Any, meter: Meter) -> None:
    """It takes the mean over all elements where LDM takes the sum over those of an image."""
    original, decoded = images()
    judge = taming.VQLPIPSWithDiscriminator(disc_start=1)
    layer = torch.ones((), requires_grad=True)
    total, log = judge(torch.zeros(1), original, decoded * layer, 0, 0, last_layer=layer)
    expected = total * original[0].numel()
    found = reconstruction_loss(original, decoded, pixel="l1", weight=1.0, meter=meter)
    assert_near(found.total, expected)
    assert_near(gradient(found.total, decoded), gradient(expected, decoded))
    assert_near(found.lpips.mean(), log["train/p_loss"])


@pytest.mark.parametrize(("pixel", "weight"), LOSSES)
def test_the_loss_is_ldms_formula(pixel: str, weight: float, meter: Meter) -> None:
    original, decoded = images()
    found = reconstruction_loss(
        original, decoded, pixel=pixel, weight=weight, meter=meter if weight else None
    )
    differences = original - decoded
    each = differences.abs() if pixel == "l1" else differences**2
    layers = [meter.layers(one) for one in (original, decoded)]
    linear_weights = read_linear_weights(torch.load(HEADS, map_location="cpu", weights_only=True))
    perceptual = lpips(*layers, linear_weights)
    expected = (each + weight * perceptual.reshape(-1, 1, 1, 1)).sum() / len(original)
    assert_near(found.total, expected)
    assert_near(gradient(found.total, decoded), gradient(expected, decoded))
    if not weight:
        assert not found.lpips.any()


def test_lpips_has_a_gradient_and_no_dropout(meter: Meter) -> None:
    """A trainer that computes it under no_grad reports it, and trains without it."""
    original, decoded = images()
    with_it, without = (
        reconstruction_loss(original, decoded, pixel="l1", weight=w, meter=meter).total
        for w in (1.0, 0.0)
    )
    difference = gradient(with_it, decoded) - gradient(without, decoded)
    assert difference.abs().max() > 0.1 * gradient(without, decoded).abs().max()
    again = reconstruction_loss(original, decoded, pixel="l1", weight=1.0, meter=meter).total
    assert torch.equal(again, with_it)


# --- the adversarial part ---


def pair(taming: Any) -> tuple[Discriminator, Any]:
    ours = Discriminator()
    ours.initialise(3)
    theirs = taming.NLayerDiscriminator(input_nc=3, n_layers=3, ndf=64)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def test_the_discriminator_is_tamings(taming: Any) -> None:
    original, _ = batch()
    ours, theirs = pair(taming)
    found, expected = ours(original), theirs(original)
    assert found.shape == (3, 1, 6, 6)
    assert_near(found, expected)
    for name, statistic in theirs.state_dict().items():  # running ones moved as well
        assert_near(ours.state_dict()[name].float(), statistic.float())


def test_the_discriminator_has_the_size_and_the_start_of_pix2pix() -> None:
    ours = Discriminator()
    ours.initialise(0)
    assert sum(one.numel() for one in ours.parameters()) == 2_765_633
    assert [n for n, _ in ours.named_parameters() if n.endswith("bias")] == [
        f"main.{at}.bias" for at in (0, 3, 6, 9, 11)
    ]
    for module in ours.main:
        if isinstance(module, nn.Conv2d):
            assert abs(module.weight.std().item() - 0.02) < 0.002
        if isinstance(module, nn.BatchNorm2d):
            assert abs(module.weight.mean().item() - 1) < 0.01 and not module.bias.any()
    again = Discriminator()
    again.initialise(0)
    assert torch.equal(again.main[0].weight, ours.main[0].weight)
    again.initialise(1)
    assert not torch.equal(again.main[0].weight, ours.main[0].weight)


def test_the_adaptive_weight_and_the_hinge_are_tamings(taming: Any, meter: Meter) -> None:
    original, other = batch()
    ours, theirs = pair(taming)
    layer = torch.full((), 0.9, requires_grad=True)
    decoded = other * layer
    loss = reconstruction_loss(original, decoded, pixel="l1", weight=1.0, meter=meter).total
    judge = taming.VQLPIPSWithDiscriminator(disc_start=0)
    for scale in (1.0, 1e-5):  # with the sum over an image the limit of 1e4 may bind
        adversarial = -ours(decoded).mean()
        found = adaptive_weight(loss * scale, adversarial, layer)
        expected = judge.calculate_adaptive_weight(loss * scale, adversarial, last_layer=layer)
        assert_near(found, expected)
        assert not found.requires_grad
    real, fake = theirs(original), theirs(decoded)
    assert_near(hinge_loss(real, fake), taming.hinge_d_loss(real, fake))
