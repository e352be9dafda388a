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


class Network(NamedTuple):
    """A metric network, and where its weights come from.

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


INCEPTION = Network(
    "inception",
    "--inception-weights",
    "VAECONV_INCEPTION_WEIGHTS",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    ("rfid",),
)
VGG = Network(
    "vgg16",
    "--vgg-weights",
    "VAECONV_VGG_WEIGHTS",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
    ("psim", "lpips"),
)
LPIPS_LINEAR = Network(
    "lpips linear weights",
    "--lpips-weights",
    "VAECONV_LPIPS_WEIGHTS",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0f",  # as in lpips 0.1.4
    ("lpips",),
)
NETWORKS = (INCEPTION, VGG, LPIPS_LINEAR)


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
        named = {one: path for one, path in zip(NETWORKS, paths, strict=True) if path is not None}
        why = "no metric of --metrics uses them"
        refuse_idle(
            Rule(one.option, True, not {*metrics}.isdisjoint(one.serves), why) for one in named
        )
        return {network.name: path for network, path in named.items()}


class Weights(NamedTuple):
    """The weights of a network.

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
    """The weights of a metric network are nowhere, and could not be fetched."""


def find_weights(
    network: Network,
    given: Path | None,
    *,
    may_download: bool,
    quiet: bool,
    on_step: Callable[[str], None] = lambda step: None,
) -> Weights:
    """Find and load the weights of a network.

    In this order: the file that was given, the environment variable, torch's cache of downloads,
    the lpips package where it is installed, a download.

    Args:
        network: Which.
        given: The file that an option named.
        may_download: Whether to fetch what is not there.
        quiet: Whether to draw no progress bar.
        on_step: Called with what is being done.

    Raises:
        MissingWeightsError: They are nowhere, or cannot be fetched.
        InputError: A file is there and cannot be read.
    """
    path = _place_of(network, given)
    if not path.is_file():
        if not may_download:
            raise _missing(network, "it is not in torch's cache, and downloads are off")
        on_step(f"downloading the weights of {network.name} from {network.url}")
        _download(network, path, quiet=quiet)
    on_step(f"reading the weights of {network.name}")
    return _load(network, path)


def check_weights(network: Network, given: Path | None = None) -> None:
    """Check that the weights of a network are there or can be fetched, without loading them.

    Args:
        network: Which.
        given: The file that an option named.

    Raises:
        MissingWeightsError: They are nowhere, or the server that has them does not answer.
    """
    if _place_of(network, given).is_file():
        return
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(network.url, method="HEAD"), timeout=_PATIENCE):
            pass
    except (OSError, ValueError, HTTPException) as error:
        raise _missing(
            network, f"it is not in torch's cache, and cannot be fetched ({error})"
        ) from (error)


def _place_of(network: Network, given: Path | None) -> Path:
    """Tell where the weights are, or where a download would put them.

    Raises:
        MissingWeightsError: A file that was named is not there.
    """
    named = given or os.environ.get(network.variable)
    if named:
        if not Path(named).is_file():
            raise _missing(network, f"{named} is not there")
        return Path(named)
    import torch

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if network is LPIPS_LINEAR:
        return _shipped_linear_weights() or cache / "lpips-v0.1-vgg.pth"
    return cache / network.file_name


def _shipped_linear_weights() -> Path | None:
    """Find them in the lpips package, without importing it: that needs torchvision."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "weights" / "v0.1" / "vgg.pth"
        if path.is_file():
            return path
    return None


def _missing(network: Network, reason: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"weights missing: {network.name} ({', '.join(network.serves)}): {reason}",
        hint=f"fetch {network.url} and name it with {network.option}, or set {network.variable}",
    )


def _download(network: Network, target: Path, *, quiet: bool) -> None:
    import torch

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            network.url, str(target), hash_prefix=network.sha256_prefix, progress=not quiet
        )
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # network; another hash
        raise _missing(network, f"it could not be fetched ({error})") from error


def _load(network: Network, path: Path) -> Weights:
    """Read a file of weights as any file from a stranger."""
    with open_checkpoint(path) as checkpoint:
        sha256 = hash_bytes(checkpoint.sources[0])
        tensors = {
            name: load_row(Row(name, tensor, tensor.shape, tensor.dtype))
            for name, tensor in checkpoint.tensors.items()
        }
    if not tensors:
        raise InputError(f"no weights of {network.name} in it", where=str(path))
    return Weights(tensors, path, sha256, sha256.startswith(network.sha256_prefix))
