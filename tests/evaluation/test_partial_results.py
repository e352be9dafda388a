"""Runs that were killed go on where they were, and end as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.runs import (
    FOLDER,
    KL,
    RAW,
    SIZE,
    WIDTH,
    Document,
    assert_results_near,
    measure,
    run_eval,
    spec,
    start,
    variables_of,
    without_seconds,
    write_tiles,
)
from tests.support.faults import Call, Watch
from vaeconv.errors import UsageError
from vaeconv.evaluation.batches import BatchRunner
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.partial_results import ShardWriter, read_shards
from vaeconv.evaluation.protocol import Protocol

ALL = ("rfid", "psnr", "ssim")
DAMAGED = "not an image of a known format, or cut short"
ROW = 4 * WIDTH * 2  # bytes of the features of a picture and of one reconstruction


def lines_of(parts: Path) -> dict[str, list[dict[str, Any]]]:
    """The whole lines of each shard."""
    return {
        path.name: [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        for path in sorted(parts.glob("*.jsonl"))
    }


def assert_same(found: Document, expected: Document) -> None:
    """All the same but for the time that it took, and what other batches change."""
    one, other = without_seconds(found), without_seconds(expected)
    assert_results_near(one, other)
    assert texts_of(one) == texts_of(other)


def texts_of(value: Any) -> Any:
    """A document without its numbers."""
    if isinstance(value, dict):
        return {key: texts_of(part) for key, part in value.items()}
    if isinstance(value, list):
        return [texts_of(part) for part in value]
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


# --- killed ---


@pytest.mark.usefixtures("small_inception")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, networks: dict[str, Path]) -> None:
    pictures = write_tiles(tmp_path / "pictures", 36)
    out = tmp_path / "eval.json"
    parts = tmp_path / "eval.json.parts"
    args = ("eval", KL, "--images", pictures, "--out", out, "--size", SIZE, "--metrics",
            "rfid,psnr,ssim", "--batch-size", 1, "--device", "cpu")  # fmt: skip
    process = start(*args, **variables_of(networks))
    shard = parts / "shard-0000-0000.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not shard.exists() or shard.read_bytes().count(b"\n") < 8:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    before = [record["at"] for record in lines_of(parts)[shard.name]]
    assert 8 <= len(before) < 36, "it was done before it was killed"

    options: dict[str, Any] = {"metrics": ALL, "weights": networks, "batch_size": 1}
    result = run_eval(
        *args[1:6], "--batch-size", 1, metrics="rfid,psnr,ssim", **variables_of(networks)
    )
    assert result.exit_code == 0, result.stderr
    shards = lines_of(parts)
    assert [record["at"] for record in shards.pop(shard.name)] == before
    (after,) = shards.values()
    assert sorted(before + [record["at"] for record in after]) == list(range(36))
    found = json.loads(out.read_text())
    assert found["pictures"]["number"] == 36
    whole = measure([KL], pictures, tmp_path / "whole", **options)
    whole["models"][0]["path"] = KL.name  # as in files, which may be published
    assert_same({key: found[key] for key in whole}, whole)


# --- cut short ---


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, networks: dict[str, Path]
) -> tuple[Path, Document]:
    """Parts and result of a run with five pictures, of which one cannot be read."""
    from tests.evaluation.runs import shrink_inception

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(photos, folder / "pictures")
    (folder / "pictures" / "001.png").write_text("damaged")
    with pytest.MonkeyPatch.context() as patch:
        shrink_inception(patch.setattr)
        found = measure([KL], folder / "pictures", folder / "parts", metrics=ALL, weights=networks)
    assert found["pictures"]["skipped"] == {DAMAGED: 1}
    return folder, found


def cut(path: Path, size: int) -> None:
    data = path.read_bytes()
    assert 0 <= size < len(data) or -len(data) < size < 0
    path.write_bytes(data[:size])


@pytest.mark.usefixtures("small_inception")
@pytest.mark.parametrize(
    ("suffix", "size", "kept"),
    [
        (".jsonl", -1, 4),  # the last line lacks its end only
        (".jsonl", -30, 4),
        (".jsonl", 40, 0),  # inside the first line
        (".jsonl", 0, 0),
        (".f32", -1, 4),
        (".f32", -ROW, 4),
        (".f32", -ROW - 3, 3),
        (".f32", ROW, 2),  # one row, and the picture behind it was skipped
        (".f32", ROW + 5, 2),
    ],
)
def test_what_is_cut_is_measured_again(
    tmp_path: Path,
    networks: dict[str, Path],
    finished: tuple[Path, Document],
    suffix: str,
    size: int,
    kept: int,
) -> None:
    folder, expected = finished
    parts = tmp_path / "parts"
    shutil.copytree(folder / "parts", parts)
    cut(parts / f"shard-0000-0000{suffix}", size)
    found = measure([KL], folder / "pictures", parts, metrics=ALL, weights=networks)
    assert_same(found, expected)
    again = lines_of(parts)["shard-0000-0001.jsonl"]
    assert [record["at"] for record in again] == list(range(kept, 5))
    assert found["pictures"] == expected["pictures"]


@pytest.mark.usefixtures("small_inception")
def test_both_files_cut_at_different_places(
    tmp_path: Path, networks: dict[str, Path], finished: tuple[Path, Document]
) -> None:
    folder, expected = finished
    for number, (line, row) in enumerate([(-5, -ROW - 1), (-200, -1), (-200, -ROW)]):
        parts = tmp_path / f"{number}"
        shutil.copytree(folder / "parts", parts)
        cut(parts / "shard-0000-0000.jsonl", line)
        cut(parts / "shard-0000-0000.f32", row)
        assert_same(
            measure([KL], folder / "pictures", parts, metrics=ALL, weights=networks), expected
        )


@pytest.mark.usefixtures("small_inception")
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(
    tmp_path: Path, photos: Path, networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time one more picture is written, and the row of another."""
    real = ShardWriter.add
    count = 0

    def add(writer: ShardWriter, record: Any, features: Any = None) -> None:
        nonlocal count
        count += 1
        if count % 2 == 0:
            writer._rows.write(features.tobytes())  # type: ignore[union-attr]
            raise KeyboardInterrupt
        real(writer, record, features)

    whole = measure([KL], photos, tmp_path / "whole", metrics=ALL, weights=networks)
    monkeypatch.setattr(ShardWriter, "add", add)
    for done in range(1, 5):
        with pytest.raises(KeyboardInterrupt):
            measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
        held = [record["at"] for lines in lines_of(tmp_path / "parts").values() for record in lines]
        assert held == list(range(done))
    found = measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
    assert_same(found, whole)


def test_a_line_that_is_no_json_ends_its_shard(tmp_path: Path, photos: Path) -> None:
    whole = measure([KL], photos, tmp_path / "parts")
    shard = tmp_path / "parts" / "shard-0000-0000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[3:]]))
    assert_same(measure([KL], photos, tmp_path / "parts"), whole)
    again = lines_of_behind(tmp_path / "parts")
    assert [record["at"] for record in again] == [2, 3, 4]


def lines_of_behind(parts: Path) -> list[dict[str, Any]]:
    text = (parts / "shard-0000-0001.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("small_inception")
def test_a_picture_that_two_shards_hold_counts_once(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    some = measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks)
    shard = tmp_path / "parts" / "shard-0000-0000.jsonl"
    # Another process did the first two as well, and a third picture is left.
    for suffix, size in ((".jsonl", None), (".f32", 2 * ROW)):
        data = shard.with_suffix(suffix).read_bytes()
        lines = b"".join(data.splitlines(keepends=True)[:2])
        (tmp_path / "parts" / f"shard-0001-0000{suffix}").write_bytes(
            data[:size] if size else lines
        )
    cut(shard, -3)
    assert_same(measure([KL], photos, tmp_path / "parts", metrics=ALL, weights=networks), some)


# --- done ---


def test_a_run_that_is_done_measures_nothing_again(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure([spec(KL)], photos, tmp_path / "parts", latent_stats=True)

    def fail(*args: Any) -> None:
        raise AssertionError("it computes")

    monkeypatch.setattr(BatchRunner, "run", fail)
    again = measure([spec(KL, comment="now with a word")], photos, tmp_path / "parts",
                    latent_stats=True)  # fmt: skip
    assert again["models"][0]["comment"] == "now with a word"
    again["models"][0]["comment"] = ""
    assert_same(again, first)
    assert lines_of(tmp_path / "parts")["shard-0000-0001.jsonl"] == []


# --- another run's results ---


@pytest.fixture
def done(tmp_path: Path, photos: Path) -> Callable[..., Document]:
    """Run with the same parts as before, with some things changed."""
    shutil.copytree(photos, tmp_path / "photos")
    base: dict[str, Any] = {"models": [spec(KL, name="x")], "images": tmp_path / "photos"}

    def again(**changes: Any) -> Document:
        options = {**base, **changes}
        return measure(options.pop("models"), options.pop("images"), tmp_path / "parts", **options)

    again()
    return again


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"models": [spec(FOLDER, name="x")]},
    "name": {"models": [spec(KL, name="y")]},
    "models": {"models": [spec(KL, name="x"), spec(KL, name="y")]},
    "limit": {"limit": 3},
    "metrics": {"metrics": ["psnr"]},
    "latents": {"latent_stats": True},
    **{
        f"protocol {name}": {"protocol": replace(
            Protocol(size=SIZE, name="custom"),
            **{name: value})}
        for name, value in (
            ("size", 48), ("resize", "squash"), ("filter", "lanczos"), ("posterior", "sample"),
            ("rounds", False), ("dtype", "bf16"), ("seed", 3),
        )
    },
}  # fmt: skip


DIFFERENCE = {name: name.split()[0] for name in CHANGES} | {
    "model": "models", "name": "models", "limit": "images", "latents": "latent stats",
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_results_of_another_run_are_not_mixed_in(
    tmp_path: Path, photos: Path, done: Callable[..., Document], what: str
) -> None:
    before = lines_of(tmp_path / "parts")
    with pytest.raises(UsageError, match=f"another run is there \\(other .*{DIFFERENCE[what]}"):
        done(**CHANGES[what])
    with pytest.raises(UsageError, match="restart removes it"):
        done(**CHANGES[what], restart=True)
    assert lines_of(tmp_path / "parts") == before
    found = done(**CHANGES[what], discards=True)
    options = {"models": [spec(KL, name="x")], "images": photos, **CHANGES[what]}
    fresh = measure(options.pop("models"), options.pop("images"), tmp_path / "fresh", **options)
    assert_same(found, fresh)
    assert list(lines_of(tmp_path / "parts")) == ["shard-0000-0000.jsonl"]


def replace_image(path: Path, *, keeps_time: bool) -> None:
    """Put another image of the same length in the place of one: a BMP's length says nothing."""
    before = path.stat()
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, "BMP")
    assert path.stat().st_size == before.st_size
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def bitmaps(tmp_path: Path, photos: Path) -> Path:
    """Five images that are all of one length."""
    folder = tmp_path / "bitmaps"
    folder.mkdir()
    for path in photos.iterdir():
        with Image.open(path) as image:
            image.save(folder / f"{path.stem}.bmp")
    return folder


@pytest.mark.parametrize("change", ["renamed", "grown", "more"])
def test_other_pictures_are_another_run(
    tmp_path: Path, done: Callable[..., Document], change: str
) -> None:
    last = tmp_path / "photos" / "004.png"
    if change == "renamed":
        last.rename(tmp_path / "photos" / "zzz.png")
    elif change == "grown":
        last.write_bytes(last.read_bytes() + b"\0")
    else:
        shutil.copy(last, tmp_path / "photos" / "005.png")
    with pytest.raises(UsageError, match="another run is there \\(other images"):
        done()
    assert done(discards=True)["pictures"]["number"] == 5 + (change == "more")


@pytest.mark.parametrize("keeps_time", [False, True])
def test_an_image_that_was_replaced_is_found_by_its_bytes(
    tmp_path: Path, bitmaps: Path, keeps_time: bool
) -> None:
    """Of the same name, length and time; what was measured of it is of another image."""
    first = measure([KL], bitmaps, tmp_path / "parts")
    cut(tmp_path / "parts" / "shard-0000-0000.jsonl", -3)
    replace_image(bitmaps / "001.bmp", keeps_time=keeps_time)
    assert ImageSet(bitmaps).fingerprint == first["pictures"]["fingerprint"]
    with pytest.raises(UsageError, match=r"001\.bmp is not what it was when it was measured"):
        measure([KL], bitmaps, tmp_path / "parts")
    again = measure([KL], bitmaps, tmp_path / "parts", restart=True)
    fresh = measure([KL], bitmaps, tmp_path / "fresh")
    assert_same(again, fresh)
    assert again["pictures"]["sha256"] != first["pictures"]["sha256"]


def test_an_image_that_was_not_measured_yet_may_be_replaced(tmp_path: Path, bitmaps: Path) -> None:
    measure([KL], bitmaps, tmp_path / "parts")
    cut(tmp_path / "parts" / "shard-0000-0000.jsonl", -3)
    replace_image(bitmaps / "004.bmp", keeps_time=True)
    found = measure([KL], bitmaps, tmp_path / "parts")
    assert_same(found, measure([KL], bitmaps, tmp_path / "fresh"))


@pytest.mark.parametrize("file", ["weights", "config"])
def test_a_model_that_was_replaced_is_another_run(tmp_path: Path, photos: Path, file: str) -> None:
    """Of the same path, names and sizes."""
    shutil.copytree(FOLDER, tmp_path / "model")
    run_it = partial(measure, [tmp_path / "model"], photos, tmp_path / "parts", limit=1)
    run_it()
    if file == "weights":
        path = next((tmp_path / "model").glob("*.safetensors"))
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    else:
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "norm_num_groups": 2}))
    with pytest.raises(UsageError, match="another run is there \\(other models"):
        run_it()


def test_the_same_weights_in_another_file_are_the_same_run(tmp_path: Path, photos: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copy(RAW, tmp_path / "a.safetensors")
    run_it = partial(
        measure, [spec(tmp_path / "a.safetensors")], photos, tmp_path / "parts", limit=1
    )
    first = run_it()
    weights = load_file(RAW)
    save_file(weights, tmp_path / "a.safetensors", metadata={"note": "another"})
    again = run_it()
    assert again["models"][0]["weights_sha256"] == first["models"][0]["weights_sha256"]
    assert again["models"][0]["sha256"] != first["models"][0]["sha256"]


def test_another_version_of_a_library_is_another_run(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import PIL

    measure([KL], photos, tmp_path / "parts", limit=1)
    monkeypatch.setattr(PIL, "__version__", "0.0")
    with pytest.raises(UsageError, match="another run is there \\(other versions"):
        measure([KL], photos, tmp_path / "parts", limit=1)


def test_progress_of_which_nothing_says_what_it_is_of(tmp_path: Path, photos: Path) -> None:
    measure([KL], photos, tmp_path / "parts", limit=1)
    (tmp_path / "parts" / "run.json").unlink()
    with pytest.raises(UsageError, match="nothing says which"):
        measure([KL], photos, tmp_path / "parts", limit=1)
    (tmp_path / "parts" / "run.json").write_text("no json")
    with pytest.raises(UsageError, match="nothing says which"):
        measure([KL], photos, tmp_path / "parts", limit=1)


def test_other_weights_of_a_net_are_another_run(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    import torch

    measure([KL], photos, tmp_path / "parts", metrics=["psim"], weights=networks, limit=1)
    state = torch.load(networks["vgg16"], weights_only=True)
    torch.save({name: value / 2 for name, value in state.items()}, tmp_path / "vgg.pth")
    other = {**networks, "vgg16": tmp_path / "vgg.pth"}
    with pytest.raises(UsageError, match="another run"):
        measure([KL], photos, tmp_path / "parts", metrics=["psim"], weights=other, limit=1)


def test_an_earlier_result_is_replaced_only_when_asked(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--quiet", "--limit", 2)
    assert run_eval(*args).exit_code == 0
    first = out.read_bytes()
    for other in (("--no-uint8",), ("--no-uint8", "--restart"), ("--name", "x")):
        refused = run_eval(*args, *other)
        assert refused.exit_code == 5
        assert "--overwrite replaces it" in refused.stderr
        assert out.read_bytes() == first
    assert run_eval(*args, "--no-uint8", "--overwrite").exit_code == 0
    assert json.loads(out.read_text())["protocol"]["rounds"] is False
    assert run_eval(*args, "--restart", "--overwrite").exit_code == 0
    assert json.loads(out.read_text())["protocol"]["rounds"] is True


def test_the_same_run_renders_its_own_result_again(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--quiet", "--limit", 2)
    assert run_eval(*args).exit_code == 0
    assert run_eval(*args, "--comment", "with a word").exit_code == 0
    assert json.loads(out.read_text())["models"][0]["comment"] == "with a word"
    assert run_eval(*args, "--restart").exit_code == 0
    assert list(lines_of(tmp_path / "eval.json.parts")) == ["shard-0000-0000.jsonl"]
    # What is no result of the progress beside it is somebody's own.
    shutil.rmtree(tmp_path / "eval.json.parts")
    assert run_eval(*args).exit_code == 5
    (tmp_path / "fresh.json").write_text("mine")
    assert run_eval(*args[:4], tmp_path / "fresh.json").exit_code == 5
    assert (tmp_path / "fresh.json").read_text() == "mine"


def test_progress_of_another_run_goes_with_its_own_result_only(
    tmp_path: Path, photos: Path
) -> None:
    """--overwrite replaces a result; hours that have no result yet take --restart."""
    out = tmp_path / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--quiet", "--limit", 2)
    assert run_eval(*args).exit_code == 0
    out.write_text("a result of something else")
    refused = run_eval(*args, "--no-uint8", "--overwrite")
    assert refused.exit_code == 2
    assert "the progress of another run is there (other protocol)" in refused.stderr
    assert "--restart" in refused.stderr
    assert run_eval(*args, "--no-uint8", "--overwrite", "--restart").exit_code == 0


def test_restart_without_a_run_is_just_a_start(tmp_path: Path, photos: Path) -> None:
    found = measure([KL], photos, tmp_path / "parts", restart=True)
    assert found["pictures"]["number"] == 5


def test_restart_measures_everything_again(tmp_path: Path, photos: Path) -> None:
    first = measure([KL], photos, tmp_path / "parts")
    shard = tmp_path / "parts" / "shard-0000-0000.jsonl"
    lines = [json.loads(line) for line in shard.read_text().splitlines()]
    lines[0]["models"][0]["psnr"] = 99.0
    shard.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    kept = measure([KL], photos, tmp_path / "parts")
    assert kept["per_picture"]["models"][0]["psnr"][0] == 99
    assert_same(measure([KL], photos, tmp_path / "parts", restart=True), first)
    assert [len(found) for found in lines_of(tmp_path / "parts").values()] == [5]
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"


# --- the result's file ---


def test_the_result_is_written_whole_or_not_at_all(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--quiet", "--limit", 1, "--overwrite")
    assert run_eval(*args).exit_code == 0
    assert json.loads(out.read_text())["ok"] is True
    out.write_text("what was there")
    names = {path.name for path in folder.iterdir()}
    failed = 0
    for number in range(1, 100):

        def fail(count: int, call: Call, number: int = number) -> None:
            if count == number and call.name != "unlink":
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            watch = Watch(folder, before=fail)
            watch.install(partial(patch.setattr, raising=False))
            result = run_eval(*args)
        if len(watch.calls) < number:
            break
        assert {path.name for path in folder.iterdir()} <= names
        text = out.read_text()
        assert text == "what was there" or json.loads(text)["ok"] is True
        failed += result.exit_code == 5
        out.write_text("what was there")
    assert failed >= 3
    # It is another file that takes the name, so whoever reads the old one reads it whole.
    out.write_text("what was there")
    (tmp_path / "kept").hardlink_to(out)
    assert run_eval(*args).exit_code == 0
    assert json.loads(out.read_text())["ok"] is True
    assert (tmp_path / "kept").read_text() == "what was there"


def test_shards_are_read_in_order_and_never_overwritten(tmp_path: Path) -> None:
    for at in (1, 2):
        writer = ShardWriter(tmp_path, 3, 0)
        writer.add({"at": at, "name": "a", "sha256": "b", "models": []})
        writer.close()
    shards = read_shards(tmp_path, 0)
    assert [shard.path.name for shard in shards] == [
        "shard-0003-0000.jsonl", "shard-0003-0001.jsonl",
    ]  # fmt: skip
    assert [shard.records[0]["at"] for shard in shards] == [1, 2]
