"""What the tests of parity have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.compvis import DDConfig
from tests.support.pairs import MODEL, write_references
from tests.support.samples import save_ckpt, weights_of
from vaeconv import ConvertOptions, ScalingOptions, convert


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once; nobody changes a file in it."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def references(models: Path) -> Callable[[DDConfig], Path]:
    """Small references that fit an architecture."""

    def get(config: DDConfig) -> Path:
        path = models / f"{len(config.ch_mult)}-{config.z_channels}.safetensors"
        return path if path.exists() else write_references(path, config)

    return get


@pytest.fixture(scope="session")
def refs(references: Callable[[DDConfig], Path]) -> Path:
    """References for the model below: two latents and two pictures."""
    return references(MODEL)


@pytest.fixture(scope="session")
def ckpt(models: Path) -> Path:
    """An autoencoder with the levels of SD 1."""
    return save_ckpt(models / "model.ckpt", weights_of(MODEL))


@pytest.fixture(scope="session")
def out(models: Path, ckpt: Path) -> Path:
    """The same, converted to a diffusers folder."""
    convert(ckpt, models / "out", ConvertOptions(scaling=ScalingOptions(scaling_factor=0.18215)))
    return models / "out"
