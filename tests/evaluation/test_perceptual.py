"""LPIPS and PSIM over VGG16, against torchmetrics' LPIPS with its published linear weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
import torchmetrics.functional.image.lpips as judge_module
from torch import Tensor, nn

from tests.support.closeness import assert_near
from vaeconv.evaluation.image_metrics import VGG16, WIDTHS, lpips, psim, read_linear_weights
from vaeconv.evaluation.metric_networks import LPIPS_LINEAR, find_weights
from vaeconv.evaluation.metrics import Meter

CPU = torch.device("cpu")
# The same bytes as in the lpips package; torchmetrics ships them.
HEADS = Path(judge_module.__file__).parent / "lpips_models" / "vgg.pth"

# Places of the convolutions in torchvision's `vgg16().features`, and their channels.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64),
    5: (64, 128), 7: (128, 128),
    10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512),
    24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> VGG16:
    torch.manual_seed(15)
    network = VGG16()
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.normal_(parameter, 0, 0.05)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def linear_weights() -> list[Tensor]:
    return read_linear_weights(torch.load(HEADS, map_location="cpu", weights_only=True))


class Torchvision(nn.Module):
    """What ``torchvision.models.vgg16`` is to torchmetrics: its ``features``, 31 layers."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReLU() for _ in range(31)]
        for place, (inputs, outputs) in CONVOLUTIONS.items():
            layers[place] = nn.Conv2d(inputs, outputs, 3, padding=1)
        for place in (4, 9, 16, 23, 30):
            layers[place] = nn.MaxPool2d(2, 2)
        self.features = nn.Sequential(*layers)
        self.load_state_dict(weights)


@pytest.fixture(scope="module")
def judge(network: VGG16) -> Iterator[Any]:
    """LPIPS of torchmetrics over the same VGG16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            judge_module,
            "_get_tv_model_features",
            lambda name, pretrained: Torchvision(network.state_dict()).features,
        )
        yield judge_module._LPIPS(pretrained=True, net="vgg")


def crop(name: str, side: int = 64, at: tuple[int, int] = (60, 180)) -> Tensor:
    """A piece of a real picture, ``[1, 3, side, side]`` from -1 to 1."""
    rows = getattr(skimage.data, name)()[at[0] : at[0] + side, at[1] : at[1] + side]
    return torch.from_numpy(rows.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1


def batch() -> tuple[Tensor, Tensor]:
    """Three pictures and three others: with noise, blurred, and of something else."""
    one = torch.cat([crop("astronaut"), crop("coffee"), crop("rocket")])
    generator = torch.Generator().manual_seed(1)
    noisy = one[:1] + 0.2 * torch.randn(one[:1].shape, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(one[1:2], 5, 1, 2)
    return one, torch.cat([noisy.clamp(-1, 1), blurred, crop("chelsea")])


# --- the net ---


def test_names_and_shapes_are_those_of_torchvision(network: VGG16) -> None:
    expected = {}
    for place, (inputs, outputs) in CONVOLUTIONS.items():
        expected[f"features.{place}.weight"] = (outputs, inputs, 3, 3)
        expected[f"features.{place}.bias"] = (outputs,)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == expected
    assert sum(value.numel() for value in network.parameters()) == 14_714_688


def test_layers_have_unit_length_and_the_sizes_that_are_known(network: VGG16) -> None:
    with torch.inference_mode():
        layers = network(crop("astronaut"))
    shapes = [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)]
    assert [tuple(one.shape) for one in layers] == [(1, c, side, side) for c, side in shapes]
    assert WIDTHS == (64, 128, 256, 512, 512)
    for one in layers:
        assert (one >= 0).all()  # behind the ReLU
        lengths = one.square().sum(dim=1).sqrt()
        assert_near(lengths, torch.ones_like(lengths))


def test_layers_are_those_of_the_plain_net_behind_the_relus(network: VGG16) -> None:
    plain = Torchvision(network.state_dict()).features
    given = crop("coffee")
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        for place, found in zip((3, 8, 15, 22, 29), network(given), strict=True):
            expected = plain[: place + 1]((given - shift) / scale)
            expected = torch.nn.functional.normalize(expected, dim=1)
            assert_near(found, expected)


def test_a_pixel_without_any_activation_is_no_division_by_zero(network: VGG16) -> None:
    dark = VGG16().requires_grad_(False)
    for parameter in dark.parameters():
        parameter.fill_(-0.01)
    layers = dark(torch.full((1, 3, 16, 16), 1.0))
    assert all((layer == 0).all() for layer in layers)
    assert psim(layers, layers).tolist() == [0]


# --- distances ---


def test_lpips_is_that_of_torchmetrics(
    network: VGG16, linear_weights: list[Tensor], judge: Any
) -> None:
    one, two = batch()
    with torch.inference_mode():
        found = lpips(network(one), network(two), linear_weights)
        expected = judge(one, two).flatten()
    assert (expected > 0.002).all()
    assert expected.max() > 0.1
    assert_near(found, expected)


def test_each_layer_has_its_own_linear_weights(
    network: VGG16, linear_weights: list[Tensor], judge: Any
) -> None:
    one, two = batch()
    with torch.inference_mode():
        layers = network(one), network(two)
        _, parts = judge(one, two, retperlayer=True)
        for at in range(5):
            alone = [linear if n == at else linear * 0 for n, linear in enumerate(linear_weights)]
            found = lpips(*layers, alone)
            assert_near(found, parts[at].flatten())


def test_psim_is_twice_what_cosines_lack(network: VGG16) -> None:
    one, two = batch()
    with torch.inference_mode():
        plain = Torchvision(network.state_dict()).features
        shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
        expected = torch.zeros(3)
        for place in (3, 8, 15, 22, 29):
            a, b = (plain[: place + 1]((x - shift) / scale) for x in (one, two))
            cosines = torch.nn.functional.cosine_similarity(a, b, dim=1)
            expected += 2 * (1 - cosines).mean(dim=(1, 2))
        found = psim(network(one), network(two))
    assert (expected > 0.02).all()
    assert_near(found, expected)


def test_lpips_with_ones_for_heads_is_psim(network: VGG16) -> None:
    one, two = batch()
    with torch.inference_mode():
        layers = network(one), network(two)
    ones = [torch.ones(width) for width in WIDTHS]
    assert_near(lpips(*layers, ones), psim(*layers))
    halves = [one / 2 for one in ones]
    assert_near(lpips(*layers, halves), psim(*layers) / 2)


def test_equal_pictures_and_the_other_way_round(
    network: VGG16, linear_weights: list[Tensor]
) -> None:
    one, two = batch()
    with torch.inference_mode():
        first, second, again = network(one), network(two), network(one.clone())
    for found in (psim(first, again), lpips(first, again, linear_weights)):
        assert found.tolist() == [0, 0, 0]
    assert_near(psim(first, second), psim(second, first))
    assert_near(lpips(first, second, linear_weights), lpips(second, first, linear_weights))


def test_a_picture_does_not_depend_on_its_batch(
    network: VGG16, linear_weights: list[Tensor]
) -> None:
    one, two = batch()
    with torch.inference_mode():
        together = lpips(network(one), network(two), linear_weights)
        for n in range(3):
            alone = lpips(network(one[n : n + 1]), network(two[n : n + 1]), linear_weights)
            assert_near(alone, together[n : n + 1])


def test_not_square(network: VGG16, linear_weights: list[Tensor], judge: Any) -> None:
    one, two = (x[:, :, :48, :] for x in batch())
    with torch.inference_mode():
        found = lpips(network(one), network(two), linear_weights)
        assert_near(found, judge(one, two).flatten())


# --- files ---


def test_the_published_heads_are_read_and_known() -> None:
    weights = find_weights(LPIPS_LINEAR, HEADS, may_download=False, quiet=True)
    assert weights.is_published
    assert sorted(weights.tensors) == [f"lin{n}.model.1.weight" for n in range(5)]
    found = read_linear_weights(weights.tensors)
    assert [tuple(linear.shape) for linear in found] == [(width,) for width in WIDTHS]
    assert all(linear.dtype == torch.float32 and (linear >= 0).all() for linear in found)


def test_heads_keep_their_order() -> None:
    made = {
        f"lin{n}.model.1.weight": torch.full((1, width, 1, 1), float(n), dtype=torch.float16)
        for n, width in enumerate(WIDTHS)
    }
    shuffled = {name: made[name] for name in reversed(made)}
    found = read_linear_weights(shuffled)
    assert [linear.unique().tolist() for linear in found] == [[0], [1], [2], [3], [4]]
    assert found[0].dtype == torch.float32


def test_heads_that_are_not_there() -> None:
    with pytest.raises(KeyError, match=r"lin0\.model\.1\.weight"):
        read_linear_weights({"lin0.weight": torch.zeros(1, 64, 1, 1)})


def test_the_meter_shows_pictures_as_lpips_expects_them(
    network: VGG16, judge: Any, tmp_path: Path
) -> None:
    path = tmp_path / "vgg16.pth"
    classifier = {"classifier.0.bias": torch.zeros(8)}
    torch.save(network.state_dict() | classifier, path)
    given = {"vgg16": path, "lpips linear weights": HEADS}
    meter = Meter(("psim", "lpips"), given, CPU, may_download=False)
    assert meter.width == 0
    assert [(facts.name, facts.is_published) for facts in meter.networks] == [
        ("vgg16", False), ("lpips linear weights", True),
    ]  # fmt: skip
    pixels = [((x + 1) * 127.5).round().to(torch.uint8) for x in batch()]
    with torch.inference_mode():
        found = meter.compare(*(meter.look(one) for one in pixels))
        expected = judge(*(one.float() / 127.5 - 1 for one in pixels)).flatten()
        grey = meter.look(pixels[0][:, :1])
        coloured = meter.look(pixels[0][:, :1].expand(-1, 3, -1, -1))
    assert list(found) == ["psim", "lpips"]
    assert_near(found["lpips"], expected)
    assert (found["psim"] > found["lpips"]).all()
    for one, other in zip(grey.layers, coloured.layers, strict=True):
        assert_near(one, other)
