"""From the Hub to a converted autoencoder, against a loopback Hub: what travels, what breaks."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import vaeconv
from tests.support.range_hub import RangeHub, point_client_at
from vaeconv.cli import app
from vaeconv.errors import HubError, InputError

FIXTURES = Path(__file__).parents[2] / "fixtures"
ENTRY = Path(sys.executable).with_name("vaeconv")
KIB, MIB = 1 << 10, 1 << 20
# Head, tail and directory, pickle, small tensors: each a read with its read-ahead.
OVERHEAD = 512 * KIB
ZEROS = bytes(MIB)


class HoleyFile(io.FileIO):
    """Leaves holes where only zeros would stand."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), MIB):
            piece = view[start : start + MIB]
            if piece == ZEROS:
                self.seek(MIB, os.SEEK_CUR)
            else:
                super().write(piece)
        return len(view)

    def close(self) -> None:
        if not self.closed:
            self.truncate(self.tell())
        super().close()


def full_checkpoint() -> dict[str, torch.Tensor]:
    """Returns a diffusion model with 200 MB of everything else around its autoencoder."""

    def bulk(name: str, count: int) -> dict[str, torch.Tensor]:
        return {f"{name}.{n}.weight": torch.zeros(5 * MIB) for n in range(count)}

    vae = load_file(FIXTURES / "tiny-kl.safetensors")
    vae = {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    encoder = {name: tensor for name, tensor in vae.items() if ".encoder." in name}
    return {
        "betas": torch.zeros(1000),
        **bulk("model.diffusion_model.input_blocks", 5),
        **encoder,
        **bulk("model.diffusion_model.output_blocks", 2),
        **{name: tensor for name, tensor in vae.items() if name not in encoder},
        "scale_factor": torch.tensor(0.18215),
        **bulk("cond_stage_model.transformer.text_model.encoder.layers", 3),
    }


VAE_SIZE = sum(t.nbytes for t in load_file(FIXTURES / "tiny-kl.safetensors").values())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the full checkpoint in both containers."""
    folder = tmp_path_factory.mktemp("full")
    state = full_checkpoint()
    with HoleyFile(folder / "sd.ckpt") as file:
        torch.save({"state_dict": state, "global_step": 470000}, file)
    with HoleyFile(folder / "sd.safetensors") as file:
        file.write(safetensors.torch.save(state))
    assert all(path.stat().st_size > 200 * MIB for path in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder: a plain autoencoder, one called fp16 with other weights, and a UNet."""
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(FIXTURES / "tiny-diffusers", folder / "vae")
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: tensor * 2 for name, tensor in weights.items()},
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "model_index.json").write_text("{}")
    (folder / "unet").mkdir()
    with HoleyFile(folder / "unet" / "diffusion_pytorch_model.safetensors") as file:
        file.write(safetensors.torch.save({"conv_in.weight": torch.zeros(50 * MIB)}))
    return folder


@pytest.fixture(params=[True], ids=["cdn"])
def hub(
    request: pytest.FixtureRequest,
    full: Path,
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RangeHub]:
    from huggingface_hub import close_session

    def files(folder: Path) -> dict[str, Path]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in found}

    repos = {
        "o/sd": files(full),
        "o/vae": files(FIXTURES / "tiny-diffusers"),
        "o/pipe": files(pipeline),
        "o/small": {"tiny.ckpt": FIXTURES / "tiny-kl.ckpt"},
    }
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with RangeHub(repos, cdn=request.param) as hub:
        point_client_at(hub, tmp_path / "home", monkeypatch)
        yield hub
        close_session()
    assert not list((tmp_path / "tmp").iterdir())


direct = pytest.mark.parametrize("hub", [False], ids=["direct"], indirect=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for outputs and nothing else."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    found = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}


def assert_same_as_local(
    remote: str, local: Path, place: Path, name: str, *options: str | Path
) -> None:
    """Converts both, and compares all that was written byte for byte."""
    there, here = place / "there", place / "here"
    for source, folder in ((remote, there), (local, here)):
        folder.mkdir()
        result = run("convert", *options, source, folder / name)
        assert result.exit_code == 0, result.output
    assert contents(there) == contents(here)
    assert contents(there)


# What travels


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors"])
@pytest.mark.parametrize("hub", [False, True], ids=["direct", "cdn"], indirect=True)
def test_a_full_checkpoint_costs_the_bytes_of_its_autoencoder(
    hub: RangeHub, full: Path, place: Path, name: str
) -> None:
    assert_same_as_local(f"hf://o/sd/{name}", full / name, place, "out")
    assert json.loads(contents(place / "there" / "out")["config.json"])["scaling_factor"] == 0.18215
    assert VAE_SIZE < hub.bytes_served < VAE_SIZE + OVERHEAD
    assert len(hub.asked("HEAD", host="hub")) == 1
    print(f"{name}: {hub.bytes_served} bytes in {len(hub.requests)} requests")


def test_counts_of_on_fetch_add_up_to_what_travelled(hub: RangeHub, place: Path) -> None:
    seen: list[int] = []
    options = vaeconv.ConvertOptions(on_fetch=seen.append)
    vaeconv.convert("hf://o/sd/sd.ckpt", place / "out.safetensors", options)
    assert sum(seen) == hub.bytes_served


@pytest.mark.parametrize("name", ["sd.ckpt", "sd.safetensors"])
def test_inspect_reads_headers_only(hub: RangeHub, name: str) -> None:
    result = run("inspect", "--json", f"hf://o/sd/{name}")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["prefix"]) == (0, "first_stage_model.")
    assert document["scaling"]["scaling_factor"] == 0.18215
    assert document["nonfinite"] is None
    assert hub.bytes_served < OVERHEAD
    print(f"{name}: {hub.bytes_served} bytes in {len(hub.requests)} requests")


def test_a_dry_run_reads_headers_only(hub: RangeHub, place: Path) -> None:
    result = run("convert", "--dry-run", "hf://o/sd/sd.ckpt", place / "out")
    assert result.exit_code == 0
    assert hub.bytes_served < OVERHEAD
    assert not contents(place)


# Folders


def test_a_diffusers_repository_becomes_a_file(hub: RangeHub, place: Path) -> None:
    assert_same_as_local("hf://o/vae", FIXTURES / "tiny-diffusers", place, "out.ckpt")


@pytest.mark.parametrize("address", ["hf://o/pipe", "hf://o/pipe/vae", "hf://o/pipe@main/vae"])
@pytest.mark.parametrize("variant", [(), ("--variant", "fp16")], ids=["plain", "fp16"])
def test_of_a_pipeline_only_the_autoencoder_travels(
    hub: RangeHub, pipeline: Path, place: Path, address: str, variant: tuple[str, ...]
) -> None:
    assert_same_as_local(address, pipeline / "vae", place, "out.safetensors", *variant)
    written = load_file(place / "there" / "out.safetensors")
    raw = load_file(FIXTURES / "tiny-kl.safetensors")["quant_conv.weight"]
    assert torch.equal(written["quant_conv.weight"], raw * 2 if variant else raw)
    assert hub.bytes_served < VAE_SIZE + OVERHEAD


def test_a_variant_that_is_not_there(hub: RangeHub, place: Path) -> None:
    result = run("convert", "--variant", "bf16", "hf://o/pipe", place / "out.ckpt")
    assert_refused(result, 3, "it has (plain), fp16", place)


# What breaks


def assert_refused(result: Result, code: int, said: str, place: Path) -> None:
    """Checks for one line on stderr, and that nothing was left behind."""
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("error: hf://o/")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not list(place.iterdir())


@pytest.mark.parametrize("output", ["out", "out.ckpt"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_file_that_changes_meanwhile(hub: RangeHub, place: Path, output: str, after: int) -> None:
    headers = {"ETag": '"other"', "X-Linked-ETag": '"other"'}
    if after:
        hub.misbehave(method="GET", host="cdn", after=after, headers=headers)
    else:
        hub.misbehave(method="GET", host="hub", headers=headers)
    result = run("convert", "hf://o/sd/sd.ckpt", place / output)
    assert_refused(result, 3, "changed on the server", place)


def test_a_branch_that_moves_meanwhile_does_no_harm(hub: RangeHub, full: Path, place: Path) -> None:
    def move(count: int) -> None:
        if len(hub.asked("GET", host="cdn")) == 1:
            hub.commit("o/sd", {"sd.ckpt": b"something else"})

    vaeconv.convert("hf://o/sd/sd.ckpt", place / "there", vaeconv.ConvertOptions(on_fetch=move))
    vaeconv.convert(full / "sd.ckpt", place / "here")
    assert contents(place / "there") == contents(place / "here")
    with pytest.raises(InputError, match="neither a torch file"):
        vaeconv.convert("hf://o/sd/sd.ckpt", place / "again")


def test_failures_that_pass_are_survived(hub: RangeHub, full: Path, place: Path) -> None:
    hub.misbehave(method="HEAD", times=1, status=502, headers={"Retry-After": "0"})
    hub.misbehave(method="GET", host="hub", times=2, status=503, headers={"Retry-After": "0"})
    hub.misbehave(host="cdn", after=2, times=2, status=503, headers={"Retry-After": "0"})
    hub.misbehave(host="cdn", after=1, times=2, cut=20 * KIB)
    hub.misbehave(host="cdn", after=3, times=1, status=403)
    assert_same_as_local("hf://o/sd/sd.ckpt", full / "sd.ckpt", place, "out")
    assert sum(request.status in (502, 503) for request in hub.requests) == 5
    assert hub.bytes_served < VAE_SIZE + OVERHEAD


def test_failures_that_last_end_with_one_line(hub: RangeHub, place: Path) -> None:
    hub.misbehave(host="cdn", after=4, status=503, headers={"Retry-After": "0"})
    result = run("convert", "hf://o/sd/sd.ckpt", place / "out")
    assert_refused(result, 6, "HTTP 503", place)


@direct
def test_a_server_without_ranges_sends_it_whole(hub: RangeHub, place: Path) -> None:
    hub.misbehave(method="GET", ignore_range=True)
    path = FIXTURES / "tiny-kl.ckpt"
    assert_same_as_local("hf://o/small/tiny.ckpt", path, place, "out.safetensors")
    assert hub.bytes_served == path.stat().st_size


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://o/nothing/x.ckpt", "hf auth login"),
        ("hf://o/nothing", "hf auth login"),
        ("hf://o/sd/missing.ckpt", "no such file"),
        ("hf://o/sd@v9/sd.ckpt", "no such revision"),
        ("hf://o/gated/x.ckpt", "accept its terms"),
        ("hf://o/gated", "accept its terms"),
    ],
)
@pytest.mark.parametrize("download", [(), ("--download",)], ids=["ranges", "download"])
def test_what_may_not_be_read(
    hub: RangeHub, place: Path, address: str, said: str, download: tuple[str, ...]
) -> None:
    hub.commit("o/gated", {"x.ckpt": b"secret"})
    hub.gated.add("o/gated")
    assert_refused(run("convert", *download, address, place / "out"), 6, said, place)
    assert run("inspect", *download, address).exit_code == 6
    with pytest.raises(HubError):
        vaeconv.convert(address, place / "out")


# The cache


@pytest.mark.parametrize(
    ("address", "local", "name"),
    [
        ("hf://o/small/tiny.ckpt", FIXTURES / "tiny-kl.ckpt", "out.safetensors"),
        ("hf://o/vae", FIXTURES / "tiny-diffusers", "out.safetensors"),
        ("hf://o/vae", FIXTURES / "tiny-diffusers", "out"),
    ],
)
def test_a_download_serves_later_runs_also_offline(
    hub: RangeHub,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    local: Path,
    name: str,
) -> None:
    from huggingface_hub import constants

    def written() -> dict[str, bytes]:
        found = contents(place / name)
        if "vaeconv.json" in found:  # names the source, which is another address here
            found["vaeconv.json"] = json.dumps(
                json.loads(found["vaeconv.json"]) | {"source": None}
            ).encode()
        return found

    assert run("convert", local, place / name).exit_code == 0
    expected = written()

    def convert(*options: str) -> None:
        result = run("convert", "--overwrite", *options, address, place / name)
        assert result.exit_code == 0, result.output
        assert written() == expected

    convert("--download")
    size = sum(len(data) for data in contents(local).values())
    assert hub.bytes_served >= size
    before = len(hub.requests)
    convert("--download")
    convert()
    later = hub.requests[before:]
    assert not [r for r in later if r.method == "GET" and "/api/" not in r.path]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    convert()
    convert("--download")
    assert len(hub.requests) == before


def test_offline_without_a_copy(
    hub: RangeHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run("convert", "hf://o/sd/sd.ckpt", place / "out")
    assert_refused(result, 6, "unset HF_HUB_OFFLINE", place)
    assert not hub.requests


# As a process


def start(hub: RangeHub, tmp_path: Path, *args: str | Path) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.Popen(
        [str(ENTRY), *map(str, args)],
        env={
            **kept,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "TMPDIR": str(tmp_path / "tmp"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_installed_command(hub: RangeHub, full: Path, tmp_path: Path, place: Path) -> None:
    process = start(hub, tmp_path, "convert", "-q", "hf://o/sd/sd.ckpt", place / "out")
    assert process.communicate(timeout=300) == ("", "")
    assert process.returncode == 0
    vaeconv.convert(full / "sd.ckpt", place / "local")
    assert contents(place / "out") == contents(place / "local")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_a_stop_while_the_server_is_silent_is_prompt(
    hub: RangeHub, tmp_path: Path, place: Path, number: int, code: int
) -> None:
    silent = hub.misbehave(host="cdn", after=3, delay=15)
    process = start(hub, tmp_path, "convert", "hf://o/sd/sd.ckpt", place / "out")
    deadline = time.monotonic() + 30
    while silent.seen < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (code, "")
    assert err.count("\n") == 1
    assert not list(place.iterdir())
