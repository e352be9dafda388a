"""Autoencoders as running models, each in its own layout, without a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.autoencoder.config import Scaling
from vaeconv.autoencoder.topology import Layout, Topology
from vaeconv.checkpoint.dtypes import BY_TORCH_NAME
from vaeconv.common.leftovers import utf8_path
from vaeconv.errors import CheckFailedError, UsageError
from vaeconv.models.devices import import_torch
from vaeconv.weights.plan import Row
from vaeconv.weights.zeros import ZeroWatch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


class Model(NamedTuple):
    """A running autoencoder.

    Attributes:
        module: ``CompVisAutoencoder`` or ``diffusers.AutoencoderKL``, in evaluation mode.
        layout: Which of them.
        loader: How it was loaded, in words.
    """

    module: Any
    layout: Layout
    loader: str

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``[b, in, h, w]`` from -1 to 1 to moments ``[b, 2z, h/f, w/f]``.

        Raises:
            UsageError: They are too small.
        """
        with _running(images, "picture"):
            if self.layout is Layout.COMPVIS:
                moments: torch.Tensor = self.module.encode(images)
            else:
                moments = self.module.encode(images).latent_dist.parameters
            return moments

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Map unscaled latents ``[b, z, h, w]`` to images ``[b, out, f*h, f*w]``.

        Raises:
            UsageError: They are too small.
        """
        with _running(latents, "latent"):
            if self.layout is Layout.COMPVIS:
                images: torch.Tensor = self.module.decode(latents)
            else:
                images = self.module.decode(latents, return_dict=False)[0]
            return images

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and cast the weights, in place."""
        import torch

        # Not the model's own method: diffusers' warns of modules to keep in fp32, and lists none.
        torch.nn.Module.to(self.module, device=device, dtype=dtype)


@contextmanager
def _running(data: torch.Tensor, what: str) -> Iterator[None]:
    """Run a model on data, and say what torch means where a normalised group has one value only.

    ``_verify_batch_size`` in ``torch/nn/functional.py`` refuses that, in diffusers as well.
    """
    from vaeconv.models.half import fp32_sums

    try:
        with fp32_sums(data):
            yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = data.shape[2:]
        raise UsageError(
            f"a {what} of {height}x{width} is too small for this autoencoder: its normalisation "
            "needs more than one value in a group",
            hint=f"take a larger {what}",
        ) from error


def unscale(latent: npt.NDArray[np.float32], scaling: Scaling) -> npt.NDArray[np.float32]:
    """Turn what a diffusion model sees into what a decoder takes, in float32.

    ``z / scaling_factor + shift_factor``, and with statistics per channel ``z * std /
    scaling_factor + mean`` (``StableDiffusionXLPipeline.__call__`` in diffusers).
    """
    import numpy as np

    wide = latent.astype(np.float64)
    if scaling.latents_std and scaling.latents_mean:
        std, mean = (
            np.asarray(values).reshape(-1, 1, 1)
            for values in (scaling.latents_std, scaling.latents_mean)
        )
        wide = wide * std / scaling.scaling_factor + mean
    else:
        wide = wide / scaling.scaling_factor + (scaling.shift_factor or 0.0)
    return wide.astype(np.float32)


def load_row(row: Row) -> torch.Tensor:
    """Load one tensor of a plan, in its output's shape and dtype.

    Where the file holds exactly its bytes, the tensor is a view of the mapped file.
    """
    import torch

    source = row.source
    stored = getattr(torch, source.dtype.torch_name)
    if not source.nbytes:
        return torch.empty(row.shape, dtype=stored)
    data: memoryview | bytearray | None = None
    at = source.storage.data_offset() + source.offset if source.is_direct else 1
    if at % source.dtype.itemsize == 0:
        data = source.storage.source.map(at, source.nbytes)
    if data is None:
        data = bytearray(source.nbytes)
        source.open().read_into(memoryview(data))
    tensor = torch.frombuffer(data, dtype=stored).reshape(row.shape)
    return tensor.to(getattr(torch, row.dtype.torch_name))


def load_compvis(topology: Topology, rows: Iterable[Row]) -> Model:
    """Load weights under their CompVis names, all of them and no others, in fp32."""
    import torch

    from vaeconv.models.compvis import CompVisAutoencoder

    with torch.device("meta"):
        module = CompVisAutoencoder(topology)
    _assign(module, rows)
    return Model(module.eval(), Layout.COMPVIS, "CompVis modules, strict")


def load_diffusers(config: Mapping[str, Any], rows: Iterable[Row]) -> Model:
    """Load weights under their diffusers names into the model of a config, in fp32."""
    import torch

    autoencoder = import_torch()
    with torch.device("meta"):
        module = autoencoder.from_config(dict(config))
    _assign(module, rows)
    return Model(module.eval(), Layout.DIFFUSERS, "AutoencoderKL.from_config, strict")


def load_folder(folder: Path, variant: str | None) -> Model:
    """Load a local diffusers folder as its users do, in fp32.

    Raises:
        CheckFailedError: diffusers cannot load it, or leaves weights out or at random.
    """
    import torch

    autoencoder = import_torch()
    try:
        with quiet_diffusers(), utf8_path(folder) as place:
            module, info = autoencoder.from_pretrained(
                place,
                variant=variant,
                torch_dtype=torch.float32,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckFailedError(
            f"diffusers cannot load it: {type(error).__name__}: {error}", where=str(folder)
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise CheckFailedError(
                f"diffusers finds {what.replace('_', ' ')} in it, such as {next(iter(info[what]))}",
                where=str(folder),
            )
    return Model(module, Layout.DIFFUSERS, "AutoencoderKL.from_pretrained")


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' warnings and its progress bars out of ours, inside the block."""
    from diffusers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def check_module(module: torch.nn.Module, where: str) -> None:
    """Check the weights of a module in fp32, on the CPU, for what an unfinished download leaves.

    Raises:
        ZeroWeightsError: Weights are zero that no training leaves so.
    """
    watch = ZeroWatch()
    for name, tensor in module.state_dict().items():
        data = tensor.contiguous().numpy().tobytes()
        watch.expect(name, name, tensor.shape, len(data))
        watch.look(name, 0, data, 0, len(data), BY_TORCH_NAME["float32"])
    watch.check(where)


def _assign(module: torch.nn.Module, rows: Iterable[Row]) -> None:
    import torch

    weights = {row.name: load_row(row).to(torch.float32) for row in rows}
    module.load_state_dict(weights, strict=True, assign=True)
