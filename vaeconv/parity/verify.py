"""Prove that two files hold the same autoencoder: by their weights, then by what they compute."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.families import ASSUMED, BY_NAME, fitting_families
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Topology
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.common import option_docs as docs
from vaeconv.common.notes import Note, note
from vaeconv.common.option_checks import RUN_DTYPES, check_fields, options_of
from vaeconv.common.option_docs import Doc
from vaeconv.errors import CheckFailedError, UnmappedKeysError, UsageError
from vaeconv.models.devices import (
    describe_environment,
    import_torch,
    pick_device,
    reproducible,
)
from vaeconv.models.load import Model
from vaeconv.models.open_model import (
    OfOneModel,
    Side,
    SideOptions,
    check_averages,
    match_rounding,
    open_side,
)
from vaeconv.parity.compare_models import compare_files
from vaeconv.parity.compare_outputs import Decoded, Limits, Outcome, Runner
from vaeconv.parity.compare_weights import WeightResult
from vaeconv.parity.distance import MIXED
from vaeconv.parity.references import DECODE, ENCODE, ReferenceSet, built_in_set, load_set
from vaeconv.parity.result import Comparison, SideFacts, Verification
from vaeconv.weights.idle_options import Rule, reading_rules, refuse_idle

if TYPE_CHECKING:
    import torch


# What must be alike for both sides to take the same references.
_SHAPE_FIELDS = ("in_channels", "out_channels", "latent_channels", "levels")


_REFERENCES = "References"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of a verification; each says what it does.

    Attributes:
        a: Options of reading the first model.
        b: Options of reading the second model.
        base: Options of reading the model that the first one is to replace.
        on_picture: Called with each decoded pair of the first comparison.
        on_progress: Called with what is being done, and how much of it is done of how much.

    Example:
        >>> VerifyOptions(dtype="fp16", limits=Limits(min_psnr=50.0)).dtype
        'fp16'
    """

    a: OfOneModel = SideOptions()
    b: OfOneModel = SideOptions()
    base: OfOneModel = SideOptions()
    weights_only: Annotated[bool, Doc("Compare weights only. Imports no torch.")] = False
    encode: Annotated[
        bool, Doc("Compare the posterior moments of images as well as decoded latents.")
    ] = True
    ema: Annotated[
        bool,
        Doc("Compare the EMA weights of a model that has some.", flags=("--ema/--no-ema",)),
    ] = False
    device: docs.Device = "auto"
    dtype: Annotated[
        str,
        Doc(
            "Type to compare in as well, after fp32: fp32 (no other), fp16 or bf16.",
            "TYPE",
            choices=RUN_DTYPES,
        ),
    ] = "fp32"
    limits: Limits = Limits()
    scaling: ScalingOptions = ScalingOptions()
    config: docs.Config = None
    latents: Annotated[
        Path | None,
        Doc(
            "Reference latents, as vaeconv latents writes them; by default a built-in set.",
            "FILE",
            _REFERENCES,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Doc("References that run at a time; by default as many as fit.", "N", _REFERENCES, least=1),
    ] = None
    tile: Annotated[
        int,
        Doc(
            "Side of the tiles, in latent pixels, that larger latents are decoded in; 0 for none.",
            "N",
            _REFERENCES,
            least=0,
        ),
    ] = 0
    hash_files: Annotated[
        bool,
        Doc(
            "Put the sha256 of every file into the report.",
            panel=docs.REPORTS,
            flags=("--hash/--no-hash",),
        ),
    ] = True
    on_picture: Callable[[Decoded], None] | None = None
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def _option_rules(
    paths: Sequence[str | os.PathLike[str] | None], options: VerifyOptions
) -> list[Rule]:
    """Make the rules of options: most need models that run."""
    default, runs, why = VerifyOptions(), not options.weights_only, "--weights-only runs nothing"
    return [
        *reading_rules(
            paths, download=any(s.download for s in (options.a, options.b, options.base))
        ),
        *reading_rules(paths[:1], download=False, variant=options.a.variant, option="--variant-a"),
        *reading_rules(paths[1:2], download=False, variant=options.b.variant, option="--variant-b"),
        Rule("--no-encode", not options.encode, runs, why),
        Rule("--device", options.device != default.device, runs, why),
        Rule("--dtype", options.dtype != default.dtype, runs, why),
        Rule("--atol", options.limits.atol is not None, runs, why),
        Rule("--min-psnr", options.limits.min_psnr is not None, runs, why),
        Rule("--latents", options.latents is not None, runs, why),
        Rule("--batch-size", options.batch_size is not None, runs, why),
        Rule("--tile", options.tile != default.tile, runs, why),
    ]


@dataclass(slots=True)
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[step] = self.seconds.get(step, 0.0) + spent


def verify(
    a: AnyModel,
    b: AnyModel | None = None,
    options: VerifyOptions | None = None,
    *,
    drop_in_for: AnyModel | None = None,
) -> Verification:
    """Prove that two files hold the same autoencoder, or that one can stand in for another.

    First every tensor is compared, to the bit, or after rounding where element types differ. Then
    both run in their own layout, CompVis weights in modules of ours and diffusers folders in
    diffusers, on the same latents and images.

    Args:
        a: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        b: Model that should be the same autoencoder.
        options: Options of the verification.
        drop_in_for: A model whose latents the first should be able to decode: encoder, posterior
            moments, channels and scaling must be the same, and the decoder may differ.

    Returns:
        The verdict; :meth:`Verification.check` turns it into an error.

    Raises:
        InputError: A model cannot be read.
        MissingDependencyError: The device, torch or diffusers is missing.
        UsageError: There is nothing to compare with.

    Example:
        >>> scaling = ScalingOptions(scaling_factor=0.18215)
        >>> options = VerifyOptions(weights_only=True, scaling=scaling)
        >>> print(verify("fixtures/tiny-kl.ckpt", "fixtures/tiny-kl.safetensors", options))
        passed: fixtures/tiny-kl.ckpt and fixtures/tiny-kl.safetensors
    """
    options = options_of(VerifyOptions, options)
    if b is None and drop_in_for is None:
        raise UsageError(
            "there is nothing to compare it with", hint="name B, or --drop-in-for BASE"
        )
    paths = [None if one is None else as_source(one) for one in (a, b, drop_in_for)]
    refuse_idle(_option_rules(paths, options))
    named = zip(("A", "B", "BASE"), paths, (options.a, options.b, options.base), strict=True)
    with ExitStack() as stack:
        clock = _Clock()
        sides = []
        for label, path, how in named:
            if path is not None:
                try:
                    sides.append(
                        open_side(
                            path,
                            label,
                            how,
                            ema=options.ema,
                            scaling=options.scaling,
                            config=options.config,
                        )
                    )
                except UnmappedKeysError as error:
                    return _no_autoencoder(label, error, is_drop_in=b is None)
                stack.callback(sides[-1].close)
        if options.ema:
            check_averages(sides)
        hasher = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(hasher.shutdown, cancel_futures=True)
        return _Run(sides, options, clock).run(hasher)


def _no_autoencoder(label: str, error: UnmappedKeysError, *, is_drop_in: bool) -> Verification:
    """Give the verdict on a file that can be read, and is the same as nothing."""
    problem = f"{label} is not a complete autoencoder: {error.text}"
    nothing = WeightResult(())
    comparison = Comparison(
        ("A", "BASE" if is_drop_in else "B"),
        nothing,
        (),
        (problem,),
        nothing if is_drop_in else None,
    )
    return Verification(
        sides=(),
        same=None if is_drop_in else comparison,
        drop_in=comparison if is_drop_in else None,
        references=None,
        environment=describe_environment(None),
        timing={},
    )


class _Run:
    """One verification on its way."""

    def __init__(self, sides: list[Side], options: VerifyOptions, clock: _Clock) -> None:
        self._sides = {side.label: side for side in sides}
        self._options = options
        self._clock = clock
        self._notes: list[Note] = [note for side in sides for note in side.survey.notes]
        self._loaders: dict[str, str] = {}
        self._references: ReferenceSet | None = None
        self._environment: dict[str, Any] | None = None
        self._report = options.on_progress or (lambda step, done, total: None)

    def run(self, hasher: ThreadPoolExecutor) -> Verification:
        a = self._sides["A"]
        comparisons = {
            label: self._compare_files(a, other, is_drop_in=label == "BASE")
            for label, other in self._sides.items()
            if label != "A"
        }
        hashes = self._start_hashing(hasher)
        if not self._options.weights_only:
            self._run_models(comparisons)
        with self._clock("hashing, waited for"):
            sides = tuple(self._describe(side, hashes) for side in self._sides.values())
        for side in self._sides.values():
            side.checkpoint.check_unchanged()
        environment = self._environment or describe_environment(None)
        return Verification(
            sides=sides,
            same=comparisons.get("B"),
            drop_in=comparisons.get("BASE"),
            references=self._references,
            environment=environment,
            timing={step: round(spent, 3) for step, spent in self._clock.seconds.items()},
            notes=tuple(self._notes),
        )

    def _compare_files(self, one: Side, other: Side, *, is_drop_in: bool) -> Comparison:
        self._report("comparing weights", 0, 1)
        with self._clock("weights"):
            comparison = compare_files(one, other, is_drop_in=is_drop_in)
        self._report("comparing weights", 1, 1)
        return comparison

    def _run_models(self, comparisons: dict[str, Comparison]) -> None:
        a = self._sides["A"]
        labels = [label for label in comparisons if self._can_run(a, self._sides[label])]
        if not labels:
            return
        with self._clock("imports"):
            self._report("importing torch and diffusers", 0, 1)
            import_torch()
            device = pick_device(self._options.device)
        self._references = self._make_references(a.topology)
        if not self._options.encode:
            self._notes.append(note("posterior moments were not compared (--no-encode)"))
        with reproducible():
            self._environment = describe_environment(device)
            for label in labels:
                comparisons[label] = self._run_pair(
                    comparisons[label], device, is_shown=label == labels[0]
                )

    def _run_pair(
        self, comparison: Comparison, device: torch.device, *, is_shown: bool
    ) -> Comparison:
        """Load a pair of models and run them on all references, in every type."""
        options, references = self._options, self._references
        assert references is not None
        sides = self._sides["A"], self._sides[comparison.labels[1]]
        try:
            with self._clock("load"):
                models = self._load(sides[0]), self._load(sides[1])
                mixes = match_rounding(sides, models)
        except CheckFailedError as error:
            return comparison.with_problem(f"{error.where}: {error.what}")
        kinds = (DECODE, ENCODE) if options.encode else (DECODE,)
        dtypes = list(dict.fromkeys(("fp32", options.dtype)))
        total = len(dtypes) * sum(len(references.of(kind)) for kind in kinds)
        done = 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            self._report(f"running {' and '.join(comparison.labels)}", done, total)

        runner = Runner(
            models,
            comparison.labels,
            sides[0].topology,
            device,
            limits=options.limits._replace(floor=MIXED if mixes else 0.0),
            judged=(ENCODE,) if comparison.decoder else kinds,
            locates=comparison.weights.is_same,
            batch_size=options.batch_size,
            tile=options.tile,
            on_picture=options.on_picture if is_shown else None,
            on_progress=count,
        )
        outcomes: list[Outcome] = []
        for dtype in dtypes:
            for kind in kinds:
                with self._clock(f"{kind} {dtype}"):
                    outcomes += runner.run(references.of(kind), dtype, kind)
        return comparison.with_outcomes(outcomes)

    def _load(self, side: Side) -> Model:
        self._report(f"loading {side.label}", 0, 1)
        model = side.load()
        self._loaders[side.label] = model.loader
        return model

    def _can_run(self, one: Side, other: Side) -> bool:
        """Tell whether both take the same references; where not, it is a problem already."""
        alike = all(
            getattr(one.topology, name) == getattr(other.topology, name) for name in _SHAPE_FIELDS
        )
        if one.problem or other.problem or not alike:
            self._notes.append(
                note(f"{one.label} and {other.label} were not run, so only weights were compared")
            )
            return False
        return True

    def _make_references(self, topology: Topology) -> ReferenceSet:
        if self._options.latents is not None:
            return load_set(self._options.latents, topology)
        stated = next((side.scaling for side in self._sides.values() if side.scaling), None)
        return built_in_set(topology, stated or _assume_scaling(topology))

    def _start_hashing(self, hasher: ThreadPoolExecutor) -> dict[str, list[Future[str] | None]]:
        """Hash on the core that decoding leaves free at first, while torch is imported."""
        wanted = self._options.hash_files
        return {
            label: [  # the rest of what is remote would have to be fetched
                hasher.submit(hash_bytes, source)
                if wanted and (source.is_local or source.known_sha256())
                else None
                for source in side.checkpoint.sources
            ]
            for label, side in self._sides.items()
        }

    def _describe(self, side: Side, hashes: dict[str, list[Future[str] | None]]) -> SideFacts:
        dtypes: dict[str, int] = {}
        for row in side.rows.values():
            dtypes[row.dtype.code] = dtypes.get(row.dtype.code, 0) + 1
        files = [
            {
                "name": source.name.rpartition("/")[2],
                "size": source.size,
                "sha256": digest.result() if digest else None,
            }
            for source, digest in zip(side.checkpoint.sources, hashes[side.label], strict=True)
        ]
        config = side.checkpoint.config
        if config:
            text = config.text.encode()
            digest_of_config = hashlib.sha256(text).hexdigest()
            name = config.name.rpartition("/")[2]
            files.append({"name": name, "size": len(text), "sha256": digest_of_config})
        return SideFacts(
            side.label,
            side.name,
            side.checkpoint.container,
            side.layout,
            side.checkpoint.variant,
            dtypes,
            sum(row.is_ema for row in side.rows.values()),
            side.scaling,
            tuple(files),
            self._loaders.get(side.label),
        )


def _assume_scaling(topology: Topology) -> Scaling:
    """Take some scaling that the shapes allow: here it only decides how large latents are."""
    fitting = fitting_families(topology)
    if not fitting:
        return Scaling(1.0, source="no scaling is known")
    family = BY_NAME[ASSUMED] if BY_NAME[ASSUMED] in fitting else fitting[0]
    return Scaling(family.scaling_factor, family.shift_factor, source=f"as in {family.title}")
