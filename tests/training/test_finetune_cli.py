"""``vaeconv finetune`` as a command: what it prints, its document, its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.runs import environment, run
from tests.training.runs import BASE, IMAGES
from vaeconv.cli.render import finetune as render
from vaeconv.cli.render.finetune import record_line
from vaeconv.training import loss as losses
from vaeconv.training.options import RECIPES

TINY = ("--data", IMAGES, "--lpips", 0, "--size", 16, "--batch-size", 2, "--device", "cpu",
        "--workers", 0, "--log-every", 1)  # fmt: skip


def finetune(out: Path, *args: object) -> Any:
    return run("finetune", BASE, "--out", out, *TINY, *args)


def test_it_says_what_it_does_and_how_it_ends(tmp_path: Path) -> None:
    done = finetune(tmp_path / "run", "--steps", 2, "--val", IMAGES, "--val-every", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"fine-tuned {BASE}: 2 steps of 2 images, 1 passes over 4")
    assert f"wrote {tmp_path / 'run' / 'last.ckpt'}" in done.stdout
    lines = " ".join(done.stderr.split())
    for said in ("step 0: PSNR base", "step 1: loss", "(pixel", "gradient", "lr 0.0001",
                 "images/s", "B, 0 s left", "raw", "EMA", "dB"):  # fmt: skip
        assert said in lines, said
    again = finetune(tmp_path / "run", "--steps", 2, "--val", IMAGES, "--val-every", 1)
    assert again.exit_code == 0 and "all steps were taken before" in again.stdout


def test_its_document_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    done = finetune(tmp_path / "run", "--steps", 1, "--json")
    found = json.loads(done.stdout)
    assert found["ok"] and found["step"] == 1 and found["steps_taken"] == 1
    assert found["checkpoint"] == str(tmp_path / "run" / "last.ckpt") and not done.stderr
    dry = json.loads(finetune(tmp_path / "dry", "--steps", 1, "--json", "--dry-run").stdout)
    assert dry["dry_run"] and not (tmp_path / "dry").exists()


def test_nan_ends_with_exit_code_4_and_names_step_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = losses.reconstruction_loss
    monkeypatch.setattr(
        losses, "reconstruction_loss",
        lambda images, decoded, **how: real(images, decoded * torch.nan, **how),
    )  # fmt: skip
    done = finetune(tmp_path / "run", "--steps", 1)
    assert done.exit_code == 4
    assert "NaN or infinity in step 1, in the loss of" in done.stderr and ".png" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--precision", "fp16"), 2, "--precision is fp16, in which LPIPS is not finite"),
        (("--size", "17"), 2, "use --size 16"),
        (("--recipe", "ft-mae"), 2, "did you mean ft-mse"),
        (("--data", "nowhere"), 3, "no such folder"),
        (("--adversarial-start", "3"), 2, "--adversarial is 0"),
    ],
)
def test_what_is_wrong_is_said(args: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = finetune(tmp_path / "run", "--steps", 1, *args)
    assert done.exit_code == code and said in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = run("finetune", BASE, "--out", tmp_path / "run", "--steps", 1, "--data",
               tmp_path / "none", "--lpips", 0)  # fmt: skip
    assert done.exit_code == 3 and "no images in it" in done.stderr


def test_without_accelerate_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from vaeconv.cli import main; sys.argv[0] = 'vaeconv'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "finetune", str(BASE), "--data", str(IMAGES), "--out",
         str(tmp_path / "run"), "--steps", "1"],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 7 and "pip install 'vaeconv[train]'" in done.stderr


def test_the_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom vaeconv.cli.group import app\n"
        "try:\n    app(['finetune', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'accelerate', 'diffusers', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--gradient-checkpointing" in done.stdout


def test_a_line_says_all_that_a_record_has() -> None:
    record = {
        "step": 7, "loss": 0.5, "pixel": 0.25, "lpips": 0.25, "adversarial": -0.1,
        "adversarial_weight": 5000.0, "discriminator": 1.0, "grad_norm": 1234.5, "lr": 1e-4,
        "now": {"images_per_second": 38.4, "memory": 20_000_000_000, "seconds_left": 93_784.0,
                "unreadable": 2},
    }  # fmt: skip
    assert record_line(record) == (
        "step 7: loss 0.5 (pixel 0.25, lpips 0.25, adversarial -0.1, its weight 5000, "
        "discriminator 1), gradient 1.23e+03, lr 0.0001, 38.4 images/s, 20.0 GB, 2 unreadable, "
        "1 d 2 h left"
    )
    left = [("seconds_left", 5.0, "5 s"), ("seconds_left", 65.0, "1 min 5 s"),
            ("seconds_left", 7300.0, "2 h 1 min")]  # fmt: skip
    for name, value, said in left:
        now = {**record["now"], name: value}  # type: ignore[dict-item]
        assert record_line({**record, "now": now}).endswith(f"{said} left")


def test_the_page_has_the_recipes_and_every_field_of_a_line() -> None:
    page = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text(encoding="utf-8")
    for name, (pixel, weight) in RECIPES.items():
        assert re.search(rf"^\| `{name}`.*\| {pixel.upper()} \| {weight} \|$", page, re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", page.split("| field of `metrics.jsonl`")[1]))
    assert {"step", "loss", "grad_norm", "lr", "now", "val", *render._PARTS} <= told
