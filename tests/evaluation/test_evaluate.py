"""Whole evaluations: what the numbers are, judged by plain loops with other people's code."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional

from tests.evaluation.runs import (
    FIXTURES,
    FOLDER,
    KL,
    RAW,
    SIZE,
    SMALL,
    Document,
    Rows,
    assert_results_near,
    measure,
    prepared,
    rebuilt,
    run,
    run_eval,
    spec,
    start,
    variables_of,
    write_tiles,
)
from tests.support.closeness import assert_near, gap, magnitude, near, near_metric
from tests.support.samples import save_ckpt, weights_of
from vaeconv import PruneOptions, prune
from vaeconv.errors import CheckFailedError, InputError, MissingDependencyError, UsageError
from vaeconv.evaluation import evaluate as evaluation
from vaeconv.evaluation import inception
from vaeconv.evaluation.metrics import METRICS
from vaeconv.evaluation.models import Candidate
from vaeconv.evaluation.protocol import Protocol

CROPS = 66


# --- the metrics by other means ---


@cache
def vgg_layers(weights: Path, shade: bytes) -> list[Tensor]:
    """The five layers of VGG16 for a picture's bytes, channels of unit length."""
    state = torch.load(weights, weights_only=True)
    pixels = torch.frombuffer(bytearray(shade), dtype=torch.uint8).reshape(SIZE, SIZE, 3)
    x = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450]
    ).view(1, 3, 1, 1)
    taken = []
    for index in range(30):
        name = f"features.{index}.weight"
        if name in state:
            x = functional.conv2d(
                x, state[name].float(), state[f"features.{index}.bias"].float(), padding=1
            ).relu()
        elif index in (4, 9, 16, 23):
            x = functional.max_pool2d(x, 2)
        if index in (3, 8, 15, 22, 29):
            taken.append(functional.normalize(x, dim=1, eps=1e-10))
    return taken


def judge(original: Rows, other: Rows, networks: dict[str, Path]) -> dict[str, float]:
    """Measure a picture with scikit-image and a plain VGG16."""
    layers = [vgg_layers(networks["vgg16"], rows.tobytes()) for rows in (original, other)]
    linear_weights = torch.load(networks["lpips linear weights"], weights_only=True)
    squares = [(a - b).square()[0] for a, b in zip(*layers, strict=True)]
    return {
        "psnr": peak_signal_noise_ratio(original, other, data_range=255),
        "ssim": structural_similarity(
            original,
            other,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        ),
        "psim": sum(float(square.sum(0).mean()) for square in squares),
        "lpips": sum(
            float((square * linear_weights[f"lin{at}.model.1.weight"][0]).sum(0).mean())
            for at, square in enumerate(squares)
        ),
    }


def features(pictures: list[Rows], weights: Path, network: torch.nn.Module) -> Rows:
    state = torch.load(weights, weights_only=True)
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    pixels = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        return network.eval()(pixels).double().numpy()


def distance(one: Rows, other: Rows) -> float:
    """The Fréchet distance as its paper has it."""
    covariances = [np.cov(found, rowvar=False) for found in (one, other)]
    # The root's trace is the sum of the roots of the product's eigenvalues.
    shared = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    gap = one.mean(0) - other.mean(0)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1]) - 2 * shared)


# --- a full run ---


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("pictures") / "crops", CROPS)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "pruned.safetensors"
    prune(KL, target, PruneOptions(ema=True))
    return target


@pytest.fixture(scope="module")
def full(
    tmp_path_factory: pytest.TempPathFactory, crops: Path, pruned: Path, networks: dict[str, Path]
) -> Document:
    """Raw, EMA and pruned weights, every metric, 66 crops of photographs."""
    from tests.evaluation.runs import shrink_inception

    models = [spec(KL, name="raw"), spec(KL, name="EMA", ema=True), spec(pruned, name="fp16")]
    parts = tmp_path_factory.mktemp("full") / "parts"
    with pytest.MonkeyPatch.context() as patch:
        shrink_inception(patch.setattr)
        return measure(models, crops, parts, metrics=METRICS, weights=networks, batch_size=11)


def rows_of(document: Document) -> dict[str, dict[str, Any]]:
    return {model["name"]: model["metrics"] for model in document["models"]}


def test_a_full_run_gives_each_metric_of_each_model(full: Document) -> None:
    kept = {"name", "number", "skipped", "left_out", "remarks", "beyond_limit"}
    assert {key: value for key, value in full["pictures"].items() if key in kept} == {
        "name": "crops", "number": CROPS, "skipped": {}, "left_out": [], "remarks": {},
        "beyond_limit": 0,
    }  # fmt: skip
    assert list(rows_of(full)) == ["raw", "EMA", "fp16"]
    for metrics in rows_of(full).values():
        assert list(metrics) == list(METRICS)
        assert metrics["rfid"] > 1e-3
        for name in METRICS[1:]:
            found = metrics[name]
            assert (found["number"], found["infinite"], found["invalid"]) == (CROPS, 0, 0)
            assert found["std"] > 0
    assert full["not_computed"] == {}
    assert [network["name"] for network in full["nets"]] == [
        "inception",
        "vgg16",
        "lpips linear weights",
    ]
    assert not any(network["is_published"] for network in full["nets"])


def test_raw_and_average_differ_and_the_pruned_average_does_not(full: Document) -> None:
    raw, average, half = rows_of(full).values()
    assert average == half
    for name in METRICS:
        one, other = ([row[name]] if name == "rfid" else list(row[name].values())[:2]
                      for row in (raw, average))  # fmt: skip
        assert all(abs(a - b) > 1e-4 * abs(b) for a, b in zip(one, other, strict=True)), name


def test_the_numbers_are_those_of_a_plain_loop(
    full: Document, crops: Path, networks: dict[str, Path]
) -> None:
    model = AutoencoderKL.from_pretrained(FOLDER)  # the raw weights, as diffusers loads them
    columns = full["per_picture"]["models"][0]
    assert full["per_picture"]["names"] == [f"{number:03d}.png" for number in range(CROPS)]
    for at in (0, 7, 31, 65):
        original = prepared(crops / f"{at:03d}.png")
        expected = judge(original, rebuilt(model, original), networks)
        for name, value in expected.items():
            assert columns[name][at] == near_metric(name, value), (at, name)


def test_mean_and_deviation_are_those_of_all_pictures(full: Document) -> None:
    for model, columns in zip(full["models"], full["per_picture"]["models"], strict=True):
        for name, values in columns.items():
            assert model["metrics"][name]["mean"] == near(np.mean(values), "fp64")
            assert model["metrics"][name]["std"] == near(
                np.std(values), "fp64", scale=magnitude(values)
            )


@pytest.mark.usefixtures("small_inception")
def test_rfid_is_that_of_the_features_of_crops_and_reconstructions(
    full: Document, crops: Path, networks: dict[str, Path]
) -> None:
    model = AutoencoderKL.from_pretrained(FOLDER)
    originals = [prepared(path) for path in sorted(crops.iterdir())]
    seen = [features(pictures, networks["inception"], inception.InceptionV3())
            for pictures in (originals, [rebuilt(model, rows) for rows in originals])]  # fmt: skip
    assert rows_of(full)["raw"]["rfid"] == near_metric("rfid", distance(*seen))


@pytest.mark.slow
def test_the_whole_inception_runs_from_the_command_line(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    out = tmp_path / "eval.json"
    done = start(
        *("eval", RAW, "--images", photos, "--limit", 3, "--out", out, "--size", SIZE),
        *("--metrics", "rfid,psnr", "--inception-weights", networks["inception"]),
        module="vaeconv",
    )
    said, complaints = done.communicate(timeout=300)
    assert done.returncode == 0, complaints
    assert "rFID" in said
    assert "other weights of inception than the published ones" in complaints
    model = AutoencoderKL.from_pretrained(FOLDER)
    originals = [prepared(path) for path in sorted(photos.iterdir())[:3]]
    one, other = (
        features(pictures, networks["inception"], inception.InceptionV3())
        for pictures in (originals, [rebuilt(model, rows) for rows in originals])
    )
    assert one.shape == (3, 2048)
    # With three pictures the covariances are of rank two, and so is the root of their product.
    centred = [(found - found.mean(0)) / math.sqrt(2) for found in (one, other)]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() - 2 * shared
    expected += sum((found**2).sum() for found in centred)
    found = json.loads(out.read_text())["models"][0]["metrics"]["rfid"]
    assert found == near_metric("rfid", expected)


# --- every layout, every way to run ---


def test_every_layout_gives_the_same_numbers(tmp_path: Path, photos: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as bundle:
        bundle.write(KL, "model/last.ckpt")
    found = measure([KL, RAW, FOLDER, tmp_path / "bundle.zip"], photos, tmp_path / "parts")
    layouts = [model["layout"] for model in found["models"]]
    assert layouts == ["compvis", "compvis", "diffusers", "compvis"]
    first, *others = (model["metrics"] for model in found["models"])
    for metrics in others:
        assert_results_near(metrics, first)


def test_batches_of_any_size_give_the_same_numbers(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    metrics = ("psnr", "ssim", "psim", "lpips")
    # Rounding makes a step of one 255th out of a last place.
    exact = replace(SMALL, rounds=False)
    one, *others = (
        measure([KL], photos, tmp_path / f"{size}", metrics=metrics, weights=networks,
                batch_size=size, protocol=exact)["models"][0]["metrics"]
        for size in (None, 2, 5)
    )  # fmt: skip
    for other in others:
        assert_results_near(other, one, rounded=False)


def test_memory_formats_and_half_precision(tmp_path: Path, photos: Path) -> None:
    plain = measure([KL], photos, tmp_path / "plain")["models"][0]["metrics"]["psnr"]["mean"]
    last = measure([KL], photos, tmp_path / "last", channels_last=True)
    assert last["models"][0]["metrics"]["psnr"]["mean"] == near_metric("psnr", plain)
    half = measure([KL], photos, tmp_path / "half", protocol=replace(SMALL, dtype="bf16"))
    found = half["models"][0]["metrics"]["psnr"]["mean"]
    assert found != plain
    assert gap(found, plain) < 0.02


def test_rounding_changes_the_numbers_a_little(tmp_path: Path, photos: Path) -> None:
    rounded = measure([KL], photos, tmp_path / "a")["per_picture"]["models"][0]["psnr"]
    exact = measure([KL], photos, tmp_path / "b", protocol=replace(SMALL, rounds=False))
    for one, other in zip(rounded, exact["per_picture"]["models"][0]["psnr"], strict=True):
        assert one != other
        assert gap(one, other) < 1e-3


def test_a_limit_takes_the_first_pictures(tmp_path: Path, photos: Path) -> None:
    everything = measure([KL], photos, tmp_path / "all")["per_picture"]
    some = measure([KL], photos, tmp_path / "some", limit=2)
    assert some["pictures"]["number"] == 2
    assert some["per_picture"]["names"] == everything["names"][:2]
    assert some["per_picture"]["models"][0]["psnr"] == near_metric(
        "psnr", everything["models"][0]["psnr"][:2]
    )


def test_a_zip_of_pictures_is_their_folder(tmp_path: Path, photos: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as bundle:
        for path in sorted(photos.iterdir(), reverse=True):
            bundle.write(path, f"val/{path.name}")
    zipped = measure([KL], tmp_path / "photos.zip", tmp_path / "a")
    loose = measure([KL], photos, tmp_path / "b")
    assert zipped["models"][0]["metrics"] == loose["models"][0]["metrics"]
    assert zipped["per_picture"]["names"][0] == "val/000.png"


# --- samples of the posterior, and latents ---


def psnr_of(tmp_path: Path, name: str, photos: Path, **options: Any) -> list[float]:
    sampled = replace(SMALL, posterior="sample", seed=options.pop("seed", 0))
    found = measure([KL], photos, tmp_path / name, protocol=sampled, **options)
    return found["per_picture"]["models"][0]["psnr"]


def test_samples_follow_from_seed_and_picture_alone(tmp_path: Path, photos: Path) -> None:
    one = psnr_of(tmp_path, "one", photos)
    assert psnr_of(tmp_path, "two", photos, batch_size=3) == near_metric("psnr", one)
    assert psnr_of(tmp_path, "few", photos, limit=2) == near_metric("psnr", one[:2])
    other = psnr_of(tmp_path, "seed", photos, seed=1)
    mode = measure([KL], photos, tmp_path / "mode")["per_picture"]["models"][0]["psnr"]
    for values in zip(one, other, mode, strict=True):
        assert len({round(value, 4) for value in values}) == 3


def test_latent_statistics_are_those_of_all_latents(tmp_path: Path, photos: Path) -> None:
    found = measure([KL], photos, tmp_path / "parts", latent_stats=True, batch_size=2)
    model = AutoencoderKL.from_pretrained(FOLDER)
    pixels = np.stack([prepared(path) for path in sorted(photos.iterdir())])
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
        latents = model.encode(inputs).latent_dist.mode().double()
    stats = found["models"][0]["latents"]
    scale = magnitude(latents)
    assert stats["mean"] == near(latents.mean().item(), scale=scale)
    assert stats["std"] == near(latents.std(correction=0).item(), scale=scale)
    assert_near(1 / stats["scaling_factor"], latents.std(correction=0).item(), scale=scale)
    channels = latents.transpose(0, 1).flatten(1)
    assert stats["channel_mean"] == near(channels.mean(1).tolist(), scale=scale)
    assert stats["channel_std"] == near(channels.std(1, correction=0).tolist(), scale=scale)
    assert stats["values_per_channel"] == channels.shape[1]
    assert "latents" not in found["per_picture"]["models"][0]
    assert measure([KL], photos, tmp_path / "none")["models"][0]["latents"] is None


# --- stand-ins, of which the numbers are known ---


class StandIn:
    """Its latents are the picture; decoding does to it what a test wants.

    Args:
        change: From the values -1 to 1 of a batch, and the number of the batch, to the decoded.
        logvar: Of the posterior.
    """

    def __init__(self, change: Callable[[Tensor, int], Tensor], logvar: float = -60.0) -> None:
        self._change = change
        self._logvar = logvar
        self._batches = 0

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.cat([pictures, torch.full_like(pictures, self._logvar)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        self._batches += 1
        return self._change(latents, self._batches - 1)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    real = evaluation.load_candidates

    def install(change: Callable[[Tensor, int], Tensor], logvar: float = -60.0) -> None:
        def load(*args: Any, **options: Any) -> list[Candidate]:
            return [one._replace(model=StandIn(change, logvar))  # type: ignore[arg-type]
                    for one in real(*args, **options)]  # fmt: skip

        monkeypatch.setattr(evaluation, "load_candidates", load)

    return install


@pytest.mark.usefixtures("small_inception")
def test_pictures_against_themselves(
    stand_in: Callable[..., None], tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    stand_in(lambda latents, batch: latents)
    found = measure([KL], photos, tmp_path / "parts", metrics=METRICS, weights=networks)
    metrics = found["models"][0]["metrics"]
    assert metrics["psnr"] == {
        "mean": None, "std": None, "number": 0, "infinite": 5, "invalid": 0,
    }  # fmt: skip
    assert found["per_picture"]["models"][0]["psnr"] == ["inf"] * 5
    assert metrics["ssim"]["mean"] == near_metric("ssim", 1)
    assert 0 <= metrics["rfid"] < 1e-3
    assert abs(metrics["psim"]["mean"]) < 1e-6
    assert abs(metrics["lpips"]["mean"]) < 1e-6


def test_equal_pictures_are_counted_and_not_averaged(
    stand_in: Callable[..., None], tmp_path: Path, photos: Path
) -> None:
    stand_in(lambda latents, batch: latents if batch in (1, 3) else (latents * 0.9))
    found = measure([KL], photos, tmp_path / "parts", batch_size=1)
    psnr, values = found["models"][0]["metrics"]["psnr"], found["per_picture"]["models"][0]["psnr"]
    assert [value == "inf" for value in values] == [False, True, False, True, False]
    finite = [value for value in values if value != "inf"]
    assert (psnr["number"], psnr["infinite"]) == (3, 2)
    assert psnr["mean"] == near(np.mean(finite), "fp64")
    assert psnr["std"] == near(np.std(finite), "fp64", scale=magnitude(finite))


def flat_pictures(folder: Path, count: int, side: int) -> Path:
    """Pictures far from black and white, so that noise is not clamped."""
    for at, tile in enumerate(write_tiles(folder, count, width=side, height=side).iterdir()):
        with Image.open(tile) as image:
            rows = np.asarray(image).astype(int)
        Image.fromarray((rows // 4 + 96).astype(np.uint8)).save(tile)
        assert at < count
    return folder


@pytest.mark.parametrize("sigma", [0.01, 0.04])
def test_noise_of_known_deviation_gives_the_psnr_of_theory(
    stand_in: Callable[..., None], tmp_path: Path, sigma: float
) -> None:
    pictures = flat_pictures(tmp_path / "flat", 4, 160)
    generator = torch.Generator().manual_seed(3)

    def add_noise(latents: Tensor, batch: int) -> Tensor:
        # A deviation of sigma from 0 to 1 is twice that from -1 to 1.
        return latents + 2 * sigma * torch.randn(latents.shape, generator=generator)

    stand_in(add_noise)
    wide = Protocol(size=160, rounds=False)
    found = measure([KL], pictures, tmp_path / "parts", protocol=wide)
    mean = found["models"][0]["metrics"]["psnr"]["mean"]
    assert mean == pytest.approx(-20 * math.log10(sigma), abs=0.05)


def test_samples_have_the_deviation_of_the_posterior(
    stand_in: Callable[..., None], tmp_path: Path
) -> None:
    pictures = flat_pictures(tmp_path / "flat", 4, 160)
    stand_in(lambda latents, batch: latents, logvar=2 * math.log(0.08))
    wide = Protocol(size=160, rounds=False, posterior="sample")
    found = measure([KL], pictures, tmp_path / "parts", protocol=wide)
    mean = found["models"][0]["metrics"]["psnr"]["mean"]
    assert mean == pytest.approx(-20 * math.log10(0.04), abs=0.05)


def test_values_beyond_the_range_are_clamped(
    stand_in: Callable[..., None], tmp_path: Path, photos: Path
) -> None:
    stand_in(lambda latents, batch: torch.full_like(latents, 7.0))
    white = measure([KL], photos, tmp_path / "parts")["per_picture"]["models"][0]["psnr"]
    for path, value in zip(sorted(photos.iterdir()), white, strict=True):
        rows = prepared(path)
        paper = np.full_like(rows, 255)
        assert value == near(peak_signal_noise_ratio(rows, paper))


@pytest.mark.usefixtures("small_inception")
def test_reconstructions_that_are_not_finite_are_counted(
    stand_in: Callable[..., None], tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    stand_in(lambda latents, batch: latents * (math.nan if batch == 2 else 0.9))
    found = measure([KL], photos, tmp_path / "p", metrics=METRICS, weights=networks, batch_size=1)
    metrics = found["models"][0]["metrics"]
    columns = found["per_picture"]["models"][0]
    for name in METRICS[1:]:
        assert (metrics[name]["number"], metrics[name]["invalid"]) == (4, 1), name
        assert [value is None for value in columns[name]] == [at == 2 for at in range(5)]
        assert metrics[name]["mean"] == near(
            np.mean([value for value in columns[name] if value is not None]), "fp64"
        )


def test_a_model_that_makes_nothing_finite_has_no_mean(tmp_path: Path, photos: Path) -> None:
    weights = weights_of()
    weights["decoder.conv_out.bias"] = torch.full_like(weights["decoder.conv_out.bias"], math.nan)
    broken = save_ckpt(tmp_path / "broken.ckpt", weights)
    found = measure([KL, broken], photos, tmp_path / "parts")
    good, bad = (model["metrics"]["psnr"] for model in found["models"])
    assert good["number"] == 5
    assert bad == {"mean": None, "std": None, "number": 0, "infinite": 0, "invalid": 5}


# --- pictures that cannot be read ---


@pytest.fixture
def damaged(tmp_path: Path, photos: Path) -> Path:
    """Five good pictures among two that are cut short and one that is text."""
    folder = tmp_path / "damaged"
    shutil.copytree(photos, folder)
    for name in ("001a.png", "003a.png"):
        (folder / name).write_bytes((photos / "001.png").read_bytes()[:900])
    (folder / "notes.png").write_text("nothing to see")
    (folder / "readme.txt").write_text("not a picture")
    return folder


def test_skipped_pictures_are_counted_by_reason(
    tmp_path: Path, damaged: Path, photos: Path
) -> None:
    found = measure([KL], damaged, tmp_path / "parts", batch_size=2)
    assert found["pictures"]["number"] == 5
    skipped = found["pictures"]["skipped"]
    assert sum(skipped.values()) == 3
    assert skipped == {"cut short": 2, "not an image of a known format, or cut short": 1}
    assert found["pictures"]["left_out"] == [
        {"name": "001a.png", "reason": "cut short"},
        {"name": "003a.png", "reason": "cut short"},
        {"name": "notes.png", "reason": "not an image of a known format, or cut short"},
        {"name": "readme.txt", "reason": "with another ending"},
    ]
    assert len(found["per_picture"]["names"]) == 5
    clean = measure([KL], photos, tmp_path / "clean", batch_size=2)
    assert_results_near(found["models"][0]["metrics"], clean["models"][0]["metrics"])


def test_strict_fails_and_names_one(tmp_path: Path, damaged: Path) -> None:
    with pytest.raises(
        CheckFailedError, match=r"3 images were skipped, such as 001a\.png: cut short"
    ):
        measure([KL], damaged, tmp_path / "parts", strict=True)
    result = run_eval(KL, "--images", damaged, "--out", tmp_path / "o.json", "--strict")
    assert result.exit_code == 4
    assert "--no-strict" in result.stderr
    assert not (tmp_path / "o.json").exists()
    told = run_eval(KL, "--images", damaged, "--out", tmp_path / "o.json")
    assert told.exit_code == 0
    assert told.stderr.startswith("note: 4 files are not used: 2 cut short; 1 not an image")
    assert "(--verbose names them)" in told.stderr
    named = run_eval(KL, "--images", damaged, "--out", tmp_path / "o.json", "--verbose")
    assert "note: 003a.png: cut short\n" in named.stderr
    assert "note: readme.txt: with another ending\n" in named.stderr


def test_pictures_too_small_for_a_crop_are_skipped(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    Image.new("RGB", (30, 90)).save(folder / "small.png")
    found = measure([KL], folder, tmp_path / "parts", protocol=replace(SMALL, resize="none"))
    assert found["pictures"]["skipped"] == {"30x90 pixels, less than 32": 1}


def test_a_set_of_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "x.png").write_text("x")
    with pytest.raises(InputError, match=r"no image in it could be read, such as x\.png"):
        measure([KL], folder, tmp_path / "parts")


# --- refusals, from the command line ---


def grey_model(tmp_path: Path) -> Path:
    from dataclasses import replace

    from tests.support.samples import TINY

    grey = replace(TINY, in_channels=1, out_ch=1)
    return save_ckpt(tmp_path / "grey.ckpt", weights_of(grey))


def other_groups(tmp_path: Path) -> Path:
    """A diffusers folder whose config says another number of latent channels."""
    folder = tmp_path / "contradiction"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["latent_channels"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_grey_models_see_grey_pictures(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    found = measure([grey_model(tmp_path)], photos, tmp_path / "parts",
                    metrics=("psnr", "ssim", "psim"), weights=networks)  # fmt: skip
    assert found["models"][0]["metrics"]["psim"]["number"] == 5


def rgba_model(tmp_path: Path) -> Path:
    from dataclasses import replace

    from tests.support.samples import TINY

    return save_ckpt(tmp_path / "rgba.ckpt", weights_of(replace(TINY, in_channels=4, out_ch=4)))


def test_rgba_models_see_rgba_images(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    """PSNR is over all four channels; the networks see what lies on white."""
    folder = tmp_path / "clear"
    folder.mkdir()
    for at, path in enumerate(sorted(photos.iterdir())):
        with Image.open(path) as image:
            image.putalpha(60 * at)
            image.save(folder / path.name)
    model = rgba_model(tmp_path)
    found = measure([model], folder, tmp_path / "parts",
                    metrics=("psnr", "ssim", "psim"), weights=networks)  # fmt: skip
    assert found["models"][0]["metrics"]["psim"]["number"] == 5
    assert found["pictures"]["skipped"] == {}
    opaque = measure([model], photos, tmp_path / "opaque")
    assert found["per_picture"]["models"][0]["psnr"] != opaque["per_picture"]["models"][0]["psnr"]
    result = run("compare", model, "--images", folder, "--out", tmp_path / "m", "--size", SIZE,
                 "--device", "cpu", "--no-labels")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "m" / "000_merged.png") as merged:
        shown = np.asarray(merged)
    assert (shown[:, shown.shape[1] // 2 :] == 255).all(), "nothing but paper shows through"
    latents = run("latents", folder, tmp_path / "r.safetensors", "--model", model, "--size", SIZE,
                  "--device", "cpu")  # fmt: skip
    assert latents.exit_code == 0, latents.stderr


@pytest.mark.parametrize(("taken", "made", "said"), [
    (2, 2, "takes images of 2 channels; image files have 1 (grey), 3 (RGB) or 4 (RGBA)"),
    (3, 4, "takes images of 3 channels and makes images of 4"),
])  # fmt: skip
def test_channels_that_no_image_has_are_refused_before_the_work(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, taken: int, made: int, said: str
) -> None:
    from dataclasses import replace

    from tests.support.samples import TINY
    from vaeconv.models.open_model import OpenModel

    def fail(side: OpenModel) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(OpenModel, "load", fail)
    odd = save_ckpt(
        tmp_path / "odd.ckpt", weights_of(replace(TINY, in_channels=taken, out_ch=made))
    )
    result = run_eval(odd, "--images", photos, "--out", tmp_path / "e.json")
    assert result.exit_code == 3
    assert said in result.stderr


def test_a_run_that_would_measure_nothing_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="metrics are empty"):
        measure([KL], photos, tmp_path / "p", metrics=())
    with pytest.raises(UsageError, match="too small for SSIM"):
        measure([KL], photos, tmp_path / "p", metrics=("ssim",), protocol=replace(SMALL, size=8))
    with pytest.raises(UsageError):
        measure([KL], photos, tmp_path / "p", limit=0)
    assert measure([KL], photos, tmp_path / "p", limit=99)["pictures"]["number"] == 5


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["{kl}", "--images", "{empty}", "--out", "{out}"], 3, "no images in it"),
        (["{kl}", "--images", "{empty}/none", "--out", "{out}"], 3, "no such folder"),
        (["{kl}", "--images", "{kl}", "--out", "{out}"], 3, "is a checkpoint, and not images"),
        (["{kl}", "--images", "{raw}", "--out", "{out}"], 3, "is a checkpoint, and not images"),
        (["{kl}", "--images", "{folder}", "--out", "{out}"], 3, "holds a checkpoint, and no ima"),
        (["{attn}", "--images", "{photos}", "--out", "{out}", "--size", "34"], 2, "do not divide"),
        (["{kl}", "{kl}", "--images", "{photos}", "--out", "{out}"], 2, "two models are called"),
        (["{kl}", "{grey}", "--images", "{photos}", "--out", "{out}"], 2, "channels"),
        (["{odd}", "--images", "{photos}", "--out", "{out}"], 3, "contradiction"),
        (["{raw}", "--ema", "--images", "{photos}", "--out", "{out}"], 3, "EMA"),
        (["{kl}", "--images", "{photos}"], 2, "--out"),
        (["{kl}", "--out", "{out}"], 2, "--images"),
        (["--images", "{photos}", "--out", "{out}"], 2, "no models"),
        (["{kl}", "--images", "{photos}", "--out", "{empty}"], 5, "is not a file"),
        (["{kl}", "--images", "{photos}", "--out", "{empty}/no/such.json"], 5, "does not exist"),
        (["{kl}", "--images", "{photos}", "--out", "{out}", "--batch-size", "0"], 2, "auto"),
        (["{kl}", "--images", "{photos}", "--out", "{out}", "--protocol", "x"], 2, "squash"),
        (["{kl}", "--images", "{photos}", "--out", "{out}", "--filter", "x"], 2, "lanczos"),
        (["{empty}/no.ckpt", "--images", "{photos}", "--out", "{out}"], 3, "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_refusals(tmp_path: Path, photos: Path, args: list[str], code: int, said: str) -> None:
    empty, out = tmp_path / "empty", tmp_path / "eval.json"
    empty.mkdir()
    places = {"kl": KL, "raw": RAW, "photos": photos, "empty": empty, "out": out,
              "attn": FIXTURES / "tiny-attn.ckpt", "folder": FIXTURES / "tiny-diffusers",
              "grey": grey_model(tmp_path),
              "odd": other_groups(tmp_path)}  # fmt: skip
    given = [arg.format(**places) for arg in args]
    sized = "--size" in given
    result = run_eval(*given) if not sized else run_sized(given)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert not out.exists()


def run_sized(args: list[str]) -> Any:
    from tests.evaluation.runs import run

    return run("eval", *args, "--device", "cpu", "--metrics", "psnr")


@pytest.mark.parametrize("metrics", ["psnr,fid", ""])
def test_unknown_metrics_are_refused(tmp_path: Path, photos: Path, metrics: str) -> None:
    out = tmp_path / "eval.json"
    result = run_eval(KL, "--images", photos, "--out", out, metrics=metrics)
    assert result.exit_code == 2
    assert ("rfid, psnr, ssim, psim, lpips" if metrics else "--metrics") in result.stderr


# --- weights that are nowhere ---


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in variables_of(dict.fromkeys(("inception", "vgg16", "lpips linear weights"), Path())):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("metrics", "option"), [("rfid", "--inception-weights"), ("psnr,psim", "--vgg-weights")]
)
def test_missing_weights_are_no_zero(
    tmp_path: Path, photos: Path, metrics: str, option: str
) -> None:
    out = tmp_path / "eval.json"
    result = run_eval(KL, "--images", photos, "--out", out, metrics=metrics)
    assert result.exit_code == 7
    assert option in result.stderr
    assert "https://" in result.stderr
    assert not out.exists()
    assert not Path(f"{out}.parts").exists()


@pytest.mark.usefixtures("no_weights")
def test_metrics_whose_weights_are_missing_can_be_left_out(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--allow-missing-metrics")
    result = run_eval(*args, metrics="rfid,psnr,psim,lpips")
    assert result.exit_code == 0, result.stderr
    document = json.loads(out.read_text())
    assert document["not_computed"].keys() == {"rfid", "psim", "lpips"}
    for why in document["not_computed"].values():
        assert "weights missing" in why
        assert "https://" in why
    assert document["models"][0]["metrics"].keys() == {"psnr"}
    assert document["nets"] == []
    assert "warning: rfid not computed: weights missing" in result.stderr
    assert "rFID" not in result.stdout


@pytest.mark.usefixtures("no_weights")
def test_weights_come_from_options_variables_and_the_cache(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    metrics = "psim,lpips"
    options = (
        "--vgg-weights",
        networks["vgg16"],
        "--lpips-weights",
        networks["lpips linear weights"],
    )
    base = (KL, "--images", photos, "--limit", 1, "--json", "--out")
    one = run_eval(*base, tmp_path / "a.json", *options, metrics=metrics)
    two = run_eval(*base, tmp_path / "b.json", metrics=metrics, **variables_of(networks))
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    shutil.copy(networks["vgg16"], cache / "vgg16-397923af.pth")
    shutil.copy(networks["lpips linear weights"], cache / "lpips-v0.1-vgg.pth")
    three = run_eval(*base, tmp_path / "c.json", metrics=metrics)
    found = []
    for result in (one, two, three):
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        found.append((document["models"], [network["sha256"] for network in document["nets"]]))
    assert found[0] == found[1] == found[2]


@pytest.mark.usefixtures("no_weights")
def test_a_file_of_weights_that_is_not_there_is_missing(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(MissingDependencyError, match="weights missing: vgg16"):
        measure([KL], photos, tmp_path / "p", metrics=["psim"], weights={"vgg16": tmp_path / "x"})


def test_weights_of_another_net_are_refused(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="not the weights of vgg16"):
        swapped = {"vgg16": networks["inception"]}
        measure([KL], photos, tmp_path / "p", metrics=["psim"], weights=swapped)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_gpu_finds_what_the_cpu_finds(
    tmp_path: Path, photos: Path, networks: dict[str, Path]
) -> None:
    metrics = ("psnr", "ssim", "psim", "lpips")
    models = [spec(KL, name="raw"), spec(KL, name="EMA", ema=True)]
    found = {
        device: measure(models, photos, tmp_path / device, metrics=metrics, weights=networks,
                        device=device, latent_stats=True)
        for device in ("cpu", "cuda")
    }  # fmt: skip
    assert found["cuda"]["environment"]["device"].startswith("cuda")
    for one, other in zip(found["cpu"]["models"], found["cuda"]["models"], strict=True):
        for part in ("metrics", "latents"):
            assert_results_near({part: other[part]}, {part: one[part]})
