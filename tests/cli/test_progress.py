"""Progress on a terminal: what is seen, when, and that nothing else draws there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.runs import FOLDER, KL, SIZE, environment, write_tiles
from tests.support.terminal import Shown, run_in_terminal
from vaeconv.checkpoint.hub.client import hidden_bars
from vaeconv.models.load import load_folder

# rich is there already: how long its import takes depends on the machine.
HEAD = """
import sys, time
import rich.console, rich.progress
from vaeconv.cli.progress import ByteProgress, StepProgress
"""


def drawn(code: str, columns: int = 60) -> Shown:
    shown = run_in_terminal([sys.executable, "-c", HEAD + code], columns=columns, env=environment())
    assert shown.code == 0, shown.text
    return shown


def test_a_step_that_says_nothing_more_is_seen_within_a_second() -> None:
    shown = drawn("""
with StepProgress(enabled=True) as steps:
    print("begun", flush=True)
    steps.advance("importing torch", 0, 1)
    time.sleep(2.5)
""")
    assert 0.3 < shown.seen_at("importing torch") - shown.seen_at("begun") < 1.5
    assert "0:01" in shown.text  # it moves
    assert "0/1" not in shown.text


def test_what_is_done_at_once_draws_nothing() -> None:
    shown = drawn("""
with StepProgress(enabled=True) as steps, ByteProgress("fetching", enabled=True) as fetching:
    steps.advance("quick", 0, 1)
    fetching.advance(10, 100)
""")
    assert shown.raw == ""


def test_counts_grow_and_the_display_goes() -> None:
    shown = drawn("""
with StepProgress(enabled=True) as steps:
    for done in range(13):
        steps.advance("measuring images", done, 12)
        time.sleep(0.15)
print("the end")
""")
    assert "measuring images" in shown.text
    counts = [int(found) for found in re.findall(r"(\d+)/12", shown.text)]
    assert counts == sorted(counts)
    assert counts[-1] >= 11
    assert " left" in shown.text
    assert shown.lines[-2:] == ["the end", ""]
    assert shown.raw.count("\x1b[?25l") == shown.raw.count("\x1b[?25h")  # the cursor is back


def test_two_kinds_of_progress_share_one_display() -> None:
    shown = drawn("""
with ByteProgress("fetching", enabled=True) as fetching, StepProgress(enabled=True) as steps:
    steps.advance("opening a model", 0, 1)
    for _ in range(10):
        fetching.advance(1_000_000, 10_000_000)
        time.sleep(0.15)
""")
    assert "fetching" in shown.text and "opening a model" in shown.text
    assert "/10.0 MB" in shown.text
    assert shown.raw.count("\x1b[?25l") == 1  # of one display


@pytest.mark.parametrize("columns", [60, 80])
def test_lines_fit_and_names_stay_text(columns: int) -> None:
    shown = drawn(
        """
with StepProgress(enabled=True) as steps:
    steps.advance("loading [bold]x[/bold] \\x1b[31m" + "long" * 40, 0, 1)
    time.sleep(1)
    for done in range(5):
        steps.advance("measuring images", done, 5000)
        time.sleep(0.4)
""",
        columns,
    )
    assert "[bold]" in shown.text
    assert "\\x1b[31m" in shown.text or "…" in shown.text
    assert "\x1b[31mlong" not in shown.raw
    assert max(map(len, shown.lines)) <= columns
    assert any(re.search(r"measuring images .*/5000", line) for line in shown.lines)


def test_nothing_is_drawn_into_a_file() -> None:
    code = HEAD + (
        "with StepProgress(enabled=True) as steps:\n"
        "    steps.advance('slow', 0, 1)\n"
        "    time.sleep(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(), check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


FOREIGN = re.compile(r"it/s|Loading|Fetching|\bWARNING\b|Warning|diffusers\.|transformers\.")


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_commands_say_what_they_do_and_name_every_file(command: str, tmp_path: Path) -> None:
    photos = write_tiles(tmp_path / "photos", 3)
    out, page = tmp_path / ("e.json" if command == "eval" else "m"), tmp_path / "x.html"
    metrics = ("--metrics", "psnr") if command == "eval" else ()
    shown = run_in_terminal(
        [Path(sys.executable).with_name("vaeconv"), command, KL, FOLDER, "--images", photos,
         "--size", SIZE, "--device", "cpu", "--out", out, "--html", page, *metrics],
        columns=200, env=environment(),
    )  # fmt: skip
    assert shown.code == 0, shown.text
    assert "importing torch and diffusers" in shown.text
    assert not FOREIGN.search(shown.text)
    named = [line.removeprefix("wrote ") for line in shown.lines if line.startswith("wrote ")]
    expected = [page]
    expected += [out] if command == "eval" else list(out.iterdir())
    assert sorted(named) == sorted(map(str, expected))


def test_diffusers_draws_nothing_while_it_loads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL.from_pretrained(FOLDER).save_pretrained(tmp_path, max_shard_size="200KB")
    AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert "Loading checkpoint shards" in capfd.readouterr().err  # what would be seen
    load_folder(tmp_path, None)
    assert capfd.readouterr().err == ""
    AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert "Loading checkpoint shards" in capfd.readouterr().err  # others have their bars again


def test_the_hub_clients_bars_are_hidden_until_the_last_block_ends() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    assert not are_progress_bars_disabled()
    with hidden_bars():
        with hidden_bars():
            assert are_progress_bars_disabled()
        assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()
