"""``vaeconv compare``: what is in its pictures, pixel by pixel."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from typer.testing import Result

from tests.evaluation.runs import FOLDER, KL, RAW, SIZE, SMALL, Rows, prepared, rebuilt, run, spec
from tests.support.closeness import near
from vaeconv.errors import OutputExistsError, UsageError
from vaeconv.evaluation.compare import CompareOptions, compare
from vaeconv.evaluation.grids import (
    Panel,
    contact_sheet,
    find_largest_difference,
    merge_panels,
    save_image,
)

BAR = 22
FACTOR = 8  # by which images of 32 pixels are enlarged
TILE = SIZE * FACTOR
BOX = (255, 0, 140)


def run_compare(*args: object) -> Result:
    return run("compare", *args, "--size", SIZE, "--device", "cpu")


def rows_of(path: Path) -> Rows:
    """The pixels of a merged picture or a sheet, as they are."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def reduced(rows: Rows, factor: int = FACTOR) -> Rows:
    """The pixels that were enlarged, each to a block of one colour."""
    small = rows[::factor, ::factor]
    np.testing.assert_array_equal(small.repeat(factor, axis=0).repeat(factor, axis=1), rows)
    return small


def pixels_of(path: Path) -> Rows:
    """The pixels of the images in a merged picture without labels."""
    return reduced(rows_of(path))


def options(**more: Any) -> CompareOptions:
    return CompareOptions(protocol=SMALL, device="cpu", **more)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Two candidates and the original, as in the cards."""
    folder = tmp_path_factory.mktemp("bare") / "merged"
    models = [spec(FOLDER), spec(KL, name="EMA", ema=True)]
    done = compare(models, photos, folder, options(labels=False))
    assert done.order == ("tiny-diffusers", "EMA", "original")
    return folder


def test_merged_pictures_have_the_candidates_and_then_the_original(
    bare: Path, photos: Path
) -> None:
    model = AutoencoderKL.from_pretrained(FOLDER)
    assert sorted(path.name for path in bare.iterdir()) == [
        *(f"00{at}_merged.png" for at in range(5)), "sheet.png",
    ]  # fmt: skip
    for at in range(5):
        merged = pixels_of(bare / f"00{at}_merged.png")
        assert merged.shape == (SIZE, 3 * SIZE, 3)
        original = prepared(photos / f"00{at}.png")
        np.testing.assert_array_equal(merged[:, 2 * SIZE :], original)
        made = rebuilt(model, original).astype(int)
        assert abs(merged[:, :SIZE] - made).max() <= 1
        assert (merged[:, :SIZE] == made).mean() > 0.99
        assert abs(merged[:, SIZE : 2 * SIZE] - made).max() > 3, "the average is another model"


def test_psnr_is_that_of_the_pixels(bare: Path, photos: Path, tmp_path: Path) -> None:
    result = run_compare(FOLDER, RAW, "--name", "one", "--name", "two", "--images", photos,
                         "--out", tmp_path / "m", "--json", "--no-labels")  # fmt: skip
    document = json.loads(result.stdout)
    assert (document["command"], document["ok"]) == ("compare", True)
    assert document["order"] == ["one", "two", "original"]
    assert document["sheet"] == str(tmp_path / "m" / "sheet.png")
    assert document["skipped"] == []
    assert len(document["pictures"]) == 5
    report = json.loads((tmp_path / "m" / "compare.json").read_text())
    assert report["order"] == document["order"]
    for picture in document["pictures"]:
        assert report["psnr"][Path(picture["path"]).name] == list(picture["psnr"].values())
        merged = pixels_of(Path(picture["path"]))
        parts = [merged[:, at * SIZE : (at + 1) * SIZE] for at in range(3)]
        for name, part in zip(("one", "two"), parts, strict=False):
            expected = peak_signal_noise_ratio(parts[2], part)
            assert picture["psnr"][name] == near(expected)


def test_the_contact_sheet_has_all_of_them(bare: Path) -> None:
    sheet = rows_of(bare / "sheet.png")
    assert sheet.shape == (5 * TILE + 4 * 4, 3 * TILE, 3)
    for at in range(5):
        top = at * (TILE + 4)
        np.testing.assert_array_equal(sheet[top : top + TILE], rows_of(bare / f"00{at}_merged.png"))
        assert (sheet[top + TILE : top + TILE + 4] == 255).all()


def test_a_sheet_of_two_columns_and_none(tmp_path: Path, photos: Path) -> None:
    models = [spec(KL)]
    done = compare(models, photos, tmp_path / "two", options(labels=False, sheet=2))
    assert done.sheet == tmp_path / "two" / "sheet.png"
    sheet = rows_of(done.sheet)
    assert sheet.shape == (3 * TILE + 2 * 4, 4 * TILE + 4, 3)
    second = rows_of(tmp_path / "two" / "001_merged.png")
    np.testing.assert_array_equal(sheet[:TILE, 2 * TILE + 4 :], second)
    assert (sheet[2 * (TILE + 4) :, 2 * TILE + 4 :] == 255).all(), "nothing is there"
    assert compare(models, photos, tmp_path / "none", options(sheet=0, limit=2)).sheet is None
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == [
        "000_merged.png", "001_merged.png",
    ]  # fmt: skip


def test_labels_stand_under_the_pictures(bare: Path, tmp_path: Path, photos: Path) -> None:
    models = [spec(FOLDER), spec(KL, name="EMA", ema=True)]
    compare(models, photos, tmp_path / "m", options(limit=2))
    for name in ("000_merged.png", "001_merged.png"):
        merged = rows_of(tmp_path / "m" / name)
        assert merged.shape == (TILE + BAR, 3 * TILE, 3)
        np.testing.assert_array_equal(merged[:TILE], rows_of(bare / name))
        for at in range(3):
            bar = merged[TILE:, at * TILE : (at + 1) * TILE]
            assert (bar < 128).any(), "something is written"
            assert (bar[:, [0, -1]] == 255).all(), "and it ends before the next begins"


def bars(*panels: tuple[str, str]) -> list[Rows]:
    """What stands under images of 260 pixels, one for each."""
    grey = np.full((260, 260, 3), 128, np.uint8)
    merged = np.asarray(
        merge_panels([Panel(name, grey, value) for name, value in panels], labels=True)
    )
    return [merged[260:, at * 260 : (at + 1) * 260] for at in range(len(panels))]


def lines_of(bar: Rows) -> int:
    """How many lines of text a bar has."""
    is_inked = (bar < 128).any(axis=(1, 2))
    return int((np.diff(is_inked.astype(int), prepend=0) == 1).sum())


def test_a_label_says_name_and_psnr() -> None:
    assert (bars(("", ""))[0] == 255).all()
    one, other = bars(("ft-EMA", "24.31 dB"), ("ft-EMA", "24.32 dB"))
    assert (one != other).any()
    assert len(one) == BAR
    (marked,) = bars(("日本", ""))
    (question,) = bars(("??", ""))
    assert (marked != question).any(), "it is drawn, and not replaced"


def test_a_long_name_takes_lines_and_the_number_stays_whole() -> None:
    long = "ft-mse-840000-ema-pruned-with-a-very-long-name-of-20261126.safetensors"
    short, two, endless = bars(("a", "24.31 dB"), (long, "24.31 dB"), ("x" * 300, "24.31 dB"))
    assert [lines_of(bar) for bar in (short, two, endless)] == [1, 3, 4]
    for bar in (short, two, endless):
        assert (bar[:, [0, 1, -2, -1]] == 255).all()
        assert len(bar) == BAR + 3 * 17
    (number,) = bars(("", "24.31 dB"))
    drawn = number[np.flatnonzero((number < 128).any(axis=(1, 2)))]
    for bar in (two, endless):  # the same ink as of the number alone
        last = np.flatnonzero((bar < 128).any(axis=(1, 2)))[-1]
        np.testing.assert_array_equal(bar[last - len(drawn) + 1 : last + 1], drawn)


def test_a_new_line_in_a_name_begins_a_line() -> None:
    assert [lines_of(bar) for bar in bars(("two\nlines", ""), ("two lines", ""))] == [2, 1]


def test_rows_of_a_comparison_are_of_one_height(tmp_path: Path, photos: Path) -> None:
    """Whatever their numbers are: a sheet needs that."""
    widths = {bars(("w" * 19, value))[0].shape for value in ("9.99 dB", "24.31 dB", "equal")}
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("side", "factor"), [(1, 256), (100, 3), (255, 2), (256, 1), (257, 1), (512, 1)]
)
def test_a_tile_has_256_pixels_at_least(side: int, factor: int) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    merged = np.asarray(merge_panels([Panel("", rows), Panel("", rows)], labels=False))
    assert merged.shape == (side * factor, 2 * side * factor, 3)
    np.testing.assert_array_equal(reduced(merged, factor)[:, :side], rows)


# --- zoom ---


def differing(*places: tuple[int, int, int, int], side: int = 24) -> list[Rows]:
    """An original, last, and a candidate that differs in rectangles."""
    original = np.full((side, side, 3), 100, np.uint8)
    other = original.copy()
    for left, top, size, by in places:
        other[top : top + size, left : left + size] += np.uint8(by)
    return [other, original]


@pytest.mark.parametrize(
    ("places", "side", "expected"),
    [
        ([(10, 4, 6, 30)], 6, (10, 4, 6)),
        ([(0, 0, 6, 30)], 6, (0, 0, 6)),
        ([(18, 18, 6, 30)], 6, (18, 18, 6)),
        ([(0, 18, 6, 30)], 6, (0, 18, 6)),
        ([(18, 0, 6, 30)], 6, (18, 0, 6)),
        ([(2, 2, 6, 30), (14, 11, 6, 31)], 6, (14, 11, 6)),
        ([(5, 9, 1, 200)], 1, (5, 9, 1)),
        ([(5, 9, 2, 20)], 24, (0, 0, 24)),
        ([], 6, (0, 0, 6)),
    ],
)
def test_the_largest_difference_is_found(
    places: list[tuple[int, int, int, int]], side: int, expected: tuple[int, int, int]
) -> None:
    assert find_largest_difference(differing(*places), side) == expected


def test_differences_of_all_candidates_count_together_whatever_their_sign() -> None:
    """Neither candidate alone differs most where both do."""
    one, original = differing((2, 2, 4, 30), (14, 14, 4, 20))
    darker = original.copy()
    darker[14:18, 14:18] -= np.uint8(20)
    assert find_largest_difference([one, darker, original], 4) == (14, 14, 4)
    assert find_largest_difference([one, original], 4) == (2, 2, 4)
    naive = [rows.astype(np.int64) for rows in (one, darker, original)]
    total = sum(abs(rows - naive[2]).sum(2) for rows in naive[:2])
    sums = {
        (left, top): total[top : top + 7, left : left + 7].sum()
        for left in range(18)
        for top in range(18)
    }
    left, top, _ = find_largest_difference([one, darker, original], 7)
    assert sums[left, top] == max(sums.values())


def test_zoom_marks_and_enlarges_the_square() -> None:
    panels = [Panel("", rows) for rows in differing((10, 4, 6, 30))]
    merged = reduced(np.asarray(merge_panels(panels, labels=False, zoom=6)), 11)
    assert merged.shape == (48, 48, 3)
    ring = np.zeros((24, 24), bool)
    ring[4:10, 10:16] = True
    ring[5:9, 11:15] = False
    for at, panel in enumerate(panels):
        shown = merged[:24, at * 24 : (at + 1) * 24]
        assert (shown[ring] == BOX).all()
        np.testing.assert_array_equal(shown[~ring], panel.pixels[~ring])
        crop = merged[24:, at * 24 : (at + 1) * 24]
        enlarged = panel.pixels[4:10, 10:16].repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(crop, enlarged)
    assert (merged[24:, :24] == 130).all()
    assert (merged[24:, 24:] == 100).all()


def test_zoom_from_the_command_line(tmp_path: Path, photos: Path) -> None:
    args = (KL, "--images", photos, "--limit", 1, "--sheet", 0)
    for zoom, labels in ((8, "--labels"), (8, "--no-labels"), (999, "--no-labels")):
        folder = tmp_path / f"{zoom}{labels}"
        result = run_compare(*args, "--out", folder, "--zoom", zoom, labels)
        assert result.exit_code == 0, result.stderr
        merged = rows_of(folder / "000_merged.png")
        assert merged.shape == (2 * TILE + (BAR if labels == "--labels" else 0), 2 * TILE, 3)
        marked = (reduced(merged[:TILE, :TILE]) == BOX).all(axis=2).sum()
        assert marked == 4 * min(zoom, SIZE) - 4


# --- files ---


def test_webp_has_the_same_pixels(bare: Path, tmp_path: Path, photos: Path) -> None:
    models = [spec(FOLDER), spec(KL, name="EMA", ema=True)]
    done = compare(models, photos, tmp_path / "m", options(labels=False, format="webp"))
    assert done.sheet == tmp_path / "m" / "sheet.webp"
    for path in (tmp_path / "m").iterdir():
        with Image.open(path) as image:
            assert image.format == "WEBP"
        np.testing.assert_array_equal(rows_of(path), rows_of(bare / f"{path.stem}.png"))
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    save_image(Image.fromarray(noise), tmp_path / "noise.webp")
    np.testing.assert_array_equal(rows_of(tmp_path / "noise.webp"), noise)


@pytest.mark.parametrize("form", ["png", "webp"])
def test_the_same_bytes_twice(tmp_path: Path, photos: Path, form: str) -> None:
    for name in ("a", "b"):
        result = run_compare(KL, "--images", photos, "--out", tmp_path / name, "--zoom", 9,
                             "--format", form)  # fmt: skip
        assert result.exit_code == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    pictures = [f"00{at}_merged.{form}" for at in range(5)]
    assert names == [*pictures, "compare.json", f"sheet.{form}"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_there_is_kept(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for name in ("003_merged.png", "sheet.png"):
        (folder / name).write_text("mine")
        result = run_compare(KL, "--images", photos, "--out", folder)
        assert result.exit_code == 5
        assert f"{name}: exists; --overwrite replaces it" in result.stderr
        assert (folder / name).read_text() == "mine"
        assert {path.name for path in folder.iterdir()} == {"notes.txt", name}
        (folder / name).rename(folder / "kept")
        (folder / "kept").unlink()
    (folder / "003_merged.png").write_text("mine")
    assert run_compare(KL, "--images", photos, "--out", folder, "--overwrite").exit_code == 0
    assert rows_of(folder / "003_merged.png").shape == (TILE + BAR, 2 * TILE, 3)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputExistsError):
        compare([spec(KL)], photos, folder, options())


def test_names_of_strangers_stay_in_the_folder(tmp_path: Path, photos: Path) -> None:
    names = ["../../evil.png", "/tmp/absolute.png", "a/same.png", "b/same.png", "a-same.png",
             "..png", "ü n\n.png", "dots.in.name.png", ".hidden.png", "c\\d.png",
             "--.png"]  # fmt: skip
    stored = list(names)
    archive = tmp_path / "deep" / "er" / "hostile.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as bundle:
        for at, name in enumerate(names):
            entry = zipfile.ZipInfo(name)  # a name that zipfile does not mend
            bundle.writestr(entry, (photos / f"00{at % 5}.png").read_bytes())
    folder = archive.parent / "m"
    before = set(tmp_path.rglob("*"))
    done = compare([spec(KL)], archive, folder, options(labels=False))
    new = set(tmp_path.rglob("*")) - before - {folder}
    written = {path for path, _ in done.images}
    assert new == {*written, folder / "sheet.png"}
    hidden = {"..png", ".hidden.png"}
    assert {one.name for one in done.left_out} == hidden
    names = [name for name in names if name not in hidden]
    assert len(written) == len(names)
    for path in written:
        assert path.parent == folder
        assert not path.name.startswith((".", "-"))
        assert set(path.name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )
    kept = [path.name for path, _ in done.images]
    expected = ("evil", "tmp-absolute", "a-same", "a-same-2", "b-same", "dots.in.name")
    assert {f"{stem}_merged.png" for stem in (*expected, "picture")} <= set(kept)
    # Each is the picture that its name says.
    for at, name in enumerate(sorted(names)):
        original = prepared(photos / f"00{stored.index(name) % 5}.png")
        np.testing.assert_array_equal(pixels_of(done.images[at][0])[:, SIZE:], original)


def test_skipped_pictures_are_named(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(photos, folder)
    (folder / "002.png").write_text("damaged")
    told = run_compare(KL, "--images", folder, "--out", tmp_path / "a", "--verbose")
    assert told.exit_code == 0
    assert "note: 002.png skipped: not an image of a known format, or cut short" in told.stderr
    assert "compared 4 images, from left to right: tiny-kl.ckpt, original" in told.stdout
    assert str(tmp_path / "a" / "003_merged.png") in told.stdout
    assert not (tmp_path / "a" / "002_merged.png").exists()
    document = json.loads(
        run_compare(KL, "--images", folder, "--out", tmp_path / "b", "--json").stdout
    )
    assert document["skipped"] == [
        {"name": "002.png", "reason": "not an image of a known format, or cut short"}
    ]
    assert [Path(one["path"]).name for one in document["pictures"]] == [
        f"00{at}_merged.png" for at in (0, 1, 3, 4)
    ]


def test_pictures_of_which_none_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x.png").write_text("damaged")
    assert run_compare(KL, "--images", tmp_path / "p", "--out", tmp_path / "m").exit_code == 3


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--images", "{photos}", "--out", "{out}"], 2, "missing: a model;"),
        (["{kl}", "--out", "{out}"], 2, "missing: --images;"),
        (["{kl}", "--images", "{photos}"], 2, "missing: --out;"),
        (["{kl}", "--images", "{photos}", "--out", "{out}", "--format", "jpeg"], 2, "png, webp"),
        (["{kl}", "--images", "{photos}", "--out", "{out}", "--protocol", "x"], 2, "card-256"),
        (["{kl}", "{kl}", "--images", "{photos}", "--out", "{out}"], 2, "two models"),
        (["{kl}", "--images", "{out}", "--out", "{out}"], 3, "no such folder"),
        (["{kl}", "--images", "{photos}", "--out", "{out}/no/such"], 5, "does not exist"),
        (["{kl}", "--images", "{photos}", "--out", "{photos}/000.png"], 2, "is a folder, and"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, photos: Path, args: list[str], code: int, said: str) -> None:
    out = tmp_path / "merged"
    given = [arg.format(kl=KL, photos=photos, out=out) for arg in args]
    result = run_compare(*given)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not list(out.glob("*"))


def test_models_come_from_a_file_too(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "m.toml").write_text(f"[[model]]\npath = '{KL}'\nname = 'avg'\nema = true\n")
    result = run_compare(RAW, "--models", tmp_path / "m.toml", "--images", photos, "--limit", 1,
                         "--out", tmp_path / "o", "--json")  # fmt: skip
    document = json.loads(result.stdout)
    assert document["order"] == ["tiny-kl.safetensors", "avg", "original"]
    one, other = document["pictures"][0]["psnr"].values()
    assert abs(one - other) > 1e-3


def test_samples_follow_the_protocol(tmp_path: Path, photos: Path) -> None:
    sampled = replace(SMALL, posterior="sample", seed=4)
    found = [
        compare([spec(KL)], photos, tmp_path / f"{at}", CompareOptions(protocol=one, device="cpu"))
        for at, one in enumerate((SMALL, sampled, sampled, replace(sampled, seed=5)))
    ]
    mode, one, again, other = ([psnr for _, psnr in done.images] for done in found)
    assert one == again
    assert one != other
    assert one != mode


def test_a_picture_of_another_size_for_the_model_is_refused(tmp_path: Path, photos: Path) -> None:
    attn = KL.with_name("tiny-attn.ckpt")
    with pytest.raises(UsageError, match="do not divide by 4"):
        compare([spec(attn)], photos, tmp_path / "m",
                CompareOptions(protocol=replace(SMALL, size=34), device="cpu"))  # fmt: skip


def test_a_reconstruction_that_is_not_finite_is_drawn_black(tmp_path: Path, photos: Path) -> None:
    from tests.support.samples import save_ckpt, weights_of

    weights = weights_of()
    weights["decoder.conv_out.bias"] = torch.full_like(weights["decoder.conv_out.bias"], torch.nan)
    broken = save_ckpt(tmp_path / "broken.ckpt", weights)
    done = compare([spec(broken)], photos, tmp_path / "m", options(labels=False, limit=1))
    merged = pixels_of(done.images[0][0])
    assert (merged[:, :SIZE] == 0).all()
    np.testing.assert_array_equal(merged[:, SIZE:], prepared(photos / "000.png"))


def test_sheets_of_pictures() -> None:
    pictures = [Image.new("RGB", (10, 6), (at, 0, 0)) for at in range(5)]
    assert contact_sheet(pictures, 3).size == (38, 16)
    assert contact_sheet(pictures[:1], 3).size == (38, 6)
