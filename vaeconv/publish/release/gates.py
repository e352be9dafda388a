"""The gates of an evaluation: what is no number passes none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeconv.common.wording import plural
from vaeconv.errors import CheckFailedError, InputError, UsageError
from vaeconv.evaluation.metric_networks import INCEPTION
from vaeconv.evaluation.tables import identity_of
from vaeconv.publish.documents import read_document
from vaeconv.publish.release.config import EvalTable


def check_metrics(table: EvalTable, result: Mapping[str, Any], baseline: Path | None) -> None:
    """Judge the metrics of the first model of an evaluation.

    Args:
        table: The gates.
        result: The evaluation.
        baseline: An earlier evaluation to compare rFID with; None for none.

    Raises:
        CheckFailedError: A gate said no.
        InputError: The baseline is no evaluation.
        UsageError: What a gate judges is not there, or the baseline does not compare.
    """
    metrics = result["models"][0]["metrics"]
    if table.min_psnr is not None:
        _check_psnr(table.min_psnr, metrics)
    if baseline is not None:
        before, now = read_rfid(baseline), metrics.get("rfid")
        if now is None:
            raise UsageError("the gate on rFID needs rFID in both results")
        if _conditions(result) != _conditions(read_document(baseline, "eval")):
            raise UsageError(
                "the baseline does not compare: its images, protocol or Inception network differ",
                where=str(baseline),
                hint="measure its model again, as [eval] says",
            )
        if not now <= before + table.max_rfid_regression:
            raise CheckFailedError(
                f"rFID is {now:.2f}, and {before:.2f} in the baseline: more than the "
                f"{table.max_rfid_regression:g} of max_rfid_regression worse"
            )


def _conditions(document: Mapping[str, Any]) -> list[Any] | None:
    """Tell under which conditions rFID was measured; what other metrics need is left out."""
    identity = identity_of(document)
    if identity is None:
        return None
    *others, networks = identity
    return [*others, [network for network in networks if network[0] == INCEPTION.name]]


def _check_psnr(least: float, metrics: Mapping[str, Any]) -> None:
    if "psnr" not in metrics:
        raise UsageError("the gate on PSNR needs PSNR in the result")
    found = metrics["psnr"]
    psnr = found["mean"]
    if found.get("invalid"):
        raise CheckFailedError(
            f"PSNR is no number for {plural(found['invalid'], 'image')}: their reconstructions "
            "hold NaN or infinity, and min_psnr is a gate for all"
        )
    is_exact = psnr is None and found.get("infinite", 0) > 0
    if not is_exact and (psnr is None or not psnr >= least):
        said = "no number" if psnr is None else f"{psnr:.2f} dB"
        raise CheckFailedError(f"PSNR is {said}, less than the {least:g} of min_psnr")


def read_rfid(path: Path) -> float:
    """Read the rFID of an earlier evaluation's first model.

    Raises:
        InputError: It is no evaluation.
        UsageError: It has no rFID, or does not say by which images.
    """
    try:
        document = read_document(path, "eval")
        found = document["models"][0]["metrics"].get("rfid")
        if identity_of(document) is None:
            raise UsageError(
                "it does not know its images by their bytes, so nothing compares with it",
                where=str(path),
                hint="measure its model again",
            )
        if found is not None:
            if not math.isfinite(float(found)):
                raise ValueError(found)
            return float(found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError("not a result of vaeconv eval", where=str(path)) from error
    raise UsageError("the gate on rFID needs rFID in both results", where=str(path))
