"""Images in datasets on the Hub: which are read, at which commit, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.runs import FOLDER, KL, SIZE
from tests.support.loopback_hub import FOREVER, Call, LoopbackHub, Status
from tests.support.loopback_hub.client import Client, start
from vaeconv.checkpoint.hub.address import HubLocation, parse_dataset
from vaeconv.errors import UsageError

SET = "hf://datasets/user/set"


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 90, 200)).save(file, "PNG")
    return file.getvalue()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for at, name in enumerate(names):
            bundle.writestr(name, png(100 + at))
    return file.getvalue()


FILES = {
    "README.md": b"# a set",
    "val/b.png": png(2),
    "val/a.png": png(1),
    "val/deep/c.png": png(3),
    "val/notes.txt": b"no image",
    "val/.hidden.png": png(9),
    "train/d.png": png(4),
    "zips/one/val.zip": archive("x.png", "y.png"),
    "zips/two/a.zip": archive("x.png"),
    "zips/two/b.zip": archive("x.png"),
    "data/train-00000.parquet": b"PAR1",
    "bad/broken.zip": b"no zip file",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub({"hf_test": "user"}) as hub:
        hub.create_repo("datasets/user/set", FILES)
        hub.create_repo("datasets/other/secret", {"a.png": png(7)}, private=True)
        yield hub
        assert hub.unserved == []


@pytest.fixture(scope="module")
def client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    with start(hub.env(home), home / "log") as client:
        yield client


LOOK = """
from vaeconv.models.image_files import open_images
files = open_images(place)
found = {
    "names": files.names,
    "left_out": [list(one) for one in files.left_out],
    "shades": [],
    "sizes": [files.size(name) for name in files.names],
    "label": files.label,
    "source": files.source,
}
for name in files.names:
    import io
    from PIL import Image
    found["shades"].append(Image.open(io.BytesIO(files.read(name))).getpixel((0, 0))[0])
files.close()
found
"""


def look(client: Client, path: str = "", revision: str = "") -> dict[str, Any]:
    found = client.get(LOOK, place=f"{SET}{revision}{path}")
    assert isinstance(found, dict)
    return found


def test_images_of_a_folder_with_those_in_its_folders(client: Client, hub: LoopbackHub) -> None:
    found = look(client, "/val")
    commit = hub.repo("datasets/user/set").head()
    assert found == {
        "names": ["a.png", "b.png", "deep/c.png"],
        "left_out": [[".hidden.png", "hidden"], ["notes.txt", "with another ending"]],
        "shades": [1, 2, 3],
        "sizes": [len(png(shade)) for shade in (1, 2, 3)],
        "label": "user/set/val",
        "source": f"{SET}@{commit}/val",
    }


def test_images_of_the_whole_dataset(client: Client) -> None:
    found = look(client)
    assert found["names"] == ["train/d.png", "val/a.png", "val/b.png", "val/deep/c.png"]
    assert found["label"] == "user/set"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("/val/*.png", [".hidden.png", "a.png", "b.png", "deep/c.png"]),
        ("/val/?.png", ["a.png", "b.png"]),
        ("/*/[bd].png", ["train/d.png", "val/b.png"]),
        ("/val/a.png", ["a.png"]),
    ],
)
def test_images_by_a_pattern_or_one_alone(client: Client, pattern: str, names: list[str]) -> None:
    found = look(client, pattern)
    everything = [*found["names"], *(name for name, _ in found["left_out"])]
    assert sorted(everything) == sorted(names)


@pytest.mark.parametrize("path", ["/zips/one", "/zips/one/val.zip"])
def test_images_in_a_zip_file(client: Client, path: str) -> None:
    found = look(client, path)
    assert (found["names"], found["shades"]) == (["x.png", "y.png"], [100, 101])


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/zips/two", "CheckpointNotFoundError", "no images in it, but 2 zip files"),
        ("/data", "CheckpointNotFoundError", "its images are in parquet files, which are not"),
        ("/README.md", "CheckpointNotFoundError", "no images in it"),
        ("/nothing", "CheckpointNotFoundError", "no such file in the dataset"),
        ("/val/*.jpg", "CheckpointNotFoundError", "no such file in the dataset"),
        ("/bad/broken.zip", "InputError", "neither a folder nor a zip file"),
        ("/../x", "UsageError", "is not a path in a repository"),
        ("@nobranch", "HubError", "no such revision"),
    ],
)
def test_refusals(client: Client, path: str, kind: str, said: str) -> None:
    failure = client.fail(LOOK, place=f"{SET}{path}")
    assert failure.type == kind
    assert said in failure.message


def test_what_is_not_there_or_private_is_an_error(client: Client) -> None:
    for place in ("hf://datasets/user/none", "hf://datasets/other/secret"):
        failure = client.fail(LOOK, place=place)
        assert failure.type == "HubError"
        assert "no such repository or file, or it is private" in failure.message


def test_all_is_read_at_the_commit_that_was_found_first(hub: LoopbackHub, tmp_path: Path) -> None:
    place = "hf://datasets/user/moving"
    hub.create_repo("datasets/user/moving", {"a.png": png(1)})
    first = hub.repo("datasets/user/moving").head()
    with start(hub.env(tmp_path), tmp_path / "log") as client:
        # The branch moves when the files are listed: their commit is known by then.
        moving = hub.add_rule(
            Call(lambda: hub.move_head("datasets/user/moving", {"a.png": png(50)})), path="/tree/"
        )
        found = client.get(LOOK, place=place)
        assert (found["shades"], found["source"]) == ([1], f"{place}@{first}")
        hub.rules.remove(moving)
        later = client.get(LOOK, place=place)
        assert later["shades"] == [50]
        assert later["source"] == f"{place}@{hub.repo('datasets/user/moving').head()}"
        assert client.get(LOOK, place=f"{place}@{first}")["shades"] == [1]


def test_a_file_that_is_in_the_cache_is_not_fetched_again(hub: LoopbackHub, client: Client) -> None:
    look(client, "/val")
    before = len(hub.asked(path="/resolve/"))
    look(client, "/val")
    assert len(hub.asked(path="/resolve/")) == before


def test_a_size_that_the_hub_belies_is_an_error(hub: LoopbackHub, client: Client) -> None:
    code = LOOK.replace("found = {", "files._dataset.sizes['a.png'] += 1\nfound = {")
    failure = client.fail(code, place=f"{SET}/val")
    assert "another size than the Hub has listed" in failure.message


def test_an_image_that_is_too_large_is_not_fetched(hub: LoopbackHub, client: Client) -> None:
    before = len(hub.asked(path="/resolve/"))
    code = LOOK.replace("found = {", "files._dataset.sizes['d.png'] = (1 << 30) + 1\nfound = {")
    failure = client.fail(code, place=f"{SET}/train")
    assert failure.message.startswith("larger than 1 GiB")
    assert len(hub.asked(path="/resolve/")) == before


def test_a_hub_that_fails_a_while_is_asked_again(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_rule(Status(503), path="/api/datasets/user/set/tree", times=1)
    with start(hub.env(tmp_path), tmp_path / "log") as client:
        assert look(client, "/val")["shades"] == [1, 2, 3]
    down = hub.add_rule(Status(403), path="/datasets/user/set/resolve", times=FOREVER)
    try:
        with start(hub.env(tmp_path / "b"), tmp_path / "log") as client:
            failure = client.fail(LOOK, place=f"{SET}/val")
    finally:
        hub.rules.remove(down)
    assert (failure.type, "access denied" in failure.message) == ("HubError", True)


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "location"),
    [
        (SET, HubLocation("user/set", None, None, "dataset")),
        (f"{SET}@v1/a/b.zip", HubLocation("user/set", "v1", "a/b.zip", "dataset")),
        (f"{SET}@refs%2Fpr%2F1/", HubLocation("user/set", "refs/pr/1", None, "dataset")),
        (
            "https://huggingface.co/datasets/user/set/tree/main/val",
            HubLocation("user/set", "main", "val", "dataset"),
        ),
        ("photos/", None),
    ],
)
def test_addresses_of_datasets(text: str, location: HubLocation | None) -> None:
    assert parse_dataset(text) == location
    if location:
        assert parse_dataset(str(location)) == location


@pytest.mark.parametrize(
    "text",
    ["hf://user/model", "hf://datasets/set", "hf://datasets/user/set@", "https://x.org/a.zip",
     "hf://datasets/user/a..b", f"{SET}/a//b", "hf://spaces/user/set"],
)  # fmt: skip
def test_other_addresses_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="hf://datasets/owner/name"):
        parse_dataset(text)


# --- from the command line ---


def command(hub: LoopbackHub, home: Path, *args: object) -> dict[str, Any]:
    done = subprocess.run(
        [Path(sys.executable).with_name("vaeconv"), *map(str, args), "--json"],
        env=hub.env(home),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_commands_say_what_they_read(hub: LoopbackHub, tmp_path: Path) -> None:
    address = f"{SET}@{hub.repo('datasets/user/set').head()}/val"
    images = ("--images", f"{SET}/val", "--size", SIZE, "--device", "cpu")
    out = tmp_path / "e.json"
    found = command(hub, tmp_path / "home", "eval", KL, *images[:4], *images[4:], "--out", out,
                    "--metrics", "psnr", "--html", tmp_path / "e.html")  # fmt: skip
    assert found["pictures"]["source"] == address
    assert found["pictures"]["name"] == "user/set/val"
    assert found["per_picture"]["names"] == ["a.png", "b.png", "deep/c.png"]
    assert json.loads(out.read_text())["pictures"]["source"] == address
    assert address in (tmp_path / "e.html").read_text()
    encoded = command(hub, tmp_path / "home", "latents", f"{SET}/val/a.png", tmp_path / "refs.sft",
                      "--model", FOLDER, "--size", SIZE, "--device", "cpu")  # fmt: skip
    assert encoded["names"] == ["a"]
    assert encoded["images"] == f"{SET}@{hub.repo('datasets/user/set').head()}/val/a.png"
