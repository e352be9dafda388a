"""Protocols: presets, knobs, and what they say of themselves."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from vaeconv.errors import UsageError
from vaeconv.evaluation.protocol import (
    DTYPES,
    FILTERS,
    POSTERIORS,
    PRESETS,
    RESIZES,
    Protocol,
    preset,
)

# Every knob, with a setting that is not the card's.
CHANGES: dict[str, Any] = {
    "size": 512,
    "resize": "squash",
    "filter": "lanczos",
    "posterior": "sample",
    "seed": 3,
    "rounds": False,
    "dtype": "bf16",
}


def test_the_protocol_of_the_card() -> None:
    assert preset("card-256") == Protocol()
    assert asdict(preset("card-256")) == {
        "name": "card-256", "size": 256, "resize": "shorter-side", "filter": "bicubic",
        "posterior": "mode", "seed": 0, "rounds": True, "dtype": "fp32",
    }  # fmt: skip
    assert preset("card-256").describe() == (
        "shorter side to 256, bicubic, centre crop; posterior mode; clamped, rounded to uint8; fp32"
    )


def test_presets_bear_their_names_and_differ() -> None:
    assert all(preset(name).name == name for name in PRESETS)
    assert len({one.describe() for one in PRESETS.values()}) == len(PRESETS) >= 3
    assert preset("card-256-squash").resize == "squash"
    assert preset("card-256-sample").posterior == "sample"
    for one in PRESETS.values():  # all of their settings are ones that a knob has
        assert one.changed() == one


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"protocol 'card-512' is not known; .*card-256,"):
        preset("card-512")


@pytest.mark.parametrize("knob", CHANGES)
def test_a_changed_knob_makes_it_a_custom_one(knob: str) -> None:
    base = preset("card-256")
    found = base.changed(**{knob: CHANGES[knob]})
    assert found == replace(base, name="custom", **{knob: CHANGES[knob]})
    assert base == Protocol()


@pytest.mark.parametrize("name", PRESETS)
def test_knobs_that_change_nothing_leave_the_name(name: str) -> None:
    base = preset(name)
    assert base.changed() == base
    settings = {knob: getattr(base, knob) for knob in CHANGES}
    assert base.changed(**settings) == base
    assert base.changed(**dict.fromkeys(CHANGES)) == base  # None: not given


@pytest.mark.parametrize(
    ("knob", "known"),
    [("resize", RESIZES), ("filter", FILTERS), ("posterior", POSTERIORS), ("dtype", DTYPES)],
)
def test_a_knob_has_its_settings_and_no_others(knob: str, known: Any) -> None:
    for setting in known:
        assert getattr(preset("card-256").changed(**{knob: setting}), knob) == setting
    for wrong in ("", "no-such-setting", next(iter(known)).upper()):
        with pytest.raises(UsageError, match=f"{knob} '{wrong}' is not known") as caught:
            preset("card-256").changed(**{knob: wrong})
        assert all(setting in str(caught.value) for setting in known)
        assert caught.value.exit_code == 2


def test_whatever_changes_a_metric_changes_the_description() -> None:
    """Tables are told apart by it."""
    base = Protocol()
    told = {base.describe()}
    for knob, value in CHANGES.items():
        if knob != "seed":
            told.add(base.changed(**{knob: value}).describe())
    told |= {base.changed(posterior="sample", seed=seed).describe() for seed in (1, 2)}
    for resize in RESIZES:
        told |= {base.changed(resize=resize, size=size).describe() for size in (128, 256)}
    for name in FILTERS:
        told |= {base.changed(resize=resize, filter=name).describe() for resize in RESIZES[:2]}
    assert len(told) == 1 + 6 + 2 + 4 + 9  # squash at 256 and bicubic are there before
    # A seed without samples changes nothing, and neither does a filter without resizing.
    assert base.changed(seed=3).describe() == base.describe()
    cropped = base.changed(resize="none")
    assert cropped.changed(filter="box").describe() == cropped.describe()


def test_words() -> None:
    wide = Protocol(size=512, resize="squash", filter="lanczos", posterior="sample", seed=7,
                    rounds=False, dtype="fp16")  # fmt: skip
    assert wide.describe() == (
        "to 512x512, lanczos; posterior sample, seed 7; clamped, not rounded; fp16"
    )
    assert Protocol(resize="none").describe().startswith("centre crop of 256x256; posterior mode;")
