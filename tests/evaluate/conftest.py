"""What the tests of evaluations have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.evaluate.runs import shrink_inception, write_nets, write_tiles


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small convolutions on many threads that share few cores mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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
