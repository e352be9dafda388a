"""Several processes train one decoder, and killed ones go on: as programs, as users start them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.evaluation.runs import start, torchrun
from tests.training.runs import (
    BASE,
    IMAGES,
    RAW,
    assert_same_runs,
    differences,
    load,
    metrics_of,
    train,
)
from vaeconv.errors import UsageError
from vaeconv.evaluation.distributed import World
from vaeconv.training.engine import check_processes

# What tests.training.runs has, as options of the command.
TINY = ("--data", IMAGES, "--lpips", 0, "--size", 16, "--device", "cpu", "--workers", 0,
        "--log-every", 1, "--lr", 1e-3)  # fmt: skip


def assert_near_runs(one: Path, other: Path) -> None:
    """What is trained, its EMA and its optimizer are equal to the bit."""
    for part in ("state_dict", "optimizer_states"):
        found, expected = (load(run / "last.ckpt")[part] for run in (one, other))
        assert differences(found, expected) == []


def test_two_processes_are_one_that_accumulates_two(tmp_path: Path) -> None:
    """Each step's gradient is half of one sum and half of the other, which no rounding changes."""
    args = ("vaeconv", "finetune", BASE, "--out", tmp_path / "two", "--steps", 4, *TINY,
            "--batch-size", 2, "--save-every", 2, "--expect-world-size", 2, "--val", IMAGES,
            "--val-every", 2)  # fmt: skip
    done = torchrun(2, *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine-tuned") == 1 and done.stderr.count("step 1: loss") == 1
    train(tmp_path / "one", 4, accumulate=2, val=str(IMAGES), val_every=2)
    assert_near_runs(tmp_path / "two", tmp_path / "one")
    two, one = (metrics_of(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for mine, theirs in zip(two, one, strict=True):
        if "val" in mine:
            assert mine == theirs
        else:
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"])
    # What two began, one ends.
    train(tmp_path / "two", 5, accumulate=2, val=str(IMAGES), val_every=2)
    train(tmp_path / "one", 5, accumulate=2, val=str(IMAGES), val_every=2)
    assert_near_runs(tmp_path / "two", tmp_path / "one")


def test_processes_with_a_discriminator_hold_the_same_weights(tmp_path: Path) -> None:
    """They are compared when they are saved."""
    args = ("vaeconv", "finetune", RAW, "--out", tmp_path / "run", "--steps", 2, *TINY,
            "--size", 32, "--batch-size", 1, "--adversarial", 0.5, "-q")  # fmt: skip
    done = torchrun(2, *args)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 2


def test_processes_that_do_not_see_each_other_are_an_error() -> None:
    check_processes(2, World(0, 2))
    with pytest.raises(UsageError, match=r"that were started: 2; that see each other: 1"):
        check_processes(1, World(0, 2))
    with pytest.raises(UsageError, match=r"that were started: 1; that see each other: 2"):
        check_processes(2, World())


def test_a_launcher_that_starts_fewer_is_an_error(tmp_path: Path) -> None:
    process = start("finetune", BASE, "--out", tmp_path / "run", "--steps", 1, *TINY,
                    "--expect-world-size", 2, module="vaeconv")  # fmt: skip
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and "processes that run: 1; expected: 2" in said


def run_until(run: Path, steps: int, workers: int, at: float | None) -> subprocess.Popen[str]:
    """Start the command; kill it after some seconds, or while a checkpoint is written."""
    process = start("finetune", BASE, "--out", run, "--steps", steps, *TINY, "--batch-size", 2,
                    "--save-every", 2, "--workers", workers, "--quiet", module="vaeconv",
                    OMP_NUM_THREADS="1")  # fmt: skip
    begun = time.monotonic()
    before = len(list(run.glob("step-*.ckpt")))
    while process.poll() is None:
        if at is None:  # a temporary beside checkpoints is one that is being written
            is_time = any(path.stat().st_size > 0 for path in writing(run))
        else:
            is_time = len(list(run.glob("step-*.ckpt"))) > before
        if is_time or time.monotonic() - begun > 200:
            time.sleep(at or 0)
            process.kill()
            break
        time.sleep(0.0005)
    process.communicate(timeout=300)
    return process


def writing(run: Path) -> list[Path]:
    found = []
    for path in run.glob(".vaeconv-*"):
        try:
            path.stat()
        except OSError:
            continue
        found.append(path)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_five_kills_and_the_same_end(tmp_path: Path, workers: int) -> None:
    steps, run = 40, tmp_path / "run"
    drawn = random.Random(workers)
    for number in range(5):
        process = run_until(run, steps, workers, None if number == 2 else drawn.random() / 2)
        if process.returncode == 0:  # a quick machine
            break
        assert process.returncode == -signal.SIGKILL
        assert all(load(path)["global_step"] for path in run.glob("*.ckpt"))
    process = start("finetune", BASE, "--out", run, "--steps", steps, *TINY, "--batch-size", 2,
                    "--save-every", 2, "--workers", workers, module="vaeconv",
                    OMP_NUM_THREADS="1")  # fmt: skip
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not writing(run)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    train(tmp_path / "whole", steps)
    assert_same_runs(run, tmp_path / "whole")
