"""What the tests of evaluations have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.runs import shrink_inception, write_nets, write_tiles


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of the metric nets, by net; nobody changes a file."""
    return write_nets(tmp_path_factory.mktemp("nets"))


@pytest.fixture
def small_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Inception that is quick."""
    shrink_inception(monkeypatch.setattr)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five small pictures; nobody writes into it."""
    return write_tiles(tmp_path_factory.mktemp("pictures") / "photos", 5)
