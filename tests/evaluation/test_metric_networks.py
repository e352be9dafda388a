"""Weights of metric nets: where they are looked for, downloads, and files that are not them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
from safetensors.torch import save_file

from tests.support.samples import save_ckpt
from vaeconv.errors import InputError, MissingDependencyError, UnsafeCheckpointError
from vaeconv.evaluation.metric_networks import (
    INCEPTION,
    LPIPS_LINEAR,
    NETWORKS,
    VGG,
    MissingWeightsError,
    Network,
    Weights,
    find_weights,
)
from vaeconv.evaluation.metrics import Meter

CPU = torch.device("cpu")
VARIABLE = "VAECONV_SMALL_WEIGHTS"


def file_of(value: float) -> bytes:
    """A file of weights that can be told by its one value."""
    buffer = io.BytesIO()
    torch.save({"layer.weight": torch.full((2, 3), value)}, buffer)
    return buffer.getvalue()


def value_of(weights: Weights) -> float:
    assert list(weights.tensors) == ["layer.weight"]
    assert weights.tensors["layer.weight"].shape == (2, 3)
    return weights.tensors["layer.weight"][0, 0].item()


def net_of(url: str = "http://127.0.0.1:9/small.pth", prefix: str = "0" * 8) -> Network:
    return Network("small", "--small-weights", VARIABLE, url, prefix, ("psim", "lpips"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of downloads of its own, no proxies, and no weights named elsewhere."""
    folder = tmp_path / "torch home"
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "*")
    for network in (*NETWORKS, net_of()):
        monkeypatch.delenv(network.variable, raising=False)
    return folder / "hub" / "checkpoints"


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- where weights are looked for ---


def test_the_order_of_places(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    option = put(tmp_path / "option.pth", file_of(1))
    variable = put(tmp_path / "variable.pth", file_of(2))
    cached = put(home / "small.pth", file_of(3))
    monkeypatch.setenv(VARIABLE, str(variable))

    def find(given: Path | None) -> tuple[float, Path]:
        found = find_weights(net_of(), given, may_download=True, quiet=True)
        return value_of(found), found.path

    assert find(option) == (1, option)
    assert find(None) == (2, variable)
    monkeypatch.setenv(VARIABLE, "")  # set, and empty: as if it were not
    assert find(None) == (3, cached)
    monkeypatch.delenv(VARIABLE)
    assert find(None) == (3, cached)
    elsewhere = put(tmp_path / "hub" / "checkpoints" / "small.pth", file_of(4))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))  # torch.hub.set_dir
    assert find(None) == (4, elsewhere)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_named_file_that_is_not_there_is_not_replaced_by_the_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    put(home / "small.pth", file_of(3))
    missing = tmp_path / "nowhere.pth"
    if by == "variable":
        monkeypatch.setenv(VARIABLE, str(missing))
    with pytest.raises(MissingWeightsError, match=r"nowhere\.pth") as caught:
        find_weights(net_of(), missing if by == "option" else None, may_download=True, quiet=True)
    assert caught.value.exit_code == 7


def test_the_message_says_how_to_get_them() -> None:
    assert issubclass(MissingWeightsError, MissingDependencyError)
    for network in NETWORKS:
        if network is LPIPS_LINEAR and lpips_is_installed():
            continue
        with pytest.raises(MissingWeightsError) as caught:
            find_weights(network, None, may_download=False, quiet=True)
        assert caught.value.exit_code == 7
        message = caught.value.text
        assert message.startswith("weights missing: ")
        for part in (network.name, network.url, network.option, network.variable, *network.serves):
            assert part in message
        assert "downloads are off" in message


def lpips_is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("lpips") is not None


def test_published_names_agree_with_their_hashes() -> None:
    for network in (INCEPTION, VGG):
        assert network.file_name.endswith(f"-{network.sha256_prefix}.pth")
    assert INCEPTION.file_name == "weights-inception-2015-12-05-6726825d.pth"
    assert VGG.file_name == "vgg16-397923af.pth"
    assert (
        len({network.option for network in NETWORKS})
        == len({network.variable for network in NETWORKS})
        == 3
    )


def test_heads_are_found_in_the_lpips_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "lpips"
    put(package / "__init__.py", b"raise RuntimeError('torchvision does not fit this torch')\n")
    shipped = put(package / "weights" / "v0.1" / "vgg.pth", file_of(5))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = find_weights(LPIPS_LINEAR, None, may_download=False, quiet=True)
    assert (found.path, value_of(found)) == (shipped, 5)


@pytest.mark.skipif(lpips_is_installed(), reason="the lpips package comes first")
def test_heads_have_a_name_of_their_own_in_the_cache(home: Path) -> None:
    put(home / "vgg.pth", file_of(1))
    with pytest.raises(MissingWeightsError):
        find_weights(LPIPS_LINEAR, None, may_download=False, quiet=True)
    path = put(home / "lpips-v0.1-vgg.pth", file_of(6))
    found = find_weights(LPIPS_LINEAR, None, may_download=False, quiet=True)
    assert (found.path, value_of(found)) == (path, 6)


# --- what is in a file ---


def test_the_hash_of_the_file_tells_whether_it_is_the_published_one(tmp_path: Path) -> None:
    content = file_of(7)
    path = put(tmp_path / "small.pth", content)
    sha256 = hashlib.sha256(content).hexdigest()
    for prefix, is_published in ((sha256[:8], True), (sha256[1:9], False)):
        found = find_weights(net_of(prefix=prefix), path, may_download=False, quiet=True)
        assert found.sha256 == sha256
        assert found.is_published is is_published


def test_a_file_larger_than_what_is_hashed_at_a_time(tmp_path: Path) -> None:
    tensors = {"big": torch.arange(600_000, dtype=torch.float32)}
    torch.save(tensors, tmp_path / "big.pth")
    found = find_weights(net_of(), tmp_path / "big.pth", may_download=False, quiet=True)
    assert found.sha256 == hashlib.sha256((tmp_path / "big.pth").read_bytes()).hexdigest()
    assert torch.equal(found.tensors["big"], tensors["big"])


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "state_dict"])
def test_any_file_of_tensors_will_do(tmp_path: Path, kind: str) -> None:
    tensors = {
        "layer.weight": torch.full((2, 3), 8.0),
        "layer.half": torch.arange(6, dtype=torch.float16).reshape(3, 2),
        "layer.counter": torch.tensor(3),
    }
    path = tmp_path / ("small.safetensors" if kind == "safetensors" else "small.pth")
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "state_dict":
        save_ckpt(path, tensors)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    found = find_weights(net_of(), path, may_download=False, quiet=True).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class Attack:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "small.pth"
    content = {"layer.weight": torch.zeros(2, 3), "more": Attack(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content["more"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        find_weights(net_of(), path, may_download=False, quiet=True)
    assert not marker.exists()
    if kind == "plain pickle":  # it does run where nobody looks
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>Not found</html>", file_of(1)[:300], b"\x80\x02}q\x00."],
    ids=["empty", "page", "cut short", "no tensors"],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "small.pth", content)
    with pytest.raises(InputError, match=r"small\.pth") as caught:
        find_weights(net_of(), path, may_download=False, quiet=True)
    assert caught.value.exit_code == 3


def test_a_file_without_any_tensor_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no weights of small in it"):
        find_weights(net_of(), tmp_path / "none.safetensors", may_download=False, quiet=True)


def test_weights_of_another_net_are_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    """Each of the three for each other: the message names the file and the net."""
    wanted = {"inception": ("rfid",), "vgg16": ("psim",), "lpips linear weights": ("lpips",)}
    for name, metrics in wanted.items():
        for other in wanted:
            if other == name:
                continue
            given = {**networks, name: networks[other]}
            with pytest.raises(InputError, match=f"not the weights of {name}") as caught:
                Meter(metrics, given, CPU, may_download=False)
            assert caught.value.where == str(networks[other])
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "misshaped"])
def test_a_net_that_lacks_something_is_refused(
    networks: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    tensors = torch.load(networks["vgg16"], weights_only=True)
    name = "features.28.bias"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    torch.save(tensors, tmp_path / "vgg.pth")
    with pytest.raises(InputError, match="not the weights of vgg16"):
        Meter(("psim",), {"vgg16": tmp_path / "vgg.pth"}, CPU, may_download=False)


def test_a_missing_net_takes_its_metrics_and_no_others(networks: dict[str, Path]) -> None:
    every = ("rfid", "psnr", "ssim", "psim", "lpips")
    meter = Meter(every, {"inception": networks["inception"]}, CPU, may_download=False)
    assert meter.metrics == ("rfid", "psnr", "ssim")
    assert set(meter.missing) == {"psim", "lpips"}
    assert "VAECONV_VGG_WEIGHTS" in str(meter.missing["lpips"])
    assert [facts.name for facts in meter.networks] == ["inception"]
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    seen = meter.look(pixels)
    assert set(meter.compare(seen, seen)) == {"psnr", "ssim"}


def test_only_what_was_asked_for_is_missing() -> None:
    meter = Meter(("psnr", "psim"), {}, CPU, may_download=False)
    assert set(meter.missing) == {"psim"}


@pytest.mark.skipif(lpips_is_installed(), reason="the lpips package has the linear weights")
def test_without_heads_there_is_psim_still(networks: dict[str, Path]) -> None:
    meter = Meter(("psim", "lpips"), {"vgg16": networks["vgg16"]}, CPU, may_download=False)
    assert meter.metrics == ("psim",)
    assert "VAECONV_LPIPS_WEIGHTS" in str(meter.missing["lpips"])
    assert [facts.name for facts in meter.networks] == ["vgg16"]


def test_no_net_is_looked_for_that_nothing_needs() -> None:
    meter = Meter(("psnr", "ssim"), {}, CPU, may_download=False)
    assert (meter.metrics, meter.missing, meter.networks) == (("psnr", "ssim"), {}, [])


# --- downloads ---


class Host:
    """A web server on this machine, which serves what it is told."""

    def __init__(self) -> None:
        self.content = b""
        self.status = 200
        self.cut = 0
        self.asked: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                if self.path.startswith("/moved/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/moved"))
                    self.end_headers()
                    return
                self.send_response(host.status)
                self.send_header("Content-Length", str(len(host.content)))
                self.end_headers()
                self.wfile.write(host.content[: len(host.content) - host.cut])

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, path: str = "/files/small.pth") -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.stop()


def prefix_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


@pytest.mark.parametrize("path", ["/files/small.pth", "/moved/files/small.pth"])
def test_weights_are_fetched_once_into_the_cache(host: Host, home: Path, path: str) -> None:
    host.content = file_of(9)
    network = net_of(host.url(path), prefix_of(host.content))
    for _ in range(2):
        found = find_weights(network, None, may_download=True, quiet=True)
        assert (found.path, value_of(found), found.is_published) == (home / "small.pth", 9, True)
    assert host.asked.count("/files/small.pth") == 1
    assert [one.name for one in home.iterdir()] == ["small.pth"]


@pytest.mark.parametrize("fault", ["another file", "cut short", "not found"])
def test_a_download_that_fails_leaves_nothing(host: Host, home: Path, fault: str) -> None:
    host.content = file_of(9)
    network = net_of(host.url(), prefix_of(host.content))
    if fault == "another file":
        host.content = file_of(10)
    elif fault == "cut short":
        host.cut = 100
    else:
        host.status = 404
    with pytest.raises(MissingWeightsError, match="could not be fetched") as caught:
        find_weights(network, None, may_download=True, quiet=True)
    assert host.asked == ["/files/small.pth"]
    for part in (network.url, network.option, network.variable):
        assert part in caught.value.text
    assert caught.value.exit_code == 7
    assert list(home.iterdir()) == []
    if isinstance(caught.value.__cause__, HTTPError):
        caught.value.__cause__.close()  # an answer as well, with its connection


def test_nothing_listens(host: Host, home: Path) -> None:
    network = net_of(host.url())
    host.server.server_close()
    with pytest.raises(MissingWeightsError, match="could not be fetched"):
        find_weights(network, None, may_download=True, quiet=True)
    assert list(home.iterdir()) == []


def test_offline_asks_nobody(host: Host, home: Path) -> None:
    host.content = file_of(9)
    with pytest.raises(MissingWeightsError, match="downloads are off"):
        find_weights(net_of(host.url()), None, may_download=False, quiet=True)
    assert host.asked == []
    assert not home.exists()


def test_a_file_at_hand_asks_nobody(host: Host, tmp_path: Path) -> None:
    path = put(tmp_path / "small.pth", file_of(1))
    found = find_weights(net_of(host.url()), path, may_download=True, quiet=True)
    assert (found.path, host.asked) == (path, [])


def test_progress_is_shown_unless_quiet(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.content = file_of(9)
    for quiet in (True, False):
        network = net_of(host.url(f"/files/{quiet}.pth"), prefix_of(host.content))
        find_weights(network, None, may_download=True, quiet=quiet)
        out, err = capsys.readouterr()
        assert out == ""
        assert bool(err) is not quiet


def test_nets_that_are_fetched_by_the_meter(
    host: Host, home: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Path]
) -> None:
    host.content = networks["lpips linear weights"].read_bytes()
    network = LPIPS_LINEAR._replace(
        url=host.url("/v0.1/vgg.pth"), sha256_prefix=prefix_of(host.content)
    )
    monkeypatch.setattr("vaeconv.evaluation.metric_networks.LPIPS_LINEAR", network)
    monkeypatch.setattr("vaeconv.evaluation.metrics.LPIPS_LINEAR", network)
    monkeypatch.setattr("vaeconv.evaluation.metrics.NETWORKS", (VGG, network))
    monkeypatch.setattr("vaeconv.evaluation.metric_networks._shipped_linear_weights", lambda: None)
    given = {"vgg16": networks["vgg16"]}
    meter = Meter(("lpips",), given, CPU, may_download=True, quiet=True)
    assert meter.metrics == ("lpips",)
    facts = meter.networks[1]
    assert (facts.name, facts.file, facts.is_published) == (
        "lpips linear weights", "lpips-v0.1-vgg.pth", True,
    )  # fmt: skip
    assert host.asked == ["/v0.1/vgg.pth"]
