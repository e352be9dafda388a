from __future__ import annotations

import inspect
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autoencoder.topologies import (
    PUBLISHED,
    SD1,
    build_diffusers,
    diffusers_config,
    make_topology,
    topologies,
)
from vaeconv.autoencoder.config import (
    ProvidedConfig,
    Scaling,
    build_config,
    dump_config,
)
from vaeconv.autoencoder.provided_config import parse_config
from vaeconv.autoencoder.topology import Topology
from vaeconv.errors import (
    ConfigMismatchError,
    InputError,
    MalformedCheckpointError,
    UnsupportedModelError,
)

# The three spellings of training configs, abridged from CompVis latent-diffusion's kl-f16,
# Stability's sd_xl_base and sgm's imagenet-kl_f8_8chn; comments and numbers kept as written.
KL_F16 = """
model:
  base_learning_rate: 4.5e-6
  target: ldm.models.autoencoder.AutoencoderKL
  params:
    monitor: "val/rec_loss"
    embed_dim: 16
    lossconfig:
      target: ldm.modules.losses.LPIPSWithDiscriminator
      params: {disc_start: 50001, kl_weight: 0.000001, disc_weight: 0.5}
    ddconfig:
      double_z: True
      z_channels: 16
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [ 1,1,2,2,4]  # num_down = len(ch_mult)-1
      num_res_blocks: 2
      attn_resolutions: [16]
      dropout: 0.0
"""
SDXL = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          attn_type: vanilla-xformers
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""
SGM = """
model:
  base_learning_rate: 4.5e-6
  target: sgm.models.autoencoder.AutoencodingEngine
  params:
    input_key: jpg
    monitor: val/rec_loss
    regularizer_config:
      target: sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer
    encoder_config:
      target: sgm.modules.diffusionmodules.model.Encoder
      params:
        attn_type: {attn_type}
        double_z: true
        z_channels: {z}
        resolution: 256
        in_channels: 3
        out_ch: 3
        ch: 128
        ch_mult: {mult}
        num_res_blocks: {blocks}
        attn_resolutions: []
        dropout: 0.0
    decoder_config:
      target: sgm.modules.diffusionmodules.model.Decoder
      params: ${{model.params.encoder_config.params}}
"""
SGM_8CHN = SGM.format(attn_type="vanilla-xformers", z=8, mult="[1, 2, 4, 4]", blocks=2)
SGM_ATTNFREE = SGM.format(attn_type="none", z=4, mult="[1, 2, 4]", blocks=4)


def scalings() -> st.SearchStrategy[Scaling]:
    numbers = st.floats(-1e3, 1e3, allow_nan=False)
    values = st.none() | st.lists(numbers, min_size=1, max_size=4).map(tuple)
    return st.builds(Scaling, st.floats(1e-3, 1e3), st.none() | numbers, values, values)


@given(topologies(), scalings())
@settings(max_examples=100, deadline=None)
def test_config_leads_back_to_topology_and_scaling(topology: Topology, scaling: Scaling) -> None:
    written = dump_config(build_config(topology, scaling, sample_size=256))
    given_config = parse_config(written.decode(), "config.json")
    given_config.check(topology)
    assert Topology(*(getattr(given_config, name) for name in topology._fields)) == topology
    assert given_config.scaling == scaling._replace(source="config.json")
    assert given_config.sample_size == 256
    again = build_config(topology, scaling, sample_size=1, provided=given_config)
    assert dump_config(again) == written


@given(topologies(max_levels=3), scalings())
@settings(max_examples=10, deadline=None)
def test_bytes_are_those_that_diffusers_writes(topology: Topology, scaling: Scaling) -> None:
    config = build_config(topology, scaling, sample_size=256)
    assert build_diffusers(config).to_json_string().encode() == dump_config(config)


def test_every_field_of_the_constructor_is_written() -> None:
    from diffusers import AutoencoderKL

    fields = set(inspect.signature(AutoencoderKL.__init__).parameters) - {"self"}
    assert diffusers_config(SD1).keys() == fields | {"_class_name", "_diffusers_version"}


def test_version_is_that_of_the_diffusers_that_it_is_tested_with() -> None:
    import diffusers

    assert diffusers_config(SD1)["_diffusers_version"] == diffusers.__version__


@pytest.mark.parametrize("name", PUBLISHED)
def test_topology_changes_contradict_the_config(name: str) -> None:
    topology = PUBLISHED[name][0]
    given_config = parse_config(dump_config(diffusers_config(topology)).decode(), "c.json")
    given_config.check(topology)
    changes: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "channels": (128,),
        "layers_per_block": 3,
        "latent_channels": 5,
        "encoder_attention": (True,) * topology.levels,
        "decoder_attention": (True,) * topology.levels,
        "mid_attention": not topology.mid_attention,
        "quant_conv": not topology.quant_conv,
        "post_quant_conv": not topology.post_quant_conv,
    }
    assert changes.keys() == set(topology._fields)
    for field, value in changes.items():
        with pytest.raises(ConfigMismatchError, match=f"the config says {field}") as caught:
            given_config.check(topology._replace(**{field: value}))
        assert caught.value.where == "c.json"
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "topology", "factor"),
    [
        (KL_F16, PUBLISHED["kl-f16"][0], None),
        (SDXL, SD1, 0.13025),
        (SGM_8CHN, PUBLISHED["sgm-8chn"][0], None),
        (SGM_ATTNFREE, PUBLISHED["sgm-attnfree"][0], None),
    ],
    ids=["ddconfig", "first_stage_config", "encoder_config", "attention-free"],
)
def test_training_configs_agree_with_their_tensors(
    text: str, topology: Topology, factor: float | None
) -> None:
    found = parse_config(text, "train.yaml")
    found.check(topology)
    assert found.channels == topology.channels
    halves = (found.encoder_attention, found.decoder_attention)
    assert halves == (topology.encoder_attention, topology.decoder_attention) or (
        halves == (None, None) and found.level_attention == topology.level_attention
    )
    assert found.mid_attention is topology.mid_attention
    assert found.layers_per_block == topology.layers_per_block
    assert found.latent_channels == topology.latent_channels
    assert found.sample_size == 256
    assert (found.scaling and found.scaling.scaling_factor) == factor
    for wrong in (
        topology._replace(layers_per_block=9),
        topology._replace(encoder_attention=(True, *topology.encoder_attention[1:])),
        topology._replace(mid_attention=not topology.mid_attention),
    ):
        with pytest.raises(ConfigMismatchError):
            found.check(wrong)


def test_a_half_may_have_attention_alone() -> None:
    topology = PUBLISHED["kl-f16"][0]
    encoder_only = topology._replace(decoder_attention=(False,) * topology.levels)
    written = build_config(encoder_only, Scaling(0.2), sample_size=256)
    assert written["down_block_types"][-1] == "AttnDownEncoderBlock2D"
    assert set(written["up_block_types"]) == {"UpDecoderBlock2D"}
    found = parse_config(dump_config(written).decode(), "c.json")
    found.check(encoder_only)
    with pytest.raises(ConfigMismatchError, match="decoder_attention"):
        found.check(topology)


def test_a_ddconfig_has_one_attention_for_both_halves_and_the_tensors_decide() -> None:
    topology = PUBLISHED["kl-f16"][0]
    encoder_only = topology._replace(decoder_attention=(False,) * topology.levels)
    found = parse_config(KL_F16, "train.yaml")
    found.check(encoder_only)
    (note,) = found.notes(encoder_only)
    assert "the encoder has it on level 4 and the decoder has none" in note.text
    assert found.notes(topology) == []
    nowhere = encoder_only._replace(encoder_attention=(False,) * topology.levels)
    with pytest.raises(ConfigMismatchError, match="level_attention"):
        found.check(nowhere)


def test_sgm_states_the_attention_of_each_half() -> None:
    decoder = (
        "params: {resolution: 256, ch_mult: [1, 2, 4, 4], attn_resolutions: [32], z_channels: 8}"
    )
    text = SGM_8CHN.replace("params: ${model.params.encoder_config.params}", decoder)
    found = parse_config(text, "x")
    assert (found.encoder_attention, found.decoder_attention) == (
        (False,) * 4, (False, False, False, True),
    )  # fmt: skip


def test_quant_convs_are_expected_where_the_training_config_has_an_embed_dim() -> None:
    assert parse_config(KL_F16, "x").quant_conv is True
    assert parse_config(SGM_8CHN, "x").quant_conv is None


def test_early_diffusers_configs_are_silent_where_fields_are_missing() -> None:
    early = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    found = parse_config(json.dumps(early), "config.json")
    found.check(SD1)
    assert found.scaling is not None
    assert found.scaling.scaling_factor == 0.18215  # the class default of that release
    assert "class default" in found.scaling.source
    assert found.quant_conv is found.mid_attention is found.force_upcast is None
    written = build_config(SD1, found.scaling, sample_size=1, provided=found)
    assert written["force_upcast"] is True
    assert written["use_quant_conv"] is True
    assert written["sample_size"] == 256


def test_what_shapes_do_not_tell_is_taken_over() -> None:
    topology = make_topology((1, 2), 4, ch=24)
    with pytest.raises(UnsupportedModelError, match="32 groups"):
        build_config(topology, Scaling(1.0), sample_size=64)
    told = ProvidedConfig("c", norm_num_groups=8, act_fn="relu", force_upcast=False, sample_size=96)
    config = build_config(topology, Scaling(1.0), sample_size=64, provided=told)
    assert config["norm_num_groups"] == 8
    assert config["act_fn"] == "relu"
    assert config["force_upcast"] is False
    assert config["sample_size"] == 96


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[1]", MalformedCheckpointError, "no fields"),
        ("", MalformedCheckpointError, "no fields"),
        ("{a: [}", MalformedCheckpointError, "neither JSON nor YAML"),
        ("model: {params: {x: 1}}", MalformedCheckpointError, "ddconfig"),
        ("model: 3", MalformedCheckpointError, "not a config"),
        ("other: 3", MalformedCheckpointError, "not a config"),
        ('{"_class_name": "VQModel"}', UnsupportedModelError, "VQModel"),
        (
            '{"block_out_channels": [64], "down_block_types": ["MidBlock"]}',
            UnsupportedModelError,
            "MidBlock",
        ),
        ('{"block_out_channels": [64], "norm_num_groups": 0}', MalformedCheckpointError, "0"),
        ('{"block_out_channels": [64], "scaling_factor": NaN}', MalformedCheckpointError, "finite"),
        ('{"block_out_channels": "wide"}', MalformedCheckpointError, "not a config"),
        ('{"block_out_channels": 64}', MalformedCheckpointError, "not a config"),
        ('{"block_out_channels": [Infinity]}', MalformedCheckpointError, "not a config"),
        ('{"block_out_channels": [1e999]}', MalformedCheckpointError, "not a config"),
        (KL_F16.replace("ch: 128", "ch: .inf"), MalformedCheckpointError, "not a config"),
        (KL_F16.replace("double_z: True", "double_z: False"), UnsupportedModelError, "double_z"),
        (KL_F16 + "      attn_type: linear\n", UnsupportedModelError, "linear attention"),
        (KL_F16 + "      tanh_out: True\n", UnsupportedModelError, "tanh_out"),
        ("!!python/object/apply:os.system [id]", MalformedCheckpointError, "neither"),
    ],
)
def test_bad_configs_are_refused(text: str, error: type[InputError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        parse_config(text, "c.yaml")
    assert "c.yaml" in str(caught.value)
    assert caught.value.exit_code == 3


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            "model params ddconfig first_stage_config encoder_config ch ch_mult z_channels "
            "resolution attn_resolutions scale_factor embed_dim _class_name block_out_channels "
            "down_block_types scaling_factor norm_num_groups sample_size latents_mean".split()
        ),
        inner,
        max_size=6,
    ),
    max_leaves=20,
))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_document_is_read_or_refused(document: Any) -> None:
    try:
        parse_config(json.dumps(document), "c.json")
    except InputError:
        pass


@pytest.mark.parametrize("step", ["[*a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}], k{0}: 1}}"])
def test_yaml_whose_aliases_stand_for_too_much(step: str) -> None:
    first = "&a0 [1]" if step.startswith("[") else "&a0 {b: 1}"
    lines = [f"x0: {first}"]
    lines += [f"x{i + 1}: &a{i + 1} {step.format(i)}" for i in range(40)]
    with pytest.raises(MalformedCheckpointError, match="aliases expand to too much"):
        parse_config("\n".join([*lines, "norm_num_groups: *a40", "block_out_channels: [4]"]), "c")
    with pytest.raises(MalformedCheckpointError, match="aliases expand to too much"):
        parse_config("block_out_channels: &a [*a]", "c")


def test_yaml_with_aliases_as_people_write_them() -> None:
    found = parse_config(
        "ch: &channels [64, 128]\nblock_out_channels: *channels\nlatent_channels: 4\n", "c.yaml"
    )
    assert found.channels == (64, 128)


HUGE = "0x1" + "0" * 5000
MANY = [1] * 300_000
COSTLY = {
    "levels": json.dumps({"model": {"params": {"ddconfig": {"ch": 1, "ch_mult": MANY,
                                                            "resolution": 1}}}}),
    "a list of widths": "model: {params: {ddconfig: {ch: [1, 2], ch_mult: [200000000]}}}",
    "a text as width": "model: {params: {ddconfig: {ch: ab, ch_mult: [200000000]}}}",
    "a text of levels": f"model: {{params: {{ddconfig: {{ch: 1, ch_mult: {'1' * 99999}}}}}}}",
    "blocks": json.dumps({"block_out_channels": MANY}),
    "kinds of blocks": json.dumps({"down_block_types": ["DownEncoderBlock2D"] * 300_000}),
    **{
        name: f"{name}: {HUGE}"
        for name in ("in_channels", "sample_size", "layers_per_block", "scaling_factor")
    },
    "a huge number in a list": f"block_out_channels: [{HUGE}]",
    "a huge width": f"model: {{params: {{ddconfig: {{ch: {HUGE}, ch_mult: [1]}}}}}}",
    "a huge side": f"model: {{params: {{ddconfig: {{ch: 1, ch_mult: [1], resolution: {HUGE}}}}}}}",
}  # fmt: skip


@pytest.mark.parametrize("text", COSTLY.values(), ids=COSTLY)
def test_a_config_costs_no_more_than_its_size(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedCheckpointError) as caught:
            parse_config(text, "config.json")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
