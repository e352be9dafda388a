"""An open checkpoint of any container: names, lazy tensors, and other facts of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from vaeconv.checkpoint.source import ByteSource
from vaeconv.checkpoint.tensor import Tensor


class ConfigText(NamedTuple):
    """A config that came with the weights, unparsed.

    Attributes:
        name: Where it was found.
        text: JSON or YAML.
    """

    name: str
    text: str


class Sibling(NamedTuple):
    """Something in the file beside the state dict, such as optimizer states.

    Attributes:
        name: Key at the top of the file.
        kind: What it is, in words.
        tensors: Number of tensors in it.
        nbytes: Their bytes.
    """

    name: str
    kind: str
    tensors: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class Checkpoint:
    """An open checkpoint; nothing of the weights is loaded, nothing in it was executed.

    Attributes:
        name: The file or folder as the user named it.
        container: ``torch zip``, ``torch legacy``, ``safetensors``, ``diffusers folder``, …
        tensors: The state dict: tensor name to lazy tensor, in file order.
        sources: The open files.
        wrapper: Keys that lead from the top of the file to the state dict.
        non_tensors: Entries of the state dict that are not tensors: name to kind.
        metadata: The ``__metadata__`` of a safetensors header.
        config: The config that came along, unparsed.
        globals: Dotted names in the pickle, with their verdict, in order of appearance.
        variant: The variant whose file was read (``fp16``), where the folder has variants.
        read_siblings: Lists what else is in the file; walks the unpickled values.
        beside: Prefixes of the state dicts beside the proper one.
        nameless: Lists of tensors that an EMA without names left: keys that lead there, and how
            many tensors.
        run_facts: Options, names and steps of the run of ``vaeconv finetune`` that wrote it.

    Example:
        >>> with open_checkpoint("fixtures/tiny-kl.ckpt") as checkpoint:
        ...     tensor = checkpoint.tensors["decoder.conv_in.weight"]
        >>> checkpoint.container, tensor.dtype.torch_name, tensor.shape
        ('torch zip', 'float16', (32, 4, 3, 3))
    """

    name: str
    container: str
    tensors: Mapping[str, Tensor]
    sources: tuple[ByteSource, ...]
    wrapper: tuple[str, ...] = ()
    non_tensors: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: ConfigText | None = None
    globals: tuple[tuple[str, str], ...] = ()
    variant: str | None = None
    read_siblings: Callable[[], tuple[Sibling, ...]] = tuple
    beside: tuple[str, ...] = ()
    nameless: Mapping[str, int] = field(default_factory=dict)
    run_facts: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(source.size for source in self.sources)

    @property
    def is_folder(self) -> bool:
        """True for a diffusers folder, of which the config is a part."""
        return self.container.startswith("diffusers folder")

    def check_unchanged(self) -> None:
        """Check that no file changed since it was opened.

        Raises:
            MalformedCheckpointError: One did.
        """
        for source in self.sources:
            source.check_unchanged()

    def close(self) -> None:
        """Close the files."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
