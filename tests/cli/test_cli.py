"""The command line: what goes where, exit codes, and what is never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from vaeconv import __version__
from vaeconv.cli import app

FIXTURES = Path(__file__).parents[2] / "fixtures"
CKPT = str(FIXTURES / "tiny-kl.ckpt")
ENTRY = Path(sys.executable).with_name("vaeconv")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_entry(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ENTRY), *map(str, args)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_converts_through_the_installed_entry_point_and_back(tmp_path):
    out, back = tmp_path / "out", tmp_path / "back.safetensors"
    first = run_entry("convert", CKPT, out, "--scaling-factor", "0.5")
    second = run_entry("convert", out, back)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "120 tensors" in first.stdout
    assert "EMA weights for 66 of 120" in first.stderr
    assert json.loads((out / "config.json").read_text())["scaling_factor"] == 0.5
    assert len(load_file(back)) == 120


def test_module_runs_like_the_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "vaeconv", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"vaeconv {__version__}"


@pytest.mark.parametrize("command", [[], ["inspect"], ["convert"], ["prune"]])
def test_help_has_examples_for_each_command(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: vaeconv" in result.stdout.replace("root", "vaeconv")
    assert ("Examples:" in result.stdout) == bool(command)


def test_no_arguments_print_the_help_and_no_error():
    result = run()
    assert result.exit_code == 2
    assert "convert" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["convert", CKPT], 2, "Missing argument"),
        (["convert", "--bogus", CKPT, "out"], 2, "--bogus"),
        (["convret", CKPT, "out"], 2, "did you mean convert?"),
        (["frobnicate"], 2, "see vaeconv --help"),
        (["convert", "--dtype", "fp8", CKPT, "out"], 2, "fp8"),
        (["convert", "--family", "sd9", CKPT, "{tmp}/out"], 2, "sd9"),
        (["convert", "{tmp}/nothing.ckpt", "{tmp}/out"], 3, "No such file"),
        (["inspect", "{tmp}"], 3, "diffusion_pytorch_model"),
        (["convert", CKPT, "{tmp}/no/such/folder/out"], 5, "mkdir -p"),
        (["convert", CKPT, CKPT], 5, "is the input itself"),
        (["convert", "hf://onlyname", "{tmp}/out"], 2, "hf://"),
    ],
)
def test_errors_are_one_line_on_stderr_with_their_exit_code(args, code, said, tmp_path):
    result = run(*(arg.format(tmp=tmp_path) for arg in args))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_json_reports_success_and_failure_in_one_document(tmp_path):
    good = run("convert", "--json", CKPT, tmp_path / "out")
    bad = run("convert", "--json", CKPT, tmp_path / "out")
    usage = run("convert", "--json", "--bogus")
    document = json.loads(good.stdout)
    assert (good.exit_code, document["ok"], document["schema_version"]) == (0, True, 1)
    assert {"source", "output", "ema", "dropped", "config", "files", "notes"} <= document.keys()
    assert document["dropped"] == {"ema": 76, "loss": 16}
    assert good.stderr == ""
    failure = json.loads(bad.stdout)
    assert (bad.exit_code, failure["ok"]) == (5, False)
    assert failure["error"]["type"] == "OutputExistsError"
    assert json.loads(usage.stdout)["error"]["exit_code"] == 2


def test_json_is_clean_where_a_ci_forces_colours(tmp_path):
    done = run_entry("inspect", "--json", CKPT, GITHUB_ACTIONS="true", FORCE_COLOR="1")
    assert "\x1b" not in done.stdout
    assert json.loads(done.stdout)["layout"] == "compvis"


def test_inspect_prints_its_report_and_then_why_convert_would_refuse(tmp_path):
    state_dict = load_file(FIXTURES / "tiny-kl.safetensors")
    del state_dict["decoder.conv_in.bias"]
    broken = tmp_path / "broken.safetensors"
    save_file(state_dict, broken)
    result = run("inspect", broken)
    document = json.loads(run("inspect", "--json", broken).stdout)
    assert result.exit_code == 3
    assert "safetensors" in result.stdout
    assert "decoder.conv_in.bias" in result.stderr
    assert document["error"]["type"] == "UnmappedKeysError"


def test_inspect_lists_every_key_with_its_other_name():
    document = json.loads(run("inspect", "--json", "--keys", CKPT).stdout)
    roles = {key["name"]: key["role"] for key in document["keys"]}
    assert roles["encoder.norm_out.weight"] == "encoder.conv_norm_out.weight"
    assert roles["loss.logvar"] == "(loss)"
    assert document["ema"]["autoencoder_tensors"] == 66


def test_inspect_names_what_the_pickle_would_have_imported():
    text = run("inspect", "--verbose", CKPT).stdout
    assert "ModelCheckpoint" in text
    assert "optimizer_states" in text


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    result = run("convert", "--dry-run", "--verbose", CKPT, tmp_path / "out")
    assert result.exit_code == 0
    assert "encoder.conv_norm_out.weight <- encoder.norm_out.weight" in result.stdout
    assert not list(tmp_path.iterdir())


def test_quiet_prints_nothing_on_success(tmp_path):
    result = run("convert", "-q", CKPT, tmp_path / "out")
    assert (result.exit_code, result.output) == (0, "")


def test_verbose_adds_the_traceback_to_an_error(tmp_path):
    assert "Traceback" in run("convert", "-v", tmp_path / "nothing", tmp_path / "out").stderr


def test_an_internal_error_is_one_line_and_exit_code_1(tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("vaeconv.weights.convert.convert", fail)
    result = run("convert", CKPT, tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: internal error: ZeroDivisionError: planted")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("prefix", ["first_stage_model", "first_stage_model."])
def test_a_prefix_may_be_given_without_its_dot(prefix, tmp_path):
    out = tmp_path / "out.safetensors"
    run("convert", "-q", "--prefix", prefix, CKPT, out)
    assert all(name.startswith("first_stage_model.") for name in load_file(out))


def test_names_from_a_file_cannot_reach_the_terminal_as_control_characters(tmp_path):
    state_dict = load_file(FIXTURES / "tiny-kl.safetensors")
    state_dict["decoder.\x1b[31mred\nline"] = state_dict["quant_conv.bias"].clone()
    path = tmp_path / "evil.safetensors"
    save_file(state_dict, path)
    result = run("convert", path, tmp_path / "out")
    assert result.exit_code == 3
    assert "\x1b" not in result.output
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_goes_away_is_no_bug(form, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [str(ENTRY), "inspect", "--keys", *form, CKPT], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_commands_that_move_weights_import_neither_torch_nor_diffusers(tmp_path):
    script = """
import sys
from vaeconv.cli import app
source, folder, file = sys.argv[1:]
for args in (
    ["--help"], ["inspect", source], ["convert", "-q", source, folder], ["prune", source, file]
):
    try:
        app(args)
    except SystemExit as done:
        assert not done.code, args
sys.exit(", ".join(sorted({"torch", "diffusers", "transformers"} & sys.modules.keys())) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, CKPT, tmp_path / "out", tmp_path / "out.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
