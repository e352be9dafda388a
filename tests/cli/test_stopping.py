"""Ctrl-C and its kin at any moment: the exit code, one line, and no temporary left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vaeconv.common import leftovers

if not hasattr(signal, "SIGHUP"):
    pytest.skip("needs the signals of POSIX", allow_module_level=True)

ENTRY = Path(sys.executable).with_name("vaeconv")
SAMPLES = Path(__file__).parents[2] / "fixtures"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

# Sends a signal when a module is imported, and twice where that is wanted.
_SITE = """
import os, sys
name, number, times = {name!r}, {number}, {times}
def hook(event, args):
    global times
    while event == "import" and args[0] == name and times:
        times -= 1
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
"""
_BEGAN = """
import sys
def hook(event, args):
    if event == "import" and args[0] == "vaeconv.cli.stopping":
        open({path!r}, "w").close()
sys.addaudithook(hook)
"""
# An extension that makes another error of whatever happens while it is imported.
_EXTENSION = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        time.sleep(0.01)
except BaseException as error:
    raise ImportError("initialisation failed") from error
"""


def listen() -> None:
    """Whoever started the tests may have made their processes deaf to signals."""
    for number, _ in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(place: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENTRY, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
        preexec_fn=listen,
    )


def assert_stopped(done: subprocess.CompletedProcess[str], code: int = 130) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    "name", ["typer", "vaeconv.cli.group", "vaeconv.cli.declare", "vaeconv.weights.convert"]
)
def test_a_stop_during_an_import(name, number, code, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_SITE.format(name=name, number=number, times=1))
    source = SAMPLES / "tiny-kl.ckpt"
    assert_stopped(run(tmp_path, "convert", source, tmp_path / "out"), code)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("times", [2, 5])
def test_more_stops_than_one(times, tmp_path):
    site = _SITE.format(name="vaeconv.weights.execute", number=signal.SIGINT, times=times)
    (tmp_path / "sitecustomize.py").write_text(site)
    assert_stopped(run(tmp_path, "convert", SAMPLES / "tiny-kl.ckpt", tmp_path / "out"))


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_an_extension_that_makes_another_error_of_a_stop(module, tmp_path):
    (tmp_path / f"{module}.py").write_text(_EXTENSION)
    source = SAMPLES / "tiny-kl.ckpt"
    assert_stopped(run(tmp_path, "verify", source, source))


def test_a_stop_that_was_to_be_ignored(tmp_path):
    """As in a shell's background job, or under nohup."""
    site = _SITE.format(name="vaeconv.weights.convert", number=signal.SIGINT, times=1)
    ignore = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    (tmp_path / "sitecustomize.py").write_text(ignore + site)
    done = run(tmp_path, "convert", SAMPLES / "tiny-kl.ckpt", tmp_path / "out")
    assert done.returncode == 0 and (tmp_path / "out" / "config.json").is_file()


def test_stops_over_the_life_of_a_command(tmp_path):
    """From our first import on, either the run is complete, or it is as if it had not been."""
    source, outcomes = SAMPLES / "tiny-kl.ckpt", set()
    began = tmp_path / "began"
    (tmp_path / "sitecustomize.py").write_text(_BEGAN.format(path=str(began)))
    for step in range(12):
        target = tmp_path / "out" / str(step)
        target.parent.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [ENTRY, "convert", "-q", source, target],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            text=True,
            preexec_fn=listen,
        )
        while not began.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.015 * step)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        began.unlink()
        outcomes.add(process.returncode)
        assert out == "" and process.returncode in (0, 130), err
        assert err.count("\n") == (process.returncode != 0), err
        assert process.returncode or (target / "config.json").is_file()
        assert not list(target.parent.glob(".vaeconv-*"))
    assert 130 in outcomes


def test_a_scratch_folder_is_removed_by_a_stop():
    with leftovers.scratch_folder() as folder:
        (folder / "file").write_bytes(b"1")
        assert folder.parent == Path(tempfile.gettempdir())
        leftovers.remove_all()
        assert not folder.exists()
