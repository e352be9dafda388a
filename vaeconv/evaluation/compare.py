"""Reconstruct images with several autoencoders and put them side by side."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import make_folder
from vaeconv.common import option_docs as docs
from vaeconv.common.json_text import dump_json
from vaeconv.common.option_checks import check_fields, options_of, path_text
from vaeconv.common.option_docs import Doc
from vaeconv.common.wording import plural
from vaeconv.errors import InputError, OutputExistsError
from vaeconv.evaluation.document import psnr_document
from vaeconv.evaluation.grids import FORMATS, Panel, contact_sheet, merge_panels, save_image
from vaeconv.evaluation.image_set import ImageSet, Item
from vaeconv.evaluation.metrics import INFINITE
from vaeconv.evaluation.models import Candidate, ModelSpec, as_specs, load_candidates
from vaeconv.evaluation.protocol import PRESETS, Protocol
from vaeconv.evaluation.samples import Sample, reconstruct_image, to_rgb
from vaeconv.models.devices import (
    describe_environment,
    import_torch,
    pick_device,
    reproducible,
)
from vaeconv.models.images import LeftOut
from vaeconv.models.open_model import ModelOptions, OfOneModel

if TYPE_CHECKING:
    import torch

ORIGINAL = "original"
REPORT = "compare.json"
_MAX_STEM = 160  # a file name has 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Options of a comparison; each says what it does.

    Attributes:
        protocol: How images are prepared and reconstructed.
        reading: How to read the models.
        on_sample: Called with each image and its reconstructions.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Example:
        >>> CompareOptions(zoom=48, sheet=2).format
        'png'
    """

    protocol: Annotated[Protocol, "made of ProtocolOptions"] = PRESETS["card-256"]
    limit: docs.Limit = None
    labels: Annotated[bool, Doc("Write names and PSNR under the images; the cards do not.")] = True
    zoom: Annotated[
        int,
        Doc(
            "Side, in pixels, of a square to show enlarged where the models differ most; 0 for "
            "none.",
            "PIXELS",
            least=0,
        ),
    ] = 0
    sheet: Annotated[
        int, Doc("Columns of the contact sheet; 0 for no sheet.", "COLUMNS", least=0)
    ] = 1
    format: Annotated[
        str, Doc("Format of the images: png or webp, both lossless.", "NAME", choices=FORMATS)
    ] = "png"
    overwrite: docs.Overwrite = False
    device: docs.Device = "auto"
    reading: OfOneModel = ModelOptions()
    on_sample: Callable[[Sample], None] | None = None
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class Compared(NamedTuple):
    """Result of a comparison: the images that were written.

    Attributes:
        order: Names from left to right.
        images: Each file, and the PSNR of each candidate; infinite PSNR is None.
        sheet: The contact sheet; None for none.
        skipped: Images that could not be read, with the reason.
        left_out: Files that are no images, or cannot be reached, with the reason.
        result: PSNR of the models as a document of an evaluation, for tables and pages.

    Example:
        >>> options = CompareOptions(protocol=Protocol("small", size=32), sheet=0)
        >>> done = compare(["fixtures/tiny-diffusers"], "fixtures/pictures", "merged", options)
        >>> done.order, len(done.images), done.sheet
        (('tiny-diffusers', 'original'), 4, None)
    """

    order: tuple[str, ...]
    images: tuple[tuple[Path, tuple[float | None, ...]], ...]
    sheet: Path | None
    skipped: tuple[LeftOut, ...]
    left_out: tuple[LeftOut, ...] = ()
    result: Mapping[str, Any] = {}

    def __str__(self) -> str:
        order = ", ".join(self.order)
        return f"compared {plural(len(self.images), 'image')}, from left to right: {order}"


def compare(
    models: Sequence[ModelSpec | str | os.PathLike[str]],
    images: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: CompareOptions | None = None,
) -> Compared:
    """Write a merged image for each original: candidates first, the original last.

    Args:
        models: The models, from left to right: paths and addresses, or what else there is to say.
        images: A folder, a zip file, an image, or an address of a dataset on the Hub.
        folder: Where the merged images go.
        options: How.

    Raises:
        InputError: A model or every image cannot be read.
        OutputError: An image is there, or cannot be written.

    Example:
        >>> options = CompareOptions(protocol=Protocol("small", size=32))
        >>> ema = ModelSpec(path="fixtures/tiny-kl.ckpt", name="EMA", ema=True)
        >>> models = ["fixtures/tiny-kl.ckpt", ema]
        >>> print(compare(models, "fixtures/pictures", "merged", options))
        compared 4 images, from left to right: tiny-kl.ckpt, EMA, original
    """
    options, specs = options_of(CompareOptions, options), as_specs(models)
    folder = Path(path_text("folder", folder))
    report = options.on_progress or (lambda step, done, total: None)
    suffix = f".{options.format}"
    with ExitStack() as stack:
        found = ImageSet(images, options.limit, lambda step: report(step, 0, 1))
        stack.callback(found.close)
        targets = _targets(found.names, folder, suffix)
        sheet = folder / f"sheet{suffix}"
        make_folder(folder)
        present = [path for path in (*targets, sheet, folder / REPORT) if path.exists()]
        if present and not options.overwrite:
            raise OutputExistsError("exists", where=str(present[0]), hint="--overwrite replaces it")
        report("importing torch and diffusers", 0, 1)
        import_torch()
        import torch

        device = pick_device(options.device)
        candidates = load_candidates(
            specs,
            options.protocol,
            device,
            stack,
            how=options.reading,
            on_step=lambda step: report(step, 0, 1),
        )
        names = [candidate.name for candidate in candidates]
        order = (*names, "picture" if ORIGINAL in names else ORIGINAL)
        written: list[tuple[Path, tuple[float | None, ...]]] = []
        skipped: list[LeftOut] = []
        rows: list[Any] = []
        report("comparing images", 0, len(found))
        stream = found.stream(
            range(len(found)),
            options.protocol,
            candidates[0].opened.topology.in_channels,
            workers=os.cpu_count() or 1,
            ahead=4,
        )
        with reproducible(), torch.inference_mode():
            for item in stream:
                if item.pixels is None:
                    skipped.append(LeftOut(item.name, item.reason or ""))
                    continue
                row, ratios = _merge(item, candidates, order, options, device)
                save_image(row, targets[item.at])
                written.append((targets[item.at], ratios))
                rows += [row] if options.sheet else []
                report("comparing images", item.at + 1, len(found))
        if not written:
            name, reason = skipped[0]
            raise InputError(
                f"no image in it could be read, such as {name}: {reason}", where=found.place
            )
        if rows:
            save_image(contact_sheet(rows, options.sheet, options.format), sheet)
        return Compared(
            order,
            tuple(written),
            sheet if rows else None,
            tuple(skipped),
            tuple(found.left_out),
            psnr_document(
                [ratios for _, ratios in written],
                found,
                candidates,
                options.protocol,
                skipped,
                describe_environment(device),
            ),
        )


def _merge(
    item: Item,
    candidates: Sequence[Candidate],
    order: Sequence[str],
    options: CompareOptions,
    device: torch.device,
) -> tuple[Any, tuple[float | None, ...]]:
    """Reconstruct an image; give the merged picture, and the PSNR of each model."""
    from vaeconv.evaluation.image_metrics import psnr

    original, rebuilt = reconstruct_image(item, candidates, options.protocol, device)
    found = [psnr(original.float() / 255, levels.float() / 255).item() for levels in rebuilt]
    ratios = tuple(ratio if math.isfinite(ratio) else None for ratio in found)
    pixels = [to_rgb(levels[0]) for levels in (*rebuilt, original)]
    said = ["equal" if ratio is None else f"{ratio:.2f} dB" for ratio in ratios]
    panels = [Panel(*parts) for parts in zip(order, pixels, [*said, ""], strict=True)]
    if options.on_sample:
        values = tuple({"psnr": INFINITE if ratio is None else ratio} for ratio in ratios)
        options.on_sample(Sample(item.name, pixels[-1], tuple(pixels[:-1]), values))
    return merge_panels(panels, labels=options.labels, zoom=options.zoom), ratios


def write_comparison(done: Compared, folder: Path) -> Path:
    """Write what was compared, and in which order, beside the images.

    Raises:
        OutputError: It cannot be written.
    """
    document = {
        "schema_version": 1,
        "command": "compare",
        "order": list(done.order),
        "images": done.result["pictures"]["source"],
        "psnr": {path.name: list(found) for path, found in done.images},
    }
    target = folder / REPORT
    replace_small_file(target, dump_json(document, indent=1).encode() + b"\n", durable=False)
    return target


def _targets(names: Sequence[str], folder: Path, suffix: str) -> list[Path]:
    """Name the merged images as the cards do; names come from files of strangers."""
    taken: dict[Path, None] = {}
    for name in names:
        stem = _UNSAFE.sub("-", name.rpartition(".")[0]).strip(".-")[:_MAX_STEM] or "picture"
        target = folder / f"{stem}_merged{suffix}"
        number = 2
        while target in taken:
            target = folder / f"{stem}-{number}_merged{suffix}"
            number += 1
        taken[target] = None
    return list(taken)
