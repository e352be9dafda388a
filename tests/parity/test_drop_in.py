"""``--drop-in-for``: a decoder may differ, what makes latents may not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from fixtures import make_fixtures as make
from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near, magnitude, near_metric
from tests.support.compvis import DDConfig
from tests.support.pairs import (
    MODEL,
    State,
    add_to,
    cast,
    change_diffusers,
    change_folder,
    check,
    failure_of,
    one_epsilon,
    run,
)
from tests.support.samples import average, in_diffusers, save_ckpt, save_folder, weights_of
from vaeconv.parity.compare_outputs import Decoded
from vaeconv.parity.compare_weights import Match
from vaeconv.parity.report.document import report_document
from vaeconv.parity.result import Comparison, Verification

DECODER = ("decoder.", "post_quant_conv.")


def finetune(found: State) -> State:
    """Train the decoder a little."""
    return {n: average(n, t) if n.startswith("decoder.") else t for n, t in found.items()}


def drop_in(result: Verification) -> Comparison:
    assert result.drop_in is not None
    return result.drop_in


@pytest.fixture(scope="module")
def tuned(models: Path, out: Path) -> Path:
    """The model with another decoder, as a diffusers folder."""
    return change_folder(out, models / "tuned", weights=finetune)


@pytest.mark.parametrize("form", ["folder", "fp16 folder", "ckpt"])
def test_a_finetuned_decoder_is_a_drop_in(
    tmp_path: Path, ckpt: Path, out: Path, tuned: Path, refs: Path, form: str
) -> None:
    model, base = tuned, ckpt if form == "ckpt" else out
    if form == "fp16 folder":
        model = change_folder(
            tuned, tmp_path / "half", weights=lambda found: cast(found, torch.float16)
        )
    result = check(model, None, refs, drop_in_for=base)
    comparison = drop_in(result)
    assert result.ok
    assert result.same is None
    assert comparison.labels == ("A", "BASE")
    decoder = comparison.decoder
    assert decoder is not None
    names = [one.pair.compvis for one in comparison.weights.results]
    mine = weights_of(MODEL)
    assert sorted(names) == sorted(n for n in mine if not n.startswith(DECODER))
    assert {n for n in names if n.startswith("quant_conv")} == {
        "quant_conv.weight", "quant_conv.bias",
    }  # fmt: skip
    assert {one.match for one in comparison.weights.results} == {
        Match.ROUNDED if form == "fp16 folder" else Match.EQUAL
    }
    others = sorted(one.pair.compvis for one in decoder.results)
    assert others == sorted(n for n in mine if n.startswith(DECODER))
    assert len(decoder.different) == sum(name.startswith("decoder.") for name in mine)


def test_how_far_the_decoders_are_apart_is_reported(out: Path, tuned: Path, refs: Path) -> None:
    pictures: list[Decoded] = []
    result = check(tuned, None, refs, drop_in_for=out, on_image=pictures.append)
    latents = load_file(refs)
    decoded = [one for one in drop_in(result).outcomes if one.kind == "decode"]
    assert [one.name for one in decoded] == ["0", "1"]
    mine, theirs = (AutoencoderKL.from_pretrained(path) for path in (tuned, out))
    for outcome in decoded:
        with torch.inference_mode():
            latent = latents[f"latent.{outcome.name}"][None]
            one, other = mine.decode(latent).sample, theirs.decode(latent).sample
        mse = torch.mean((one.double() - other.double()) ** 2).item()
        assert outcome.distance.psnr == near_metric("psnr", 10 * math.log10(4 / mse), rounded=False)
        largest = (one - other).abs().max().item()
        assert_near(outcome.distance.max_abs, largest, scale=magnitude(other))
        assert 5 < (outcome.distance.psnr or 0) < 60
        assert outcome.problem is None
        assert outcome.limit == math.inf
    assert len(pictures) == 2
    encoded = [one for one in drop_in(result).outcomes if one.kind == "encode"]
    assert [one.distance.max_abs for one in encoded] == [0.0, 0.0]


def encoder_changed(found: State) -> State:
    return add_to(found, "encoder.down_blocks.1.resnets.0.conv1.weight", at=77)


def quant_changed(found: State) -> State:
    return add_to(found, "quant_conv.bias", at=3)


def quant_dropped(found: State) -> State:
    return {name: t for name, t in found.items() if not name.startswith("quant_conv.")}


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (encoder_changed, {}, "encoder.down_blocks.1.resnets.0.conv1.weight differs by 0.5"),
        (quant_changed, {}, "quant_conv.bias differs by 0.5 at [3]"),
        (quant_dropped, {"use_quant_conv": False}, "quant conv differs: no in A, yes in BASE"),
        (dict, {"scaling_factor": 0.13025}, "scaling factor differs: 0.13025 in A"),
        (dict, {"shift_factor": 0.5}, "shift factor differs: 0.5 in A"),
        (dict, {"latents_mean": [1.0] * 4, "latents_std": [1.0] * 4}, "latents mean differs"),
    ],
    ids=["encoder", "quant conv", "no quant conv", "scaling", "shift", "statistics"],
)
def test_what_makes_latents_may_not_differ(
    tmp_path: Path, out: Path, tuned: Path, refs: Path, weights: Callable[[State], State],
    config: dict[str, Any], words: str,
) -> None:  # fmt: skip
    model = change_folder(
        tuned, tmp_path / "a", weights=weights, config=lambda found: {**found, **config}
    )
    result = check(model, None, refs, drop_in_for=out)
    assert "A is not a drop-in replacement for BASE" in failure_of(result)
    assert words in " ".join(result.problems)
    assert not any(one.problem for one in drop_in(result).outcomes if one.kind == "decode")
    moments = [one.problem for one in drop_in(result).outcomes if one.kind == "encode"]
    assert all(moments) is (weights is not dict)


def post_quant_changed(found: State) -> State:
    return add_to(found, "post_quant_conv.weight", at=5)


def post_quant_dropped(found: State) -> State:
    return {name: t for name, t in found.items() if not name.startswith("post_quant_conv.")}


@pytest.mark.parametrize(
    ("weights", "config"),
    [(post_quant_changed, {}), (post_quant_dropped, {"use_post_quant_conv": False})],
    ids=["changed", "dropped"],
)
def test_what_reads_latents_may_differ(
    tmp_path: Path, out: Path, tuned: Path, refs: Path, weights: Callable[[State], State],
    config: dict[str, Any],
) -> None:  # fmt: skip
    model = change_folder(
        tuned, tmp_path / "a", weights=weights, config=lambda found: {**found, **config}
    )
    result = check(model, None, refs, drop_in_for=out)
    assert result.problems == []
    assert {one.kind for one in drop_in(result).outcomes} == {"decode", "encode"}


def test_an_encoder_that_computes_otherwise_is_no_drop_in(
    monkeypatch: pytest.MonkeyPatch, tuned: Path, ckpt: Path, refs: Path
) -> None:
    """With weights and config as they should be: only what it computes tells."""

    def change(model: Any) -> None:
        model.encoder.down_blocks[0].resnets[0].norm1.eps = 1e-2

    change_diffusers(monkeypatch, change)
    result = check(tuned, None, refs, drop_in_for=ckpt)
    assert drop_in(result).weights.is_same
    assert {one.kind for one in drop_in(result).outcomes if one.problem} == {"encode"}
    assert not result.ok


def test_a_decoder_that_computes_otherwise_still_is(
    monkeypatch: pytest.MonkeyPatch, tuned: Path, ckpt: Path, refs: Path
) -> None:
    change_diffusers(monkeypatch, one_epsilon)
    assert check(tuned, None, refs, drop_in_for=ckpt).ok


def test_a_decoder_that_decodes_to_nothing_is_not(tmp_path: Path, out: Path, refs: Path) -> None:
    name = "decoder.conv_out.bias"
    model = change_folder(
        out, tmp_path / "a", weights=lambda found: add_to(found, name, value=math.nan)
    )
    result = check(model, None, refs, drop_in_for=out)
    failure_of(result)
    assert "is not finite, first in decoder.conv_out of A" in " ".join(result.problems)


def test_other_latents_are_no_drop_in(tmp_path: Path, refs: Path) -> None:
    wide = DDConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8)
    weights = weights_of(wide)
    model = save_ckpt(tmp_path / "a.ckpt", weights)
    result = check(model, None, drop_in_for=FIXTURES / "tiny-kl.safetensors")
    assert "latent channels differ: 8 in A, 4 in BASE" in failure_of(result)
    assert drop_in(result).outcomes == ()


def test_the_fixture_of_a_finetune(references: Callable[[DDConfig], Path]) -> None:
    """``tiny-kl.ckpt`` is one of ``tiny-kl.safetensors``: only its decoder has an average."""
    refs = references(make.KL)
    base = FIXTURES / "tiny-diffusers"
    result = check(FIXTURES / "tiny-kl.ckpt", None, refs, drop_in_for=base, ema=True)
    assert result.ok
    assert result.models[0].ema == 66
    decoder = drop_in(result).decoder
    assert decoder is not None
    assert len(decoder.different) > 60
    assert not check(FIXTURES / "tiny-legacy.pt", None, refs, drop_in_for=base).ok


def test_both_questions_at_once(
    tmp_path: Path, ckpt: Path, out: Path, tuned: Path, refs: Path
) -> None:
    copy = save_folder(tmp_path / "copy", in_diffusers(finetuned_weights(), MODEL))
    result = check(tuned, copy, refs, drop_in_for=out)
    assert result.ok
    assert [model.label for model in result.models] == ["A", "B", "BASE"]
    assert result.same is not None
    assert result.same.problems == drop_in(result).problems == ()
    assert result.same.decoder is None
    wrong = check(tuned, ckpt, refs, drop_in_for=out)
    assert wrong.same is not None
    assert wrong.same.problems
    assert drop_in(wrong).problems == ()
    assert "not the same autoencoder" in failure_of(wrong)


def finetuned_weights() -> State:
    """The CompVis weights of ``tuned``: diffusers' names decide what was added to them."""
    told = in_diffusers(weights_of(MODEL), MODEL)
    tuned = finetune(told)
    pairs = zip(weights_of(MODEL), told, strict=True)
    return {name: tuned[theirs].reshape(weights_of(MODEL)[name].shape) for name, theirs in pairs}


def test_the_command_line_says_it(tmp_path: Path, out: Path, tuned: Path, refs: Path) -> None:
    shared = ("--latents", refs, "--device", "cpu")
    result = run("verify", tuned, "--drop-in-for", out, *shared)
    assert result.exit_code == 0
    assert "A is a drop-in replacement for BASE" in result.stdout
    assert "A and BASE  encoder" in result.stdout
    assert "A and BASE  decoder" in result.stdout
    model = change_folder(tuned, tmp_path / "a", weights=quant_changed)
    result = run("verify", model, "--drop-in-for", out, *shared)
    assert result.exit_code == 4
    assert "A is not a drop-in replacement for BASE" in result.stdout
    assert "error: A is not a drop-in replacement for BASE: " in result.stderr
    assert "quant_conv.bias" in result.stderr


def test_the_document_says_it(out: Path, tuned: Path, refs: Path) -> None:
    document = report_document(check(tuned, None, refs, drop_in_for=out))
    json.dumps(document, allow_nan=False)
    assert document["same"] is None
    found = document["drop_in"]
    assert found["sides"] == ["A", "BASE"]
    assert found["ok"] is found["weights"]["ok"] is True
    assert found["decoder_weights"]["ok"] is False
    assert found["decoder_weights"]["different"] == len(found["decoder_weights"]["worst"]) or (
        found["decoder_weights"]["different"] > len(found["decoder_weights"]["worst"]) == 20
    )
    decoded = [one for one in found["references"] if one["kind"] == "decode"]
    assert [one["limit"] for one in decoded] == [None, None]
    assert all(one["ok"] and one["distance"]["psnr"] < 60 for one in decoded)


def test_weights_alone(tmp_path: Path, out: Path, tuned: Path) -> None:
    assert check(tuned, drop_in_for=out, weights_only=True).ok
    model = change_folder(tuned, tmp_path / "a", weights=encoder_changed)
    assert not check(model, drop_in_for=out, weights_only=True).ok
