"""Weights of the metric networks: the options that name them, where else they are, and loading."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.source import hash_bytes
from vaeconv.common.option_docs import Doc
from vaeconv.errors import InputError, MissingDependencyError
from vaeconv.models.load import load_row
from vaeconv.weights.idle_options import Rule, refuse_idle
from vaeconv.weights.plan import Row

if TYPE_CHECKING:
    import torch

_METRICS = "Metrics"
INCEPTION_FILE = Doc("Weights of torch-fidelity's Inception v3, for rFID.", "FILE", _METRICS)
VGG_FILE = Doc("Weights of torchvision's VGG16, for PSIM and LPIPS.", "FILE", _METRICS)
LPIPS_FILE = Doc("Linear weights of LPIPS v0.1 for VGG.", "FILE", _METRICS)
_PATIENCE = 15.0  # seconds for a server to say that it has a file


class Net(NamedTuple):
    """A net, and where its weights come from.

    Attributes:
        name: What it is called here.
        option: The command's option that names its file.
        variable: The environment variable that does.
        url: Where it is published.
        sha256_prefix: What the sha256 of the published file begins with, as its name says.
        serves: The metrics that need it.
    """

    name: str
    option: str
    variable: str
    url: str
    sha256_prefix: str
    serves: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Name of the published file."""
        return self.url.rpartition("/")[2]


INCEPTION = Net(
    "inception",
    "--inception-weights",
    "VAECONV_INCEPTION_WEIGHTS",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    ("rfid",),
)
VGG = Net(
    "vgg16",
    "--vgg-weights",
    "VAECONV_VGG_WEIGHTS",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
    ("psim", "lpips"),
)
LPIPS_HEADS = Net(
    "lpips heads",
    "--lpips-weights",
    "VAECONV_LPIPS_WEIGHTS",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0f",  # as in lpips 0.1.4
    ("lpips",),
)
NETS = (INCEPTION, VGG, LPIPS_HEADS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFiles:
    """Files with the weights of metric networks; each option says which."""

    inception_weights: Annotated[Path | None, INCEPTION_FILE] = None
    vgg_weights: Annotated[Path | None, VGG_FILE] = None
    lpips_weights: Annotated[Path | None, LPIPS_FILE] = None

    def by_network(self, metrics: Sequence[str]) -> dict[str, Path]:
        """List the files that were named, by network.

        Raises:
            UsageError: No metric needs one.
        """
        paths = (self.inception_weights, self.vgg_weights, self.lpips_weights)
        given = {net: path for net, path in zip(NETS, paths, strict=True) if path is not None}
        why = "no metric of --metrics uses them"
        refuse_idle(
            Rule(net.option, True, not {*metrics}.isdisjoint(net.serves), why) for net in given
        )
        return {net.name: path for net, path in given.items()}


class Weights(NamedTuple):
    """The weights of a net.

    Attributes:
        tensors: By their names in the file.
        path: The file.
        sha256: Of the file.
        is_published: Whether that is the hash of the published file, by its beginning.
    """

    tensors: dict[str, torch.Tensor]
    path: Path
    sha256: str
    is_published: bool


class MissingWeightsError(MissingDependencyError):
    """The weights of a metric net are nowhere, and could not be fetched."""


def find_weights(
    net: Net,
    given: Path | None,
    *,
    may_download: bool,
    quiet: bool,
    on_step: Callable[[str], None] = lambda step: None,
) -> Weights:
    """Find and load the weights of a net.

    In this order: the file that was given, the environment variable, torch's cache of downloads,
    the lpips package where it is installed, a download.

    Args:
        net: Which.
        given: The file that an option named.
        may_download: Whether to fetch what is not there.
        quiet: Whether to draw no progress bar.
        on_step: Called with what is being done.

    Raises:
        MissingWeightsError: They are nowhere, or cannot be fetched.
        InputError: A file is there and cannot be read.
    """
    path = _place_of(net, given)
    if not path.is_file():
        if not may_download:
            raise _missing(net, "it is not in torch's cache, and downloads are off")
        on_step(f"downloading the weights of {net.name} from {net.url}")
        _download(net, path, quiet=quiet)
    on_step(f"reading the weights of {net.name}")
    return _load(net, path)


def check_weights(net: Net, given: Path | None = None) -> None:
    """Check that the weights of a net are there or can be fetched, without loading them.

    Args:
        net: Which.
        given: The file that an option named.

    Raises:
        MissingWeightsError: They are nowhere, or the server that has them does not answer.
    """
    if _place_of(net, given).is_file():
        return
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(net.url, method="HEAD"), timeout=_PATIENCE):
            pass
    except (OSError, ValueError, HTTPException) as error:
        raise _missing(net, f"it is not in torch's cache, and cannot be fetched ({error})") from (
            error
        )


def _place_of(net: Net, given: Path | None) -> Path:
    """Tell where the weights are, or where a download would put them.

    Raises:
        MissingWeightsError: A file that was named is not there.
    """
    named = given or os.environ.get(net.variable)
    if named:
        if not Path(named).is_file():
            raise _missing(net, f"{named} is not there")
        return Path(named)
    import torch

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if net is LPIPS_HEADS:
        return _shipped_heads() or cache / "lpips-v0.1-vgg.pth"
    return cache / net.file_name


def _shipped_heads() -> Path | None:
    """Find the heads in the lpips package, without importing it: that needs torchvision."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "weights" / "v0.1" / "vgg.pth"
        if path.is_file():
            return path
    return None


def _missing(net: Net, reason: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"weights missing: {net.name} ({', '.join(net.serves)}): {reason}",
        hint=f"fetch {net.url} and name it with {net.option}, or set {net.variable}",
    )


def _download(net: Net, target: Path, *, quiet: bool) -> None:
    import torch

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            net.url, str(target), hash_prefix=net.sha256_prefix, progress=not quiet
        )
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # network; another hash
        raise _missing(net, f"it could not be fetched ({error})") from error


def _load(net: Net, path: Path) -> Weights:
    """Read a file of weights as any file from a stranger."""
    with open_checkpoint(path) as checkpoint:
        sha256 = hash_bytes(checkpoint.sources[0])
        tensors = {
            name: load_row(Row(name, tensor, tensor.shape, tensor.dtype))
            for name, tensor in checkpoint.tensors.items()
        }
    if not tensors:
        raise InputError(f"no weights of {net.name} in it", where=str(path))
    return Weights(tensors, path, sha256, sha256.startswith(net.sha256_prefix))
