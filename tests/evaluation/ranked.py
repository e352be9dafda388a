"""What test_ranks has two processes do; each writes what it found into a folder.

They are started as a launcher does, with a port for each time that they join::

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 python -m tests.evaluation.ranked FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.evaluation.runs import KL, SMALL, shrink_inception, spec
from vaeconv.errors import InputError, VaeconvError
from vaeconv.evaluation.distributed import World, join_world
from vaeconv.evaluation.evaluate import EvalOptions, evaluate
from vaeconv.evaluation.frechet import moments_of
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.partial_results import ShardWriter


def main(folder: Path) -> None:
    given = json.loads((folder / "given.json").read_text())
    weights = {name: Path(path) for name, path in given["nets"].items()}
    photos = Path(given["photos"])
    shrink_inception(setattr)

    def options(metrics: tuple[str, ...], **more: Any) -> EvalOptions:
        return EvalOptions(
            protocol=SMALL, metrics=metrics, weights=weights, device="cpu", workers=1, **more
        )

    def run(model: ModelSpec, parts: str, how: EvalOptions) -> dict[str, Any] | None:
        os.environ["MASTER_PORT"] = str(given["ports"].pop())
        return evaluate([model], photos, how, parts=folder / parts)

    os.environ["MASTER_PORT"] = str(given["ports"].pop())
    world = join_world(2)
    found = talk(world)

    everything = options(("rfid", "psnr", "ssim"))
    # Another process began; these go on.
    found["resumed"] = run(spec(KL), "begun", everything)
    found["one picture"] = run(spec(KL), "single", options(("psnr",), limit=1))
    found["refused"] = error_of(lambda: run(spec(KL, name="other"), "begun", everything))
    found["unread"] = error_of(lambda: run(spec(Path("none.ckpt")), "unread", everything))
    stop_after(1)
    try:
        run(spec(KL), "stopped", everything)
    except KeyboardInterrupt:
        found["stopped"] = True
    (folder / f"found-{world.rank}.json").write_text(json.dumps(found))


def talk(world: World) -> dict[str, Any]:
    """Use each of the ways by which processes exchange something."""
    rows = np.random.default_rng(5).normal(size=(7, 3)) * 1e3
    moments = world.merge(moments_of(rows[world.rank :: 2]))

    def fail() -> int:
        raise InputError("no good", where="here", hint="do otherwise")

    turns = []
    result = world.first_then_others(lambda: turns.append(world.rank) or world.rank + 10)
    return {
        "ranks": list(world),
        "first": world.is_first,
        "share": [world.share(range(length)) for length in (0, 1, 5)],
        "gather": world.gather({"rank": world.rank}),
        "number": moments.number,
        "total": moments.total.tolist(),
        "outer": moments.outer.tolist(),
        "turn": [result, turns],
        "failure": error_of(lambda: world.first_then_others(fail)),
    }


def error_of(work: Callable[[], Any]) -> list[Any]:
    try:
        work()
    except VaeconvError as error:
        return [error.exit_code, str(error)]
    return []


def stop_after(pictures: int) -> None:
    """Have every process stop, as a kill would, with one more row of features on disk."""
    real = ShardWriter.add
    count = 0

    def add(writer: ShardWriter, record: Any, features: Any = None) -> None:
        nonlocal count
        count += 1
        if count > pictures:
            writer._rows.write(features.tobytes())  # type: ignore[union-attr]
            raise KeyboardInterrupt
        real(writer, record, features)

    ShardWriter.add = add  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
