"""``vaeconv compare``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vaeconv.cli.declare import declare
from vaeconv.cli.reading import Reading
from vaeconv.cli.sink import Sink
from vaeconv.evaluate.comparing import CompareOptions
from vaeconv.option_docs import Doc, Images

if TYPE_CHECKING:
    from vaeconv.evaluate.comparing import Compared


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob:
    """What to compare, and where to put it; each option says it."""

    models: Annotated[
        tuple[str, ...],
        Doc(
            "Autoencoders to compare, from left to right: anything that convert opens.",
            "MODEL...",
            is_argument=True,
        ),
    ] = ()
    images: Images = None
    out: Annotated[Path | None, Doc("Folder to write the side-by-side images into.", "DIR")] = None
    name: Annotated[
        tuple[str, ...],
        Doc("Name of the first MODEL, of the second, and so on; repeatable.", "NAME"),
    ] = ()
    models_file: Annotated[
        Path | None, Doc("TOML file of models, as for eval.", "FILE.toml", flags=("--models",))
    ] = None
    ema: Annotated[
        bool, Doc("Use the EMA weights of MODELs that have some.", flags=("--ema/--no-ema",))
    ] = False
    protocol: Annotated[str, Doc("Preset of how images are prepared, as for eval.", "NAME")] = (
        "card-256"
    )
    size: Annotated[
        int | None,
        Doc("Side of the square images, in pixels; 256 in the presets.", "PIXELS", least=1),
    ] = None


@declare
def compare(job: CompareJob, options: CompareOptions, reading: Reading, sink: Sink) -> None:
    """Put reconstructions side by side: candidates first, the original last.

    Writes NAME_merged.png for each picture, a contact sheet of all, and compare.json, which tells
    the order to vaeconv card.

    Examples:

        vaeconv compare ft-ema/ ft-mse/ --images samples/ --out merged/

        vaeconv compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/

        vaeconv compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/
    """
    from vaeconv.cli.left_out import left_out_notes
    from vaeconv.effects import reading_rules, refuse_idle
    from vaeconv.errors import UsageError
    from vaeconv.evaluate.comparing import compare as run
    from vaeconv.evaluate.comparing import write_comparison
    from vaeconv.evaluate.models import name_specs
    from vaeconv.evaluate.protocol import preset
    from vaeconv.names import check_ending

    specs = name_specs(list(job.models), {"name": job.name}, job.models_file, ema=job.ema)
    if not specs or job.images is None or job.out is None:
        raise UsageError("models, --images and --out are needed")
    check_ending(job.out, (), "--out")
    refuse_idle(reading_rules([spec.path for spec in specs], download=reading.download))
    with sink.progress("fetching") as fetching, sink.steps() as steps:
        options = replace(
            options,
            protocol=preset(job.protocol).changed(size=job.size),
            sides=reading.options(fetching.advance),
            on_progress=steps.advance,
        )
        done = run(specs, job.images, job.out, options)
    write_comparison(done, job.out)
    place = done.sheet or job.out
    notes = [f"note: {name} skipped: {why}" for name, why in done.skipped]
    sink.show(
        "compare",
        lambda: _document(done),
        lambda: _lines(done, place, verbose=sink.verbose),
        notes=[*notes, *left_out_notes(done.left_out, verbose=sink.verbose)],
    )


def _document(done: Compared) -> dict[str, Any]:
    return {
        "order": list(done.order),
        "pictures": [
            {"path": str(path), "psnr": dict(zip(done.order, found, strict=False))}
            for path, found in done.pictures
        ],
        "sheet": str(done.sheet) if done.sheet else None,
        "skipped": [{"name": name, "reason": why} for name, why in done.skipped],
        "left_out": [one._asdict() for one in done.left_out],
    }


def _lines(done: Compared, place: Path, *, verbose: bool) -> Iterator[str]:
    order = ", ".join(done.order)
    yield f"compared {len(done.pictures)} pictures, from left to right: {order}"
    if verbose:
        yield from (f"  {path}" for path, _ in done.pictures)
    yield f"  {place}"
