"""Damaged copies of good files: each converts, or is refused with a ``VaeconvError``.

``VAECONV_MUTANTS`` is their number per file; 2000 make the ten thousand that are run by hand.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, deserialize

from tests.support import corpus
from tests.support.slow import some_slow
from vaeconv import ConvertOptions, CopyOptions, VaeconvError, convert
from vaeconv.checkpoint.readers import zip_directory
from vaeconv.checkpoint.storage import PlainReader
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.errors import MalformedCheckpointError, one_line

try:
    import resource
except ImportError:  # Windows, where no memory is measured
    resource = None  # type: ignore[assignment]

FIXTURES = corpus.FIXTURES
MUTANTS = int(os.environ.get("VAECONV_MUTANTS", "500"))
# What no single mutant may take, and all of them together.
SECONDS = 30.0
MEMORY = 256 << 20
WEIGHTS = "diffusion_pytorch_model.safetensors"

Make = Callable[[], bytes]
GOOD: dict[str, tuple[str, Make]] = {
    "torch zip": ("model.ckpt", corpus.torch_zip),
    "torch zip of a training run": ("model.ckpt", (FIXTURES / "tiny-kl.ckpt").read_bytes),
    "torch zip deflated": ("model.ckpt", corpus._deflated),
    "torch legacy": ("model.pt", (FIXTURES / "tiny-legacy.pt").read_bytes),
    "safetensors": ("model.safetensors", corpus.safetensors_bytes),
    "diffusers folder": (WEIGHTS, (FIXTURES / "tiny-diffusers" / WEIGHTS).read_bytes),
}
CHECKED = [kind for kind in GOOD if kind.startswith("torch zip")]


class Bench:
    """One good file, a place for its mutants, and what they convert to."""

    def __init__(self, kind: str, folder: Path) -> None:
        name, make = GOOD[kind]
        self.options = ConvertOptions()
        self.data = make()
        self.folder = folder / "in"
        self.folder.mkdir()
        self.out = folder / "out"
        self.out.mkdir()
        self.path = self.folder / name
        self.source = self.path
        if name == WEIGHTS:
            shutil.copy(FIXTURES / "tiny-diffusers/config.json", self.folder)
            self.source = self.folder
        self.reference = self.convert(self.data)
        assert isinstance(self.reference, bytes)

    def convert(self, data: bytes | bytearray) -> bytes | VaeconvError:
        """Convert a mutant; any error that is not one of vaeconv's own gets out."""
        self.path.write_bytes(data)
        target = self.out / "out.safetensors"
        started = time.process_time()
        try:
            convert(self.source, target, self.options)
        except VaeconvError as error:
            assert list(self.out.iterdir()) == []
            return error
        finally:
            assert time.process_time() - started < SECONDS
        written = target.read_bytes()
        target.unlink()
        assert list(self.out.iterdir()) == []
        return written


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytearray]:
    """Flip a bit or a few, or cut; heads and tails, where the structure is, more often."""
    kind = rng.choice(["flip", "flip", "flip", "flips", "byte", "run", "cut", "drop"])
    mutant = bytearray(data)
    edge = 4096
    at = rng.choice(
        [
            rng.randrange(len(data)),
            rng.randrange(min(edge, len(data))),
            len(data) - 1 - rng.randrange(min(edge, len(data))),
            rng.choice(places(data)),
        ]
    )
    if kind == "flip":
        mutant[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randrange(2, 6)):
            near = min(max(at + rng.randrange(-50, 50), 0), len(data) - 1)
            mutant[near] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        mutant[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == "run":
        size = rng.choice([2, 4, 8, 64, 512])
        mutant[at : at + size] = rng.choice([b"\0", b"\xff"]) * len(mutant[at : at + size])
    elif kind == "cut":
        del mutant[at:]
    else:
        del mutant[at : at + rng.choice([1, 2, 8, 64, 4096])]
    return f"{kind} at {at}", mutant


def places(data: bytes) -> range:
    """Return bytes where something is described: a pickle, a header or a zip directory."""
    if data[:2] == b"PK":
        start = data.index(b"PK\1\2")
        return range(start, len(data))
    return range(min(len(data), 24_000))


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def bench(kind: str) -> Bench:
        if kind not in made:
            made[kind] = Bench(kind, tmp_path_factory.mktemp("mutants"))
        return made[kind]

    return bench


def run_mutants(bench: Bench, kind: str, count: int) -> Counter[str]:
    rng, memory = random.Random(kind), peak()
    seen: Counter[str] = Counter()
    for _ in range(count):
        what, mutant = mutate(bench.data, rng)
        if mutant == bench.data:
            continue
        try:
            result = bench.convert(mutant)
        except Exception as error:
            raise AssertionError(f"{kind}: {what}: {type(error).__name__}: {error}") from error
        if isinstance(result, VaeconvError):
            said = str(result)
            assert said == one_line(said)
            assert str(bench.source) in said
            seen[type(result).__name__] += 1
            continue
        seen["converted"] += 1
        if kind in CHECKED:
            is_same = result == bench.reference  # apart: pytest would write megabytes of difference
            assert is_same, f"{kind}: {what}: other weights passed"
            continue
        # Nothing in these tells damaged weights; they must be those that others read.
        expected = READ[kind](bytes(mutant))
        if expected is None:
            seen["refused by others"] += 1
        else:
            is_same = weights(result) == expected
            assert is_same, f"{kind}: {what}: other weights than in the file"
    assert peak() - memory < MEMORY
    return seen


def peak() -> int:
    if not resource:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def weights(data: bytes) -> list[bytes] | None:
    """Return what each tensor holds, in no order: layouts differ in names and shapes."""
    try:
        return sorted(bytes(entry["data"]) for _, entry in deserialize(data))
    except SafetensorError:
        return None


def weights_of_torch(data: bytes) -> list[bytes] | None:
    try:
        loaded = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it says, it does not read the file
        return None
    state = loaded.get("state_dict", loaded)
    return sorted(tensor.contiguous().numpy().tobytes() for tensor in state.values())


READ = {
    "torch legacy": weights_of_torch,
    "safetensors": weights,
    "diffusers folder": weights,
}


@pytest.mark.parametrize("kind", some_slow(GOOD, ["torch legacy"]))
def test_mutants_convert_or_are_refused(benches: Callable[[str], Bench], kind: str) -> None:
    seen = run_mutants(benches(kind), kind, MUTANTS)
    print(dict(seen))  # shown by pytest -s or -rP
    assert seen["MalformedCheckpointError"] > MUTANTS // 10
    assert seen["converted"] > seen["refused by others"]


@pytest.mark.parametrize("kind", GOOD)
def test_every_flip_in_the_first_bytes_converts_or_is_refused(
    benches: Callable[[str], Bench], kind: str
) -> None:
    bench = benches(kind)
    for place in range(16):
        for bit in range(8) if place < 2 else (0, 7):
            mutant = bytearray(bench.data)
            mutant[place] ^= 1 << bit
            result = bench.convert(mutant)
            assert isinstance(result, VaeconvError) or kind not in CHECKED or (
                result == bench.reference
            )  # fmt: skip


# --- planted faults: each must turn a check red ---


def test_planted_skipping_of_checksums_is_found(
    benches: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "torch zip"
    bench = benches(kind)
    unchecked = replace(bench.options, copy=CopyOptions(check=False))
    monkeypatch.setattr(bench, "options", unchecked)
    with pytest.raises(AssertionError, match="other weights passed"):
        run_mutants(bench, kind, 100)


def test_planted_other_exception_is_found(
    benches: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "torch zip"
    bench = benches(kind)

    def find(source: object) -> tuple[int, int, int]:
        raise IndexError("planted")

    monkeypatch.setattr(zip_directory, "_find_directory", find)
    with pytest.raises(AssertionError, match="IndexError: planted"):
        run_mutants(bench, kind, 50)


def test_planted_short_read_is_found(
    benches: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "torch zip of a training run"
    bench = benches(kind)

    def read_into(reader: PlainReader, buffer: memoryview) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(PlainReader, "read_into", read_into)
    with pytest.raises(AssertionError, match="ValueError: planted"):
        run_mutants(bench, kind, 50)


@pytest.mark.parametrize("kind", ["torch legacy", "safetensors", "diffusers folder"])
def test_planted_wrong_byte_is_found(
    benches: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bench = benches(kind)
    read_at = Tensor.read_at

    def repeated(tensor: Tensor, start: int, buffer: memoryview) -> None:
        read_at(tensor, start, buffer)
        buffer[:1] = bytes(buffer[1:2])

    monkeypatch.setattr(Tensor, "read_at", repeated)
    with pytest.raises(AssertionError, match="other weights than in the file"):
        run_mutants(bench, kind, 50)


def test_refusal_names_the_file(benches: Callable[[str], Bench]) -> None:
    bench = benches("safetensors")
    refused = bench.convert(bench.data[:-1])
    assert isinstance(refused, MalformedCheckpointError)
    assert refused.where == str(bench.source)
