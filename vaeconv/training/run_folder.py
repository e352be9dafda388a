"""The folder of a run: what it is of, its checkpoints, its metrics; one run writes into it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from vaeconv.checkpoint import system
from vaeconv.checkpoint.writers.atomic import MARK, link_file, replace_small_file, staged_file
from vaeconv.checkpoint.writers.writable import make_folder, translated
from vaeconv.common.json_text import dump_json
from vaeconv.errors import OutputError, OutputExistsError
from vaeconv.evaluation.partial_results import OtherRunError

SCHEMA_VERSION = 1
_STEP = re.compile(r"step-(\d{9})\.(?:ckpt|png)")
_PATIENCE = 10.0  # seconds that a run which is ending has to let go of its folder


class RunFolder(AbstractContextManager["RunFolder"]):
    """The folder of one run.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.ckpt"
        self._about, self._metrics = path / "run.json", path / "metrics.jsonl"
        self._sheets = path / "val"
        self._held = ExitStack()

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def check(self, run: Mapping[str, Any], *, restart: bool) -> None:
        """Check that the folder is free, or that what lies there is of this same run.

        Args:
            run: What decides what a run computes, as plain data.
            restart: Whether another run's may lie there, too.

        Raises:
            OtherRunError: It is of another run.
            OutputExistsError: It holds something else.
        """
        with translated(self.path):
            if not self._about.exists():
                if self.path.exists() and not _is_free(self.path):
                    raise OutputExistsError(
                        "holds something else than a run", where=str(self.path),
                        hint="name a new folder",
                    )  # fmt: skip
                return
            try:
                before = dict(json.loads(self._about.read_bytes())["run"])
            except (ValueError, TypeError, KeyError):
                before = {}
        now = json.loads(dump_json(run))
        if before != now and not restart:
            names = [name for name in now if before.get(name) != now[name]]
            raise OtherRunError(
                f"is another run (other {', '.join(names).replace('_', ' ')})",
                where=str(self.path),
                hint="name another --out, or discard that run with --restart",
            )

    def begin(self, run: Mapping[str, Any], facts: Mapping[str, Any], *, restart: bool) -> None:
        """Make the folder, take hold of it until the end, and write down what it is of.

        Args:
            run: As for :meth:`check`, which this does once more.
            facts: What else is worth knowing.
            restart: Remove what an earlier run left.

        Raises:
            OutputError: It cannot be written, or another process is training into it.
        """
        make_folder(self.path)
        self._hold()
        self.check(run, restart=restart)
        with translated(self.path):
            if restart:
                for path in (self.last, *self._written()):
                    path.unlink(missing_ok=True)
            about = {"schema_version": SCHEMA_VERSION, "run": run, "facts": facts}
            replace_small_file(self._about, dump_json(about).encode() + b"\n", durable=False)

    def _hold(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._held.enter_context(system.locked(self.path.resolve()))
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputError(
                        "another run is training into it",
                        where=str(self.path),
                        hint="end it, or start all processes with torchrun or accelerate launch",
                    ) from None
            time.sleep(0.1)

    def _written(self) -> list[Path]:
        """List what a run leaves for its steps: checkpoints and sheets."""
        found = (*self.path.glob("step-*.ckpt"), *self._sheets.glob("step-*.png"))
        return sorted(path for path in found if _STEP.fullmatch(path.name))

    def sheet(self, step: int) -> Path:
        """Name the sheet of a validation; its folder is made."""
        with translated(self._sheets):
            self._sheets.mkdir(exist_ok=True)
        return self._sheets / f"step-{step:09d}.png"

    def go_on_from(self, step: int | None) -> None:
        """Drop the lines of metrics that came after a checkpoint; all where there was none."""
        kept = []
        with translated(self._metrics):
            lines = self._metrics.read_bytes().split(b"\n") if self._metrics.exists() else []
            for line in lines[:-1] if step is not None else []:
                try:
                    if json.loads(line)["step"] > step:
                        break
                except (ValueError, TypeError, KeyError):
                    break
                kept.append(line + b"\n")
        replace_small_file(self._metrics, b"".join(kept), durable=False)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Write one line of metrics.

        Raises:
            OutputError: It cannot be written.
        """
        with translated(self._metrics), self._metrics.open("ab") as file:
            file.write(dump_json(record, indent=None).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that is there has its metrics

    def save(self, checkpoint: Mapping[str, Any], step: int, keep: int) -> Path:
        """Write a checkpoint whole or not at all, and remove the oldest beyond some.

        Raises:
            OutputError: It cannot be written; what was there is left.
        """
        import torch

        path = self.path / f"step-{step:09d}.ckpt"
        with (
            staged_file(path, overwrite=True, durable=True) as fd,
            translated(path),
            open(fd, "wb", closefd=False) as file,
        ):
            try:
                torch.save(dict(checkpoint), file)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(str(error).split("\n")[0]) from error
        link_file(path, self.last)
        with translated(self.path):
            checkpoints = [one for one in self._written() if one.suffix == path.suffix]
            for old in checkpoints[:-keep]:
                old.unlink(missing_ok=True)
        return path


def _is_free(path: Path) -> bool:
    """Tell whether there is nothing in a folder but what a process that was killed left."""
    return path.is_dir() and all(one.name.startswith(MARK) for one in path.iterdir())
