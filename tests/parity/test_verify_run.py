"""How a verification runs: limits, types, batches, tiles, devices, settings, and the Hub."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file

from fixtures import make_fixtures as make
from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near, gap, near
from tests.support.compvis import DDConfig
from tests.support.pairs import (
    add_to,
    assert_same,
    change_diffusers,
    change_folder,
    check,
    failure_of,
    one_epsilon,
    run,
    same,
    write_references,
)
from tests.support.range_hub import RangeHub, point_client_at
from tests.support.samples import SHAPED, WEIGHTS, prefixed, save_ckpt, weights_of
from tests.support.slow import slow_row
from vaeconv import ConvertOptions, ScalingOptions, convert
from vaeconv.errors import InputError, MissingDependencyError, UsageError, VaeconvError
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.models.devices import pick_device, reproducible
from vaeconv.models.load import Model
from vaeconv.parity.compare_outputs import Decoded, Outcome
from vaeconv.parity.distance import MIXED, TOLERANCES
from vaeconv.parity.report.document import report_document
from vaeconv.parity.result import Verification

MIB = 1 << 20


def by_kind(outcomes: tuple[Outcome, ...], **wanted: str) -> list[Outcome]:
    return [one for one in outcomes if all(getattr(one, k) == v for k, v in wanted.items())]


def distances(result: Verification) -> list[dict[str, Any]]:
    return [outcome.document() for outcome in same(result).outcomes]


# --- limits ---


@pytest.fixture
def blurred(monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path) -> tuple[Path, Path]:
    """A pair whose pictures differ by about one hundredth, and whose moments agree."""
    change_diffusers(monkeypatch, one_epsilon)
    return ckpt, out


@pytest.mark.parametrize(
    ("limits", "ok"),
    [
        ({}, False),
        ({"atol": 1e-3}, False),
        ({"atol": 0.1}, True),
        ({"min_psnr": 30.0}, True),
        ({"min_psnr": 120.0}, False),
        ({"atol": 0.1, "min_psnr": 30.0}, True),
        ({"atol": 0.1, "min_psnr": 120.0}, False),
        ({"atol": 1e-3, "min_psnr": 30.0}, False),
    ],
    ids=str,
)
def test_limits_decide(
    blurred: tuple[Path, Path], refs: Path, limits: dict[str, float], ok: bool
) -> None:
    result = check(*blurred, refs, **limits)
    decoded = by_kind(same(result).outcomes, kind="decode")
    largest = [outcome.distance.max_abs for outcome in decoded]
    assert all(1e-3 < (one or 0) < 5e-2 for one in largest), "the pair is not what it should be"
    assert result.ok is ok
    psnr_decides = limits.get("min_psnr") == 120 and limits.get("atol") != 1e-3
    for outcome in decoded:
        assert bool(outcome.problem) is not ok
        assert not psnr_decides or "dB, less than 120" in str(outcome.problem)
    blames = any("config or code differs" in one for one in result.problems)
    assert blames == (not ok and not psnr_decides), "such a PSNR says nothing of a cause"


def test_a_smallest_psnr_does_not_excuse_moments(
    monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path, refs: Path
) -> None:
    def change(model: Any) -> None:
        model.encoder.conv_norm_out.eps = 1e-2

    change_diffusers(monkeypatch, change)
    result = check(ckpt, out, refs, min_psnr=0.0)
    assert {one.kind for one in same(result).outcomes if one.problem} == {"encode"}


def test_a_limit_of_nothing_allows_nothing(ckpt: Path, out: Path, refs: Path) -> None:
    assert check(ckpt, out, refs).ok
    assert "the weights agree but the results do not" in failure_of(
        check(ckpt, out, refs, atol=0.0)
    )
    assert_same(check(ckpt, ckpt, refs, atol=0.0))


def test_limits_grow_with_the_magnitude_of_a_result(ckpt: Path, out: Path, refs: Path) -> None:
    for outcome in same(check(ckpt, out, refs, dtype="fp16")).outcomes:
        assert outcome.distance.largest is not None
        expected = TOLERANCES[outcome.dtype] * max(1.0, outcome.distance.largest)
        assert outcome.limit == near(expected, "fp64")
    given = same(check(ckpt, out, refs, atol=0.25)).outcomes
    assert [one.limit for one in given] == near(
        [0.25 * max(1.0, one.distance.largest or 0.0) for one in given], "fp64"
    )


def test_limits_of_the_command_line(blurred: tuple[Path, Path], refs: Path) -> None:
    args = ("verify", *blurred, "--latents", refs, "--device", "cpu", "-q")
    assert run(*args).exit_code == 4
    assert run(*args, "--atol", 0.1).exit_code == 0
    assert run(*args, "--min-psnr", 30).exit_code == 0
    assert run(*args, "--min-psnr", 120).exit_code == 4
    assert run(*args, "--atol", -1).exit_code == 2


# --- types ---


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_narrow_type_runs_after_fp32(ckpt: Path, out: Path, refs: Path, dtype: str) -> None:
    result = check(ckpt, out, refs, dtype=dtype)
    assert_same(result)
    order = [(one.dtype, one.kind) for one in same(result).outcomes]
    assert list(dict.fromkeys(order)) == [
        ("fp32", "decode"), ("fp32", "encode"), (dtype, "decode"), (dtype, "encode"),
    ]  # fmt: skip
    narrow = [one.distance.max_abs or 0 for one in by_kind(same(result).outcomes, dtype=dtype)]
    wide = [one.distance.max_abs or 0 for one in by_kind(same(result).outcomes, dtype="fp32")]
    assert min(narrow) > 10 * max(wide), "the narrow run was not narrow"


def test_the_same_defect_fails_in_every_type(blurred: tuple[Path, Path], refs: Path) -> None:
    for dtype in ("fp32", "fp16", "bf16"):
        assert not check(*blurred, refs, dtype=dtype).ok


@pytest.mark.parametrize("pair", [("fp16", "bf16"), ("bf16", "fp16"), ("fp16", "fp32")], ids=str)
def test_behaviour_is_compared_with_the_weights_rounded_alike(
    tmp_path: Path, ckpt: Path, refs: Path, pair: tuple[str, str]
) -> None:
    """What rounding changes in a picture is many times the limit of fp32."""
    files = [tmp_path / f"{name}-{i}.safetensors" for i, name in enumerate(pair)]
    for file, dtype in zip(files, pair, strict=True):
        convert(ckpt, file, ConvertOptions(dtype=dtype))
    result = check(*files, refs)
    assert_same(result)
    tolerance = MIXED if "bf16" in pair else TOLERANCES["fp32"]
    for outcome in same(result).outcomes:
        assert outcome.limit == near(tolerance * max(1.0, outcome.distance.largest or 0.0), "fp64")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounding_of_the_deepest_models_is_no_difference(tmp_path: Path, dtype: str) -> None:
    """Of kl-f32, on latents of few pixels, by more than of any other."""
    deep = DDConfig(ch=32, ch_mult=(1, 1, 2, 2, 4, 4), attn_levels=frozenset({4, 5}), z_channels=64)
    torch.manual_seed(3)
    source = save_ckpt(tmp_path / "a.ckpt", CompVisAutoencoder(deep.topology).state_dict())
    scaling = ScalingOptions(scaling_factor=0.5)
    convert(source, tmp_path / "out", ConvertOptions(scaling=scaling))
    refs = write_references(tmp_path / "r.safetensors", deep, side=2)
    result = check(source, tmp_path / "out", refs, dtype=dtype, scaling=scaling)
    assert_same(result)


# --- batches and tiles ---


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """The shapes of all that models are given."""
    seen: list[tuple[str, tuple[int, ...]]] = []
    for name in ("decode", "encode"):
        original = getattr(Model, name)

        def call(self: Model, data: torch.Tensor, name: str = name, to: Any = original) -> Any:
            seen.append((name, tuple(data.shape)))
            return to(self, data)

        monkeypatch.setattr(Model, name, call)
    return seen


@pytest.fixture(scope="module")
def alike(models: Path) -> Path:
    """Five references of one shape."""
    numbers = np.random.default_rng(4)
    path = models / "alike.safetensors"
    latents = {f"latent.{n}": numbers.normal(size=(4, 3, 2)).astype("f4") for n in range(5)}
    images = {f"image.{n}": numbers.integers(0, 256, (3, 24, 16), "u1") for n in range(5)}
    save_arrays(latents | images, path)
    return path


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (9, [5])])
def test_batches_change_nothing(
    ckpt: Path, out: Path, alike: Path, batches: list[Any], size: int, sizes: list[int]
) -> None:
    alone: list[Decoded] = []
    together: list[Decoded] = []
    first = check(ckpt, out, alike, batch_size=1, on_image=alone.append)
    batches.clear()
    second = check(ckpt, out, alike, batch_size=size, on_image=together.append)
    for kind in ("decode", "encode"):
        assert [shape[0] for name, shape in batches if name == kind][::2] == sizes
    assert first.ok
    assert second.ok
    assert [one.name for one in alone] == [one.name for one in together]
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one.images, other.images, strict=True):
            assert_near(mine, theirs)
    for here, there in zip(same(first).outcomes, same(second).outcomes, strict=True):
        assert here.name == there.name
        for field in ("max_abs", "mean_abs", "rmse", "cosine", "largest"):
            mine, theirs = getattr(here.distance, field), getattr(there.distance, field)
            # The distance of two that are alike is rounding, of which no figure is another's.
            scale = 1.0 if field == "cosine" else here.distance.largest
            assert_near(mine, theirs, scale=scale)


def test_a_batch_names_the_reference_that_fails(blurred: tuple[Path, Path], alike: Path) -> None:
    result = check(*blurred, alike, batch_size=5)
    problems = [one.problem for one in by_kind(same(result).outcomes, kind="decode")]
    assert [str(problem).split(" differs")[0] for problem in problems] == [
        f"decode fp32 of {n}" for n in range(5)
    ]


def test_of_a_batch_only_the_reference_that_overflows_is_not_finite(
    tmp_path: Path, ckpt: Path, out: Path
) -> None:
    latents = {f"latent.{n}": np.full((4, 2, 2), 3e38 if n == 2 else 0.5, "f4") for n in range(4)}
    images = {"image.a": np.zeros((3, 16, 16), "u1")}
    save_arrays(latents | images, tmp_path / "r.safetensors")
    result = check(ckpt, out, tmp_path / "r.safetensors", batch_size=4)
    decoded = by_kind(same(result).outcomes, kind="decode")
    assert [one.name for one in decoded if one.problem] == ["2"]
    (said,) = (str(one.problem) for one in decoded if one.problem)
    assert re.fullmatch(
        r"decode fp32 of 2 is not finite, first in (\S+) of A, first in (\S+) of B", said
    )


@pytest.mark.parametrize(("tile", "pieces"), [(2, 6), (4, 2), (5, 1), (100, 1)])
def test_tiles_cut_large_latents_and_give_the_same_verdict(
    tmp_path: Path, ckpt: Path, out: Path, batches: list[Any], tile: int, pieces: int
) -> None:
    refs = write_references(tmp_path / "r.safetensors", side=4)  # 4 x 4 and 4 x 5
    whole: list[Decoded] = []
    tiled: list[Decoded] = []
    assert check(ckpt, out, refs, on_image=whole.append).ok
    batches.clear()
    assert_same(check(ckpt, out, refs, tile=tile, on_image=tiled.append))
    decoded = [shape[2:] for name, shape in batches if name == "decode"]
    of_first = 4 if tile == 2 else 1
    assert len(decoded) == 2 * (of_first + pieces)  # two models
    assert max(max(shape) for shape in decoded) <= tile
    for one, other in zip(whole, tiled, strict=True):
        (mine, _), (cut, theirs) = one.images, other.images
        width = 4 + int(one.name)
        assert cut.shape == mine.shape == (3, 32, 8 * width)
        assert_near(cut, theirs)
        assert bool(gap(cut, mine) > 1e-3) is (tile < width)  # a tile sees no other


def test_tiles_find_the_same_defects(blurred: tuple[Path, Path], tmp_path: Path) -> None:
    refs = write_references(tmp_path / "r.safetensors", side=4)
    whole, tiled = check(*blurred, refs), check(*blurred, refs, tile=2)
    for result in (whole, tiled):
        assert {one.kind for one in same(result).outcomes if one.problem} == {"decode"}


def test_pictures_are_handed_out_as_they_are_decoded(ckpt: Path, out: Path, refs: Path) -> None:
    from diffusers import AutoencoderKL

    pictures: list[Decoded] = []
    result = check(ckpt, out, refs, dtype="fp16", on_image=pictures.append)
    assert [(one.dtype, one.name) for one in pictures] == [
        (dtype, name) for dtype in ("fp32", "fp16") for name in ("0", "1")
    ]
    decoded = by_kind(same(result).outcomes, kind="decode")
    assert sorted(decoded) == sorted(one.outcome for one in pictures)
    latents = load_file(refs)
    model = AutoencoderKL.from_pretrained(out)
    for one in pictures[:2]:
        with torch.inference_mode():
            judged = model.decode(latents[f"latent.{one.name}"][None]).sample[0].numpy()
        assert_near(one.images[1], judged)
        assert one.images[0].dtype == one.images[1].dtype == np.float32
        apart = np.abs(one.images[0].astype("f8") - one.images[1]).max()
        assert one.outcome.distance.max_abs == near(apart, "fp64")


def test_no_encode_leaves_encoding_out(
    ckpt: Path, out: Path, refs: Path, batches: list[Any]
) -> None:
    result = check(ckpt, out, refs, encode=False)
    assert result.ok
    assert {name for name, _ in batches} == {"decode"}
    assert any("posterior moments were not compared" in note for note in map(str, result.notes))
    document = report_document(result)
    assert (document["same"]["decoded"], document["same"]["encoded"]) == (True, False)


# --- references ---


def test_references_of_a_file_are_what_runs(ckpt: Path, out: Path, refs: Path) -> None:
    result = check(ckpt, out, refs)
    assert result.references is not None
    assert result.references.source == refs.name
    assert [one.name for one in result.references.latents] == ["0", "1"]
    assert len(by_kind(same(result).outcomes, kind="decode")) == 2


STATISTICS = {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0] * 4}


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({}, "divided by the scaling factor 0.18215"),
        ({"scaling_factor": 0.5}, "divided by the scaling factor 0.5"),
        (
            {"scaling_factor": 0.5, "shift_factor": 0.25},
            "the scaling factor 0.5 and shifted by 0.25",
        ),
        (STATISTICS, "statistics per channel"),
    ],
)
def test_built_in_latents_are_scaled_as_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: dict[str, Any], words: str
) -> None:
    seen: list[torch.Tensor] = []
    original = Model.decode

    def decode(self: Model, data: torch.Tensor) -> torch.Tensor:
        seen.append(data.clone())
        return original(self, data)

    monkeypatch.setattr(Model, "decode", decode)
    folder = change_folder(
        FIXTURES / "tiny-diffusers", tmp_path / "a", config=lambda found: {**found, **scaling}
    )
    result = check(folder, folder, encode=False)
    assert result.references is not None
    assert words in result.references.source
    noise = seen[0]
    means = scaling.get("latents_mean", [scaling.get("shift_factor", 0.0)] * 4)
    factor = scaling.get("scaling_factor", 0.18215)
    assert noise.mean(dim=(0, 2, 3)).tolist() == pytest.approx(means, abs=0.12 / factor)
    assert (noise.std(dim=(0, 2, 3)) * factor).tolist() == pytest.approx([1.0] * 4, abs=0.08)


def test_without_any_scaling_that_of_the_family_is_assumed(tmp_path: Path) -> None:
    file = FIXTURES / "tiny-kl.safetensors"  # of no family: two levels
    result = check(file, file, encode=False)
    assert result.references is not None
    assert "divided by the scaling factor 1" in result.references.source
    file = save_ckpt(tmp_path / "a.ckpt", weights_of(SHAPED))  # as SD 1 has them
    result = check(file, file, encode=False)
    assert result.references is not None
    assert "divided by the scaling factor 0.18215" in result.references.source


# --- wrong usage and bad input ---


def test_one_file_alone_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        check(FIXTURES / "tiny-kl.safetensors")
    result = run("verify", FIXTURES / "tiny-kl.safetensors")
    assert result.exit_code == 2
    assert "--drop-in-for" in result.stderr


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"<html>", "HTML"), (b"PK\x03\x04 no", "zip"), (b"", "empty")],
    ids=["absent", "page", "zip", "empty"],
)
def test_a_side_that_cannot_be_read_is_bad_input(
    tmp_path: Path, content: bytes | None, words: str, position: int
) -> None:
    bad = tmp_path / "bad.ckpt"
    if content is not None:
        bad.write_bytes(content)
    models = [FIXTURES / "tiny-kl.safetensors"] * 2
    models[position] = bad
    result = run("verify", *models)
    assert result.exit_code == 3
    assert "bad.ckpt" in result.stderr
    assert words.lower() in result.stderr.lower()
    with pytest.raises(InputError):
        check(*models)


def test_a_report_in_a_folder_that_is_not_there_fails_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaeconv.parity.verify.verify", lambda *_, **__: pytest.fail("ran"))
    for option in ("--report", "--junit", "--html", "--pictures"):
        result = run("verify", "a", "b", option, tmp_path / "none" / "file")
        assert result.exit_code == 5
        assert "none" in result.stderr


# --- devices ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_no_cpu(
    refs: Path, ckpt: Path, out: Path, device: str, batches: list[Any]
) -> None:
    result = run("verify", ckpt, out, "--latents", refs, "--device", device, "--json")
    assert result.exit_code == 7
    assert json.loads(result.stdout)["error"]["type"] == "MissingDependencyError"
    assert f"the device {device} is not available" in json.loads(result.stdout)["error"]["message"]
    assert batches == []


def test_a_device_of_high_number_is_not_there(refs: Path, ckpt: Path, out: Path) -> None:
    with pytest.raises(MissingDependencyError, match="cuda:63"):
        check(ckpt, out, refs, device="cuda:63")


def test_weights_alone_need_no_device() -> None:
    args = ("verify", FIXTURES / "tiny-kl.safetensors", FIXTURES / "tiny-diffusers")
    assert run(*args, "--weights-only").exit_code == 0
    assert run(*args, "--weights-only", "--device", "cuda:63").exit_code == 2


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_the_device_is_the_one_that_the_report_names(
    ckpt: Path, out: Path, refs: Path, wanted: str
) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    result = check(ckpt, out, refs, device=wanted)
    assert result.environment["device"] == str(pick_device(wanted))


def test_the_environment_is_described(ckpt: Path, out: Path, refs: Path) -> None:
    import diffusers

    import vaeconv

    found = check(ckpt, out, refs).environment
    expected = {
        "vaeconv": vaeconv.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": "highest",
        "deterministic_algorithms": True,
        "cudnn_allow_tf32": False,
        "cudnn_benchmark": False,
    }
    assert {name: found[name] for name in expected} == expected
    assert os.uname().nodename not in json.dumps(found)


# --- settings of torch ---


def settings() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    fills: Any = torch.utils.deterministic
    return (
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        fills.fill_uninitialized_memory,
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.get_default_dtype(),
    )  # fmt: skip


@pytest.fixture
def odd_settings() -> Iterator[tuple[Any, ...]]:
    """All the other way round from what a verification wants."""
    cudnn: Any = torch.backends.cudnn
    fills: Any = torch.utils.deterministic
    before = settings()

    def put(values: tuple[Any, ...]) -> None:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = values[:3]
        torch.set_float32_matmul_precision(values[3])
        torch.use_deterministic_algorithms(values[4])
        fills.fill_uninitialized_memory = values[5]

    put((True, True, False, "medium", False, True))
    yield settings()
    put(before)


def test_within_all_is_reproducible(odd_settings: tuple[Any, ...]) -> None:
    with reproducible():
        assert settings()[:6] == (False, False, True, "highest", True, False)
    assert settings() == odd_settings


def test_settings_are_restored(
    odd_settings: tuple[Any, ...],
    ckpt: Path,
    out: Path,
    refs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    during: list[tuple[Any, ...]] = []
    original = Model.decode

    def decode(self: Model, data: torch.Tensor) -> torch.Tensor:
        during.append(settings())
        return original(self, data)

    monkeypatch.setattr(Model, "decode", decode)
    assert check(ckpt, out, refs).ok
    assert settings() == odd_settings
    assert during[0][:6] == (False, False, True, "highest", True, False)
    assert during[0][6] is True  # inference mode


def test_settings_are_restored_after_a_failure(
    odd_settings: tuple[Any, ...],
    ckpt: Path,
    out: Path,
    refs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Model, data: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory, perhaps")

    monkeypatch.setattr(Model, "decode", fail)
    with pytest.raises(RuntimeError, match="perhaps"):
        check(ckpt, out, refs)
    assert settings() == odd_settings


# --- the same every time, and nothing is touched ---


def without_timing(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "timing"}


def test_two_runs_report_the_same(ckpt: Path, out: Path, refs: Path) -> None:
    one, other = (report_document(check(ckpt, out, refs, dtype="bf16")) for _ in range(2))
    assert one["same"]["worst"][0]["max_abs"] > 0
    assert without_timing(one) == without_timing(other)


def test_the_built_in_set_does_not_depend_on_generators_of_others() -> None:
    file = FIXTURES / "tiny-kl.safetensors"
    torch.manual_seed(1)
    np.random.seed(1)
    one = check(file, file, encode=False)
    torch.manual_seed(2)
    np.random.seed(2)
    other = check(file, file, encode=False)
    assert one.references is not None
    assert other.references is not None
    assert one.references.sha256 == other.references.sha256
    assert distances(one) == distances(other)


def test_files_are_only_read(ckpt: Path, out: Path, refs: Path, models: Path) -> None:
    def state() -> dict[str, tuple[str, int]]:
        return {
            str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in sorted(models.rglob("*"))
            if path.is_file()
        }

    before = state()
    assert check(ckpt, out, refs, dtype="fp16").ok
    assert state() == before
    assert len(before) >= 4


def test_weights_of_a_mapped_file_survive_a_cast(ckpt: Path, refs: Path) -> None:
    """Tensors are views of the file: rounding them must not write there."""
    before = hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert check(ckpt, ckpt, refs, dtype="fp16").ok
    assert hashlib.sha256(ckpt.read_bytes()).hexdigest() == before


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, out: Path, ckpt: Path, refs: Path
) -> None:
    source = tmp_path / "a.ckpt"
    source.write_bytes(ckpt.read_bytes())

    def touch(step: str, done: int, total: int) -> None:
        if step.startswith("running"):
            os.utime(source, ns=(1, 1))

    with pytest.raises(VaeconvError, match="changed"):
        check(source, out, refs, on_progress=touch)


def test_files_are_hashed(ckpt: Path, out: Path, refs: Path) -> None:
    result = check(ckpt, out, refs)
    for model, path in zip(result.models, (ckpt, out / WEIGHTS), strict=True):
        beside = [path.with_name("config.json")] if path.parent == out else []
        assert list(model.files) == [
            {
                "name": file.name,
                "size": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in (path, *beside)
        ]
    plain = check(ckpt, out, refs, hash_files=False)
    assert [model.files[0]["sha256"] for model in plain.models] == [None, None]


# --- progress and timing ---


def test_progress_reaches_its_end(ckpt: Path, out: Path, refs: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    check(ckpt, out, refs, dtype="fp16", on_progress=lambda *step: steps.append(step))
    names = list(dict.fromkeys(name for name, _, _ in steps))
    assert names == [
        "comparing weights", "importing torch and diffusers", "loading A", "loading B",
        "running A and B",
    ]  # fmt: skip
    running = [step[1:] for step in steps if step[0] == "running A and B"]
    assert running == [(done, 8) for done in range(1, 9)]


def test_time_is_split(ckpt: Path, out: Path, refs: Path) -> None:
    timing = check(ckpt, out, refs, dtype="bf16").timing
    assert list(timing) == [
        "weights", "imports", "load", "decode fp32", "encode fp32", "decode bf16", "encode bf16",
        "hashing, waited for",
    ]  # fmt: skip
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in timing.values())
    assert list(check(ckpt, out, weights_only=True).timing) == ["weights", "hashing, waited for"]
    said = run("verify", ckpt, out, "--latents", refs, "--device", "cpu", "--verbose").stdout
    for name in ("imports", "load", "decode fp32", "encode fp32"):
        assert f"  {name}: " in said


# --- the Hub ---


def spread(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An autoencoder amid 16 MiB of everything else."""
    vae = prefixed(weights)
    encoder = {name: tensor for name, tensor in vae.items() if ".encoder." in name}
    rest = {name: tensor for name, tensor in vae.items() if name not in encoder}
    return {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2 * MIB),
        **encoder,
        "model.diffusion_model.out.2.weight": torch.zeros(2 * MIB),
        **rest,
    }


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Path, out: Path
) -> Iterator[RangeHub]:
    from huggingface_hub import close_session

    state = spread(torch.load(ckpt, weights_only=True)["state_dict"])
    save_ckpt(tmp_path / "full.ckpt", state)
    repos = {
        "o/full": {"full.ckpt": tmp_path / "full.ckpt"},
        "o/vae": {name: out / name for name in ("config.json", WEIGHTS)},
    }
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RangeHub(repos, cdn=True) as server:
        point_client_at(server, tmp_path / "home", monkeypatch)
        yield server
        close_session()


def test_a_file_on_the_hub_verifies_by_its_autoencoder_alone(
    hub: RangeHub, out: Path, refs: Path, tmp_path: Path
) -> None:
    weights = (out / WEIGHTS).stat().st_size
    result = check("hf://o/full/full.ckpt", out, refs)
    assert_same(result, tensors=206)
    # Nothing more is fetched for it: the Hub knows the sha256 of what is in LFS.
    assert result.models[0].files[0]["sha256"] == hub.etag(tmp_path / "full.ckpt")
    assert weights < hub.bytes_served < weights + MIB // 2
    assert (tmp_path / "full.ckpt").stat().st_size > 16 * MIB


def test_both_sides_on_the_hub(hub: RangeHub, refs: Path, out: Path) -> None:
    fetched: list[int] = []
    from vaeconv.models.open_model import ModelOptions

    reading = ModelOptions(on_fetch=fetched.append)
    result = check("hf://o/full/full.ckpt", "hf://o/vae", refs, a=reading)
    assert_same(result)
    assert result.models[1].loader == "AutoencoderKL.from_config, strict"
    weights = (out / WEIGHTS).stat().st_size
    assert hub.bytes_served < 2 * weights + MIB
    assert sum(fetched) > weights


def test_a_converted_folder_verifies_against_the_file_on_the_hub(
    hub: RangeHub, refs: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    source = "hf://o/full/full.ckpt"
    convert(source, made, ConvertOptions(dtype="fp16", scaling=ScalingOptions(scaling_factor=0.5)))
    result = run("verify", source, made, "--latents", refs, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "A and B are the same autoencoder" in result.stdout
    changed = change_folder(
        made, tmp_path / "changed", weights=lambda found: add_to(found, "decoder.conv_out.bias")
    )
    assert run("verify", source, changed, "--weights-only").exit_code == 4


# --- the installed entry point ---


@pytest.mark.parametrize(
    ("same_weights", "code"),
    # The README's examples show this answer as well.
    [slow_row(True, 0), (False, 4)],
)
def test_the_installed_entry_point(tmp_path: Path, same_weights: bool, code: int) -> None:
    entry = Path(sys.executable).with_name("vaeconv")
    other = FIXTURES / ("tiny-kl.safetensors" if same_weights else "tiny-legacy.pt")
    refs = write_references(tmp_path / "r.safetensors", make.KL, side=2)
    done = subprocess.run(
        [entry, "verify", FIXTURES / "tiny-diffusers", other, "--latents", refs, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if same_weights:
        assert "the same autoencoder, but not proved: the scaling of B" in done.stdout
    else:
        assert "A and B are not the same autoencoder" in done.stdout
        assert "error: A and B are not the same autoencoder: 120 of 120" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_latents_alone_are_enough(tmp_path: Path, ckpt: Path, out: Path) -> None:
    save_arrays({"latent.x": np.ones((4, 2, 2), "f4")}, tmp_path / "r.safetensors")
    result = check(ckpt, out, tmp_path / "r.safetensors")
    assert [one.kind for one in same(result).outcomes] == ["decode"]


def test_tiles_name_the_layer_that_differs(blurred: tuple[Path, Path], tmp_path: Path) -> None:
    refs = write_references(tmp_path / "r.safetensors", side=4)
    problems = check(*blurred, refs, tile=2).problems[1:]
    assert problems
    assert all("first layer that differs is decoder.up.2.block.0.norm2" in one for one in problems)
