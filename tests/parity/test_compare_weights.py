"""Weights compared to the bit, with torch's own casts and arithmetic as the judge."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.samples import (
    CONFIGS,
    in_diffusers,
    prefixed,
    save_ckpt,
    save_folder,
    weights_of,
    with_old_names,
)
from vaeconv.autoencoder.keys import NamePair
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.errors import MalformedCheckpointError
from vaeconv.models.open_model import ModelOptions, open_model
from vaeconv.parity.compare_weights import Match, TensorResult, WeightResult, compare_weights
from vaeconv.weights.plan import Row

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
NARROWER = [(F64, F32), (F64, F16), (F64, BF16), (F32, F16), (F32, BF16)]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PIECE = 1 << 16  # elements; see vaeconv/parity/compare_weights.py
NAN, INF = math.nan, math.inf


def rows_of(path: Path) -> dict[NamePair, Row]:
    """Rows of a file whose names mean the same on both sides."""
    tensors = open_checkpoint(path).tensors
    return {
        NamePair(name, name, tensor.shape, False, name): Row(
            name, tensor, tensor.shape, tensor.dtype
        )
        for name, tensor in tensors.items()
    }


def compare_tensors(
    folder: Path, one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> WeightResult:
    models = []
    for name, tensors in (("one", one), ("other", other)):
        save_file(
            {key: t.contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors"
        )
        models.append(rows_of(folder / f"{name}.safetensors"))
    return compare_weights(models[0], models[1])


def compare_pair(folder: Path, one: Tensor, other: Tensor) -> TensorResult:
    (result,) = compare_tensors(folder, {"w": one}, {"w": other}).results
    return result


def compare_files(*paths: Path) -> WeightResult:
    one, other = (open_model(path, "A", ModelOptions(), ema=False) for path in paths)
    try:
        return compare_weights(one.rows, other.rows)
    finally:
        one.close()
        other.close()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


def next_up(tensor: Tensor, at: int, steps: int = 1) -> Tensor:
    """The same but for one element, which is so many last places further from zero."""
    changed = tensor.clone()
    bits(changed).view(-1)[at] += steps
    return changed


def plausible(count: int, seed: int = 3) -> Tensor:
    """Numbers as weights have them, and a few of each odd kind."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator, dtype=F64) / 8
    ties = torch.arange(1, 33, dtype=F64) / 64 + 1 + torch.tensor([2.0**-8, 2.0**-11]).repeat(16)
    odd = torch.tensor([0.0, 6e-8, -1e-7, 3e-5, 1e-40, 65519.0, 65520.0, 1e6, -3e38, INF, NAN])
    return torch.cat([numbers, ties, odd.to(F64)])


# --- layouts and containers ---


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One autoencoder in every layout and container."""
    folder, weights = tmp_path_factory.mktemp("containers"), weights_of()
    theirs = in_diffusers(weights)
    torch.save(weights, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "flat.safetensors")
    return {
        "torch zip": save_ckpt(folder / "a.ckpt", weights),
        "full checkpoint": save_ckpt(folder / "full.ckpt", prefixed(weights)),
        "torch legacy": folder / "old.pt",
        "safetensors": folder / "flat.safetensors",
        "diffusers": save_folder(folder / "new", theirs),
        "old names": save_folder(folder / "names", with_old_names(theirs)),
    }


@pytest.mark.parametrize(
    "kind",
    ["full checkpoint", "torch legacy", "safetensors", "diffusers", "old names"],
)
def test_one_autoencoder_is_equal_in_every_container(
    containers: dict[str, Path], kind: str
) -> None:
    for paths in (
        (containers["torch zip"], containers[kind]),
        (containers[kind], containers["torch zip"]),
    ):
        result = compare_files(*paths)
        assert result.is_same
        assert result.number(Match.EQUAL) == len(result.results) == len(weights_of())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_equal_in_both_layouts(tmp_path: Path, name: str) -> None:
    weights = weights_of(CONFIGS[name])
    one = save_ckpt(tmp_path / "a.ckpt", weights)
    other = save_folder(tmp_path / "out", in_diffusers(weights, CONFIGS[name]))
    result = compare_files(one, other)
    assert {found.match for found in result.results} == {Match.EQUAL}
    assert sorted(found.names[0] for found in result.results) == sorted(weights)
    assert result.is_same


def test_elements_compare_by_their_index_and_not_by_their_place_in_the_file(
    tmp_path: Path,
) -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    torch.save({"w": wide.t()}, tmp_path / "one.pt")  # a view whose elements lie across
    save_file({"w": wide.t().contiguous()}, tmp_path / "other.safetensors")
    result = compare_weights(rows_of(tmp_path / "one.pt"), rows_of(tmp_path / "other.safetensors"))
    assert [found.match for found in result.results] == [Match.EQUAL]


def test_the_name_on_either_side_is_told(containers: dict[str, Path]) -> None:
    result = compare_files(containers["torch zip"], containers["diffusers"])
    names = dict(found.names for found in result.results)
    assert names["decoder.mid.attn_1.q.weight"] == "decoder.mid_block.attentions.0.to_q.weight"
    assert names["decoder.up.0.block.0.conv1.bias"] == "decoder.up_blocks.1.resnets.0.conv1.bias"


# --- rounding ---


@pytest.mark.parametrize(("wide", "narrow"), NARROWER)
@pytest.mark.parametrize("swapped", [False, True], ids=["wide first", "narrow first"])
def test_a_cast_of_torch_is_equal_after_rounding(
    tmp_path: Path, wide: torch.dtype, narrow: torch.dtype, swapped: bool
) -> None:
    numbers = plausible(4000).to(wide)
    pair = (numbers.to(narrow), numbers) if swapped else (numbers, numbers.to(narrow))
    result = compare_pair(tmp_path, *pair)
    assert result.match is Match.ROUNDED
    assert (result.differing, result.max_abs, result.position) == (0, 0.0, ())
    codes = {F64: "F64", F32: "F32", F16: "F16", BF16: "BF16"}
    assert result.dtypes == tuple(codes[tensor.dtype] for tensor in pair)


@pytest.mark.parametrize(("wide", "narrow"), NARROWER)
@pytest.mark.parametrize("swapped", [False, True], ids=["wide first", "narrow first"])
@pytest.mark.parametrize("steps", [1, -1])
def test_one_last_place_beside_the_rounding_is_different(
    tmp_path: Path, wide: torch.dtype, narrow: torch.dtype, swapped: bool, steps: int
) -> None:
    numbers = plausible(4000).to(wide)
    rounded = next_up(numbers.to(narrow), 1234, steps)
    pair = (rounded, numbers) if swapped else (numbers, rounded)
    result = compare_pair(tmp_path, *pair)
    assert result.match is Match.DIFFERENT
    assert (result.differing, result.position) == (1, (1234,))
    assert result.values == tuple(float(tensor[1234]) for tensor in pair)
    assert result.max_abs == abs(float(pair[0][1234]) - float(pair[1][1234]))


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
def test_in_one_dtype_nothing_is_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = plausible(100).to(dtype)
    assert compare_pair(tmp_path, numbers, numbers.clone()).match is Match.EQUAL
    assert compare_pair(tmp_path, numbers, next_up(numbers, 7)).match is Match.DIFFERENT


FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000),
    st.floats(-2.0, 2.0, width=32),
    st.floats(-(2.0**-13), 2.0**-13, width=32),  # subnormal in fp16
    st.integers(-(1 << 23), 1 << 23).map(lambda n: struct.unpack("f", struct.pack("I", abs(n)))[0]),
    st.integers(0x3F800000 >> 12, 0x47000000 >> 12).map(  # halfway between two in fp16 or in bf16
        lambda n: struct.unpack("f", struct.pack("I", n << 12))[0]
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=80))
@example([1 + 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-8, 2.0**-25, 2.0**-24, 65504.0, -0.0])
def test_fp16_and_bf16_of_one_original_agree(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    original = torch.tensor(numbers, dtype=F32)
    folder = tmp_path_factory.getbasetemp()
    for pair in ((F16, BF16), (BF16, F16)):
        result = compare_pair(folder, *(original.to(dtype) for dtype in pair))
        assert result.match is Match.ROUNDED, result.describe()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2.0**-10, 30000, width=32),
    st.sampled_from([1.0, -1.0]),
    st.sampled_from([2, -2, 3, -9]),
)
def test_fp16_and_bf16_two_places_apart_do_not(
    tmp_path_factory: pytest.TempPathFactory, number: float, sign: float, steps: int
) -> None:
    original = torch.tensor([0.5, sign * number, -2.0], dtype=F32)
    folder = tmp_path_factory.getbasetemp()
    result = compare_pair(folder, original.to(F16), next_up(original.to(BF16), 1, steps))
    assert (result.match, result.differing) == (Match.DIFFERENT, 1)
    assert result.position == (1,)


def test_fp16_against_bf16_of_other_sign_is_different(tmp_path: Path) -> None:
    one, other = torch.tensor([1e-3, 0.25], dtype=F16), torch.tensor([-1e-3, 0.25], dtype=BF16)
    result = compare_pair(tmp_path, one, other)
    assert (result.match, result.differing, result.position) == (Match.DIFFERENT, 1, (0,))


# --- odd numbers ---


@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, F16), (BF16, F32)])
def test_minus_zero_is_not_zero(tmp_path: Path, dtypes: tuple[torch.dtype, ...]) -> None:
    one, other = torch.tensor([1.0, 0.0], dtype=dtypes[0]), torch.tensor([1.0, -0.0]).to(dtypes[1])
    result = compare_pair(tmp_path, one, other)
    assert (result.match, result.differing) == (Match.DIFFERENT, 1)
    assert (result.max_abs, result.position) == (0.0, (1,))


@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, F16), (BF16, F32), (F16, BF16), (BF16, F16)])
def test_nan_agrees_with_nan_only(tmp_path: Path, dtypes: tuple[torch.dtype, ...]) -> None:
    numbers = torch.tensor([1.0, NAN, 2.0])
    one, other = (numbers.to(dtype) for dtype in dtypes)
    same = Match.EQUAL if dtypes[0] is dtypes[1] else Match.ROUNDED
    assert compare_pair(tmp_path, one, other).match is same
    for replaced in (other.clone(), other.clone()):
        replaced[1] = 5.0
        for pair in ((one, replaced), (replaced.to(dtypes[0]), numbers.to(dtypes[1]))):
            result = compare_pair(tmp_path, *pair)
            assert (result.match, result.differing) == (Match.DIFFERENT, 1)
            assert (result.max_abs, result.position) == (None, (1,))
            assert "NaN or infinity" in result.describe()


@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, F16), (BF16, F32)])
@pytest.mark.parametrize("other", [-INF, 1.0, 60000.0])
def test_infinity_agrees_with_itself_only(
    tmp_path: Path, dtypes: tuple[torch.dtype, ...], other: float
) -> None:
    numbers = torch.tensor([INF, 1.0], dtype=dtypes[0])
    same = compare_pair(tmp_path, numbers, numbers.to(dtypes[1]))
    assert same.match is not Match.DIFFERENT
    result = compare_pair(tmp_path, numbers, torch.tensor([other, 1.0], dtype=dtypes[1]))
    assert (result.match, result.differing) == (Match.DIFFERENT, 1)
    assert (result.max_abs, result.position) == (None, (0,))


def test_what_is_not_finite_is_worse_than_any_number(tmp_path: Path) -> None:
    numbers = torch.zeros(5)
    result = compare_pair(tmp_path, numbers, torch.tensor([0, 3e38, 0, NAN, 1e38]))
    assert (result.differing, result.max_abs, result.position) == (3, None, (3,))


def test_floats_of_eight_bits_are_equal_to_themselves_only(tmp_path: Path) -> None:
    numbers = torch.tensor([0.5, 1.0, 2.0]).to(torch.float8_e4m3fn)
    assert compare_pair(tmp_path, numbers, numbers.clone()).match is Match.EQUAL
    changed = compare_pair(tmp_path, numbers, next_up(numbers, 2))
    assert (changed.match, changed.position) == (Match.DIFFERENT, (2,))
    assert compare_pair(tmp_path, numbers, numbers.to(F32)).match is Match.DIFFERENT


# --- where, and how much ---

LARGE = (3, 211, 331)  # more than three pieces, and the last one not whole


@pytest.fixture(scope="module")
def large() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    numbers = torch.randn(LARGE, generator=generator)
    assert numbers.numel() > 3 * PIECE
    return numbers


LAST = math.prod(LARGE) - 1


@pytest.mark.parametrize(
    "places",
    [
        [0], [LAST], [PIECE - 1], [PIECE], [2 * PIECE + 5],
        [5, PIECE + 5, LAST], list(range(PIECE - 3, PIECE + 3)), list(range(0, LAST, 999)),
    ],
    ids=["first", "last", "end", "begin", "middle", "three pieces", "border", "many"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_count_place_and_size_are_those_that_torch_finds(
    tmp_path: Path, large: Tensor, places: list[int], dtype: torch.dtype
) -> None:
    changed = large.to(dtype).clone()
    sizes = torch.linspace(0.25, 2, len(places)).roll(len(places) // 2)
    changed.view(-1)[places] += sizes.to(dtype)
    result = compare_pair(tmp_path, large, changed)

    judged = bits(large.to(dtype)) != bits(changed)
    gaps = (large.double() - changed.double()).abs() * judged
    at = int(gaps.view(-1).argmax())
    assert result.differing == int(judged.sum()) == len(places)
    assert result.max_abs == float(gaps.max())
    assert result.position == tuple(int(i) for i in torch.unravel_index(torch.tensor(at), LARGE))
    assert result.values == (float(large.view(-1)[at]), float(changed.view(-1)[at]))


@pytest.mark.parametrize("count", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1])
def test_the_last_element_counts_wherever_pieces_end(tmp_path: Path, count: int) -> None:
    zeros = torch.zeros(count, dtype=F16)
    changed = zeros.clone()
    changed[-1] = 1
    assert compare_pair(tmp_path, zeros, zeros.clone()).match is Match.EQUAL
    result = compare_pair(tmp_path, zeros, changed)
    assert (result.differing, result.max_abs, result.position) == (1, 1.0, (count - 1,))


def test_position_is_in_the_shape_of_the_first_side(tmp_path: Path) -> None:
    weights = weights_of()
    name = "encoder.mid.attn_1.k.weight"
    changed = weights[name].clone()
    changed[20, 3] += 1
    one = save_ckpt(tmp_path / "a.ckpt", weights)
    other = save_folder(tmp_path / "out", in_diffusers(weights | {name: changed}))
    (found,) = compare_files(one, other).different
    assert found.position == (20, 3, 0, 0)
    (found,) = compare_files(other, one).different
    assert found.position == (20, 3)
    assert found.names == ("encoder.mid_block.attentions.0.to_k.weight", name)
    assert found.describe().startswith(f"{found.names[0]} / {name} differs by 1 at [20, 3] (")


def test_the_worst_comes_first(tmp_path: Path) -> None:
    sizes = {"a": 0.5, "b": 0.0, "c": 2.0, "d": NAN, "e": 1.0, "f": -4.0}
    one = {name: torch.zeros(3) for name in sizes}
    other = {name: torch.tensor([0.0, size, 0.0]) for name, size in sizes.items()}
    result = compare_tensors(tmp_path, one, other)
    assert [found.names[0] for found in result.different] == ["d", "f", "c", "e", "a"]
    assert result.number(Match.EQUAL) == 1
    assert not result.is_same


def test_tensors_of_one_side_are_named(tmp_path: Path) -> None:
    one = {"same": torch.ones(2), "mine": torch.ones(2), "shaped": torch.ones(2)}
    other = {"same": torch.ones(2), "theirs": torch.ones(2), "shaped": torch.ones(3)}
    result = compare_tensors(tmp_path, one, other)
    assert sorted(result.missing) == ["mine", "shaped"]
    assert sorted(result.unexpected) == ["shaped", "theirs"]
    assert [found.match for found in result.results] == [Match.EQUAL]
    assert not result.is_same
    lacking = compare_tensors(tmp_path, {"same": one["same"]}, other)
    assert (lacking.missing, lacking.is_same) == ((), False)


def test_only_what_was_asked_for_is_compared(tmp_path: Path) -> None:
    one = {"encoder.a": torch.ones(2), "decoder.a": torch.ones(2), "decoder.b": torch.ones(1)}
    for name, tensors in (("one", one), ("other", {"encoder.a": one["encoder.a"]})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    models = [rows_of(tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    assert compare_weights(models[0], models[1], beginnings=("encoder.",)).is_same
    result = compare_weights(models[0], models[1], beginnings=("decoder.",))
    assert sorted(result.missing) == ["decoder.a", "decoder.b"]


def test_empty_tensors_are_equal(tmp_path: Path) -> None:
    assert compare_pair(tmp_path, torch.ones(0, 3), torch.ones(0, 3)).match is Match.EQUAL
    assert compare_pair(tmp_path, torch.ones(0), torch.ones(0).half()).match is Match.ROUNDED


# --- files ---


@pytest.mark.parametrize("damaged_first", [True, False])
def test_a_record_that_fails_its_checksum_is_refused(tmp_path: Path, damaged_first: bool) -> None:
    whole = save_ckpt(tmp_path / "a.ckpt", weights_of())
    data = bytearray(whole.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        info = max(archive.infolist(), key=lambda one: one.file_size)
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    data[info.header_offset + 30 + name + extra + 1000] ^= 1
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(data)
    pair = (damaged, whole) if damaged_first else (whole, damaged)
    with pytest.raises(MalformedCheckpointError, match=r"checksum|CRC"):
        compare_files(*pair)


def test_weights_alone_import_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from vaeconv.cli import app
code = -1
try:
    app(["verify", "--weights-only", "--json", "--report", sys.argv[3], *sys.argv[1:3]])
except SystemExit as done:
    code = done.code
heavy = {"torch", "diffusers", "transformers", "PIL", "rich"} & sys.modules.keys()
sys.exit(", ".join(sorted(heavy)) or code)
"""
    done = subprocess.run(
        [
            sys.executable, "-c", script,
            FIXTURES / "tiny-kl.safetensors", FIXTURES / "tiny-diffusers", tmp_path / "r.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["same"]["weights"]["equal"] == 120
    assert (document["same"]["decoded"], document["same"]["encoded"]) == (False, False)
    assert "torch" not in document["environment"]
    assert json.loads((tmp_path / "r.json").read_text())["ok"] is True


@pytest.mark.parametrize("dtypes", [(F16, BF16), (BF16, F16)])
@pytest.mark.parametrize("other", [-INF, 1.0])
def test_infinity_agrees_with_itself_only_between_fp16_and_bf16(
    tmp_path: Path, dtypes: tuple[torch.dtype, ...], other: float
) -> None:
    one, two = (
        torch.tensor([INF, 1.0], dtype=dtypes[0]),
        torch.tensor([other, 1.0], dtype=dtypes[1]),
    )
    assert compare_pair(tmp_path, one, two).match is Match.DIFFERENT


def test_fp16_against_bf16_one_place_beside_its_rounding(tmp_path: Path) -> None:
    """1.99902 rounds to 2 in bf16, and so does every number that rounds to it in fp16."""
    one, other = torch.tensor([1.9990234375]).half(), torch.tensor([1.9921875]).bfloat16()
    assert compare_pair(tmp_path, one, other).match is Match.DIFFERENT
