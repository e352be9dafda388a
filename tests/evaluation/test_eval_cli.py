"""What ``vaeconv eval`` takes, prints and writes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.evaluation.runs import (
    FOLDER,
    KL,
    RAW,
    ROOT,
    SIZE,
    Document,
    environment,
    run,
    run_eval,
    variables_of,
)
from tests.support.closeness import near_metric
from tests.support.samples import WEIGHTS
from vaeconv import __version__

NUMBER = r"-?\d+\.\d+"


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, networks: dict[str, Path]
) -> tuple[Path, Document]:
    """A result of two models with everything that can be said of them."""
    out = tmp_path_factory.mktemp("first") / "eval.json"
    result = run_eval(
        *(KL, RAW, "--images", photos, "--out", out, "--latent-stats", "--no-ema"),
        *("--name", "raw|fp16", "--name", "raw_fp32", "--train-steps", 246803),
        *("--link", "https://x.org/a", "--comment", "as <used>", "--comment", "50% & more"),
        metrics="lpips,psim,ssim,psnr",
        **variables_of(networks),
    )
    assert result.exit_code == 0, result.stderr
    return out, json.loads(out.read_text())


@pytest.fixture
def again(first: tuple[Path, Document], tmp_path: Path) -> Path:
    """A copy of that result, under its own name."""
    return Path(shutil.copy(first[0], tmp_path / "earlier.json"))


# --- the document ---


def test_the_document_says_everything(
    first: tuple[Path, Document], photos: Path, networks: dict[str, Path]
) -> None:
    out, document = first
    assert list(document) == [
        "schema_version", "command", "ok", "protocol", "pictures", "models", "not_computed",
        "nets", "run_sha256", "environment", "processes", "seconds", "per_picture",
    ]  # fmt: skip
    assert (document["schema_version"], document["command"], document["ok"]) == (1, "eval", True)
    assert document["protocol"] == {
        "name": "custom", "size": SIZE, "resize": "shorter-side", "filter": "bicubic",
        "posterior": "mode", "seed": 0, "rounds": True, "dtype": "fp32",
        "description": "shorter side to 32, bicubic, centre crop; posterior mode; clamped, "
        "rounded to uint8; fp32",
    }  # fmt: skip
    paths = sorted(photos.iterdir())
    sizes = "".join(f"{path.name}\0{path.stat().st_size}\n" for path in paths)
    hashes = "".join(
        f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths
    )
    assert document["pictures"] == {
        "name": "photos", "source": None, "number": 5, "skipped": {}, "left_out": [], "remarks": {},
        "beyond_limit": 0,
        "fingerprint": hashlib.sha256(sizes.encode()).hexdigest(),
        "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }  # fmt: skip
    run_file = Path(f"{out}.parts", "run.json")
    assert document["run_sha256"] == hashlib.sha256(run_file.read_bytes()).hexdigest()
    assert document["not_computed"] == {}
    assert document["nets"] == [
        {"name": name, "file": networks[name].name, "is_published": False,
         "sha256": hashlib.sha256(networks[name].read_bytes()).hexdigest()}
        for name in ("vgg16", "lpips linear weights")
    ]  # fmt: skip
    assert document["processes"] == 1
    assert document["seconds"] > 0
    facts = document["environment"]
    assert facts["vaeconv"] == __version__
    assert facts["device"] == "cpu"
    assert {"torch", "diffusers", "numpy", "python", "system", "threads"} <= facts.keys()
    assert facts["deterministic_algorithms"] is True
    assert out.read_text().endswith("}\n")


def test_the_document_says_everything_of_a_model(first: tuple[Path, Document]) -> None:
    one, other = first[1]["models"]
    assert list(one) == [
        "name", "path", "layout", "sha256", "weights_sha256", "train_steps", "comment", "link",
        "ema", "metrics", "latents",
    ]  # fmt: skip
    assert {key: one[key] for key in list(one)[:9] if key != "weights_sha256"} == {
        "name": "raw|fp16", "path": KL.name, "layout": "compvis",
        "sha256": [hashlib.sha256(KL.read_bytes()).hexdigest()], "train_steps": 246803,
        "comment": "as <used>", "link": "https://x.org/a", "ema": False,
    }  # fmt: skip
    assert {key: other[key] for key in ("name", "train_steps", "comment", "link")} == {
        "name": "raw_fp32", "train_steps": None, "comment": "50% & more", "link": "",
    }  # fmt: skip
    for model in (one, other):
        assert list(model["metrics"]) == ["psnr", "ssim", "psim", "lpips"]
        for found in model["metrics"].values():
            assert list(found) == ["mean", "std", "number", "infinite", "invalid"]
        assert list(model["latents"]) == [
            "mean", "std", "scaling_factor", "channel_mean", "channel_std", "values_per_channel",
        ]  # fmt: skip
        assert len(model["latents"]["channel_mean"]) == 4
    columns = first[1]["per_picture"]
    assert columns["names"] == [f"00{at}.png" for at in range(5)]
    assert [list(model) for model in columns["models"]] == [["psnr", "ssim", "psim", "lpips"]] * 2
    assert all(len(values) == 5 for model in columns["models"] for values in model.values())


# --- what is printed ---


def cells(document: Document, pm: str) -> list[list[str]]:
    """The rows of the table, as its numbers say."""
    digits = {"psnr": 1, "ssim": 2, "psim": 2, "lpips": 3}
    return [
        [f"{model['metrics'][name]['mean']:.{n}f}{pm}{model['metrics'][name]['std']:.{n}f}"
         for name, n in digits.items()]
        for model in document["models"]
    ]  # fmt: skip


def test_a_table_for_the_terminal(first: tuple[Path, Document], again: Path) -> None:
    result = run("eval", "--add", again)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "photos (32x32, 5 images)"
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "Model", "train steps", "PSNR", "SSIM", "PSIM (VGG, unweighted)", "LPIPS", "Link",
        "Comments",
    ]  # fmt: skip
    one, other = cells(first[1], " +/- ")
    assert re.split(r"\s{2,}", lines[2].strip()) == [
        "raw|fp16", "246803", *one, "https://x.org/a", "as <used>",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", lines[3].strip()) == ["raw_fp32", "-", *other, "50% & more"]
    assert lines[4] == first[1]["protocol"]["description"]
    latents = first[1]["models"][0]["latents"]
    assert (
        f"latents of raw|fp16: {latents['mean']:.4f} +/- {latents['std']:.4f}, "
        f"scaling factor {latents['scaling_factor']:.5f}" in lines
    )
    channels = next(line for line in lines if line.startswith("  channels: "))
    assert len(re.findall(rf"{NUMBER} \+/- {NUMBER}", channels)) == 4


def test_a_table_in_markdown(first: tuple[Path, Document], again: Path) -> None:
    lines = run("eval", "--add", again, "--format", "markdown").stdout.splitlines()
    assert lines[0] == "### photos (32x32, 5 images)"
    assert lines[3] == "|---|---:|---:|---:|---:|---:|---|---|"
    one, other = (" | ".join(row) for row in cells(first[1], " +/- "))
    assert lines[4] == f"| raw\\|fp16 | 246803 | {one} | <https://x.org/a> | as &lt;used> |"
    assert lines[5] == f"| raw_fp32 | - | {other} |  | 50% &amp; more |"
    assert lines[7] == f"_{first[1]['protocol']['description']}_"


def test_a_table_in_latex(first: tuple[Path, Document], again: Path) -> None:
    text = run("eval", "--add", again, "--format", "latex").stdout
    assert "\\begin{tabular}{lrrrrrll}" in text
    assert text.index("\\toprule") < text.index("\\midrule") < text.index("\\bottomrule")
    _, other = (" & ".join(row) for row in cells(first[1], " $\\pm$ "))
    assert f"raw\\_fp32 & - & {other} &  & 50\\% \\& more \\\\" in text


def test_results_as_json(first: tuple[Path, Document], again: Path) -> None:
    assert json.loads(run("eval", "--add", again, "--format", "json").stdout) == [first[1]]


def test_the_envelope_is_the_document(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "eval.json"
    result = run_eval(KL, "--images", photos, "--out", out, "--json", "--limit", 2)
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document.pop("written") == [str(out)]
    assert document["models"][0].pop("path") == str(KL)
    written = json.loads(out.read_text())
    assert written["models"][0].pop("path") == KL.name  # files may be published
    assert document == written
    failed = run_eval(KL, "--images", tmp_path / "none", "--out", out, "--json")
    document = json.loads(failed.stdout)
    assert (failed.exit_code, document["ok"], document["command"]) == (3, False, "eval")
    assert document["error"]["exit_code"] == 3


def test_quiet_prints_nothing(tmp_path: Path, photos: Path) -> None:
    result = run_eval(KL, "--images", photos, "--out", tmp_path / "o.json", "-q", "--limit", 1)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "o.json").exists()


# --- earlier results ---


def test_the_same_protocol_shares_a_table_and_another_does_not(
    tmp_path: Path, photos: Path
) -> None:
    earlier, squashed = tmp_path / "a.json", tmp_path / "b.json"
    given = ("--images", photos, "--limit", 2, "-q")
    assert run_eval(KL, *given, "--out", earlier).exit_code == 0
    assert run_eval(KL, *given, "--out", squashed, "--resize", "squash").exit_code == 0
    args = (RAW, "--images", photos, "--limit", 2, "--out", tmp_path / "c.json")
    together = run_eval(*args, "--add", earlier, "--format", "markdown").stdout
    assert together.count("### ") == 1
    names = re.findall(r"^\| (tiny\S+)", together, re.M)
    assert names == ["tiny-kl.safetensors", "tiny-kl.ckpt"]
    apart = run_eval(*args, "--add", squashed, "--format", "markdown").stdout
    assert apart.count("### ") == 2
    assert apart.count("centre crop") == 1
    assert apart.count("_to 32x32, bicubic") == 1
    both = run("eval", "--add", earlier, "--add", squashed, "--json")
    assert json.loads(both.stdout)["results"] == [
        json.loads(path.read_text()) for path in (earlier, squashed)
    ]


def test_other_pictures_are_another_table(tmp_path: Path, photos: Path) -> None:
    for limit in (1, 2):
        out = tmp_path / f"{limit}.json"
        assert run_eval(KL, "--images", photos, "--limit", limit, "--out", out).exit_code == 0
    result = run("eval", "--add", tmp_path / "1.json", "--add", tmp_path / "2.json")
    assert "photos (32x32, 1 image)" in result.stdout
    assert "photos (32x32, 2 images)" in result.stdout


def test_sets_of_equal_names_and_sizes_are_two_tables(tmp_path: Path, photos: Path) -> None:
    """Bitmaps of one size have files of one length, whatever they show."""
    for name in ("a", "b"):
        (tmp_path / name / "set").mkdir(parents=True)
        for path in photos.iterdir():
            with Image.open(path) as image:
                shown = image if name == "a" else image.transpose(Image.Transpose.ROTATE_180)
                shown.save(tmp_path / name / "set" / f"{path.stem}.bmp")
        args = ("--images", tmp_path / name / "set", "--out", tmp_path / f"{name}.json", "-q")
        assert run_eval(KL, *args).exit_code == 0
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert one["pictures"]["fingerprint"] == other["pictures"]["fingerprint"]
    assert one["pictures"]["sha256"] != other["pictures"]["sha256"]
    both = run("eval", "--add", tmp_path / "a.json", "--add", tmp_path / "b.json")
    assert both.stdout.count("set (32x32, 5 images)") == 2


def test_an_older_result_gets_a_table_of_its_own_and_a_word(again: Path, tmp_path: Path) -> None:
    document = json.loads(again.read_text())
    del document["pictures"]["fingerprint"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    result = run("eval", "--add", again, "--add", tmp_path / "old.json", "--add", again)
    assert result.stdout.count("photos (32x32, 5 images)") == 2
    assert "old.json knows its images by names and sizes only" in result.stderr


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"models": 3}'])
def test_what_is_no_result_cannot_be_added(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    result = run("eval", "--add", tmp_path / "x.json")
    assert result.exit_code == 3
    assert "not a report of vaeconv eval" in result.stderr
    assert run("eval", "--add", tmp_path / "none.json").exit_code == 3


# --- what is said of models ---


def test_a_file_of_models_with_every_key(tmp_path: Path, photos: Path) -> None:
    shutil.copy(KL, tmp_path / "last.ckpt")
    (tmp_path / "folders").mkdir()
    shutil.copytree(FOLDER, tmp_path / "folders" / "out")
    fp16 = tmp_path / "folders" / "out" / WEIGHTS.replace(".", ".fp16.")
    shutil.copy(tmp_path / "folders" / "out" / WEIGHTS, fp16)
    (tmp_path / "folders" / "out" / WEIGHTS).unlink()
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "models.toml"
    file.write_text(f"""
[[model]]
path = "../last.ckpt"
name = "ft-EMA"
train_steps = 560001
comment = "slightly better"
link = "https://x.org/ema"
ema = true

[[model]]
path = "../folders/out"
variant = "fp16"

[[model]]
path = "{RAW}"
""")
    out = tmp_path / "eval.json"
    given = ("--images", photos, "--limit", 2, "--out", out, "--json")
    result = run_eval(KL, "--name", "raw", "--models", file, *given)
    assert result.exit_code == 0, result.output
    models = json.loads(result.stdout)["models"]
    assert [model["name"] for model in models] == ["raw", "ft-EMA", "out", "tiny-kl.safetensors"]
    kept = ("name", "train_steps", "comment", "link", "ema", "path")
    assert {key: models[1][key] for key in kept} == {
        "name": "ft-EMA", "train_steps": 560001, "comment": "slightly better",
        "link": "https://x.org/ema", "ema": True, "path": str(file.parent / "../last.ckpt"),
    }  # fmt: skip
    psnr = [model["metrics"]["psnr"]["mean"] for model in models]
    assert psnr[0] == near_metric("psnr", psnr[3])
    assert psnr[2] == near_metric("psnr", psnr[3])
    assert psnr[1] != near_metric("psnr", psnr[0])


def models_error(tmp_path: Path, text: str) -> str:
    file = tmp_path / "models.toml"
    file.write_text(text)
    result = run("eval", "--models", file, "--images", tmp_path, "--out", tmp_path / "o.json")
    assert result.exit_code == 2, result.stderr
    assert str(file) in result.stderr
    return result.stderr


def test_a_key_that_is_unknown_is_named(tmp_path: Path) -> None:
    text = '[[model]]\npath = "x"\ntrainsteps = 3\n'
    assert "unknown key trainsteps; did you mean train_steps?" in models_error(tmp_path, text)
    said = models_error(tmp_path, '[[model]]\npath = "x"\nqqq = 3\n')
    assert "unknown key qqq; known: path, name, train_steps" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[[model]] tables"),
        ("[[models]]\npath = 'x'", "[[model]] tables"),
        ("this is no toml", "not a TOML file"),
        ("[[model]]\nname = 'x'", "model 1: path must be given"),
        ("[[model]]\npath = 3", "model 1: path: must be a text"),
    ],
)
def test_files_that_are_no_list_of_models(tmp_path: Path, text: str, said: str) -> None:
    assert said in models_error(tmp_path, text)


def test_one_name_of_an_argument_and_of_the_file_is_refused(tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(f"[[model]]\npath = '{RAW}'\nname = 'a'\n")
    result = run("eval", KL, "--name", "a", "--models", file, "--images", photos, "--out",
                 tmp_path / "o.json")  # fmt: skip
    assert result.exit_code == 2
    assert "two models are called a; name them with --name" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--name", "a"), ("--comment", "c"), ("--link", "l"), ("--train-steps", "1")],
)
def test_more_words_than_models_are_refused(option: str, value: str) -> None:
    result = run("eval", KL, *(option, value) * 2, "--images", "x", "--out", "o.json")
    assert result.exit_code == 2
    assert f"2 {option} for 1 models" in result.stderr


# --- plots ---


def test_plots_have_one_figure_for_each_metric(again: Path, tmp_path: Path) -> None:
    result = run("eval", "--add", again, "--plots", tmp_path / "plots", "-q")
    assert result.exit_code == 0, result.stderr
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"psnr.png", "ssim.png", "psim.png", "lpips.png"}
    for name in names:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.width > 600
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 5
    one = (tmp_path / "plots" / "psnr.png").read_bytes()
    refused = run("eval", "--add", again, "--plots", tmp_path / "plots", "-q")
    assert refused.exit_code == 5
    assert "psnr.png: exists; --overwrite replaces it" in refused.stderr
    replaced = run("eval", "--add", again, "--plots", tmp_path / "plots", "-q", "--overwrite")
    assert replaced.exit_code == 0
    assert (tmp_path / "plots" / "psnr.png").read_bytes() == one
    two = run("eval", "--add", again, "--add", again, "--plots", tmp_path / "both", "-q")
    assert two.exit_code == 0
    assert {"psnr-0.png", "psnr-1.png"} <= {path.name for path in (tmp_path / "both").iterdir()}


def test_plots_of_what_has_no_numbers_are_left_out(again: Path, tmp_path: Path) -> None:
    document = json.loads(again.read_text())
    for columns in document["per_picture"]["models"]:
        columns["psnr"] = ["inf", None, "inf", "inf", None]
        columns["ssim"] = [1.0] * 5
    again.write_text(json.dumps(document))
    assert run("eval", "--add", again, "--plots", tmp_path / "plots", "-q").exit_code == 0
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"ssim.png", "psim.png", "lpips.png"}


def test_plots_without_matplotlib_say_what_to_install(
    again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("eval", "--add", again, "--plots", tmp_path / "plots")
    assert result.exit_code == 7
    assert "pip install 'vaeconv[eval]'" in result.stderr
    assert not (tmp_path / "plots").exists()


def test_a_folder_of_plots_that_cannot_be_made(again: Path, tmp_path: Path) -> None:
    assert run("eval", "--add", again, "--plots", again).exit_code == 2, "it ends as a file does"
    (tmp_path / "file").touch()
    assert run("eval", "--add", again, "--plots", tmp_path / "file").exit_code == 5
    assert run("eval", "--add", again, "--plots", tmp_path / "no" / "such").exit_code == 5


# --- what is never imported ---


def imported(*args: object) -> tuple[int, set[str], str]:
    """Run the command line in a process of its own; give what it imported."""
    code = (
        "import sys, json\n"
        "from vaeconv.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:], prog_name='vaeconv')\n"
        "except SystemExit as error:\n"
        "    names = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "    print(json.dumps([error.code or 0, names]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    status, names = json.loads(done.stderr.splitlines()[-1])
    return status, set(names), done.stdout


HEAVY = {"torch", "diffusers", "numpy", "PIL", "matplotlib", "huggingface_hub", "transformers"}


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_help_imports_nothing_heavy(command: str) -> None:
    status, names, said = imported(command, "--help")
    assert status == 0
    assert "--images" in said
    assert "Examples:" in said
    assert not names & HEAVY


def test_tables_of_earlier_results_need_no_torch(again: Path) -> None:
    status, names, said = imported("eval", "--add", again)
    assert status == 0
    assert "raw_fp32" in said
    assert not names & {"torch", "diffusers", "matplotlib"}
