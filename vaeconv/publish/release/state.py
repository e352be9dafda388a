"""Progress of a release: the inputs of each step and the files that it wrote, as hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint.tree import stays_inside
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.errors import CheckFailedError
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
        self._steps = self._read()

    def _read(self) -> dict[str, Done]:
        try:
            found = json.loads((self._folder / _STATE).read_bytes())
            steps = {name: Done(**step) for name, step in found.items()}
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # then everything is done again
            return {}
        return steps if all(map(_is_whole, steps.values())) else {}

    def _write(self) -> None:
        document = {name: step._asdict() for name, step in self._steps.items()}
        data = dump_json(document, indent=1, sort_keys=True).encode() + b"\n"
        replace_small_file(self._folder / _STATE, data, durable=True)

    def get(self, name: str) -> Done | None:
        """Return what a step did; None if it never ran."""
        return self._steps.get(name)

    def begin(self, name: str) -> None:
        """Note that a step's files are neither what they were nor what they will be."""
        known = self._steps.get(name)
        if known:
            self._steps[name] = known._replace(inputs=None)
            self._write()

    def retire(self, name: str, kept: Iterable[Path]) -> None:
        """Remove what a step wrote before and will not write again; what people changed stays."""
        self._remove_stale(name, {self.name_of(path) for path in kept})

    def end(self, name: str, inputs: str, outputs: Sequence[Path], facts: dict[str, Any]) -> None:
        """Note what a step did, and remove what it wrote before and does no longer."""
        self._remove_stale(name, {self.name_of(path) for path in outputs})
        hashes = {self.name_of(path): self._sha256(path, fresh=True) for path in outputs}
        self._steps[name] = Done(inputs, hashes, facts)
        self._write()

    def forget(self, name: str) -> None:
        """Remove what a step wrote that is not wanted any more."""
        if name in self._steps:
            self._remove_stale(name, set())
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

    def name_of(self, path: Path) -> str:
        """The path of a file in the release's folder."""
        return path.relative_to(self._folder).as_posix()

    def _remove_stale(self, name: str, kept: set[str]) -> None:
        before = self._steps[name].outputs if name in self._steps else {}
        for path in before.keys() - kept:
            file = self._folder / path
            # What people changed is theirs.
            if file.is_file() and self._sha256(file, fresh=True) == before[path]:
                file.unlink()

    def _sha256(self, path: Path, *, fresh: bool = False) -> str:
        status = path.stat()
        key = path, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if fresh or key not in self._hashes:
            self._hashes[key] = hash_file(path, path.name).sha256
        return self._hashes[key]


def _is_whole(step: Done) -> bool:
    """Whether a step that was read is one that was written, and of files in the folder."""
    return (
        (step.inputs is None or isinstance(step.inputs, str))
        and isinstance(step.outputs, dict)
        and all(stays_inside(path) for path in step.outputs)
        and isinstance(step.facts, dict)
    )
