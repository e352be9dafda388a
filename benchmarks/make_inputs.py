"""Makes the checkpoints that the benchmark reads: ``python -m benchmarks.make_inputs --dir DIR``.

``kl-f8.ckpt`` (335 MB) is one autoencoder; ``sd-full.ckpt`` (7.7 GB) is shaped like a Stable
Diffusion training checkpoint that holds it. Both come from ``torch.save``. All tensors are
windows of one block of noise, so making them takes some 300 MB of memory, whatever the size of
the file. Files that are there already stay.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.support.compvis import DDConfig, parameter_shapes

Shapes = dict[str, tuple[int, ...]]

KL_F8 = DDConfig()
NOISE_VALUES = 40_000_000  # more than the largest tensor has
UNET_GROUPS = 49

# Seven layers with a weight and a bias each: 49 times that is the 686 tensors and nearly the
# 860 M parameters of Stable Diffusion's UNet. Names and shapes are made up.
UNET_GROUP: Shapes = {
    "norm": (320,),
    "conv_small": (320, 320, 3, 3),
    "conv_middle": (640, 640, 3, 3),
    "conv_large": (1280, 640, 3, 3),
    "attn_q": (1280, 1280),
    "attn_k": (640, 768),
    "ff": (5120, 640),
}


def unet_shapes() -> Shapes:
    """Returns the UNet's names, without a prefix."""
    shapes: Shapes = {}
    for i in range(UNET_GROUPS):
        for layer, shape in UNET_GROUP.items():
            shapes[f"diffusion_model.input_blocks.{i}.{layer}.weight"] = shape
            shapes[f"diffusion_model.input_blocks.{i}.{layer}.bias"] = shape[:1]
    return shapes


def text_encoder_shapes() -> Shapes:
    """Returns the names of CLIP ViT-L/14's text half: 123 M parameters."""
    width, inner = 768, 3072
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    layer: Shapes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    layer |= {"layer_norm1": (width,), "layer_norm2": (width,)}
    layer |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for i in range(12):
        for name, shape in layer.items():
            shapes[f"encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"encoder.layers.{i}.{name}.bias"] = shape[:1]
    shapes |= {"final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    return {f"transformer.text_model.{name}": shape for name, shape in shapes.items()}


def full_shapes() -> Shapes:
    """Returns the names of a whole training checkpoint, in the order that LDM has them."""
    unet = unet_shapes()
    shapes: Shapes = {"betas": (1000,), "alphas_cumprod": (1000,)}
    shapes |= {f"model.{name}": shape for name, shape in unet.items()}
    shapes |= {f"model_ema.{name.replace('.', '')}": shape for name, shape in unet.items()}
    shapes |= {f"first_stage_model.{n}": shape for n, shape in parameter_shapes(KL_F8).items()}
    shapes |= {f"cond_stage_model.{n}": shape for n, shape in text_encoder_shapes().items()}
    return shapes


def cut_noise(shapes: Shapes, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yields a tensor for each name: a window of the noise, with a storage of its own."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal(NOISE_VALUES, dtype=np.float32)
    noise *= np.float32(0.02)
    for name, shape in shapes.items():
        size = math.prod(shape)
        start = int(random.integers(NOISE_VALUES - size + 1))
        yield name, torch.from_numpy(noise[start : start + size]).view(shape)


def save(path: Path, content: dict[str, object]) -> None:
    """Saves under a temporary name first, so that a file that is there is whole."""
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def make_small(path: Path) -> None:
    """Writes the autoencoder alone."""
    save(path, {"state_dict": dict(cut_noise(parameter_shapes(KL_F8), seed=1))})


def make_full(path: Path) -> None:
    """Writes the whole training checkpoint."""
    tensors = dict(cut_noise(full_shapes(), seed=2))
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    tensors["model_ema.num_updates"] = torch.tensor(470_000, dtype=torch.int32)
    save(path, {"epoch": 7, "global_step": 470_000, "state_dict": tensors})


def main() -> None:
    """Makes the inputs that aren't there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the files go")
    parser.add_argument("--small-only", action="store_true", help="leave the 7.7 GB file out")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    makers = {"kl-f8.ckpt": make_small}
    if not options.small_only:
        makers["sd-full.ckpt"] = make_full
    for name, make in makers.items():
        path = options.dir / name
        if not path.exists():
            make(path)
        print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
