"""stdout and stderr of other encodings, closed or full: never an internal error after the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = Path(sys.executable).with_name("vaeconv")
SAMPLES = Path(__file__).parents[2] / "fixtures"
NAMES = ("größe ☃", "caf\udce9")  # beyond ASCII, and no text at all


def run_in(shell: str, *args: str | Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command with the shell's redirections behind it."""
    said = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", ENTRY, *args],
        capture_output=True,
        env={**said, "OMP_NUM_THREADS": "1", **env},
        timeout=120,
        check=False,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(SAMPLES / "tiny-kl.safetensors", tmp_path / "tiny.safetensors"))


@pytest.mark.parametrize("name", NAMES, ids=["letters", "surrogate"])
@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "latin-1", "C"],
)
def test_what_an_encoding_lacks_is_escaped(env, name, checkpoint, tmp_path):
    source = checkpoint.rename(tmp_path / f"{name}.safetensors")
    for command in (
        ["inspect", source],
        ["convert", "--overwrite", "--scaling-factor", "1", source, tmp_path / f"{name} out"],
        ["prune", "--overwrite", source, tmp_path / f"{name} out.safetensors"],
        ["verify", "--weights-only", source, tmp_path / f"{name} out.safetensors"],
        ["card", "--check", tmp_path / name],
        ["convert", "--dry-run", tmp_path / name, tmp_path / "out"],
    ):
        done, codes = run_in("", *command, **env), (0, 3, 4)
        assert done.returncode in codes, (command, done.stderr)
        assert b"internal error" not in done.stderr and done.stdout + done.stderr
        done = run_in("", *command, "--json", **env)
        assert done.returncode in codes, (command, done.stderr)
        assert isinstance(json.loads(done.stdout.decode("ascii")), dict)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        (">&-", 0, b""),
        (">&- 2>&- <&-", 0, b""),
        ("2>/dev/full", 0, b""),
        (">/dev/full", 5, b"error: standard output: cannot be written: No space left on device\n"),
        ("| true", 141, b""),
        ("2>&1 | true", 141, b""),
    ],
)
@pytest.mark.parametrize(
    "args",
    [["inspect"], ["inspect", "--json"], ["convert"]],
    ids=["text", "json", "new"],
)
def test_streams_that_are_closed_or_full(shell, code, said, args, checkpoint, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    rest = ["--scaling-factor", "1", tmp_path / "out"] if "convert" in args else []
    done = run_in(shell + '; exit "${PIPESTATUS[0]}"', *args, checkpoint, *rest)
    stderr = b"".join(line for line in done.stderr.splitlines(True) if line[:5] == b"error")
    assert (done.returncode, stderr) == (code, said)
    assert not rest or (tmp_path / "out" / "config.json").is_file()


def test_no_file_takes_the_number_of_a_closed_stream(checkpoint, tmp_path):
    """Else a message would be written into the output."""
    for number, shell in enumerate(("", ">&- 2>&-")):
        done = run_in(shell, "convert", checkpoint, tmp_path / str(number))
        assert done.returncode == 0
    one, other = (tmp_path / name / "diffusion_pytorch_model.safetensors" for name in "01")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("args", [["--help"], ["convert", "--help"]])
def test_help_for_a_reader_that_goes_away(args):
    assert run_in('| true; exit "${PIPESTATUS[0]}"', *args).returncode == 141
    assert run_in(">/dev/full", *args).returncode == 5
