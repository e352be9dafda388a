"""What a manifest says of files that were there before: whose they are, or that nobody knows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from tests.support.samples import SHAPED, WEIGHTS, in_diffusers, save_ckpt, weights_of
from vaeconv import ConvertOptions, CopyOptions, convert
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.publish.card.sections import provenance_section
from vaeconv.publish.documents import read_manifest
from vaeconv.weights.convert import Conversion
from vaeconv.weights.options import PruneOptions
from vaeconv.weights.prune import prune

FP16 = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, seed in (("a", 1), ("b", 2)):
        save_file(weights_of(SHAPED, seed=seed), folder / f"{name}.safetensors")
    return folder


def write(source: Path, target: Path, **options: Any) -> Conversion:
    options = {"overwrite": True, "scaling": ScalingOptions(family="sd1"), **options}
    return convert(source, target, ConvertOptions(**options))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "vaeconv.json").read_bytes())


def warnings_of(result: Conversion) -> list[str]:
    return [note for note in map(str, result.plan.notes) if " keeps " in note and "made" in note]


def test_variants_of_one_source_are_one_release(sources: Path, tmp_path: Path) -> None:
    first = write(sources / "a.safetensors", tmp_path / "d")
    second = write(sources / "a.safetensors", tmp_path / "d", dtype="fp16", variant="fp16")
    found = manifest_of(tmp_path / "d")
    assert set(found["outputs"]) == {WEIGHTS, FP16, "config.json"} and "others" not in found
    assert found["outputs"][WEIGHTS]["sha256"] == first.written[0].sha256
    assert not warnings_of(second)


def test_weights_of_another_source_keep_their_own(sources: Path, tmp_path: Path) -> None:
    write(sources / "a.safetensors", tmp_path / "d")
    write(sources / "a.safetensors", tmp_path / "d", dtype="fp16", variant="fp16")
    result = write(sources / "b.safetensors", tmp_path / "d")
    found = manifest_of(tmp_path / "d")
    assert set(found["outputs"]) == {WEIGHTS, "config.json"}
    assert found["source"]["name"] == "b.safetensors"
    other = found["others"][FP16]
    assert other["source"]["name"] == "a.safetensors"
    assert other["sha256"] == hashlib.sha256((tmp_path / "d" / FP16).read_bytes()).hexdigest()
    assert "a.safetensors" in warnings_of(result)[0] and FP16 in warnings_of(result)[0]
    again = write(sources / "b.safetensors", tmp_path / "d")
    assert manifest_of(tmp_path / "d") == found and warnings_of(again) == warnings_of(result)
    back = write(sources / "a.safetensors", tmp_path / "d")
    assert not warnings_of(back)
    assert set(manifest_of(tmp_path / "d")["outputs"]) == {WEIGHTS, FP16, "config.json"}


def test_a_file_of_the_same_name_and_size_is_another_source(tmp_path: Path) -> None:
    source = tmp_path / "last.safetensors"
    save_file(weights_of(SHAPED, seed=1), source)
    write(source, tmp_path / "d", dtype="fp16", variant="fp16")
    size = source.stat().st_size
    save_file(weights_of(SHAPED, seed=2), source)  # trained on
    assert source.stat().st_size == size
    result = write(source, tmp_path / "d")
    assert FP16 in manifest_of(tmp_path / "d")["others"] and warnings_of(result)


def test_the_ema_of_a_source_is_not_its_raw_weights(tmp_path: Path) -> None:
    raw = weights_of(SHAPED)
    state = raw | {f"model_ema.{name.replace('.', '')}": raw[name] * 0.5 for name in raw}
    source = save_ckpt(tmp_path / "last.ckpt", state)
    write(source, tmp_path / "d", ema=True, variant="ema")
    result = write(source, tmp_path / "d", hash_source=False)
    assert "diffusion_pytorch_model.ema.safetensors" in manifest_of(tmp_path / "d")["others"]
    assert warnings_of(result)


@pytest.mark.parametrize("change", ["changed", "truncated", "no manifest", "not listed", "hostile"])
def test_what_no_manifest_proves_is_nobody_s(sources: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "d"
    write(sources / "a.safetensors", folder, dtype="fp16", variant="fp16")
    data = bytearray((folder / FP16).read_bytes())
    document = manifest_of(folder)
    if change == "changed":
        data[-1] ^= 1
        (folder / FP16).write_bytes(data)
    elif change == "truncated":
        (folder / FP16).write_bytes(data[:-1])
    elif change == "no manifest":
        (folder / "vaeconv.json").unlink()
    elif change == "not listed":
        del document["outputs"][FP16]
        (folder / "vaeconv.json").write_text(json.dumps(document))
    else:
        document["outputs"][FP16] = ["x"]
        (folder / "vaeconv.json").write_text(json.dumps(document))
    result = write(sources / "a.safetensors", folder)
    found = manifest_of(folder)
    assert FP16 not in found["outputs"]
    assert found["others"][FP16] == {"size": (folder / FP16).stat().st_size, "source": None}
    assert "was not made by vaeconv" in warnings_of(result)[0]


def test_a_copy_without_checks_claims_nothing_else(sources: Path, tmp_path: Path) -> None:
    unchecked = {"copy": CopyOptions(check=False)}
    write(sources / "a.safetensors", tmp_path / "d", dtype="fp16", variant="fp16")
    write(sources / "a.safetensors", tmp_path / "d", **unchecked)
    assert FP16 not in manifest_of(tmp_path / "d")["outputs"]
    assert manifest_of(tmp_path / "d")["others"][FP16]["source"]["name"] == "a.safetensors"


def test_other_files_stay_and_are_not_claimed(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / ".git").mkdir(parents=True)
    for name in ("README.md", "LICENSE", ".git/HEAD", "diffusion_pytorch_model.bin",
                 "diffusion_flax_model.msgpack", "model.onnx"):  # fmt: skip
        (folder / name).write_text(name)
    result = write(sources / "a.safetensors", folder)
    found = manifest_of(folder)
    assert set(found["outputs"]) == {WEIGHTS, "config.json"}
    assert set(found["others"]) == {"diffusion_pytorch_model.bin", "diffusion_flax_model.msgpack"}
    kept = [note for note in map(str, result.plan.notes) if " keeps " in note]
    (rest,) = [note for note in kept if "made" not in note]
    assert "README.md" in rest and "model.onnx" in rest
    assert (folder / ".git" / "HEAD").read_text() == ".git/HEAD"


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("older", [False, True])
def test_shards_that_diffusers_would_prefer_are_removed_and_named(
    sources: Path, tmp_path: Path, variant: str | None, older: bool
) -> None:
    folder = tmp_path / "d"
    write(sources / "a.safetensors", folder, variant=variant)
    options = PruneOptions(dtype="keep", variant=variant, max_shard_size=300_000, overwrite=True)
    prune(folder, tmp_path / "sharded", options)
    names = {path.name for path in (tmp_path / "sharded").iterdir()}
    (index,) = [name for name in names if ".index." in name]
    if older and variant:
        legacy = f"diffusion_pytorch_model.safetensors.{variant}.index.json"
        (tmp_path / "sharded" / index).rename(tmp_path / "sharded" / legacy)
        index = legacy
    result = write(sources / "b.safetensors", tmp_path / "sharded", variant=variant)
    assert not [path for path in (tmp_path / "sharded").iterdir() if "-of-" in path.name]
    assert not (tmp_path / "sharded" / index).exists()
    assert any("removed" in note and "-of-" in note for note in map(str, result.plan.notes))
    model = AutoencoderKL.from_pretrained(tmp_path / "sharded", variant=variant)
    expected = in_diffusers(weights_of(SHAPED, seed=2), SHAPED)
    assert all((model.state_dict()[name] == tensor).all() for name, tensor in expected.items())


def test_the_card_tells_them_apart(sources: Path, tmp_path: Path) -> None:
    write(sources / "a.safetensors", tmp_path / "d", dtype="fp16", variant="fp16")
    write(sources / "b.safetensors", tmp_path / "d")
    (tmp_path / "d" / "diffusion_pytorch_model.x.safetensors").write_bytes(b"?")
    write(sources / "b.safetensors", tmp_path / "d")
    text = provenance_section(read_manifest(tmp_path / "d"), None, "1").text
    assert f"| {FP16} | made from a.safetensors, not from the files above |" in text
    assert "| diffusion_pytorch_model.x.safetensors | origin unknown |" in text


def test_a_manifest_beside_a_file_is_not_left_to_lie(sources: Path, tmp_path: Path) -> None:
    target, beside = tmp_path / "x.safetensors", tmp_path / "x.safetensors.vaeconv.json"
    write(sources / "a.safetensors", target, scaling=ScalingOptions(), manifest=True)
    write(sources / "b.safetensors", target, scaling=ScalingOptions())
    found = json.loads(beside.read_bytes())
    assert found["source"]["name"] == "b.safetensors"
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert found["outputs"]["x.safetensors"]["sha256"] == digest
    assert len(load_file(target)) == len(weights_of(SHAPED))
