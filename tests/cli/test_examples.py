"""Every example in every ``--help`` runs as it is printed, in a folder that has what it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.make_reference import examples_of
from tests.evaluation.runs import variables_of, write_nets
from tests.publish.pushes import contents_of, small_hub
from tests.support.example_workplace import BASE, make_workplace, sign
from tests.support.loopback_hub import LoopbackHub
from tests.support.slow import some_slow
from vaeconv.cli.group import COMMANDS, app

BIN = Path(sys.executable).parent
GROUP: Any = typer.main.get_command(app)
EXAMPLES = {name: examples_of(GROUP.get_command(None, name)) for name in COMMANDS}
ALL = [example for examples in EXAMPLES.values() for example in examples]

FEW = {"verify-signature": "there is one thing to do with a signature"}
# What stands before an example for whoever follows the help, where the workplace has another.
BEFORE = {
    "vaeconv verify --family sdxl sdxl_vae.safetensors out/": (
        "vaeconv convert --family sdxl --overwrite sdxl_vae.safetensors out/"
    ),
    "vaeconv release --until card": "rm release.toml; vaeconv release --init",
}
# Each takes seconds: left to make test-all.
SLOW = (
    "vaeconv verify --ema --dtype fp16 last.ckpt ema.safetensors",
    "vaeconv verify --family sdxl sdxl_vae.safetensors out/",
    "vaeconv verify --report parity.json --html parity.html last.ckpt out/",
    "vaeconv verify out/ --drop-in-for hf://stabilityai/sd-vae-ft-mse",
    "vaeconv latents photos/ refs.safetensors --model out/",
    "vaeconv verify --latents refs.safetensors last.ckpt out/",
    "vaeconv finetune last.ckpt --ema --recipe ft-mse --data photos/ --out run/ --steps 1",
    "torchrun --nproc-per-node 8 -m vaeconv finetune out/ --data photos --out run --steps 9 "
    "--dry-run",
    "vaeconv eval last.ckpt out/ --images val2017/ --out eval.json",
    "vaeconv eval last.ckpt --raw-and-ema --images photos/ --out eval.json --html eval.html",
    "vaeconv eval out/ --images hf://datasets/owner/name/val.zip --out eval.json",
    "vaeconv eval --models models.toml --images val2017.zip --out eval.json --format markdown",
    "torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json",
    "vaeconv compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/",
    "vaeconv compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/",
    "vaeconv release --until card",
)  # fmt: skip
WRITERS = ("convert", "prune")  # their last argument is what they write
OUTPUT_OPTIONS = ("--out", "--report", "--html")


def outputs_of(example: str) -> list[str]:
    """The files that an example writes, which are not there before it."""
    words = shlex.split(example)
    if words[:2] == ["vaeconv", "latents"]:
        return [words[3]]
    if "--dry-run" in words and "finetune" in words:
        return []
    if words[:3] == ["vaeconv", "release", "--init"]:
        return ["release.toml"]
    if words[1] in WRITERS and "--out-dir" not in words:  # that folder has to be there
        return [words[-1]]
    return [words[at + 1] for at, word in enumerate(words) if word in OUTPUT_OPTIONS]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "workplace"
    make_workplace(folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables that name random weights of the metric networks."""
    return variables_of(write_nets(tmp_path_factory.mktemp("networks")))


@pytest.fixture
def hub(workplace: Path) -> Iterator[LoopbackHub]:
    with small_hub() as hub:
        hub.create_repo("stabilityai/sd-vae-ft-mse", contents_of(workplace / BASE))
        images = (workplace / "val2017.zip").read_bytes()
        hub.create_repo("datasets/owner/name", {"val.zip": images})
        hub.create_repo("user/my-vae", {"README.md": b"---\nlicense: mit\n---\n# My VAE\n"})
        yield hub


def run(line: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "example", some_slow(ALL, SLOW), ids=[one.removeprefix("vaeconv ") for one in ALL]
)
def test_it_runs(
    example: str, workplace: Path, hub: LoopbackHub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, home = tmp_path / "workplace", tmp_path / "home"
    shutil.copytree(workplace, folder)
    (home / ".config/fish/completions").mkdir(parents=True)  # fish makes it when it starts
    more = {"HOME": str(home), "PROFILE": str(home / "profile.ps1")}
    if "vaeconv eval" in example or "finetune" in example:
        more |= request.getfixturevalue("networks")
    if "verify-signature" in example:
        if find_spec("model_signing") is None:
            pytest.skip("model-signing is not installed")
        sign(folder / "out", folder / "publisher.pub")
    env = hub.env(home / "hub", PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", **more)
    if before := BEFORE.get(example):
        done = run(before, folder, env)
        assert done.returncode == 0, done.stderr
    for output in outputs_of(example):
        path = folder / output
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    done = run(example, folder, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not hub.unserved
    for output in outputs_of(example):
        assert (folder / output).exists(), output
    if example.startswith("vaeconv verify "):
        assert done.stdout.startswith("passed: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_prints_those_that_run(command: str) -> None:
    env = {**os.environ, "COLUMNS": "300"}
    said = run(f"{shlex.quote(str(BIN / 'vaeconv'))} {command} --help", BIN, env).stdout
    printed = re.findall(r"^ +(\S.*?) *$", said.partition("Examples:")[2], re.M)
    assert printed == EXAMPLES[command]


def test_every_command_has_two_examples_or_a_reason() -> None:
    assert all(EXAMPLES.values())
    assert {name for name, examples in EXAMPLES.items() if len(examples) < 2} == FEW.keys()


def test_what_stands_before_an_example_has_one() -> None:
    assert BEFORE.keys() <= set(ALL)
