"""ModelSpec entries: what the specification asks for, and nothing that changes from run to run."""

from __future__ import annotations

import pytest

from vaeconv.autoencoder.families import BY_NAME
from vaeconv.autoencoder.topology import Layout
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.modelspec import modelspec

META = CardMeta(license="mit", repo_id="user/tiny", summary="Words.\n", tags=("a", "b"))


def test_all_that_is_known() -> None:
    assert modelspec(META, "Tiny", BY_NAME["sdxl"], Layout.DIFFUSERS) == {
        "modelspec.sai_model_spec": "1.0.1",
        # The specification's own example of an autoencoder.
        "modelspec.architecture": "stable-diffusion-xl-v1/vae",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "Tiny",
        "modelspec.description": "Words.",
        "modelspec.author": "user",
        "modelspec.license": "mit",
        "modelspec.tags": "a,b",
    }


def test_only_what_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = CardMeta(tags=())
    must = {"sai_model_spec", "architecture", "implementation", "title"}
    found = modelspec(meta, "T", None, Layout.COMPVIS)
    assert found.keys() == {f"modelspec.{key}" for key in must}
    assert found["modelspec.architecture"] == "latent-diffusion/vae"
    assert found["modelspec.implementation"].startswith("https://github.com/CompVis/")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1667260800")
    assert modelspec(meta, "T", None, Layout.COMPVIS)["modelspec.date"] == "2022-11-01"


@pytest.mark.parametrize("name", BY_NAME)
def test_every_family_has_an_architecture(name: str) -> None:
    found = modelspec(META, "T", BY_NAME[name], Layout.DIFFUSERS)["modelspec.architecture"]
    assert found.endswith("/vae") and found.count("/") == 1
