"""Gates of an evaluation: a result that is no number passes none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_tables import model, result
from vaeconv.errors import CheckFailedError, InputError
from vaeconv.publish.release.config import EvalTable
from vaeconv.publish.release.gates import check_metrics, read_rfid


def psnr(mean: float | None, **counts: int) -> dict[str, Any]:
    found = {"mean": mean, "std": 0.0, "number": 1, "infinite": 0, "invalid": 0, **counts}
    return {"models": [{"metrics": {"psnr": found}}]}


def test_an_image_that_is_not_finite_fails_whatever_the_others_have() -> None:
    gate = EvalTable(min_psnr=23.0)
    for passing in (psnr(30.0), psnr(None, infinite=1), psnr(23.0, infinite=3)):
        check_metrics(gate, passing, None)
    for failing in (psnr(30.0, invalid=1), psnr(None, infinite=1, invalid=49), psnr(None)):
        with pytest.raises(CheckFailedError, match="PSNR is no number"):
            check_metrics(gate, failing, None)


@pytest.mark.parametrize("value", ["Infinity", "1e999", "NaN", '"inf"', "[]"])
def test_a_baseline_without_a_number_compares_with_nothing(tmp_path: Path, value: str) -> None:
    document = {"schema_version": 1, "command": "eval", "ok": True, **result(model())}
    document["models"][0]["metrics"]["rfid"] = 0.25
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(document))
    assert read_rfid(path) == 0.25
    path.write_text(json.dumps(document).replace("0.25", value))
    with pytest.raises(InputError):
        read_rfid(path)
