"""Draw how each metric is distributed over pictures; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import check_writable, make_folder
from vaeconv.errors import MissingDependencyError, OutputExistsError
from vaeconv.evaluation.distributions import finite_values
from vaeconv.evaluation.metrics import COLUMNS, explain_metric

_BINS = 40


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
    low = min(min(values) for values in series.values())
    high = max(max(values) for values in series.values())
    span = (low, high) if high > low else (low - 0.5, high + 0.5)
    for at, (model, values) in enumerate(series.items()):
        colour = f"C{at}"
        mean = sum(values) / len(values)
        axes.hist(
            values,
            bins=_BINS,
            range=span,
            histtype="stepfilled",
            alpha=0.35,
            color=colour,
            label=f"{model}: {mean:.{COLUMNS[name][1]}f}",
        )
        axes.axvline(mean, color=colour, linewidth=1.5)
    axes.set_xlabel(explain_metric(name))
    axes.set_ylabel("images")
    size = result["protocol"]["size"]
    pictures = result["pictures"]
    axes.set_title(
        f"{pictures['name']}, {size}x{size}, {pictures['number']} images", fontsize="medium"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
