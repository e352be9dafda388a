"""Names of outputs: what they stand for, and which of them are slips."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.releases import write_project
from tests.support.lacking import names_are_bytes
from tests.support.samples import TINY, in_diffusers, save_ckpt, save_folder, weights_of
from vaeconv import ConvertOptions, convert
from vaeconv.errors import (
    CheckpointNotFoundError,
    OutputError,
    OutputExistsError,
    UsageError,
)
from vaeconv.weights.output_names import (
    OutputKind,
    batch_targets,
    check_ending,
    ending_of,
    output_kind,
)

ENTRY = Path(sys.executable).with_name("vaeconv")


def run(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENTRY, *map(str, args)], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.ckpt"
    return save_ckpt(path, weights_of(), optimizer_states=[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("out", OutputKind.FOLDER),
        ("out/", OutputKind.FOLDER),
        ("out.ckpt/", OutputKind.FOLDER),
        ("x.gguf/", OutputKind.FOLDER),
        ("sd-vae-1.5", OutputKind.FOLDER),
        ("out.v2", OutputKind.FOLDER),
        ("out.V2-rc1", OutputKind.FOLDER),
        ("vae-2024.11.26", OutputKind.FOLDER),
        ("out.", OutputKind.FOLDER),
        ("a.gguf/out", OutputKind.FOLDER),
        ("x.CKPT", OutputKind.TORCH_ZIP),
        ("x.v2.final.pt", OutputKind.TORCH_ZIP),
        ("x.sft", OutputKind.SAFETENSORS),
        ("sd-vae-1.5.safetensors", OutputKind.SAFETENSORS),
    ],
)
def test_what_a_name_stands_for(name: str, kind: OutputKind) -> None:
    assert output_kind(name)[0] is kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.safetensor", "did you mean x.safetensors"),
        ("x.SAFETENSOR", "did you mean x.safetensors"),
        ("x.safetensors ", "did you mean x.safetensors"),
        ("x.saftensors", "did you mean x.safetensors"),
        ("x.ckp", "did you mean x.ckpt"),
        ("out.v2.gguf", "for a folder of this name write out.v2.gguf/"),
        *[(f"x.{ending}", f".{ending} is not an ending") for ending in (
            "gguf", "onnx", "h5", "msgpack", "pkl", "npz", "tar", "zip", "yaml", "json", "7z",
            "final", "fp16", "pt2", "part", "E",
        )],
        ("", "no name"),
        (".ckpt", "only an ending"),
        ("out/.safetensors", "only an ending"),
        ("hf://owner/name", "is an address"),
        ("https://huggingface.co/owner/name/resolve/main/x.ckpt", "is an address"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["convert", "prune"])
def test_a_slip_of_a_name_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    command: str,
    name: str,
    said: str,
) -> None:
    from vaeconv import PruneOptions, prune

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        if command == "convert":
            convert(source, name, ConvertOptions())
        else:
            prune(source, name, PruneOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_may_have_any_name(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "vae.final"
    folder.mkdir()
    assert output_kind(folder)[0] is OutputKind.FOLDER
    convert(source, folder, ConvertOptions())
    assert (folder / "config.json").is_file()


def test_wrong_usage_of_the_command(tmp_path: Path, source: Path) -> None:
    done = run("convert", source, tmp_path / "x.safetensor")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean" in done.stderr


@pytest.mark.parametrize(
    ("path", "endings", "said"),
    [
        ("x.ckpt", (".json",), ".ckpt is not an ending that vaeconv writes"),
        ("x.jsn", (".json",), "did you mean x.json"),
        ("x.png", (), "is a folder, and .png ends the name of a file"),
        ("", (".json",), "no name"),
    ],
)
def test_reports_are_not_written_to_names_of_other_files(
    path: str, endings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        check_ending(path, endings, "a report")
    for right in ("x.json", "x", "x.1"):
        check_ending(right, (".json",), "a report")
    check_ending("pictures.d/", (), "--pictures")


@pytest.mark.parametrize(
    "args",
    [
        ("verify", "{0}", "{0}", "--weights-only", "--report", "r.ckpt"),
        ("verify", "{0}", "{0}", "--weights-only", "--html", "{0}"),
        ("verify", "{0}", "{0}", "--weights-only", "--pictures", "p.png"),
        ("eval", "{0}", "--images", ".", "--out", "{0}"),
        ("compare", "{0}", "--images", ".", "--out", "merged.png"),
        ("latents", ".", "{0}", "--model", "{0}"),
        ("release", "--init", "release.tml"),
    ],
)
def test_every_command_that_writes_looks_at_the_ending(
    tmp_path: Path, source: Path, args: tuple[str, ...]
) -> None:
    before = source.read_bytes()
    done = run(*[arg.format(source) for arg in args], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == []


# --- several inputs, one folder ---


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a/model.ckpt", "model.safetensors"),
        ("model.v2.final.ckpt", "model.v2.final.safetensors"),
        ("x.CKPT", "x.safetensors"),
        ("sd-vae-1.5", "sd-vae-1.5.safetensors"),
        ("kl-f8.zip", "kl-f8.safetensors"),
        ("model.final", "model.final.safetensors"),
        ("hf://user/sd-vae-1.5", "sd-vae-1.5.safetensors"),
        ("hf://user/sd-vae-1.5@v1.0", "sd-vae-1.5.safetensors"),
        ("hf://user/name@refs/pr/1/sub/v1.5.ckpt", "v1.5.safetensors"),
        ("https://huggingface.co/user/sd-vae-1.4", "sd-vae-1.4.safetensors"),
    ],
)
def test_outputs_of_a_batch_keep_their_names(source: str, target: str) -> None:
    assert batch_targets([source], Path("out")) == [(source, f"out/{target}")]


def test_folders_of_a_batch_stay_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "vae.final-1.5", in_diffusers(weights_of()))
    (tmp_path / "out").mkdir()
    for name in (folder, f"{folder}/"):
        assert batch_targets([str(name)], Path("out")) == [(str(name), "out/vae.final-1.5/")]
    monkeypatch.chdir(folder)
    assert batch_targets(["."], Path("out")) == [(".", "out/vae.final-1.5/")]


@pytest.mark.parametrize(
    "sources",
    [
        ["a/x.ckpt", "b/x.ckpt"],
        ["x.ckpt", "x.safetensors"],
        ["hf://a/vae-1.5", "hf://b/vae-1.5"],
    ],
)
def test_two_inputs_of_one_name_are_both_named(sources: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        batch_targets(sources, Path("out"))
    assert all(source in str(caught.value) for source in sources)


def test_versions_do_not_collide() -> None:
    pairs = batch_targets(["hf://user/sd-vae-1.4", "hf://user/sd-vae-1.5"], Path("out"))
    assert [target for _, target in pairs] == [
        "out/sd-vae-1.4.safetensors",
        "out/sd-vae-1.5.safetensors",
    ]
    assert [ending_of(name) for name in ("a.5", "a.v2", "a.7z", "a.", "a", ".git")] == [
        "", "", ".7z", "", "", "",
    ]  # fmt: skip


# --- IN before OUT ---


@pytest.mark.parametrize("command", ["convert", "prune"])
@pytest.mark.parametrize("output", ["out", "out.safetensors", "out/"])
def test_swapped_names_do_not_lead_to_the_checkpoint_s_end(
    tmp_path: Path, source: Path, command: str, output: str
) -> None:
    done = run(command, tmp_path / output, source)
    assert done.returncode == 3
    assert "does not exist" in done.stderr and "swapped" in done.stderr
    assert "--overwrite" not in done.stderr


@pytest.mark.parametrize(("dtype", "manifest"), [("fp16", True), ("keep", True), ("fp16", False)])
def test_a_second_run_with_swapped_names_has_no_such_hint_either(
    tmp_path: Path, source: Path, dtype: str, manifest: bool
) -> None:
    convert(source, tmp_path / "out", ConvertOptions(dtype=dtype))
    if not manifest:
        (tmp_path / "out" / "vaeconv.json").unlink()
    with pytest.raises(OutputExistsError, match="swapped") as caught:
        convert(tmp_path / "out", source, ConvertOptions())
    assert "overwrite" not in str(caught.value)
    with pytest.raises(OutputExistsError, match="; overwrite replaces it"):
        convert(source, tmp_path / "out", ConvertOptions())


def test_a_bad_input_is_said_before_an_output_that_exists(tmp_path: Path, source: Path) -> None:
    (tmp_path / "empty.ckpt").touch()
    done = run("convert", tmp_path / "empty.ckpt", source)
    assert done.returncode == 3 and "an empty file" in done.stderr
    (tmp_path / "empty").mkdir()
    done = run("prune", tmp_path / "empty", source)
    assert done.returncode == 3 and "overwrite" not in done.stderr


def test_latents_look_at_the_pictures_first(tmp_path: Path, source: Path) -> None:
    save_file(weights_of(), tmp_path / "refs.safetensors")
    done = run("latents", tmp_path / "none", tmp_path / "refs.safetensors", "--model", source)
    assert done.returncode == 3 and "overwrite" not in done.stderr


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_by_another_name_is_no_output(tmp_path: Path, link: object) -> None:
    save_file(weights_of(TINY), tmp_path / "in.safetensors")
    link(tmp_path / "in.safetensors", tmp_path / "out.safetensors")  # type: ignore[operator]
    with pytest.raises(OutputError, match="is the input itself"):
        convert(
            tmp_path / "in.safetensors",
            tmp_path / "out.safetensors",
            ConvertOptions(overwrite=True),
        )
    (tmp_path / "folder").mkdir()
    link(tmp_path / "in.safetensors", tmp_path / "folder" / "in.safetensors")  # type: ignore[operator]
    with pytest.raises(OutputError, match="contains the input"):
        convert(
            tmp_path / "folder" / "in.safetensors",
            tmp_path / "folder",
            ConvertOptions(overwrite=True),
        )


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        convert(tmp_path / "none.ckpt", tmp_path / "out", ConvertOptions())
    assert "swapped" not in str(caught.value)


@pytest.mark.parametrize("command", ["convert", "prune", "inspect"])
def test_names_that_are_too_long_are_no_internal_error(
    tmp_path: Path, source: Path, command: str
) -> None:
    long = tmp_path / ("x" * 400 + ".ckpt")
    pairs = [[long]] if command == "inspect" else [[long, tmp_path / "out"], [source, long]]
    for pair in pairs:
        done = run(command, *pair)
        assert done.returncode in (3, 5) and done.stderr.count("\n") == 1, done.stderr


@names_are_bytes
def test_names_that_are_not_utf_8_go_through_all_commands(tmp_path: Path) -> None:
    odd = os.fsdecode(b"m\xff")
    images = tmp_path / f"images{odd}"
    images.mkdir()
    for number, image in enumerate(sorted((FIXTURES / "pictures").glob("*.png"))[:2]):
        shutil.copy(image, images / f"{odd}{number}.png")
    source = Path(shutil.copy(FIXTURES / "tiny-kl.safetensors", tmp_path / f"{odd}.safetensors"))
    (tmp_path / f"{odd}.toml").write_text('license = "mit"\n')
    scaling, size = ("--scaling-factor", 0.5), ("--size", 32)
    for command, *args in (
        ("inspect", source),
        ("convert", source, f"out{odd}", *scaling),
        ("prune", source, f"p{odd}.safetensors"),
        ("latents", images, f"l{odd}.safetensors", "--model", source, *size),
        ("verify", source, f"out{odd}", "--latents", f"l{odd}.safetensors", *scaling, "--pictures",
         f"v{odd}", "--report", f"r{odd}.json", "--html", f"h{odd}.html", "--junit", f"j{odd}.xml"),
        ("eval", source, "--images", images, "--out", f"e{odd}.json", "--metrics", "psnr", *size),
        ("compare", source, "--images", images, "--out", f"out{odd}/assets", *size),
        ("card", f"out{odd}", "--meta", f"{odd}.toml", "--parity", f"r{odd}.json", "--eval",
         f"e{odd}.json", "--pictures", f"out{odd}/assets"),
    ):  # fmt: skip
        done = run(command, *args, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    written = {os.fsencode(path.name) for path in tmp_path.iterdir()}
    assert {name.encode() + b"m\xff" + ending.encode() for name, ending in (
        ("out", ""), ("p", ".safetensors"), ("l", ".safetensors"), ("r", ".json"), ("h", ".html"),
        ("j", ".xml"), ("v", ""), ("e", ".json"))} <= written  # fmt: skip
    for file in tmp_path.rglob("*.html"):
        file.read_text(encoding="utf-8")  # whose text has no half of a surrogate pair


@names_are_bytes
def test_a_release_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    project = write_project(tmp_path / os.fsdecode(b"p\xff"))
    shutil.move(project / "pictures/rocket.png", project / "pictures" / os.fsdecode(b"r\xff.png"))
    done = run("release", project / "release.toml", "--until", "card")
    assert done.returncode == 0, done.stderr
