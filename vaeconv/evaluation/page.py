"""An evaluation or a comparison as one HTML page that holds all it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vaeconv._version import __version__
from vaeconv.evaluation.caveats import caveats_of
from vaeconv.evaluation.distributions import axes_of
from vaeconv.evaluation.metrics import COLUMNS, UNITS, explain_metric
from vaeconv.evaluation.samples import Sample, judge_of
from vaeconv.evaluation.summary import INFINITE
from vaeconv.evaluation.tables import make_tables
from vaeconv.pages.frame import DataUri, png_address, render
from vaeconv.pages.png import encode_png, enlargement

if TYPE_CHECKING:
    from vaeconv.evaluation.samples import Pixels

ORIGINAL = "original"
LARGEST = 512  # pixels of a side; larger images are reduced on a page
BUDGET = 32 << 20  # bytes of images on a page
_EXPLAINED = {"rFID": explain_metric("rfid")} | {
    title: explain_metric(name) for name, (title, _) in COLUMNS.items()
}


def make_page(
    command: str,
    results: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    *,
    most: int,
) -> str:
    """Write a page; whatever names hold, they stay text.

    Args:
        command: Whose page it is.
        results: Documents of evaluations; the samples are of the first.
        samples: Images to show, the worst first.
        most: How many samples are shown where there are more images.
    """
    models = [model["name"] for model in results[0]["models"]]
    shown = list(_within_budget(samples))
    judge = judge_of(samples[0].values) if samples else None
    return render(
        "vaeconv.evaluation",
        "evaluation.html.j2",
        command=command,
        version=__version__,
        results=[_describe_result(result) for result in results],
        tables=[_describe_table(table) for table in make_tables(results)],
        views=[*models, ORIGINAL if ORIGINAL not in models else "the original image"],
        samples=shown,
        total=results[0]["pictures"]["number"],
        most=most,
        dropped=len(samples) - len(shown),
        judge=judge and explain_metric(judge),
        largest=LARGEST,
        budget=f"{BUDGET >> 20} MiB",
    )


def _describe_table(table: Any) -> dict[str, Any]:
    head = [_EXPLAINED.get(title, title).partition(" (") for title in table.head]
    return {
        "title": table.title,
        "protocol": table.protocol,
        "head": [(title, note.rstrip(")")) for title, _, note in head],
        "rows": table.rows,
        "left": table.left,
    }


def _describe_result(result: Mapping[str, Any]) -> dict[str, Any]:
    images = result["pictures"]
    facts = {
        "name": images["name"],
        "address": images.get("source"),
        "number": images["number"],
        "sha256": images.get("sha256"),
    }
    return {
        "name": images["name"],
        "caveats": caveats_of(result),
        "axes": axes_of(result),
        "images": {name: said for name, said in facts.items() if said is not None},
        "models": [_describe_model(model) for model in result["models"]],
        "nets": [
            (f"{net['name']}: {net['file']}", f"sha256 {net['sha256']}")
            for net in result.get("nets", ())
        ],
        "environment": {
            name.replace("_", " "): said for name, said in result.get("environment", {}).items()
        },
    }


def _describe_model(model: Mapping[str, Any]) -> dict[str, Any]:
    sha256 = model.get("weights_sha256")
    facts = {
        "file": model.get("path"),
        "layout": model.get("layout"),
        "weights": "EMA" if model.get("ema") else None,
        "comment": model.get("comment") or None,
    }
    return {
        "name": model["name"],
        "facts": {name: said for name, said in facts.items() if said},
        "sha256": f"weights sha256 {sha256}" if sha256 else None,
    }


def _within_budget(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Describe samples as long as their images fit; what does not is said, not shown."""
    left = BUDGET
    for sample in samples:
        images = [_address(one) for one in (*sample.reconstructions, sample.original)]
        left -= sum(map(len, images))
        if left < 0:
            return
        height, width = sample.original.shape[:2]
        shrunk = min(1.0, LARGEST / max(height, width))
        scale = enlargement(height, width)
        yield {
            "name": sample.name,
            "images": images,
            "width": round(width * shrunk) * scale,
            "height": round(height * shrunk) * scale,
            "is_enlarged": scale > 1,
            "size": f"{width} × {height}",
            "values": [", ".join(_say_values(values)) for values in sample.values],
        }


def _address(pixels: Pixels) -> DataUri:
    import numpy as np
    from PIL import Image

    if max(pixels.shape[:2]) > LARGEST:
        image = Image.fromarray(pixels)
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
    return png_address(encode_png(pixels))


def _say_values(values: Mapping[str, Any]) -> Iterator[str]:
    for name, (title, digits) in COLUMNS.items():
        if name not in values:
            continue
        value = values[name]
        if value == INFINITE:
            yield f"{title} of equal images"
        elif value is None:
            yield f"{title} not finite"
        else:
            yield f"{title} {value:.{digits + 1}f}{UNITS.get(name, '')}"
