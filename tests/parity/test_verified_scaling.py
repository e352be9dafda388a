"""Scaling that a side does not state: what ``convert`` would decide for it, or unproven."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.compvis import DDConfig
from tests.support.pairs import change_folder, failure_of, run
from tests.support.samples import TINY, save_ckpt, weights_of
from vaeconv import ConvertOptions, ScalingOptions, VerifyOptions, convert, verify
from vaeconv.errors import AmbiguousInputError, ConfigMismatchError

FLUX = DDConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=16, quant=False)
KL = DDConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
Pair = Callable[..., tuple[Path, Path]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A checkpoint that states no scaling, and a folder made of it whose config states one."""

    def make(shapes: DDConfig, **config: Any) -> tuple[Path, Path]:
        source = save_ckpt(tmp_path / "model.ckpt", weights_of(shapes))
        known = ScalingOptions(scaling_factor=0.5, shift_factor=0.25)
        made, out = tmp_path / "made", tmp_path / "out"
        for folder in (made, out):
            shutil.rmtree(folder, ignore_errors=True)
        convert(source, made, ConvertOptions(scaling=known))
        change = {"scaling_factor": 0.18215, "shift_factor": None, **config}
        return source, change_folder(made, out, config=lambda found: {**found, **change})

    return make


def check(one: Path, other: Path, *, is_drop_in: bool = False, **options: Any) -> Any:
    how = VerifyOptions(weights_only=True, **options)
    if is_drop_in:
        return verify(one, None, how, drop_in_for=other)
    return verify(one, other, how)


SDXL = {"scaling_factor": 0.13025}
FLUX1 = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


@pytest.mark.parametrize("is_drop_in", [False, True], ids=["same", "drop-in"])
@pytest.mark.parametrize(
    "config",
    [
        SDXL,
        {"shift_factor": 0.1},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        {"scaling_factor": 0.18216},
    ],
    ids=["factor", "shift", "statistics", "last digit"],
)
def test_a_config_that_says_something_else_than_convert_would(config, is_drop_in, pair):
    source, out = pair(KL, **config)
    said = failure_of(check(source, out, is_drop_in=is_drop_in))
    assert "assumed from the shapes" in said and "assumed for A, whose files state none" in said
    assert "pass family or scaling_factor" in said


def test_a_config_that_says_what_convert_would(pair):
    result = check(*pair(KL))
    assert result.ok and result.unproven == [] and result.notes == ()
    assert result.models[0].scaling.source == "assumed from the shapes"


@pytest.mark.parametrize(
    "options",
    [ScalingOptions(family="sdxl"), ScalingOptions(scaling_factor=0.13025)],
    ids=["family", "factor"],
)
def test_options_state_it(options, pair):
    source, out = pair(KL, **SDXL)
    for one, other in ((source, out), (out, source)):
        assert check(one, other, scaling=options).ok


@pytest.mark.parametrize(
    "options", [ScalingOptions(family="sd1"), ScalingOptions(scaling_factor=0.2)]
)
def test_options_that_a_config_contradicts(options, pair):
    """Options do not replace the config of a folder, or it would not be checked."""
    source, out = pair(KL, **SDXL)
    assert "0.13025 in B (config.json)" in failure_of(check(source, out, scaling=options))
    said = failure_of(check(out, out, scaling=options))
    assert "scaling factor differs: 0.13025 in A and B (config.json)" in said
    assert "in the options" in said


def test_a_config_may_be_given_for_a_file(pair, tmp_path):
    source, out = pair(KL, **SDXL)
    text = {"model": {"params": {"scale_factor": 0.13025, "ddconfig": {
        "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4,
        "in_channels": 3, "out_ch": 3, "double_z": True}}}}  # fmt: skip
    (tmp_path / "training.yaml").write_text(json.dumps(text))
    assert check(source, out, config=tmp_path / "training.yaml").ok


def test_what_convert_would_not_know_is_unproven(pair):
    for shapes, said in ((FLUX, "--family sd3 or --family flux1"), (TINY, "--scaling-factor")):
        source, out = pair(shapes, **FLUX1)
        for one, other, label in ((source, out, "A"), (out, source, "B")):
            result = check(one, other)
            assert result.ok and result.notes == ()
            (reason,) = result.unproven
            assert f"the scaling of {label}" in reason and said in reason
            assert result.same.verdict.endswith(f"but not proved: {reason}")


def test_stated_it_is_proved(pair):
    source, out = pair(FLUX, **FLUX1)
    assert check(source, out, scaling=ScalingOptions(family="flux1")).unproven == []
    assert "0.3611 in B" in failure_of(check(source, out, scaling=ScalingOptions(family="sd3")))
    with pytest.raises(AmbiguousInputError, match="shift_factor"):
        check(source, out, scaling=ScalingOptions(scaling_factor=0.3611))
    with pytest.raises(ConfigMismatchError, match="family sd1"):
        check(source, out, scaling=ScalingOptions(family="sd1"))


def test_every_report_says_on_top_what_is_unproven(pair, tmp_path, monkeypatch):
    source, out = pair(FLUX, **FLUX1)
    summary, files = tmp_path / "summary.md", [tmp_path / f"report.{x}" for x in ("html", "xml")]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    args = ("verify", "--weights-only", source, out)
    done = run(*args, "--html", files[0], "--junit", files[1])
    assert done.exit_code == 0
    verdict, *lines = done.stdout.splitlines()
    assert verdict == "passed, but not everything was proved: A and B are the same autoencoder " + (
        "by their weights; nothing was decoded"
    )
    assert any(line.startswith("  not proved: the scaling of A") for line in lines)
    assert "prove" not in done.stderr
    assert summary.read_text().startswith(
        "### vaeconv verify: passed, but not everything was proved\n"
    )
    page = files[0].read_text()
    assert "<h1>vaeconv verify: passed, but not everything was proved</h1>" in page
    suite = ElementTree.parse(files[1]).getroot()[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
    (skipped,) = suite.iter("skipped")
    assert "the scaling of A" in (skipped.get("message") or "")
    document = json.loads(run(*args, "--json").stdout)
    assert document["unproven"] == document["same"]["unproven"] != []
    assert document["sides"][0]["scaling"] is None
    done = run(*args, "--family", "flux1", "--json")
    document = json.loads(done.stdout)
    assert document["unproven"] == [] and done.exit_code == 0
    assert document["sides"][0]["scaling"]["from"] == "--family flux1"
