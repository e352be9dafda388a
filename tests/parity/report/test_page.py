"""The page of a verification: what it says, names that stay text, and how it does in a browser."""

from __future__ import annotations

import hashlib
import math
import re
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.browser import measure, needs_browser
from tests.support.pages import HOSTILE, POLICY, Page
from vaeconv.common.notes import note
from vaeconv.parity.compare_outputs import Decoded
from vaeconv.parity.distance import to_uint8
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.report.page import make_page
from vaeconv.parity.report.panels import heat_map
from vaeconv.parity.report.tables import distance_table, weight_table
from vaeconv.parity.result import Verification
from vaeconv.parity.verify import verify

TINY, FOLDER = FIXTURES / "tiny-kl.safetensors", FIXTURES / "tiny-diffusers"


class Found(NamedTuple):
    """A verification and the pictures that it decoded."""

    result: Verification
    decoded: list[Decoded]

    @property
    def page(self) -> str:
        return make_page(self.result, self.decoded)


def find(a: Path, b: Path | None, base: Path | None = None, **options: object) -> Found:
    pictures: list[Decoded] = []
    device = {} if options.get("weights_only") else {"device": "cpu"}
    how = VerifyOptions(**device, on_image=pictures.append, **options)
    return Found(verify(a, b, how, drop_in_for=base), pictures)


@pytest.fixture(scope="module")
def same() -> Found:
    return find(TINY, FOLDER, dtype="fp16")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another decoder: 24 of its tensors differ, so not all of them are listed."""
    path = tmp_path_factory.mktemp("changed") / "changed.safetensors"
    weights = load_file(TINY)
    names = [name for name in weights if name.startswith("decoder.up.") and "conv" in name]
    names += [name for name in weights if name.startswith("decoder.mid.") and "norm" in name][:6]
    assert len(names) == 24
    save_file(weights | {name: weights[name] * 1.01 + 1e-3 for name in names}, path)
    return path


@pytest.fixture(scope="module")
def different(changed: Path) -> Found:
    return find(TINY, changed, base=changed)


def with_names(found: Found, name: str) -> Found:
    """The same with this name in every place that a stranger names."""
    result, (first, *_) = found
    assert result.references is not None
    assert result.same is not None
    models = tuple(
        model._replace(
            name=name,
            loader=name,
            container=name,
            variant=name,
            files=tuple({**file, "name": name} for file in model.files),
        )
        for model in result.models
    )
    worst = result.same.weights.different[0]
    weights = result.same.weights._replace(
        results=(worst._replace(names=(name, name)),), missing=(name,), unexpected=(name,)
    )
    outcomes = tuple(one._replace(name=name, problem=name) for one in result.same.outcomes)
    references = result.references
    return Found(
        result._replace(
            models=models,
            same=result.same._replace(weights=weights, outcomes=outcomes, problems=(name,)),
            references=references._replace(
                source=name,
                latents=tuple(one._replace(name=name) for one in references.latents),
            ),
            environment={**result.environment, "gpu": name},
            notes=(note(name),),
        ),
        [first._replace(name=name)],
    )


# --- what it says ---


def test_page_of_the_same_autoencoder_says_so(same: Found) -> None:
    page = Page(same.page)
    assert "vaeconv verify: passed" in page.text
    assert "✓ A and B are the same autoencoder" in page.text
    assert "FAIL" not in same.page
    verdicts = [one["class"] for one in page.all("section") if "verdict" in one.get("class", "")]
    assert verdicts == ["verdict doubt"]  # the scaling of a file that states none
    assert page.elements[0] == ("html", {"lang": "en"})


def test_page_is_green_where_all_is_proved(same: Found) -> None:
    assert same.result.same is not None
    proved = same.result._replace(same=same.result.same._replace(unproven=()))
    (verdict,) = (
        one for one in Page(make_page(proved, [])).all("section") if "verdict" in one["class"]
    )
    assert verdict["class"] == "verdict pass"


def test_page_says_what_was_compared(same: Found) -> None:
    page = Page(same.page)
    weights = FOLDER / "diffusion_pytorch_model.safetensors"
    for path in (TINY, weights):
        data = path.read_bytes()
        assert f"{path.name} , {len(data):,} bytes sha256 {hashlib.sha256(data).hexdigest()}" in (
            page.text
        )
    assert f"A {TINY} layout compvis container safetensors tensors 120 in fp16" in page.text
    assert "scaling not known loaded by CompVis modules, strict" in page.text
    assert f"B {FOLDER} layout diffusers container" in page.text
    assert "scaling 0.18215 (config.json) loaded by AutoencoderKL.from_pretrained" in page.text


def test_page_has_the_tables_of_the_report(same: Found, different: Found) -> None:
    for found in (same, different):
        comparisons = found.result.comparisons
        tables = [weight_table(comparisons), *map(distance_table, comparisons)]
        expected = [[list(head), *map(list, rows)] for head, rows in tables]
        assert Page(found.page).tables == expected


def test_page_says_what_it_rests_on(same: Found) -> None:
    result, text = same.result, Page(same.page).text
    assert result.references is not None
    assert result.references.source in text
    assert f"sha256 {result.references.sha256}" in text
    assert "noise, large 4x32x32; smooth 4x32x32; saturated 4x32x32; not square 4x16x48" in text
    for name, value in result.environment.items():
        assert f"{name.replace('_', ' ')} {value}" in text
    for step, seconds in result.timing.items():
        assert f"{step} {seconds:.2f} s" in text
    assert "Not proved: the scaling of A: its files state none" in text


def test_page_of_another_decoder_says_what_differs(different: Found) -> None:
    page, same = Page(different.page), different.result.same
    assert same is not None
    assert "vaeconv verify: FAILED" in page.text
    assert "✗ A and B are not the same autoencoder" in page.text
    assert "✓ A is a drop-in replacement for BASE" in page.text
    verdicts = [one["class"] for one in page.all("section") if "verdict" in one.get("class", "")]
    assert verdicts == ["verdict fail", "verdict doubt"]
    assert len(same.problems) > 5
    for problem in same.problems:
        assert problem in page.text
    worst = [one.describe() for one in same.weights.different]
    listed = page.text.partition("tensors that differ, the worst first")[2]
    listed = listed.partition("Decoded images")[0]
    assert listed.split() == " ".join([*worst[:20], "and 4 more that differ less"]).split()
    statuses = [row[-1] for row in page.tables[1] if row[0].startswith("decode")]
    assert "FAIL" in statuses


def test_page_names_tensors_that_only_one_side_has(different: Found) -> None:
    same = different.result.same
    assert same is not None
    weights = same.weights._replace(
        results=(), missing=tuple(f"lost.{index}" for index in range(22)), unexpected=("new",)
    )
    result = different.result._replace(same=same._replace(weights=weights), drop_in=None)
    text = Page(make_page(result, [])).text
    lost = ", ".join(f"lost.{index}" for index in range(20))
    assert "A and B: tensors without a match" in text
    assert f"only in A, or there in another shape: {lost} and 2 more" in text
    assert "only in B, or there in another shape: new" in text


def test_page_without_pictures_has_no_place_for_them() -> None:
    found = find(TINY, FOLDER, weights_only=True, hash_files=False)
    page = Page(found.page)
    assert "the same autoencoder by their weights; nothing was decoded" in page.text
    assert "not hashed" in page.text
    assert page.all("img") == page.all("input") == []
    for heading in ("Decoded images", "Distances", "References"):
        assert heading not in page.text
    assert len(page.tables) == 1


def test_page_says_all_of_a_scaling(same: Found) -> None:
    model = same.result.models[1]
    assert model.scaling is not None
    scaling = model.scaling._replace(
        scaling_factor=0.5, shift_factor=-0.25, latents_std=(1.0,), latents_mean=(0.0,)
    )
    models = (model._replace(scaling=scaling, ema=66, variant="fp16"),)
    text = Page(make_page(same.result._replace(models=models), [])).text
    assert "scaling 0.5, shift -0.25, statistics per channel (config.json)" in text
    assert "variant fp16" in text
    assert "EMA for 66 tensors" in text


# --- its pictures ---


def test_pictures_are_those_that_were_decoded(same: Found) -> None:
    page = Page(same.page)
    assert [one.dtype for one in same.decoded] == ["fp32"] * 5 + ["fp16"] * 5
    for kind, which in (("over", 0), ("under", 1)):
        expected = [
            to_uint8(torch.from_numpy(one.images[which])).permute(1, 2, 0).numpy()
            for one in same.decoded
        ]
        shown = page.pictures(kind)
        assert [picture.shape for picture in shown] == [picture.shape for picture in expected]
        assert all((a == b).all() for a, b in zip(shown, expected, strict=True))
    heats = [heat_map(*one.images) for one in same.decoded]
    for kind, expected in (("none", [h.rgb for h in heats]), ("bar", [h.bar for h in heats])):
        assert all((a == b).all() for a, b in zip(page.pictures(kind), expected, strict=True))
    for one, heat in zip(same.decoded, heats, strict=True):
        top = f"{one.outcome.distance.max_abs:.1e}"
        assert f"0 |A − B| {heat.text} {top}" in page.text  # noqa: RUF001
        psnr = f"{one.outcome.distance.psnr:.1f} dB"
        assert f"max abs {top} · PSNR {psnr} ok" in page.text


def test_small_pictures_are_shown_larger_by_whole_factors(same: Found) -> None:
    page = Page(same.page)
    sizes = [(one["width"], one["height"]) for one in page.all("img") if "bar" not in one.values()]
    assert sizes == [size for size in [("256", "256")] * 4 + [("192", "64")] for _ in "abc"] * 2


def test_every_picture_and_slider_says_what_it_is(same: Found) -> None:
    page = Page(same.page)
    for index, one in enumerate(same.decoded):
        label = page.all("input")[index]["aria-label"]
        assert label == f"{one.name} in {one.dtype}: how much of A is shown over B"
    for image in page.all("img"):
        assert (image["alt"] == "") == (image.get("class") == "bar")
    over = [one["alt"] for one in page.all("img") if one.get("class") == "over"]
    assert over[0] == "noise in fp32, decoded by A"


def test_pictures_of_a_drop_in_are_of_the_base(changed: Path) -> None:
    found = find(TINY, None, base=changed, encode=False)
    page = Page(found.page)
    assert found.result.ok
    assert "✓ A is a drop-in replacement for BASE" in page.text
    assert "noise in fp32, decoded by BASE" in [one["alt"] for one in page.all("img")]
    assert "|A − BASE|" in page.text  # noqa: RUF001


def test_identical_pictures_have_no_bar(same: Found) -> None:
    first = same.decoded[0]
    pair = first._replace(images=(first.images[0], first.images[0]))
    page = Page(make_page(same.result, [pair]))
    assert "|A − B| identical" in page.text  # noqa: RUF001
    assert page.pictures("bar") == []
    assert len(np.unique(page.pictures("none")[0].reshape(-1, 3), axis=0)) == 1


def test_lost_pixels_are_magenta_and_explained(same: Found) -> None:
    first = same.decoded[0]
    lost = first.images[0].copy()
    lost[2, 3:5, 7] = (math.nan, math.inf)
    pair = first._replace(images=(lost, first.images[1]))
    page = Page(make_page(same.result, [pair]))
    assert "NaN or infinity" in page.text
    for kind in ("over", "none"):
        assert (page.pictures(kind)[0][3:5, 7] == (255, 0, 255)).all()
    assert "NaN or infinity" not in Page(same.page).text


# --- names of strangers, and no network ---


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_text(different: Found, name: str) -> None:
    sound, page = Page(with_names(different, "x").page), Page(with_names(different, name).page)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in sound.elements]
    assert [list(a) for _, a in page.elements] == [list(a) for _, a in sound.elements]
    assert page.text.count(name) >= sound.text.count(" x ") >= 15
    assert page.all("input")[0]["aria-label"].startswith(f"{name} in fp32")
    assert not any(key.startswith("on") for _, a in page.elements for key in a)


def test_control_characters_and_lone_surrogates_are_spelled(different: Found) -> None:
    found = with_names(different, "a\nb\x00c\u2028d")
    models = tuple(model._replace(name="named\udcff\n") for model in found.result.models)
    page = make_page(found.result._replace(models=models), found.decoded)
    assert page.encode()
    assert page.count("named\\udcff\\n") == 2 * len(models)  # the title has them too
    assert page.count("a\\nb\\x00c\\u2028d") > 15
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028]", page)


def test_page_refers_to_nothing_outside(same: Found, different: Found) -> None:
    for found in (same, different):
        page = Page(found.page)
        policies = [
            one["content"]
            for one in page.all("meta")
            if one.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policies == [POLICY]
        assert found.page.index(POLICY) < min(map(found.page.index, ("<style", "<script", "<img")))
        assert len(page.all("script")) == 1
        addresses = {"src", "href", "srcset", "action", "data", "poster", "background"}
        for _, attributes in page.elements:
            for name in addresses & attributes.keys():
                assert attributes[name].startswith("data:image/png;base64,")
        rest = re.sub(r"data:image/png;base64,[\w+/=]+", "", found.page)
        assert not re.search(r"https?:|ftp:|wss?:|//|url\(|@import|fetch\(|XMLHttp|import\(", rest)


def test_page_has_no_paths_but_those_that_were_given(different: Found) -> None:
    rest = unescape(re.sub(r"data:image/png;base64,[\w+/=]+", "", different.page))
    for model in different.result.models:
        rest = rest.replace(f"<bdi>{model.name}</bdi>", "").replace(model.name, "", 1)  # the title
    for place in (Path.cwd(), Path.home(), Path(np.__file__).parents[1], Path(TINY).parent):
        assert f"{place}/" not in rest


def test_page_is_the_same_each_time(same: Found) -> None:
    assert make_page(same.result, list(same.decoded)) == same.page


# --- in a browser ---

SLIDERS = """
function measure() {
  const figure = document.querySelectorAll(".compare")[1];
  const slider = figure.querySelector("input");
  const stack = figure.querySelector(".stack");
  const look = () => {
    const edge = figure.querySelector(".edge").getBoundingClientRect();
    const box = stack.getBoundingClientRect();
    return {
      value: slider.value,
      clip: getComputedStyle(figure.querySelector(".over")).clipPath,
      under: getComputedStyle(figure.querySelector(".under")).clipPath,
      edge: Math.round(100 * ((edge.left + edge.right) / 2 - box.left) / box.width),
      said: slider.getAttribute("aria-valuetext"),
    };
  };
  const move = (value) => {
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    return look();
  };
  const drag = (type, share, buttons) => {
    const box = stack.getBoundingClientRect();
    const clientX = box.left + share * box.width;
    const place = { clientX, clientY: box.top + 5, buttons, bubbles: true };
    stack.dispatchEvent(new PointerEvent(type, place));
    return look().value;
  };
  const first = look();
  const moved = [0, 20, 100].map(move);
  const dragged = [
    drag("pointerdown", 0.25, 1), drag("pointermove", 0.6, 1), drag("pointermove", 0.9, 0),
  ];
  slider.focus();
  const other = document.querySelector(".compare .over");
  return {
    first, moved, dragged,
    focused: document.activeElement === slider,
    other: getComputedStyle(other).clipPath,
    images: [...document.images].map((one) => [one.naturalWidth, one.naturalHeight]),
    shown: [...document.images].map((one) => one.getBoundingClientRect().width > 0),
    overlap: (() => {
      const [a, b] = ["over", "under"].map(
        (name) => figure.querySelector("." + name).getBoundingClientRect());
      return [a.left - b.left, a.top - b.top, a.width - b.width, a.height - b.height];
    })(),
  };
}
"""


@needs_browser
def test_slider_uncovers_the_other_side(same: Found, tmp_path: Path) -> None:
    found = measure(same.page, SLIDERS, tmp_path)
    assert (found["seen"], found["requests"]) == ([], [])
    assert found["first"] == {
        "value": "50",
        "clip": "inset(0px 50% 0px 0px)",
        "under": "none",
        "edge": 50,
        "said": "50 percent",
    }
    assert [one["clip"] for one in found["moved"]] == [
        "inset(0px 100% 0px 0px)",
        "inset(0px 80% 0px 0px)",
        "inset(0px 0% 0px 0px)",
    ]
    assert [one["edge"] for one in found["moved"]] == [0, 20, 100]
    assert [one["said"] for one in found["moved"]] == ["0 percent", "20 percent", "100 percent"]
    assert found["dragged"] == ["25", "60", "60"]  # the last without a button
    assert found["focused"]
    assert found["other"] == "inset(0px 50% 0px 0px)"  # each slider moves its own picture
    assert found["overlap"] == [0, 0, 0, 0]
    each = [[64, 64], [64, 64], [64, 64], [256, 1]]
    wide = [[96, 32], [96, 32], [96, 32], [256, 1]]
    assert found["images"] == (each * 4 + wide) * 2
    assert all(found["shown"])


FRAME = """
function measure() {
  const inner = document.querySelector("iframe").contentWindow;
  const root = inner.document.documentElement;
  const grid = inner.getComputedStyle(inner.document.querySelector(".pairs"));
  return {
    inner: inner.innerWidth,
    content: root.scrollWidth,
    columns: grid.gridTemplateColumns.split(" ").length,
  };
}
"""


@needs_browser
@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1280, 2)])
@pytest.mark.parametrize("name", ["noise", "long" * 200])
def test_page_fits_a_phone_and_a_wide_screen(
    different: Found, tmp_path: Path, width: int, columns: int, name: str
) -> None:
    page = escape(with_names(different, name).page)
    frame = f'<iframe style="border: 0" width="{width}" height="900" srcdoc="{page}"></iframe>'
    html = f"<!doctype html><html><head></head><body>{frame}</body></html>"
    found = measure(html, FRAME, tmp_path)  # a window itself is 500 pixels wide at least
    assert (found["inner"], found["columns"], found["seen"]) == (width, columns, [])
    assert found["content"] <= width


@needs_browser
def test_names_of_strangers_run_nothing(different: Found, tmp_path: Path) -> None:
    script = """
    function measure() {
      const over = document.querySelector(".over");
      return { hacked: "hacked" in window, scripts: document.scripts.length, alt: over.alt };
    }
    """
    name = "".join(HOSTILE)
    found = measure(with_names(different, name).page, script, tmp_path)
    assert found["scripts"] == 1 + 3  # those of the measurement
    assert not found["hacked"]
    assert found["alt"] == f"{name} in fp32, decoded by A"
    assert (found["seen"], found["requests"]) == ([], [])


@needs_browser
def test_policy_refuses_what_is_outside(same: Found, tmp_path: Path) -> None:
    """What the other tests would see if something asked for the network."""
    outside = "http://127.0.0.1:9/x.png"
    planted = same.page.replace("<main>", f'<main><img src="{outside}" alt="">')
    found = measure(planted, "function measure() { return {}; }", tmp_path)
    assert f"refused: {outside}" in found["seen"]
