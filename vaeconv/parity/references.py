"""Reference latents and pictures: the same on every machine, or from a file.

The built-in set is made of integers from PCG64, whose stream numpy promises to keep, by sums and
products that IEEE 754 rounds alike everywhere; normal variates and cosines are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.families import ASSUMED, BY_NAME, fitting_families
from vaeconv.autoencoder.topology import Topology
from vaeconv.checkpoint.source import FileSource
from vaeconv.common.leftovers import utf8_path
from vaeconv.errors import MalformedCheckpointError, UsageError, VaeconvError
from vaeconv.models.load import unscale

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    _Maker = Callable[[np.random.Generator, int, int], Any]

DECODE, ENCODE = "decode", "encode"
LATENT, PICTURE = "latent.", "image."
FILE_FORMAT = "vaeconv-latents-1"
_SEED = 840_001
_SIDE, _LARGE_SIDE = 128, 256  # pixels, of the built-in set
_MAX_LATENT = 32  # attention costs the fourth power of a latent's side
# sha256 of the set for 4 channels and factor 8; other shapes come from the same code.
_KNOWN_SET = "130a74e2aa70f2865f381eb81d3492036020c1f3526e90c5d5cbb1089d20ea6e"


class Reference(NamedTuple):
    """Something to decode, or to encode.

    Attributes:
        name: What to call it.
        data: float32: a latent ``[z, h, w]``, not scaled; or an image ``[c, h, w]`` from -1 to 1.
    """

    name: str
    data: Array


class ReferenceSet(NamedTuple):
    """Reference latents and images that both models run on.

    Attributes:
        source: Where it came from, in words.
        latents: To decode.
        images: To encode.
        sha256: Of all values, as float32 in this order.
    """

    source: str
    latents: tuple[Reference, ...]
    images: tuple[Reference, ...]

    def of(self, kind: str) -> tuple[Reference, ...]:
        """Give what is decoded, or encoded."""
        return self.latents if kind == DECODE else self.images

    @property
    def sha256(self) -> str:
        """Hash names, shapes and values."""
        digest = hashlib.sha256()
        for reference in (*self.latents, *self.images):
            digest.update(f"{reference.name}{list(reference.data.shape)}".encode())
            digest.update(reference.data.astype("<f4").tobytes())
        return digest.hexdigest()


def built_in_set(topology: Topology, scaling: Scaling) -> ReferenceSet:
    """Make the built-in set: noise, smooth fields, saturated values, and one that is not square.

    Args:
        topology: Decides channels and sizes.
        scaling: Latents have about unit variance once scaled, as a diffusion model sees them;
            this undoes the scaling, so that they are what a decoder takes.

    Raises:
        VaeconvError: This machine's numpy makes other values than all others.
    """
    canonical = _unit_latents(4, 8)
    if ReferenceSet("", canonical, ()).sha256 != _KNOWN_SET:
        raise VaeconvError(
            "numpy makes different reference latents here than elsewhere",
            hint="please report it with the version of numpy and the model of the processor",
        )
    factor = topology.downsampling
    latents = _unit_latents(topology.latent_channels, factor)
    return ReferenceSet(
        f"built-in set, seed {_SEED}, {describe_scaling(scaling)}",
        tuple(Reference(one.name, unscale(one.data, scaling)) for one in latents),
        _images(topology.in_channels, factor),
    )


def assume_scaling(topology: Topology) -> Scaling:
    """Take some scaling that the shapes allow: here it only decides how large latents are."""
    fitting = fitting_families(topology)
    if not fitting:
        return Scaling(1.0, source="no scaling is known")
    family = BY_NAME[ASSUMED] if BY_NAME[ASSUMED] in fitting else fitting[0]
    return Scaling(family.scaling_factor, family.shift_factor, source=f"as in {family.title}")


def describe_scaling(scaling: Scaling) -> str:
    """Say how latents were scaled."""
    shift = f" and shifted by {scaling.shift_factor:g}" if scaling.shift_factor else ""
    channels = " with statistics per channel" if scaling.latents_std else ""
    return f"divided by the scaling factor {scaling.scaling_factor:g}{shift}{channels}"


def _unit_latents(channels: int, factor: int) -> tuple[Reference, ...]:
    small, large = (max(1, min(_MAX_LATENT, side // factor)) for side in (_SIDE, _LARGE_SIDE))
    return _stacks(
        0,
        channels,
        ("noise", _noise, small, small),
        ("noise, large", _noise, large, large),
        ("smooth", _smooth, small, small),
        ("saturated", _saturated, small, small),
        ("not square", _noise, max(1, small // 2), small + small // 2),
    )


def _images(channels: int, factor: int) -> tuple[Reference, ...]:
    side = max(factor, min(_MAX_LATENT, _SIDE // factor) * factor)
    made = _stacks(
        100,
        channels,
        ("noise", _noise, side, side),
        ("smooth", _smooth, side, side),
        ("saturated", _saturated, side, side),
        ("not square", _smooth, max(factor, side // 2 // factor * factor), side + factor),
    )
    return tuple(Reference(one.name, _to_image(one.data)) for one in made)


def _to_image(values: Array) -> Array:
    """Bring values of unit variance into the 256 steps from -1 to 1 that an image has."""
    import numpy as np

    steps = np.clip(np.rint(values.astype(np.float64) * 64 + 127.5), 0, 255)
    return (steps / 127.5 - 1).astype(np.float32)


def _stacks(
    first: int, channels: int, *shapes: tuple[str, _Maker, int, int]
) -> tuple[Reference, ...]:
    """Make references, each with a number from the first one on that seeds it.

    Channels are made one after the other, so that their values don't depend on their number.
    """
    import numpy as np

    def make(index: int, maker: _Maker, height: int, width: int) -> Array:
        generators = (
            np.random.Generator(np.random.PCG64([_SEED, index, channel]))
            for channel in range(channels)
        )
        made = [maker(generator, height, width) for generator in generators]
        return np.stack(made).astype(np.float32)

    return tuple(
        Reference(name, make(index, maker, height, width))
        for index, (name, maker, height, width) in enumerate(shapes, first)
    )


def _noise(generator: np.random.Generator, height: int, width: int) -> Any:
    """Sum 12 uniform variates: mean 0, variance 1, and exact (Irwin-Hall)."""
    raw = generator.bit_generator.random_raw(12 * height * width) >> 40
    return raw.reshape(12, height, width).sum(axis=0) / 2.0**24 - 6.0


def _smooth(generator: np.random.Generator, height: int, width: int) -> Any:
    """Interpolate between 4 x 4 points of noise."""
    import numpy as np

    grid = _noise(generator, 4, 4) * 1.5
    rows, columns = (np.arange(size) * 3.0 / max(size - 1, 1) for size in (height, width))
    top, left = (np.minimum(at.astype(int), 2) for at in (rows, columns))
    down, right = (rows - top)[:, None], (columns - left)[None, :]
    upper = grid[top][:, left] * (1 - right) + grid[top][:, left + 1] * right
    lower = grid[top + 1][:, left] * (1 - right) + grid[top + 1][:, left + 1] * right
    return upper * (1 - down) + lower * down


def _saturated(generator: np.random.Generator, height: int, width: int) -> Any:
    """Set patches of 4 x 4 to +4 or -4, four deviations of what a diffusion model makes."""
    rows, columns = -(-height // 4), -(-width // 4)
    signs = (generator.bit_generator.random_raw(rows * columns) >> 63).reshape(rows, columns)
    patches = signs.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return patches * 8.0 - 4.0


def load_set(path: Path, topology: Topology) -> ReferenceSet:
    """Read a file of reference latents, as ``vaeconv latents`` writes it.

    Raises:
        CheckpointNotFoundError: It is not there, or not a regular file.
        MalformedCheckpointError: It is not such a file.
        UsageError: Its latents do not fit the autoencoder.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    latents, images = [], []
    FileSource(path).close()  # a pipe may never end
    try:
        with utf8_path(path) as place, safe_open(place, "np") as file:
            for name in sorted(file.keys()):
                if name.startswith(LATENT):
                    data = _to_float32(file.get_tensor(name))
                    latents.append(Reference(name[len(LATENT) :], data))
                elif name.startswith(PICTURE):
                    data = file.get_tensor(name)
                    images.append(Reference(name[len(PICTURE) :], from_uint8(data)))
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise MalformedCheckpointError(
            f"not a file of reference latents ({error})",
            where=str(path),
            hint="vaeconv latents writes one",
        ) from error
    if not latents:
        raise MalformedCheckpointError(
            f"no reference latents in it: no tensor is called {LATENT}…",
            where=str(path),
            hint="vaeconv latents writes such a file",
        )
    _check_shapes(latents, topology.latent_channels, 1, "latent", path)
    _check_shapes(images, topology.in_channels, topology.downsampling, "picture", path)
    for one in (*latents, *images):
        if not np.isfinite(one.data).all():
            raise MalformedCheckpointError(f"{one.name} holds NaN or infinity", where=str(path))
    return ReferenceSet(path.name, tuple(latents), tuple(images))


def _to_float32(data: Any) -> Array:
    import numpy as np

    if data.dtype.kind != "f":
        raise ValueError(f"a latent of {data.dtype}, not of floating point")
    with np.errstate(over="ignore"):  # what is too large is infinite, and found to be so
        values: Array = data.astype(np.float32)
    return values


def _check_shapes(
    references: Iterable[Reference], channels: int, factor: int, kind: str, path: Path
) -> None:
    for name, data in references:
        fits = data.ndim == 3 and data.shape[0] == channels and min(data.shape) > 0
        if not fits or data.shape[1] % factor or data.shape[2] % factor:
            raise UsageError(
                f"the {kind} {name} has the shape {list(data.shape)}; this autoencoder takes "
                f"{channels} channels" + (f" and multiples of {factor}" if factor > 1 else ""),
                where=str(path),
            )


def from_uint8(pixels: Any) -> Array:
    """Turn pixels ``[c, h, w]`` from 0 to 255 into values from -1 to 1."""
    import numpy as np

    if pixels.dtype != np.uint8:
        raise ValueError(f"an image of {pixels.dtype}, not uint8")
    values: Array = (pixels.astype(np.float64) / 127.5 - 1).astype(np.float32)
    return values


def batches(references: Sequence[Reference], size: int) -> Iterable[list[Reference]]:
    """Group references of one shape, at most ``size`` at a time, in order."""
    by_shape: dict[tuple[int, ...], list[Reference]] = {}
    for reference in references:
        by_shape.setdefault(reference.data.shape, []).append(reference)
    for group in by_shape.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
