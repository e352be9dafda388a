from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.autoencoder.topologies import (
    PUBLISHED,
    SD1,
    Shapes,
    ask_outsiders,
    count_parameters,
    make_topology,
    topologies,
)
from vaeconv.autoencoder.infer import detect_layout, infer_topology
from vaeconv.autoencoder.keys import expand_rules
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.errors import UnmappedKeysError, UnsupportedModelError


def shapes_in(topology: Topology, layout: Layout) -> Shapes:
    return {pair.name(layout): pair.shape(layout) for pair in expand_rules(topology)}


@given(topologies())
@settings(max_examples=150, deadline=None)
def test_names_and_shapes_lead_back_to_the_topology(topology: Topology) -> None:
    for layout in Layout:
        shapes = shapes_in(topology, layout)
        assert detect_layout(shapes, "x") is layout
        assert infer_topology(shapes, layout, "x") == topology


@given(topologies(max_levels=4))
@settings(max_examples=8, deadline=None)
def test_real_modules_lead_back_to_the_topology(topology: Topology) -> None:
    outsiders = ask_outsiders(topology)
    assert infer_topology(outsiders.compvis, Layout.COMPVIS, "x") == topology
    assert infer_topology(outsiders.diffusers, Layout.DIFFUSERS, "x") == topology


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_autoencoders_are_recognised_from_real_modules(name: str) -> None:
    topology, tensors, parameters = PUBLISHED[name]
    outsiders = ask_outsiders(topology)
    for layout, shapes in (
        (Layout.COMPVIS, outsiders.compvis),
        (Layout.DIFFUSERS, outsiders.diffusers),
    ):
        assert len(shapes) == tensors
        assert count_parameters(shapes) == parameters
        assert infer_topology(shapes, layout, "x") == topology


@given(topologies())
@settings(max_examples=50, deadline=None)
def test_order_of_the_names_does_not_matter(topology: Topology) -> None:
    for layout in Layout:
        shapes = dict(reversed(shapes_in(topology, layout).items()))
        assert infer_topology(shapes, layout, "x") == topology


def test_level_attention_stays_at_its_level_in_either_half() -> None:
    topology = make_topology((1, 1, 2), 4, ch=32, attention=(2,))
    shapes = shapes_in(topology, Layout.DIFFUSERS)
    assert "encoder.down_blocks.2.attentions.0.to_q.weight" in shapes
    assert "decoder.up_blocks.0.attentions.2.to_q.weight" in shapes
    decoder_only = {n: s for n, s in shapes.items() if not n.startswith("encoder.down_blocks.2.a")}
    found = infer_topology(decoder_only, Layout.DIFFUSERS, "x")
    assert (found.encoder_attention, found.decoder_attention) == ((0, 0, 0), (0, 0, 1))
    assert found == topology._replace(encoder_attention=(False,) * 3)


def test_two_layouts_at_once_are_refused() -> None:
    shapes = shapes_in(SD1, Layout.COMPVIS) | shapes_in(SD1, Layout.DIFFUSERS)
    with pytest.raises(UnsupportedModelError, match="both layouts"):
        detect_layout(shapes, "x")


def test_no_layout_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="neither"):
        detect_layout({"encoder.conv_in.weight": (1, 1, 3, 3)}, "x")


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(
    "name", ["encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"]
)
def test_a_missing_end_is_named(layout: Layout, name: str) -> None:
    shapes = shapes_in(SD1, layout)
    del shapes[f"{name}.weight"]
    with pytest.raises(UnmappedKeysError) as caught:
        infer_topology(shapes, layout, "x")
    assert caught.value.missing == (f"{name}.weight",)


def test_a_misshaped_end_is_named() -> None:
    shapes = shapes_in(SD1, Layout.COMPVIS) | {"decoder.conv_in.weight": (512,)}
    with pytest.raises(UnmappedKeysError) as caught:
        infer_topology(shapes, Layout.COMPVIS, "x")
    assert caught.value.misshaped == ("decoder.conv_in.weight [512]",)


@pytest.mark.parametrize(
    "index", ["99", "999999999999999999999999", "16", "007", "\u0663"], ids=ascii
)
def test_absurd_level_numbers_make_no_levels(index: str) -> None:
    shapes = shapes_in(SD1, Layout.COMPVIS) | {f"encoder.down.{index}.block.0.conv1.weight": (1,)}
    try:
        found = infer_topology(shapes, Layout.COMPVIS, "x")
    except (UnsupportedModelError, UnmappedKeysError):
        return
    assert found == SD1
