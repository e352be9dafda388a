"""Inception v3: its names, shapes and outputs, against a second writing of the architecture."""

from __future__ import annotations

import re
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.closeness import assert_near
from vaeconv.evaluation.inception import InceptionV3, resize_as_tensorflow_1
from vaeconv.evaluation.metrics import Meter

CPU = torch.device("cpu")

# Each convolution: name, channels in and out, height x width of the kernel. From the paper's
# figures and table, with the names of the TensorFlow release; `$` stands for what differs.
STEM = """
    Conv2d_1a_3x3 3>32 3x3, Conv2d_2a_3x3 32>32 3x3, Conv2d_2b_3x3 32>64 3x3,
    Conv2d_3b_1x1 64>80 1x1, Conv2d_4a_3x3 80>192 3x3
"""
A = """
    branch1x1 $in>64 1x1, branch5x5_1 $in>48 1x1, branch5x5_2 48>64 5x5,
    branch3x3dbl_1 $in>64 1x1, branch3x3dbl_2 64>96 3x3, branch3x3dbl_3 96>96 3x3,
    branch_pool $in>$k 1x1
"""
B = """
    branch3x3 288>384 3x3, branch3x3dbl_1 288>64 1x1, branch3x3dbl_2 64>96 3x3,
    branch3x3dbl_3 96>96 3x3
"""
C = """
    branch1x1 768>192 1x1, branch7x7_1 768>$k 1x1, branch7x7_2 $k>$k 1x7,
    branch7x7_3 $k>192 7x1, branch7x7dbl_1 768>$k 1x1, branch7x7dbl_2 $k>$k 7x1,
    branch7x7dbl_3 $k>$k 1x7, branch7x7dbl_4 $k>$k 7x1, branch7x7dbl_5 $k>192 1x7,
    branch_pool 768>192 1x1
"""
D = """
    branch3x3_1 768>192 1x1, branch3x3_2 192>320 3x3, branch7x7x3_1 768>192 1x1,
    branch7x7x3_2 192>192 1x7, branch7x7x3_3 192>192 7x1, branch7x7x3_4 192>192 3x3
"""
E = """
    branch1x1 $in>320 1x1, branch3x3_1 $in>384 1x1, branch3x3_2a 384>384 1x3,
    branch3x3_2b 384>384 3x1, branch3x3dbl_1 $in>448 1x1, branch3x3dbl_2 448>384 3x3,
    branch3x3dbl_3a 384>384 1x3, branch3x3dbl_3b 384>384 3x1, branch_pool $in>192 1x1
"""
# Block, what `$in` and `$k` are, and channels and side of its output for 299 pixels.
BLOCKS = [
    ("Mixed_5b", A, 192, 32, 256, 35),
    ("Mixed_5c", A, 256, 64, 288, 35),
    ("Mixed_5d", A, 288, 64, 288, 35),
    ("Mixed_6a", B, 288, 0, 768, 17),
    ("Mixed_6b", C, 768, 128, 768, 17),
    ("Mixed_6c", C, 768, 160, 768, 17),
    ("Mixed_6d", C, 768, 160, 768, 17),
    ("Mixed_6e", C, 768, 192, 768, 17),
    ("Mixed_7a", D, 768, 0, 1280, 8),
    ("Mixed_7b", E, 1280, 0, 2048, 8),
    ("Mixed_7c", E, 2048, 0, 2048, 8),
]


def known_shapes() -> dict[str, tuple[int, ...]]:
    texts = {"": STEM} | {
        f"{name}.": text.replace("$in", str(width)).replace("$k", str(k))
        for name, text, width, k, *_ in BLOCKS
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, text in texts.items():
        for name, *sizes in re.findall(r"(\w+) (\d+)>(\d+) (\d)x(\d)", text):
            inputs, outputs, height, width = map(int, sizes)
            shapes[f"{prefix}{name}.conv.weight"] = (outputs, inputs, height, width)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{prefix}{name}.bn.{part}"] = (outputs,)
    return shapes


def make_net() -> InceptionV3:
    """Random weights, and statistics that are not those of a fresh normalisation."""
    generator = torch.Generator().manual_seed(14)
    network = InceptionV3()
    for name, value in network.state_dict().items():
        if value.dim() == 4:
            deviation = (2 / value[0].numel()) ** 0.5
            value.normal_(0, deviation, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.2, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return make_net()


def pictures(number: int = 1, height: int = 48, width: int = 48, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 6, 6, generator=generator)
    smooth = functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    noise = torch.randn(smooth.shape, generator=generator) * 0.05
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


# --- names and shapes ---


def test_names_and_shapes_are_those_of_the_published_weights(network: InceptionV3) -> None:
    found = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert found == known_shapes()


def test_numbers_that_are_known_of_inception(network: InceptionV3) -> None:
    # 23,834,568 with a classifier of 1000 classes, which is 2048 * 1000 + 1000 of them.
    assert sum(value.numel() for value in network.parameters()) == 23_834_568 - 2_049_000
    convolutions = [one for one in network.modules() if isinstance(one, torch.nn.Conv2d)]
    assert len(convolutions) == 94
    assert all(one.bias is None for one in convolutions)
    norms = [one for one in network.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert len(norms) == 94
    assert {one.eps for one in norms} == {0.001}


def test_sizes_on_the_way(network: InceptionV3) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, given, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
        for name, module in network.named_children()
    ]
    network(pictures())
    for hook in hooks:
        hook.remove()
    assert shapes == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        **{name: (channels, side, side) for name, *_, channels, side in BLOCKS},
    }


# --- what it computes ---

# Branches of each kind of block, in the order of their channels: convolutions one after the other,
# `/` for a stride of 2 without padding, `+` for two that take the same input.
BRANCHES = {
    "A": "branch1x1; branch5x5_1 branch5x5_2; branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3; "
    "mean branch_pool",
    "B": "branch3x3/; branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/; shrink",
    "C": "branch1x1; branch7x7_1 branch7x7_2 branch7x7_3; branch7x7dbl_1 branch7x7dbl_2 "
    "branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5; mean branch_pool",
    "D": "branch3x3_1 branch3x3_2/; branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/; "
    "shrink",
    "E": "branch1x1; branch3x3_1 branch3x3_2a+branch3x3_2b; branch3x3dbl_1 branch3x3dbl_2 "
    "branch3x3dbl_3a+branch3x3dbl_3b; mean branch_pool",
    "E, last": "branch1x1; branch3x3_1 branch3x3_2a+branch3x3_2b; branch3x3dbl_1 branch3x3dbl_2 "
    "branch3x3dbl_3a+branch3x3dbl_3b; max branch_pool",
}
KINDS = "A A A B C C C C D E".split()


class Judge:
    """The net written a second time, in float64, from text and with nothing but functions."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: value.double() for name, value in weights.items()}

    def conv(self, name: str, x: Tensor, stride: int = 1, pads: bool = True) -> Tensor:
        kernel = self.weights[f"{name}.conv.weight"]
        padding = [side // 2 if pads else 0 for side in kernel.shape[2:]]
        mean, variance, weight, bias = (
            self.weights[f"{name}.bn.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.conv2d(x, kernel, stride=stride, padding=padding)
        return ((x - mean) / (variance + 0.001).sqrt() * weight + bias).clamp(min=0)

    def step(self, block: str, step: str, x: Tensor) -> Tensor:
        if step == "mean":  # over those of nine neighbours that are inside
            sums = functional.conv2d(
                x, torch.ones(x.shape[1], 1, 3, 3).double(), padding=1, groups=x.shape[1]
            )
            inside = functional.conv2d(
                torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3).double(), padding=1
            )
            return sums / inside
        if step == "max":
            return functional.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
        if step == "shrink":
            return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
        if step.endswith("/"):
            return self.conv(f"{block}.{step[:-1]}", x, stride=2, pads=False)
        return torch.cat([self.conv(f"{block}.{one}", x) for one in step.split("+")], dim=1)

    def block(self, name: str, kind: str, x: Tensor) -> Tensor:
        outputs = []
        for branch in BRANCHES[kind].split("; "):
            h = x
            for step in branch.split():
                h = self.step(name, step, h)
            outputs.append(h)
        return torch.cat(outputs, dim=1)

    def features(self, pixels: Tensor) -> Tensor:
        x = (resize_as_tensorflow_1(pixels.double(), 299) - 128) / 128
        x = self.conv("Conv2d_1a_3x3", x, stride=2, pads=False)
        x = self.conv("Conv2d_2a_3x3", x, pads=False)
        x = self.step("", "shrink", self.conv("Conv2d_2b_3x3", x))
        x = self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x), pads=False)
        x = self.step("", "shrink", x)
        for (name, *_), kind in zip(BLOCKS, [*KINDS, "E, last"], strict=True):
            x = self.block(name, kind, x)
        return x.mean(dim=(2, 3))


def test_features_are_those_of_the_second_writing(network: InceptionV3) -> None:
    given = pictures(1, 40, 56, seed=1)
    found = network(given)
    expected = Judge(network.state_dict()).features(given)
    assert found.shape == (1, 2048)
    assert found.dtype == torch.float32
    assert expected.std() > 0.1
    assert_near(found.double(), expected)


def test_torch_fidelity_agrees(network: InceptionV3, tmp_path: Path) -> None:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # without torchvision, or with another torch's
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
    path = tmp_path / "weights.pth"
    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(network.state_dict() | fc, path)
    judge = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    )
    for height, width in ((32, 32), (37, 91), (299, 299), (400, 310)):
        given = pictures(2, height, width)
        assert_near(network(given), judge(given)[0])


def test_a_picture_does_not_depend_on_its_batch(network: InceptionV3) -> None:
    given = torch.cat([pictures(1, seed=2), pictures(1, seed=3)])
    together = network(given)
    assert (together[0] - together[1]).abs().max() > 0.1
    for n in range(2):
        alone = network(given[n : n + 1])
        assert_near(alone[0], together[n])


def test_it_computes_the_same_again_and_leaves_the_pictures(network: InceptionV3) -> None:
    given = pictures()
    kept = given.clone()
    assert torch.equal(network(given), network(given))
    assert torch.equal(given, kept)


@pytest.mark.parametrize("block", ["Mixed_5b", "Mixed_6b", "Mixed_7b"])
def test_averages_leave_the_padding_out(network: InceptionV3, block: str) -> None:
    """Where the input is the same everywhere, its average is too, up to the border."""
    module = network.get_submodule(block)
    pool = module.get_submodule("branch_pool")
    width = pool.get_submodule("conv").in_channels
    x = torch.rand(1, width, 1, 1, generator=torch.Generator().manual_seed(3)).expand(-1, -1, 7, 7)
    outputs = pool.get_submodule("conv").out_channels
    pooled = module(x)[:, -outputs:]
    assert pooled.std() > 0.01
    assert_near(pooled, pooled[..., :1, :1].expand_as(pooled))
    assert_near(pooled, pool(x))


def test_the_last_block_takes_the_maximum(network: InceptionV3) -> None:
    x = torch.rand(1, 2048, 3, 3, generator=torch.Generator().manual_seed(4))
    found = network.Mixed_7c(x)[:, -192:, 1, 1]
    expected = network.Mixed_7c.branch_pool(x.amax(dim=(2, 3), keepdim=True))[..., 0, 0]
    assert_near(found, expected)


# --- resizing ---


def resized_by_definition(rows: list[list[float]], side: int) -> list[list[float]]:
    """Bilinear, pixel ``i`` of the result at ``i * in / out``; fractions until the last."""

    def along(values: list[Any]) -> list[tuple[Any, Any, float]]:
        size = len(values)
        places = [Fraction(i * size, side) for i in range(side)]
        return [
            (values[floor(p)], values[min(floor(p) + 1, size - 1)], float(p - floor(p)))
            for p in places
        ]

    result = []
    for upper, lower, down in along(rows):
        row = [(1 - down) * a + down * b for a, b in zip(upper, lower, strict=True)]
        result.append([(1 - right) * a + right * b for a, b, right in along(row)])
    return result


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(5, 5, 12), (7, 3, 10), (1, 1, 4), (12, 30, 9), (9, 9, 9), (2, 40, 7), (64, 48, 37)],
)
def test_resizing_is_by_the_definition(height: int, width: int, side: int) -> None:
    values = torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(1)) * 255
    found = resize_as_tensorflow_1(values, side)
    assert found.shape == (2, 2, side, side)
    for n in range(2):
        for c in range(2):
            expected = torch.tensor(resized_by_definition(values[n, c].tolist(), side))
            assert_near(found[n, c], expected)


def test_resizing_begins_at_the_corner_and_is_not_antialiased() -> None:
    ramp = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 8, 8)
    assert resize_as_tensorflow_1(ramp, 4)[0, 0, 0].tolist() == [0, 2, 4, 6]
    assert resize_as_tensorflow_1(ramp, 16)[0, 0, 0].tolist()[-4:] == [6, 6.5, 7, 7]
    down = resize_as_tensorflow_1(ramp.transpose(2, 3), 4)
    assert down[0, 0, :, 3].tolist() == [0, 2, 4, 6]


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    given = pictures(1, 299, 299).float()
    assert torch.equal(resize_as_tensorflow_1(given, 299), given)


# --- through the meter ---


def test_the_meter_takes_half_weights_with_a_classifier_and_without_counters(
    network: InceptionV3, tmp_path: Path
) -> None:
    path = tmp_path / "inception.pth"
    half = {name: value.half() for name, value in network.state_dict().items() if value.dim()}
    torch.save(half | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    meter = Meter(("rfid",), {"inception": path}, CPU, may_download=False)
    assert meter.metrics == ("rfid",)
    assert meter.width == 2048
    assert [facts.name for facts in meter.networks] == ["inception"]
    given = pictures()
    seen = meter.look(given)
    assert seen.features is not None
    other = InceptionV3().eval()
    other.load_state_dict({name: value.float() for name, value in half.items()}, strict=False)
    with torch.inference_mode():
        assert_near(seen.features, other(given))
    # Pictures that were not rounded are, for a net of uint8; grey ones are three times the same.
    for step in (0.4, -0.4):
        unrounded = meter.look((given.clamp(1, 254) + step) / 255)
        rounded = meter.look(given.clamp(1, 254))
        assert_near(unrounded.features, rounded.features)
    grey = meter.look(given[:, :1])
    coloured = meter.look(given[:, :1].expand(-1, 3, -1, -1))
    assert_near(grey.features, coloured.features)
