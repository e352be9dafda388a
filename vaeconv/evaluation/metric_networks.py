"""Weights of the nets that metrics need: where they are looked for, checked, and fetched from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.errors import InputError, MissingDependencyError
from vaeconv.models.load import load_row
from vaeconv.weights.plan import Row

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 20
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
    named = given or (Path(os.environ[net.variable]) if os.environ.get(net.variable) else None)
    if named is not None:
        if not named.is_file():
            raise _missing(net, f"{named} is not there")
        return named
    if net is LPIPS_HEADS:
        return _shipped_heads() or _cache() / "lpips-v0.1-vgg.pth"
    return _cache() / net.file_name


def _cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


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
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    with open_checkpoint(path) as checkpoint:
        tensors = {
            name: load_row(Row(name, tensor, tensor.shape, tensor.dtype))
            for name, tensor in checkpoint.tensors.items()
        }
    if not tensors:
        raise InputError(f"no weights of {net.name} in it", where=str(path))
    sha256 = digest.hexdigest()
    return Weights(tensors, path, sha256, sha256.startswith(net.sha256_prefix))
