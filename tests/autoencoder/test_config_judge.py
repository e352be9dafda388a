"""Values of a config.json, and what ``AutoencoderKL.from_pretrained`` makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL

from tests.support.corpus import FIXTURES
from vaeconv import ConvertOptions, convert
from vaeconv.errors import VaeconvError

FOLDER = FIXTURES / "tiny-diffusers"
CONFIG = json.loads((FOLDER / "config.json").read_text())
GONE = object()
CHANGES: dict[str, list[Any]] = {
    "sample_size": [256, 256.0, [256, 256], [256, 128], [256], [256.0, 256.0], 1],
    "scaling_factor": [GONE, 1, 0.5, 1e-3],
    "shift_factor": [GONE, None, 0, 1, -0.5],
    "latents_mean": [GONE, None, [0, 1, 2, 3], [0.5, 1.5, -1.0, 0.0]],
    "force_upcast": [GONE, None, True, False, 0, 1],
    "use_quant_conv": [True, 1],
    "use_post_quant_conv": [True, 1],
    "mid_block_add_attention": [GONE, True, 1],
    "act_fn": [GONE, "silu", "SiLU", "swish"],
    "norm_num_groups": [GONE],
    "layers_per_block": [GONE],
    "in_channels": [GONE],
    "latent_channels": [GONE],
    "_class_name": [GONE, "FlaxAutoencoderKL", ["mine", "AutoencoderKL"]],
    "_diffusers_version": [GONE, "0.1", None, 3],
    "down_block_types": [[f"UNetRes{name}" for name in CONFIG["down_block_types"]]],
    "unknown": [None, 1, "x", [1], {"a": {}}, float("nan")],
    "quantization_config": [None],
    "_use_default_values": [[], ["shift_factor"]],
    "_name_or_path": ["x"],
}


def folder(tmp_path: Path, **changes: Any) -> Path:
    place = tmp_path / "in"
    shutil.copytree(FOLDER, place)
    (place / "vaeconv.json").unlink(missing_ok=True)
    document = {k: v for k, v in {**CONFIG, **changes}.items() if v is not GONE}
    (place / "config.json").write_text(json.dumps(document))
    return place


@pytest.mark.parametrize(
    "key, value",
    [
        pytest.param(key, value, id=f"{key}={'-' if value is GONE else json.dumps(value)}")
        for key, values in CHANGES.items()
        for value in values
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_loads_is_read_and_means_the_same(
    key: str, value: Any, tmp_path: Path
) -> None:
    place = folder(tmp_path, **{key: value})
    expected = AutoencoderKL.from_pretrained(str(place), low_cpu_mem_usage=False).config
    convert(place, tmp_path / "out", ConvertOptions())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for name, found in written.items():
        theirs = expected[name] if not name.startswith("_") else found
        if name == "force_upcast":  # asked for its truth only
            theirs = bool(theirs)
        elif name == "act_fn":
            theirs = theirs.lower()
        elif name.endswith("_block_types"):
            theirs = [block.removeprefix("UNetRes") for block in theirs]
        elif name.startswith(("use_", "mid_")):
            theirs = bool(theirs)
        assert found == (list(theirs) if isinstance(theirs, tuple) else theirs), name


# Loaded by diffusers, which only stores them; no pipeline could use the model then.
REFUSED: dict[str, list[Any]] = {
    "sample_size": [0, -1, 1.5, "256", []],
    "scaling_factor": [float("nan"), float("inf"), "x", [1]],
    "latents_mean": [1.0, "0123", [float("nan")] * 4],
    "_class_name": ["AutoencoderKLWan", "UNet2DConditionModel", None],
    "act_fn": ["tanh", 1],
    "block_out_channels": [[32.5, 32.5]],
}


@pytest.mark.parametrize(
    "key, value", [(key, value) for key, values in REFUSED.items() for value in values]
)
def test_values_of_no_use_are_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(VaeconvError, match=r"config\.json: ") as caught:
        convert(folder(tmp_path, **{key: value}), tmp_path / "out", ConvertOptions())
    assert caught.value.exit_code == 3
