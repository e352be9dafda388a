"""The pages of eval and compare: what they say, names that stay text, and how a browser does."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.runs import FOLDER, KL, SIZE, rows_near, run, run_eval
from tests.support.browser import measure, needs_browser
from tests.support.pages import HOSTILE, POLICY, Page
from vaeconv.evaluation.distributions import axes_of
from vaeconv.evaluation.document import summarise_metric
from vaeconv.evaluation.metrics import INFINITE
from vaeconv.evaluation.page import BUDGET, LARGEST, caveats_of, make_page
from vaeconv.evaluation.samples import Extremes, Sample, pick_extremes

Document = dict[str, Any]
NAMES = ("raw", "EMA")


def document(
    names: tuple[str, ...] = NAMES, number: int = 12, name: str = "photos", rfid: bool = True
) -> Document:
    """A result of made-up numbers: model k has a PSNR of 20 + k + the image's place."""
    psnr: list[list[Any]] = [[20.0 + k + at for at in range(number)] for k in range(len(names))]
    return {
        "protocol": {"description": "shorter side to 32; fp32", "size": 32},
        "pictures": {"name": name, "number": number, "sha256": "5" * 64},
        "models": [
            {
                "name": one, "path": "x.ckpt", "layout": "compvis", "weights_sha256": "7" * 64,
                "train_steps": None, "link": "", "comment": "", "ema": one == "EMA",
                "metrics": {
                    **({"rfid": 3.25} if rfid else {}),
                    "psnr": summarise_metric(psnr[k])._asdict(),
                },
            }
            for k, one in enumerate(names)
        ],
        "not_computed": {"lpips": "weights missing: vgg16"},
        "nets": [{"name": "inception", "file": "i.pth", "sha256": "9" * 64, "is_published": False}],
        "environment": {"device": "cpu", "float32_matmul_precision": "highest"},
        "per_picture": {"models": [{"psnr": values} for values in psnr]},
    }  # fmt: skip


def sample(name: str, seed: int = 0, side: int = 24, models: int = 2) -> Sample:
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(models + 1)]
    values = tuple({"psnr": 20.0 + k + seed} for k in range(models))
    return Sample(name, images[-1], tuple(images[:-1]), values)


def page_of(*samples: Sample, result: Document | None = None, command: str = "eval") -> str:
    return make_page(command, [result or document()], samples, most=8)


@pytest.fixture(scope="module")
def html() -> str:
    return page_of(*(sample(f"{at}.png", at) for at in range(3)))


# --- what it says ---


def test_the_table_says_unit_and_direction_of_each_metric(html: str) -> None:
    head, *rows = Page(html).tables[0]
    assert head == ["Model", "rFID", "PSNR in dB"]
    assert "lower is better higher is better" in Page(html).text
    assert rows == [["raw", "3.25", "25.5 +/- 3.5"], ["EMA", "3.25", "26.5 +/- 3.5"]]
    assert "Protocol: shorter side to 32; fp32." in Page(html).text


def test_caveats_come_before_the_table(html: str) -> None:
    for said in (
        "Only 12 images: differences", "rFID of 12 images is biased upward", "the 2048 features",
        "LPIPS was not computed: weights missing: vgg16",
        "i.pth holds other weights of inception than the published ones",
    ):  # fmt: skip
        assert html.index(said) < html.index("<table")


def test_caveats_are_only_those_that_hold() -> None:
    sound = document(number=60_000)
    sound |= {"not_computed": {}, "nets": []}
    assert caveats_of(sound) == []
    fewer = document(number=5000) | {"not_computed": {}, "nets": []}
    assert [one.split(":")[0] for one in caveats_of(fewer)] == [
        "rFID of 5000 images is biased upward"
    ]
    none = document(number=5000, rfid=False) | {"not_computed": {}, "nets": []}
    assert caveats_of(none) == []
    odd = document(number=60_000) | {"not_computed": {}, "nets": []}
    odd["protocol"] |= {"dtype": "fp16", "rounds": False}
    odd["pictures"] |= {"beyond_limit": 5, "remarks": {"enlarged to 32 pixels": 1}}
    odd["models"][0]["metrics"]["psnr"]["invalid"] = 2
    assert [" ".join(one.split()[:4]) for one in caveats_of(odd)] == [
        "Only the first 60000", "1 image measured, but:", "The models ran in",
        "Reconstructions were not rounded", "raw made 2 images",
    ]  # fmt: skip


def test_distributions_are_drawn_where_the_values_are_and_said_in_words(html: str) -> None:
    page = Page(html)
    said = "PSNR of 12 images: mean 25.50, median 25.50, from 20.00 to 31.00; half of them between"
    assert f"{said} 22.75 and 28.25" in page.text
    labels = [one["aria-label"] for one in page.all("svg")]
    assert labels[0] == f"raw: {said} 22.75 and 28.25"
    assert {one["role"] for one in page.all("svg")} == {"img"}
    places = [float(one["cx"]) for one in page.all("circle")]
    ends = [at / 12 * 400 for at in range(12)]
    assert places == pytest.approx([*ends, *(at + 400 / 12 for at in ends)], abs=0.06)
    assert "20.00 32.00" in page.text  # one axis for both models


def test_many_images_are_bars_of_the_right_heights() -> None:
    result = document(("one",), number=400)
    result["per_picture"]["models"][0]["psnr"] = [10.0] * 100 + [20.0] * 299 + [INFINITE]
    (axis,) = axes_of(result)
    (row,) = axis.rows
    assert row.points == ()
    assert (row.bars[0], row.bars[-1], sum(row.bars[1:-1])) == (100 / 299, 1.0, 0)
    assert "PSNR of 399 images" in row.text
    heights = [float(one["height"]) for one in Page(page_of(result=result)).all("rect")]
    assert heights == pytest.approx([36 * 100 / 299, 36], abs=0.06)


def test_one_value_for_all_still_has_an_axis() -> None:
    result = document(("one",), number=2)
    result["per_picture"]["models"][0]["psnr"] = [30.0, 30.0]
    (axis,) = axes_of(result)
    assert (axis.low, axis.high, axis.rows[0].points) == ("29.50", "30.50", (0.5, 0.5))


def test_images_are_those_that_were_given(html: str) -> None:
    page = Page(html)
    shown = page.pictures("none")
    expected = [sample(f"{at}.png", at) for at in range(3)]
    wanted = [pixels for one in expected for pixels in (*one.reconstructions, one.original)]
    assert all((one == other).all() for one, other in zip(shown, wanted, strict=True))
    alts = [one["alt"] for one in page.all("img")][:3]
    assert alts == [f"0.png, {said}" for said in
                    ("reconstructed by raw", "reconstructed by EMA", "original")]  # fmt: skip
    assert "PSNR 20.00 dB" in page.text


def test_large_images_are_reduced_and_too_many_left_out() -> None:
    large = sample("large.png", side=2 * LARGEST)
    page = Page(page_of(large))
    assert {one.shape for one in page.pictures("none")} == {(LARGEST, LARGEST, 3)}
    assert f"those of more than {LARGEST} pixels a side reduced to that" in page.text
    many = [sample(f"{at}.png", at, side=LARGEST) for at in range(40)]
    html = page_of(*many)
    assert len(html) < BUDGET + (1 << 20)
    shown = len(Page(html).all("article"))
    assert 8 < shown < 20  # 3 images of a megabyte each
    assert f"{40 - shown} more would have been too much." in Page(html).text


def test_without_samples_there_are_no_controls() -> None:
    page = Page(page_of())
    assert page.all("img") == page.all("input") == page.all("fieldset") == []


# --- which images ---


def records(*values: tuple[Any, ...]) -> list[Document]:
    return [
        {"at": at, "models": [{"psnr": value} for value in one]} for at, one in enumerate(values)
    ]


def test_the_worst_come_first_and_the_best_last() -> None:
    found = records((30.0, 30.0), (10.0, 10.0), (20.0, 20.0), (50.0, 0.0), (40.0, 40.0))
    assert pick_extremes(found, 8) == [1, 2, 3, 0, 4]
    assert pick_extremes(found, 2) == [1, 4]
    assert pick_extremes(found, 3) == [1, 0, 4]
    assert pick_extremes([], 3) == []


def test_what_is_not_finite_is_the_worst_and_what_is_equal_the_best() -> None:
    assert pick_extremes(records((INFINITE,), (20.0,), (None,)), 8) == [2, 1, 0]
    assert pick_extremes(records((INFINITE, None), (20.0, 20.0)), 8) == [0, 1]


def test_lpips_ranks_before_psnr_and_smaller_is_better() -> None:
    found = [
        {"at": at, "models": [{"psnr": psnr, "lpips": lpips}]}
        for at, (psnr, lpips) in enumerate([(10.0, 0.1), (30.0, 0.9)])
    ]
    assert pick_extremes(found, 8) == [1, 0]


def test_extremes_of_a_stream_are_those_of_all() -> None:
    order = np.random.default_rng(3).permutation(50)
    extremes = Extremes(6)
    for seed in order:
        extremes.add(sample(f"{seed}", int(seed), side=1, models=1))
    assert [one.name for one in extremes.samples] == ["0", "1", "2", "47", "48", "49"]


# --- names of strangers, and no network ---


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_text(name: str) -> None:
    def made(name: str) -> str:
        result = document((name, "other"), name=name)
        for model in result["models"]:
            model |= {"path": name, "comment": name, "link": name}
        result["nets"][0] |= {"file": name, "name": name}
        result["not_computed"] = {"lpips": name}
        result["environment"] = {"gpu": name}
        return page_of(sample(name), result=result)

    sound, page = Page(made("x")), Page(made(name))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in sound.elements]
    assert [list(a) for _, a in page.elements] == [list(a) for _, a in sound.elements]
    assert not any(key.startswith("on") for _, a in page.elements for key in a)
    assert (page.text + str(page.tables)).count(name) > 8


def test_control_characters_are_spelled() -> None:
    html = page_of(sample("a\nb\x00c\u2028d\udcff"))
    assert html.encode()
    assert "a\\nb\\x00c\\u2028d\\udcff" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028]", html)


def test_page_refers_to_nothing_outside(html: str) -> None:
    page = Page(html)
    policies = [one["content"] for one in page.all("meta") if one.get("http-equiv")]
    assert policies == [POLICY]
    assert html.index(POLICY) < min(map(html.index, ("<style", "<script", "<img")))
    rest = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|ftp:|wss?:|//|url\(|@import|fetch\(|XMLHttp|import\(", rest)


# --- in a browser ---

CHOICES = """
function measure() {
  const figure = document.querySelectorAll(".compare")[1];
  const look = () => ({
    seen: [...figure.querySelectorAll(".view")].map((one) => getComputedStyle(one).display),
    over: [...figure.querySelectorAll(".view")].map((one) => getComputedStyle(one).clipPath),
    labels: [...figure.querySelectorAll(".label")].map((one) => one.textContent),
    said: figure.querySelector("input").getAttribute("aria-label"),
    height: Math.round(figure.querySelector(".stack").getBoundingClientRect().height),
  });
  const press = (group, value) => {
    const one = document.querySelector(`[name="${group}"][value="${value}"]`);
    one.focus();
    one.click();  // what the arrow keys do to a radio button
    return document.activeElement === one;
  };
  const first = look();
  const focused = [press("left", 1), press("right", 0)];
  const swapped = look();
  const slider = figure.querySelector("input");
  slider.value = 30;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const moved = look();
  press("left", 0);
  return { first, swapped, moved, same: look(), focused };
}
"""


@needs_browser
def test_the_slider_goes_between_the_models_that_are_chosen(html: str, tmp_path: Path) -> None:
    found = measure(html, CHOICES, tmp_path)
    assert (found["seen"], found["requests"]) == ([], [])
    assert found["first"] == {
        "seen": ["block", "none", "block"],
        "over": ["inset(0px 50% 0px 0px)", "none", "none"],
        "labels": ["raw", "original"],
        "said": "1.png: how much of raw is shown over original",
        "height": 240,
    }
    assert found["focused"] == [True, True]
    assert found["swapped"]["seen"] == ["block", "block", "none"]
    assert found["swapped"]["labels"] == ["EMA", "raw"]
    assert found["swapped"]["said"] == "1.png: how much of EMA is shown over raw"
    assert found["moved"]["over"][1] == "inset(0px 70% 0px 0px)"
    assert found["same"]["seen"] == ["block", "none", "none"]  # one model on both sides
    assert found["same"]["height"] == 240


STATIC = """
function measure() {
  const boxes = [...document.querySelectorAll("img")].map((one) => one.getBoundingClientRect());
  const control = document.querySelector(".choices");
  return {
    widths: boxes.map((one) => one.width > 20),
    apart: new Set(boxes.map((one) => `${one.left} ${one.top}`)).size,
    captions: [...document.querySelectorAll(".caption")].map((one) => one.innerText),
    controls: getComputedStyle(control).display,
    width: document.documentElement.scrollWidth <= innerWidth,
  };
}
"""


@needs_browser
def test_without_its_script_every_image_is_seen(html: str, tmp_path: Path) -> None:
    plain = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    found = measure(plain, STATIC, tmp_path)
    assert found["widths"] == [True] * 9
    assert found["apart"] == 9
    assert found["captions"] == ["raw", "EMA", "original"] * 3
    assert (found["controls"], found["width"]) == ("none", True)


FRAME = """
function measure() {
  const inner = document.querySelector("iframe").contentWindow;
  const root = inner.document.documentElement;
  const grid = inner.getComputedStyle(inner.document.querySelector(".half"));
  return {
    content: root.scrollWidth,
    columns: grid.gridTemplateColumns.split(" ").length,
    paper: inner.getComputedStyle(inner.document.body).backgroundColor,
  };
}
"""


@needs_browser
@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1200, 2)])
@pytest.mark.parametrize("is_dark", [False, True])
def test_page_fits_a_phone_and_a_wide_screen(
    tmp_path: Path, width: int, columns: int, is_dark: bool
) -> None:
    long = "long" * 100
    images = (sample(long), sample("large.png", side=LARGEST))
    page = page_of(*images, result=document((long, "EMA"), name=long))
    frame = f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
    html = f"<!doctype html><html><head></head><body>{frame}</body></html>"
    dark = ("--blink-settings=preferredColorScheme=0",) if is_dark else ()
    found = measure(html, FRAME, tmp_path, *dark)
    assert (found["columns"], found["seen"]) == (columns, [])
    assert found["content"] <= width
    assert found["paper"] == ("rgb(19, 20, 23)" if is_dark else "rgb(251, 250, 247)")


@needs_browser
def test_names_of_strangers_run_nothing(tmp_path: Path) -> None:
    script = """
    function measure() {
      document.querySelector('[name="left"][value="1"]').click();
      const label = document.querySelector(".compare .label.left").textContent;
      return { hacked: "hacked" in window, scripts: document.scripts.length, label };
    }
    """
    name = "".join(HOSTILE)
    html = page_of(sample(name), result=document(("raw", name), name=name))
    found = measure(html, script, tmp_path)
    assert (found["hacked"], found["scripts"]) == (False, 1 + 3)  # three of the measurement
    assert found["label"] == name
    assert (found["seen"], found["requests"]) == ([], [])


# --- from the command line ---


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    done = run_eval(KL, FOLDER, "--images", photos, "--out", folder / "e.json", "--html",
                    folder / "e.html", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    names = [str(folder / name) for name in ("e.json", "e.html")]
    assert json.loads(done.stdout)["written"] == names
    return folder


def test_eval_shows_what_it_measured(evaluated: Path, photos: Path) -> None:
    page = Page((evaluated / "e.html").read_text())
    found = json.loads((evaluated / "e.json").read_text())
    psnr = found["per_picture"]["models"]
    ranked = sorted(range(5), key=lambda at: psnr[0]["psnr"][at] + psnr[1]["psnr"][at])
    names = [found["per_picture"]["names"][at] for at in ranked]
    assert [one["alt"].split(",")[0] for one in page.all("img")][::3] == names
    originals = page.pictures("none")[2::3]
    for name, original in zip(names, originals, strict=True):
        assert rows_near(original, photos / name)
    assert str(photos) not in (evaluated / "e.html").read_text()
    assert f"photos ({SIZE}x{SIZE}, 5 images)" in (evaluated / "e.html").read_text()


def test_a_page_is_replaced_only_where_that_was_asked_for(evaluated: Path, photos: Path) -> None:
    before = (evaluated / "e.html").read_bytes()
    args = ("--add", evaluated / "e.json", "--html", evaluated / "e.html")
    refused = run("eval", *args)
    assert refused.exit_code == 5
    assert "e.html: exists; --overwrite replaces it" in refused.stderr
    assert (evaluated / "e.html").read_bytes() == before
    other = evaluated / "other.html"
    done = run("eval", "--add", evaluated / "e.json", "--html", other)
    assert f"wrote {other}" in done.stdout
    assert Page(other.read_text()).all("img") == []  # earlier results keep no images
    wrong = run("eval", "--add", evaluated / "e.json", "--html", evaluated / "e.pdf")
    assert wrong.exit_code == 2
    merged = ("compare", KL, "--images", photos, "--out", evaluated / "m")
    assert run(*merged, "--html", other).exit_code == 5
    assert not (evaluated / "m").exists()


def test_compare_has_a_page_too(tmp_path: Path, photos: Path) -> None:
    done = run("compare", KL, FOLDER, "--images", photos, "--size", SIZE, "--out", tmp_path / "m",
               "--html", tmp_path / "c.html", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["html"] == str(tmp_path / "c.html")
    assert found["html"] in found["written"]
    assert all(Path(path).is_file() for path in found["written"])
    page = Page((tmp_path / "c.html").read_text())
    head, *rows = page.tables[0]
    assert head == ["Model", "PSNR in dB"]
    assert [row[0] for row in rows] == [KL.name, FOLDER.name]
    mean = np.mean([one["psnr"][KL.name] for one in found["pictures"]])
    assert rows[0][1].startswith(f"{mean:.1f} +/- ")
    assert len(page.all("img")) == 15


@pytest.mark.parametrize(
    "change",
    [
        {"per_picture": {"models": [{"psnr": [float("nan"), 1.0, 2.0]}] * 2}},
        {"per_picture": None},
        {"nets": [{}]},
        {"pictures": {"name": "x", "number": "many", "sha256": ""}},
        {"models": [{"name": "x"}]},
    ],
)
def test_results_that_are_none_make_no_page(
    evaluated: Path, tmp_path: Path, change: Document
) -> None:
    found = json.loads((evaluated / "e.json").read_text())
    (tmp_path / "odd.json").write_text(json.dumps(found | change))
    done = run("eval", "--add", tmp_path / "odd.json", "--html", tmp_path / "o.html")
    assert (done.exit_code, "not a result of vaeconv eval" in done.stderr) == (3, True)
    assert not (tmp_path / "o.html").exists()
