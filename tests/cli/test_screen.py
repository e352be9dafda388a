"""What a person sees: at 60, 80 and 120 columns, with and without colours, and through a pipe."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import typer

from vaeconv.cli.group import COMMANDS, app
from vaeconv.cli.screen import Table, wrap

ROOT = Path(__file__).parents[2]
ENTRY = Path(sys.executable).with_name("vaeconv")
CKPT, ATTN = "fixtures/tiny-kl.ckpt", "fixtures/tiny-attn.ckpt"
CODES = re.compile(r"\x1b\[[0-9;]*m")

# One of each screen: facts, tables, verdicts, notes, errors, hashes, a batch.
SCREENS = {
    "inspect": ["inspect", "--verbose", "--keys", CKPT],
    "convert": ["convert", CKPT, "{}/out"],
    "dry run": ["convert", "--dry-run", "--verbose", CKPT, "{}/out"],
    "prune": ["prune", "--ema", CKPT, "{}/ema.safetensors"],
    "batch": ["prune", "--ema", "--out-dir", "{}", CKPT, ATTN],
    "verify": ["verify", "--weights-only", CKPT, ATTN],
    "error": ["convert", "nowhere.ckpt", "{}/out"],
    "release": ["release", "{}/nowhere.toml"],
}


def see(columns: int, args: list[str], **env: str) -> str:
    """Run a command on a terminal of a width; gives all that appears on it."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    settings = {**os.environ, "TERM": "xterm-256color", **env}
    for name in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"} - env.keys():
        settings.pop(name, None)
    with subprocess.Popen(
        [ENTRY, *args], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=settings
    ):
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 1 << 16):
                seen += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
    return seen.decode().replace("\r\n", "\n")


def through_a_pipe(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **env}
    return subprocess.run(
        [ENTRY, *args], capture_output=True, text=True, check=True, cwd=ROOT, env=settings
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("screen", SCREENS)
def test_no_line_is_wider_than_the_terminal(screen: str, columns: int, tmp_path: Path) -> None:
    args = [arg.format(tmp_path) for arg in SCREENS[screen]]
    text = CODES.sub("", see(columns, args))
    assert text.strip()
    for line in text.splitlines():
        # A name or a hash that is longer than the terminal is wide stays in one piece, and so does
        # a command that is to be copied.
        is_whole = len(line.split()) == 1 or line.startswith("next: ")
        assert len(line) <= columns or is_whole, line


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_a_help_fits_and_cuts_no_name(command: str, columns: int) -> None:
    text = CODES.sub("", see(columns, [*([command] if command else []), "--help"]))
    told, _, examples = text.partition("\nExamples:\n")
    assert not [line for line in told.splitlines() if len(line) > columns]
    assert not re.search(r"(?m)^  \S*…", told)
    words = set(re.split(r"[\s,/]+", told))
    single: Any = typer.main.get_command(app)
    if command:
        single = single.get_command(None, command)
    for parameter in single.params:
        assert {*parameter.opts, *parameter.secondary_opts} <= words or parameter.metavar in told
    assert bool(examples) == bool(command)


def test_a_verdict_comes_first_and_in_colour(tmp_path: Path) -> None:
    known = ("--scaling-factor", "0.5")
    for args, first in (
        ([CKPT, CKPT, *known], "\x1b[1;32mpassed: A and B are the same autoencoder"),
        ([CKPT, ATTN, *known], "\x1b[1;31mFAILED: A and B are not the same autoencoder"),
        ([CKPT, CKPT], "\x1b[1;33mpassed, but not everything was proved"),
    ):
        seen = see(80, ["verify", "--weights-only", *args])
        # A slow machine draws a progress bar before.
        assert first in seen and "tensors" not in seen[: seen.index(first)]
    assert "\x1b[1;31merror:\x1b[0m" in see(80, ["inspect", "nowhere.ckpt"])


def test_each_command_names_the_one_that_follows(tmp_path: Path) -> None:
    """On a terminal; each can be run as it is, up to the push."""
    out, meta = tmp_path / "the out", tmp_path / "card.toml"
    meta.write_text('license = "mit"\nrepo_id = "user/vae"\n')
    line = f"vaeconv convert --ema --scaling-factor 0.18215 {CKPT} '{out}'"
    for command, *more in (
        ("convert",),
        ("verify", "--weights-only", "--report", str(out / "parity.json")),
        ("card", "--meta", str(meta)),
    ):
        words = shlex.split(line)
        assert words[:2] == ["vaeconv", command]
        seen = CODES.sub("", see(60, [*words[1:], *more]))
        (line,) = re.findall(r"^next: (.*)$", seen, re.MULTILINE)
    assert shlex.split(line) == ["vaeconv", "push", str(out), "user/vae", "--dry-run"]


@pytest.mark.parametrize(
    "args",
    [
        ["--ema", CKPT, "{}/p.safetensors"],
        ["--variant", "fp16", "fixtures/tiny-diffusers", "{}/out"],  # which the source has not
    ],
)
def test_what_follows_a_pruning_passes(args: list[str], tmp_path: Path) -> None:
    seen = CODES.sub("", see(80, ["prune", *(one.format(tmp_path) for one in args)]))
    _, *words = shlex.split(re.findall(r"^next: (.*)$", seen, re.MULTILINE)[0])
    assert through_a_pipe(*words, "--weights-only").stderr.count("next:") == 0


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "--dry-run", CKPT, "out"],
        ["convert", "--quiet", CKPT, "{}/out"],
        ["convert", "--json", CKPT, "{}/out"],
        ["convert", "--drop", "x*", CKPT, "{}/out"],
        ["verify", "--weights-only", CKPT, ATTN, "--report", "{}/report.json"],
    ],
)
def test_nothing_follows_what_is_not_done(args: list[str], tmp_path: Path) -> None:
    assert "next:" not in see(80, [arg.format(tmp_path) for arg in args])


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_declined(env: dict[str, str], tmp_path: Path) -> None:
    assert "\x1b[" not in see(80, ["inspect", CKPT], **env)


def test_a_pipe_gets_whole_lines_without_colours() -> None:
    for env in ({}, {"COLUMNS": "80", "LINES": "24"}):
        done = through_a_pipe("inspect", CKPT, **env)
        assert "\x1b[" not in done.stdout + done.stderr
        (note,) = done.stderr.splitlines()
        assert note.startswith("warning: ") and len(note) > 120


def test_columns_alone_are_what_the_user_wants() -> None:
    done = through_a_pipe("inspect", CKPT, COLUMNS="60")
    assert max(map(len, (done.stdout + done.stderr).splitlines())) <= 60


def test_lines_are_broken_between_words_only() -> None:
    path = "/".join(["a-long-name"] * 9)
    assert wrap(f"  {path} and more", 40) == [f"  {path}", "    and more"]
    assert wrap("short", 40) == ["short"]
    assert wrap("one two three four five six seven", None) == ["one two three four five six seven"]


def test_a_table_that_does_not_fit_becomes_paragraphs() -> None:
    table = Table(("name", "size", "sha256"), [("a", "1 kB", "f" * 64), ("b", "-", "")])
    assert table.lines(100)[0].split() == ["name", "size", "sha256"]
    assert table.lines(60) == [
        "  name:",
        "  a",
        "    size 1 kB, sha256",
        "      " + "f" * 64,
        "  b",
    ]


def test_the_last_column_is_broken_where_that_is_enough() -> None:
    table = Table(("", ""), [("result", "word " * 20), ("other", "x")], last_left=True)
    lines = table.lines(50)
    assert len(lines) == 4 and all(len(line) <= 50 for line in lines)
    assert lines[1].startswith(" " * 10 + "word") and lines[3] == "  other   x"
