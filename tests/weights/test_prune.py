"""Pruning, judged by a plain ``torch.load``, a pick of the EMA and ``.half()``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from fixtures.make_fixtures import FOLDER as FIXTURES
from fixtures.make_fixtures import make_loss
from tests.support.full_checkpoint import VAE, full_state
from tests.support.lightning import fake_lightning, make_adam_state, make_checkpoint
from tests.support.litema import PREFIX, ema_name, make_ema
from tests.support.samples import (
    SD_TREE,
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
    with_value,
)
from tests.support.slow import slow_row
from vaeconv import CopyOptions, PruneOptions, Pruning, prune
from vaeconv.cli import app
from vaeconv.common.notes import note
from vaeconv.errors import (
    CheckFailedError,
    ConfigMismatchError,
    DTypeOverflowError,
    EmaError,
    NonFiniteError,
    UnmappedKeysError,
    UsageError,
)
from vaeconv.weights.options import Part
from vaeconv.weights.prune import plan_pruning

BIG = "decoder.mid.block_1.conv2.weight"
ENTRY = Path(sys.executable).with_name("vaeconv")


def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters in half precision; a noise schedule and a scale factor are none."""
    ends = ("weight", "bias")
    return {name: t.half() if name.endswith(ends) else t for name, t in weights.items()}


def pick_ema(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a careful person would write by hand for an autoencoder's state dict."""
    own = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return {n: state.get(ema_name(n), t) for n, t in state.items() if n.startswith(own)}


def pick_full_ema(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: state.get(ema_name(name.removeprefix("model.")), tensor)
        for name, tensor in state.items()
        if not name.startswith(PREFIX)
    }


def pruned(tmp_path: Path, state: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
    source = save_ckpt(tmp_path / "in.ckpt", dict(state))
    prune(source, tmp_path / "out.safetensors", PruneOptions(**options))
    return load_file(tmp_path / "out.safetensors")


def account(result: Pruning, *, kept: bool) -> dict[str, int]:
    return {group.name: group.tensors for group in result.groups if group.is_kept is kept}


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


# --- an autoencoder and its average ---


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("prefix", ["", VAE])
def test_an_average_of_everything_replaces_the_weights(
    tmp_path: Path, suffix: str, prefix: str
) -> None:
    weights = weights_of()
    state = weights | make_ema(weights, average)
    source, target = save_ckpt(tmp_path / "in.ckpt", prefixed(state, prefix)), tmp_path / "out"
    target = target.with_suffix(suffix)
    result = prune(source, target, PruneOptions(ema=True))
    found = load_ckpt(target) if suffix == ".ckpt" else load_file(target)
    assert_same(found, prefixed(half(pick_ema(state)), prefix))
    assert result.plan.ema_counts == (len(weights), 0)


def test_an_average_of_the_decoder_leaves_the_rest_raw(tmp_path: Path) -> None:
    weights = weights_of(SD_TREE)
    state = weights | make_ema(weights, average, trained=("decoder.",))
    source = save_ckpt(tmp_path / "in.ckpt", state)
    result = prune(source, tmp_path / "o.safetensors", PruneOptions(ema=True, manifest=True))
    assert_same(load_file(tmp_path / "o.safetensors"), half(pick_ema(state)))
    assert (
        note("autoencoder: EMA weights for 138 tensors, raw weights for 110") in result.plan.notes
    )
    manifest = json.loads((tmp_path / "o.safetensors.vaeconv.json").read_bytes())
    assert manifest["ema"] == {"ema": 138, "raw": 110}
    assert manifest["ema_tensors"] == sorted(n for n in weights if n.startswith("decoder."))


def test_raw_weights_are_kept_without_ema_and_the_average_is_mentioned(tmp_path: Path) -> None:
    weights = weights_of()
    source = save_ckpt(tmp_path / "in.ckpt", weights | make_ema(weights, average))
    result = prune(source, tmp_path / "o.safetensors")
    assert_same(load_file(tmp_path / "o.safetensors"), half(weights))
    assert any("--ema puts the EMA weights" in note for note in map(str, result.plan.notes))


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({}, "no EMA weights in it"),
        ({f"{PREFIX}decay": torch.tensor(0.9), f"{PREFIX}num_updates": torch.tensor(3)}, "remnant"),
        ({f"{PREFIX}encoderconv_in": torch.ones(2)}, "remnant of 1 keys"),
    ],
    ids=["none", "remnant", "other names"],
)
def test_no_match_is_an_error_and_writes_nothing(
    tmp_path: Path, beside: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(EmaError, match=words):
        pruned(tmp_path, weights_of() | beside, ema=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.ckpt"]


def test_an_average_that_never_moved_is_warned_of(tmp_path: Path) -> None:
    weights = weights_of()
    state = weights | make_ema(weights, lambda name, raw: raw, num_updates=0)
    result = prune(
        save_ckpt(tmp_path / "in.ckpt", state), tmp_path / "o.ckpt", PruneOptions(ema=True)
    )
    text = " ".join(map(str, result.plan.notes))
    assert "was never updated" in text
    assert "equal to the raw ones" in text


def test_an_average_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = weights_of()
    ema = make_ema(weights, average)
    ema[ema_name(BIG)] = ema[ema_name(BIG)][:16].clone()
    with pytest.raises(UnmappedKeysError, match="decodermidblock_1conv2weight"):
        pruned(tmp_path, weights | ema, ema=True)


@pytest.mark.parametrize("ema", [True, False])
def test_a_training_checkpoint_loses_all_that_is_for_training(tmp_path: Path, ema: bool) -> None:
    weights = weights_of()
    state = weights | make_loss(torch.float32, 21) | make_ema(weights, average)
    adam = make_adam_state(list(weights.values())[:3], lambda _, t: (t * 0.5, t * t), step=7)
    with fake_lightning() as callback:
        document = make_checkpoint(
            state,
            callback=callback,
            best_score=torch.tensor(0.25),
            optimizer_states=[adam, adam],
            config=TINY,
        )
        torch.save(document, tmp_path / "in.ckpt")
        theirs = torch.load(tmp_path / "in.ckpt", weights_only=False)["state_dict"]
    result = prune(tmp_path / "in.ckpt", tmp_path / "o.safetensors", PruneOptions(ema=ema))
    expected = pick_ema(theirs if ema else {n: theirs[n] for n in weights})
    assert_same(load_file(tmp_path / "o.safetensors"), half(expected))
    gone = account(result, kept=False)
    assert {"loss", "ema", "optimizer_states"} <= gone.keys()
    assert ("replaced" in gone) == ema


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    state = full_state() | {"loss.logvar": torch.zeros(()), "odd.thing": torch.ones(3)}
    for ema in (True, False):
        source = save_ckpt(tmp_path / "in.ckpt", state)
        result = prune(
            source, tmp_path / "o.ckpt", PruneOptions(ema=ema, overwrite=True), dry_run=True
        )
        used = [row.source.name for row in result.plan.rows]
        assert sorted([*used, *result.plan.dropped]) == sorted(state)
        assert sum(group.tensors for group in result.groups) == len(state)


# --- pruned again ---


@pytest.mark.parametrize("state", [weights_of(), full_state(ema=False)], ids=["vae", "full"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_pruning_twice_gives_the_same_bytes(
    tmp_path: Path, state: dict[str, Tensor], suffix: str
) -> None:
    save_ckpt(tmp_path / "in.ckpt", state)
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    prune(tmp_path / "in.ckpt", once)
    prune(once, twice)
    assert once.read_bytes() == twice.read_bytes()


def test_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    found = pruned(tmp_path, weights_of())
    save_file(found, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "out.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


# --- full checkpoints ---


def test_the_average_of_a_diffusion_model_leaves_the_autoencoder_raw(tmp_path: Path) -> None:
    state = full_state()
    source = save_ckpt(tmp_path / "in.ckpt", state, global_step=7)
    result = prune(source, tmp_path / "o.safetensors", PruneOptions(ema=True))
    assert_same(load_file(tmp_path / "o.safetensors"), half(pick_full_ema(state)))
    said = [note for note in map(str, result.plan.notes) if "diffusion model" in note]
    assert said == [
        "note: diffusion model: EMA weights for 4 of 4 tensors; "
        "all else, also the autoencoder, has raw weights only"
    ]
    assert account(result, kept=True) == {
        "unet": 4, "vae": len(weights_of()), "text-encoder": 2, "schedule": 3,
    }  # fmt: skip


def test_averages_of_both_are_folded(tmp_path: Path) -> None:
    vae = weights_of()
    state = full_state() | prefixed(vae | make_ema(vae, average), VAE)
    found = pruned(tmp_path, state, ema=True)
    expected = {n: t for n, t in pick_full_ema(state).items() if not n.startswith(VAE)}
    expected |= prefixed(pick_ema(vae | make_ema(vae, average)), VAE)
    assert_same(found, half(expected))


@pytest.mark.parametrize("prefix", [None, "vae."])
def test_the_autoencoder_alone(tmp_path: Path, prefix: str | None) -> None:
    found = pruned(tmp_path, full_state(), vae_only=True, prefix=prefix)
    assert_same(found, prefixed(half(weights_of()), prefix or ""))


def test_of_the_autoencoder_alone_an_average_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmaError, match="diffusion model's"):
        pruned(tmp_path, full_state(), vae_only=True, ema=True)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"drop": frozenset({Part.UNET, Part.TEXT_ENCODER})}, {"vae", "schedule", "other"}),
        ({"drop": frozenset({Part.VAE})}, {"unet", "text-encoder", "schedule", "other"}),
        ({"keep": frozenset({Part.LOSS}), "drop": frozenset({Part.UNET, Part.SCHEDULE})},
         {"vae", "text-encoder", "other", "loss"}),
        ({"vae_only": True, "keep": frozenset({Part.LOSS})}, {"vae", "loss"}),
    ],
    ids=["two dropped", "no vae", "loss", "vae and loss"],
)  # fmt: skip
def test_parts_are_kept_and_dropped(
    tmp_path: Path, options: dict[str, Any], kept: set[str]
) -> None:
    state = full_state() | {"loss.logvar": torch.zeros(()), "odd.thing": torch.ones(3)}
    source = save_ckpt(tmp_path / "in.ckpt", state)
    result = prune(source, tmp_path / "o.safetensors", PruneOptions(**options))
    assert set(account(result, kept=True)) == kept
    begins = {
        "unet": "model.", "vae": "encoder.", "text-encoder": "cond_", "schedule": "betas",
        "other": "odd.", "loss": "loss.",
    }  # fmt: skip
    names = [name.removeprefix(VAE) for name in load_file(tmp_path / "o.safetensors")]
    assert {part for part, begin in begins.items() if any(n.startswith(begin) for n in names)} == (
        kept
    )


def test_a_diffusion_model_without_autoencoder(tmp_path: Path) -> None:
    state = {n: t for n, t in full_state().items() if not n.startswith(VAE)}
    assert_same(pruned(tmp_path, state, ema=True), half(pick_full_ema(state)))
    with pytest.raises(Exception, match="no autoencoder"):
        prune(tmp_path / "in.ckpt", tmp_path / "o.ckpt", PruneOptions(vae_only=True))


def test_keys_of_unknown_purpose_are_kept_and_named(tmp_path: Path) -> None:
    state = full_state() | {"v_pred": torch.ones(1)}
    result = prune(save_ckpt(tmp_path / "in.ckpt", state), tmp_path / "o.safetensors")
    assert "v_pred" in load_file(tmp_path / "o.safetensors")
    assert any(
        "such as v_pred" in note and "--drop other" in note for note in map(str, result.plan.notes)
    )


def test_weights_that_are_tied_are_kept_twice(tmp_path: Path) -> None:
    tied = "cond_stage_model.transformer.lm_head.weight"
    first = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    state = full_state()
    found = pruned(tmp_path, state | {tied: state[first]})
    assert torch.equal(found[tied], found[first])


def test_nothing_left_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is left"):
        pruned(tmp_path, weights_of(), drop=frozenset({Part.VAE}))


# --- another autoencoder baked in ---


@pytest.mark.parametrize("layout", ["ckpt", "prefixed", "folder"])
@pytest.mark.parametrize("has_own", [True, False], ids=["replaced", "added"])
def test_another_autoencoder_is_baked_in(tmp_path: Path, layout: str, has_own: bool) -> None:
    new = weights_of(seed=31)
    file = {
        "ckpt": lambda: save_ckpt(tmp_path / "vae.ckpt", new),
        "prefixed": lambda: save_ckpt(tmp_path / "vae.ckpt", prefixed(new, "vae.")),
        "folder": lambda: save_folder(tmp_path / "vae", in_diffusers(new)),
    }[layout]()
    state = {n: t for n, t in full_state().items() if has_own or not n.startswith(VAE)}
    found = pruned(tmp_path, state, ema=True, vae=file)
    assert_same(found, half(pick_full_ema(state) | prefixed(new, VAE)))


def test_an_autoencoder_of_another_architecture_is_not_baked_in(tmp_path: Path) -> None:
    other = save_ckpt(tmp_path / "vae.ckpt", weights_of(SD_TREE))
    with pytest.raises(ConfigMismatchError, match="channels"):
        pruned(tmp_path, full_state(), vae=other)


def test_baking_into_an_autoencoder_is_wrong_usage(tmp_path: Path) -> None:
    other = save_ckpt(tmp_path / "vae.ckpt", weights_of(seed=31))
    with pytest.raises(UsageError, match="vaeconv convert"):
        pruned(tmp_path, weights_of(), vae=other)


# --- dtypes ---


@pytest.mark.parametrize(
    ("dtype", "target"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32), ("keep", None)],
)
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_casts_are_torchs_and_integers_stay(
    tmp_path: Path, source: torch.dtype, dtype: str, target: torch.dtype | None
) -> None:
    state = full_state() | prefixed(weights_of(dtype=source), VAE)
    found = pruned(tmp_path, state, dtype=dtype)
    expected = {
        name: t.to(target) if target and name.endswith(("weight", "bias")) else t
        for name, t in state.items()
        if not name.startswith(PREFIX)
    }
    assert_same(found, expected)


def test_excepted_keys_keep_their_dtype(tmp_path: Path) -> None:
    found = pruned(tmp_path, weights_of(), fp16_except=("decoder.conv_out.*", "*.norm1.weight"))
    wide = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
    assert wide == {
        n for n in weights_of() if n.startswith("decoder.conv_out.") or n.endswith("norm1.weight")
    }
    narrow = {name: t for name, t in half(weights_of()).items() if name not in wide}
    assert_same(found, narrow | {name: weights_of()[name] for name in wide})


def test_an_overflow_names_the_tensor_and_its_largest_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaeconv.weights.execute._PIECE", 4096)  # the largest is in a later piece
    state = with_value(-70000.0)
    state[BIG].view(-1)[-1] = 123456.0
    with pytest.raises(DTypeOverflowError, match=rf"{BIG}.*123456") as caught:
        pruned(tmp_path, state)
    assert "--clamp" in caught.value.text
    assert not (tmp_path / "out.safetensors").exists()


def test_clamp_saturates_and_says_so(tmp_path: Path) -> None:
    state = with_value(-70000.0)
    source = save_ckpt(tmp_path / "in.ckpt", state)
    options = PruneOptions(copy=CopyOptions(clamp=True))
    result = prune(source, tmp_path / "o.safetensors", options)
    expected = {name: t.clamp(-65504, 65504).half() for name, t in state.items()}
    assert_same(load_file(tmp_path / "o.safetensors"), expected)
    (warning,) = [note for note in map(str, result.plan.notes) if "clamped" in note]
    assert "1 value in 1 tensor were clamped" in warning
    assert f"70000, in {BIG}" in warning


def test_values_that_become_zero_are_counted(tmp_path: Path) -> None:
    state = weights_of() | {BIG: torch.full_like(weights_of()[BIG], 2e-8)}
    state[BIG][:3] = 0.0  # these were zero before
    zeros = {name: int((t.half() == 0).sum() - (t == 0).sum()) for name, t in state.items()}
    tensors = sum(count > 0 for count in zeros.values())
    source = save_ckpt(tmp_path / "in.ckpt", state)
    notes = list(map(str, prune(source, tmp_path / "o.safetensors").plan.notes))
    assert tensors == 1
    assert any(f"{sum(zeros.values())} values in 1 tensor became zero" in note for note in notes)


def test_not_a_number_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=BIG):
        pruned(tmp_path, with_value(float("nan")))


# --- folders ---


def diffusers_folder(tmp_path: Path, **config: Any) -> Path:
    folder = save_folder(tmp_path / "in", in_diffusers(weights_of()))
    original = config_of(FIXTURES / "tiny-diffusers")
    (folder / "config.json").write_text(json.dumps(original | config))
    return folder


def test_a_folder_stays_one_and_keeps_its_config(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path, scaling_factor=0.7)
    prune(folder, tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), half(in_diffusers(weights_of())))
    assert config_of(tmp_path / "out")["scaling_factor"] == 0.7


def test_a_file_does_not_become_a_folder(tmp_path: Path) -> None:
    source = save_ckpt(tmp_path / "in.ckpt", weights_of())
    with pytest.raises(UsageError, match="vaeconv convert"):
        prune(source, tmp_path / "out")


def test_a_folder_may_become_a_file_with_its_own_names(tmp_path: Path) -> None:
    prune(diffusers_folder(tmp_path), tmp_path / "o.safetensors")
    assert_same(load_file(tmp_path / "o.safetensors"), half(in_diffusers(weights_of())))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", [20_000, 100_000, 10_000_000])
def test_shards_are_those_of_the_hub_client(tmp_path: Path, size: int, variant: str | None) -> None:
    folder, out = diffusers_folder(tmp_path), tmp_path / "out"
    result = prune(folder, out, PruneOptions(max_shard_size=size, variant=variant))
    stem = WEIGHTS.removesuffix(".safetensors") + (f".{variant}" if variant else "")
    order = {row.name: half(in_diffusers(weights_of()))[row.name] for row in result.plan.rows}
    split = split_torch_state_dict_into_shards(
        order, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=size
    )
    for name, tensors in split.filename_to_tensors.items():
        assert_same(load_file(out / name), {tensor: order[tensor] for tensor in tensors})
    assert {path.name for path in out.glob("*.safetensors")} == set(split.filename_to_tensors)
    index = out / f"{WEIGHTS}.index{'.fp16' if variant else ''}.json"
    assert index.exists() == split.is_sharded
    if split.is_sharded:
        assert json.loads(index.read_bytes()) == {
            "metadata": split.metadata, "weight_map": split.tensor_to_filename,
        }  # fmt: skip
    model, said = AutoencoderKL.from_pretrained(out, variant=variant, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert_same(model.half().state_dict(), order)
    manifest = json.loads((out / "vaeconv.json").read_bytes())["outputs"]
    assert manifest.keys() == {path.name for path in out.iterdir()} - {"vaeconv.json"}


def test_shards_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    folder, out = diffusers_folder(tmp_path), tmp_path / "out"
    for size in (60_000, 200_000, None, 60_000):
        prune(folder, out, PruneOptions(max_shard_size=size, overwrite=True))
        (out / "README.md").touch()
        weights = {n: t for path in out.glob("*.safetensors") for n, t in load_file(path).items()}
        assert_same(weights, half(in_diffusers(weights_of())))
        assert (len(list(out.glob("*.json"))) == 3) == (size is not None)
        prune(out, tmp_path / "again.ckpt", PruneOptions(overwrite=True))
    assert (out / "README.md").exists()


# --- the probe ---


def black(tmp_path: Path) -> Path:
    """A model whose activations overflow fp16, with weights that fit it."""
    weights = in_diffusers(weights_of())
    weights["decoder.conv_in.weight"] = weights["decoder.conv_in.weight"] * 3e4
    folder = diffusers_folder(tmp_path)
    save_folder(folder, weights)
    return folder


def prune_probed(source: Path, output: Path) -> Pruning:
    from vaeconv.models.probe import probe_decoder

    with plan_pruning(source, output, will_probe=True) as planned:
        return planned.with_probe(probe_decoder(planned.rows, planned.config)).write()


def test_a_probe_that_finds_fp16_enough_turns_upcasting_off(tmp_path: Path) -> None:
    result = prune_probed(diffusers_folder(tmp_path), tmp_path / "out")
    assert result.probe is not None and result.probe.is_finite
    assert config_of(tmp_path / "out")["force_upcast"] is False
    manifest = json.loads((tmp_path / "out" / "vaeconv.json").read_bytes())
    assert manifest["probe"]["is_finite"] is True
    peak = manifest["probe"]["fp32_peak"]
    assert 0 < peak["value"] < 65504
    model = AutoencoderKL.from_pretrained(tmp_path / "out")
    assert peak["layer"] in dict(model.named_modules())


def test_a_probe_that_finds_an_overflow_names_the_layer(tmp_path: Path) -> None:
    result = prune_probed(black(tmp_path), tmp_path / "out")
    assert result.probe is not None and not result.probe.is_finite
    assert config_of(tmp_path / "out")["force_upcast"] is True
    assert result.probe.document()["first_nonfinite"] == "decoder.conv_in"
    assert "decoder.conv_in" in result.probe.describe()


def test_a_probe_of_a_model_that_is_not_even_finite_in_fp32(tmp_path: Path) -> None:
    """What it says is JSON all the same, on stdout and in the manifest."""
    folder = black(tmp_path)
    weights = load_file(folder / WEIGHTS)
    for name in ("decoder.conv_in.weight", "decoder.conv_out.weight"):
        weights[name] = torch.full_like(weights[name], 3e38)
    save_folder(folder, weights)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    result = run("prune", "--probe", "--dtype", "keep", "--json", folder, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for text in (result.stdout, (tmp_path / "out" / "vaeconv.json").read_text()):
        found = json.loads(text, parse_constant=refuse)["probe"]
        assert found["is_finite"] is False and found["max_abs_diff"] is None
        assert found["fp32_peak"]["value"] is None and found["fp16_peak"]["value"] is None


def test_a_probe_undoes_scaling_as_pipelines_do(tmp_path: Path) -> None:
    """With shift and statistics of channels; else it decodes what no diffusion model makes."""
    from vaeconv.models.probe import probe_decoder

    changes: list[dict[str, Any]] = [
        {"scaling_factor": 0.5, "latents_mean": [50.0] * 4, "latents_std": [2.0] * 4},
        {"scaling_factor": 0.25, "shift_factor": 50.0},
        {"scaling_factor": 0.25},
    ]
    folder, keep = diffusers_folder(tmp_path), PruneOptions(dtype="keep")
    with plan_pruning(folder, tmp_path / "out", keep, will_probe=True) as planned:
        peaks = [
            probe_decoder(planned.rows, {**planned.config, **change}).fp32_peak.value
            for change in changes
        ]
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-3)
    assert peaks[2] < peaks[0] * 0.9


def test_fp16_decoding_may_be_required(tmp_path: Path) -> None:
    folder = black(tmp_path)
    result = run("prune", "--require-fp16-decode", folder, tmp_path / "out")
    assert result.exit_code == CheckFailedError.exit_code
    assert "decoder.conv_in" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_required_is_not_written_without_a_probe(tmp_path: Path) -> None:
    options = PruneOptions(require_fp16=True)
    with (
        pytest.raises(UsageError, match="needs a probe"),
        plan_pruning(diffusers_folder(tmp_path), tmp_path / "out", options, will_probe=True) as one,
    ):
        one.write()
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_no_silent_fallback(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    folder = diffusers_folder(tmp_path)
    result = run("prune", "--probe", "--device", "cuda:7", folder, tmp_path / "o.ckpt")
    assert result.exit_code == 7
    assert "cuda:7" in result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_probe_runs_on_the_gpu(tmp_path: Path) -> None:
    result = prune_probed(black(tmp_path), tmp_path / "o.ckpt")
    assert result.probe is not None
    assert result.probe.document()["device"] == "cuda:0"
    assert not result.probe.is_finite


# --- the command ---


def test_the_command_tells_what_it_kept_and_dropped(tmp_path: Path) -> None:
    source = save_ckpt(tmp_path / "in.ckpt", full_state())
    result = run("prune", "--ema", source, tmp_path / "o.safetensors")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    kept = {row[1]: int(row[2]) for row in rows if row[0] == "keep"}
    assert kept == {"unet": 4, "vae": 120, "text-encoder": 2, "schedule": 3}
    assert any(row[:4] == ["drop", "raw", "weights", "(replaced)"] for row in rows)
    assert "has raw weights only" in result.stderr


def test_json_holds_the_account(tmp_path: Path) -> None:
    source = save_ckpt(tmp_path / "in.ckpt", full_state())
    dry = json.loads(run("prune", "--json", "--dry-run", source, tmp_path / "o.ckpt").stdout)
    assert not (tmp_path / "o.ckpt").exists()
    wet = json.loads(run("prune", "--json", source, tmp_path / "o.ckpt").stdout)
    assert (dry["ok"], dry["dry_run"], wet["dry_run"]) == (True, True, False)
    assert dry["groups"] == wet["groups"]
    assert len(dry["rows"]) == wet["output"]["tensors"] == len(load_ckpt(tmp_path / "o.ckpt"))
    assert wet["files"][0]["size"] == (tmp_path / "o.ckpt").stat().st_size


def batch(tmp_path: Path, *options: str) -> Result:
    (tmp_path / "pruned").mkdir()
    save_ckpt(tmp_path / "a.ckpt", weights_of())
    (tmp_path / "b.ckpt").write_text("<html>")
    save_ckpt(tmp_path / "c.ckpt", weights_of(seed=31))
    diffusers_folder(tmp_path)
    names = ("a.ckpt", "b.ckpt", "c.ckpt", "in")
    return run("prune", *options, "--out-dir", tmp_path / "pruned", *(tmp_path / n for n in names))


def test_a_batch_goes_on_after_a_file_that_fails(tmp_path: Path) -> None:
    result = batch(tmp_path)
    assert result.exit_code == 3
    assert "b.ckpt: an HTML page" in result.stderr
    assert_same(load_file(tmp_path / "pruned/a.safetensors"), half(weights_of()))
    assert_same(load_file(tmp_path / "pruned/c.safetensors"), half(weights_of(seed=31)))
    assert_same(load_folder(tmp_path / "pruned/in"), half(in_diffusers(weights_of())))
    assert len(list((tmp_path / "pruned").iterdir())) == 3
    assert result.stdout.split()[:2] == ["checkpoint", "before"]
    assert "failed (3)" in result.stdout


def test_a_batch_reports_in_one_document(tmp_path: Path) -> None:
    result = batch(tmp_path, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, document["ok"]) == (3, "", False)
    assert [entry["ok"] for entry in document["results"]] == [True, False, True, True]
    assert document["results"][1]["error"]["type"] == "NotACheckpointError"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["a.ckpt"], 2, "--out-dir"),
        (["a.ckpt", "b.ckpt", "c.ckpt"], 2, "got 3 names"),
        (["--out-dir", "missing", "a.ckpt"], 5, "mkdir -p"),
        (["--out-dir", ".", "a.ckpt", "sub/a.ckpt"], 2, "both become"),
        (["--max-shard-size", "lots", "a.ckpt", "o"], 2, "500MB"),
        (["--keep", "wheels", "a.ckpt", "o.ckpt"], 2, "wheels"),
        (["a.ckpt", "a.ckpt"], 5, "is the input itself"),
        (["--vae", "o.ckpt", "a.ckpt", "o.ckpt"], 2, "has nothing else"),
    ],
)
def test_wrong_usage_is_one_line(
    args: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_ckpt(tmp_path / "a.ckpt", weights_of())
    save_ckpt(tmp_path / "o.ckpt", weights_of())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("prune", *args)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_torch_is_not_imported_without_a_probe(tmp_path: Path) -> None:
    source = save_ckpt(tmp_path / "in.ckpt", full_state())
    script = (
        "import sys; from vaeconv import prune, PruneOptions; "
        "prune(sys.argv[1], sys.argv[2], PruneOptions(ema=True)); "
        "sys.exit(', '.join({'torch', 'diffusers'} & sys.modules.keys()) or 0)"
    )
    command = [sys.executable, "-c", script, source, tmp_path / "o.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- faults ---


def old_output(tmp_path: Path) -> tuple[Path, Path, bytes]:
    source = save_ckpt(tmp_path / "in.ckpt", full_state())
    target = tmp_path / "out.safetensors"
    prune(source, target, PruneOptions(dtype="keep"))
    return source, target, target.read_bytes()


def only_these(tmp_path: Path) -> bool:
    return {path.name for path in tmp_path.iterdir()} == {"in.ckpt", "out.safetensors"}


@pytest.mark.parametrize("limit", [0, 1, 300, 100_000, 400_000])
def test_a_full_disk_leaves_the_old_output(tmp_path: Path, limit: int) -> None:
    import resource

    source, target, before = old_output(tmp_path)
    done = subprocess.run(
        [ENTRY, "prune", "--ema", "--overwrite", source, target],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert target.read_bytes() == before
    assert only_these(tmp_path)


@pytest.mark.parametrize(
    ("name", "code", "when"),
    [
        pytest.param("SIGKILL", -9, "before", id="kill-before"),
        slow_row("SIGKILL", -9, "after", id="kill-after"),
        pytest.param("SIGINT", 130, "before", id="ctrl-c-before"),
        slow_row("SIGINT", 130, "after", id="ctrl-c-after"),
        slow_row("SIGTERM", 143, "before", id="terminate-before"),
        pytest.param("SIGTERM", 143, "after", id="terminate-after"),
    ],
)
def test_a_stop_at_any_point_leaves_the_old_output_or_the_new(
    tmp_path: Path, name: str, code: int, when: str
) -> None:
    source, target, before = old_output(tmp_path)
    prune(source, tmp_path / "new.safetensors", PruneOptions(ema=True))
    after = (tmp_path / "new.safetensors").read_bytes()
    (tmp_path / "new.safetensors").unlink()
    seen = set()
    for point in range(1, 100):
        target.write_bytes(before)
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.faults", name, when, str(point), tmp_path,
             "prune", "--ema", "--overwrite", source, target],
            capture_output=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode in (0, code), done.stderr
        assert target.read_bytes() in (before, after)
        seen.add(target.read_bytes() == after)
        if done.returncode == 0:
            break
        assert name == "SIGKILL" or only_these(tmp_path)
    else:
        pytest.fail("it never got through")
    assert point > 4
    assert seen == {True, False}
    assert target.read_bytes() == after
    assert only_these(tmp_path)
