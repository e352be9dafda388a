"""Encode images to a file of reference latents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.option_checks import MOST_PIXELS, Device, Range, check_arguments
from vaeconv.common.wording import plural
from vaeconv.errors import InputError
from vaeconv.models.devices import import_torch, pick_device, reproducible
from vaeconv.models.image_files import ImageFiles, open_images
from vaeconv.models.images import LeftOut, image_mode, prepare, quiet_pillow
from vaeconv.models.open_model import ModelOptions, OpenModel, open_model
from vaeconv.parity.references import FILE_FORMAT, LATENT, PICTURE, from_uint8
from vaeconv.weights.idle_options import reading_rules, refuse_idle
from vaeconv.weights.output import check_target
from vaeconv.weights.output_names import check_ending, check_order, is_address


class Encoded(NamedTuple):
    """Result of encoding images to a file of latents.

    Attributes:
        output: The file.
        names: Names of the images.
        latent: Shape of each latent, ``[z, h, w]``.
        device: Device that encoded them.
        left_out: Files in the folder that were not encoded, with the reason.
        source: Address of the images on the Hub at the commit that was read; None for images here.

    Example:
        >>> model = "fixtures/tiny-diffusers"
        >>> done = encode_images("fixtures/pictures", "a.safetensors", model, size=32)
        >>> done.names
        ('astronaut', 'chelsea', 'coffee', 'rocket')
    """

    output: Path
    names: tuple[str, ...]
    latent: tuple[int, ...]
    device: str
    left_out: tuple[LeftOut, ...] = ()
    source: str | None = None

    def __str__(self) -> str:
        shape = "x".join(map(str, self.latent))
        images = plural(len(self.names), "image")
        return f"encoded {images} on {self.device} to latents of {shape}: {self.output}"


def encode_images(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    model: AnyModel,
    *,
    size: int = 256,
    limit: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    how: ModelOptions = ModelOptions(),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Encoded:
    """Encode images, and write latents and images to a safetensors file.

    The latents are posterior means in float32, ``latent.NAME [z, h, w]``, not scaled; the images
    are kept as ``image.NAME``, uint8 ``[c, h, w]``, so that encoding can be compared as well.
    Runs of one model on one machine give the same bytes.

    Args:
        images: A folder, with the folders in it, a zip file, an image, or an address of a dataset
            on the Hub.
        output: The file to write.
        model: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        size: Side of the square images in pixels: the shorter side is resized to it, and the middle
            is cut out.
        limit: Use only this many images, in the order of their names.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        overwrite: Replace an existing output.
        how: Options of reading the model.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Raises:
        UsageError: The size does not divide by the model's downsampling.
        InputError: The model or an image cannot be read.
        OutputError: The output exists or cannot be written.
        MissingDependencyError: The device, torch or diffusers is missing.

    Example:
        >>> model = "fixtures/tiny-diffusers"
        >>> print(encode_images("fixtures/pictures", "refs.safetensors", model, size=32))
        encoded 4 images on cpu to latents of 4x16x16: refs.safetensors
    """
    check_arguments(
        encode_images,
        {"images": images, "output": output, "size": size, "limit": limit, "device": device},
        size=Range(1, most=MOST_PIXELS),
        limit=Range(1),
        device=Device,
    )
    model, output = as_source(model), Path(output)
    check_ending(output, (".safetensors", ".sft"), "a file of latents")
    refuse_idle(reading_rules([model], download=how.download, variant=how.variant))
    sources = (images, model)
    check_order(sources, output)
    if is_address(os.fspath(model)):  # before anything is fetched
        check_target(output, sources, overwrite=overwrite)
    report = on_progress or (lambda step, done, total: None)
    with ExitStack() as stack:
        files = open_images(images, lambda step: report(step, 0, 1))
        stack.callback(files.close)
        opened = open_model(model, "MODEL", how, ema=False)
        stack.callback(opened.close)
        check_target(output, sources, overwrite=overwrite)
        return _encode(opened, files, files.names[:limit], output, size, device, report)


def _encode(
    model: OpenModel,
    files: ImageFiles,
    names: list[str],
    output: Path,
    size: int,
    device: str,
    report: Callable[[str, int, int], None],
) -> Encoded:
    model.check_size(size)
    mode = image_mode(model.topology.in_channels, model.name)
    report("importing torch and diffusers", 0, 1)
    import_torch()
    import torch
    from safetensors.numpy import save

    place = pick_device(device)
    left_out = list(files.left_out)
    tensors: dict[str, Any] = {}
    known: list[str] = []
    with reproducible(), torch.inference_mode():
        report("loading the model", 0, 1)
        running = model.load_checked()
        running.to(place, torch.float32)
        report("encoding images", 0, len(names))
        for name, pixels in _read_images(files, names, mode, size, left_out):
            data = torch.from_numpy(from_uint8(pixels))[None].to(place)
            mean = running.encode(data)[0, : model.topology.latent_channels].cpu().numpy()
            tensors[LATENT + name], tensors[PICTURE + name] = mean, pixels
            known.append(name)
            report("encoding images", len(known), len(names))
    if not known:
        name, reason = left_out[-1]
        raise InputError(f"no image can be used, such as {name}: {reason}", where=files.place)
    about = {"format": FILE_FORMAT, "model": Path(model.name).name, "size": size}
    if files.source:
        about["images"] = files.source
    # One key: the library writes several in no fixed order.
    content = save(tensors, metadata={"vaeconv": json.dumps(about, sort_keys=True)})
    replace_small_file(output, content, durable=True)
    shape = tuple(tensors[LATENT + known[-1]].shape)
    return Encoded(output, tuple(known), shape, str(place), tuple(left_out), files.source)


def _read_images(
    files: ImageFiles, names: list[str], mode: str, size: int, left_out: list[LeftOut]
) -> Iterator[tuple[str, Any]]:
    """Read images, each with its name without the ending, or with it where another has the same.

    One that is no image, is damaged, or is too large to be honest is left out.
    """
    used: set[str] = set()
    for name in names:
        stem = name.rpartition(".")[0] or name
        known = name if stem in used else stem
        used.add(known)
        try:
            with quiet_pillow():
                pixels, _ = prepare(files.read(name), mode, size)
        except InputError as error:
            left_out.append(LeftOut(name, error.what))
        else:
            # What is no UTF-8 in the name of a file cannot be in a header.
            yield known.encode("utf-8", "backslashreplace").decode(), pixels
