"""Result of a verification: facts of the models, comparisons, and the verdict."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.topology import Layout
from vaeconv.common.notes import Note
from vaeconv.errors import CheckFailedError, name_parameters
from vaeconv.models.open_model import OpenModel
from vaeconv.parity.compare_outputs import Outcome
from vaeconv.parity.compare_weights import WeightResult
from vaeconv.parity.references import ReferenceSet


class ModelFacts(NamedTuple):
    """Facts of one model in a report.

    Attributes:
        label: ``A``, ``B`` or ``BASE``.
        name: As the user named it.
        container: Kind of the file, such as ``safetensors``.
        layout: Its naming.
        variant: The variant that was read from a folder.
        dtypes: Number of tensors by element type.
        ema: Number of tensors taken from the EMA.
        scaling: Its scaling, stated or as ``convert`` would decide; None where that is not known.
        files: Name, size and sha256 of each file.
        loader: How it was loaded to run; None where it was not.
    """

    label: str
    name: str
    container: str
    layout: Layout
    variant: str | None
    dtypes: dict[str, int]
    ema: int
    scaling: Scaling | None
    files: tuple[dict[str, Any], ...]
    loader: str | None


def describe_model(
    model: OpenModel, hashes: Sequence[str | None], loader: str | None
) -> ModelFacts:
    """Gather the facts of a model.

    Args:
        model: The open model.
        hashes: The sha256 of each of its files of weights, or None.
        loader: How it was loaded, if it was.
    """
    checkpoint = model.checkpoint
    files = [
        {"name": source.name.rpartition("/")[2], "size": source.size, "sha256": digest}
        for source, digest in zip(checkpoint.sources, hashes, strict=True)
    ]
    if checkpoint.config:
        text = checkpoint.config.text.encode()
        name, digest = checkpoint.config.name.rpartition("/")[2], hashlib.sha256(text).hexdigest()
        files.append({"name": name, "size": len(text), "sha256": digest})
    return ModelFacts(
        model.label,
        model.name,
        checkpoint.container,
        model.layout,
        checkpoint.variant,
        dict(Counter(row.dtype.code for row in model.rows.values())),
        sum(row.is_ema for row in model.rows.values()),
        model.scaling,
        tuple(files),
        loader,
    )


class Comparison(NamedTuple):
    """Result of comparing two models.

    Attributes:
        labels: Of which models.
        weights: Of the tensors that had to be equal.
        outcomes: Of the references.
        problems: What is wrong, the cause before the consequence; empty where nothing is.
        decoder: Of the decoder's tensors, where they may differ; else None.
        unproven: What could not be compared, as one of the models says nothing of it.
        misstated: Those of the problems that only the options have: the models agree on a scaling,
            and the options state another.
    """

    labels: tuple[str, str]
    weights: WeightResult
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    decoder: WeightResult | None = None
    unproven: tuple[str, ...] = ()
    misstated: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """The outcome in a few words."""
        return _outcome(self.problems, self.unproven)

    @property
    def judgement(self) -> str:
        """Whether it is so, in a sentence without what is unproven."""
        one, other = self.labels
        subject, what = f"{one} and {other} are", "the same autoencoder"
        if self.decoder is not None:
            subject, what = f"{one} is", f"a drop-in replacement for {other}"
        if self.problems and self.problems == self.misstated:
            return f"{subject} {what}, but not with the scaling of the options"
        if self.problems:
            return f"{subject} not {what}"
        by_weights = "" if self.outcomes else " by their weights; nothing was decoded"
        return f"{subject} {what}{by_weights}"

    @property
    def verdict(self) -> str:
        """The judgement, with what is unproven."""
        is_open = self.unproven and not self.problems
        tail = f", but not proved: {' and '.join(self.unproven)}" if is_open else ""
        return self.judgement + tail

    def with_problem(self, problem: str) -> Comparison:
        """Add what is wrong."""
        return self._replace(problems=(*self.problems, problem))

    def with_outcomes(self, outcomes: Sequence[Outcome]) -> Comparison:
        """Add what models made of references, and what is wrong with that."""
        problems = [outcome.problem for outcome in outcomes if outcome.problem]
        # A PSNR that is below what was asked for says nothing of a cause.
        differs = any(
            one.problem and one.distance.max_abs is not None and one.distance.max_abs > one.limit
            for one in outcomes
        )
        if differs and not self.problems:
            problems.insert(0, "the weights agree but the results do not: config or code differs")
        return self._replace(
            outcomes=(*self.outcomes, *outcomes), problems=(*self.problems, *problems)
        )


class Verification(NamedTuple):
    """Result of a verification: the verdict, and what it rests on.

    Attributes:
        models: Facts of the compared models.
        same: Comparison of A and B as the same autoencoder; None without a B.
        drop_in: Comparison of A and BASE as a drop-in replacement; None without a BASE.
        references: Latents that were decoded and images that were encoded; None if there were none.
        environment: Versions and the device that computed.
        timing: Seconds of each step.
        notes: Notes and warnings for the user.

    Example:
        >>> options = VerifyOptions(device="cpu")
        >>> result = verify("fixtures/tiny-kl.ckpt", "fixtures/tiny-diffusers", options)
        >>> result.ok, len(result.same.weights.results), result.problems
        (True, 120, [])
        >>> result.check()  # raises CheckFailedError where it failed
    """

    models: tuple[ModelFacts, ...]
    same: Comparison | None
    drop_in: Comparison | None
    references: ReferenceSet | None
    environment: dict[str, Any]
    timing: dict[str, float]
    notes: tuple[Note, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{'passed' if self.ok else 'FAILED'}: {' and '.join(s.name for s in self.models)}"
        ]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"  not proved: {reason}" for reason in self.unproven if self.ok]
        return name_parameters("\n".join(lines))

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons that were made."""
        return [comparison for comparison in (self.same, self.drop_in) if comparison]

    @property
    def labels(self) -> tuple[str, str]:
        """The models whose images are shown."""
        return next((comparison.labels for comparison in self.comparisons), ("A", "B"))

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong."""
        return [problem for comparison in self.comparisons for problem in comparison.problems]

    @property
    def unproven(self) -> list[str]:
        """Everything that is neither proved nor wrong."""
        return [reason for comparison in self.comparisons for reason in comparison.unproven]

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems

    @property
    def outcome(self) -> str:
        """The outcome in a few words."""
        return _outcome(self.problems, self.unproven)

    def check(self) -> None:
        """Raise where something is wrong.

        Raises:
            CheckFailedError: Its ``details`` list all of it.
        """
        if self.problems:
            failed = next(one for one in self.comparisons if one.problems)
            first, *more = self.problems
            tail = f" (the first of {len(self.problems)} problems)" if more else ""
            raise CheckFailedError(
                f"{failed.judgement}: {first}{tail}", details=self.problems if more else ()
            )


def _outcome(problems: Sequence[str], unproven: Sequence[str]) -> str:
    if problems:
        return "FAILED"
    return "passed, but not everything was proved" if unproven else "passed"
