"""The bill of materials, judged by CycloneDX's own schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import run_here
from vaeconv._version import __version__
from vaeconv.errors import InputError, UsageError
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.modelspec import source_date
from vaeconv.publish.sbom import SBOM, make_sbom, write_sbom
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions

META = CardMeta(license="mit", repo_id="user/tiny", base_model="a b/c", summary="For „tests“.")
PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    convert(str(FIXTURES / "tiny-kl.ckpt"), tmp_path / "out", ConvertOptions(hash_source=True))
    return tmp_path / "out"


def errors_of(data: bytes) -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode())


def test_it_is_valid_and_says_where_everything_is_from(out: Path) -> None:
    data = write_sbom(out, META, "Tiny").read_bytes()
    assert errors_of(data) is None
    found = json.loads(data)
    components = {one["name"]: one for one in found["components"]}
    assert components.keys() == {PLAIN, "config.json", "tiny-kl.ckpt"}
    for name, path in ((PLAIN, out / PLAIN), ("tiny-kl.ckpt", FIXTURES / "tiny-kl.ckpt")):
        (digest,) = components[name]["hashes"]
        assert digest == {
            "alg": "SHA-256",
            "content": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    model = found["metadata"]["component"]
    assert (model["name"], model["description"]) == ("Tiny", META.summary)
    assert model["purl"] == "pkg:huggingface/user/tiny"
    assert model["pedigree"]["ancestors"][0]["purl"] == "pkg:huggingface/a%20b/c"
    properties = {one["name"]: one["value"] for one in model["properties"]}
    assert properties["vaeconv:scaling_factor"] == "1.0"
    assert properties["vaeconv:raw_tensors"] == "120"
    assert found["metadata"]["tools"]["components"][0]["version"] == __version__
    assert "timestamp" not in found["metadata"]


def test_the_schema_finds_what_is_wrong(out: Path) -> None:
    found = json.loads(write_sbom(out, META, "Tiny").read_bytes())
    found["components"][0]["hashes"][0]["alg"] = "SHA-257"
    assert errors_of(json.dumps(found).encode()) is not None


def test_the_same_bytes_each_time(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_sbom(out, META, "Tiny").read_bytes()
    assert write_sbom(out, META, "Tiny").read_bytes() == first
    other = json.loads(write_sbom(out, META, "Other").read_bytes())
    assert other["serialNumber"] != json.loads(first)["serialNumber"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1667260800")
    dated = write_sbom(out, META, "Tiny").read_bytes()
    assert json.loads(dated)["metadata"]["timestamp"] == "2022-11-01T00:00:00+00:00"
    assert errors_of(dated) is None
    assert write_sbom(out, META, "Tiny").read_bytes() == dated


@pytest.mark.parametrize("text", ["soon", "1.5", "9" * 30, "-" + "9" * 30])
def test_a_date_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is not a number of seconds"):
        source_date()


def test_without_a_manifest_there_is_nothing_to_say(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no vaeconv\.json"):
        write_sbom(tmp_path, META, "Tiny")


@pytest.mark.parametrize(
    "manifest", [{}, {"outputs": {}, "source": None}, {"outputs": [], "source": {"name": "a"}}]
)
def test_a_manifest_that_lacks_something(manifest: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the manifest lacks"):
        make_sbom(manifest, META, "Tiny")


def properties_of(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("vaeconv:"): one["value"] for one in component["properties"]}


def test_what_a_manifest_says_of_each_file_and_of_the_model() -> None:
    manifest = {
        "source": {"name": "last.ckpt", "sha256": ["0" * 64, "1" * 64], "size": 7},  # in shards
        "outputs": {
            "b.ckpt": {"sha256": "2" * 64, "size": 3, "dtype": "fp16"},
            "a.ckpt": {"sha256": "3" * 64, "size": 4, "dtype": None},
        },
        "family": "flux1",
        "scaling": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "from": "the family"},
        "ema": {"ema": 5, "raw": 2},
    }
    data = make_sbom(manifest, META, "Tiny")
    assert errors_of(data) is None
    found = json.loads(data)
    model = found["metadata"]["component"]
    assert model["licenses"] == [{"license": {"name": "mit"}}]
    assert properties_of(model) == {
        "family": "flux1",
        "scaling_factor": "0.3611",
        "shift_factor": "0.1159",
        "scaling_from": "the family",
        "ema_tensors": "5",
        "raw_tensors": "2",
    }
    first, second, source = found["components"]
    assert [one["name"] for one in (first, second, source)] == ["a.ckpt", "b.ckpt", "last.ckpt"]
    assert properties_of(first) == {"size": "4"}
    assert properties_of(second) == {"size": "3", "dtype": "fp16"}
    assert properties_of(source) == {"size": "7"} and "hashes" not in source
    made_from = {one["ref"]: one.get("dependsOn") for one in found["dependencies"]}
    files = [first["bom-ref"], second["bom-ref"]]
    assert made_from == {
        model["bom-ref"]: files,
        **{file: [source["bom-ref"]] for file in files},
        source["bom-ref"]: None,
    }


def test_beside_the_card(out: Path) -> None:
    (out.parent / "meta.toml").write_text('title = "Tiny"\nlicense = "mit"\n')
    options = ("card", out, "--meta", out.parent / "meta.toml", "--sbom")
    assert run_here(*options, "--dry-run").exit_code == 0
    assert not (out / SBOM).exists()
    done = run_here(*options)
    assert done.stdout == f"wrote {out / 'README.md'}\nwrote {out / SBOM}\n"
    assert json.loads((out / SBOM).read_bytes())["metadata"]["component"]["name"] == "Tiny"
