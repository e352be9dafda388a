"""EMA weights are LitEma's to the bit, and go on where they were."""

from __future__ import annotations

import torch
from torch import nn

from tests.training.oracles import lit_ema
from tests.training.runs import bits
from vaeconv.training.shadows import Shadows

UPDATES = 240


def module() -> nn.Module:
    torch.manual_seed(5)
    part = nn.ModuleDict({"decoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
                          "post_quant_conv": nn.Conv2d(4, 4, 1)})  # fmt: skip
    return part


def move(part: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for one in part.parameters():
            one.add_(torch.randn(one.shape, generator=generator), alpha=0.01)


def assert_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert found[name].dtype == one.dtype and torch.equal(bits(found[name]), bits(one)), name


def test_they_are_lit_emas_to_the_bit() -> None:
    part = module()
    judge = lit_ema()(part, decay=0.99)  # which binds before the last update
    ours = Shadows(dict(part.named_parameters()), 0.99)
    for step in range(UPDATES):
        move(part, step)
        judge(part)
        ours.update()
    expected = {f"model_ema.{name}": one for name, one in judge.state_dict().items()}
    assert_bits(ours.state(), expected)
    assert ours.state()["model_ema.num_updates"].item() == UPDATES


def test_they_begin_as_the_parameters_are_and_warm_up() -> None:
    part = module()
    before = [one.detach().clone() for one in part.parameters()]
    ours = Shadows(dict(part.named_parameters()), 0.9999)
    move(part, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, list(ours.state().values())[2:],
                                                 strict=True))  # fmt: skip
    ours.update()
    shadow, parameter = ours.state()["model_ema.decoder0weight"], part["decoder"][0].weight
    share = ((shadow - before[0]) / (parameter.detach() - before[0])).median().item()
    assert abs(share - 9 / 11) < 1e-3  # 1 - (1 + 1) / (10 + 1)


def test_they_go_on_from_a_checkpoint() -> None:
    part = module()
    whole = Shadows(dict(part.named_parameters()), 0.9999)
    for step in range(5):
        move(part, step)
        whole.update()
    kept = {name: one.clone() for name, one in whole.state().items()}
    resumed = Shadows(dict(part.named_parameters()), 0.9999)
    resumed.load(kept)
    for step in range(5, 9):
        move(part, step)
        whole.update()
        resumed.update()
    assert_bits(resumed.state(), whole.state())


def test_modules_run_with_them_inside_a_block_only() -> None:
    part = module()
    ours = Shadows(dict(part.named_parameters()), 0.5)
    start = part["post_quant_conv"].weight.detach().clone()
    move(part, 1)
    moved = part["post_quant_conv"].weight.detach().clone()
    with ours.in_place():
        assert torch.equal(part["post_quant_conv"].weight, start)
    assert torch.equal(part["post_quant_conv"].weight, moved)
