"""Pictures of what was decoded: pixels, the heat map's colours, names of files, captions."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vaeconv.errors import OutputError
from vaeconv.pages.lettering import Lettering
from vaeconv.pages.png import encode_png, enlargement
from vaeconv.parity.compare_outputs import Decoded, Outcome
from vaeconv.parity.distance import measure, to_uint8
from vaeconv.parity.report.panels import (
    ANCHORS,
    NOT_FINITE,
    heat_map,
    to_rgb,
    write_images,
)

LABELS = ("A", "B")
DARK, LIGHT = ANCHORS[0], ANCHORS[-1]


def noise(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.3, 1.3, shape).astype(np.float32)


def decoded(
    one: np.ndarray, other: np.ndarray | None = None, name: str = "noise", dtype: str = "fp32"
) -> Decoded:
    other = one + noise(*one.shape, seed=8) / 1000 if other is None else other
    distance = measure(torch.from_numpy(one)[None], torch.from_numpy(other)[None])[0]
    outcome = Outcome("decode", dtype, name, one.shape, distance, 1e-4, None)
    return Decoded(name, dtype, (one, other), outcome)


def pixels_of(picture: np.ndarray) -> np.ndarray:
    """The pixels as verify counts them, by torch."""
    return to_uint8(torch.from_numpy(picture)).permute(1, 2, 0).numpy()


def enlarged(rgb: np.ndarray, factor: int) -> np.ndarray:
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def places(sheet: np.ndarray, panel: np.ndarray) -> list[tuple[int, int]]:
    """Where a panel is to be seen on a sheet, pixel for pixel."""
    height, width = panel.shape[:2]
    fits = sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1]
    starts = np.argwhere((fits == panel[0, 0]).all(axis=-1)).tolist()
    return [(y, x) for y, x in starts if (sheet[y : y + height, x : x + width] == panel).all()]


# --- arrays ---


def test_pixels_are_those_that_verify_counts() -> None:
    picture = noise(3, 50, 70)
    picture[0, 0, :6] = (-1, 1, -1.5, 9, 0, 1 / 255)  # ends, beyond, and halves
    assert (to_rgb(picture) == pixels_of(picture)).all()


def test_one_channel_is_grey_and_of_many_the_first_three_are_shown() -> None:
    many = noise(5, 6, 7)
    assert (to_rgb(many) == pixels_of(many[:3])).all()
    for count in (1, 2):
        assert (to_rgb(many[:count]) == pixels_of(many[[0, 0, 0]])).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 4])
def test_what_is_not_finite_is_magenta_and_the_rest_as_ever(value: float, channel: int) -> None:
    sound = noise(5, 6, 7)
    picture = sound.copy()
    picture[channel, 2, 3] = value
    expected = pixels_of(sound[:3])
    expected[2, 3] = (255, 0, 255)
    assert (to_rgb(picture) == expected).all()
    others = np.ones((6, 7), bool)
    others[2, 3] = False
    expected = heat_map(sound, sound * 0.5).rgb
    for heat in (heat_map(picture, sound * 0.5), heat_map(sound * 0.5, picture)):
        assert not heat.is_finite
        assert tuple(heat.rgb[2, 3]) == NOT_FINITE
        assert (heat.rgb[others] == expected[others]).all()


def test_nothing_finite_has_neither_factor_nor_colours() -> None:
    heat = heat_map(np.full((3, 4, 4), np.nan, np.float32), noise(3, 4, 4))
    assert (heat.text, heat.largest) == ("not finite", None)
    assert (heat.rgb == NOT_FINITE).all()


def test_identical_pictures_give_a_plain_map() -> None:
    picture = noise(3, 8, 8)
    heat = heat_map(picture, picture.copy())
    assert (heat.text, heat.largest, heat.is_finite) == ("identical", 0.0, True)
    assert (heat.rgb == DARK).all()
    assert heat_map(np.zeros((1, 2, 2), "f4"), np.full((1, 2, 2), -0.0, "f4")).text == "identical"
    picture[1, 2, 3] = np.nan
    assert heat_map(picture, picture).text == "identical where finite"


@pytest.mark.parametrize(
    ("largest", "text", "level"),
    [
        (2.0, "×0.5", 1.0),
        (1.5, "×0.5", 0.75),
        (1.0, "×1", 1.0),
        (0.75, "×1", 0.75),
        (0.5, "×2", 1.0),
        (0.25, "×2", 0.5),
        (2.0**-9, "×500", 500 / 512),
        (2.0**-14, "×10000", 10000 / 16384),
        (2.0**-20, "×1e6", 1e6 / 2**20),
        (2.0**-149, "×5e44", 5e44 / 2**149),  # the smallest that float32 holds
        (300.0, "×2e-3", 0.6),
        (2.0**127, "×5e-39", 5e-39 * 2**127),
    ],
)
def test_factor_brings_the_largest_difference_near_the_end(
    largest: float, text: str, level: float
) -> None:
    one = np.zeros((3, 3, 3), np.float32)
    other = one.copy()
    other[1, 0, 1] = -largest  # whichever channel, whichever sign
    other[2, 2, 2] = largest / 2
    other[0, 2, 2] = largest / 4  # less than another channel
    heat = heat_map(one, other)
    assert heat.text == text
    assert heat.largest == largest
    assert 0.4 <= level <= 1
    assert tuple(heat.rgb[0, 0]) == DARK
    assert_near(heat.rgb[0, 1], level)
    halved = largest / 2 if largest / 2 >= 2.0**-149 else 0.0
    assert_near(heat.rgb[2, 2], level * halved / largest)


def assert_near(colour: np.ndarray, level: float) -> None:
    """A colour lies between its two anchors as its level lies between theirs."""
    below = min(int(level * 5), 4)
    part = level * 5 - below
    expected = [
        low + (high - low) * part
        for low, high in zip(ANCHORS[below], ANCHORS[below + 1], strict=True)
    ]
    assert np.abs(colour - np.array(expected)).max() <= 0.51, level


def test_colours_are_the_anchors_at_fifths() -> None:
    steps = np.arange(6, dtype=np.float32) / 5
    heat = heat_map(np.zeros((1, 1, 6), np.float32), steps[None, None])
    assert [tuple(colour) for colour in heat.rgb[0].tolist()] == list(ANCHORS)


def test_colours_grow_lighter_and_none_is_like_magenta() -> None:
    ramp = heat_map(np.zeros((1, 1, 101), "f4"), np.linspace(0, 1, 101, dtype="f4")[None, None])
    colours = ramp.rgb[0].astype(float)
    assert (np.diff(colours @ (0.2126, 0.7152, 0.0722)) > 0).all()
    assert np.abs(colours - NOT_FINITE).sum(axis=1).min() > 150


@pytest.mark.parametrize("largest", [1.0, 0.25, 0.75])
def test_bar_goes_from_none_to_the_largest(largest: float) -> None:
    steps = np.linspace(0, largest, 256, dtype=np.float32)
    heat = heat_map(np.zeros((1, 1, 256), np.float32), steps[None, None])
    assert heat.bar.shape == (1, 256, 3)
    gap = np.abs(heat.bar.astype(int) - heat.rgb)  # the picture is the bar itself
    assert gap.max() <= 1


def test_png_reads_back_and_is_the_same_each_time() -> None:
    rgb = to_rgb(noise(3, 9, 13))
    data = encode_png(rgb)
    assert data == encode_png(rgb.copy())
    assert data.startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(32, 32, 8), (64, 64, 4), (96, 32, 2), (32, 96, 2), (256, 256, 1), (2000, 3, 1), (1, 1, 256)],
)
def test_small_pictures_are_enlarged_by_whole_factors(height: int, width: int, factor: int) -> None:
    assert enlargement(height, width) == factor


# --- files ---


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 16, 48), (1, 64, 64), (3, 256, 256)])
def test_sheet_shows_both_sides_and_their_difference(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    one = decoded(noise(*shape))
    (path,) = write_images(tmp_path / "new", [one], LABELS)
    assert path == tmp_path / "new" / "00-fp32-noise.png"
    sheet, factor = read(path), 256 // max(shape)
    heat = heat_map(*one.images)
    panels = [pixels_of(picture) for picture in one.images]
    if shape[0] == 1:
        panels = [panel.repeat(3, axis=2) for panel in panels]
    (left,), (middle,), (right,) = (
        places(sheet, enlarged(panel, factor)) for panel in (*panels, heat.rgb)
    )
    assert left[0] == middle[0] == right[0]
    assert left[1] + factor * shape[2] < middle[1]
    assert middle[1] + factor * shape[2] < right[1]
    below = sheet[right[0] + factor * shape[1] :]
    start, end = below[:, right[1]], below[:, right[1] + factor * shape[2] - 1]
    row = np.flatnonzero((start != 255).any(axis=1))[0]
    peak = np.abs(one.images[0].astype(float) - one.images[1]).max(axis=0).argmax()
    assert tuple(start[row]) == DARK
    assert tuple(end[row]) == tuple(heat.rgb.reshape(-1, 3)[peak])


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written onto sheets; it has to end within them."""
    found: list[str] = []
    real = Lettering.draw

    def draw(self: Lettering, draw: Any, left: float, top: float, text: str, fill: Any) -> None:
        width, height = draw.im.size
        assert 0 <= left <= left + self.width(text) <= width
        assert 0 <= top <= height - self.em
        found.append(text)
        real(self, draw, left, top, text, fill)

    monkeypatch.setattr(Lettering, "draw", draw)
    return found


def test_sheet_says_what_it_shows(tmp_path: Path, texts: list[str]) -> None:
    one = np.zeros((3, 32, 32), np.float32)
    other = one.copy()
    other[1, 5, 5] = 2.0**-9
    write_images(tmp_path, [decoded(one, other, "noise, large", "fp16")], ("A", "BASE"))
    psnr = 10 * math.log10(4 / (2.0**-18 / 3072))
    assert texts == [
        "noise, large",
        f"decode fp16 · max abs 2.0e-03 · PSNR {psnr:.1f} dB",
        "A",
        "BASE",
        "|A - BASE|  ×500",
        "0",
        "2.0e-03",
    ]


def test_sheet_of_identical_pictures_says_so_and_has_no_bar(
    tmp_path: Path, texts: list[str]
) -> None:
    picture = noise(3, 32, 32)
    (path,) = write_images(tmp_path, [decoded(picture, picture)], LABELS)
    assert texts[1] == "decode fp32 · max abs 0.0e+00 · PSNR inf"
    assert texts[-1] == "|A - B|  identical"
    assert places(read(path), np.full((256, 256, 3), DARK, np.uint8))


def test_sheet_shows_where_a_picture_is_not_finite(tmp_path: Path, texts: list[str]) -> None:
    sound = noise(3, 32, 32) / 2  # far from magenta
    picture = sound.copy()
    picture[0, :, :8], picture[1, :8] = math.nan, math.inf
    (path,) = write_images(tmp_path, [decoded(picture, sound)], LABELS)
    assert "decode fp32 · max abs not finite" in texts
    assert "magenta: NaN or infinity" in texts
    sheet = read(path)
    of_both = 32 * 8 + 8 * 24
    assert (sheet == NOT_FINITE).all(axis=-1).sum() == 2 * of_both * 64
    all_lost = np.full((3, 32, 32), np.nan, np.float32)
    write_images(tmp_path, [decoded(all_lost, picture, "lost")], LABELS)
    assert "|A - B|  not finite" in texts


HOSTILE = [
    "../../x",
    "/etc/passwd",
    "<script>alert(1)</script>",
    "two\nlines\x00",
    "a \"quoted\" 'name'",
    "\udcff",
    "名前",
    ".",
    "",
    "long " * 500,
    "con.png",
]


def test_names_of_strangers_stay_in_the_folder(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "above" / "folder"
    folder.parent.mkdir()
    picture = noise(3, 4, 4)
    pairs = [decoded(picture, name=name, dtype=f"../{name[:9]}") for name in HOSTILE]
    paths = write_images(folder, pairs, ("A\n/", "B"))
    assert sorted(folder.iterdir()) == paths  # in the order of their numbers
    assert list(folder.parent.iterdir()) == [folder]
    assert len({path.name for path in paths}) == len(HOSTILE)
    for index, path in enumerate(paths):
        assert re.fullmatch(rf"{index:02d}-[a-z0-9-]+\.png", path.name)
        assert len(path.name) < 120
        read(path)
    assert paths[0].name == "00-x-x.png"
    assert "two\\nlines\\x00" in texts
    assert all("\n" not in text for text in texts)


def test_same_names_get_files_of_their_own_and_older_ones_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "00-fp32-noise.png").write_bytes(b"old")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    paths = write_images(tmp_path, [decoded(noise(3, 4, 4)), decoded(noise(3, 8, 8))], LABELS)
    assert [path.name for path in paths] == ["00-fp32-noise.png", "01-fp32-noise.png"]
    assert read(paths[0]).shape
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-fp32-noise.png",
        "01-fp32-noise.png",
        "mine.txt",
    ]


def test_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "absent" / "folder", tmp_path / "nul\0"):
        said = r"is not a folder|does not exist|cannot be written"
        with pytest.raises(OutputError, match=said) as caught:
            write_images(folder, [decoded(noise(3, 4, 4))], LABELS)
        assert caught.value.where == str(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_file_that_cannot_be_written_is_an_error_and_leaves_no_debris(tmp_path: Path) -> None:
    (tmp_path / "01-fp32-noise.png").mkdir()
    with pytest.raises(OutputError, match=r"01-fp32-noise\.png"):
        write_images(tmp_path, [decoded(noise(3, 4, 4))] * 3, LABELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-fp32-noise.png",
        "01-fp32-noise.png",
    ]


DRAW = """
import sys
from pathlib import Path
import numpy as np
from vaeconv.parity.compare_outputs import Decoded, Outcome
from vaeconv.parity.distance import Distance
from vaeconv.parity.report.panels import write_images

one, other = np.load(sys.argv[1]), np.load(sys.argv[2])
outcome = Outcome("decode", "fp32", "noise", one.shape, Distance(1.0, 1.0, 1.0, 9.0), 1.0, None)
write_images(Path(sys.argv[3]), [Decoded("noise", "fp32", (one, other), outcome)], ("A", "B"))
assert "torch" not in sys.modules
"""


def test_bytes_are_the_same_in_each_process_and_need_no_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3, 16, 16, seed=1))
    np.save(tmp_path / "b.npy", noise(3, 16, 16, seed=2))
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", DRAW, "a.npy", "b.npy", seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            check=True,
        )
    written = [(tmp_path / seed / "00-fp32-noise.png").read_bytes() for seed in ("1", "2")]
    assert written[0] == written[1]
