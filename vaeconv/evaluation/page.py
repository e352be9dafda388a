"""An evaluation or a comparison as one HTML page that holds all it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vaeconv._version import __version__
from vaeconv.common.wording import plural
from vaeconv.evaluation.distributions import axes_of
from vaeconv.evaluation.metrics import COLUMNS, INFINITE, UNITS, explain_metric
from vaeconv.evaluation.samples import Sample, judge_of
from vaeconv.evaluation.tables import make_tables
from vaeconv.models.images import LeftOut, count_left_out
from vaeconv.pages.frame import DataUri, png_address, render
from vaeconv.pages.png import encode_png, enlargement

if TYPE_CHECKING:
    from vaeconv.evaluation.samples import Pixels

ORIGINAL = "original"
LARGEST = 512  # pixels of a side; larger images are reduced on a page
BUDGET = 32 << 20  # bytes of images on a page
_USUAL = 50_000  # images behind a Fréchet distance in papers
_FEATURES = 2048  # with fewer images than that, their covariance has no full rank
_FEW = 100  # images
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
            (f"{network['name']}: {network['file']}", f"sha256 {network['sha256']}")
            for network in result.get("nets", ())
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


def caveats_of(result: Mapping[str, Any]) -> list[str]:
    """List what limits the numbers of an evaluation.

    Args:
        result: Document of an evaluation.
    """
    return [*_of_images(result), *_of_metrics(result), *_of_models(result)]


def _of_images(result: Mapping[str, Any]) -> Iterator[str]:
    images, number = result["pictures"], result["pictures"]["number"]
    if number < _FEW:
        yield (
            f"Only {plural(number, 'image')}: differences between close models may be chance, and "
            "say little of other images."
        )
    if images.get("beyond_limit"):
        more = number + images["beyond_limit"]
        yield f"Only the first {number} of {more} images were measured, in the order of names."
    if images.get("left_out"):
        yield f"{count_left_out([LeftOut(**one) for one in images['left_out']])}."
    for remark, count in images.get("remarks", {}).items():
        yield f"{plural(count, 'image')} measured, but: {remark}."


def _of_metrics(result: Mapping[str, Any]) -> Iterator[str]:
    number = result["pictures"]["number"]
    models = [model["metrics"] for model in result["models"]]
    if any(metrics.get("rfid") is not None for metrics in models) and number < _USUAL:
        yield (
            f"rFID of {plural(number, 'image')} is biased upward: it falls as images are added, so "
            "it compares only with rFID of the same images."
        )
        if number < _FEATURES:
            yield (
                f"rFID needs more images than the {_FEATURES} features of its network to be more "
                "than a rough order of the models."
            )
    if any("psim" in metrics for metrics in models):
        yield "That PSIM is what published cards call PSIM is not verified."
    for name, reason in result.get("not_computed", {}).items():
        title = COLUMNS[name][0] if name in COLUMNS else "rFID"
        yield f"{title} was not computed: {reason}."
    for network in result.get("nets", ()):
        if not network["is_published"]:
            yield (
                f"{network['file']} holds other weights of {network['name']} than the published "
                "ones: what it measures compares with no published number."
            )


def _of_models(result: Mapping[str, Any]) -> Iterator[str]:
    protocol = result["protocol"]
    if protocol.get("dtype", "fp32") != "fp32":
        yield f"The models ran in {protocol['dtype']}, which rounds more than fp32."
    if not protocol.get("rounds", True):
        yield "Reconstructions were not rounded to uint8, as an image file would."
    for model in result["models"]:
        for name, found in model["metrics"].items():
            lost = found["invalid"] if isinstance(found, Mapping) else 0
            if lost and name == "psnr":
                yield f"{model['name']} made {plural(lost, 'image')} with NaN or infinity."
