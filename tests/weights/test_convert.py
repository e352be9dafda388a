from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from fixtures.make_fixtures import make_loss, random_tensor
from tests.support.lightning import fake_lightning, make_adam_state, make_checkpoint
from tests.support.litema import ema_name, make_ema
from tests.support.samples import (
    CONFIGS,
    SD_TREE,
    SHAPED,
    TINY,
    WEIGHTS,
    assert_same,
    average,
    config_of,
    in_diffusers,
    load_ckpt,
    load_folder,
    prefixed,
    save_ckpt,
    save_folder,
    weights_of,
    with_old_names,
    with_value,
)
from vaeconv import Conversion, ConvertOptions, CopyOptions, ScalingOptions, convert
from vaeconv.common.notes import note
from vaeconv.errors import (
    AmbiguousInputError,
    ConfigMismatchError,
    DTypeOverflowError,
    EmaError,
    InputError,
    NonFiniteError,
    NotACheckpointError,
    OutputExistsError,
    UnmappedKeysError,
    UnsupportedModelError,
    UsageError,
)


def warnings_of(result: Conversion) -> list[str]:
    """What was warned of, but for the scaling factor that every test without one lacks."""
    return [
        note
        for note in map(str, result.plan.notes)
        if note.startswith("warning:") and "scaling factor" not in note
    ]


# --- round trips ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_keeps_every_bit(
    tmp_path: Path, name: str, suffix: str, dtype: torch.dtype
) -> None:
    config = CONFIGS[name]
    weights = weights_of(config, dtype)
    source, first, back, second = (
        tmp_path / part for part in ("m" + suffix, "first", "back" + suffix, "second")
    )
    if suffix == ".ckpt":
        save_ckpt(source, weights)
    else:
        save_file(weights, source)
    factors = ConvertOptions(scaling=ScalingOptions(0.3, 0.1))
    convert(source, first, factors)
    assert_same(load_folder(first), in_diffusers(weights, config))
    convert(first, back)
    assert_same(load_ckpt(back) if suffix == ".ckpt" else load_file(back), weights)
    convert(back, second, factors)
    for file in (WEIGHTS, "config.json"):
        assert (second / file).read_bytes() == (first / file).read_bytes()


def test_back_to_safetensors_gives_the_bytes_of_the_library(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    save_file(weights_of(), source, metadata={"format": "pt"})
    convert(source, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


def test_a_folder_keeps_its_config(tmp_path: Path) -> None:
    save_file(weights_of(SHAPED), tmp_path / "m.safetensors")
    options = ConvertOptions(scaling=ScalingOptions(family="playground-v2.5"))
    convert(tmp_path / "m.safetensors", tmp_path / "one", options)
    (tmp_path / "one" / "config.json").write_text(
        json.dumps(config_of(tmp_path / "one") | {"force_upcast": False, "sample_size": 320})
    )
    convert(tmp_path / "one", tmp_path / "two")
    assert config_of(tmp_path / "two") == config_of(tmp_path / "one")
    assert config_of(tmp_path / "two")["latents_mean"] == [-1.6574, 1.886, -1.383, 2.5155]


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of(SHAPED))
    code = (
        "from vaeconv import convert;"
        "convert('m.ckpt', f'{out}/folder'); convert('m.ckpt', f'{out}/m.ckpt');"
        "convert('m.ckpt', f'{out}/m.safetensors')"
    )
    digests = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-c", f"out={seed!r};{code}"]
        subprocess.run(command, check=True, cwd=tmp_path, env=env)
        files = sorted(path for path in (tmp_path / seed).rglob("*") if path.is_file())
        names = [str(path.relative_to(tmp_path / seed)) for path in files]
        assert len(names) == 5
        digests.append([(n, path.read_bytes()) for n, path in zip(names, files, strict=True)])
    assert digests[0] == digests[1]


def test_bytes_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    weights = weights_of()
    save_ckpt(tmp_path / "a.ckpt", weights)
    save_ckpt(tmp_path / "b.ckpt", dict(reversed(weights.items())))
    for name in "ab":
        convert(tmp_path / f"{name}.ckpt", tmp_path / f"{name}-out")
    one, two = ((tmp_path / f"{name}-out" / WEIGHTS).read_bytes() for name in "ab")
    assert one == two


# --- spellings and shapes ---


@pytest.mark.parametrize("dimensions", [2, 3, 4])
@pytest.mark.parametrize("names", ["new", "old"])
def test_attention_of_any_rank_and_age_is_read_from_folders(
    tmp_path: Path, dimensions: int, names: str
) -> None:
    weights = weights_of()
    state = {
        name: t.reshape(*t.shape, *(1,) * (dimensions - 2))
        if ".attentions." in name and t.ndim == 2
        else t
        for name, t in in_diffusers(weights).items()
    }
    save_folder(tmp_path / "in", with_old_names(state) if names == "old" else state)
    convert(tmp_path / "in", tmp_path / "m.ckpt")
    assert_same(load_ckpt(tmp_path / "m.ckpt"), weights)
    convert(tmp_path / "in", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_attention_of_any_rank_is_read_from_compvis_files(tmp_path: Path, dimensions: int) -> None:
    weights = weights_of()
    state = {
        name: t.reshape(*t.shape[:2], *(1,) * (dimensions - 2))
        if ".attn_1." in name and t.ndim == 4
        else t
        for name, t in weights.items()
    }
    assert sum(t.ndim == dimensions for t in state.values()) >= 8
    save_ckpt(tmp_path / "m.ckpt", state)
    convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
    convert(tmp_path / "m.ckpt", tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), weights)


def test_old_attention_names_are_written_on_request(tmp_path: Path) -> None:
    weights = weights_of()
    save_ckpt(tmp_path / "m.ckpt", weights)
    convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(legacy_names=True))
    assert_same(load_folder(tmp_path / "out"), with_old_names(in_diffusers(weights)))
    convert(tmp_path / "out", tmp_path / "back.ckpt")
    assert_same(load_ckpt(tmp_path / "back.ckpt"), weights)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_prefix_is_written_on_request(tmp_path: Path, suffix: str) -> None:
    weights = weights_of()
    save_folder(tmp_path / "in", in_diffusers(weights))
    target = tmp_path / f"m{suffix}"
    convert(tmp_path / "in", target, ConvertOptions(prefix="first_stage_model."))
    found = load_ckpt(target) if suffix == ".ckpt" else load_file(target)
    assert_same(found, prefixed(weights))


@pytest.mark.parametrize("prefix", ["module.", "vae.", "first_stage_model.", "a.b.c."])
def test_any_prefix_is_found(tmp_path: Path, prefix: str) -> None:
    save_ckpt(tmp_path / "m.ckpt", prefixed(weights_of(), prefix))
    convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights_of()))


def test_wrappers_are_opened(tmp_path: Path) -> None:
    weights = weights_of()
    parameters = {name: torch.nn.Parameter(t) for name, t in weights.items()}
    for index, document in enumerate(
        (
            weights,
            {"state_dict": {"state_dict": weights}},
            {"model": weights},
            {"state_dict": parameters, "epoch": 3},
            torch.nn.ModuleDict(),
        )
    ):
        if isinstance(document, torch.nn.Module):
            continue
        torch.save(document, tmp_path / "m.ckpt")
        convert(tmp_path / "m.ckpt", tmp_path / f"out{index}")
        assert_same(load_folder(tmp_path / f"out{index}"), in_diffusers(weights))


def test_tensors_that_are_views_are_copied_as_they_look(tmp_path: Path) -> None:
    weights = weights_of()
    shared = torch.cat([t.flatten() for t in weights.values()])
    views, at = {}, 0
    for name, tensor in weights.items():
        views[name] = shared[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    last = {n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
            for n, t in weights.items()}  # fmt: skip
    transposed = {
        n: t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 4 else t
        for n, t in weights.items()
    }
    assert not last["encoder.conv_out.weight"].is_contiguous()
    for state in (views, last, transposed):
        save_ckpt(tmp_path / "m.ckpt", state)
        for target in ("out", "m.safetensors"):
            convert(tmp_path / "m.ckpt", tmp_path / target, ConvertOptions(overwrite=True))
        assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
        assert_same(load_file(tmp_path / "m.safetensors"), weights)


def test_entries_that_are_no_tensors_are_left_out(tmp_path: Path) -> None:
    state: dict[str, Any] = weights_of() | {"global_step": 7, "note": "x", "lr": 0.1, "none": None}
    save_ckpt(tmp_path / "m.ckpt", state)
    result = convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights_of()))
    assert result.plan.drop_counts() == {"not a tensor": 4}
    assert not warnings_of(result)


# --- what else is in the file ---


def test_a_full_checkpoint_gives_its_autoencoder(tmp_path: Path) -> None:
    weights = weights_of(SHAPED)
    state = prefixed(weights) | {
        "model.diffusion_model.input_blocks.11.0.in_layers.0.weight": torch.ones(4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(4)[None],
        "betas": torch.ones(9, dtype=torch.float64),
        "model_ema.decay": torch.tensor(0.9999),
        "first_stage_model.loss.logvar": torch.zeros(()),
    }
    save_file(state, tmp_path / "sd.safetensors")
    result = convert(tmp_path / "sd.safetensors", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights, SHAPED))
    assert result.plan.notes == ()
    assert config_of(tmp_path / "out")["scaling_factor"] == 0.18215
    assert result.plan.drop_counts() == {
        "unet": 1, "text encoder": 1, "schedule": 1, "ema": 1, "loss": 1,
    }  # fmt: skip


def test_a_second_encoder_that_conditions_is_ignored(tmp_path: Path) -> None:
    weights, other = weights_of(), weights_of(seed=22)
    second = prefixed(
        {n: t for n, t in other.items() if n.startswith("encoder.")}, "conditioner.embedders.3."
    )
    save_file(second | prefixed(weights), tmp_path / "m.safetensors")
    result = convert(tmp_path / "m.safetensors", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
    assert not warnings_of(result)


def test_two_different_autoencoders_ask_which(tmp_path: Path) -> None:
    one, two = weights_of(), weights_of(seed=22)
    save_file(one | prefixed(two), tmp_path / "m.safetensors")
    with pytest.raises(AmbiguousInputError, match=r"2 different.*source_prefix") as caught:
        convert(tmp_path / "m.safetensors", tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    for prefix, expected in (("", one), ("first_stage_model.", two)):
        options = ConvertOptions(source_prefix=prefix, overwrite=True)
        result = convert(tmp_path / "m.safetensors", tmp_path / "out", options)
        assert_same(load_folder(tmp_path / "out"), in_diffusers(expected))
        assert result.plan.drop_counts() == {"other autoencoder": len(one)}
        convert(tmp_path / "m.safetensors", tmp_path / "out.ckpt", options)
        assert_same(load_ckpt(tmp_path / "out.ckpt"), expected)


def test_a_prefix_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    save_file(prefixed(weights_of()), tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="first_stage_model"):
        convert(tmp_path / "m.safetensors", tmp_path / "o", ConvertOptions(source_prefix="vae."))


def test_the_same_autoencoder_twice_is_noted(tmp_path: Path) -> None:
    weights = weights_of()
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(prefixed(weights, "vae.") | prefixed(copies), tmp_path / "m.safetensors")
    result = convert(tmp_path / "m.safetensors", tmp_path / "out")
    assert any("the same autoencoder 2 times" in note for note in map(str, result.plan.notes))
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))


@pytest.mark.parametrize("changed", ["decoder.conv_out.bias", "post_quant_conv.bias"])
def test_autoencoders_that_differ_in_one_tensor_are_different(tmp_path: Path, changed: str) -> None:
    weights = weights_of()
    other = {n: t + 1 if n == changed else t.clone() for n, t in weights.items()}
    save_file(prefixed(weights, "vae.") | prefixed(other), tmp_path / "m.safetensors")
    with pytest.raises(AmbiguousInputError):
        convert(tmp_path / "m.safetensors", tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_unknown_key_inside_is_listed_and_refused(tmp_path: Path, prefix: str) -> None:
    state = prefixed(weights_of(), prefix) | {f"{prefix}decoder.extra.weight": torch.ones(2)}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(UnmappedKeysError, match=f"1 unexpected: {prefix}decoder.extra.weight"):
        convert(tmp_path / "m.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    options = ConvertOptions(drop=("*.extra.*",))
    result = convert(tmp_path / "m.safetensors", tmp_path / "out", options)
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights_of()))
    assert result.plan.drop_counts() == {"requested": 1}


def test_an_unknown_key_outside_is_warned_of(tmp_path: Path) -> None:
    save_file(prefixed(weights_of()) | {"odd.one": torch.ones(2)}, tmp_path / "m.safetensors")
    result = convert(tmp_path / "m.safetensors", tmp_path / "out")
    (warning,) = warnings_of(result)
    assert "odd.one" in warning
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights_of()))


# --- containers ---


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("inner", ["model.ckpt", "model.safetensors"])
def test_a_zip_with_its_config_is_read(tmp_path: Path, inner: str, compression: int) -> None:
    weights = weights_of()
    if inner.endswith(".ckpt"):
        save_ckpt(tmp_path / inner, weights)
    else:
        save_file(weights, tmp_path / inner)
    config = {
        "model": {
            "params": {
                "scale_factor": 0.625,
                "embed_dim": 4,
                "ddconfig": {
                    "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 4,
                    "attn_resolutions": [], "resolution": 192, "in_channels": 3, "out_ch": 3,
                },
            }
        }
    }  # fmt: skip
    for name, blocks, problem in (("good.zip", 1, None), ("bad.zip", 2, ConfigMismatchError)):
        config["model"]["params"]["ddconfig"]["num_res_blocks"] = blocks  # type: ignore[index]
        with zipfile.ZipFile(tmp_path / name, "w", compression) as bundle:
            bundle.write(tmp_path / inner, inner)
            bundle.writestr("config.yaml", json.dumps(config))
        if problem:
            with pytest.raises(problem, match="layers_per_block"):
                convert(tmp_path / name, tmp_path / "bad")
            continue
        result = convert(tmp_path / name, tmp_path / "out")
        assert not result.plan.notes
        assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
        assert config_of(tmp_path / "out")["scaling_factor"] == 0.625
        assert config_of(tmp_path / "out")["sample_size"] == 192


def test_the_autoencoder_of_a_pipeline_is_found(tmp_path: Path) -> None:
    weights = weights_of()
    save_folder(tmp_path / "pipe" / "vae", in_diffusers(weights))
    save_folder(tmp_path / "pipe" / "unet", {"x": torch.ones(2)})
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    convert(tmp_path / "pipe", tmp_path / "m.ckpt")
    assert_same(load_ckpt(tmp_path / "m.ckpt"), weights)


def test_variants_are_told_apart(tmp_path: Path) -> None:
    full, half = weights_of(), weights_of(dtype=torch.float16, seed=22)
    fp16 = "diffusion_pytorch_model.fp16.safetensors"
    folder = save_folder(tmp_path / "in", in_diffusers(half), fp16)
    convert(folder, tmp_path / "only.ckpt")
    assert_same(load_ckpt(tmp_path / "only.ckpt"), half)
    save_folder(folder, in_diffusers(full))
    convert(folder, tmp_path / "plain.ckpt")
    assert_same(load_ckpt(tmp_path / "plain.ckpt"), full)
    convert(folder, tmp_path / "fp16.ckpt", ConvertOptions(variant="fp16"))
    assert_same(load_ckpt(tmp_path / "fp16.ckpt"), half)
    with pytest.raises(NotACheckpointError, match="no variant ema"):
        convert(folder, tmp_path / "ema.ckpt", ConvertOptions(variant="ema"))


def test_variants_lie_side_by_side_in_a_folder(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of())
    convert(tmp_path / "m.ckpt", tmp_path / "out")
    options = ConvertOptions(variant="fp16", dtype="fp16", overwrite=True)
    convert(tmp_path / "m.ckpt", tmp_path / "out", options)
    expected = in_diffusers(weights_of())
    assert_same(load_folder(tmp_path / "out"), expected)
    assert_same(
        load_folder(tmp_path / "out", "diffusion_pytorch_model.fp16.safetensors"),
        {name: t.half() for name, t in expected.items()},
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folders_are_read(tmp_path: Path, suffix: str) -> None:
    weights = weights_of()
    state = in_diffusers(weights)
    folder = tmp_path / "in"
    folder.mkdir()
    shards: dict[str, dict[str, Tensor]] = {}
    for index, (name, tensor) in enumerate(state.items()):
        shard = f"diffusion_pytorch_model-0000{index % 3 + 1}-of-00003.{suffix}"
        shards.setdefault(shard, {})[name] = tensor
    for shard, part in shards.items():
        if suffix == "bin":
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index_file = folder / f"diffusion_pytorch_model.{suffix}.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    convert(folder, tmp_path / "m.ckpt")
    assert_same(load_ckpt(tmp_path / "m.ckpt"), weights)
    (folder / min(shards)).unlink()
    with pytest.raises(InputError, match=min(shards)):
        convert(folder, tmp_path / "n.ckpt")


def test_a_folder_of_pickles_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(in_diffusers(weights_of()), tmp_path / "in" / "diffusion_pytorch_model.bin")
    convert(tmp_path / "in", tmp_path / "m.ckpt")
    assert_same(load_ckpt(tmp_path / "m.ckpt"), weights_of())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_from_before_torch_1_6_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = weights_of(dtype=dtype)
    path = tmp_path / "old.pt"
    torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=False)
    convert(path, tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))


# --- dtypes ---

OPTIONS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@pytest.mark.parametrize("target", ["out", "m.safetensors", "m.ckpt"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_casts_are_torchs(tmp_path: Path, dtype: torch.dtype, option: str, target: str) -> None:
    wide = weights_of(dtype=torch.float64)
    scale = random_tensor("scale", (), seed=1).double()
    weights = {n: (t + scale * 1e-9 * t).to(dtype) for n, t in wide.items()}
    # Subnormals and ties of fp16 and bf16; all are exact in float32.
    steps = torch.arange(-16, 16, dtype=torch.float64)
    weights["decoder.norm_out.weight"] = (steps / 2 * 2.0**-24).to(dtype)
    weights["decoder.norm_out.bias"] = (1 + (steps * 2 + 1) * 2.0**-12).to(dtype)
    weights["encoder.norm_out.weight"] = (1 + (steps * 2 + 1) * 2.0**-9).to(dtype)
    save_ckpt(tmp_path / "in.ckpt", weights)
    convert(tmp_path / "in.ckpt", tmp_path / target, ConvertOptions(dtype=option))
    expected = {name: t.to(OPTIONS[option]) for name, t in weights.items()}
    if target == "out":
        assert_same(load_folder(tmp_path / target), in_diffusers(expected))
    else:
        found = load_ckpt(tmp_path / target) if target == "m.ckpt" else load_file(tmp_path / target)
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("value", "dtype", "option"),
    [
        (65520.0, torch.float32, "fp16"),
        (-1e6, torch.float32, "fp16"),
        (1e6, torch.bfloat16, "fp16"),
        (1e300, torch.float64, "fp32"),
        (-1e300, torch.float64, "bf16"),
        (3.4e38, torch.float32, "bf16"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, value: float, dtype: torch.dtype, option: str
) -> None:
    save_ckpt(tmp_path / "m.ckpt", with_value(value, dtype))
    for options in (
        ConvertOptions(dtype=option),
        ConvertOptions(dtype=option, copy=CopyOptions(check=False)),
        ConvertOptions(dtype=option, copy=CopyOptions(allow_nonfinite=True)),
    ):
        with pytest.raises(DTypeOverflowError) as caught:
            convert(tmp_path / "m.ckpt", tmp_path / "out", options)
        assert caught.value.name == "decoder.mid.block_1.conv2.weight"
        assert caught.value.dtype == option
        assert caught.value.value == pytest.approx(abs(value), rel=0.01)
        assert not (tmp_path / "out").exists()


def test_the_largest_value_that_fits_is_kept(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", with_value(65519.0))
    convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors", ConvertOptions(dtype="fp16"))
    found = load_file(tmp_path / "m.safetensors")["decoder.mid.block_1.conv2.weight"]
    assert found.view(-1)[1234] == 65504


@pytest.mark.parametrize("dtype", list(OPTIONS.values()), ids=str)
@pytest.mark.parametrize("option", ["keep", "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_unless_allowed(
    tmp_path: Path, value: float, option: str, dtype: torch.dtype
) -> None:
    weights = with_value(value, dtype)
    save_ckpt(tmp_path / "m.ckpt", weights)
    with pytest.raises(NonFiniteError, match=r"decoder\.mid\.block_1\.conv2\.weight"):
        convert(tmp_path / "m.ckpt", tmp_path / "o.ckpt", ConvertOptions(dtype=option))
    assert not (tmp_path / "o.ckpt").exists()
    allowed = ConvertOptions(dtype=option, copy=CopyOptions(allow_nonfinite=True))
    convert(tmp_path / "m.ckpt", tmp_path / "o.ckpt", allowed)
    found, target = load_ckpt(tmp_path / "o.ckpt"), OPTIONS.get(option, dtype)
    expected = {n: t.to(target) for n, t in weights.items()}
    if target is not dtype:  # which NaN a cast gives depends on the processor, in torch
        assert all(torch.equal(found[n].isnan(), t.isnan()) for n, t in expected.items())
        found, expected = ({n: t.nan_to_num(7) for n, t in s.items()} for s in (found, expected))
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("option", ["keep", "fp16"])
def test_weights_that_are_not_floating_point_are_refused(
    tmp_path: Path, dtype: torch.dtype, option: str
) -> None:
    weights = weights_of()
    weights["decoder.conv_out.bias"] = torch.ones(3, dtype=dtype)
    save_ckpt(tmp_path / "m.ckpt", weights)
    with pytest.raises(UnsupportedModelError, match=r"decoder\.conv_out\.bias") as caught:
        convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(dtype=option))
    assert str(dtype).removeprefix("torch.") in str(caught.value)


def test_mixed_dtypes_are_kept(tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.float32, torch.bfloat16, torch.float64)
    weights = {n: t.to(dtypes[i % 4]) for i, (n, t) in enumerate(weights_of().items())}
    save_file(weights, tmp_path / "m.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "m.safetensors", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
    for name in ("back.safetensors", "back.ckpt"):
        convert(tmp_path / "out", tmp_path / name)
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert_same(load_ckpt(tmp_path / "back.ckpt"), weights)


# --- moving averages ---


def test_an_average_of_everything_is_taken(tmp_path: Path) -> None:
    weights = weights_of()
    ema = make_ema(weights, average)
    save_ckpt(tmp_path / "m.ckpt", weights | ema)
    result = convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    expected = {name: ema[ema_name(name)] for name in weights}
    assert_same(load_folder(tmp_path / "out"), in_diffusers(expected))
    assert result.plan.ema_counts == (len(weights), 0)
    assert not warnings_of(result)


def test_raw_weights_are_taken_unless_the_average_is_asked_for(tmp_path: Path) -> None:
    weights = weights_of()
    save_ckpt(tmp_path / "m.ckpt", weights | make_ema(weights, average))
    result = convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights))
    assert any("--ema" in note for note in map(str, result.plan.notes))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_average_of_the_decoder_leaves_the_rest_raw(tmp_path: Path, prefix: str) -> None:
    weights = weights_of(SD_TREE)
    ema = make_ema(weights, average, trained=("decoder.",))
    save_ckpt(tmp_path / "m.ckpt", prefixed(weights | ema, prefix))
    result = convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    expected = {name: ema.get(ema_name(name), raw) for name, raw in weights.items()}
    assert_same(load_folder(tmp_path / "out"), in_diffusers(expected, SD_TREE))
    assert result.plan.ema_counts == (138, 110)
    assert note("EMA weights for 138 tensors, raw weights for 110") in result.plan.notes
    manifest = json.loads((tmp_path / "out" / "vaeconv.json").read_bytes())
    assert manifest["ema"] == {"ema": 138, "raw": 110}


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({}, "no EMA weights in it"),
        ({"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(0)},
         "remnant of 2 keys"),
        ({"model_ema.diffusion_modelout2weight": torch.ones(2)}, "diffusion model's"),
    ],
    ids=["none", "remnant", "unet"],
)  # fmt: skip
def test_an_average_that_is_not_there_is_refused(
    tmp_path: Path, beside: dict[str, Tensor], words: str
) -> None:
    save_ckpt(tmp_path / "m.ckpt", prefixed(weights_of()) | beside)
    with pytest.raises(EmaError, match=words) as caught:
        convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    assert caught.value.exit_code == 3
    result = convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), in_diffusers(weights_of()))
    assert not warnings_of(result)


@pytest.mark.parametrize(
    ("updates", "words"),
    [(0, "never updated"), (-1, "random initial weights"), (5, "only 5 times"), (50_000, None)],
)
def test_an_average_of_few_updates_is_warned_of(
    tmp_path: Path, updates: int, words: str | None
) -> None:
    weights = weights_of()
    save_ckpt(tmp_path / "m.ckpt", weights | make_ema(weights, average, num_updates=updates))
    result = convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    found = warnings_of(result)
    if words is None:
        assert not found
    else:
        assert len(found) == 1
        assert words in found[0]
        assert f"num_updates {updates}" in found[0]


def test_an_average_equal_to_the_weights_is_warned_of(tmp_path: Path) -> None:
    weights = weights_of()
    ema = make_ema(weights, lambda name, raw: raw.clone())
    save_ckpt(tmp_path / "m.ckpt", weights | ema)
    result = convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    assert any("equal to the raw ones" in note for note in warnings_of(result))
    ema["model_ema.decoderconv_outbias"] += 1
    save_ckpt(tmp_path / "n.ckpt", weights | ema)
    assert not warnings_of(convert(tmp_path / "n.ckpt", tmp_path / "n", ConvertOptions(ema=True)))


def test_an_average_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = weights_of()
    ema = make_ema(weights, average) | {"model_ema.decoderconv_outbias": torch.ones(4)}
    save_ckpt(tmp_path / "m.ckpt", weights | ema)
    with pytest.raises(UnmappedKeysError, match="decoderconv_outbias"):
        convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(ema=True))
    convert(tmp_path / "m.ckpt", tmp_path / "out")


# --- training checkpoints ---


@pytest.mark.parametrize("ema", [False, True])
def test_a_lightning_checkpoint_gives_what_plain_picks_give(tmp_path: Path, ema: bool) -> None:
    weights, loss = weights_of(), make_loss(torch.float32, seed=24)
    averages = make_ema(weights | {"loss.logvar": loss["loss.logvar"]}, average)
    adam = make_adam_state(list(weights.values()), lambda _, t: (t * 0.5, t * t), step=9)
    path = tmp_path / "last.ckpt"
    with fake_lightning() as callback:
        document = make_checkpoint(
            weights | loss | averages,
            callback=callback,
            best_score=torch.tensor(0.25),
            optimizer_states=[adam, adam],
            config=TINY,
        )
        torch.save(document, path)
    result = convert(path, tmp_path / "out", ConvertOptions(ema=ema))
    picked = {n: averages[ema_name(n)] for n in weights} if ema else weights
    assert_same(load_folder(tmp_path / "out"), in_diffusers(picked))
    assert not warnings_of(result)
    counts = result.plan.drop_counts()
    assert counts["loss"] == len(loss)
    assert "unknown" not in counts


@pytest.mark.parametrize("ema", [False, True])
def test_the_fixture_of_a_training_run_gives_what_plain_picks_give(
    tmp_path: Path, ema: bool
) -> None:
    with fake_lightning():
        state = torch.load(FIXTURES / "tiny-kl.ckpt", weights_only=False)["state_dict"]
    names = [n for n in state if n.startswith(("encoder.", "decoder.", "quant", "post_quant"))]
    picked = {n: state[ema_name(n) if ema and ema_name(n) in state else n] for n in names}
    convert(FIXTURES / "tiny-kl.ckpt", tmp_path / "out", ConvertOptions(ema=ema))
    assert_same(load_folder(tmp_path / "out"), in_diffusers(picked))


# --- scaling, from the file to the config ---


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_stored_scale_factor_is_read(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    state = prefixed(weights_of(), prefix) | {"scale_factor": torch.tensor(0.21875, dtype=dtype)}
    save_ckpt(tmp_path / "m.ckpt", state)
    result = convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert config_of(tmp_path / "out")["scaling_factor"] == 0.21875
    assert result.plan.notes == ()
    manifest = json.loads((tmp_path / "out" / "vaeconv.json").read_bytes())
    assert manifest["scaling"]["from"] == "the tensor scale_factor"


def test_playground_statistics_are_read(tmp_path: Path) -> None:
    mean, std = [0.5, -0.25, 1.0, 2.0], [1.5, 2.5, 3.5, 4.5]
    state = prefixed(weights_of(SHAPED)) | {
        "edm_mean": torch.tensor(mean).reshape(1, 4, 1, 1),
        "edm_std": torch.tensor(std).reshape(1, 4, 1, 1),
        "conditioner.embedders.0.x": torch.ones(2),
    }
    save_file(state, tmp_path / "m.safetensors")
    result = convert(tmp_path / "m.safetensors", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["scaling_factor"], config["latents_mean"], config["latents_std"]) == (
        0.5, mean, std,
    )  # fmt: skip
    assert config["sample_size"] == 1024
    assert result.plan.notes == ()


def test_a_given_config_is_used_and_checked(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of())
    convert(tmp_path / "m.ckpt", tmp_path / "one", ConvertOptions(scaling=ScalingOptions(0.5)))
    given = tmp_path / "one" / "config.json"
    convert(tmp_path / "m.ckpt", tmp_path / "two", ConvertOptions(config=given))
    assert (tmp_path / "two" / "config.json").read_bytes() == given.read_bytes()
    given.write_text(given.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(ConfigMismatchError, match="latent_channels 8, the tensors say 4"):
        convert(tmp_path / "m.ckpt", tmp_path / "three", ConvertOptions(config=given))
    with pytest.raises(ConfigMismatchError):
        convert(tmp_path / "one", tmp_path / "four")


# --- outputs ---


def test_a_dry_run_plans_everything_and_writes_nothing(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of())
    planned = convert(tmp_path / "m.ckpt", tmp_path / "out", dry_run=True)
    assert os.listdir(tmp_path) == ["m.ckpt"]
    done = convert(tmp_path / "m.ckpt", tmp_path / "out")
    assert [row.name for row in planned.plan.rows] == [row.name for row in done.plan.rows]
    assert planned.config == done.config
    assert planned.written == ()


def test_written_files_and_manifest_tell_their_hashes(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of())
    result = convert(tmp_path / "m.ckpt", tmp_path / "out", ConvertOptions(hash_source=True))
    for file in result.written:
        data = file.path.read_bytes()
        assert file.size == len(data)
        assert file.sha256 in (None, hashlib.sha256(data).hexdigest())
    manifest = json.loads((tmp_path / "out" / "vaeconv.json").read_bytes())
    assert len(manifest["source"].pop("fingerprint")) == 64
    assert manifest["source"] == {
        "name": "m.ckpt",
        "size": (tmp_path / "m.ckpt").stat().st_size,
        "sha256": hashlib.sha256((tmp_path / "m.ckpt").read_bytes()).hexdigest(),
    }
    weights = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert manifest["outputs"][WEIGHTS]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert manifest["outputs"][WEIGHTS]["size"] == len(weights)


def test_checks_that_are_off_change_no_byte(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of(SD_TREE))
    for name in ("out", "m.safetensors", "n.ckpt"):
        for folder in ("on", "off"):
            (tmp_path / folder).mkdir(exist_ok=True)
        convert(tmp_path / "m.ckpt", tmp_path / "on" / name)
        options = ConvertOptions(copy=CopyOptions(check=False))
        convert(tmp_path / "m.ckpt", tmp_path / "off" / name, options)
    for file in ("m.safetensors", "n.ckpt", f"out/{WEIGHTS}", "out/config.json"):
        assert (tmp_path / "on" / file).read_bytes() == (tmp_path / "off" / file).read_bytes()


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    save_ckpt(tmp_path / "m.ckpt", weights_of())
    for name in ("out", "o.ckpt", "o.safetensors"):
        convert(tmp_path / "m.ckpt", tmp_path / name)
        with pytest.raises(OutputExistsError):
            convert(tmp_path / "m.ckpt", tmp_path / name)
        convert(tmp_path / "m.ckpt", tmp_path / name, ConvertOptions(overwrite=True))


def test_a_refused_model_ends_the_command_with_three(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vaeconv.cli import app

    state = weights_of() | {"quantize.embedding.weight": torch.ones(16, 4)}
    save_ckpt(tmp_path / "vq.ckpt", state)
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "vq.ckpt"), str(tmp_path / "o")])
    assert result.exit_code == 3
    assert "VQ model" in result.stderr
    assert os.listdir(tmp_path) == ["vq.ckpt"]
