"""What a verification leaves behind: JSON, JUnit, a job's summary and annotation."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file as save_arrays
from typer.testing import Result

from fixtures import make_fixtures as make
from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near
from tests.support.compvis import DDConfig
from tests.support.pairs import add_to, change_folder, run
from tests.support.samples import WEIGHTS
from vaeconv.parity.compare_outputs import Outcome
from vaeconv.parity.distance import Distance
from vaeconv.parity.report.tables import distance_table, worst_table
from vaeconv.publish.places import hide_places

Environment = Callable[..., Path]
BASE = FIXTURES / "tiny-diffusers"
FILE = FIXTURES / "tiny-kl.safetensors"


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs these tests: they are no job of it."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def small(references: Callable[[DDConfig], Path]) -> Path:
    return references(make.KL)


@pytest.fixture(scope="module")
def wrong(models: Path) -> Path:
    """``tiny-diffusers`` with two weights changed, another scaling and another activation."""
    changes = {"scaling_factor": 0.5, "act_fn": "gelu"}
    return change_folder(
        BASE,
        models / "wrong",
        weights=lambda found: add_to(
            add_to(found, "decoder.conv_out.bias", at=2),
            "encoder.mid_block.attentions.0.to_v.weight",
            at=33,
            value=2,
        ),
        config=lambda found: {**found, **changes},
    )


def verify(*args: object, code: int = 0) -> Result:
    device = () if "--weights-only" in args else ("--device", "cpu")
    result = run("verify", *args, *device, "--scaling-factor", "0.18215")
    assert result.exit_code == code, result.stderr
    return result


# --- the JSON document ---

NUMBER, TEXT = (int, float), str
SCALING = {
    "scaling_factor": float,
    "shift_factor": (float, None),
    "latents_mean": ([float], None),
    "latents_std": ([float], None),
    "from": TEXT,
}
SIDE = {
    "label": TEXT,
    "name": TEXT,
    "container": TEXT,
    "layout": TEXT,
    "variant": (TEXT, None),
    "dtypes": {str: int},
    "ema": int,
    "scaling": (SCALING, None),
    "files": [{"name": TEXT, "size": int, "sha256": (TEXT, None)}],
    "loader": (TEXT, None),
}
OFFENDER = {
    "names": [TEXT],
    "dtypes": [TEXT],
    "differing_elements": int,
    "max_abs": (float, None),
    "position": [int],
    "values": [(float, None)],
}
WEIGHTS_SHAPE = {
    "ok": bool,
    "tensors": int,
    "equal": int,
    "rounded": int,
    "different": int,
    "missing": [TEXT],
    "unexpected": [TEXT],
    "worst": [OFFENDER],
}
DISTANCE = {
    "max_abs": (float, None),
    "mean_abs": (float, None),
    "rmse": (float, None),
    "psnr": (float, TEXT, None),
    "cosine": (float, None),
    "uint8": (float, None),
    "largest": (float, None),
}
COMPARISON = {
    "sides": [TEXT],
    "ok": bool,
    "weights": WEIGHTS_SHAPE,
    "decoder_weights": (WEIGHTS_SHAPE, None),
    "decoded": bool,
    "encoded": bool,
    "worst": [{"kind": TEXT, "dtype": TEXT, **DISTANCE}],
    "references": [
        {
            "kind": TEXT,
            "dtype": TEXT,
            "name": TEXT,
            "shape": [int],
            "distance": DISTANCE,
            "limit": (float, None),
            "problem": (TEXT, None),
            "ok": bool,
        }
    ],
    "problems": [TEXT],
    "unproven": [TEXT],
}
DOCUMENT = {
    "schema_version": int,
    "command": TEXT,
    "ok": bool,
    "sides": [SIDE],
    "same": (COMPARISON, None),
    "drop_in": (COMPARISON, None),
    "references": (
        {"source": TEXT, "sha256": TEXT, "latents": {str: [int]}, "pictures": {str: [int]}},
        None,
    ),
    "environment": {str: (TEXT, int, float, bool, None)},
    "timing": {str: NUMBER},
    "problems": [TEXT],
    "unproven": [TEXT],
    "notes": [TEXT],
}


def complaints(value: Any, shape: Any, where: str = "") -> list[str]:
    """Say where a document is not of a shape: every field, and no other."""
    if isinstance(shape, tuple):
        tried = [complaints(value, one, where) for one in shape]
        return [] if [] in tried else max(tried, key=lambda found: found[0].count("."))
    if shape is None:
        return [] if value is None else [f"{where}: {value!r} is not null"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no list"]
        return [
            one
            for index, item in enumerate(value)
            for one in complaints(item, shape[0], f"{where}.{index}")
        ]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        if str in shape:
            shape = dict.fromkeys(value, shape[str])
        if value.keys() != shape.keys():
            return [f"{where}: fields {sorted(value.keys() ^ shape.keys())}"]
        return [
            one for name in shape for one in complaints(value[name], shape[name], f"{where}.{name}")
        ]
    if shape is float and isinstance(value, float | int) and not isinstance(value, bool):
        return [] if math.isfinite(value) else [f"{where}: {value!r}"]
    if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        return [f"{where}: {value!r} is no {shape}"]
    return []


def strict_loads(text: str) -> Any:
    """Read JSON, which has neither NaN nor infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


CASES = {
    "same": ((FILE, BASE), 0),
    "wrong": ((FILE, "{wrong}"), 4),
    "two types": ((FILE, BASE, "--dtype", "fp16"), 0),
    "drop-in": (("{wrong}", "--drop-in-for", BASE), 4),
    "both": ((BASE, FILE, "--drop-in-for", FIXTURES / "tiny-legacy.pt"), 4),
    "EMA": (("--ema", FIXTURES / "tiny-kl.ckpt", FILE), 4),
    "other": ((FILE, FIXTURES / "tiny-noquant.safetensors"), 4),
    "weights": ((FILE, BASE, "--weights-only"), 0),
    "not finite": ((FILE, "{nan}"), 4),
}


@pytest.fixture(scope="module")
def nan(models: Path) -> Path:
    bias = "decoder.mid_block.resnets.0.conv1.bias"
    return change_folder(
        BASE, models / "nan", weights=lambda found: add_to(found, bias, value=math.nan)
    )


@pytest.fixture
def document_of(
    tmp_path: Path, small: Path, wrong: Path, nan: Path
) -> Callable[[str], dict[str, Any]]:
    def get(case: str) -> dict[str, Any]:
        args, code = CASES[case]
        filled = [{"{wrong}": wrong, "{nan}": nan}.get(str(arg), arg) for arg in args]
        fits = [] if case in {"weights", "other"} else ["--latents", small]
        file = tmp_path / "report.json"
        printed = verify(*filled, *fits, "--json", "--report", file, code=code)
        document = strict_loads(printed.stdout)
        error = document.pop("error", None)
        assert hide_places(document) == strict_loads(file.read_text())
        assert (error is not None) is (code != 0) is not document["ok"]
        if error:
            assert (error["exit_code"], error["type"]) == (4, "CheckFailedError")
            assert document["problems"][0] in error["what"]
            assert printed.stderr == ""
        return document

    return get


@pytest.mark.parametrize("case", CASES)
def test_every_field_of_the_document_has_its_shape(
    document_of: Callable[[str], dict[str, Any]], case: str
) -> None:
    document = document_of(case)
    assert complaints(document, DOCUMENT) == []
    assert (document["schema_version"], document["command"]) == (1, "verify")


def test_shapes_can_be_wrong(document_of: Callable[[str], dict[str, Any]]) -> None:
    """The judge above sees a field that is missing, one too many, and one of another type."""
    document = document_of("same")
    del document["same"]["weights"]["rounded"]
    assert complaints(document, DOCUMENT)
    document = document_of("same")
    document["sides"][0]["extra"] = 1
    assert complaints(document, DOCUMENT)
    document = document_of("same")
    document["same"]["references"][0]["distance"]["rmse"] = "1"
    assert complaints(document, DOCUMENT)


def test_the_document_of_a_pair_that_is_the_same(
    document_of: Callable[[str], dict[str, Any]], small: Path
) -> None:
    document = document_of("same")
    assert document["ok"] is True
    assert document["drop_in"] is None
    mine, theirs = document["sides"]
    assert (mine["label"], mine["name"], mine["layout"]) == ("A", str(FILE), "compvis")
    assert (theirs["label"], theirs["layout"]) == ("B", "diffusers")
    assert mine["dtypes"] == theirs["dtypes"] == {"F16": 120}
    assert (mine["scaling"]["from"], mine["ema"]) == ("--scaling-factor", 0)
    assert theirs["scaling"]["scaling_factor"] == 0.18215
    assert theirs["scaling"]["from"] == "config.json"
    assert mine["files"][0]["sha256"] == hashlib.sha256(FILE.read_bytes()).hexdigest()
    weights = document["same"]["weights"]
    assert (weights["tensors"], weights["equal"], weights["worst"]) == (120, 120, [])
    assert document["references"]["source"] == small.name
    assert document["references"]["latents"] == {"0": [4, 3, 3], "1": [4, 3, 4]}
    assert document["references"]["pictures"] == {"0": [3, 6, 6], "1": [3, 6, 8]}
    references = document["same"]["references"]
    assert [one["shape"] for one in references] == [[3, 6, 6], [3, 6, 8], [8, 3, 3], [8, 3, 4]]
    assert all(one["ok"] and one["problem"] is None for one in references)
    assert document["notes"] == document["unproven"] == []


def test_the_worst_is_the_worst_of_each_measure(
    document_of: Callable[[str], dict[str, Any]],
) -> None:
    found = document_of("two types")["same"]
    assert [(one["kind"], one["dtype"]) for one in found["worst"]] == [
        ("decode", "fp32"), ("encode", "fp32"), ("decode", "fp16"), ("encode", "fp16"),
    ]  # fmt: skip
    for worst in found["worst"]:
        group = [
            one["distance"]
            for one in found["references"]
            if (one["kind"], one["dtype"]) == (worst["kind"], worst["dtype"])
        ]
        for name in DISTANCE:
            pick = min if name in ("psnr", "cosine") else max
            assert worst[name] == pick(one[name] for one in group)


def test_the_document_of_a_pair_that_is_not(
    document_of: Callable[[str], dict[str, Any]],
) -> None:
    document = document_of("wrong")
    assert document["ok"] is document["same"]["ok"] is document["same"]["weights"]["ok"] is False
    first, second = document["same"]["weights"]["worst"]
    assert first["names"] == [
        "encoder.mid.attn_1.v.weight", "encoder.mid_block.attentions.0.to_v.weight",
    ]  # fmt: skip
    assert first["position"] == [1, 1, 0, 0]
    assert first["max_abs"] == pytest.approx(2, abs=1e-2)
    assert first["values"][1] - first["values"][0] == pytest.approx(2, abs=1e-2)
    assert (first["differing_elements"], first["dtypes"]) == (1, ["F16", "F16"])
    assert second["names"][1] == "decoder.conv_out.bias"
    problems = document["problems"]
    assert problems == document["same"]["problems"]
    assert problems[0] == "activation differs: silu in A, gelu in B"
    assert any("scaling factor differs" in problem for problem in problems)
    assert any(
        "2 of 120 tensors differ: encoder.mid.attn_1.v.weight" in problem for problem in problems
    )
    assert [one["ok"] for one in document["same"]["references"]] == [False] * 4


def test_the_document_of_what_is_not_finite(
    document_of: Callable[[str], dict[str, Any]],
) -> None:
    document = document_of("not finite")
    (offender,) = document["same"]["weights"]["worst"]
    assert (offender["max_abs"], offender["values"][1]) == (None, None)
    worst = {one["kind"]: one for one in document["same"]["worst"]}
    assert all(worst["decode"][name] is None for name in DISTANCE)
    assert_near(worst["encode"]["max_abs"], 0, scale=worst["encode"]["largest"])


def test_equal_results_have_a_psnr_that_json_can_say(tmp_path: Path, small: Path) -> None:
    verify(FILE, FILE, "--latents", small, "--report", tmp_path / "r.json", "-q")
    document = strict_loads((tmp_path / "r.json").read_text())
    distances = [one["distance"] for one in document["same"]["references"]]
    assert [(one["psnr"], one["max_abs"]) for one in distances] == [("inf", 0.0)] * 4


def test_only_the_first_offenders_are_listed(tmp_path: Path) -> None:
    other = FIXTURES / "tiny-legacy.pt"
    report = tmp_path / "r.json"
    verify(FILE, other, "--weights-only", "--report", report, "-q", code=4)
    weights = strict_loads(report.read_text())["same"]["weights"]
    assert (weights["different"], len(weights["worst"])) == (120, 20)
    sizes = [one["max_abs"] for one in weights["worst"]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_report_replaces_an_older_one_and_leaves_nothing_beside(
    tmp_path: Path, small: Path
) -> None:
    report = tmp_path / "r.json"
    report.write_text('{"command": "verify", "old": true}')
    verify(FILE, BASE, "--latents", small, "--report", report, "-q")
    assert strict_loads(report.read_text())["ok"] is True
    assert list(tmp_path.iterdir()) == [report]


def test_a_report_is_written_of_a_failure(tmp_path: Path, small: Path, wrong: Path) -> None:
    files = [tmp_path / name for name in ("r.json", "j.xml")]
    args = ("--latents", small, "--report", files[0], "--junit", files[1])
    result = verify(FILE, wrong, *args, code=4)
    assert all(file.stat().st_size > 100 for file in files)
    assert all(str(file) in result.stdout for file in files)


@pytest.mark.parametrize("option", ["--report", "--junit"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_report_never_replaces_what_is_compared(
    tmp_path: Path, small: Path, option: str, place: int
) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(FILE.read_bytes())
    folder = change_folder(BASE, tmp_path / "b")
    target = (source, folder / WEIGHTS, folder / "config.json")[place]
    before = target.read_bytes()
    fits = target.suffix == {"--report": ".json", "--junit": ".xml", "--html": ".html"}.get(option)
    verify(source, folder, "--latents", small, option, target, code=5 if fits else 2)
    assert target.read_bytes() == before


# --- the terminal ---


def test_the_terminal_shows_tables_and_the_verdict(small: Path, wrong: Path) -> None:
    result = verify(FILE, BASE, "--latents", small)
    assert re.search(r"A and B +all +120 +0 +0 +0", result.stdout)
    assert re.search(r"^  decode +fp32 +\d 3x\S+ +2 +\S+ +\S+ +ok$", result.stdout, re.M)
    assert re.search(r"^  encode +fp32 +\d 8x\S+ +2 +\S+ +\S+ +ok$", result.stdout, re.M)
    assert result.stdout.startswith("passed: A and B are the same autoencoder\n  proved: all 120 ")
    whole = verify(FILE, BASE, "--latents", small, "--verbose")
    assert re.search(r"decode fp32 +0 3x6x6 +\S+e-0\d .* ok", whole.stdout)
    assert re.search(r"encode fp32 +worst", whole.stdout)
    result = verify(FILE, wrong, "--latents", small, code=4)
    assert re.search(r"^  decode +fp32 +\d 3x\S+ .* \d FAILED$", result.stdout, re.M)
    first = "FAILED: A and B are not the same autoencoder\n  activation differs"
    assert result.stdout.startswith(first)
    head, *_ = result.stdout.split("\n\n")
    count = sum(not line.startswith("  proved: ") for line in head.splitlines()[1:])
    assert count > 1
    said = "error: A and B are not the same autoencoder: activation differs: silu in"
    assert result.stderr.startswith(said)
    assert result.stderr.endswith(f" (the first of {count} problems)\n")
    result = verify(FILE, BASE, "--weights-only")
    assert "by their weights; nothing was decoded" in result.stdout


def test_quiet_says_nothing_but_the_failure(small: Path, wrong: Path) -> None:
    assert verify(FILE, BASE, "--latents", small, "-q").output == ""
    result = verify(FILE, wrong, "--latents", small, "-q", code=4)
    assert result.stdout == ""
    head, *problems = result.stderr.splitlines()
    assert head.endswith(f" (the first of {len(problems)} problems)")
    assert problems[0].startswith("  - activation differs: silu in A")


def test_of_many_references_a_row_names_the_worst() -> None:
    from vaeconv.parity.compare_weights import WeightResult
    from vaeconv.parity.result import Comparison

    fine = Distance(1e-6, 1e-7, 1e-7, 120.0, 1.0, 0.0, 1.0)
    outcomes = tuple(
        Outcome("decode", "fp32", f"p{n}", (3, 8, 8), fine, 1e-4, "bad" if n == 3 else None)
        for n in range(5)
    )
    comparison = Comparison(("A", "B"), WeightResult(()), outcomes, ("bad",))
    _, rows = distance_table(comparison)
    assert len(rows) == 5 + 1
    assert rows[-1][1] == "worst"
    head, rows = worst_table(comparison)
    assert dict(zip(head, *rows, strict=True)) == {
        "computed": "decode",
        "dtype": "fp32",
        "worst reference": "p3 3x8x8",
        "references": "5",
        "max abs": "1.0e-06",
        "limit": "1.0e-04",
        "": "1 FAILED",
    }


# --- JUnit ---


def test_junit_of_a_pair_that_is_the_same(tmp_path: Path, small: Path) -> None:
    verify(FILE, BASE, "--latents", small, "--dtype", "bf16", "--junit", tmp_path / "j.xml", "-q")
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases) == 1 + 8
    assert suite.get("failures") == "0"
    assert not suite.findall(".//failure")
    assert float(suite.get("time", "")) > 0
    assert {case.get("classname") for case in cases} == {"verify.A.B"}
    names = [case.get("name") for case in cases]
    assert names[:2] == ["weights, architecture and scaling", "decode fp32 0"]
    assert names[-1] == "encode bf16 1"
    assert len(set(names)) == len(names)


def test_junit_of_a_failure(tmp_path: Path, small: Path, wrong: Path) -> None:
    args = ("--latents", small, "--junit", tmp_path / "j.xml", "-q", "--drop-in-for", BASE)
    verify(wrong, FILE, *args, code=4)
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    failed = {
        (case.get("classname"), case.get("name")): case.find("failure")
        for case in suite.iter("testcase")
        if case.find("failure") is not None
    }
    assert int(suite.get("failures", "")) == len(failed)
    assert int(suite.get("tests", "")) == 2 + 2 * 4
    weights = failed["verify.A.B", "weights, architecture and scaling"]
    assert weights is not None
    assert weights.get("message") == "activation differs: gelu in A, silu in B"
    assert "2 of 120 tensors differ" in str(weights.text)
    assert ("verify.A.B", "decode fp32 1") in failed
    assert ("verify.A.BASE", "encode fp32 1") in failed
    assert ("verify.A.BASE", "decode fp32 1") not in failed  # a drop-in's decoder is free


# --- a job's summary and annotation ---


def test_a_summary_is_appended(
    tmp_path: Path, small: Path, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    verify(FILE, BASE, "--latents", small, "-q")
    verify(FILE, wrong, "--latents", small, "--json", code=4)
    text = summary.read_text()
    assert text.startswith("what was there\n### vaeconv verify: passed\n")
    assert text.count("### vaeconv verify: ") == 2
    good, bad = text.split("### vaeconv verify: ")[1:]
    assert bad.startswith("FAILED\n")
    assert "**A and B are the same autoencoder.**" in good
    assert "**A and B are not the same autoencoder.**\n- activation differs: silu in A" in bad
    assert hashlib.sha256(FILE.read_bytes()).hexdigest()[:16] in good
    assert "device cpu" in good
    assert_tables(text)


def assert_tables(text: str) -> None:
    """Every row of a table has as many cells as its head."""
    width, rows = 0, 0
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            width, rows = width or cells, rows + 1
            assert cells == width, line
        else:
            width = 0
    assert rows > 8


def test_without_a_job_there_is_no_annotation(small: Path, wrong: Path) -> None:
    assert "::error" not in verify(FILE, wrong, "--latents", small, code=4).output


@pytest.mark.parametrize("form", [[], ["-q"], ["--json"]], ids=str)
def test_a_failure_is_annotated(
    small: Path, wrong: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = verify(FILE, wrong, "--latents", small, *form, code=4)
    lines = [line for line in result.stderr.splitlines() if line.startswith("::")]
    (line,) = lines
    said = "A and B are not the same autoencoder: activation"
    assert line.startswith(f"::error title=vaeconv verify::{said}")
    if form == ["--json"]:
        strict_loads(result.stdout)
    passed = verify(FILE, BASE, "--latents", small, *form)
    assert "::" not in passed.stderr
    monkeypatch.setenv("GITHUB_ACTIONS", "no")
    assert "::error" not in verify(FILE, wrong, "--latents", small, *form, code=4).output


def test_hostile_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "100%\n|<script>`*_[x](y)\n::error::"
    folder = change_folder(
        BASE, tmp_path / name, config=lambda found: {**found, "use_quant_conv": False}
    )
    said = "sneaky\n<b>|%0A::error::"
    tensors = {f"latent.{said}": np.ones((4, 2, 2), "f4"), "image.x": np.ones((3, 4, 4), "u1")}
    save_arrays(tensors, tmp_path / "r.safetensors")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "s.md"))
    shared = (
        "--latents", tmp_path / "r.safetensors", "--report", tmp_path / "r.json",
        "--junit", tmp_path / "j.xml",
    )  # fmt: skip
    wrong = change_folder(BASE, tmp_path / "w", config=lambda found: {**found, "act_fn": "gelu"})
    for pair in ((folder, FILE), (FILE, wrong)):
        result = verify(*pair, *shared, code=4)
        assert sum(line.startswith("::") for line in result.stderr.splitlines()) == 1
        assert not any(line.startswith("::") for line in result.stdout.splitlines())
        strict_loads((tmp_path / "r.json").read_text())
        suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names[1] == f"decode fp32 {said}"
    text = (tmp_path / "s.md").read_text()
    assert "<script>" not in text
    assert "<b>" not in text
    assert "100%\\\\n\\|&lt;script\\>\\`\\*\\_\\[x\\](y)\\\\n::error:: |" in text
    assert_tables(text)


def test_an_annotation_is_one_line_with_its_percent_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaeconv.parity.report.ci import annotation

    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert annotation("50%\r\nof it: a, b\x1b[31m\x9b\u202e") == (
        r"::error title=vaeconv verify::50%25\r%0Aof it: a, b\x1b[31m\x9b\u202e"
    )


def test_a_report_is_written_where_a_side_is_no_whole_autoencoder(tmp_path: Path) -> None:
    part = change_folder(
        BASE,
        tmp_path / "b",
        weights=lambda t: {n: v for n, v in t.items() if n != "quant_conv.bias"},
    )
    verify(FILE, part, "--report", tmp_path / "r.json", "--junit", tmp_path / "j.xml", code=4)
    assert strict_loads((tmp_path / "r.json").read_text())["ok"] is False
    assert (tmp_path / "j.xml").exists()


def test_junit_stays_xml_whatever_a_reference_is_called(tmp_path: Path) -> None:
    tensors = {"latent.a\x1b[1m": np.ones((4, 2, 2), "f4"), "image.x": np.ones((3, 4, 4), "u1")}
    save_arrays(tensors, tmp_path / "r.safetensors")
    verify(FILE, BASE, "--latents", tmp_path / "r.safetensors", "--junit", tmp_path / "j.xml")
    ElementTree.parse(tmp_path / "j.xml")


def test_a_file_whose_name_is_no_utf8_has_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "s.md"))
    source = tmp_path / os.fsdecode(b"bad\xff.safetensors")
    source.write_bytes(FILE.read_bytes())
    verify(source, FILE, "--weights-only")


def test_a_summary_that_cannot_be_written_is_no_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "s.md"))
    verify(FILE, FILE, "--weights-only", code=5)


@pytest.mark.parametrize(
    ("option", "name", "text"),
    [
        ("--report", "vaeconv.json", '{"schema_version": 1, "outputs": {}}'),
        ("--report", "mine.json", "{}"),
        ("--html", "index.html", "<title>Mine</title>"),
        ("--junit", "j.xml", "<testsuite name='theirs'/>"),
    ],
)
def test_only_an_earlier_report_is_replaced(
    tmp_path: Path, small: Path, option: str, name: str, text: str
) -> None:
    target = tmp_path / name
    target.write_text(text)
    result = verify(FILE, BASE, "--latents", small, option, target, code=5)
    assert "is no report of vaeconv verify" in result.stderr
    assert target.read_text() == text
    target.unlink()
    for _ in range(2):
        verify(FILE, BASE, "--latents", small, option, target)
