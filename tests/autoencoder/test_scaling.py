from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from tests.autoencoder.topologies import KL_F4, PUBLISHED, SD1, SD3, X4
from vaeconv.autoencoder.config import ProvidedConfig, Scaling
from vaeconv.autoencoder.families import ALIASES, BY_NAME, FAMILIES, fitting_families
from vaeconv.autoencoder.scaling import Decision, ScalingOptions, decide_scaling
from vaeconv.autoencoder.topology import Topology
from vaeconv.errors import AmbiguousInputError, ConfigMismatchError, UsageError

SDXL_KEY = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
SD1_KEY = "cond_stage_model.transformer.text_model.embeddings.position_ids"
STORED = Scaling(0.25, source="the tensor scale_factor")
GIVEN = ProvidedConfig("c.json", sample_size=77, scaling=Scaling(0.75, source="c.json"))


def decide(
    topology: Topology = SD1,
    *,
    factor: float | None = None,
    shift: float | None = None,
    family: str | None = None,
    given: ProvidedConfig | None = None,
    stored: Scaling | None = None,
    siblings: Iterable[str] = (),
) -> Decision:
    options = ScalingOptions(factor, shift, family)
    return decide_scaling(topology, options, given, lambda: stored, siblings, where="m.ckpt")


# layouts.md 3.1, and the vae/config.json of the models on the Hub.
@pytest.mark.parametrize(
    ("topology", "family", "factor", "shift"),
    [
        (SD1, "sd1", 0.18215, None),
        (SD1, "sd2", 0.18215, None),
        (SD1, "kl-f8", 0.18215, None),
        (SD1, "sdxl", 0.13025, None),
        (SD1, "playground-v2.5", 0.5, None),
        (X4, "x4-upscaler", 0.08333, None),
        (SD3, "sd3", 1.5305, 0.0609),
        (SD3, "sd3.5", 1.5305, 0.0609),
        (SD3, "flux1", 0.3611, 0.1159),
        (SD3, "flux", 0.3611, 0.1159),
    ],
)
def test_families_have_their_published_factors(
    topology: Topology, family: str, factor: float, shift: float | None
) -> None:
    found = decide(topology, family=family)
    assert (found.scaling.scaling_factor, found.scaling.shift_factor) == (factor, shift)
    assert found.warning is None
    assert f"--family {ALIASES.get(family, family)}" in found.scaling.source
    assert found.family is BY_NAME[ALIASES.get(family, family)]
    assert found.sample_size == found.family.sample_size
    has_statistics = family.startswith("playground")
    assert (found.scaling.latents_mean is not None) is has_statistics
    assert (found.scaling.latents_std is not None) is has_statistics


# --- the order: option, --family, config, stored, siblings, shapes ---


def test_each_tier_wins_over_the_next() -> None:
    tiers: list[tuple[dict[str, object], float]] = [
        ({"factor": 0.5}, 0.5),
        ({"family": "sdxl"}, 0.13025),
        ({"given": GIVEN}, 0.75),
        ({"stored": STORED}, 0.25),
        ({"siblings": [SDXL_KEY]}, 0.13025),
        ({}, 0.18215),
    ]
    for index, (_, expected) in enumerate(tiers):
        told = {name: value for tier, _ in tiers[index:] for name, value in tier.items()}
        found = decide(**told)  # type: ignore[arg-type]
        assert found.scaling.scaling_factor == expected


def test_nothing_is_read_from_the_file_where_a_config_or_family_decides() -> None:
    def read_stored() -> Scaling | None:
        raise AssertionError("read")

    for options, given in ((ScalingOptions(family="sd1"), None), (ScalingOptions(), GIVEN)):
        decide_scaling(SD1, options, given, read_stored, (), where="x")


def test_sources_are_named() -> None:
    assert decide(factor=0.5).scaling.source == "--scaling-factor"
    assert decide(family="sdxl").scaling.source == "--family sdxl"
    assert decide(given=GIVEN).scaling.source == "c.json"
    assert decide(stored=STORED).scaling.source == "the tensor scale_factor"
    assert SDXL_KEY in decide(siblings=[SDXL_KEY]).scaling.source
    assert decide().scaling.source == "assumed from the shapes"


def test_a_config_without_scaling_leaves_it_to_the_next_tier() -> None:
    silent = ProvidedConfig("train.yaml", sample_size=256)
    assert decide(given=silent, stored=STORED).scaling == STORED


def test_a_config_keeps_its_sample_size() -> None:
    assert decide(given=GIVEN).sample_size == 77


# --- options ---


def test_a_factor_takes_the_warning_away() -> None:
    assert decide().warning
    assert decide(factor=0.18215).warning is None


def test_a_shift_alone_keeps_the_warning_about_the_factor() -> None:
    found = decide(shift=0.1)
    assert found.scaling.shift_factor == 0.1
    assert found.scaling.scaling_factor == 0.18215
    assert found.warning
    assert "0.18215" in found.warning


def test_both_factors_need_no_family() -> None:
    found = decide(SD3, factor=2.0, shift=0.0)
    assert (found.scaling.scaling_factor, found.scaling.shift_factor) == (2.0, 0.0)
    assert found.warning is None


def test_a_factor_alone_is_not_enough_where_families_shift() -> None:
    with pytest.raises(AmbiguousInputError, match="shift_factor"):
        decide(SD3, factor=2.0)


def test_a_factor_changes_one_thing_of_a_family() -> None:
    found = decide(SD3, family="flux1", factor=2.0)
    assert (found.scaling.scaling_factor, found.scaling.shift_factor) == (2.0, 0.1159)
    assert found.family is BY_NAME["flux1"]


def test_a_factor_replaces_the_statistics_of_a_family() -> None:
    found = decide(family="playground-v2.5", factor=2.0).scaling
    assert found.latents_mean is found.latents_std is None


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_factors_that_cannot_scale_are_refused(factor: float) -> None:
    with pytest.raises(UsageError, match="scaling_factor"):
        decide(factor=factor)


@pytest.mark.parametrize("shift", [math.nan, -math.inf])
def test_shifts_that_are_no_numbers_are_refused(shift: float) -> None:
    with pytest.raises(UsageError, match="shift_factor"):
        decide(shift=shift)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"playground-v2\.5") as caught:
        decide(family="sd9")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("family", BY_NAME)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_family_of_other_shapes_is_refused(name: str, family: str) -> None:
    fits = {
        "sd1": {"sd1", "sdxl", "playground-v2.5"},
        "x4-upscaler": {"x4-upscaler"},
        "sd3": {"sd3", "flux1"},
    }
    topology = PUBLISHED[name][0]
    if family in fits.get(name, ()):
        assert decide(topology, family=family).family is BY_NAME[family]
        return
    with pytest.raises(ConfigMismatchError, match=f"family {family}") as caught:
        decide(topology, family=family)
    assert caught.value.exit_code == 3


# --- siblings ---


@pytest.mark.parametrize(
    ("topology", "key", "family"),
    [
        (SD1, SD1_KEY, "sd1"),
        (SD1, "cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "sd1"),
        (SD1, "model.diffusion_model.input_blocks.11.0.in_layers.0.weight", "sd1"),
        (SD1, SDXL_KEY, "sdxl"),
        (SD1, "model.diffusion_model.label_emb.0.0.weight", "sdxl"),
        (SD1, "edm_mean", "playground-v2.5"),
        (X4, "model.diffusion_model.input_blocks.10.0.skip_connection.bias", "x4-upscaler"),
        (SD3, "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "sd3"),
        (SD3, "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "flux1"),
    ],
)
def test_keys_beside_it_give_the_family_away(topology: Topology, key: str, family: str) -> None:
    found = decide(topology, siblings=["betas", key, "z"])
    assert found.family is BY_NAME[family]
    assert found.scaling.scaling_factor == BY_NAME[family].scaling_factor
    assert found.sample_size == BY_NAME[family].sample_size
    assert found.warning is None


def test_keys_of_a_family_of_other_shapes_do_not_count() -> None:
    found = decide(SD1, siblings=["model.diffusion_model.joint_blocks.0.x"])
    assert found.scaling.source == "assumed from the shapes"


def test_keys_of_two_families_decide_nothing() -> None:
    assert decide(siblings=[SD1_KEY, SDXL_KEY]).scaling.source == "assumed from the shapes"


def test_playground_is_told_from_the_sdxl_that_it_is_built_on() -> None:
    stored = Scaling(0.5, None, (1.0,) * 4, (2.0,) * 4, "the tensors edm_mean and edm_std")
    found = decide(siblings=[SDXL_KEY, "edm_mean", "edm_std"], stored=stored)
    assert found.scaling == stored
    assert found.family is BY_NAME["playground-v2.5"]
    assert found.sample_size == 1024


def test_stored_factor_keeps_the_family_that_siblings_tell() -> None:
    found = decide(stored=STORED, siblings=[SDXL_KEY])
    assert found.scaling == STORED
    assert found.family is BY_NAME["sdxl"]


# --- shapes alone ---


def test_sd1_is_assumed_with_a_warning_that_names_the_others() -> None:
    found = decide()
    assert found.family is BY_NAME["sd1"]
    assert found.warning
    for words in ("0.18215", "0.13025", "--family"):
        assert words in found.warning


def test_shapes_of_sd3_and_flux_are_refused() -> None:
    with pytest.raises(AmbiguousInputError, match="family sd3 or family flux1") as caught:
        decide(SD3)
    assert caught.value.exit_code == 3
    with pytest.raises(AmbiguousInputError):
        decide(SD3, shift=0.1)


def test_shapes_of_one_rare_family_are_not_taken_for_it() -> None:
    found = decide(X4)
    assert found.scaling.scaling_factor == 1.0
    assert found.warning
    assert "--family x4-upscaler" in found.warning
    assert "0.08333" in found.warning


@pytest.mark.parametrize("name", ["kl-f4", "kl-f16", "kl-f32", "sgm-8chn", "sgm-attnfree"])
def test_shapes_of_no_family_get_one_with_a_warning(name: str) -> None:
    found = decide(PUBLISHED[name][0])
    assert found.scaling.scaling_factor == 1.0
    assert found.family is None
    assert found.warning
    assert "--scaling-factor" in found.warning


def test_families_differ_in_what_they_write() -> None:
    assert len({f.name for f in FAMILIES}) == len(FAMILIES)
    for topology in (SD1, SD3):
        fitting = fitting_families(topology)
        assert len({(f.scaling_factor, f.shift_factor) for f in fitting}) == len(fitting) > 1
    assert fitting_families(KL_F4) == ()
