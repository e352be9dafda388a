"""Measures how far two right implementations are apart: ``python -m benchmarks.tolerances``.

vaeconv's CompVis modules and diffusers' ``AutoencoderKL`` get the same random weights, scaled so
that activations neither vanish nor grow, and run the built-in reference set in fp32, fp16 and bf16.
The tolerances in ``vaeconv/parity/distance.py`` rest on what this prints.
"""

from __future__ import annotations

import argparse
import math

import torch

from tests.support.compvis import DDConfig
from vaeconv.autoencoder.config import Scaling, build_config
from vaeconv.autoencoder.keys import expand_rules
from vaeconv.autoencoder.topology import Layout
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.models.devices import import_torch, pick_device, reproducible
from vaeconv.models.load import Model
from vaeconv.parity.compare_outputs import DTYPES, Limits, Outcome, Runner
from vaeconv.parity.references import DECODE, ENCODE, built_in_set

SCALING = Scaling(0.18215)
MODELS = {
    "small": DDConfig(ch=32, ch_mult=(1, 2, 4)),
    "kl-f4": DDConfig(ch_mult=(1, 2, 4), z_channels=3),
    "kl-f8": DDConfig(),
    "kl-f16": DDConfig(ch_mult=(1, 1, 2, 2, 4), attn_levels=frozenset({4}), z_channels=16),
}


def make_pair(config: DDConfig, seed: int, gain: float) -> tuple[Model, Model]:
    """Returns both implementations with the same weights."""
    torch.manual_seed(seed)
    ours = CompVisAutoencoder(config.topology).eval()
    for name, parameter in ours.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))
        else:
            is_bias = name.endswith("bias")
            torch.nn.init.normal_(parameter, mean=0 if is_bias else 1, std=0.05)
    arguments = build_config(config.topology, SCALING, sample_size=256)
    theirs = import_torch().from_config(arguments).eval()
    weights = ours.state_dict()
    theirs.load_state_dict(
        {
            pair.diffusers: weights[pair.compvis].reshape(pair.shape(Layout.DIFFUSERS))
            for pair in expand_rules(config.topology)
        }
    )
    return Model(ours, Layout.COMPVIS, "ours"), Model(theirs, Layout.DIFFUSERS, "theirs")


def run(
    config: DDConfig, gain: float, dtype: str, device: torch.device
) -> dict[str, list[Outcome]]:
    """Returns the outcomes of decoding and of encoding."""
    references = built_in_set(config.topology, SCALING)
    pair = make_pair(config, seed=1, gain=gain)
    with reproducible():
        limits = Limits(atol=math.inf)
        runner = Runner(pair, ("ours", "theirs"), config.topology, device, limits=limits)
        return {kind: runner.run(references.of(kind), dtype, kind) for kind in (DECODE, ENCODE)}


def main() -> None:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--gains", nargs="*", type=float, default=[1.0, 1.4])
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    print(f"on {device}; each cell: largest difference / by the largest magnitude, PSNR")
    for name in arguments.models:
        for gain in arguments.gains:
            for dtype in DTYPES:
                for kind, outcomes in run(MODELS[name], gain, dtype, device).items():
                    distances = [one.distance for one in outcomes]
                    worst = max(d.max_abs for d in distances)
                    relative = max(d.max_abs / max(1.0, d.largest) for d in distances)
                    psnr = min(d.psnr for d in distances)
                    print(
                        f"{name:8} gain {gain:.1f} {dtype} {kind}: {worst:.1e} / {relative:.1e}, "
                        f"{psnr:.1f} dB",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
