"""``vaeconv eval --reproduce-card``: the plan, a run with stand-ins, and the comparison."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import Result

from tests.evaluation.runs import (
    KL,
    Document,
    assert_results_near,
    measure,
    run,
    shrink_inception,
    spec,
    variables_of,
    write_tiles,
)
from tests.support.compvis import DDConfig
from tests.support.samples import average, save_ckpt, weights_of
from vaeconv.cli import reproduce as reproduced
from vaeconv.cli.reproduce import comparison_document, comparison_lines
from vaeconv.cli.screen import fitted
from vaeconv.errors import HubError, UsageError
from vaeconv.evaluation import published_card as card
from vaeconv.evaluation.protocol import PRESETS, Protocol
from vaeconv.evaluation.published_card import (
    CARD,
    PROTOCOLS,
    Difference,
    Download,
    card_specs,
    compare_with_card,
    default_cache,
    fetch,
    nearest_protocol,
    plan_downloads,
    protocol_file,
)

# The card's table as it was published, but for spaces.
TABLE = """
| original | 246803 | 4.99 | 23.4 +/- 3.8 | 0.69 +/- 0.14 | 1.01 +/- 0.28 |
| ft-EMA | 560001 | 4.42 | 23.8 +/- 3.9 | 0.69 +/- 0.13 | 0.96 +/- 0.27 |
| ft-MSE | 840001 | 4.70 | 24.5 +/- 3.7 | 0.71 +/- 0.13 | 0.92 +/- 0.27 |
"""
URLS = (
    "https://ommer-lab.com/files/latent-diffusion/kl-f8.zip",
    "https://huggingface.co/stabilityai/sd-vae-ft-ema-original/resolve/main/"
    "vae-ft-ema-560000-ema-pruned.ckpt",
    "https://huggingface.co/stabilityai/sd-vae-ft-mse-original/resolve/main/"
    "vae-ft-mse-840000-ema-pruned.ckpt",
    "http://images.cocodataset.org/zips/val2017.zip",
)
FILES = tuple(url.rpartition("/")[2] for url in URLS)
NETS = ("weights-inception-2015-12-05-6726825d.pth", "vgg16-397923af.pth", "v0.1/vgg.pth")
NAMES = ("card-256", "card-256-squash", "card-256-sample", "card-256-no-uint8",
         "card-256-lanczos")  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("it talks to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAECONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def reproduce(*args: object, **env: str | None) -> Result:
    return run("eval", "--reproduce-card", *args, **env)


# --- what was published ---


def test_the_numbers_are_those_of_the_card() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.split("\n") if line
    ]
    assert len(CARD) == len(rows)
    for row, published in zip(rows, CARD, strict=True):
        name, steps, rfid, *pairs = row
        assert (published.name, published.train_steps) == (name, int(steps))
        assert published.metrics["rfid"] == (float(rfid), None)
        for metric, pair in zip(("psnr", "ssim", "psim"), pairs, strict=True):
            assert published.metrics[metric] == tuple(map(float, pair.split(" +/- ")))
    assert tuple(row.url for row in CARD) == URLS[:3]
    assert CARD[2].comment.startswith("resumed with EMA from ft-EMA, emphasis on MSE")


def test_protocols_change_one_knob_each() -> None:
    assert tuple(one.name for one in PROTOCOLS) == NAMES
    base = Protocol()
    changes = [
        {key: value for key, value in one._asdict().items()
         if key != "name" and value != getattr(base, key)}
        for one in PROTOCOLS
    ]  # fmt: skip
    assert changes == [
        {}, {"resize": "squash"}, {"posterior": "sample"}, {"rounds": False}, {"filter": "lanczos"},
    ]  # fmt: skip
    assert PROTOCOLS[0] == PRESETS["card-256"]
    assert PROTOCOLS[0][1:] == (256, "shorter-side", "bicubic", "mode", 0, True, "fp32")


# --- the plan ---


def test_the_plan_says_what_is_there_and_what_is_not(cache: Path) -> None:
    cache.mkdir()
    (cache / FILES[1]).write_bytes(b"there")
    result = reproduce("--dry-run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "would fetch:"
    assert lines[1:5] == [
        f"  {url} to {cache / name}{' (there)' if at == 1 else ''}"
        for at, (url, name) in enumerate(zip(URLS, FILES, strict=True))
    ]
    for net in NETS:
        assert sum(net in line for line in lines[5:8]) == 1
    assert lines[8] == f"would evaluate original, ft-EMA, ft-MSE on {cache / FILES[3]}:"
    assert lines[9:] == [f"  {one.name}: {one.describe()}" for one in PROTOCOLS]
    assert {path.name for path in cache.iterdir()} == {FILES[1]}


def test_the_plan_as_json(cache: Path, tmp_path: Path) -> None:
    result = reproduce("--dry-run", "--json", "--images", tmp_path / "mine")
    document = json.loads(result.stdout)
    assert (document["command"], document["ok"], document["dry_run"]) == ("eval", True, True)
    assert document["downloads"] == [
        {"url": url, "target": str(cache / name), "is_there": False}
        for url, name in zip(URLS[:3], FILES, strict=False)
    ]
    assert [url.rpartition("/")[2] for url in document["nets"]] == [
        NETS[0], NETS[1], "vgg.pth",
    ]  # fmt: skip
    assert document["images"] == str(tmp_path / "mine")
    assert document["protocols"] == {one.name: one.describe() for one in PROTOCOLS}
    assert not cache.exists()


def test_the_cache_is_where_the_user_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VAECONV_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    monkeypatch.delenv("VAECONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "vaeconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert default_cache() == tmp_path / "home" / ".cache" / "vaeconv"
    (tmp_path / FILES[0]).mkdir()
    assert not any(one.is_there for one in plan_downloads(tmp_path)), "a folder is no file"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([str(KL)], "the card's models and no others"),
        (["--models", "m.toml"], "the card's models and no others"),
        (["--protocol", "card-256-squash"], "protocols of its own"),
        (["--size", "512"], "protocols of its own"),
        (["--no-uint8"], "protocols of its own"),
        ([], "--out"),
    ],
)
def test_what_does_not_go_together(cache: Path, args: list[str], said: str) -> None:
    result = reproduce(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not cache.exists()


# --- fetching ---


def test_files_are_fetched_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "cache" / "here.bin"
    source.write_bytes(b"content" * 1000)
    fetch(Download(source.as_uri(), target, is_there=False), quiet=True)
    assert target.read_bytes() == source.read_bytes()
    missing = Download((tmp_path / "none").as_uri(), tmp_path / "cache" / "b.bin", is_there=False)
    with pytest.raises(HubError, match="cannot be fetched") as caught:
        fetch(missing, quiet=True)
    assert caught.value.hint == f"fetch it by other means to {missing.target}"
    assert {path.name for path in target.parent.iterdir()} == {"here.bin"}


# --- a run, with stand-ins for everything ---


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with tiny models under the names of the published files."""
    folder = tmp_path_factory.mktemp("stand-ins")
    config = DDConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    model = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": {
            "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "dropout": 0.0,
        }},
    }  # fmt: skip
    save_ckpt(folder / "model.ckpt", weights_of(config))
    with zipfile.ZipFile(folder / FILES[0], "w") as bundle:
        bundle.write(folder / "model.ckpt", "kl-f8/model.ckpt")
        bundle.writestr("kl-f8/config.yaml", yaml.safe_dump({"model": model}))
    (folder / "model.ckpt").unlink()
    for at, name in enumerate(FILES[1:3]):
        weights = {
            key: average(f"{at}{key}", raw) if key.startswith("decoder.") else raw
            for key, raw in weights_of(config).items()
        }
        save_ckpt(folder / name, weights)
    return folder


@pytest.fixture(scope="module")
def reproduced_card(
    tmp_path_factory: pytest.TempPathFactory, stand_ins: Path, nets: dict[str, Path]
) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("card")
    photos = write_tiles(folder / "pictures", 3, width=96, height=64)
    small = tuple(one._replace(size=32) for one in PROTOCOLS)  # 256 pixels take a minute
    with pytest.MonkeyPatch.context() as patch:
        shrink_inception(patch.setattr)
        for module in (reproduced, card):
            patch.setattr(module, "PROTOCOLS", small)
        patch.setitem(PRESETS, "card-256", small[0])
        result = reproduce(
            *("--images", photos, "--out", folder / "eval.json", "--device", "cpu"),
            VAECONV_CACHE=str(stand_ins),
            **variables_of(nets),
        )
    return folder, result


def results_of(folder: Path) -> dict[str, Document]:
    return {name: json.loads((folder / f"eval.{name}.json").read_text()) for name in NAMES}


def test_each_protocol_has_a_result_of_the_three(
    reproduced_card: tuple[Path, Result], stand_ins: Path
) -> None:
    folder, result = reproduced_card
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in folder.glob("*.json")} == {f"eval.{name}.json" for name in NAMES}
    for name, document in results_of(folder).items():
        assert document["protocol"]["name"] == name
        assert document["pictures"]["number"] == 3
        models = document["models"]
        assert [model["name"] for model in models] == ["original", "ft-EMA", "ft-MSE"]
        assert [model["train_steps"] for model in models] == [246803, 560001, 840001]
        assert [model["link"] for model in models] == list(URLS[:3])
        assert [model["path"] for model in models] == [Path(file).name for file in FILES[:3]]
        assert all(set(model["metrics"]) == {"rfid", "psnr", "ssim", "psim", "lpips"}
                   for model in models)  # fmt: skip
    means = {
        tuple(round(model["metrics"]["psnr"]["mean"], 5) for model in document["models"])
        for document in results_of(folder).values()
    }
    assert len(means) == 5, "every knob changes something"


def test_the_comparison_is_printed(reproduced_card: tuple[Path, Result]) -> None:
    folder, result = reproduced_card
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["protocol", "model", "metric", "card", "ours", "gap"]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[1:61]]
    assert len(rows) == 5 * 3 * 4
    titles = {"rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "psim": "PSIM"}
    at = 0
    for name, document in results_of(folder).items():
        for published, model in zip(CARD, document["models"], strict=True):
            for metric, title in titles.items():
                mean, std = published.metrics[metric]
                found = model["metrics"][metric]
                if metric == "rfid":
                    shown = [f"{mean:.2f}", f"{found:.2f}", f"{found - mean:+.2f}"]
                else:
                    shown = [f"{mean:.2f} +/- {std:.2f}",
                             f"{found['mean']:.2f} +/- {found['std']:.2f}",
                             f"{found['mean'] - mean:+.2f}"]  # fmt: skip
                assert rows[at] == [name, published.name, title, *shown]
                at += 1
    nearest = lines[61:65]
    for line, title in zip(nearest, titles.values(), strict=True):
        assert re.fullmatch(rf"{title}: nearest with \S+, \d+\.\d\d away on average", line)
    assert "is not verified" in lines[65]


def test_the_stand_ins_run_as_any_model(
    reproduced_card: tuple[Path, Result], tmp_path: Path, stand_ins: Path
) -> None:
    folder, _ = reproduced_card
    models = [spec(stand_ins / file, name=row.name) for file, row in zip(FILES, CARD, strict=False)]
    plain = measure(models, folder / "pictures", tmp_path / "parts")
    found = results_of(folder)["card-256"]
    for one, other in zip(plain["models"], found["models"], strict=True):
        expected = {name: other["metrics"][name] for name in ("psnr", "ssim")}
        assert_results_near({name: one["metrics"][name] for name in expected}, expected)


def test_only_what_is_missing_is_fetched(
    tmp_path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.copy(stand_ins / FILES[1], cache)
    wanted: list[str] = []

    def pretend(url: str, target: str, **options: Any) -> None:
        wanted.append(url)
        if url == URLS[2]:
            raise OSError("no route")
        Path(target).write_bytes(b"x")

    monkeypatch.setattr(torch.hub, "download_url_to_file", pretend)
    args = ("--out", tmp_path / "eval.json", "--device", "cpu", "-q")
    result = reproduce(*args, VAECONV_CACHE=str(cache))
    assert wanted == [URLS[0], URLS[2]]
    assert result.exit_code == 6
    assert str(cache / FILES[2]) in result.stderr
    assert list(tmp_path.glob("*.json")) == []


# --- the comparison, with numbers that are made up ---


def made_up(name: str, psnr: float | None, rfid: float | None = None) -> dict[str, Any]:
    def metrics(off: float) -> dict[str, Any]:
        found: dict[str, Any] = {"ssim": {"mean": 0.7, "std": 0.1}}
        if psnr is not None:
            found["psnr"] = {"mean": psnr + off, "std": 3.5}
        if rfid is not None:
            found["rfid"] = rfid + off
        return found

    models = [{"name": row.name, "metrics": metrics(at)} for at, row in enumerate(CARD)]
    return {"protocol": {"name": name}, "models": [*models, {"name": "mine", "metrics": {}}]}


def test_gaps_are_ours_less_the_card_s() -> None:
    differences = compare_with_card(made_up("p", 23.0, 5.0))
    assert len(differences) == 3 * 4
    gaps = {(one.model, one.metric): one.gap for one in differences}
    assert gaps["original", "psnr"] == pytest.approx(-0.4)
    assert gaps["ft-EMA", "psnr"] == pytest.approx(0.2)
    assert gaps["ft-MSE", "psnr"] == pytest.approx(0.5)
    assert gaps["original", "rfid"] == pytest.approx(0.01)
    assert gaps["ft-MSE", "ssim"] == pytest.approx(-0.01)
    assert gaps["original", "psim"] is None
    assert {one.protocol for one in differences} == {"p"}
    ours = {(one.model, one.metric): one.ours for one in differences}
    assert ours["original", "psnr"] == (23.0, 3.5)
    assert ours["original", "rfid"] == (5.0, None)


def test_the_nearest_protocol_is_that_of_the_smallest_mean_gap() -> None:
    # Above and below do not cancel each other.
    far = compare_with_card(made_up("far", 23.0))
    near = compare_with_card(made_up("near", 22.95))
    assert nearest_protocol([*far, *near], "psnr") == (
        "near",
        pytest.approx((0.45 + 0.15 + 0.45) / 3),
    )
    assert nearest_protocol([*near, *far], "psnr")[0] == "near"  # type: ignore[index]
    signs = [Difference(name, row.name, "psnr", row.metrics["psnr"],
                        (row.metrics["psnr"][0] + off, 1.0))
             for name, offs in (("mixed", (9.0, -9.0, 0.0)), ("even", (1.0, 1.0, 1.0)))
             for row, off in zip(CARD, offs, strict=True)]  # fmt: skip
    assert nearest_protocol(signs, "psnr") == ("even", pytest.approx(1.0))
    assert nearest_protocol(far, "psim") is None


def test_what_was_not_computed_is_said() -> None:
    differences = compare_with_card(made_up("p", None))
    said = "\n".join(fitted(comparison_lines(differences), io.StringIO()))
    rows = [line for line in said.splitlines() if "PSNR" in line or "rFID" in line]
    assert len(rows) == 6
    assert all(re.search(r"not computed\s+-$", row) for row in rows)
    assert "PSNR: nearest" not in said
    assert "SSIM: nearest with p, 0.01 away on average" in said
    document = comparison_document(differences)
    assert document["nearest"] == {
        "ssim": {"protocol": "p", "mean_gap": pytest.approx(0.0, abs=0.02)}
    }
    first = document["differences"][0]
    assert first == {"protocol": "p", "model": "original", "metric": "rfid",
                     "published": (4.99, None), "ours": None, "gap": None}  # fmt: skip
    json.dumps(document, allow_nan=False)


def test_a_mean_that_is_none_is_no_number() -> None:
    result = made_up("p", 23.0)
    result["models"][0]["metrics"]["psnr"] = {"mean": None, "std": None}
    assert compare_with_card(result)[1].ours is None


def test_some_of_the_models_are_compared_and_none_is_refused() -> None:
    result = made_up("p", 23.0)
    result["models"] = result["models"][1:2]
    assert {one.model for one in compare_with_card(result)} == {"ft-EMA"}
    result["models"] = [{"name": "mine", "metrics": {}}]
    with pytest.raises(UsageError, match="original, ft-EMA, ft-MSE"):
        compare_with_card(result)


def test_files_are_named_after_protocols() -> None:
    assert protocol_file(Path("a/eval.json"), PROTOCOLS[1]) == Path("a/eval.card-256-squash.json")
    specs = card_specs(Path("c"))
    assert [one.path for one in specs] == [f"c/{name}" for name in FILES[:3]]
    assert not any(one.ema for one in specs), "these files hold what is to be used"
