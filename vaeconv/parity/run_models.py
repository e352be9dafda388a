"""Run the models of a verification on the same references, pair by pair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.checkpoint.dtypes import narrower
from vaeconv.common.notes import Note, note
from vaeconv.errors import CheckFailedError
from vaeconv.models.devices import describe_environment, import_torch, pick_device, reproducible
from vaeconv.models.load import Model
from vaeconv.models.open_model import OpenModel
from vaeconv.parity.compare_outputs import Outcome, Runner
from vaeconv.parity.distance import MIXED
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.references import (
    DECODE,
    ENCODE,
    ReferenceSet,
    assume_scaling,
    built_in_set,
    load_set,
)
from vaeconv.parity.result import Comparison

if TYPE_CHECKING:
    import torch

# What must be alike for both models to take the same references.
_SHAPE_FIELDS = ("in_channels", "out_channels", "latent_channels", "levels")


class Clock:
    """Seconds that each step took, all its parts together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a part of a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[step] = self.seconds.get(step, 0.0) + spent


class Run(NamedTuple):
    """Facts of what was run.

    Attributes:
        references: What the models ran on; None where none did.
        environment: Versions and the device that computed.
        loaders: How each model was loaded, by its label.
    """

    references: ReferenceSet | None
    environment: dict[str, Any]
    loaders: dict[str, str]


def run_models(
    models: dict[str, OpenModel],
    comparisons: dict[str, Comparison],
    options: VerifyOptions,
    clock: Clock,
    notes: list[Note],
) -> Run | None:
    """Run each pair that takes the same references, and add what came of it.

    Args:
        models: By their labels.
        comparisons: Of A with each other model, by that one's label; outcomes are added.
        options: Of the verification.
        clock: Times the steps.
        notes: Where it is said what was not run.

    Returns:
        None where no pair can run.
    """
    a = models["A"]
    labels = []
    for label in comparisons:
        if _can_run(a, models[label]):
            labels.append(label)
        else:
            notes.append(note(f"A and {label} were not run, so only weights were compared"))
    if not labels:
        return None
    with clock("imports"):
        options.report("importing torch and diffusers", 0, 1)
        import_torch()
        device = pick_device(options.device)
    if options.latents is not None:
        references = load_set(options.latents, a.topology)
    else:
        known = next((model.scaling for model in models.values() if model.scaling), None)
        references = built_in_set(a.topology, known or assume_scaling(a.topology))
    if not options.encode:
        notes.append(note("posterior moments were not compared (--no-encode)"))
    with reproducible():
        run = Run(references, describe_environment(device), {})
        for label in labels:
            pair = a, models[label]
            comparisons[label] = _run_pair(comparisons[label], pair, run, device, options, clock)
            options = replace(options, on_image=None)  # images of the first pair are shown
    return run


def _can_run(one: OpenModel, other: OpenModel) -> bool:
    """Tell whether both take the same references; where not, it is a problem already."""
    return not (one.problem or other.problem) and all(
        getattr(one.topology, name) == getattr(other.topology, name) for name in _SHAPE_FIELDS
    )


def _run_pair(
    comparison: Comparison,
    pair: tuple[OpenModel, OpenModel],
    run: Run,
    device: torch.device,
    options: VerifyOptions,
    clock: Clock,
) -> Comparison:
    """Load a pair of models, and run them in fp32 and in the type that was asked for."""

    def load(model: OpenModel) -> Model:
        options.report(f"loading {model.label}", 0, 1)
        loaded = model.load()
        run.loaders[model.label] = loaded.loader
        return loaded

    try:
        with clock("load"):
            loaded = load(pair[0]), load(pair[1])
            mixes = match_rounding(pair, loaded)
    except CheckFailedError as error:
        return comparison.with_problem(f"{error.where}: {error.what}")
    assert run.references is not None
    kinds = (DECODE, ENCODE) if options.encode else (DECODE,)
    work = {kind: run.references.of(kind) for kind in kinds}
    dtypes = list(dict.fromkeys(("fp32", options.dtype)))
    total = len(dtypes) * sum(map(len, work.values()))
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        options.report(f"running {' and '.join(comparison.labels)}", done, total)

    runner = Runner(
        loaded,
        comparison.labels,
        pair[0].topology,
        device,
        limits=replace(options.limits, floor=MIXED if mixes else 0.0),
        judged=(ENCODE,) if comparison.decoder else kinds,
        locates=comparison.weights.is_same,
        batch_size=options.batch_size,
        tile=options.tile,
        on_image=options.on_image,
        on_progress=count,
    )
    outcomes: list[Outcome] = []
    for dtype in dtypes:
        for kind, references in work.items():
            with clock(f"{kind} {dtype}"):
                outcomes += runner.run(references, dtype, kind)
    return comparison.with_outcomes(outcomes)


def match_rounding(pair: tuple[OpenModel, OpenModel], running: tuple[Model, Model]) -> bool:
    """Round the weights of the wider model as those of the narrower are, in running models.

    That they are so was shown tensor by tensor. What is to be shown now is that both compute the
    same with the same weights, which what rounding itself changes would hide.

    Returns:
        Whether some tensors are fp16 in one and bf16 in the other: then both are rounded to bf16,
        and may still differ by a last place, as one of them was rounded twice.
    """
    import torch

    mixes = False
    for key, row in pair[0].rows.items():
        partner = pair[1].rows.get(key)
        if partner is None or partner.dtype is row.dtype:
            continue
        narrow: torch.dtype = getattr(torch, narrower(row.dtype, partner.dtype).torch_name)
        mixes = mixes or {row.dtype.code, partner.dtype.code} == {"F16", "BF16"}
        for model, loaded in zip(pair, running, strict=True):
            parameter = loaded.module.get_parameter(key.name(model.layout))
            parameter.data = parameter.data.to(narrow).to(torch.float32)
    return mixes
