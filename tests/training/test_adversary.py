"""The adversarial loss in a run: when it begins, what it leaves alone, and that it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.closeness import near
from tests.support.samples import save_ckpt, weights_of
from tests.training.runs import RAW, assert_same_runs, load, metrics_of, state_of, train
from vaeconv.errors import UnmappedKeysError
from vaeconv.training.base import load_base
from vaeconv.training.networks import Discriminator
from vaeconv.training.options import FinetuneOptions

SIZE = 32  # four halvings, and two pixels less


def test_it_begins_at_its_step_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    options = {"base": RAW, "size": SIZE, "adversarial": 0.5, "adversarial_start": 1}
    train(tmp_path / "whole", 3, save_every=1, **options)
    records = metrics_of(tmp_path / "whole")
    assert "adversarial" not in records[0]
    for one in records[1:]:
        assert one["adversarial_weight"] > 0 and one["discriminator"] > 0
    train(tmp_path / "halves", 2, save_every=1, **options)
    train(tmp_path / "halves", 3, save_every=1, **options)
    found = metrics_of(tmp_path / "halves")
    assert [one["step"] for one in found] == [1, 2, 3]
    assert_same_runs(tmp_path / "halves", tmp_path / "whole")
    state, saved = state_of(tmp_path / "whole"), load(tmp_path / "whole" / "last.ckpt")
    assert len(saved["optimizer_states"]) == 2 and state["loss.logvar"] == 0
    assert state["loss.discriminator.main.3.running_mean"].any()
    fresh = Discriminator()
    fresh.initialise(0)
    name = "main.0.weight"
    moved = state[f"loss.discriminator.{name}"] - fresh.state_dict()[name]
    # Adam moves by about its learning rate in each of its two steps.
    assert 1e-3 < moved.abs().max() < 2.5e-3


def test_it_changes_what_is_learned(tmp_path: Path) -> None:
    for weight in (0.0, 0.5):
        train(tmp_path / str(weight), 2, base=RAW, size=SIZE, adversarial=weight)
    one, other = (state_of(tmp_path / name)["decoder.conv_out.weight"] for name in ("0.0", "0.5"))
    assert not torch.equal(one, other)
    encoder = "encoder.conv_in.weight"
    assert torch.equal(state_of(tmp_path / "0.5")[encoder], state_of(tmp_path / "0.0")[encoder])


def test_a_decoder_step_leaves_no_gradient_in_the_discriminator() -> None:
    from vaeconv.training.adversary import Adversary

    base = load_base(str(RAW), FinetuneOptions(steps=1).reading, ema=False, size=SIZE)
    adversary = Adversary(base, FinetuneOptions(steps=1, adversarial=1.0), torch.device("cpu"))
    layer = torch.full((), 0.9, requires_grad=True)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    decoded = images * layer
    adversarial, weight = adversary.judge((images - decoded).abs().sum(), decoded, layer)
    (weight * adversarial).backward()
    assert layer.grad is not None
    assert all(one.grad is None for one in adversary.module.parameters())
    adversary.learn(images, decoded, lambda loss: loss.backward())
    assert all(one.grad is not None for one in adversary.module.parameters())


def test_the_base_brings_its_discriminator_or_a_wrong_one(tmp_path: Path) -> None:
    source = Discriminator()
    source.initialise(7)
    whole = {f"loss.discriminator.{name}": one for name, one in source.state_dict().items()}
    save_ckpt(tmp_path / "base.ckpt", weights_of() | whole)
    train(tmp_path / "run", 1, base=tmp_path / "base.ckpt", size=SIZE, adversarial=0.5,
          adversarial_start=9)  # fmt: skip
    found = state_of(tmp_path / "run")
    assert all(torch.equal(found[name], one) for name, one in whole.items())
    whole["loss.discriminator.main.0.weight"] = torch.zeros(8, 3, 4, 4)
    save_ckpt(tmp_path / "other.ckpt", weights_of() | whole)
    with pytest.raises(UnmappedKeysError, match=r"1 wrongly shaped: loss\.discriminator\.main\.0"):
        train(tmp_path / "bad", 1, base=tmp_path / "other.ckpt", size=SIZE, adversarial=0.5)


def test_it_goes_with_gradient_checkpointing(tmp_path: Path) -> None:
    """The graph is walked three times, for two norms and for the step."""
    for name, recomputes in (("plain", False), ("less", True)):
        train(tmp_path / name, 1, base=RAW, size=SIZE, adversarial=0.5,
              gradient_checkpointing=recomputes)  # fmt: skip
    one, other = (metrics_of(tmp_path / name)[0] for name in ("plain", "less"))
    for name in ("adversarial_weight", "grad_norm"):
        assert other[name] == near(one[name])
