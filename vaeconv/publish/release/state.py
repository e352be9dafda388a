"""Progress of a release: the inputs of each step and the files that it wrote, as hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint import system
from vaeconv.checkpoint.tree import stays_inside
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.errors import CheckFailedError, OutputError
from vaeconv.publish.files import hash_file

_STATE = "state.json"


class Done(NamedTuple):
    """A step that was done.

    Attributes:
        inputs: Hash of what decided its result; None while it is being done again.
        outputs: Hash of each file that it wrote, by path in the release's folder.
        facts: What there was to say of it.
    """

    inputs: str | None
    outputs: dict[str, str]
    facts: dict[str, Any]


class State:
    """Progress of a release in a folder; kept in a file there.

    Args:
        folder: The release's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes: dict[tuple[Path, int, int, int], str] = {}
        self._steps = _read(folder / _STATE)

    def get(self, name: str) -> Done | None:
        """Return what a step did; None if it never ran."""
        return self._steps.get(name)

    def begin(self, name: str) -> None:
        """Note that a step's files are neither what they were nor what they will be."""
        if known := self.get(name):
            self._steps[name] = known._replace(inputs=None)
            self._write()

    def retire(self, name: str, kept: Iterable[Path]) -> None:
        """Remove what a step wrote before and will not write again; what people changed stays."""
        known = self.get(name)
        before = known.outputs if known else {}
        for path in before.keys() - {self._name_of(one) for one in kept}:
            file = self._folder / path
            if file.is_file() and self._sha256(file, fresh=True) == before[path]:
                file.unlink()

    def end(self, name: str, inputs: str, outputs: Sequence[Path], facts: dict[str, Any]) -> None:
        """Note what a step did, and remove what it wrote before and does no longer."""
        self.retire(name, outputs)
        hashes = {self._name_of(path): self._sha256(path, fresh=True) for path in outputs}
        self._steps[name] = Done(inputs, hashes, facts)
        self._write()

    def forget(self, name: str) -> None:
        """Remove what a step wrote that is not wanted any more."""
        if name in self._steps:
            self.retire(name, ())
            del self._steps[name]
            self._write()

    def stands(self, name: str) -> bool:
        """Tell whether a step's files are all there.

        Raises:
            CheckFailedError: One is there and is not what the step wrote.
        """
        for path, sha256 in self._steps[name].outputs.items():
            file = self._folder / path
            if not file.exists():
                return False
            if self._sha256(file) != sha256:
                raise CheckFailedError(
                    f"was changed after the step {name} wrote it",
                    where=str(file),
                    hint=f"remove it, or make it again with --from {name}",
                )
        return True

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _sha256(self, path: Path, *, fresh: bool = False) -> str:
        status = path.stat()
        key = path, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if fresh or key not in self._hashes:
            self._hashes[key] = hash_file(path, path.name).sha256
        return self._hashes[key]

    def _write(self) -> None:
        document = {name: step._asdict() for name, step in self._steps.items()}
        data = dump_json(document, indent=1, sort_keys=True).encode() + b"\n"
        replace_small_file(self._folder / _STATE, data, durable=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep other releases out of a folder; gives whether it is there.

    Raises:
        OutputError: Another one is being made there.
    """
    if not folder.is_dir():
        yield False
        return
    with ExitStack() as lock:
        try:
            lock.enter_context(system.locked(folder.resolve()))
        except BlockingIOError as error:
            raise OutputError(
                "another release is being made here",
                where=str(folder),
                hint="wait until it is done",
            ) from error
        except OSError:  # nothing can be locked here
            pass
        yield True


def _read(path: Path) -> dict[str, Done]:
    """Read the steps that were done; none where there is no such file, so that all are done."""
    try:
        found = json.loads(path.read_bytes())
        steps = {name: Done(**step) for name, step in found.items()}
        return steps if all(map(_is_whole, steps.values())) else {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _is_whole(step: Done) -> bool:
    """Whether a step that was read is one that was written, and of files in the folder."""
    return (
        isinstance(step.inputs, str | None)
        and isinstance(step.facts, dict)
        and all(map(stays_inside, step.outputs.keys()))
    )
