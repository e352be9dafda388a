"""Prove that two files hold the same autoencoder: by their weights, then by what they compute."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.common.option_checks import options_of
from vaeconv.errors import UnmappedKeysError, UsageError
from vaeconv.models.devices import describe_environment
from vaeconv.models.open_model import OpenModel, check_ema, open_model
from vaeconv.parity.compare_models import compare_files
from vaeconv.parity.compare_weights import WeightResult
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.result import Comparison, Verification, describe_model
from vaeconv.parity.run_models import Clock, Run, run_models
from vaeconv.weights.idle_options import refuse_idle


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
    refuse_idle(options.rules(paths))
    named = zip(("A", "B", "BASE"), paths, (options.a, options.b, options.base), strict=True)
    how: dict[str, Any] = {"ema": options.ema, "scaling": options.scaling, "config": options.config}
    clock = Clock()
    with ExitStack() as stack:
        models: dict[str, OpenModel] = {}
        for label, path, reading in named:
            if path is None:
                continue
            try:
                models[label] = open_model(path, label, reading, **how)
            except UnmappedKeysError as error:
                return _no_autoencoder(label, error, is_drop_in=b is None)
            stack.callback(models[label].close)
        if options.ema:
            check_ema(list(models.values()))
        notes = [note for model in models.values() for note in model.detected.notes]
        comparisons = {}
        for label, other in models.items():
            if label != "A":
                options.report("comparing weights", 0, 1)
                with clock("weights"):
                    is_drop_in = label == "BASE"
                    comparisons[label] = compare_files(models["A"], other, is_drop_in=is_drop_in)
                options.report("comparing weights", 1, 1)
        # On the core that decoding leaves free at first, while torch is imported.
        hasher = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(hasher.shutdown, cancel_futures=True)
        hashes = {
            label: [
                hasher.submit(hash_bytes, source)
                if options.hash_files and (source.is_local or source.known_sha256())
                else None  # the rest of what is remote would have to be fetched
                for source in model.checkpoint.sources
            ]
            for label, model in models.items()
        }
        run = (
            None if options.weights_only else run_models(models, comparisons, options, clock, notes)
        )
        run = run or Run(None, describe_environment(None), {})
        with clock("hashing, waited for"):
            facts = tuple(
                describe_model(
                    model,
                    [digest.result() if digest else None for digest in hashes[label]],
                    run.loaders.get(label),
                )
                for label, model in models.items()
            )
        for model in models.values():
            model.checkpoint.check_unchanged()
    return Verification(
        models=facts,
        same=comparisons.get("B"),
        drop_in=comparisons.get("BASE"),
        references=run.references,
        environment=run.environment,
        timing={step: round(spent, 3) for step, spent in clock.seconds.items()},
        notes=tuple(notes),
    )


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
        models=(),
        same=None if is_drop_in else comparison,
        drop_in=comparison if is_drop_in else None,
        references=None,
        environment=describe_environment(None),
        timing={},
    )
