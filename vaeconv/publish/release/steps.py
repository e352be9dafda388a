"""The steps of a release, in their order; each calls what its command calls."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.readers.folder import CONFIG, weights_name
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.errors import CheckFailedError, counted
from vaeconv.evaluation.compare import CompareOptions, compare, write_comparison
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.evaluate import evaluate
from vaeconv.evaluation.protocol import preset
from vaeconv.models.open_model import ModelOptions
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.report.document import report_document, write_report
from vaeconv.parity.verify import verify
from vaeconv.publish.card.card import CARD, CardInputs, write_card
from vaeconv.publish.card.check import check_card
from vaeconv.publish.documents import read_document
from vaeconv.publish.files import checked_files
from vaeconv.publish.hub.push import Pushed, publish_files
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.session import Deadline
from vaeconv.publish.release.gates import check_metrics
from vaeconv.publish.release.project import Project
from vaeconv.publish.release.state import State
from vaeconv.publish.release.weights import write_original, write_variant
from vaeconv.publish.sbom import write_sbom
from vaeconv.publish.signing import SIGNATURE, settle_signature
from vaeconv.weights.manifest import MANIFEST, remove_outputs

ASSETS, EVAL = "assets", "eval.json"


@dataclass(frozen=True, slots=True)
class Work:
    """Input of the steps.

    Attributes:
        project: The release.
        state: Progress in its folder.
        redone: Names of steps that are to be done again, whatever is done.
        sign: A private key to sign with; None for no signature.
        on_progress: Called with what is being done, and how much of it is done of how much.
        pushed: Where the push adds what was published.
    """

    project: Project
    state: State
    redone: Sequence[str] = ()
    sign: Path | None = None
    on_progress: Callable[[str, int, int], None] | None = None
    pushed: list[Pushed] = field(default_factory=list)


# The files that a step wrote, and what there is to say of it.
Outcome = tuple[Sequence[Path], dict[str, Any]]


# --- weights ---


def _convert(work: Work) -> Outcome:
    """Write the diffusers folder, one variant after the other."""
    project, folder = work.project, work.project.diffusers
    variants = [variant for _, variant in project.variants]
    weights = [weights_name(variant) for variant in variants]
    # Before: a manifest names weights that stay beside those that it is about.
    work.state.retire("convert", [folder / name for name in (CONFIG, MANIFEST, *weights)])
    remove_outputs(folder, weights)
    manifest = folder / MANIFEST
    manifest.unlink(missing_ok=True)  # each variant adds to what is there
    written = {manifest}
    for dtype, variant in project.variants:
        done = write_variant(project, folder, dtype, variant)
        written.update(one.path for one in done.written)
    return sorted(written), {"folder": "diffusers", "variants": variants}


def _prune(work: Work) -> Outcome:
    """Write the CompVis files."""
    written: list[Path] = []
    for target in work.project.originals:
        write_original(work.project, target)
        written += [target, target.with_name(f"{target.name}.{MANIFEST}")]
    return written, {"files": [path.name for path in work.project.originals]}


# --- proofs and measures ---


def _verify(work: Work) -> Outcome:
    """Prove each file against the source: the gate of parity."""
    project = work.project
    source, table = project.config.source, project.config.verify
    options = VerifyOptions(
        scaling=project.scaling,
        config=project.path(source.config),
        ema=project.takes_ema,
        device=table.device,
        dtype=table.dtype,
        latents=project.path(table.latents),
        on_progress=work.on_progress,
    )
    training = ModelOptions(source_prefix=source.source_prefix, allow_zeros=source.allow_zeros)
    for target, variant, report in project.proofs:
        models: list[tuple[str | Path, ModelOptions]] = [
            (project.source, training),
            (target, ModelOptions(variant=variant, allow_zeros=source.allow_zeros)),
        ]
        # What stands in for another model is the plain variant.
        is_plain = target == project.diffusers and variant is None
        base = project.place(table.drop_in_for) if table.drop_in_for and is_plain else None
        if base:  # what is published stands in for the other, with the scaling that it has
            models.reverse()
        (a, of_a), (b, of_b) = models
        result = verify(a, b, replace(options, a=of_a, b=of_b), drop_in_for=base)
        write_report(report, project.publishable("verify", report_document(result)))
        result.check()
    reports = [report for _, _, report in project.proofs]
    return reports, {"verdict": "passed", "reports": _names(project, reports)}


def _eval(work: Work) -> Outcome:
    """Evaluate, and judge the result: the gates of PSNR and rFID."""
    project = work.project
    table = project.config.eval
    assert table.images is not None
    result = evaluate(
        [project.own_model, *project.other_models],
        project.place(table.images),
        EvalOptions(
            protocol=preset(table.protocol).changed(size=table.size),
            metrics=table.metrics,
            weights=project.networks,
            allow_missing=table.allow_missing_metrics,
            limit=table.limit,
            device=table.device,
            reading=ModelOptions(allow_zeros=project.config.source.allow_zeros),
            discards=True,
            on_progress=work.on_progress,
        ),
        parts=_parts(work, table.images),
    )
    assert result is not None
    target = project.diffusers / EVAL
    write_report(target, project.publishable("eval", {"ok": True, **result}))
    check_metrics(table, result, project.path(table.baseline))
    metrics = result["models"][0]["metrics"]
    means = {name: one if name == "rfid" else one["mean"] for name, one in metrics.items()}
    return [target], {"metrics": means}


def _parts(work: Work, images: str) -> Path:
    """Where the evaluation keeps what it measured; what is of other images is removed."""
    folder = work.project.folder
    said = json.dumps(work.project.images(images)).encode()
    kept = folder / f"eval-{hashlib.sha256(said).hexdigest()[:16]}.parts"
    for parts in folder.glob("eval-*.parts"):
        if parts != kept or "eval" in work.redone:
            shutil.rmtree(parts, ignore_errors=True)
    return kept


def _compare(work: Work) -> Outcome:
    """Draw reconstructions side by side, for each card."""
    project = work.project
    table, measured = project.config.compare, project.config.eval
    assert table.images is not None
    assets = project.diffusers / ASSETS
    done = compare(
        [*project.other_models, project.own_model],
        project.place(table.images),
        assets,
        CompareOptions(
            protocol=preset(measured.protocol).changed(size=table.size),
            limit=table.limit,
            labels=table.labels,
            sheet=0,
            overwrite=True,
            device=measured.device,
            reading=ModelOptions(allow_zeros=project.config.source.allow_zeros),
            on_progress=work.on_progress,
        ),
    )
    drawn = [*(path for path, _ in done.images), write_comparison(done, assets)]
    written = list(drawn)
    for folder in project.folders[1:]:
        (folder / ASSETS).mkdir(exist_ok=True)
        for path in drawn:
            written.append(folder / ASSETS / path.name)
            replace_small_file(written[-1], path.read_bytes(), durable=False)
    return written, {"pictures": len(done.images)}


# --- what is published ---


def _card(work: Work) -> Outcome:
    """Write the cards and check them: a gate as well."""
    project, config = work.project, work.project.config
    evaluations: tuple[dict[str, Any], ...] = ()
    if config.eval.images:
        evaluations = (read_document(project.diffusers / EVAL, "eval"),)
    cards: list[Path] = []
    for folder in project.folders:
        report = next(report for _, _, report in project.proofs if report.parent == folder)
        inputs = CardInputs(
            folder,
            meta=project.card_meta,
            evaluations=evaluations,
            parity=read_document(report, "verify"),
            pictures=folder / ASSETS if config.compare.images else None,
        )
        cards.append(write_card(inputs))
        if problems := check_card(folder, evaluations):
            what, details = counted("the card has problems", problems)
            raise CheckFailedError(what, where=str(folder / CARD), details=details)
    bills = []
    if config.output.sbom:
        bills = [write_sbom(one, project.meta, project.title) for one in project.folders]
    if work.sign and not config.push.repo_id:  # else push does, and knows what is signed there
        for folder in project.folders:
            own = folder / SIGNATURE
            settle_signature(folder, work.sign, own, candidates=[partial(Path, own)])
    return [*cards, *bills], {"cards": _names(project, cards)}


def _names(project: Project, paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(project.folder).as_posix() for path in paths]


def _push(work: Work) -> Outcome:
    """Push both folders; what the second would be refused for is refused before the first goes."""
    project, table = work.project, work.project.config.push
    options = PushOptions(
        revision=table.revision,
        private=table.private,
        tag=table.tag,
        message=table.message,
        allow_zeros=project.config.source.allow_zeros,
        verify=table.verify,
        sign=work.sign,
        on_progress=work.on_progress,
    )
    repositories = {project.diffusers: table.repo_id, project.original: table.original_repo_id}
    wanted = [folder for folder, repo_id in repositories.items() if repo_id]
    files = {folder: checked_files(folder, options) for folder in wanted}
    for folder, listed in files.items():
        deadline = Deadline(options.timeout)
        done = publish_files(folder, listed, repositories[folder], options, deadline)
        work.pushed.append(done)
    commits = {one.repo_id: one.oid for one in work.pushed}
    new = [one.repo_id for one in work.pushed if one.is_new]
    return (), {"commits": commits, "new": new}


STEPS: dict[str, Callable[[Work], Outcome]] = {
    "convert": _convert,
    "prune": _prune,
    "verify": _verify,
    "eval": _eval,
    "compare": _compare,
    "card": _card,
    "push": _push,
}
