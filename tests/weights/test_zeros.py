"""Zeros that an unfinished download leaves, and zeros that are meant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.autoencoder.topologies import make_topology
from tests.publish.pushes import FP16, PLAIN, make_release, write_manifest, write_parity
from tests.publish.releases import make, write_project
from tests.support.pairs import run
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.checkpoint.scan import find_zeros
from vaeconv.errors import CheckFailedError, ZeroWeightsError
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.publish.files import checked_files
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.weights.convert import convert
from vaeconv.weights.inspect import inspect
from vaeconv.weights.options import ConvertOptions, CopyOptions, PruneOptions
from vaeconv.weights.prune import prune

State = dict[str, Tensor]
KNOWN = ScalingOptions(scaling_factor=0.5)


def weights() -> State:
    """A freshly made autoencoder: every bias of a normalisation is zero."""
    torch.manual_seed(0)
    return CompVisAutoencoder(make_topology((1, 2), 4, ch=64, layers=1)).state_dict()


def blank(path: Path, begin: float, end: float = 1.0) -> Path:
    """Overwrite a share of a file with zeros; its header stays."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * begin), int(len(data) * end)
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    return path


def saved(folder: Path, state: State) -> Path:
    save_file(state, folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0.5, 1), (0.9, 1), (0.99, 1), (0.997, 1), (0.1, 0.9), (0.3, 0.4), (0.30, 0.33)],
)
@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_a_hole_is_found(begin: float, end: float, dtype: str, tmp_path: Path) -> None:
    source = blank(saved(tmp_path, weights()), begin, end)
    zero = [name for name, tensor in load_file(source).items() if not tensor.any()]
    with pytest.raises(ZeroWeightsError, match="unfinished download") as caught:
        convert(source, tmp_path / "o.safetensors", ConvertOptions(dtype=dtype))
    assert not (tmp_path / "o.safetensors").exists()
    assert zero == [] or f"{len(zero)} of {len(weights())} tensors" in str(caught.value)
    assert str(inspect(source).problem).split(";")[0] == str(caught.value).split(";")[0]
    passed = ConvertOptions(dtype=dtype, copy=CopyOptions(allow_zeros=True))
    convert(source, tmp_path / "o.safetensors", passed)


def test_any_tail_is_found_and_no_whole_file_is_suspected(tmp_path: Path) -> None:
    state = weights()
    path = saved(tmp_path, state)
    whole = path.read_bytes()
    assert inspect(path).problem is None
    # The names sort: the last tensor is quant_conv's, which a signal must pass.
    for kept in range(len(whole) - 300, len(whole) // 2, -(len(whole) // 40)):
        path.write_bytes(whole[:kept] + bytes(len(whole) - kept))
        assert isinstance(inspect(path).problem, ZeroWeightsError), kept


def edit(change: Callable[[str, Tensor], bool]) -> State:
    state = weights()
    for name, tensor in state.items():
        if change(name, tensor):
            tensor.zero_()
    return state


def add_channel(state: State) -> State:
    """RGBA out of RGB: a further row of the last convolution, all zeros."""
    for name, row in (("decoder.conv_out.weight", 1), ("decoder.conv_out.bias", 1)):
        more = torch.zeros(row, *state[name].shape[1:])
        state[name] = torch.cat([state[name], more])
    return state


MEANT: dict[str, Callable[[], State]] = {
    "biases": lambda: edit(lambda n, t: n.endswith("bias")),
    "zero modules": lambda: edit(lambda n, t: "conv2" in n or "proj_out" in n or "conv_out" in n),
    "last norms": lambda: edit(lambda n, t: "norm2" in n or n.endswith("bias")),
    "a channel": lambda: add_channel(weights()),
    "sparse": lambda: {n: t * (torch.rand_like(t) > 0.9) if t.ndim > 1 else t
                       for n, t in weights().items()},
    "a filter": lambda: {n: t.index_fill(0, torch.tensor([3]), 0) if "conv1" in n and t.ndim > 1
                         else t for n, t in weights().items()},
}  # fmt: skip


@pytest.mark.parametrize("what", MEANT)
def test_zeros_that_are_meant_pass(what: str, tmp_path: Path) -> None:
    source = saved(tmp_path, MEANT[what]())
    convert(source, tmp_path / "o.safetensors")
    assert inspect(source).problem is None


def test_diffusers_own_fresh_model_passes(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(norm_num_groups=32).save_pretrained(str(tmp_path / "fresh"))
    convert(tmp_path / "fresh", tmp_path / "o.safetensors")


def test_zeros_outside_the_autoencoder_are_found_where_they_are_kept(tmp_path: Path) -> None:
    unet = {
        f"model.diffusion_model.input_blocks.{i}.0.{name}": tensor
        for i in range(4)
        for name, tensor in {
            "in_layers.0.weight": torch.ones(64), "in_layers.2.weight": torch.randn(64, 64, 3, 3),
            "out_layers.3.weight": torch.zeros(64, 64, 3, 3),
        }.items()
    }  # fmt: skip
    state = unet | {f"first_stage_model.{n}": t for n, t in weights().items()}
    save_file(state, tmp_path / "full.safetensors")
    prune(tmp_path / "full.safetensors", tmp_path / "o.safetensors", PruneOptions())
    state["model.diffusion_model.input_blocks.2.0.in_layers.0.weight"].zero_()
    save_file(state, tmp_path / "full.safetensors")
    with pytest.raises(ZeroWeightsError, match=r"input_blocks\.2"):
        prune(tmp_path / "full.safetensors", tmp_path / "p.safetensors", PruneOptions())
    # What isn't read is nobody's business.
    prune(tmp_path / "full.safetensors", tmp_path / "v.safetensors", PruneOptions(vae_only=True))


def test_a_torch_file_is_looked_at_as_well(tmp_path: Path) -> None:
    state = edit(lambda name, _: name.startswith("decoder."))
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ZeroWeightsError):
        convert(tmp_path / "m.pt", tmp_path / "o.safetensors")


def test_verify_stops_at_zeros_and_an_option_lets_them_pass(tmp_path: Path) -> None:
    source = blank(saved(tmp_path, weights()), 0.5)
    refused = run("verify", "--weights-only", source, source)
    assert refused.exit_code == 3
    assert "unfinished download" in str(refused.output) + str(refused.stderr)
    assert run("verify", "--weights-only", "--allow-zeros", source, source).exit_code == 0


def test_no_numpy_is_imported_to_look(tmp_path: Path) -> None:
    source = saved(tmp_path, weights())
    blanked = blank(saved(tmp_path, weights()).rename(tmp_path / "z.safetensors"), 0.5)
    saved(tmp_path, weights())
    code = (
        "import sys\nfrom vaeconv.weights.convert import convert\n"
        "from vaeconv.errors import ZeroWeightsError\n"
        f"convert({str(source)!r}, {str(tmp_path / 'a.safetensors')!r})\n"
        f"try:\n    convert({str(blanked)!r}, {str(tmp_path / 'b.safetensors')!r})\n"
        "except ZeroWeightsError:\n    print('numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("size", [4, 4096, 4100, 12288, 20000])
def test_zeros_are_found_block_by_block(size: int) -> None:
    f32 = BY_CODE["F32"]
    assert find_zeros(bytearray(size), 0, size, f32) == [(0, size)]
    framed = bytearray(b"\x01" * 8 + bytes(size) + b"\x01" * 8)
    assert find_zeros(framed, 8, size, f32) == [(0, size)]
    one = bytearray(size)
    one[-1] = 1
    last = (size - 1) // 4096 * 4096
    assert find_zeros(one, 0, size, f32) == ([(0, last)] if last else [])
    assert find_zeros(bytearray(size), 0, size, BY_CODE["I32"]) == []


@pytest.mark.parametrize("command", ["eval", "compare", "latents"])
def test_what_runs_a_model_looks_for_zeros(command: str, tmp_path: Path) -> None:
    source = blank(saved(tmp_path, weights()), 0.5)
    out = tmp_path / ("latents.safetensors" if command == "latents" else "out.json")
    images = FIXTURES / "pictures"
    asked: tuple[object, ...] = {
        "eval": (source, "--images", images, "--out", out, "--metrics", "psnr", "--size", 32),
        "compare": (source, "--images", images, "--out", tmp_path / "sheet", "--size", 32),
        "latents": (images, out, "--model", source, "--size", 32),
    }[command]
    refused = run(command, *asked)
    assert refused.exit_code == 3, refused.stderr
    assert "unfinished download" in refused.stderr and "--allow-zeros" in refused.stderr
    assert not out.exists()
    passed = run(command, *asked, "--allow-zeros")
    assert passed.exit_code == 0, passed.stderr


def test_no_zeros_are_published_unless_they_are_meant(tmp_path: Path) -> None:
    folder = make_release(tmp_path / "release")
    for name in (PLAIN, FP16):
        blank(folder / name, 0.5)
    write_manifest(folder)
    write_parity(folder)
    with pytest.raises(CheckFailedError) as caught:
        checked_files(folder, PushOptions())
    said = "\n".join(caught.value.details)
    assert all(f"{name}: " in said for name in (PLAIN, FP16)) and "unfinished download" in said
    assert checked_files(folder, PushOptions(allow_zeros=True))


def test_a_release_file_says_that_zeros_are_meant(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", {"source": {"checkpoint": "m.safetensors"}})
    state = load_file(FIXTURES / "tiny-kl.safetensors")
    save_file({n: t.zero_() if "norm" in n else t for n, t in state.items()},
              project / "m.safetensors")  # fmt: skip
    with pytest.raises(ZeroWeightsError, match="unfinished download"):
        make(project, last="card")
    meant = {"source": {"checkpoint": "m.safetensors", "allow_zeros": True}}
    assert [step.outcome for step in make(project, meant, last="card").steps] == ["done"] * 6
