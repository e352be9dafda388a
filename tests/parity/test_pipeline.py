"""A converted autoencoder in a real ``StableDiffusionPipeline``, against the CompVis decoder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near, gap
from vaeconv import ConvertOptions, ScalingOptions, convert
from vaeconv.models.load import Model, load_compvis
from vaeconv.models.open_model import ModelOptions, open_model

SCALING = 0.3
SIZE = 32  # pixels; latents have half of it


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    """Silence what diffusers and transformers deprecate in each other, and nothing of ours."""
    with warnings.catch_warnings():
        for module in ("diffusers", "transformers", "huggingface_hub"):
            warnings.filterwarnings("ignore", category=FutureWarning, module=module)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
        yield


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer that spells: one token for each letter, alone and at the end of a word."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )


def make_pipeline(folder: Path, vae: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(5)
    tokenizer = make_tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def converted(models: Path) -> Path:
    """The EMA of ``tiny-kl.ckpt``, as a user would convert it."""
    target = models / "for-a-pipeline"
    scaling = ScalingOptions(scaling_factor=SCALING)
    convert(FIXTURES / "tiny-kl.ckpt", target, ConvertOptions(ema=True, scaling=scaling))
    return target


@pytest.fixture
def pipeline(converted: Path, tmp_path: Path) -> Any:
    from diffusers import AutoencoderKL

    return make_pipeline(tmp_path, AutoencoderKL.from_pretrained(converted))


@pytest.fixture(scope="module")
def compvis() -> Model:
    """The CompVis decoder with the EMA of the source: it has never seen what was converted."""
    model = open_model(FIXTURES / "tiny-kl.ckpt", "A", ModelOptions(), ema=True)
    try:
        return load_compvis(model.topology, list(model.rows.values()))
    finally:
        model.close()


def draw(pipeline: Any, output_type: str) -> Any:
    return pipeline(
        "a cat on a mat",
        num_inference_steps=2,
        guidance_scale=3.0,
        height=SIZE,
        width=SIZE,
        generator=torch.Generator().manual_seed(7),
        output_type=output_type,
    ).images


def to_pixels(decoded: Tensor) -> Any:
    """What a pipeline makes of a decoded picture: values from 0 to 1, channels last."""
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_a_pipeline_draws_what_the_compvis_decoder_draws(pipeline: Any, compvis: Model) -> None:
    latents = draw(pipeline, "latent")
    picture = draw(pipeline, "np")
    assert latents.shape == (1, 4, SIZE // 2, SIZE // 2)
    assert picture.shape == (1, SIZE, SIZE, 3)
    assert picture.std() > 0.02
    with torch.inference_mode():
        judged = to_pixels(compvis.decode(latents / SCALING))
        unscaled = to_pixels(compvis.decode(latents))
    assert_near(picture, judged)
    assert gap(picture, unscaled) > 1e-2, "the picture says nothing of the scaling"


def test_the_picture_is_another_with_the_raw_weights(pipeline: Any) -> None:
    model = open_model(FIXTURES / "tiny-kl.ckpt", "A", ModelOptions(), ema=False)
    try:
        raw = load_compvis(model.topology, list(model.rows.values()))
    finally:
        model.close()
    latents = draw(pipeline, "latent")
    with torch.inference_mode():
        judged = to_pixels(raw.decode(latents / SCALING))
    assert gap(draw(pipeline, "np"), judged) > 1e-3


def test_the_pipeline_knows_the_size_and_the_scaling(pipeline: Any, converted: Path) -> None:
    assert pipeline.vae_scale_factor == 2
    assert pipeline.vae.config.scaling_factor == SCALING
    assert json.loads((converted / "config.json").read_text())["scaling_factor"] == SCALING
