"""Options from Python and from files: wrong ones are wrong usage, at once."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.errors import UsageError
from vaeconv.evaluation.compare import CompareOptions
from vaeconv.evaluation.evaluate import EvalOptions
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.protocol import Protocol, preset
from vaeconv.models.open_model import ModelOptions
from vaeconv.parity.compare_outputs import Limits
from vaeconv.parity.encode import encode_images
from vaeconv.parity.options import VerifyOptions
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.release.config import (
    CompareTable,
    EvalTable,
    OutputTable,
    PushTable,
    ReleaseConfig,
    SourceTable,
    VerifyTable,
    read_release,
)
from vaeconv.publish.release.release import release
from vaeconv.training.options import FinetuneOptions
from vaeconv.weights.options import ConvertOptions, CopyOptions, InspectOptions, Part, PruneOptions

TABLES = [OutputTable, VerifyTable, EvalTable, CompareTable, PushTable]
KINDS: list[type] = [
    ConvertOptions, PruneOptions, InspectOptions, VerifyOptions, EvalOptions, CompareOptions,
    PushOptions, CardMeta, ScalingOptions, CopyOptions, ModelOptions, Limits, Protocol,
    FinetuneOptions, *TABLES,
]  # fmt: skip
NEEDED: dict[type, dict[str, Any]] = {FinetuneOptions: {"steps": 1}}  # what has no default
WRONG: list[tuple[type, dict[str, Any], str]] = [
    (ConvertOptions, {"dtype": "float16"}, "dtype 'float16' is not known; did you mean fp16?"),
    (ConvertOptions, {"dtype": "torch.bfloat16"}, "did you mean bf16?"),
    (ConvertOptions, {"drop": "encoder.*"}, "drop is 'encoder.*'; it must be several"),
    (ConvertOptions, {"metadata": {"a": 1}}, "metadata['a'] is 1; it must be text"),
    (ConvertOptions, {"ema": "no"}, "ema is 'no'; it must be true or false"),
    (ScalingOptions, {"scaling_factor": -1.0}, "scaling_factor is -1.0; it must be above"),
    (ScalingOptions, {"family": "sdlx"}, "did you mean sdxl?"),
    (CopyOptions, {"clamp": 1}, "clamp is 1; it must be true or false"),
    (PruneOptions, {"dtype": "fp32 "}, "did you mean fp32?"),
    (PruneOptions, {"keep": frozenset({"vea"})}, "did you mean vae?"),
    (PruneOptions, {"max_shard_size": 0}, "max_shard_size is 0; it must be at least 1"),
    (PruneOptions, {"max_shard_size": True}, "it must be a whole number"),
    (InspectOptions, {"family": "sd9"}, "family 'sd9' is not known"),
    (VerifyOptions, {"dtype": "float16"}, "did you mean fp16?"),
    (VerifyOptions, {"dtype": "keep"}, "there are fp32, fp16, bf16"),
    (VerifyOptions, {"device": "gpu"}, "device 'gpu' is not a device; auto, cpu, cuda"),
    (VerifyOptions, {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    (VerifyOptions, {"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number"),
    (VerifyOptions, {"tile": -1}, "tile is -1; it must be at least 0"),
    (Limits, {"atol": math.nan}, "atol is nan; it must be a finite number"),
    (Limits, {"atol": -1e-3}, "atol is -0.001; it must be at least 0"),
    (VerifyOptions, {"limits": None}, "limits is None; it must be Limits"),
    (ModelOptions, {"variant": 16}, "variant is 16; it must be text"),
    (EvalOptions, {"metrics": ()}, "metrics are empty"),
    (EvalOptions, {"metrics": "psnr"}, "metrics is 'psnr'; it must be several"),
    (EvalOptions, {"metrics": ("pnsr",)}, "did you mean psnr?"),
    (EvalOptions, {"limit": 0}, "limit is 0; it must be at least 1"),
    (EvalOptions, {"workers": -1}, "workers is -1"),
    (Protocol, {"posterior": "mean"}, "posterior 'mean' is not known"),
    (Protocol, {"seed": 0.5}, "seed is 0.5"),
    (Protocol, {"size": math.inf}, "size is inf"),
    (CompareOptions, {"format": "jpeg"}, "format 'jpeg' is not known; there are png, webp"),
    (CompareOptions, {"zoom": -2}, "zoom is -2"),
    (ModelSpec, {"path": "x", "train_steps": "many"}, "train_steps is 'many'"),
    (PushOptions, {"timeout": 0}, "timeout is 0; it must be above 0"),
    (PushOptions, {"timeout": math.inf}, "timeout is inf; it must be a finite number"),
    (PushOptions, {"include": "*.json"}, "include is '*.json'; it must be several"),
    (CardMeta, {"tags": "vae"}, "tags is 'vae'; it must be several"),
    (OutputTable, {"original_formats": ["zip"]}, "original_formats 'zip' is not known"),
    (OutputTable, {"dtypes": ()}, "dtypes are some of"),
    (EvalTable, {"protocol": "card-265"}, "did you mean card-256?"),
    (FinetuneOptions, {"steps": 0}, "steps is 0; it must be at least 1"),
    (FinetuneOptions, {"steps": 1, "recipe": "ft-mes"}, "did you mean ft-mse?"),
    (FinetuneOptions, {"steps": 1, "lr": 0}, "lr is 0; it must be above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "said"), WRONG, ids=str)
def test_what_is_not_allowed_is_wrong_usage(kind, options, said):
    with pytest.raises(UsageError) as caught:
        kind(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_field_takes_a_value_of_another_kind(kind):
    """Whatever a field is, an object that is nothing is none of it."""
    needed = NEEDED.get(kind, {})
    assert is_dataclass(kind) and kind(**needed)
    hints = get_type_hints(kind)
    for field in fields(kind):
        if hints[field.name] is not Any:
            with pytest.raises(UsageError) as caught:
                kind(**{**needed, field.name: object()})
            assert field.name in str(caught.value)


def test_what_stands_for_a_value_becomes_it(tmp_path):
    assert ConvertOptions(config=str(tmp_path), drop=["a"]).config == tmp_path  # type: ignore[arg-type]
    assert ConvertOptions(drop=["a"]).drop == ("a",)  # type: ignore[arg-type]
    assert PruneOptions(keep={"vae"}).keep == frozenset({Part.VAE})  # type: ignore[arg-type]
    assert EvalOptions(weights={"lpips linear weights": "file"}).weights == {
        "lpips linear weights": Path("file")
    }  # type: ignore[dict-item]


def test_functions_check_what_they_are_given(tmp_path):
    for given, said in (
        ({"size": 0}, "size is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": True}, "limit is True"),
        ({"device": "tpu"}, "device 'tpu'"),
    ):
        with pytest.raises(UsageError, match=said):
            encode_images(tmp_path, tmp_path / "out.safetensors", "model", **given)  # type: ignore[arg-type]
    config = ReleaseConfig(source=SourceTable(checkpoint="x", family="sd1"))
    for steps in ({"first": "verfy"}, {"last": "verfy"}):
        with pytest.raises(UsageError, match="did you mean verify"):
            release(config, tmp_path, **steps)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="comes after"):
        release(config, tmp_path, first="push", last="eval")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="did you mean card-256"):
        preset("card256")
    with pytest.raises(UsageError, match="size is 0"):
        Protocol().changed(size=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[verify]\ndtype = "float16"', "verify: dtype 'float16' is not known; did you mean fp16?"),
        ('[output]\noriginal_formats = ["zip"]', "output: original_formats 'zip' is not known"),
        ('[output]\ndtypes = ["half"]', "output: dtypes 'half' is not known; did you mean fp16?"),
        ("[eval]\nlimit = 0", "eval: limit is 0; it must be at least 1"),
        ("[eval]\nmin_psnr = nan", "eval: min_psnr: must be a number, and is nan"),
        ('[eval]\ndevice = "gpu"', "eval: device 'gpu'"),
        ("[compare]\nlimit = -1", "compare: limit is -1"),
    ],
)
def test_a_release_file_is_told_file_table_and_key(line, said, tmp_path):
    path = tmp_path / "release.toml"
    path.write_text(f'[source]\ncheckpoint = "x"\nfamily = "sd1"\n{line}\n')
    with pytest.raises(UsageError) as caught:
        read_release(path)
    assert str(caught.value).startswith(f"{path}:5: {said}")


def test_every_class_of_options_is_checked():
    """A new one has to be listed here, and so to be tested."""
    import vaeconv

    listed = {*KINDS, ScalingOptions, CopyOptions, Limits, ModelOptions}
    public = {getattr(vaeconv, name) for name in vaeconv.__all__ if name.endswith("Options")}
    assert public <= listed
    assert all("check_fields" in inspect.getsource(kind) for kind in listed)


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", " ", "a\nb", "safetensors", "index", "00001-of-00002", "x-00001-of-00002",
     "x" * 300, "\udcff", ".hidden"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [ConvertOptions, PruneOptions, InspectOptions])
def test_what_is_no_variant(name: str, kind: type[Any]) -> None:
    with pytest.raises(UsageError, match="is not the name of a variant"):
        kind(variant=name)
    for fine in ("fp16", "non_ema", "fp16.v2", "bf16-ema"):
        assert kind(variant=fine).variant == fine


@pytest.mark.parametrize("kind", [ConvertOptions, PruneOptions])
@pytest.mark.parametrize(
    "values", [{"prefix": "\udcff"}, {"source_prefix": "\udcff"}, {"metadata": {"a": "\udcff"}}]
)
def test_text_that_no_file_can_hold(kind: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        kind(**values)


def test_numbers_that_are_too_large() -> None:
    for make in (
        lambda: preset("card-256").changed(size=10**6), lambda: EvalOptions(limit=10**30),
        lambda: VerifyOptions(tile=10**30), lambda: PushOptions(timeout=1e300),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"at most|fits 64 bits"):
            make()
