"""What a cast of prune applies to: parameters, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.compare import is_same
from tests.support.samples import prefixed, save_ckpt, weights_of
from vaeconv import CopyOptions, PruneOptions, Pruning, prune
from vaeconv.errors import NonFiniteError

UNET = "model.diffusion_model.input_blocks.0.0"
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def schedule(*, zero_snr: bool = False) -> dict[str, Tensor]:
    """The buffers that LDM's ``register_schedule`` leaves, by its own formulas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    if zero_snr:
        betas[-1] = 1.0
    alphas = 1 - betas
    product = alphas.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    lvlb = betas**2 / (2 * variance * alphas * (1 - product))
    lvlb[0] = lvlb[1]
    sigmas = ((1 - product) / product) ** 0.5
    made = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - product),
        "lvlb_weights": lvlb,
        "logvar": torch.zeros(1000),
        "denoiser.sigmas": sigmas.flip(0),
        "model_sampling.log_sigmas": sigmas.log(),
        "ddim_sigmas": sigmas[::20].clone(),
        "scale_factor": torch.tensor(0.18215),
        "edm_mean": torch.tensor([-1.6574, 1.886, -1.383, 2.5155]).reshape(1, 4, 1, 1),
    }
    return {name: tensor.float() for name, tensor in made.items()}


def full(**more: Tensor) -> dict[str, Tensor]:
    return {
        f"{UNET}.weight": torch.randn(16, 4, 3, 3) / 8,
        f"{UNET}.bias": torch.randn(16) / 8,
        **prefixed(weights_of()),
        **more,
    }


def run(tmp_path: Path, state: dict[str, Any], **options: Any) -> tuple[Pruning, dict[str, Tensor]]:
    save_file(state, tmp_path / "in.safetensors")
    target = tmp_path / "out.safetensors"
    result = prune(tmp_path / "in.safetensors", target, PruneOptions(overwrite=True, **options))
    return result, load_file(target)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_noise_schedule_keeps_its_bits(tmp_path: Path, zero_snr: bool) -> None:
    noise = schedule(zero_snr=zero_snr)
    assert zero_snr is any(bool(torch.isinf(tensor).any()) for tensor in noise.values())
    result, found = run(tmp_path, full(**noise))
    for name, tensor in noise.items():
        assert torch.equal(found[name], tensor) and found[name].dtype is torch.float32, name
    assert found[f"{UNET}.weight"].dtype is torch.float16
    assert any(
        "not cast: 19 tensors of unknown purpose" in note for note in map(str, result.plan.notes)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alphas_cumprod", float("inf")),  # a product of numbers below 1
        ("sqrt_recip_alphas_cumprod", float("nan")),
        (f"{UNET}.weight", float("inf")),
    ],
)
def test_other_infinities_still_mean_that_training_diverged(
    tmp_path: Path, name: str, value: float
) -> None:
    state = full(**schedule())
    state[name].view(-1)[-1] = value
    for dtype in ("fp16", "keep"):
        with pytest.raises(NonFiniteError, match=name):
            run(tmp_path, state, dtype=dtype)


def test_a_quantised_layer_stays_whole(tmp_path: Path) -> None:
    layer = "model.diffusion_model.blocks.0.to_q"
    packed = "model.diffusion_model.blocks.1.to_q"
    bnb = "model.diffusion_model.blocks.2.to_q"
    plain = "model.diffusion_model.blocks.3.to_q"
    stay = {
        f"{layer}.weight": torch.randn(8, 8).to(torch.float8_e4m3fn),
        f"{layer}.scale_weight": torch.tensor(1.2345e-5),
        f"{layer}.scale_input": torch.tensor(3.21e-5),
        f"{layer}.weight_scale": torch.rand(8, 1) / 1e4,
        f"{layer}.weight_scale_inv": torch.rand(1, 1),
        f"{layer}.input_scale": torch.tensor(0.1),
        f"{layer}.comfy_quant": torch.arange(9, dtype=torch.uint8),
        f"{layer}.bias": torch.randn(8),
        "model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        f"{packed}.qweight": torch.arange(8, dtype=torch.int32),
        f"{packed}.scales": torch.rand(8),
        f"{packed}.weight_g": torch.rand(8),
        f"{bnb}.weight": torch.arange(32, dtype=torch.uint8),
        f"{bnb}.weight.absmax": torch.rand(4),
        f"{bnb}.weight.quant_map": torch.rand(16),
    }
    cast = {
        f"{plain}.weight": torch.randn(8, 8),
        f"{plain}.bias": torch.randn(8),
        "model.diffusion_model.pos_embed": torch.randn(1, 4, 8),
    }
    result, found = run(tmp_path, full(**stay, **cast))
    for name, tensor in stay.items():
        assert found[name].dtype is tensor.dtype, name
        assert is_same(found[name], tensor), name
    for name in cast:
        assert found[name].dtype is torch.float16, name
    assert any("not cast: 4 quantised tensors" in note for note in map(str, result.plan.notes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.diffusion_model.norm.running_mean", torch.rand(8)),
        ("model.diffusion_model.norm.running_var", torch.rand(8)),
        ("model.diffusion_model.norm.num_batches_tracked", torch.tensor(70000)),
        ("model.diffusion_model.rotary.inv_freq", torch.rand(8)),
        ("global_step_of_ema", torch.tensor(70001)),
        ("edm_vpred.sigma_max", torch.tensor(120.03)),
        ("cond_stage_model.logit_scale", torch.tensor(4.6052)),
        ("model.diffusion_model.never_heard_of", torch.rand(8)),
    ],
)
def test_what_is_not_known_to_be_a_parameter_keeps_its_dtype(
    tmp_path: Path, name: str, value: Tensor
) -> None:
    _, found = run(tmp_path, full(**{name: value}), dtype="bf16")
    assert found[name].dtype is value.dtype and torch.equal(found[name], value)


def test_no_note_where_nothing_was_left_out_of_a_cast(tmp_path: Path) -> None:
    for state, options in ((full(), {}), (full(**schedule()), {"dtype": "keep"})):
        result, _ = run(tmp_path, state, **options)
        assert not any("not cast" in note for note in map(str, result.plan.notes))


@pytest.mark.parametrize(
    "broken",
    [
        torch.arange(77).float()[None] - 0.004,
        torch.arange(77).half()[None],
        torch.arange(77).bfloat16()[None],
        torch.arange(77).double()[None] * 2,
        (torch.arange(77).float()[None] - 0.004).long(),  # cut off where they were stored
        torch.full((1, 77), float("nan")),
    ],
)
@pytest.mark.parametrize("dtype", ["fp16", "keep"])
def test_position_ids_that_a_merge_broke(tmp_path: Path, broken: Tensor, dtype: str) -> None:
    result, found = run(tmp_path, full(**{IDS: broken}), dtype=dtype)
    assert found[IDS].dtype is torch.int64 and torch.equal(found[IDS], torch.arange(77)[None])
    assert [note for note in map(str, result.plan.notes) if IDS in note and "0 to 76" in note]
    source = save_ckpt(tmp_path / "in.ckpt", full(**{IDS: broken}))
    prune(source, tmp_path / "out.ckpt", PruneOptions(dtype=dtype, overwrite=True))
    written = torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(written[IDS], torch.arange(77)[None])


ROTARY = "model.diffusion_model.rope.position_ids"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        (IDS, torch.arange(77)[None]),
        (IDS, torch.arange(512, dtype=torch.int32)),
        (IDS, torch.arange(77).repeat(2, 1)),
        (IDS, torch.tensor([[3, 1, 2, 7, 9]])),
        (IDS, torch.tensor([[3.0, 1.0, 2.0, 7.0, 9.0]])),
        (IDS, torch.arange(77)[None] + 2),
        (ROTARY, torch.arange(20).repeat(3, 1, 1).float()),
        (ROTARY, torch.arange(20).float() - 0.01),
    ],
)
def test_position_ids_that_no_merge_broke_stay(tmp_path: Path, name: str, right: Tensor) -> None:
    result, found = run(tmp_path, full(**{name: right}), dtype="keep")
    assert found[name].dtype is right.dtype and torch.equal(found[name], right)
    assert not any("position_ids" in note for note in map(str, result.plan.notes))


def test_exceptions_are_for_parameters_as_casts_are(tmp_path: Path) -> None:
    state = full(**schedule())
    _, found = run(tmp_path, state, fp16_except=(f"{UNET}.bias", "betas"))
    assert found[f"{UNET}.bias"].dtype is torch.float32
    assert torch.equal(found["betas"], state["betas"])


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        (["input_blocks.0.0.weight"], "first_stage_model."),
        (["double_blocks.0.img_attn.proj.weight", "img_in.weight"], "vae."),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "vae."),
        (["transformer_blocks.0.attn.to_q.weight", "txt_norm.weight"], "vae."),
        (["double_layers.0.attn.w1q.weight"], "vae."),
        (["something.of.next.year.weight"], "vae."),
    ],
)
def test_a_new_autoencoder_takes_the_prefix_of_its_kind(
    tmp_path: Path, keys: list[str], prefix: str
) -> None:
    save_file(weights_of(), tmp_path / "vae.safetensors")
    state = {f"model.diffusion_model.{key}": torch.ones(8, 8) for key in keys}
    result, found = run(tmp_path, state, vae=tmp_path / "vae.safetensors")
    assert f"{prefix}decoder.conv_in.weight" in found
    assert any(f"begin with {prefix}," in note for note in map(str, result.plan.notes))
    result, found = run(tmp_path, state, vae=tmp_path / "vae.safetensors", prefix="ae.")
    assert "ae.decoder.conv_in.weight" in found
    assert not any("begin with" in note for note in map(str, result.plan.notes))


def test_an_autoencoder_that_is_there_gives_its_prefix(tmp_path: Path) -> None:
    save_file(weights_of(seed=5), tmp_path / "vae.safetensors")
    state = {"model.diffusion_model.double_blocks.0.a.weight": torch.ones(8, 8)}
    result, found = run(
        tmp_path,
        state | prefixed(weights_of(), "first_stage_model."),
        vae=tmp_path / "vae.safetensors",
        copy=CopyOptions(check=False),
    )
    assert "first_stage_model.decoder.conv_in.weight" in found
    assert not any("begin with" in note for note in map(str, result.plan.notes))
