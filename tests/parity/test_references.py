"""Reference latents: the built-in set, which is the same everywhere, and files of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file

from fixtures import make_fixtures as make
from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near
from tests.support.compvis import DDConfig
from tests.support.pairs import run
from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.topology import Topology
from vaeconv.errors import (
    CheckpointNotFoundError,
    MalformedCheckpointError,
    UsageError,
    VaeconvError,
)
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.models.load import unscale
from vaeconv.parity.references import (
    Reference,
    ReferenceSet,
    batches,
    built_in_set,
    describe_scaling,
    from_uint8,
    load_set,
)

UNIT = Scaling(1.0)


def topology_of(z: int = 4, levels: int = 4, pictures: int = 3) -> Topology:
    config = DDConfig(ch=32, ch_mult=(1,) * levels, z_channels=z, in_channels=pictures)
    return config.topology


def by_name(references: tuple[Reference, ...]) -> dict[str, Any]:
    return {one.name: one.data for one in references}


# --- the built-in set ---

PINNED = [
    (4, 4, 3, "130a74e2aa70f2865f381eb81d3492036020c1f3526e90c5d5cbb1089d20ea6e",
     "08d1a723ceab5535674b56ef9841ea0691e73965a4bbc9499ad8370aebb53617"),
    (3, 3, 3, "043a1a7bbb2feee1b571e0191420ee45a6385794e097bb64e95f71a52ef505d8",
     "edcfb59a0b61211daca59e7b8c9246f73e2818c90c9769d1a3281306b964fe35"),
    (16, 5, 3, "6b30bf50402eb948e06022dadbf17394c9ae4771d617f4b8ccd7d1927702a900",
     "32f6b5e61067574dccfed742a60d76e6c150342c063b22caee03c83852dc9329"),
    (64, 6, 3, "fd619c3413fa1392ce714db1aa0b08d392134a397347cd26a6b5b86a88be03dd",
     "aafabff450447912fa32d6e12fe251ed71c632f711908dbf4cc74cab2be4fe24"),
    (16, 4, 1, "5de18dccf61fbbd60ed281c25e468a83544d9e51ee4336d567cdfdccf2b4b3ca",
     "2aaab03e10e52e93ae20b4fdf73ac0b4ab1833f4940ee3b4da0ca58d627511ce"),
]  # fmt: skip


@pytest.mark.parametrize(("z", "levels", "channels", "latents", "pictures"), PINNED)
def test_the_built_in_set_is_pinned(
    z: int, levels: int, channels: int, latents: str, pictures: str
) -> None:
    found = built_in_set(topology_of(z, levels, channels), UNIT)
    assert ReferenceSet("", found.latents, ()).sha256 == latents
    assert ReferenceSet("", (), found.images).sha256 == pictures


def test_scaled_sets_are_pinned() -> None:
    sets = [built_in_set(topology_of(), one) for one in (Scaling(0.18215), Scaling(0.3611, 0.1159))]
    assert [one.sha256 for one in sets] == [
        "712b027f0d6f509bc1764cdf4676f07c34ee9d03b717a45292d6a4e9d137c557",
        "512d114e3b07afbe4da0ffc6ae46225db944ba6eb26f4c2a91e90de36d86814a",
    ]


def test_a_machine_that_makes_other_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(generator: np.random.Generator, height: int, width: int) -> Any:
        return generator.random((height, width))

    monkeypatch.setattr("vaeconv.parity.references._noise", noise)
    with pytest.raises(VaeconvError, match="different reference latents here"):
        built_in_set(topology_of(z=3), UNIT)


def test_a_channel_does_not_depend_on_their_number() -> None:
    few, many = (built_in_set(topology_of(z), UNIT) for z in (3, 16))
    for one, other in zip(few.latents, many.latents, strict=True):
        assert one.name == other.name
        assert np.array_equal(one.data, other.data[:3])
        channels = [channel.tobytes() for channel in other.data]
        if one.name != "saturated":  # 16 signs could come twice
            assert len(set(channels)) == 16


def test_no_two_references_share_their_values() -> None:
    found = by_name(built_in_set(topology_of(), UNIT).latents)
    assert not np.array_equal(found["noise"], found["noise, large"][:, :16, :16])
    assert not np.array_equal(found["noise"].ravel()[:600], found["not square"].ravel()[:600])


def test_noise_has_unit_variance_and_no_structure() -> None:
    noise = by_name(built_in_set(topology_of(16, 3), UNIT).latents)["noise, large"]
    count = noise.size
    assert abs(noise.mean()) < 4 / count**0.5
    assert noise.var() == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    kurtosis = ((noise - noise.mean()) ** 4).mean() / noise.var() ** 2
    assert kurtosis == pytest.approx(3 - 1.2 / 12, abs=0.15)  # of a sum of 12 uniform variates
    assert np.abs(noise).max() < 6
    for shifted in (noise[:, 1:] * noise[:, :-1], noise[..., 1:] * noise[..., :-1]):
        assert abs(shifted.mean()) < 5 / count**0.5
    across = np.corrcoef(noise.reshape(16, -1)) - np.eye(16)
    assert np.abs(across).max() < 0.15


def test_smooth_fields_are_smooth_and_saturated_ones_saturated() -> None:
    found = by_name(built_in_set(topology_of(16, 4), UNIT).latents)
    smooth, saturated = found["smooth"], found["saturated"]
    steps = max(np.abs(np.diff(smooth, axis=axis)).max() for axis in (1, 2))
    assert 0.1 < steps < 2
    assert 0.5 < smooth.std() < 2
    assert set(np.unique(saturated)) == {-4.0, 4.0}
    patches = saturated.reshape(16, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    assert (patches == patches[:, :1]).all()
    assert 0.3 < (saturated > 0).mean() < 0.7


@pytest.mark.parametrize(
    ("levels", "small", "large", "oblong", "picture"),
    [(6, 4, 8, (2, 6), 128), (5, 8, 16, (4, 12), 128), (4, 16, 32, (8, 24), 128),
     (3, 32, 32, (16, 48), 128), (2, 32, 32, (16, 48), 64)],
)  # fmt: skip
def test_sizes_follow_the_factor(
    levels: int, small: int, large: int, oblong: tuple[int, int], picture: int
) -> None:
    found = built_in_set(topology_of(4, levels), UNIT)
    assert {name: data.shape[1:] for name, data in by_name(found.latents).items()} == {
        "noise": (small, small),
        "noise, large": (large, large),
        "smooth": (small, small),
        "saturated": (small, small),
        "not square": oblong,
    }
    factor = 2 ** (levels - 1)
    for name, data in by_name(found.images).items():
        assert data.shape[0] == 3
        assert data.shape[1] % factor == data.shape[2] % factor == 0
        wanted = (picture // 2, picture + factor) if name == "not square" else (picture, picture)
        assert data.shape[1:] == wanted


def test_pictures_are_of_256_steps() -> None:
    for one in built_in_set(topology_of(), UNIT).images:
        steps = (one.data.astype("f8") + 1) * 127.5
        assert np.abs(steps - np.rint(steps)).max() < 1e-4
        assert -1 <= one.data.min() < -0.9
        assert 0.9 < one.data.max() <= 1
        assert one.data.dtype == np.float32


def test_the_hash_is_of_names_shapes_and_values() -> None:
    data = np.arange(8, dtype="f4").reshape(1, 2, 4)
    base = ReferenceSet("", (Reference("a", data),), ())
    others = [
        Reference("b", data),
        Reference("a", data.reshape(1, 4, 2)),
        Reference("a", np.where(data == 7, np.float32(7.000001), data)),
    ]
    hashes = {base.sha256, *(ReferenceSet("", (one,), ()).sha256 for one in others)}
    assert len(hashes) == 4
    assert ReferenceSet("from elsewhere", base.latents, ()).sha256 == base.sha256


# --- scaling ---


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(0.18215),
        Scaling(0.3611, 0.1159),
        Scaling(1.5305, 0.0609),
        Scaling(
            0.5,
            None,
            (-1.6574, 1.886, -1.383, 2.5155),
            (8.4927, 5.9022, 6.5498, 5.2299),
        ),
    ],
    ids=["sd1", "flux1", "sd3", "playground"],
)
def test_scaling_is_undone_as_pipelines_do(scaling: Scaling) -> None:
    latent = torch.from_numpy(by_name(built_in_set(topology_of(), UNIT).latents)["noise"])
    wide = latent.double()
    if scaling.latents_mean:  # StableDiffusionXLPipeline.__call__
        mean = torch.tensor(scaling.latents_mean, dtype=torch.float64).view(4, 1, 1)
        std = torch.tensor(scaling.latents_std, dtype=torch.float64).view(4, 1, 1)
        judged = wide * std / scaling.scaling_factor + mean
    else:  # StableDiffusion3Pipeline.__call__
        judged = wide / scaling.scaling_factor + (scaling.shift_factor or 0.0)
    found = unscale(latent.numpy(), scaling)
    assert found.dtype == np.float32
    assert torch.equal(torch.from_numpy(found), judged.float())


def test_words_for_scaling() -> None:
    assert describe_scaling(Scaling(0.5)) == "divided by the scaling factor 0.5"
    assert (
        describe_scaling(Scaling(0.5, 0.25))
        == "divided by the scaling factor 0.5 and shifted by 0.25"
    )
    channels = Scaling(0.5, None, (1.0,), (2.0,))
    assert (
        describe_scaling(channels)
        == "divided by the scaling factor 0.5 with statistics per channel"
    )
    found = built_in_set(topology_of(), Scaling(0.5, 0.25))
    assert (
        found.source
        == "built-in set, seed 840001, divided by the scaling factor 0.5 and shifted by 0.25"
    )


# --- files ---


def test_a_file_is_read(tmp_path: Path) -> None:
    latents = {"latent.b": np.full((4, 2, 3), 0.5, "f2"), "latent.a": np.zeros((4, 1, 1), "f4")}
    pixels = np.array([0, 127, 128, 255], "u1").repeat(3 * 16).reshape(3, 8, 8)
    path = tmp_path / "refs.safetensors"
    save_arrays({**latents, "image.b": pixels, "decoded.b": np.ones(3, "f4")}, path)
    found = load_set(path, topology_of())
    assert found.source == "refs.safetensors"
    assert [(one.name, one.data.shape) for one in found.latents] == [
        ("a", (4, 1, 1)), ("b", (4, 2, 3)),
    ]  # fmt: skip
    assert all(one.data.dtype == np.float32 for one in (*found.latents, *found.images))
    (picture,) = found.images
    assert picture.name == "b"
    judged = torch.from_numpy(pixels).double() / 255 * 2 - 1
    assert_near(picture.data, judged)
    assert (picture.data.min(), picture.data.max()) == (-1, 1)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "refs.safetensors"
    os.mkfifo(tmp_path / "pipe")
    for other in (path, tmp_path, tmp_path / "pipe"):
        with pytest.raises(CheckpointNotFoundError, match=r"No such file|not a regular file"):
            load_set(other, topology_of())
    for content in (b"", b"no latents", (FIXTURES / "tiny-kl.ckpt").read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(MalformedCheckpointError, match="vaeconv latents writes"):
            load_set(path, topology_of())


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"image.a": np.zeros((3, 8, 8), "u1")}, MalformedCheckpointError, "no reference latents"),
        ({"latent.a": np.zeros((16, 2, 2), "f4")}, UsageError, r"\[16, 2, 2\].*takes 4 channels"),
        ({"latent.a": np.zeros((4, 2), "f4")}, UsageError, r"\[4, 2\]"),
        ({"latent.a": np.zeros((1, 4, 2, 2), "f4")}, UsageError, r"\[1, 4, 2, 2\]"),
        ({"latent.a": np.zeros((4, 0, 2), "f4")}, UsageError, r"\[4, 0, 2\]"),
        ({"latent.a": np.full((4, 2, 2), np.nan, "f4")}, MalformedCheckpointError, "a holds NaN"),
        ({"latent.a": np.full((4, 2, 2), np.inf, "f4")}, MalformedCheckpointError, "a holds NaN"),
        ({"latent.a": np.zeros((4, 2, 2), "f4"), "image.p": np.zeros((3, 8, 12), "u1")},
         UsageError, r"picture p .*multiples of 8"),
        ({"latent.a": np.zeros((4, 2, 2), "f4"), "image.p": np.zeros((1, 8, 8), "u1")},
         UsageError, "takes 3 channels"),
        ({"latent.a": np.zeros((4, 2, 2), "f4"), "image.p": np.zeros((3, 8, 8), "f4")},
         MalformedCheckpointError, "float32, not uint8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, Any], error: type[VaeconvError], words: str
) -> None:
    save_arrays(tensors, tmp_path / "r.safetensors")
    with pytest.raises(error, match=words) as caught:
        load_set(tmp_path / "r.safetensors", topology_of())
    assert "r.safetensors" in str(caught.value)


def test_the_command_line_refuses_references_that_do_not_fit(tmp_path: Path) -> None:
    pair = (FIXTURES / "tiny-attn.ckpt", FIXTURES / "tiny-attn.ckpt")  # 16 channels
    result = run("verify", *pair, "--latents", FIXTURES / "tiny-latents.safetensors")
    assert result.exit_code == 2
    assert "takes 16 channels" in result.stderr
    result = run("verify", *pair, "--latents", tmp_path / "none.safetensors")
    assert result.exit_code == 3
    assert "none.safetensors" in result.stderr


def test_batches_group_what_has_one_shape() -> None:
    shapes = [(1, 2), (1, 3), (1, 2), (1, 2), (1, 3), (1, 2)]
    references = [Reference(str(n), np.zeros((4, *shape))) for n, shape in enumerate(shapes)]
    found = [[one.name for one in batch] for batch in batches(references, 3)]
    assert found == [["0", "2", "3"], ["5"], ["1", "4"]]
    assert [len(batch) for batch in batches(references, 1)] == [1] * 6
    assert list(batches([], 3)) == []


def test_pixels_become_values() -> None:
    found = from_uint8(np.arange(256, dtype="u1").reshape(1, 16, 16))
    judged = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert torch.equal(torch.from_numpy(found).ravel(), judged.float())
    with pytest.raises(ValueError, match="int64"):
        from_uint8(np.zeros((1, 2, 2), "i8"))


# --- the fixture of real pictures ---

REAL = FIXTURES / "tiny-latents.safetensors"
NAMES = ["astronaut", "chelsea", "coffee", "rocket"]


@pytest.fixture(scope="module")
def both_models() -> tuple[CompVisAutoencoder, Any]:
    ours = CompVisAutoencoder(make.KL.topology).eval()
    weights = load_file(FIXTURES / "tiny-kl.safetensors")
    ours.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    theirs = AutoencoderKL.from_pretrained(FIXTURES / "tiny-diffusers", torch_dtype=torch.float32)
    return ours, theirs.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_fixture_decodes_and_encodes_to_what_it_says(
    both_models: tuple[CompVisAutoencoder, Any], name: str
) -> None:
    ours, theirs = both_models
    tensors = load_file(REAL)
    latent, decoded = tensors[f"latent.{name}"][None], tensors[f"decoded.{name}"][None]
    picture = tensors[f"image.{name}"][None].float() / 127.5 - 1
    assert decoded.std() > 0.05
    assert latent.std() > 0.05
    with torch.inference_mode():
        assert_near(ours.decode(latent), decoded)
        assert_near(theirs.decode(latent).sample, decoded)
        assert_near(ours.encode(picture)[:, :4], latent)
        mode = theirs.encode(picture).latent_dist.mode()
        assert_near(mode, latent)


def test_the_fixture_is_of_pictures() -> None:
    tensors = load_file(REAL)
    kinds = ("decoded", "image", "latent")
    assert sorted(tensors) == [f"{kind}.{name}" for kind in kinds for name in NAMES]
    import skimage.data

    found = tensors["image.astronaut"].float().mean(dim=(1, 2))
    real = torch.from_numpy(skimage.data.astronaut()).float().mean(dim=(0, 1))
    assert torch.allclose(found, real, atol=1)


def test_the_fixture_verifies_the_models_it_is_of() -> None:
    pair = (FIXTURES / "tiny-kl.ckpt", FIXTURES / "tiny-diffusers")
    result = run("verify", *pair, "--latents", REAL, "--device", "cpu", "--verbose")
    assert result.exit_code == 0, result.stderr
    assert "chelsea" in result.stdout
