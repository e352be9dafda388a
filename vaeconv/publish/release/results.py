"""Steps of a release that measure, show and describe; each calls what its command calls."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.errors import CheckFailedError, counted
from vaeconv.evaluation.compare import CompareOptions, compare, write_comparison
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.evaluate import evaluate
from vaeconv.evaluation.protocol import preset
from vaeconv.models.open_model import SideOptions
from vaeconv.parity.report.document import write_report
from vaeconv.publish.card.card import CARD, CardInputs, write_card
from vaeconv.publish.card.check import check_card
from vaeconv.publish.documents import read_document
from vaeconv.publish.release.gates import check_metrics
from vaeconv.publish.release.project import ASSETS, EVAL
from vaeconv.publish.release.work import Outcome, Work
from vaeconv.publish.sbom import write_sbom
from vaeconv.publish.signing import SIGNATURE, settle_signature


def measure(work: Work) -> Outcome:
    """Evaluate, and judge the result: the gates of PSNR and rFID."""
    project = work.project
    table = project.config.eval
    images = project.place(table.images)
    assert images is not None
    target = project.diffusers / EVAL
    result = evaluate(
        [project.own_model, *project.other_models],
        images,
        EvalOptions(
            protocol=preset(table.protocol).changed(size=table.size),
            metrics=table.metrics,
            weights=project.networks,
            allow_missing=table.allow_missing_metrics,
            limit=table.limit,
            device=table.device,
            sides=SideOptions(allow_zeros=project.config.source.allow_zeros),
            discards=True,
            on_progress=work.on_progress,
        ),
        parts=_parts(work),
    )
    assert result is not None
    write_report(target, project.publishable("eval", {"ok": True, **result}))
    metrics = result["models"][0]["metrics"]
    check_metrics(table, result, project.path(table.baseline) if table.baseline else None)
    means = {name: one if name == "rfid" else one["mean"] for name, one in metrics.items()}
    return Outcome([target], {"metrics": means})


def _parts(work: Work) -> Path:
    """Where the evaluation keeps what it measured; what is of other pictures is removed."""
    folder = work.project.folder
    said = json.dumps(work.project.images(work.project.config.eval.images)).encode()
    kept = folder / f"eval-{hashlib.sha256(said).hexdigest()[:16]}.parts"
    for parts in folder.glob("eval-*.parts"):
        if parts != kept or work.is_forced:
            shutil.rmtree(parts, ignore_errors=True)
    return kept


def show(work: Work) -> Outcome:
    """Draw reconstructions side by side, for each card."""
    project = work.project
    table, protocol = project.config.compare, project.config.eval.protocol
    images = project.place(table.images)
    assert images is not None
    assets = project.diffusers / ASSETS
    done = compare(
        [*project.other_models, project.own_model],
        images,
        assets,
        CompareOptions(
            protocol=preset(protocol).changed(size=table.size),
            limit=table.limit,
            labels=table.labels,
            sheet=0,
            overwrite=True,
            device=project.config.eval.device,
            sides=SideOptions(allow_zeros=project.config.source.allow_zeros),
            on_progress=work.on_progress,
        ),
    )
    written = [*(path for path, _ in done.pictures), write_comparison(done, assets)]
    for folder in project.folders[1:]:
        (folder / ASSETS).mkdir(exist_ok=True)
        for path in written[: len(done.pictures) + 1]:
            target = folder / ASSETS / path.name
            replace_small_file(target, path.read_bytes(), durable=False)
            written.append(target)
    return Outcome(written, {"pictures": len(done.pictures)})


def describe(work: Work) -> Outcome:
    """Write the cards and check them: a gate as well."""
    project = work.project
    config = project.config
    evaluations: tuple[dict[str, Any], ...] = ()
    if config.eval.images:
        evaluations = (read_document(project.diffusers / EVAL, "eval"),)
    reports = {project.diffusers: project.report_of()}
    if project.originals:
        reports[project.original] = project.report_of(original=project.originals[0])
    written: list[Path] = []
    for folder, report in reports.items():
        written.append(
            write_card(
                CardInputs(
                    folder,
                    meta=project.meta,
                    evaluations=evaluations,
                    parity=read_document(report, "verify"),
                    pictures=folder / ASSETS if config.compare.images else None,
                )
            )
        )
        problems = check_card(folder, evaluations)
        if problems:
            what, details = counted("the card has problems", problems)
            raise CheckFailedError(what, where=str(folder / CARD), details=details)
    cards = [path.relative_to(project.folder).as_posix() for path in written]
    if config.output.sbom:
        written += [write_sbom(folder, project.meta, project.title) for folder in reports]
    if work.sign and not config.push.repo_id:  # else push does, and knows what is signed there
        for folder in reports:
            own = folder / SIGNATURE
            settle_signature(folder, work.sign, own, candidates=[partial(Path, own)])
    return Outcome(written, {"cards": cards})
