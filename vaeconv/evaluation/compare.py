"""Reconstruct pictures with several autoencoders and put them side by side."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import make_folder
from vaeconv.common import option_docs as docs
from vaeconv.common.json_text import dump_json
from vaeconv.common.option_checks import check_fields, options_of, path_text
from vaeconv.common.option_docs import Doc
from vaeconv.common.wording import plural
from vaeconv.errors import InputError, OutputExistsError
from vaeconv.evaluation.document import psnr_document
from vaeconv.evaluation.grids import FORMATS, Panel, contact_sheet, merge_panels, save_picture
from vaeconv.evaluation.image_set import ImageSet, Item
from vaeconv.evaluation.models import Candidate, ModelSpec, as_specs, load_candidates
from vaeconv.evaluation.protocol import PRESETS, Protocol
from vaeconv.evaluation.samples import Sample, to_levels, to_rgb
from vaeconv.evaluation.summary import INFINITE
from vaeconv.models.devices import (
    describe_environment,
    import_torch,
    pick_device,
    reproducible,
)
from vaeconv.models.images import LeftOut
from vaeconv.models.open_model import OfOneModel, SideOptions

ORIGINAL = "original"
REPORT = "compare.json"
_MAX_STEM = 160  # a file name has 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Options of a comparison; each says what it does.

    Attributes:
        protocol: How images are prepared and reconstructed.
        sides: How to read the models.
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
    sides: OfOneModel = SideOptions()
    on_sample: Callable[[Sample], None] | None = None
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class Compared(NamedTuple):
    """Result of a comparison: the images that were written.

    Attributes:
        order: Names from left to right.
        pictures: Each file, and the PSNR of each candidate; infinite PSNR is None.
        sheet: The contact sheet; None for none.
        skipped: Images that could not be read, with the reason.
        left_out: Files that are no images, or cannot be reached, with the reason.
        result: PSNR of the models as a document of an evaluation, for tables and pages.

    Example:
        >>> options = CompareOptions(protocol=Protocol("small", size=32), sheet=0)
        >>> done = compare(["fixtures/tiny-diffusers"], "fixtures/pictures", "merged", options)
        >>> done.order, len(done.pictures), done.sheet
        (('tiny-diffusers', 'original'), 4, None)
    """

    order: tuple[str, ...]
    pictures: tuple[tuple[Path, tuple[float | None, ...]], ...]
    sheet: Path | None
    skipped: tuple[tuple[str, str], ...]
    left_out: tuple[LeftOut, ...] = ()
    result: Mapping[str, Any] = {}

    def __str__(self) -> str:
        order = ", ".join(self.order)
        return f"compared {plural(len(self.pictures), 'image')}, from left to right: {order}"


def compare(
    models: Sequence[ModelSpec | str | os.PathLike[str]],
    images: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: CompareOptions | None = None,
) -> Compared:
    """Write a merged picture for each original: candidates first, the original last.

    Args:
        models: The models, from left to right: paths and addresses, or what else there is to say.
        images: A folder, a zip file, an image, or an address of a dataset on the Hub.
        folder: Where the merged pictures go.
        options: How.

    Raises:
        InputError: A model or every picture cannot be read.
        OutputError: A picture is there, or cannot be written.

    Example:
        >>> options = CompareOptions(protocol=Protocol("small", size=32))
        >>> ema = ModelSpec(path="fixtures/tiny-kl.ckpt", name="EMA", ema=True)
        >>> models = ["fixtures/tiny-kl.ckpt", ema]
        >>> print(compare(models, "fixtures/pictures", "merged", options))
        compared 4 images, from left to right: tiny-kl.ckpt, EMA, original
    """
    options, specs = options_of(CompareOptions, options), as_specs(models)
    folder = Path(path_text("folder", folder))
    suffix = "." + options.format
    with ExitStack() as stack:
        report = options.on_progress or (lambda step, done, total: None)
        pictures = ImageSet(images, options.limit, lambda step: report(step, 0, 1))
        stack.callback(pictures.close)
        targets = _targets(pictures.names, folder, suffix)
        _check_folder(
            folder,
            [*targets, folder / f"sheet{suffix}", folder / REPORT],
            overwrite=options.overwrite,
        )
        report("importing torch and diffusers", 0, 1)
        import_torch()
        device = pick_device(options.device)
        candidates = load_candidates(
            specs,
            options.protocol,
            device,
            stack,
            how=options.sides,
            on_step=lambda step: report(step, 0, 1),
        )
        return _Comparison(candidates, pictures, targets, device, options).run(folder)


def write_comparison(done: Compared, folder: Path) -> Path:
    """Write what was compared, and in which order, beside the pictures.

    Raises:
        OutputError: It cannot be written.
    """
    document = {
        "schema_version": 1,
        "command": "compare",
        "order": list(done.order),
        "images": done.result["pictures"]["source"],
        "psnr": {path.name: list(found) for path, found in done.pictures},
    }
    target = folder / REPORT
    replace_small_file(target, dump_json(document, indent=1).encode() + b"\n", durable=False)
    return target


def _targets(names: Sequence[str], folder: Path, suffix: str) -> list[Path]:
    """Name the merged pictures as the cards do; names come from files of strangers."""
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


def _check_folder(folder: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    make_folder(folder)
    present = next((target for target in targets if target.exists()), None)
    if present and not overwrite:
        raise OutputExistsError("exists", where=str(present), hint="--overwrite replaces it")


class _Comparison:
    def __init__(
        self,
        candidates: list[Candidate],
        pictures: ImageSet,
        targets: list[Path],
        device: Any,
        options: CompareOptions,
    ) -> None:
        self._candidates = candidates
        self._pictures = pictures
        self._targets = targets
        self._device = device
        self._options = options
        self._report = options.on_progress or (lambda step, done, total: None)
        is_taken = any(candidate.name == ORIGINAL for candidate in candidates)
        self._last = "picture" if is_taken else ORIGINAL

    def run(self, folder: Path) -> Compared:
        import torch

        options = self._options
        channels = self._candidates[0].side.topology.in_channels
        written: list[tuple[Path, tuple[float | None, ...]]] = []
        skipped: list[tuple[str, str]] = []
        merged: list[Any] = []
        stream = self._pictures.stream(
            range(len(self._pictures)),
            options.protocol,
            channels,
            workers=os.cpu_count() or 1,
            ahead=4,
        )
        self._report("comparing images", 0, len(self._pictures))
        with reproducible(), torch.inference_mode():
            for item in stream:
                if item.pixels is None:
                    skipped.append((item.name, item.reason or ""))
                    continue
                sheet, found = self._merge(item)
                save_picture(sheet, self._targets[item.at])
                written.append((self._targets[item.at], found))
                if options.sheet:
                    merged.append(sheet)
                self._report("comparing images", item.at + 1, len(self._pictures))
        if not written:
            name, reason = skipped[0]
            raise InputError(
                f"no image in it could be read, such as {name}: {reason}",
                where=self._pictures.place,
            )
        path = None
        if merged:
            path = folder / f"sheet.{options.format}"
            save_picture(contact_sheet(merged, options.sheet, options.format), path)
        order = (*(candidate.name for candidate in self._candidates), self._last)
        left_out = tuple(self._pictures.left_out)
        result = psnr_document(
            [found for _, found in written],
            self._pictures,
            self._candidates,
            options.protocol,
            [LeftOut(*one) for one in skipped],
            describe_environment(self._device),
        )
        return Compared(order, tuple(written), path, tuple(skipped), left_out, result)

    def _merge(self, item: Item) -> tuple[Any, tuple[float | None, ...]]:
        import torch

        from vaeconv.evaluation.psnr_ssim import psnr

        original = torch.from_numpy(item.pixels)[None].to(self._device)
        inputs = original.float() / 127.5 - 1
        panels, found = [], []
        for candidate in self._candidates:
            _, decoded = candidate.reconstruct(inputs, [item.at], self._options.protocol)
            rounded = to_levels(decoded)
            ratio = psnr(original.float() / 255, rounded.float() / 255).item()
            found.append(ratio if math.isfinite(ratio) else None)
            said = f"{ratio:.2f} dB" if math.isfinite(ratio) else "equal"
            panels.append(Panel(candidate.name, to_rgb(rounded[0]), said))
        panels.append(Panel(self._last, to_rgb(original[0])))
        options = self._options
        if options.on_sample:
            *rebuilt, last = (panel.pixels for panel in panels)
            values = tuple({"psnr": INFINITE if one is None else one} for one in found)
            options.on_sample(Sample(item.name, last, tuple(rebuilt), values))
        return merge_panels(panels, labels=options.labels, zoom=options.zoom), tuple(found)
