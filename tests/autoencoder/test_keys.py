from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.autoencoder.topologies import (
    PUBLISHED,
    ask_outsiders,
    make_topology,
    topologies,
)
from tests.support.litema import ema_name
from vaeconv.autoencoder import keys
from vaeconv.autoencoder.keys import (
    ATTENTION,
    RESNET,
    RULES,
    NameMap,
    Rule,
    expand_rules,
)
from vaeconv.autoencoder.topology import Layout, Topology

# One of everything: levels that widen, attention inside a level, several blocks.
MIXED = make_topology((1, 2, 3), 4, ch=32, attention=(1,))


def check_pairs_are_what_both_implementations_run(topology: Topology) -> None:
    pairs = expand_rules(topology)
    assert {pair.compvis: pair.diffusers for pair in pairs} == ask_outsiders(topology).pairs


def check_compvis_shapes_are_those_of_the_reference(topology: Topology) -> None:
    found = {p.compvis: p.shape(Layout.COMPVIS) for p in expand_rules(topology)}
    assert found == ask_outsiders(topology).compvis


def check_diffusers_shapes_are_those_of_diffusers(topology: Topology) -> None:
    found = {p.diffusers: p.shape(Layout.DIFFUSERS) for p in expand_rules(topology)}
    assert found == ask_outsiders(topology).diffusers


def check_table_is_one_to_one(topology: Topology) -> None:
    pairs = NameMap(expand_rules(topology)).pairs
    assert len({p.compvis for p in pairs}) == len({p.diffusers for p in pairs}) == len(pairs)


CHECKS = (
    check_pairs_are_what_both_implementations_run,
    check_compvis_shapes_are_those_of_the_reference,
    check_diffusers_shapes_are_those_of_diffusers,
    check_table_is_one_to_one,
)


@given(topologies())
@settings(max_examples=20, deadline=None)
def test_table_is_what_outsiders_say(topology: Topology) -> None:
    for check in CHECKS:
        check(topology)


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_is_what_outsiders_say_at_published_widths(name: str) -> None:
    for check in CHECKS:
        check(PUBLISHED[name][0])


@given(topologies())
@settings(max_examples=50, deadline=None)
def test_every_name_is_found_and_nothing_else(topology: Topology) -> None:
    pairs = expand_rules(topology)
    table = NameMap(pairs)
    for pair in pairs:
        assert table.find(Layout.COMPVIS, pair.compvis) is pair
        assert table.find(Layout.DIFFUSERS, pair.diffusers) is pair
        assert table.find(Layout.DIFFUSERS, pair.legacy) is pair
    for name in ("encoder", "encoder.conv_in", "encoder.conv_in.weight.x", "", "encoder.down.9"):
        assert table.find(Layout.COMPVIS, name) is table.find(Layout.DIFFUSERS, name) is None
    some = pairs[2].compvis
    assert table.find(Layout.COMPVIS, "x." + some) is None


@given(topologies())
@settings(max_examples=100, deadline=None)
def test_average_names_never_collide(topology: Topology) -> None:
    names = [pair.compvis for pair in expand_rules(topology)]
    assert len({ema_name(name) for name in names}) == len(names)


@given(topologies())
@settings(max_examples=50, deadline=None)
def test_operations_have_inverses_and_keep_the_elements(topology: Topology) -> None:
    for pair in expand_rules(topology):
        there = pair.shape(Layout.DIFFUSERS)
        assert (*there, *(1, 1) * pair.is_squeezed) == pair.compvis_shape
        assert pair.accepts(there)
        assert pair.accepts(pair.compvis_shape)


def test_attention_weights_are_taken_with_two_three_and_four_dimensions() -> None:
    table = NameMap(expand_rules(MIXED))
    pair = table.find(Layout.COMPVIS, "encoder.mid.attn_1.q.weight")
    assert pair is not None
    assert pair.is_squeezed
    for shape in ((96, 96), (96, 96, 1), (96, 96, 1, 1)):
        assert pair.accepts(shape)
    for shape in (
        (96,),
        (96, 95),
        (95, 96, 1, 1),
        (96, 96, 3, 3),
        (96, 96, 1, 2),
        (96, 96, 1, 1, 1),
    ):
        assert not pair.accepts(shape)


def test_other_weights_are_taken_with_their_own_shape_only() -> None:
    pair = NameMap(expand_rules(MIXED)).find(Layout.COMPVIS, "quant_conv.weight")
    assert pair is not None
    assert pair.accepts((8, 8, 1, 1))
    assert not pair.accepts((8, 8))
    assert not pair.accepts((8, 8, 3, 3))


def test_old_names_differ_in_attention_only() -> None:
    renamed = {
        pair.diffusers.rsplit("attentions.", 1)[-1]: pair.legacy.rsplit("attentions.", 1)[-1]
        for pair in expand_rules(make_topology((1,), 4))
        if pair.legacy != pair.diffusers
    }
    assert renamed == {
        f"0.{new}.{parameter}": f"0.{old}.{parameter}"
        for new, old in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        )
        for parameter in ("weight", "bias")
    }


def test_colliding_rules_are_noticed_where_the_map_is_built() -> None:
    twice = (*expand_rules(MIXED), expand_rules(MIXED)[0])
    with pytest.raises(ValueError, match="one to one"):
        NameMap(twice)


# --- planted faults: each must turn a check red ---


def replace_rules(monkeypatch: pytest.MonkeyPatch, change: dict[str, Rule]) -> None:
    assert change.keys() <= {rule.compvis for rule in RULES}
    monkeypatch.setattr(keys, "RULES", tuple(change.get(r.compvis, r) for r in RULES))


RULE = {rule.compvis: rule for rule in RULES}
PAIRS, COMPVIS, DIFFUSERS, _ = CHECKS


def test_planted_swap_of_two_rules_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = RULE["encoder.mid.block_1"], RULE["encoder.mid.block_2"]
    replace_rules(
        monkeypatch,
        {
            one.compvis: one._replace(diffusers=two.diffusers),
            two.compvis: two._replace(diffusers=one.diffusers),
        },
    )
    DIFFUSERS(MIXED)  # names and shapes alone cannot tell
    with pytest.raises(AssertionError):
        PAIRS(MIXED)


def test_planted_swap_of_query_and_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, query, key, *rest = ATTENTION
    leaves = (
        norm,
        query._replace(diffusers="to_k"),
        key._replace(diffusers="to_q"),
        *rest,
    )
    rule = RULE["decoder.mid.attn_1"]
    replace_rules(monkeypatch, {rule.compvis: rule._replace(leaves=leaves)})
    with pytest.raises(AssertionError):
        PAIRS(MIXED)


@pytest.mark.parametrize("name", [r.compvis for r in RULES if "{r}" in r.diffusers])
def test_planted_unreversed_decoder_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rule = RULE[name]
    unreversed = rule._replace(diffusers=rule.diffusers.replace("{r}", "{i}"))
    replace_rules(monkeypatch, {name: unreversed})
    # Attention is on the outer levels only, so that the order of levels shows.
    with pytest.raises(AssertionError):
        outer = (True, False, False)
        PAIRS(MIXED._replace(encoder_attention=outer, decoder_attention=outer))


@pytest.mark.parametrize("leaf", range(len(RESNET)))
def test_planted_missing_resnet_leaf_is_found(monkeypatch: pytest.MonkeyPatch, leaf: int) -> None:
    rule = RULE["decoder.up.{i}.block.{j}"]
    leaves = rule.leaves[:leaf] + rule.leaves[leaf + 1 :]
    replace_rules(monkeypatch, {rule.compvis: rule._replace(leaves=leaves)})
    for check in (PAIRS, COMPVIS, DIFFUSERS):
        with pytest.raises(AssertionError):
            check(MIXED)


@pytest.mark.parametrize("leaf", range(len(ATTENTION)))
def test_planted_missing_attention_leaf_is_found(
    monkeypatch: pytest.MonkeyPatch, leaf: int
) -> None:
    rule = RULE["encoder.down.{i}.attn.{j}"]
    leaves = rule.leaves[:leaf] + rule.leaves[leaf + 1 :]
    replace_rules(monkeypatch, {rule.compvis: rule._replace(leaves=leaves)})
    for check in (PAIRS, COMPVIS, DIFFUSERS):
        with pytest.raises(AssertionError):
            check(MIXED)


def test_planted_missing_squeeze_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULE["encoder.mid.attn_1"]
    leaves = tuple(leaf._replace(is_squeezed=False) for leaf in rule.leaves)
    replace_rules(monkeypatch, {rule.compvis: rule._replace(leaves=leaves)})
    PAIRS(MIXED)  # the names are right
    COMPVIS(MIXED)
    with pytest.raises(AssertionError):
        DIFFUSERS(MIXED)


@pytest.mark.parametrize("rule", [rule.compvis for rule in RULES])
def test_planted_missing_rule_is_found(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    monkeypatch.setattr(keys, "RULES", tuple(r for r in RULES if r.compvis != rule))
    with pytest.raises(AssertionError):
        COMPVIS(MIXED)


def test_planted_duplicate_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULE["encoder.mid.block_1"]
    replace_rules(
        monkeypatch, {rule.compvis: rule._replace(diffusers="encoder.mid_block.resnets.1")}
    )
    with pytest.raises(ValueError, match="one to one"):
        check_table_is_one_to_one(MIXED)
