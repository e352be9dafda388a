from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import corpus
from tests.support.corpus import CANARY, Case
from tests.support.slow import some_slow
from vaeconv.cli import app

try:
    import resource
except ImportError:  # Windows, where no memory is measured
    resource = None  # type: ignore[assignment]

HOSTILE = corpus.hostile_cases()
MALFORMED = corpus.malformed_cases()
GOOD = corpus.good_cases()
ENTRY = Path(sys.executable).with_name("vaeconv")

MEMORY = 256 << 20
SECONDS = 5.0  # of the processor, which others may share
# The tool must stay below the hard limit whatever the file says; RLIMIT_AS counts address space,
# of which the interpreter and its libraries take some 200 MiB.
HARD_MEMORY = 1 << 30
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def named(cases: list[Case], slow: Iterable[str] = ()) -> pytest.MarkDecorator:
    by_name = {case.name: case for case in cases}
    assert len(by_name) == len(cases)
    rows = some_slow(cases, [by_name[name] for name in slow])
    return pytest.mark.parametrize("case", rows, ids=list(by_name))


class Hang(BaseException):
    """A test took far too long; not an Exception, so that nothing can swallow it."""


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def peak() -> int:
    if not resource:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(arg) for arg in args])
    code = ended.value.code
    return 0 if code is None else int(code)


def assert_clean(stderr: str, code: int, what: str) -> None:
    """One line, no trace, no control characters; notes may stand before it."""
    assert "Traceback" not in stderr, stderr
    assert not CONTROL.search(stderr), repr(stderr)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    others = [line for line in stderr.splitlines() if line not in errors]
    assert all(line.startswith(("note: ", "warning: ")) for line in others), f"{what}: {stderr!r}"
    assert len(errors) == (code != 0), f"{what}: {stderr!r}"
    assert all(len(line) < 700 for line in errors)
    assert "internal error" not in stderr


def refuse(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run ``inspect`` and ``convert`` on what must be refused, and look what they did."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    path = case.write(source)
    before = sorted(source.rglob("*"))
    for args, codes in (
        (("inspect", path), case.inspect),
        (("convert", path, out / "folder"), case.convert),
        (("convert", path, out / "file.safetensors"), case.to_file),
        (("convert", "--ema", path, out / "file.ckpt"), case.to_file | {3}),
        (("prune", "--dtype", "keep", path, out / "file.safetensors"), case.to_file | case.prune),
        (("prune", "--ema", path, out / "file.ckpt"), case.to_file | case.prune),
    ):
        started, memory = time.process_time(), peak()
        code = run(*args)
        seconds, grown = time.process_time() - started, peak() - memory
        stderr = capsys.readouterr().err
        assert code in codes, f"{args[0]} ended with {code}: {stderr}"
        assert_clean(stderr, code, str(args[0]))
        assert case.mentions in stderr
        assert seconds < SECONDS, f"{args[0]} took {seconds:.1f} s"
        assert grown < MEMORY, f"{args[0]} took {grown >> 20} MiB"
        if code:
            assert list(out.iterdir()) == []
        for made in out.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert not CANARY.exists()
    assert sorted(source.rglob("*")) == before


@named(HOSTILE)
def test_hostile(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(case, tmp_path, capsys)


@named(
    MALFORMED,
    slow=[
        "config_deep", "pickle_dup_bomb", "pickle_many_prefixes", "pickle_marks",
        "pickle_nested_lists", "pickle_nested_tuples", "st_json_many_lists", "tensor_aliased_bomb",
    ],
)  # fmt: skip
def test_malformed(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(case, tmp_path, capsys)


@named(GOOD)
def test_good(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    path = case.write(tmp_path / "in")
    assert case.expected is not None
    expected = case.expected()
    folder, single, ckpt, pruned = (
        tmp_path / name for name in ("out", "out.safetensors", "out.ckpt", "pruned.safetensors")
    )
    started = time.process_time()
    assert run("inspect", path) == 0, capsys.readouterr().err
    for target in (folder, single, ckpt):
        assert run("convert", path, target, *case.options) == 0, capsys.readouterr().err
    assert run("prune", "--vae-only", path, pruned) == 0, capsys.readouterr().err
    assert time.process_time() - started < 2 * SECONDS
    assert_clean(capsys.readouterr().err, 0, "convert")
    theirs = load_file(corpus.FIXTURES / "tiny-diffusers/diffusion_pytorch_model.safetensors")
    dtype = expected[corpus.BIG].dtype
    assert_equal(load_file(folder / "diffusion_pytorch_model.safetensors"),
                 {name: tensor.to(dtype) for name, tensor in theirs.items()})  # fmt: skip
    assert_equal(load_file(single), expected)
    assert_equal(torch.load(ckpt, weights_only=True)["state_dict"], expected)
    halves = {name: t.half() for name, t in (theirs if path.is_dir() else expected).items()}
    assert_equal(load_file(pruned), halves)
    assert json.loads((folder / "config.json").read_text())["block_out_channels"] == [32, 32]
    assert not CANARY.exists()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


# The worst of each kind through the real entry point, with the address space cut.
ALONE = [
    case
    for case in HOSTILE + MALFORMED
    if case.name
    in {
        "before_state", "legacy_slot_2_pop", "duplicate_hostile_first", "call_builtins.bytearray",
        "zip_bomb_pickle", "zip_bomb_one", "zip_bomb_many", "zip_bundle_nested",
        "pickle_memo_index_bomb", "pickle_dots", "legacy_keys_nested", "tensor_expanded_bomb",
        "tensor_aliased_bomb", "st_json_many_lists", "st_header_huge", "other_dev_zero",
        "other_fifo", "config_yaml_bomb",
    }
]  # fmt: skip


@named(ALONE)
def test_alone(case: Case, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = case.write(tmp_path / "in")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (HARD_MEMORY, HARD_MEMORY))

    done = subprocess.run(
        [ENTRY, "convert", path, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit if resource else None,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert_clean(done.stderr, 3, "convert")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    assert not CANARY.exists()
