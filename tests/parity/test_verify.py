"""Verification: what is the same passes; what is not fails, and the cause is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fixtures import make_fixtures as make
from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.compvis import DDConfig
from tests.support.litema import make_ema
from tests.support.pairs import (
    MODEL,
    State,
    add_to,
    assert_same,
    cast,
    change_diffusers,
    change_folder,
    check,
    exchanged,
    failure_of,
    one_epsilon,
    run,
    same,
    without,
)
from tests.support.samples import (
    CONFIGS,
    TINY,
    WEIGHTS,
    average,
    config_of,
    in_diffusers,
    prefixed,
    save_ckpt,
    save_folder,
    weights_of,
    with_old_names,
)
from vaeconv import (
    ConvertOptions,
    PruneOptions,
    ScalingOptions,
    VerifyOptions,
    convert,
    prune,
    verify,
)
from vaeconv.errors import MalformedCheckpointError
from vaeconv.parity.compare_weights import Match

Config = dict[str, Any]
DTYPES = ("keep", "fp32", "fp16", "bf16")
FIXED: dict[str, DDConfig] = {
    "tiny-kl.ckpt": make.KL,
    "tiny-kl.safetensors": make.KL,
    "tiny-diffusers": make.KL,
    "tiny-attn.ckpt": make.ATTENTION,
    "tiny-legacy.pt": make.KL,
    "tiny-noquant.safetensors": make.NO_QUANT,
}
KNOWN = ScalingOptions(scaling_factor=0.18215, shift_factor=0.0)


# --- what is the same ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FIXED)
def test_a_conversion_is_the_same_there_and_back(
    tmp_path: Path, references: Callable[[DDConfig], Path], name: str, dtype: str
) -> None:
    source, refs = FIXTURES / name, references(FIXED[name])
    there, back = tmp_path / "there", tmp_path / "back.ckpt"
    if source.is_dir():
        there, back = tmp_path / "there.safetensors", tmp_path / "back"
    for here, target in ((source, there), (there, back)):
        needs_scaling = not (here.is_dir() or target.suffix)
        scaling = KNOWN if needs_scaling else ScalingOptions()
        convert(here, target, ConvertOptions(dtype=dtype, scaling=scaling))
    for pair in ((source, there), (there, source), (source, back)):
        assert_same(check(*pair, refs))


def test_the_built_in_references_agree_as_well() -> None:
    result = check(FIXTURES / "tiny-kl.safetensors", FIXTURES / "tiny-diffusers")
    assert_same(result, tensors=120)
    assert {outcome.name for outcome in same(result).outcomes} == {
        "noise", "noise, large", "smooth", "saturated", "not square",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "dtype"),
    [*(("out", dtype) for dtype in DTYPES), ("e.safetensors", "fp32"), ("e.ckpt", "bf16")],
)
def test_the_average_that_convert_writes_is_the_average(
    tmp_path: Path, references: Callable[[DDConfig], Path], target: str, dtype: str
) -> None:
    source, refs = FIXTURES / "tiny-kl.ckpt", references(make.KL)
    scaling = ScalingOptions() if Path(target).suffix else KNOWN  # a file has no config
    convert(source, tmp_path / target, ConvertOptions(dtype=dtype, ema=True, scaling=scaling))
    result = check(source, tmp_path / target, refs, ema=True)
    assert_same(result)
    assert [model.ema for model in result.models] == [66, 0]
    assert_same(check(tmp_path / target, source, refs, ema=True))


@pytest.mark.parametrize(
    ("ema", "dtype"), [(False, "fp16"), (True, "keep"), (True, "fp16"), (True, "bf16")]
)
def test_what_prune_writes_is_the_same(
    tmp_path: Path, references: Callable[[DDConfig], Path], ema: bool, dtype: str
) -> None:
    weights = weights_of()
    state = {
        **prefixed(weights | make_ema(weights, average)),
        "model.diffusion_model.out.2.bias": torch.ones(4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(3),
    }
    source = save_ckpt(tmp_path / "full.ckpt", state)
    prune(source, tmp_path / "pruned.safetensors", PruneOptions(ema=ema, dtype=dtype))
    pruned = check(source, tmp_path / "pruned.safetensors", references(TINY), ema=ema)
    assert_same(pruned, tensors=len(weights))
    assert pruned.models[0].ema == (len(weights) if ema else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_the_same_in_both_layouts(
    tmp_path: Path, references: Callable[[DDConfig], Path], name: str, dtype: torch.dtype
) -> None:
    config = CONFIGS[name]
    weights = weights_of(config)
    source = save_ckpt(tmp_path / "a.ckpt", weights)
    convert(source, tmp_path / "out", ConvertOptions(scaling=KNOWN))
    told = in_diffusers(weights, config)  # renamed by outsiders and cast by torch
    save_folder(tmp_path / "out", cast(told, dtype))
    for pair in ((source, tmp_path / "out"), (tmp_path / "out", source)):
        assert_same(check(*pair, references(config)), tensors=len(weights))


def test_full_checkpoints_are_compared_by_their_autoencoder(
    tmp_path: Path, out: Path, refs: Path
) -> None:
    state = prefixed(weights_of(MODEL)) | {"model.diffusion_model.out.2.bias": torch.ones(4)}
    assert_same(check(save_ckpt(tmp_path / "full.ckpt", state), out, refs))


def as_shards(target: Path, out: Path) -> None:
    prune(out, target, PruneOptions(dtype="keep", max_shard_size=300_000))
    assert len(list(target.glob("*-of-*"))) > 2


def as_pickle(target: Path, out: Path) -> None:
    target.mkdir()
    shutil.copy(out / "config.json", target)
    torch.save(load_file(out / WEIGHTS), target / WEIGHTS.replace("safetensors", "bin"))


def as_pipeline(target: Path, out: Path) -> None:
    shutil.copytree(out, target / "vae")
    (target / "model_index.json").write_text("{}")
    (target / "unet").mkdir()


def as_variant(target: Path, out: Path) -> None:
    target.mkdir()
    shutil.copy(out / "config.json", target)
    weights = {name: tensor.half() for name, tensor in load_file(out / WEIGHTS).items()}
    save_folder(target, weights, WEIGHTS.replace(".safe", ".fp16.safe"))


def as_old_names(target: Path, out: Path) -> None:
    change_folder(out, target, weights=with_old_names)


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "shards": as_shards,
    "pickle": as_pickle,
    "pipeline": as_pipeline,
    "variant": as_variant,
    "old names": as_old_names,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_folder_is_the_same(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path, form: str
) -> None:
    FORMS[form](tmp_path / "form", out)
    for pair in ((ckpt, tmp_path / "form"), (tmp_path / "form", out)):
        result = check(*pair, refs)
        assert_same(result, tensors=206)
        assert all(model.loader for model in result.models)


def test_a_variant_is_read_where_it_is_asked_for(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path
) -> None:
    target = change_folder(
        out, tmp_path / "both", weights=partial(add_to, name="decoder.conv_in.bias")
    )
    save_folder(
        target, cast(load_file(out / WEIGHTS), torch.float16), f"{WEIGHTS[:-11]}fp16.safetensors"
    )
    assert_same(check(ckpt, target, refs, variant="fp16"))
    assert "conv_in.bias" in failure_of(check(ckpt, target, refs))


def test_each_side_runs_in_its_own_layout(ckpt: Path, out: Path, refs: Path) -> None:
    result = check(ckpt, out, refs)
    assert [model.loader for model in result.models] == [
        "CompVis modules, strict", "AutoencoderKL.from_pretrained",
    ]  # fmt: skip
    assert any(outcome.distance.max_abs for outcome in same(result).outcomes)
    result = check(out, out / WEIGHTS, refs)
    assert [model.layout.value for model in result.models] == ["diffusers", "diffusers"]
    assert result.ok


def test_two_files_of_one_layout_run_too(tmp_path: Path, ckpt: Path, refs: Path) -> None:
    save_file(weights_of(MODEL), tmp_path / "b.safetensors")
    result = check(ckpt, tmp_path / "b.safetensors", refs)
    assert_same(result)
    assert {outcome.distance.max_abs for outcome in same(result).outcomes} == {0.0}


# --- what is not: weights ---


def test_one_weight_beyond_rounding(tmp_path: Path, ckpt: Path, out: Path, refs: Path) -> None:
    name = "decoder.up_blocks.2.resnets.1.conv1.weight"
    weights = cast(load_file(out / WEIGHTS), torch.float16)
    target = change_folder(out, tmp_path / "same", weights=lambda _: weights)
    assert_same(check(ckpt, target, refs))
    changed = weights[name].clone()
    changed.view(torch.int16).view(-1)[4321] += 1
    target = change_folder(out, tmp_path / "out", weights=lambda _: {**weights, name: changed})
    result = check(ckpt, target, refs)
    said = failure_of(result)
    assert "1 of 206 tensors differ" in said
    assert f"decoder.up.1.block.1.conv1.weight / {name} differs by" in said
    assert "at [15, 0, 0, 1]" in said  # 4321 = ((15 * 32 + 0) * 3 + 0) * 3 + 1
    (found,) = same(result).weights.different
    assert same(result).weights.number(Match.ROUNDED) == 205
    assert found.differing == 1


UP = "decoder.up_blocks"
MID = "decoder.mid_block.attentions.0"


@pytest.mark.parametrize(
    ("one", "other", "tensors"),
    [
        (f"{UP}.2.", f"{UP}.3.", 32),
        (f"{UP}.0.", f"{UP}.2.", 36),
        (f"{MID}.to_q.", f"{MID}.to_k.", 4),
        ("encoder.down_blocks.0.", "encoder.down_blocks.1.", 20),
        ("encoder.mid_block.resnets.0.", "encoder.mid_block.resnets.1.", 16),
    ],
    ids=["neighbours", "up blocks", "q and k", "down blocks", "resnets"],
)
@pytest.mark.parametrize("is_first", [False, True], ids=["", "A"])
def test_exchanged_modules_are_named(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path, one: str, other: str, tensors: int,
    is_first: bool,
) -> None:  # fmt: skip
    target = change_folder(
        out, tmp_path / "out", weights=lambda found: exchanged(found, one, other)
    )
    result = check(target, ckpt, refs) if is_first else check(ckpt, target, refs)
    said = failure_of(result)
    assert f"({tensors} tensors)" in said
    assert "are exchanged" in said
    if not is_first:  # names are those of the side that is blamed
        assert {one.rstrip("."), other.rstrip(".")} <= set(said.split())
    assert len(same(result).weights.different) <= tensors
    assert any(outcome.problem for outcome in same(result).outcomes)


def test_a_cycle_of_modules_is_named(tmp_path: Path, ckpt: Path, out: Path, refs: Path) -> None:
    """Three go round: none of them are exchanged, each holds what belongs elsewhere."""

    def rotate(found: State) -> State:
        result = dict(found)
        for here, there in (("to_q", "to_k"), ("to_k", "to_v"), ("to_v", "to_q")):
            for end in ("weight", "bias"):
                result[f"{MID}.{here}.{end}"] = found[f"{MID}.{there}.{end}"]
        return result

    target = change_folder(out, tmp_path / "out", weights=rotate)
    problems = check(ckpt, target, refs).problems
    for here, there in (("to_q", "to_k"), ("to_k", "to_v"), ("to_v", "to_q")):
        assert f"{MID}.{here} of B holds what belongs in {MID}.{there} (2 tensors)" in problems


def attend_nowhere(config: Config) -> Config:
    down, up = (["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4)
    return {**config, "down_block_types": down, "up_block_types": up}


def attend_where(*blocks: int) -> Callable[[Config], Config]:
    """The config with attention in other blocks."""

    def change(config: Config) -> Config:
        config = attend_nowhere(config)
        for block in blocks:
            config["down_block_types"][block] = "AttnDownEncoderBlock2D"
            config["up_block_types"][3 - block] = "AttnUpDecoderBlock2D"
        return config

    return change


def no_level_attention(found: State) -> State:
    return without(found, "down_blocks.2.attentions", "up_blocks.1.attentions")


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (dict, attend_nowhere, ["B: the config says encoder_attention"]),
        (dict, attend_where(1), ["B: the config says encoder_attention"]),
        (no_level_attention, attend_nowhere,
         ["encoder attention differs: [no, no, yes, no] in A, [no, no, no, no] in B",
          "missing in B, or of another shape there: 30 tensors of A"]),
    ],
    ids=["config", "elsewhere", "both"],
)  # fmt: skip
def test_missing_attention_of_a_level(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path,
    weights: Callable[[State], State], config: Callable[[Config], Config], words: list[str],
) -> None:  # fmt: skip
    target = change_folder(out, tmp_path / "out", weights=weights, config=config)
    for pair in ((ckpt, target), (out, target)):
        result = check(*pair, refs)
        assert words[0] in failure_of(result)
        assert all(word in " ".join(result.problems) for word in words)


def no_quant(found: State) -> State:
    return {name: t for name, t in found.items() if not name.startswith("quant_conv.")}


def say_no_quant(config: Config) -> Config:
    return {**config, "use_quant_conv": False}


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (no_quant, dict, "B: the config says quant_conv True, the tensors say False"),
        (dict, say_no_quant, "B: the config says quant_conv False, the tensors say True"),
        (no_quant, say_no_quant, "quant conv differs: yes in A, no in B"),
    ],
    ids=["weights", "config", "both"],
)
def test_a_dropped_quant_conv(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path,
    weights: Callable[[State], State], config: Callable[[Config], Config], words: str,
) -> None:  # fmt: skip
    target = change_folder(out, tmp_path / "out", weights=weights, config=config)
    result = check(ckpt, target, refs)
    assert words in failure_of(result)
    encoded = [one for one in same(result).outcomes if one.kind == "encode"]
    assert all(outcome.problem for outcome in encoded)
    assert bool(encoded) == (weights is no_quant and config is say_no_quant)


@pytest.mark.parametrize("is_first", [False, True], ids=["B", "A"])
def test_a_dropped_bias(tmp_path: Path, ckpt: Path, out: Path, refs: Path, is_first: bool) -> None:
    target = change_folder(
        out,
        tmp_path / "out",
        weights=lambda found: {n: t for n, t in found.items() if n != "quant_conv.bias"},
    )
    pair, label = ((target, ckpt), "A") if is_first else ((ckpt, target), "B")
    said = failure_of(check(*pair, refs))
    assert f"{label} is not a complete autoencoder" in said
    assert "quant_conv.bias" in said
    assert run("verify", *pair, "--latents", refs).exit_code == 4


def test_an_architecture_of_other_width_is_not_run(tmp_path: Path, out: Path, refs: Path) -> None:
    other = save_ckpt(tmp_path / "a.ckpt", weights_of(DDConfig(ch=64, ch_mult=(1, 1, 1, 1))))
    result = check(out, other, refs)
    assert "channels differ: [32, 32, 32, 32] in A, [64, 64, 64, 64] in B" in failure_of(result)
    noquant = check(FIXTURES / "tiny-kl.ckpt", FIXTURES / "tiny-noquant.safetensors")
    assert "note: A and B were not run, so only weights were compared" in [
        str(note) for note in noquant.notes
    ]
    assert same(noquant).outcomes == ()
    assert "latent channels differ: 4 in A, 16 in B" in " ".join(noquant.problems)


# --- what is not: averages ---


@pytest.mark.parametrize("averaged_first", [True, False])
@pytest.mark.parametrize("dtype", ["keep", "bf16"])
@pytest.mark.parametrize("target", ["out", "b.safetensors"])
def test_averages_and_raw_weights_are_told_apart(
    tmp_path: Path, references: Callable[[DDConfig], Path], averaged_first: bool, dtype: str,
    target: str,
) -> None:  # fmt: skip
    source, refs = FIXTURES / "tiny-kl.ckpt", references(make.KL)
    holder = "B" if averaged_first else "A"
    other = "A" if averaged_first else "B"
    for ema, said in (
        (False, f"66 of 66 tensors that differ have the raw weights of {other} in {holder}"),
        (True, f"66 of 66 tensors that differ have the EMA weights of {other} in {holder}"),
    ):
        made = tmp_path / f"{ema}-{target}"
        scaling = ScalingOptions() if made.suffix else KNOWN  # a file has no config
        convert(source, made, ConvertOptions(dtype=dtype, ema=ema, scaling=scaling))
        pair = (source, made) if averaged_first else (made, source)
        assert_same(check(*pair, refs, ema=ema))
        result = check(*pair, refs, ema=not ema)
        assert said in failure_of(result)
        assert ("--no-ema" if not ema else "--ema compares") in result.problems[0]


def test_an_average_that_is_nowhere_is_bad_input(refs: Path) -> None:
    args = (FIXTURES / "tiny-kl.safetensors", FIXTURES / "tiny-diffusers", "--latents", refs)
    result = run("verify", "--ema", *args)
    assert result.exit_code == 3
    assert "EMA" in result.stderr


# --- what is not: the config ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling_factor": 0.13025}, "scaling factor differs: 0.18215 in A (config.json), 0.13"),
        ({"scaling_factor": 0.18216}, "scaling factor differs: 0.18215 in A (config.json), 0.1"),
        ({"shift_factor": 0.1}, "shift factor differs: 0.0 in A (config.json), 0.1 in B"),
        ({"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0] * 4}, "latents mean differs"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("only_weights", [False, True])
def test_scaling_that_differs(
    tmp_path: Path, out: Path, refs: Path, changes: Config, words: str, only_weights: bool
) -> None:
    target = change_folder(out, tmp_path / "out", config=lambda found: {**found, **changes})
    result = check(out, target, refs, weights_only=only_weights)
    assert words in failure_of(result)
    assert same(result).weights.is_same
    assert not any(outcome.problem for outcome in same(result).outcomes)


def test_models_that_agree_and_options_that_do_not(tmp_path: Path, out: Path) -> None:
    copy = change_folder(out, tmp_path / "copy")
    options = VerifyOptions(weights_only=True, scaling=ScalingOptions(scaling_factor=0.5))
    result = verify(out, copy, options)
    assert same(result).judgement == (
        "A and B are the same autoencoder, but not with the scaling of the options"
    )
    assert result.problems == [
        "scaling factor differs: 0.18215 in A and B (config.json), "
        "0.5 in the options (--scaling-factor)"
    ]
    other = change_folder(copy, tmp_path / "other", config=lambda old: {**old, "act_fn": "relu"})
    result = verify(out, other, options)
    assert same(result).judgement == "A and B are not the same autoencoder"
    assert len(result.problems) == 2


def test_statistics_per_channel_that_differ(tmp_path: Path, out: Path, refs: Path) -> None:
    first = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0] * 4}
    last = {**first, "latents_std": [1.0, 1.0, 1.0, 2.0]}
    pair = [
        change_folder(out, tmp_path / name, config=lambda found, new=new: {**found, **new})
        for name, new in (("one", first), ("two", last))
    ]
    assert check(*pair, refs).problems == [
        "latents std differs: (1.0, 1.0, 1.0, 1.0) in A (config.json), "
        "(1.0, 1.0, 1.0, 2.0) in B (config.json)"
    ]


def test_no_shift_is_a_shift_of_zero(tmp_path: Path, out: Path, refs: Path) -> None:
    target = change_folder(
        out, tmp_path / "out", config=lambda found: {**found, "shift_factor": 0.0}
    )
    assert config_of(out).get("shift_factor") is None
    assert_same(check(out, target, refs))


def test_scaling_that_one_side_is_silent_of_is_what_convert_writes(
    ckpt: Path, out: Path, refs: Path
) -> None:
    result = check(ckpt, out, refs)
    assert result.ok and result.notes == ()
    assert "scaling" in result.unproven[0]  # of shapes that no family has
    assert not check(out, out, refs).notes


@pytest.mark.parametrize(
    ("changes", "words", "layer"),
    [
        ({"norm_num_groups": 16}, "normalisation groups differ: 32 in A, 16 in B", "norm1"),
        ({"act_fn": "gelu"}, "activation differs: silu in A, gelu in B", "conv1"),
    ],
)
def test_a_config_that_computes_otherwise(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path, changes: Config, words: str, layer: str
) -> None:
    target = change_folder(out, tmp_path / "out", config=lambda found: {**found, **changes})
    result = check(ckpt, target, refs)
    assert words in failure_of(result)
    decoded, encoded = result.problems[1], result.problems[-1]
    assert f"first layer that differs is decoder.mid.block_1.{layer} / " in decoded
    assert f"first layer that differs is encoder.down.0.block.0.{layer} / " in encoded


def test_swish_is_silu(tmp_path: Path, ckpt: Path, out: Path, refs: Path) -> None:
    target = change_folder(out, tmp_path / "out", config=lambda found: {**found, "act_fn": "swish"})
    assert_same(check(ckpt, target, refs))


# --- what is not: the code ---


def set_epsilon(model: nn.Module, value: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = value


def pad_all_round(model: Any) -> None:
    sampler = model.encoder.down_blocks[1].downsamplers[0]
    sampler.padding, sampler.conv.padding = 1, (1, 1)


def pad_by_mirrors(model: Any) -> None:
    conv = model.decoder.up_blocks[2].resnets[1].conv2
    conv.padding_mode = "reflect"
    conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def change_attention(model: Any) -> None:
    model.decoder.mid_block.attentions[0].heads = 2


def blur_more(model: Any) -> None:
    model.decoder.up_blocks[0].upsamplers[0].conv.stride = (1, 1)
    model.decoder.up_blocks[0].upsamplers[0].conv.dilation = (2, 2)
    model.decoder.up_blocks[0].upsamplers[0].conv.padding = (2, 2)


@pytest.mark.parametrize(
    ("change", "kinds", "ours", "theirs"),
    [
        (pad_all_round, {"encode"}, "encoder.down.1.downsample.conv",
         "encoder.down_blocks.1.downsamplers.0.conv"),
        (pad_by_mirrors, {"decode"}, "decoder.up.1.block.1.conv2",
         "decoder.up_blocks.2.resnets.1.conv2"),
        (blur_more, {"decode"}, "decoder.up.3.upsample.conv",
         "decoder.up_blocks.0.upsamplers.0.conv"),
        (one_epsilon, {"decode"}, "decoder.up.2.block.0.norm2",
         "decoder.up_blocks.1.resnets.0.norm2"),
        (change_attention, {"decode"}, "decoder.mid.attn_1.proj_out",
         "decoder.mid_block.attentions.0.to_out.0"),
    ],
    ids=["padding", "mirrors", "dilation", "eps", "heads"],
)  # fmt: skip
def test_the_first_layer_that_computes_otherwise_is_named(
    monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path, refs: Path,
    change: Callable[[Any], None], kinds: set[str], ours: str, theirs: str,
) -> None:  # fmt: skip
    change_diffusers(monkeypatch, change)
    for pair, names in (((ckpt, out), (ours, theirs)), ((out, ckpt), (theirs, ours))):
        result = check(*pair, refs)
        comparison = same(result)
        assert comparison.weights.is_same
        assert {one.kind for one in comparison.outcomes if one.problem} == kinds
        assert "the weights agree but the results do not" in failure_of(result)
        for problem in comparison.problems[1:]:
            assert f"; the first layer that differs is {' / '.join(names)}, by " in problem


def test_the_epsilon_that_others_use_is_found_by_the_built_in_set(
    monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path
) -> None:
    change_diffusers(monkeypatch, partial(set_epsilon, value=1e-5))
    result = check(ckpt, out)
    failed = [outcome.kind for outcome in same(result).outcomes if outcome.problem]
    assert {"decode", "encode"} == set(failed)
    assert "norm" in result.problems[1].partition("first layer that differs is ")[2]


def test_diffusers_that_makes_weights_up_is_found_out(
    monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path, refs: Path
) -> None:
    from diffusers import AutoencoderKL

    load = AutoencoderKL.from_pretrained

    def load_less(*args: Any, **options: Any) -> Any:
        model, info = load(*args, **options)
        return model, {**info, "missing_keys": ["decoder.conv_out.bias"]}

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", staticmethod(load_less))
    result = check(ckpt, out, refs)
    assert "missing keys in it, such as decoder.conv_out.bias" in failure_of(result)
    assert same(result).outcomes == ()


def test_a_folder_that_diffusers_cannot_load_is_refused(
    tmp_path: Path, ckpt: Path, out: Path, refs: Path
) -> None:
    target = change_folder(
        out, tmp_path / "out", config=lambda found: {**found, "act_fn": "nothing"}
    )
    with pytest.raises(MalformedCheckpointError, match="'nothing' is no activation function"):
        check(ckpt, target, refs)


# --- what is not finite ---

HIDDEN = "decoder.mid.block_1.conv1.bias"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_layer_that_is_not_finite_is_named(
    tmp_path: Path, refs: Path, value: float
) -> None:
    source = save_ckpt(tmp_path / "a.ckpt", add_to(weights_of(MODEL), HIDDEN, value=value))
    other = save_folder(
        tmp_path / "b", in_diffusers(add_to(weights_of(MODEL), HIDDEN, value=value), MODEL)
    )
    result = check(source, other, refs)
    assert same(result).weights.is_same
    decoded = [one for one in same(result).outcomes if one.kind == "decode"]
    assert [outcome.problem for outcome in decoded] == [
        f"decode fp32 of {name} is not finite, first in decoder.mid.block_1.conv1 of A, "
        "first in decoder.mid_block.resnets.0.conv1 of B"
        for name in ("0", "1")
    ]
    assert all(one.distance.max_abs is None for one in decoded)
    assert not any(one.problem for one in same(result).outcomes if one.kind == "encode")
    failure_of(result)


def test_only_the_side_that_is_not_finite_is_named(tmp_path: Path, ckpt: Path, refs: Path) -> None:
    broken = save_ckpt(tmp_path / "b.ckpt", add_to(weights_of(MODEL), HIDDEN, value=float("nan")))
    result = check(ckpt, broken, refs)
    said = [one.problem for one in same(result).outcomes if one.kind == "decode"]
    assert said[0] == "decode fp32 of 0 is not finite, first in decoder.mid.block_1.conv1 of B"
    assert f"{HIDDEN} differs by NaN or infinity at [0]" in failure_of(result)


def test_a_model_that_overflows_fp16_fails_in_fp16_only(tmp_path: Path, refs: Path) -> None:
    name = "decoder.up.2.block.1.conv1.weight"
    weights = weights_of(MODEL)
    weights[name] = weights[name] * 60000
    pair = (
        save_ckpt(tmp_path / "a.ckpt", weights),
        save_folder(tmp_path / "b", in_diffusers(weights, MODEL)),
    )
    assert_same(check(*pair, refs))
    assert_same(check(*pair, refs, dtype="bf16"))
    result = check(*pair, refs, dtype="fp16")
    bad = [one for one in same(result).outcomes if one.problem]
    assert {(one.kind, one.dtype) for one in bad} == {("decode", "fp16")}
    assert "first in decoder.up.2.block.1.conv1 of A" in str(bad[0].problem)
    assert "first in decoder.up_blocks.1.resnets.1.conv1 of B" in str(bad[0].problem)


def test_an_overflow_is_not_said_to_be_the_config(tmp_path: Path, refs: Path) -> None:
    name = "decoder.up.2.block.1.conv1.weight"
    weights = weights_of(MODEL)
    weights[name] = weights[name] * 60000
    source = save_ckpt(tmp_path / "a.ckpt", weights)
    said = failure_of(check(source, source, refs, dtype="fp16"))
    assert "not finite" in said
    assert "config or code differs" not in said
