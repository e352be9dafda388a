"""Weights in memory: a state dict of torch's, or diffusers' own model, in place of a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch.nn.parameter import UninitializedParameter

import vaeconv
from vaeconv import (
    ConvertOptions,
    PruneOptions,
    ScalingOptions,
    VerifyOptions,
    convert,
    inspect,
    open_checkpoint,
    prune,
    verify,
)
from vaeconv.errors import ConfigMismatchError, UnsupportedModelError, UsageError

FIXTURES = Path(__file__).parents[3] / "fixtures"
FOLDER = FIXTURES / "tiny-diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"
KNOWN = ScalingOptions(scaling_factor=0.18215)


def compvis_state() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "tiny-kl.safetensors")


def model() -> Any:
    return AutoencoderKL.from_pretrained(FOLDER)


@pytest.mark.parametrize("dtype", ["keep", "fp16", "bf16"])
def test_a_state_dict_gives_what_its_file_gives(tmp_path: Path, dtype: str) -> None:
    options = ConvertOptions(scaling=ScalingOptions(scaling_factor=0.5), dtype=dtype)
    convert(compvis_state(), tmp_path / "memory", options)
    convert(FIXTURES / "tiny-kl.safetensors", tmp_path / "file", options)
    for name in (WEIGHTS, "config.json"):
        found, wanted = ((tmp_path / place / name).read_bytes() for place in ("memory", "file"))
        assert found == wanted
    prune(compvis_state(), tmp_path / "memory.safetensors")
    prune(FIXTURES / "tiny-kl.safetensors", tmp_path / "file.safetensors")
    assert (tmp_path / "memory.safetensors").read_bytes() == (
        tmp_path / "file.safetensors"
    ).read_bytes()


def test_a_model_of_diffusers_keeps_its_config_and_its_weights(tmp_path: Path) -> None:
    result = convert(model(), tmp_path / "out")
    again = AutoencoderKL.from_pretrained(tmp_path / "out")
    mine, theirs = again.state_dict(), model().state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert result.config is not None
    assert result.config["scaling_factor"] == model().config.scaling_factor
    back = convert(model(), tmp_path / "back.safetensors")
    assert back.source == "memory://AutoencoderKL"
    wanted = convert(FOLDER, tmp_path / "wanted.safetensors")
    assert load_file(back.output).keys() == load_file(wanted.output).keys()


def test_models_in_memory_are_verified(tmp_path: Path) -> None:
    options = VerifyOptions(device="cpu", scaling=KNOWN)
    assert verify(model(), FOLDER, options).ok
    assert verify(FIXTURES / "tiny-kl.safetensors", model(), options).ok
    other = model()
    with torch.no_grad():
        other.decoder.conv_out.weight[0, 0, 0, 0] += 0.5
    result = verify(other, FOLDER, options)
    assert not result.ok and any("conv_out" in problem for problem in result.problems)
    assert verify(other, options=options, drop_in_for=model()).ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_any_stride_and_type_are_read_as_they_are(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    state: dict[str, torch.Tensor] = {
        name: tensor.to(dtype) for name, tensor in compvis_state().items()
    }
    weight = "decoder.conv_in.weight"
    strange = state | {
        weight: state[weight].to(memory_format=torch.channels_last),
        "loss.empty": torch.empty(0, 3),
        "loss.scalar": torch.tensor(7),
    }
    convert(strange, tmp_path / "a.safetensors")
    save_file({name: one.contiguous() for name, one in state.items()}, tmp_path / "b.safetensors")
    found, wanted = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found.keys() == wanted.keys()


def test_the_checkpoint_says_what_it_is() -> None:
    with open_checkpoint(compvis_state() | {"step": 3}) as checkpoint:
        assert checkpoint.container == "in memory"
        assert checkpoint.non_tensors == {"step": "int"}
        name = "decoder.conv_in.weight"
        wanted = compvis_state()[name].numpy().tobytes()
        assert checkpoint.tensors[name].read() == wanted
        part = bytearray(100)
        checkpoint.tensors[name].read_at(40, memoryview(part))
        assert bytes(part) == wanted[40:140]
    assert inspect(compvis_state()).layout == "compvis"


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ({}, UsageError, "no torch tensors"),
        ({"state_dict": {}}, UsageError, "pass the state dict itself"),
        (3, UsageError, "int is not a path"),
        ([torch.ones(1)], UsageError, "list is not a path"),
        ({"a": torch.ones(2, 2).to_sparse()}, UnsupportedModelError, "tensor a is torch.sparse"),
        ({"a": torch.ones(2, device="meta")}, UnsupportedModelError, "a has no values"),
        ({"a": UninitializedParameter()}, UnsupportedModelError, "tensor a is no plain tensor"),
        ({5: torch.ones(1), "5": torch.ones(1)}, UsageError, "a key is of type int"),
        ({None: torch.ones(1)}, UsageError, "a key is of type NoneType"),
        (AutoencoderKL, UsageError, "is not a path, a state dict or a module"),
        (SimpleNamespace(state_dict=3), UsageError, "is not a path, a state dict or a module"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, weights: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        convert(weights, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_config_that_does_not_fit_its_weights_is_refused(tmp_path: Path) -> None:
    class Model:
        config = dict(model().config) | {"latent_channels": 16}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return model().state_dict()

    with pytest.raises(ConfigMismatchError):
        convert(Model(), tmp_path / "out")


def test_the_weights_stay_as_they_are(tmp_path: Path) -> None:
    state = compvis_state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    prune(state, tmp_path / "out.safetensors", PruneOptions(dtype="fp16"))
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert all(state[name].dtype is before[name].dtype for name in before)


def test_types_can_be_asked_for() -> None:
    for function in (convert, prune, verify, inspect, open_checkpoint):
        assert get_type_hints(function)


def test_a_config_that_is_no_json_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    class Model:
        def __init__(self) -> None:
            self.config = {**model().config, "object": object(), (1, 2): 3, "deep": deep}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return model().state_dict()

    config = convert(Model(), tmp_path / "out").config
    assert config is not None and config["scaling_factor"] == model().config.scaling_factor


def test_a_folder_that_is_pruned_says_when_its_scaling_is_assumed(tmp_path: Path) -> None:
    with pytest.warns(vaeconv.VaeconvWarning, match="scaling"):
        result = prune(model().state_dict(), tmp_path / "out")
    assert any("scaling" in note.text for note in result.plan.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model(), tmp_path / "known")
