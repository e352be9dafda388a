from __future__ import annotations

from collections.abc import Mapping

from tests.autoencoder.topologies import SD1
from tests.support.litema import ema_name
from vaeconv.autoencoder.ema import EmaKeys, detect_ema
from vaeconv.autoencoder.keys import expand_rules

NAMES = [pair.compvis for pair in expand_rules(SD1)]
COUNTERS = dict.fromkeys(("model_ema.decay", "model_ema.num_updates"))


def detected(keys: Mapping[str, None], prefix: str = "") -> EmaKeys:
    """Survey as the accounting would have it."""
    averaged = [key for key in keys if "model_ema." in key]
    return detect_ema({name: name for name in NAMES}, keys, prefix, averaged)


def test_average_of_everything_is_found() -> None:
    keys = dict.fromkeys([*NAMES, *map(ema_name, NAMES)]) | COUNTERS
    found = detected(keys)
    assert found.shadows == {name: ema_name(name) for name in NAMES}
    assert found.keys == 250
    assert not found.covers_unet


def test_average_of_the_decoder_is_found() -> None:
    decoder = [n for n in NAMES if n.startswith("decoder.")]
    found = detected(dict.fromkeys([*NAMES, *map(ema_name, decoder)]) | COUNTERS)
    assert len(found.shadows) == 138
    assert len(NAMES) - len(found.shadows) == 110
    assert set(found.shadows) == set(decoder)


def test_counters_alone_are_no_average() -> None:
    found = detected(dict.fromkeys(NAMES) | COUNTERS)
    assert not found.shadows
    assert found.keys == 2


def test_average_of_the_loss_is_not_the_autoencoders() -> None:
    keys = COUNTERS | dict.fromkeys(["model_ema.losslogvar"])
    assert not detected(keys).shadows


def test_average_of_a_unet_is_told_apart() -> None:
    keys = dict.fromkeys([f"first_stage_model.{n}" for n in NAMES]) | COUNTERS
    keys["model_ema.diffusion_modelinput_blocks00weight"] = None
    found = detected(keys, "first_stage_model.")
    assert found.covers_unet
    assert not found.shadows


def test_average_nested_under_the_prefix_is_found() -> None:
    for key in (
        "first_stage_model." + ema_name(NAMES[0]),
        ema_name("first_stage_model." + NAMES[0]),
    ):
        found = detected({key: None}, "first_stage_model.")
        assert found.shadows == {NAMES[0]: key}
        assert found.keys == 1
