"""Entries of a safetensors header: those of the source, and those that a user asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.samples import in_diffusers, prefixed, save_folder, weights_of
from vaeconv.errors import UsageError
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions, PruneOptions
from vaeconv.weights.prune import prune

SOURCE = str(FIXTURES / "tiny-kl.ckpt")
ENTRIES = {"modelspec.title": "Tiny: „ä“ = x", "a": "", "Z": "line\nline"}


def entries_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def test_entries_stand_beside_the_format(tmp_path: Path) -> None:
    options = ConvertOptions(metadata=ENTRIES)
    written = convert(SOURCE, tmp_path / "out", options).written[0].path
    assert entries_of(written) == {**ENTRIES, "format": "pt"}
    plain = convert(SOURCE, tmp_path / "plain", ConvertOptions()).written[0].path
    assert entries_of(plain) == {"format": "pt"}
    tensors, expected = load_file(written), load_file(plain)
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].tobytes() == expected[name].tobytes() for name in tensors)
    again = convert(
        SOURCE, tmp_path / "again", ConvertOptions(metadata=dict(reversed(ENTRIES.items())))
    )
    assert again.written[0].path.read_bytes() == written.read_bytes(), "in any order"


def test_pruned_files_have_them_too(tmp_path: Path) -> None:
    prune(SOURCE, tmp_path / "a.safetensors", PruneOptions(metadata=ENTRIES))
    assert entries_of(tmp_path / "a.safetensors") == {**ENTRIES, "format": "pt"}


@pytest.mark.parametrize(
    ("output", "metadata", "said"),
    [
        ("a.ckpt", {"a": "b"}, "no header for metadata"),
        ("out", {"format": "tf"}, "how tensors are to be loaded"),
    ],
)
def test_what_no_header_can_have(
    tmp_path: Path, output: str, metadata: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        convert(SOURCE, tmp_path / output, ConvertOptions(metadata=metadata))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metadata", "a=b=c", "--metadata", "d="], None),
        (["--metadata", "a"], "--metadata a is not KEY=TEXT"),
        (["--metadata", "=a"], "--metadata =a is not KEY=TEXT"),
        (["--metadata", "a=b", "--metadata", "a=c"], "--metadata gives a twice"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "prune"])
def test_the_option(tmp_path: Path, command: str, options: list[str], said: str | None) -> None:
    target = tmp_path / "a.safetensors"
    entry = Path(sys.executable).with_name("vaeconv")
    done = subprocess.run(
        [entry, command, SOURCE, target, *options], capture_output=True, text=True, check=False
    )
    if said:
        assert (done.returncode, said in done.stderr, target.exists()) == (2, True, False)
    else:
        assert entries_of(target) == {"a": "b=c", "d": "", "format": "pt"}


# --- what the source says ---

STAYS = {
    "modelspec.title": "Mine",
    "modelspec.license": "CreativeML Open RAIL-M",
    "modelspec.architecture": "stable-diffusion-v1/vae",
    "modelspec.prediction_type": "v",
    "modelspec.thumbnail": "data:image/png;base64,AAAA",
    "sd_merge_recipe": '{"primary": "x"}',
    "ss_vae_hash": "that of a model it was trained from",
    "ss_mixed_precision": "fp16",
    "prediction_type": "v",
    "empty": "",
}
OF_BYTES = {
    "modelspec.hash_sha256": "0x0",
    "sshs_model_hash": "0",
    "sshs_legacy_hash": "0",
    "sha256": "0",
    "total_size": "9",
}


def source_of(tmp_path: Path, entries: dict[str, str], *, full: bool = False) -> Path:
    state = weights_of()
    if full:
        unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 8)}
        state = unet | prefixed(state)
    save_file(state, tmp_path / "in.safetensors", metadata={"format": "pt", **entries})
    return tmp_path / "in.safetensors"


@pytest.mark.parametrize("command", ["convert", "prune"])
def test_what_a_header_says_is_kept(tmp_path: Path, command: str) -> None:
    source = source_of(tmp_path, STAYS | OF_BYTES)
    target = tmp_path / "out.safetensors"
    if command == "convert":
        result = convert(source, target, ConvertOptions())
    else:
        result = prune(source, target, PruneOptions(dtype="keep"))
    assert entries_of(target) == {**STAYS, "format": "pt"}
    (note,) = [note for note in map(str, result.plan.notes) if "metadata" in note]
    assert all(key in note for key in OF_BYTES)
    with safe_open(target, framework="np") as file:  # the library reads it, and writes the same
        assert dict(file.metadata()) == {**STAYS, "format": "pt"}


def test_folders_and_shards_keep_it_too(tmp_path: Path) -> None:
    source = source_of(tmp_path, STAYS)
    convert(source, tmp_path / "d", ConvertOptions())
    shards = PruneOptions(dtype="keep", max_shard_size=300_000)
    result = prune(tmp_path / "d", tmp_path / "sharded", shards)
    weights = [file.path for file in result.written if file.path.suffix == ".safetensors"]
    assert len(weights) > 1
    for path in (tmp_path / "d" / "diffusion_pytorch_model.safetensors", *weights):
        assert entries_of(path) == {**STAYS, "format": "pt"}
    convert(tmp_path / "sharded", tmp_path / "back.safetensors", ConvertOptions())
    assert entries_of(tmp_path / "back.safetensors") == {**STAYS, "format": "pt"}


def test_any_shard_may_hold_it(tmp_path: Path) -> None:
    save_folder(tmp_path / "d", in_diffusers(weights_of()))
    prune(tmp_path / "d", tmp_path / "s", PruneOptions(dtype="keep", max_shard_size=300_000))
    last = sorted((tmp_path / "s").glob("*-of-*"))[-1]
    tensors = {name: torch.from_numpy(value) for name, value in load_file(last).items()}
    save_file(tensors, last, metadata={"format": "pt", "license": "mit"})
    convert(tmp_path / "s", tmp_path / "back.safetensors", ConvertOptions())
    assert entries_of(tmp_path / "back.safetensors") == {"license": "mit", "format": "pt"}


def test_what_is_asked_for_wins_over_what_was_there(tmp_path: Path) -> None:
    source = source_of(tmp_path, STAYS | OF_BYTES)
    wanted = {"modelspec.title": "Yours", "sha256": "that of its data set"}
    convert(source, tmp_path / "a.safetensors", ConvertOptions(metadata=wanted))
    assert entries_of(tmp_path / "a.safetensors") == {**STAYS, **wanted, "format": "pt"}
    options = ConvertOptions(metadata=wanted, keep_metadata=False)
    convert(source, tmp_path / "b.safetensors", options)
    assert entries_of(tmp_path / "b.safetensors") == {**wanted, "format": "pt"}


@pytest.mark.parametrize(
    ("full", "options", "gone"),
    [
        (False, {"dtype": "fp16"}, {"modelspec.vae_dtype"}),
        (False, {"dtype": "keep"}, set()),
        (True, {"dtype": "keep"}, set()),
        (
            True,
            {"dtype": "keep", "vae_only": True},
            {"modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type",
             "modelspec.thumbnail", "prediction_type"},
        ),
    ],
)  # fmt: skip
def test_what_does_not_hold_any_more_is_named(
    tmp_path: Path, full: bool, options: dict[str, Any], gone: set[str]
) -> None:
    entries = STAYS | {"modelspec.vae_dtype": "float32", "modelspec.implementation": "sgm"}
    source = source_of(tmp_path, entries, full=full)
    result = prune(source, tmp_path / "out.safetensors", PruneOptions(**options))
    assert set(entries) - set(entries_of(tmp_path / "out.safetensors")) == gone
    said = " ".join(note for note in map(str, result.plan.notes) if "metadata" in note)
    assert all(key in said for key in gone) and bool(said) is bool(gone)


def test_names_of_another_codebase(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"modelspec.implementation": "sgm", "modelspec.license": "mit"})
    convert(source, tmp_path / "d", ConvertOptions())
    found = entries_of(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    assert found == {"modelspec.license": "mit", "format": "pt"}


@pytest.mark.parametrize(("keep", "said"), [(True, True), (False, False)])
def test_a_checkpoint_has_no_header_and_that_is_said(
    tmp_path: Path, keep: bool, said: bool
) -> None:
    source = source_of(tmp_path, STAYS)
    result = convert(source, tmp_path / "a.ckpt", ConvertOptions(keep_metadata=keep))
    assert any("has no header" in note for note in map(str, result.plan.notes)) is said


def test_large_metadata_is_bounded(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"a": "x" * (9 << 20), "b": "y" * (9 << 20), "c": "small"})
    result = convert(source, tmp_path / "a.safetensors", ConvertOptions())
    assert set(entries_of(tmp_path / "a.safetensors")) == {"a", "c", "format"}
    said = [str(note) for note in result.plan.notes]
    assert any("too large" in note and note.endswith("metadata b") for note in said)


def test_hostile_entries_are_shown_and_do_no_harm(tmp_path: Path) -> None:
    entries = {"\x1b[31mred\nline": "\x1b]0;title\x07" + "z" * 5000, "[bold]markup": "[/]\u202e"}
    source = source_of(tmp_path, entries | {f"k{n}": "v" for n in range(60)})
    entry = Path(sys.executable).with_name("vaeconv")
    done = subprocess.run(
        [entry, "inspect", "-v", "--no-check", source], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert "[bold]markup: [/]\\u202e" in done.stdout and "23 more" in done.stdout
    assert len(done.stdout) < 12_000
    done = subprocess.run(
        [entry, "inspect", "--no-check", "--json", source],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["metadata"].items() >= entries.items()
    convert(source, tmp_path / "a.safetensors", ConvertOptions())
    assert entries_of(tmp_path / "a.safetensors").items() >= entries.items()
    first = (tmp_path / "a.safetensors").read_bytes()
    convert(source, tmp_path / "a.safetensors", ConvertOptions(overwrite=True))
    assert (tmp_path / "a.safetensors").read_bytes() == first


@pytest.mark.parametrize("entry", [{"a": "\udcff"}, {"a": 3}])
def test_entries_that_are_no_text(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"text|UTF-8"):
        convert(SOURCE, tmp_path / "a.safetensors", ConvertOptions(metadata=entry))


def test_the_option_that_drops_it(tmp_path: Path) -> None:
    source = source_of(tmp_path, STAYS)
    entry = Path(sys.executable).with_name("vaeconv")
    for command in ("convert", "prune"):
        target = tmp_path / f"{command}.safetensors"
        subprocess.run([entry, command, "--no-metadata", source, target], check=True)
        assert entries_of(target) == {"format": "pt"}
