"""Folders: the names that diffusers reads, what else they hold, and what is left open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.support.corpus import FIXTURES, Member, safetensors_bytes, torch_zip, zipped
from vaeconv.checkpoint.hub.address import parse_location, suggest_address
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.folder import are_weights
from vaeconv.errors import NotACheckpointError, UsageError, VaeconvError

SOURCE = FIXTURES / "tiny-diffusers"
STEM = "diffusion_pytorch_model"
WEIGHTS = load_file(SOURCE / f"{STEM}.safetensors")
INDICES = {
    "plain": (None, f"{STEM}.safetensors.index.json", f"{STEM}-{{}}.safetensors"),
    "variant": ("fp16", f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-{{}}.safetensors"),
    "older variant": (
        "fp16",
        f"{STEM}.safetensors.fp16.index.json",
        f"{STEM}-{{}}.fp16.safetensors",
    ),
    "any shard's name": ("fp16", f"{STEM}.safetensors.index.fp16.json", "part{}.safetensors"),
}


def sharded(folder: Path, index: str, shards: str, scale: float = 2.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCE / "config.json", folder)
    names = sorted(WEIGHTS)
    halves = {"00001-of-00002": names[::2], "00002-of-00002": names[1::2]}
    weight_map = {}
    for number, part in halves.items():
        save_file({n: WEIGHTS[n] * scale for n in part}, folder / shards.format(number))
        weight_map |= dict.fromkeys(part, shards.format(number))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_an_index_is_found_as_by_diffusers(tmp_path: Path, kind: str, beside: bool) -> None:
    variant, index, shards = INDICES[kind]
    folder = sharded(tmp_path / "in", index, shards)
    if beside:  # an index wins over one file
        name = f"{STEM}.{variant}.safetensors" if variant else f"{STEM}.safetensors"
        save_file(WEIGHTS, folder / name)
    theirs = AutoencoderKL.from_pretrained(str(folder), variant=variant, low_cpu_mem_usage=False)
    with open_checkpoint(folder, variant=variant) as checkpoint:
        assert checkpoint.variant == variant
        state = theirs.state_dict()
        assert checkpoint.tensors.keys() == state.keys()
        for name, tensor in checkpoint.tensors.items():
            assert tensor.read() == (WEIGHTS[name] * 2.0).numpy().tobytes()
    assert are_weights(index, variant)
    if kind != "any shard's name":
        assert are_weights(shards.format("00001-of-00002"), variant)
        assert not are_weights(shards.format("00001-of-00002"), "other")


def test_a_name_that_only_begins_alike_is_no_variant(tmp_path: Path) -> None:
    shutil.copy(SOURCE / f"{STEM}.safetensors", tmp_path / f"{STEM}_old.safetensors")
    with pytest.raises(NotACheckpointError, match=f"name one of its checkpoints: .*{STEM}_old"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_lists_its_checkpoints_likely_ones_first(tmp_path: Path) -> None:
    for name in ("unet/model.safetensors", "a.ckpt", "sd-vae.ckpt", "vae_1/x.pt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(NotACheckpointError) as caught:
        open_checkpoint(tmp_path)
    said = str(caught.value)
    order = ["sd-vae.ckpt", "vae_1/x.pt", "a.ckpt", "unet/model.safetensors"]
    assert [said.index(f"{tmp_path}/{name}") for name in order] == sorted(
        said.index(f"{tmp_path}/{name}") for name in order
    )
    assert "README" not in said


# --- nothing is left open ---


def broken_shard(folder: Path) -> Path:
    sharded(folder, *INDICES["plain"][1:])
    (folder / f"{STEM}-00002-of-00002.safetensors").write_bytes(b"\x05")
    return folder


def lying_index(folder: Path) -> Path:
    sharded(folder, *INDICES["plain"][1:])
    index = json.loads((folder / INDICES["plain"][1]).read_text())
    index["weight_map"]["nothing"] = f"{STEM}-00002-of-00002.safetensors"
    (folder / INDICES["plain"][1]).write_text(json.dumps(index))
    return folder


def same_tensor_twice(folder: Path) -> Path:
    sharded(folder, *INDICES["plain"][1:])
    save_file(WEIGHTS, folder / f"{STEM}-00002-of-00002.safetensors")
    return folder


def with_index(folder: Path, make: Callable[[Path], object]) -> Path:
    sharded(folder, *INDICES["plain"][1:])
    (folder / INDICES["plain"][1]).unlink()
    make(folder / INDICES["plain"][1])
    return folder


def with_config(folder: Path, make: Callable[[Path], object]) -> Path:
    shutil.copytree(SOURCE, folder)
    (folder / "config.json").unlink()
    make(folder / "config.json")
    return folder


def bundle(folder: Path, *members: Member) -> Path:
    folder.mkdir()
    (folder / "x.zip").write_bytes(zipped(members))
    return folder / "x.zip"


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a folder with files": lambda path: (path.mkdir(), (path / "x").touch()),
    "a pipe": lambda path: os.mkfifo(path),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link in circles": lambda path: path.symlink_to(path.name),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "too long": lambda path: path.write_text("{" + " " * (17 << 20) + "}"),
}
BAD: dict[str, Callable[[Path], Path]] = {
    "second shard": broken_shard,
    "index that lies": lying_index,
    "tensor in two shards": same_tensor_twice,
    **{f"config is {k}": lambda f, make=v: with_config(f, make) for k, v in BAD_FILES.items()},
    **{
        f"config beside a file is {k}": lambda f, make=v: with_config(f, make)
        / f"{STEM}.safetensors"
        for k, v in BAD_FILES.items()
    },
    "index is no UTF-8": lambda f: with_index(f, BAD_FILES["no UTF-8"]),
    "index is too long": lambda f: with_index(f, BAD_FILES["too long"]),
    "bundle's member": lambda f: bundle(f, Member("x.ckpt", torch_zip()[:-1], method=8)),
    "bundle's member, stored": lambda f: bundle(f, Member("x.ckpt", torch_zip()[:-1])),
    "bundle's second half": lambda f: bundle(
        f, Member("x.safetensors", safetensors_bytes()[:-1], method=8)
    ),
    "bundle's CRC": lambda f: bundle(f, Member("x.ckpt", torch_zip(), method=8, crc=1)),
    "bundle's config": lambda f: bundle(
        f, Member("x.ckpt", torch_zip()), Member("c.yaml", b"\xff")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing_open(tmp_path: Path, case: str) -> None:
    path = BAD[case](tmp_path / "in")
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else None
    for _ in range(3):
        with pytest.raises(VaeconvError) as caught:
            open_checkpoint(path)
        assert caught.value.exit_code == 3 and str(tmp_path) in str(caught.value)
        del caught
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_given_config_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    from vaeconv import ConvertOptions, convert

    BAD_FILES[kind](tmp_path / "c.json")
    with pytest.raises(VaeconvError, match=r"c\.json: ") as caught:
        convert(SOURCE, tmp_path / "out", ConvertOptions(config=tmp_path / "c.json"))
    assert caught.value.exit_code == 3


# --- names on the Hub ---


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("stabilityai/sd-vae-ft-mse", "hf://stabilityai/sd-vae-ft-mse"),
        ("owner/name@v1", "hf://owner/name@v1"),
        ("owner/name/vae", "hf://owner/name/vae"),
        ("owner/name/vae/x.safetensors", "hf://owner/name/vae/x.safetensors"),
        ("hf:owner/name", "hf://owner/name"),
        ("hf:/owner/name", "hf://owner/name"),
        ("huggingface.co/owner/name", "hf://owner/name"),
        ("huggingface.co/owner/name/blob/main/a.ckpt", "hf://owner/name@main/a.ckpt"),
        ("models/vae.safetensors", None),
        ("models/owner/name", "hf://owner/name"),
        ("./owner/name", None),
        ("/owner/name", None),
        ("../x/y", None),
        ("x.ckpt", None),
        ("datasets/owner/name", None),
        ("a b/c", None),
    ],
)
def test_what_looks_like_a_repository_gets_its_address(text: str, meant: str | None) -> None:
    assert suggest_address(text) == meant
    with pytest.raises(VaeconvError) as caught:
        open_checkpoint(text)
    assert caught.value.exit_code == 3
    assert (meant or "hf://") in str(caught.value) if meant else "hf://" not in str(caught.value)


def test_no_hint_where_the_folder_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert suggest_address("runs/missing") is None


def test_the_type_of_a_repository_may_stand_in_front() -> None:
    assert parse_location("hf://models/owner/name@v1/a/b") == parse_location(
        "hf://owner/name@v1/a/b"
    )
    for kind in ("datasets", "spaces", "buckets", "kernels"):
        with pytest.raises(UsageError, match=f"{kind} are not models"):
            parse_location(f"hf://{kind}/owner/name")
        with pytest.raises(UsageError, match=f"{kind} are not models"):
            parse_location(f"https://huggingface.co/{kind}/owner/name")


# --- empty names ---


def test_an_empty_name_is_wrong_usage_from_python() -> None:
    with pytest.raises(UsageError, match="an empty name"):
        open_checkpoint("")


@pytest.mark.parametrize(
    "args",
    [
        ["inspect", ""], ["convert", "", "out"], ["convert", "x.ckpt", ""], ["verify", "", "x"],
        ["verify", "x", ""], ["inspect", "x", "--config", ""], ["inspect", "x", "--config="],
        ["eval", "--vae", ""], ["eval", "--images", ""], ["verify", "x", "y", "--images", ""],
        ["push", "", "owner/name"], ["release", ""], ["card", ""], ["prune", "x", "--out-dir", ""],
        ["latents", "", "x", "y"], ["verify-signature", ""], ["compare", ""],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_argument_is_wrong_usage(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaeconv.cli.group import app

    with pytest.raises(SystemExit) as caught:
        app(args, prog_name="vaeconv")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "an empty" in said and "shell" in said
    assert len(said.splitlines()) == 1


def test_an_empty_argument_through_the_entry_point(tmp_path: Path) -> None:
    entry = Path(sys.executable).with_name("vaeconv")
    done = subprocess.run([entry, "inspect", ""], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "an empty name" in done.stderr
    prefix = [entry, "inspect", SOURCE, "--source-prefix", "", "--no-check"]
    assert subprocess.run(prefix, capture_output=True).returncode == 0
