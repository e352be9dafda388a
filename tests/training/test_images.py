"""Which image stands where, and how it is cut: from the seed and the position alone."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.runs import prepared, write_tiles
from vaeconv.errors import CheckpointNotFoundError, InputError
from vaeconv.evaluation.distributed import World
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.training.images import Schedule, TrainingImages
from vaeconv.training.options import FinetuneOptions


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("training") / "photos", 7)


def images(place: Path, **options: Any) -> TrainingImages:
    return TrainingImages(ImageSet(place), "RGB", FinetuneOptions(steps=1, size=16, **options))


def positions(world: World, batch: int, accumulate: int, steps: range) -> list[int]:
    return list(Schedule(batch, accumulate, world).positions(steps))


def test_a_step_has_the_same_images_in_one_process_and_in_several() -> None:
    alone = positions(World(), 2, 4, range(3, 5))
    assert alone == list(range(24, 40))
    shares = [positions(World(rank, 2), 2, 2, range(3, 5)) for rank in (0, 1)]
    assert shares[0] == [24, 25, 28, 29, 32, 33, 36, 37]
    # Batch by batch, each process has what the single one has in a batch of its own.
    assert sorted([*shares[0], *shares[1]]) == alone
    batches = [alone[at : at + 2] for at in range(0, 16, 2)]
    assert [share[at : at + 2] for at in range(0, 8, 2) for share in shares] == batches


def test_every_pass_has_every_image_once_and_an_order_of_its_own(photos: Path) -> None:
    stream = images(photos)
    names = [stream.take(at).name for at in range(21)]
    passes = [names[:7], names[7:14], names[14:]]
    assert all(Counter(one) == Counter(passes[0]) for one in passes) and len(set(names)) == 7
    assert passes[0] != passes[1] != passes[2]
    assert [images(photos).take(at).name for at in (9, 3)] == [names[9], names[3]]
    assert [images(photos, seed=1).take(at).name for at in range(7)] != passes[0]


def test_a_crop_follows_from_seed_and_position(photos: Path) -> None:
    one, other = images(photos), images(photos, seed=1)
    first = one.take(4)
    assert first.pixels.shape == (3, 16, 16) and first.pixels.dtype == np.uint8
    assert (images(photos).take(4).pixels == first.pixels).all()
    again = next(at for at in range(7, 14) if one.take(at).name == first.name)
    assert (one.take(again).pixels != first.pixels).any()
    same = next(at for at in range(7) if other.take(at).name == first.name)
    assert (other.take(same).pixels != first.pixels).any()


@pytest.mark.parametrize(("size", "left"), [((48, 24), 24), ((24, 24), 0), ((20, 20), 4)])
def test_a_random_crop_shows_two_thirds_and_enlarges_nothing(
    tmp_path: Path, size: tuple[int, int], left: int
) -> None:
    """Values are columns: what a crop has of them tells which part it is of, and its scale."""
    width, height = size
    rows = np.broadcast_to((np.arange(width) * 5).astype(np.uint8), (height, width))
    Image.fromarray(np.ascontiguousarray(rows)).save(tmp_path / "a.png")
    stream = TrainingImages(ImageSet(tmp_path), "L", FinetuneOptions(steps=1, size=16))
    firsts = set()
    for at in range(200):
        row = stream.take(at).pixels[0, 0].astype(int)
        assert (np.diff(row) == 5).all()  # not scaled: the shorter side is at most 3/2 of 16
        firsts.add(row[0] // 5)
    assert firsts == set(range(width - 16 + 1))


def test_a_large_image_is_reduced_and_a_small_one_enlarged_just_enough(tmp_path: Path) -> None:
    for name, side in (("large", 96), ("small", 10)):
        folder = tmp_path / name
        folder.mkdir()
        ramp = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8), (side, side))
        Image.fromarray(np.ascontiguousarray(ramp)).save(folder / "a.png")
    row = images(tmp_path / "large").take(0).pixels[0, 0].astype(int)
    assert abs((row[-1] - row[0]) - 255 * 2 / 3) < 12
    row = images(tmp_path / "small").take(0).pixels[0, 0].astype(int)
    assert row[0] < 12 and row[-1] > 243


def test_flips_are_half_of_them_and_center_is_what_eval_measures(photos: Path) -> None:
    plain, flipped = images(photos, crop="center"), images(photos, crop="center", flip=True)
    mirrored = 0
    for at in range(60):
        one, other = plain.take(at), flipped.take(at)
        assert (one.pixels.transpose(1, 2, 0) == prepared(photos / one.name, 16)).all()
        is_mirrored = (one.pixels[:, :, ::-1] == other.pixels).all()
        assert is_mirrored or (one.pixels == other.pixels).all()
        mirrored += bool(is_mirrored)
    assert 15 < mirrored < 45


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_change_nothing(photos: Path, workers: int) -> None:
    wanted = range(5, 17)
    found = list(images(photos).stream(wanted, workers, 4))
    assert [one.at for one in found] == list(wanted)
    for one in found:
        assert (images(photos).take(one.at).pixels == one.pixels).all()


def test_an_unreadable_image_is_named_and_the_next_stands_in(photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "003.png").write_bytes(b"damaged")
    stream = images(tmp_path)
    names = Counter(stream.take(at).name for at in range(7))
    assert names["003.png"] == 0 and names["004.png"] == 2 and len(names) == 6
    ((name, reason),) = stream.skipped
    assert name == "003.png" and "not an image" in reason


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no images in it"):
        images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no image in it could be read, such as a\.png"):
        images(tmp_path).take(0)


# --- tar files ---


def pack(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def contents(photos: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(photos.iterdir())}


def test_a_tar_file_is_read_as_its_folder_would_be(photos: Path, tmp_path: Path) -> None:
    pack(tmp_path / "all.tar", contents(photos) | {"000.txt": b"a caption", ".x.png": b""})
    packed, plain = images(tmp_path / "all.tar"), images(photos)
    for at in range(7):
        one, other = packed.take(at), plain.take(at)
        assert one.name == other.name and (one.pixels == other.pixels).all()
    assert len(ImageSet(tmp_path / "all.tar").left_out) == 2


def test_a_folder_of_tar_files_is_one_set(photos: Path, tmp_path: Path) -> None:
    files = list(contents(photos).items())
    pack(tmp_path / "b-000.tar", dict(files[:3]))
    pack(tmp_path / "b-001.tar", dict(files[:4]))
    names = ImageSet(tmp_path).names
    assert len(names) == 7 and names[0] == "b-000.tar/000.png" and names[-1] == "b-001.tar/003.png"
    (tmp_path / "own.png").write_bytes(files[0][1])  # a folder of images that also holds archives
    assert ImageSet(tmp_path).names == ["own.png"]


def test_a_tar_file_that_cannot_be_read_is_refused(photos: Path, tmp_path: Path) -> None:
    pack(tmp_path / "packed.tar", contents(photos), "w:gz")
    with pytest.raises(InputError, match="not an uncompressed tar file"):
        ImageSet(tmp_path / "packed.tar")
    pack(tmp_path / "none.tar", {"a.txt": b"x"})
    with pytest.raises(InputError, match="no images in it"):
        ImageSet(tmp_path / "none.tar")
    pack(tmp_path / "cut.tar", contents(photos))
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        ImageSet(tmp_path / "cut.tar")


def test_a_tar_file_that_is_damaged_later_is_not_taken_for_a_shorter_one(
    photos: Path, tmp_path: Path
) -> None:
    pack(tmp_path / "a.tar", contents(photos))
    with tarfile.open(tmp_path / "a.tar") as archive:
        second = archive.getmembers()[1].offset
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[second + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InputError, match=f"damaged at byte {second}"):
        ImageSet(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(data[: second + 100])
    with pytest.raises(InputError, match=f"damaged at byte {second}"):
        ImageSet(tmp_path / "a.tar")


def test_a_tar_file_that_would_never_end_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a.png")
    header = bytearray(entry.tobuf())
    header[124:136] = (-512).to_bytes(12, "big", signed=True)  # the base-256 form of a size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(InputError, match="uncompressed tar file"):
        ImageSet(tmp_path / "a.tar")


def test_a_tar_file_of_names_of_names_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "a.tar").write_bytes((link.tobuf() + b"a" + bytes(511)) * 5000 + bytes(1024))
    with pytest.raises(InputError, match="uncompressed tar file"):
        ImageSet(tmp_path / "a.tar")
