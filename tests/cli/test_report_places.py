"""Reports that may be published name no folders of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import run_here
from vaeconv.publish.places import places_in


def test_reports_of_verify(tmp_path: Path) -> None:
    home = tmp_path / "home of/some body"
    home.mkdir(parents=True)
    source = home / "last run.ckpt"
    source.write_bytes((FIXTURES / "tiny-kl.ckpt").read_bytes())
    made = run_here("convert", "--scaling-factor", "0.18215", source, tmp_path / "out")
    assert made.exit_code == 0, made.stderr
    names = {"--report": "parity.json", "--html": "parity.html", "--junit": "junit.xml"}
    files = [part for option, name in names.items() for part in (option, tmp_path / name)]
    done = run_here("verify", source, tmp_path / "out", *files)
    assert done.exit_code == 0, done.stderr
    for name in names.values():
        text = (tmp_path / name).read_text()
        assert "some body" not in text and str(tmp_path) not in text, name
    report = json.loads((tmp_path / "parity.json").read_text())
    assert [side["name"] for side in report["sides"]] == ["last run.ckpt", "out"]
    assert places_in(report) == []
    assert places_in(json.loads((tmp_path / "out/vaeconv.json").read_text())) == []
