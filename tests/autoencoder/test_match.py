from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autoencoder.topologies import SD1, Shapes, topologies
from vaeconv.autoencoder.keys import expand_rules
from vaeconv.autoencoder.match import DropReason, find_prefixes, match_autoencoder
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.errors import InputError, UnmappedKeysError


def shapes_in(topology: Topology, layout: Layout = Layout.COMPVIS, prefix: str = "") -> Shapes:
    return {prefix + p.name(layout): p.shape(layout) for p in expand_rules(topology)}


SHAPES = shapes_in(SD1)


@given(
    topologies(max_levels=3),
    st.sampled_from(list(Layout)),
    st.sampled_from(["", "first_stage_model.", "module.", "vae.", "a.b."]),
)
@settings(max_examples=60, deadline=None)
def test_every_tensor_is_accounted_for(topology: Topology, layout: Layout, prefix: str) -> None:
    shapes = shapes_in(topology, layout, prefix)
    extra = {"model.diffusion_model.x": (1,), "betas": (1,), f"{prefix}loss.logvar": ()}
    assert find_prefixes(shapes | extra) == [prefix]
    found = match_autoencoder(shapes | extra, prefix, where="x")
    assert found.topology == topology
    assert found.layout is layout
    assert set(found.keys.values()) == set(shapes)
    assert found.dropped.keys() == extra.keys()
    for pair, key in found.keys.items():
        assert key == prefix + pair.name(layout)


@given(topologies(max_levels=3), st.sampled_from(list(Layout)), st.data())
@settings(max_examples=60, deadline=None)
def test_any_missing_tensor_is_refused(
    topology: Topology, layout: Layout, data: st.DataObject
) -> None:
    shapes = shapes_in(topology, layout)
    gone = data.draw(st.sampled_from(sorted(shapes)))
    del shapes[gone]
    with pytest.raises(InputError):
        match_autoencoder(shapes, "", where="x")


@given(topologies(max_levels=3), st.sampled_from(list(Layout)), st.data())
@settings(max_examples=60, deadline=None)
def test_any_misshaped_tensor_is_refused(
    topology: Topology, layout: Layout, data: st.DataObject
) -> None:
    shapes = shapes_in(topology, layout)
    name = data.draw(st.sampled_from(sorted(shapes)))
    shapes[name] = (*shapes[name], 2)
    with pytest.raises(InputError):
        match_autoencoder(shapes, "", where="x")


def test_missing_tensors_are_listed() -> None:
    shapes = {n: s for n, s in SHAPES.items() if not n.startswith("decoder.mid.block_1.norm")}
    with pytest.raises(UnmappedKeysError) as caught:
        match_autoencoder(shapes, "", where="m.ckpt")
    assert set(caught.value.missing) == SHAPES.keys() - shapes.keys()
    assert not caught.value.unexpected
    assert "m.ckpt" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize(
    "name",
    ["decoder.extra.weight", "encoder.down.0.block.0.conv1.lora_A", "quant_conv.scale", "bn.mean"],
)
def test_unknown_keys_inside_are_refused(prefix: str, name: str) -> None:
    shapes = shapes_in(SD1, prefix=prefix) | {prefix + name: (1,)}
    with pytest.raises(UnmappedKeysError) as caught:
        match_autoencoder(shapes, prefix, where="x")
    assert caught.value.unexpected == (prefix + name,)
    found = match_autoencoder(shapes, prefix, where="x", drop=(prefix + name,))
    assert found.dropped == {prefix + name: DropReason.REQUESTED}


def test_unknown_keys_outside_are_dropped_as_unknown() -> None:
    shapes = shapes_in(SD1, prefix="first_stage_model.") | {"low_scale_model.x": (1,)}
    found = match_autoencoder(shapes, "first_stage_model.", where="x")
    assert found.dropped == {"low_scale_model.x": DropReason.UNKNOWN}


def test_old_and_new_attention_names_at_once_are_refused() -> None:
    shapes = shapes_in(SD1, Layout.DIFFUSERS)
    shapes["encoder.mid_block.attentions.0.query.weight"] = (512, 512)
    with pytest.raises(UnmappedKeysError, match="query"):
        match_autoencoder(shapes, "", where="x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model_ema.decay", DropReason.EMA),
        ("loss.discriminator.main.0.weight", DropReason.LOSS),
        ("model.diffusion_model.out.2.weight", DropReason.UNET),
        ("cond_stage_model.transformer.x", DropReason.TEXT_ENCODER),
        ("conditioner.embedders.0.x", DropReason.TEXT_ENCODER),
        ("alphas_cumprod", DropReason.SCHEDULE),
        ("scale_factor", DropReason.LATENT_SCALING),
        ("edm_mean", DropReason.LATENT_SCALING),
    ],
)
def test_known_parts_are_dropped_with_their_reason(name: str, reason: DropReason) -> None:
    shapes = shapes_in(SD1, prefix="first_stage_model.") | {name: (1,)}
    assert match_autoencoder(shapes, "first_stage_model.", where="x").dropped == {name: reason}


def test_a_conditioning_encoder_is_not_an_autoencoder() -> None:
    second = shapes_in(SD1, prefix="conditioner.embedders.3.encoder.")
    assert find_prefixes(second) == []
    both = second | shapes_in(SD1, prefix="first_stage_model.")
    assert find_prefixes(both) == ["first_stage_model."]
    found = match_autoencoder(both, "first_stage_model.", where="x")
    assert set(found.dropped.values()) == {DropReason.TEXT_ENCODER}


def test_names_that_only_end_like_an_anchor_are_no_prefix() -> None:
    assert (
        find_prefixes({"myencoder.conv_in.weight": (1,), "x.xdecoder.conv_in.weight": (1,)}) == []
    )
