"""How each metric is distributed over images: for a page, and as figures, which need matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, NamedTuple

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import check_writable, make_folder
from vaeconv.common.wording import plural
from vaeconv.errors import MissingDependencyError, OutputExistsError
from vaeconv.evaluation.metrics import COLUMNS, explain_metric

BINS = 40
_FEW = 60  # images; so many or fewer are shown as points


class Distribution(NamedTuple):
    """The values of one model.

    Attributes:
        model: Its name.
        text: The distribution in words: what an image of it shows.
        mean: Where the mean lies, from 0 to 1 between the ends of the axis.
        points: Where each value lies; empty where there are many.
        bars: Heights of the bins, relative to the largest of all models; empty for points.
    """

    model: str
    text: str
    mean: float
    points: tuple[float, ...]
    bars: tuple[float, ...]


class Axis(NamedTuple):
    """One metric of all models, on one axis.

    Attributes:
        title: The metric, its unit, and which end is better.
        low: The left end, as text.
        high: The right end, as text.
        rows: The models that have values.
    """

    title: str
    low: str
    high: str
    rows: tuple[Distribution, ...]


def finite_values(result: Mapping[str, Any], metric: str) -> dict[str, list[float]]:
    """Take the finite values of each model that has some.

    Args:
        result: Document of an evaluation.
        metric: Of single images.
    """
    found = {}
    for model, columns in zip(result["models"], result["per_picture"]["models"], strict=True):
        values = [value for value in columns.get(metric, ()) if isinstance(value, int | float)]
        if values:
            found[model["name"]] = values
    return found


def axes_of(result: Mapping[str, Any]) -> list[Axis]:
    """Describe the distribution of each metric of an evaluation."""
    found = ((name, finite_values(result, name)) for name in COLUMNS)
    return [_axis(name, series) for name, series in found if series]


def _axis(metric: str, series: Mapping[str, Sequence[float]]) -> Axis:
    low, high = _ends(series)
    digits = COLUMNS[metric][1] + 1
    placed = {
        model: [(value - low) / (high - low) for value in values]
        for model, values in series.items()
    }
    counts = {model: _count(places) for model, places in placed.items()}
    largest = max(max(bins) for bins in counts.values())
    rows = []
    for model, values in series.items():
        is_few = len(values) <= _FEW
        rows.append(
            Distribution(
                model,
                _describe(metric, values, digits),
                fmean(placed[model]),
                tuple(placed[model]) if is_few else (),
                () if is_few else tuple(count / largest for count in counts[model]),
            )
        )
    return Axis(explain_metric(metric), f"{low:.{digits}f}", f"{high:.{digits}f}", tuple(rows))


def _ends(series: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    low, high = min(map(min, series.values())), max(map(max, series.values()))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _count(places: Sequence[float]) -> list[int]:
    bins = [0] * BINS
    for place in places:
        bins[min(int(place * BINS), BINS - 1)] += 1
    return bins


def _describe(metric: str, values: Sequence[float], digits: int) -> str:
    def said(value: float) -> str:
        return f"{value:.{digits}f}"

    number = plural(len(values), "image")
    text = f"{COLUMNS[metric][0]} of {number}: mean {said(fmean(values))}"
    if len(values) < 2:
        return text
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return (
        f"{text}, median {said(middle)}, from {said(min(values))} to {said(max(values))}; "
        f"half of them between {said(lower)} and {said(upper)}"
    )


def import_figure() -> Any:
    """Import matplotlib's figure.

    Raises:
        MissingDependencyError: There is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"plots need matplotlib: {error}", hint="pip install 'vaeconv[eval]'"
        ) from error
    return Figure


def check_plots(folder: Path, results: int, *, overwrite: bool) -> None:
    """Check before the work that figures can be written, and replace none unasked.

    Args:
        folder: Where they go.
        results: How many results are drawn.
        overwrite: Whether figures may be replaced.

    Raises:
        OutputError: A figure is there, or none can be written.
    """
    check_writable(folder, is_folder=True)
    names = [_file_name(name, at, results) for at in range(results) for name in COLUMNS]
    present = next((folder / name for name in names if (folder / name).exists()), None)
    if present and not overwrite:
        raise OutputExistsError("exists", where=str(present), hint="--overwrite replaces it")


def _file_name(metric: str, at: int, results: int) -> str:
    return f"{metric}.png" if results == 1 else f"{metric}-{at}.png"


def draw_plots(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw one figure for each metric of each result: a histogram for each model, and its mean.

    Args:
        folder: Where the PNGs go; it is made.
        results: Documents of evaluations.

    Raises:
        MissingDependencyError: There is no matplotlib.
        OutputError: A figure cannot be written.
    """
    figure_class = import_figure()
    make_folder(folder)
    written = []
    for number, result in enumerate(results):
        for name in COLUMNS:
            series = finite_values(result, name)
            if not series:
                continue
            figure = figure_class(figsize=(6.4, 3.6), dpi=160, layout="constrained")
            _draw(figure, series, name, result)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            written.append(folder / _file_name(name, number, len(results)))
            replace_small_file(written[-1], buffer.getvalue(), durable=False)
    return written


def _draw(
    figure: Any, series: Mapping[str, list[float]], name: str, result: Mapping[str, Any]
) -> None:
    axes = figure.subplots()
    for at, (model, values) in enumerate(series.items()):
        colour = f"C{at}"
        mean = sum(values) / len(values)
        axes.hist(
            values,
            bins=BINS,
            range=_ends(series),
            histtype="stepfilled",
            alpha=0.35,
            color=colour,
            label=f"{model}: {mean:.{COLUMNS[name][1]}f}",
        )
        axes.axvline(mean, color=colour, linewidth=1.5)
    axes.set_xlabel(explain_metric(name))
    axes.set_ylabel("images")
    size = result["protocol"]["size"]
    images = result["pictures"]
    axes.set_title(f"{images['name']}, {size}x{size}, {images['number']} images", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
