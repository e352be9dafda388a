from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from fixtures import make_fixtures as make
from fixtures.compare import compare, is_same
from tests.support.closeness import assert_near
from tests.support.compvis import DDConfig
from tests.support.lightning import CALLBACK_MODULE, fake_lightning
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.evaluate import evaluate
from vaeconv.evaluation.models import ModelSpec
from vaeconv.models.compvis import CompVisAutoencoder

FOLDER = make.FOLDER


def load_training(path: Path) -> dict[str, Any]:
    with fake_lightning():
        return torch.load(path, weights_only=False)


def load_reference(weights: dict[str, Tensor], config: DDConfig) -> CompVisAutoencoder:
    model = CompVisAutoencoder(config.topology)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def assert_same_values(found: Any, expected: Any) -> None:
    match expected:
        case Tensor():
            assert is_same(found, expected)
        case dict():
            assert [str(key) for key in found] == [str(key) for key in expected]
            for left, right in zip(found.values(), expected.values(), strict=True):
                assert_same_values(left, right)
        case list():
            assert len(found) == len(expected)
            for left, right in zip(found, expected, strict=True):
                assert_same_values(left, right)
        case _:
            assert found == expected


def test_sums_match_the_files() -> None:
    assert (FOLDER / make.SUMS).read_text(encoding="utf-8") == make.sum_files(FOLDER)


def test_files_stay_small() -> None:
    sizes = [file.stat().st_size for file in make.list_files(FOLDER)]
    assert max(sizes) < 1_500_000
    assert sum(sizes) < 6_500_000


def test_the_trained_autoencoder_is_small_and_plain() -> None:
    path = FOLDER / "trained.ckpt"
    assert path.stat().st_size < 4_200_000  # two sets of weights in fp16
    state = torch.load(path, weights_only=True)["state_dict"]
    raw = {name: tensor for name, tensor in state.items() if not name.startswith("model_ema.")}
    shadows = {name for name in state if name.startswith("model_ema.")}
    assert sum(map(Tensor.numel, raw.values())) == 998_055
    assert {tensor.dtype for tensor in raw.values()} == {torch.float16}
    assert {"model_ema." + name.replace(".", "") for name in raw} < shadows


def test_its_successor_has_the_same_encoder_and_another_decoder() -> None:
    state = torch.load(FOLDER / "trained.ckpt", weights_only=True)["state_dict"]
    tuned = load_file(FOLDER / "finetuned.safetensors")
    changed = {
        name.split(".")[0]
        for name, tensor in tuned.items()
        if not is_same(tensor, state["model_ema." + name.replace(".", "")])
    }
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.slow
def test_the_successor_reconstructs_photographs_better_that_neither_has_seen() -> None:
    """22.35 and 22.90 dB at 256 pixels where the figures were taken."""
    models = [ModelSpec(path=str(FOLDER / "trained.ckpt"), name="base", ema=True),
              ModelSpec(path=str(FOLDER / "finetuned.safetensors"), name="fine-tuned")]  # fmt: skip
    result = evaluate(
        models, FOLDER / "photos" / "held-out", EvalOptions(metrics=("psnr",), device="cpu")
    )
    assert result is not None
    base, tuned = (model["metrics"]["psnr"]["mean"] for model in result["models"])
    assert base > 21
    assert tuned > base + 0.3


def test_training_checkpoint_is_what_the_script_makes() -> None:
    found = load_training(FOLDER / "tiny-kl.ckpt")
    with fake_lightning() as callback:
        expected = make.make_training_checkpoint(callback)
    assert isinstance(found["hyper_parameters"], DictConfig)
    assert [key.__module__ for key in found["callbacks"]] == [CALLBACK_MODULE]
    assert_same_values(found, expected)


@pytest.mark.parametrize(
    ("name", "load", "config", "dtype", "seed"),
    [
        ("tiny-kl.safetensors", load_file, make.KL, torch.float16, 1),
        ("tiny-noquant.safetensors", load_file, make.NO_QUANT, torch.bfloat16, 7),
        ("tiny-legacy.pt", torch.load, make.KL, torch.float32, 6),
        ("tiny-attn.ckpt", torch.load, make.ATTENTION, torch.float32, 5),
    ],
)
def test_weights_are_what_the_script_makes(
    name: str,
    load: Callable[[Path], dict[str, Any]],
    config: DDConfig,
    dtype: torch.dtype,
    seed: int,
) -> None:
    found = load(FOLDER / name)
    found = found.get("state_dict", found)
    expected = make.make_weights(config, dtype, seed)
    assert found.keys() == expected.keys()
    assert all(is_same(found[key], expected[key]) for key in expected)
    load_reference(found, config)


def test_containers_are_what_their_names_say() -> None:
    starts = {file.name: file.read_bytes()[:9] for file in make.list_files(FOLDER)}
    assert starts["tiny-kl.ckpt"].startswith(b"PK\x03\x04")
    assert starts["tiny-attn.ckpt"].startswith(b"PK\x03\x04")
    assert starts["tiny-legacy.pt"].startswith(b"\x80\x02")
    assert starts["tiny-kl.safetensors"].endswith(b"{")


def test_only_the_decoder_has_an_average() -> None:
    state = load_training(FOLDER / "tiny-kl.ckpt")["state_dict"]
    names = [name for name in state if name.startswith("model_ema.")]
    decoder = [name for name in state if name.startswith("decoder.")]
    assert sum(name.startswith("model_ema.decoder") for name in names) == len(decoder)
    assert not any(name.startswith("model_ema.encoder") for name in names)
    assert {"model_ema.decay", "model_ema.num_updates", "model_ema.losslogvar"} <= set(names)


def test_diffusers_folder_decodes_as_the_reference_does() -> None:
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    theirs = DiffusersAutoencoderKL.from_pretrained(FOLDER / "tiny-diffusers").float().eval()
    weights = load_file(FOLDER / "tiny-kl.safetensors")
    ours = load_reference({name: tensor.float() for name, tensor in weights.items()}, make.KL)
    picture = make.random_tensor("picture", (1, 3, 16, 16), seed=8)
    latent = make.random_tensor("latent", (1, 4, 8, 8), seed=8)
    with torch.inference_mode():
        assert_near(theirs.encode(picture).latent_dist.parameters, ours.encode(picture))
        assert_near(theirs.decode(latent).sample, ours.decode(latent))


def test_compare_tells_raw_ema_and_damage_apart() -> None:
    one, two = torch.zeros(2), torch.ones(2)
    source = {
        "encoder.a": one,
        "decoder.a": one,
        "decoder.b": one,
        "decoder.c": one,
        "model_ema.decodera": two,
    }
    back = {"encoder.a": one, "decoder.a": two, "decoder.b": two, "decoder.d": one}
    assert compare(source, back) == {
        "encoder.a": "raw",
        "decoder.a": "ema",
        "decoder.b": "differs",
        "decoder.c": "missing",
        "decoder.d": "extra",
    }
