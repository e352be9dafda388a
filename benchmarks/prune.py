"""Measures ``vaeconv prune`` on a 7.7 GB checkpoint against the peers, all in one run.

python -m benchmarks.prune --dir DIR [--runs N] [--slow-runs N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import (
    Case,
    format_ratios,
    format_table,
    remove,
    take_samples,
    warm_up,
)

# One thread and one buffer: the bytes that must be read, and those that must be written.
PLAIN = """
import os, sys
source, target, wanted, output, sync = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
buffer = memoryview(bytearray(1 << 20))
reader = os.open(source, os.O_RDONLY)
writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
done = written = 0
while done < wanted:
    count = os.preadv(reader, [buffer[: wanted - done]], done)
    done += count
    share = output * done // wanted - written
    written += os.write(writer, buffer[:share])
if sync:
    os.fsync(writer)
"""

PICK = """
import sys, torch
from safetensors.torch import save_file
source, target, mmap = sys.argv[1:]
state = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap == "mmap")["state_dict"]
picked = {}
for name, tensor in state.items():
    if name.startswith("model_ema."):
        continue
    if name.startswith("model."):
        tensor = state["model_ema." + name[6:].replace(".", "")]
    picked[name] = tensor.half() if tensor.is_floating_point() else tensor
save_file(picked, target, metadata={"format": "pt"})
"""

OURS, CAREFUL = "vaeconv prune --ema, --no-check", "vaeconv prune --ema"
MAPPED, LOADED = "torch.load(mmap=True), half, save_file", "torch.load of everything, half, save"
QUESTIONS = [(MAPPED, CAREFUL), (LOADED, CAREFUL), (MAPPED, OURS), (LOADED, OURS)]


def sizes(program: str, source: Path, target: Path) -> tuple[int, int]:
    """Returns the bytes that must be read and written, as the plan says."""
    command = [program, "prune", "--ema", "--json", "--dry-run", str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    document = json.loads(done.stdout)
    kept = [group for group in document["groups"] if group["kept"]]
    return sum(g["bytes_before"] for g in kept), document["output"]["bytes"]


def make_cases(program: str, source: Path, work: Path) -> list[Case]:
    """Returns the floors, what vaeconv is asked to do, and the same by others."""
    floors = ("read and write", "read and write, fsync")
    target = work / "pruned.safetensors"
    amounts = tuple(map(str, sizes(program, source, target)))

    def case(name: str, *command: str, **fields: object) -> Case:
        return Case(name, command, target, **fields)  # type: ignore[arg-type]

    plain = (sys.executable, "-S", "-c", PLAIN, str(source), str(target), *amounts)
    prune = (program, "prune", "--ema", str(source), str(target))
    pick = (sys.executable, "-c", PICK, str(source), str(target))
    return [
        case(floors[0], *plain, "0"),
        case(floors[1], *plain, "1"),
        case(OURS, *prune, "--no-check", floors=floors),
        case(CAREFUL, *prune, floors=floors),
        case(MAPPED, *pick, "mmap", floors=floors, slow=True),
        case(LOADED, *pick, "load", floors=floors, slow=True),
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Measure vaeconv prune.")
    parser.add_argument("--dir", type=Path, required=True, help="where make_inputs put the files")
    parser.add_argument("--runs", type=int, default=7, help="rounds that count")
    parser.add_argument("--slow-runs", type=int, default=3, help="rounds that the peers take part")
    parser.add_argument("--program", default=str(Path(sys.executable).with_name("vaeconv")))
    options = parser.parse_args()
    source, work = options.dir.resolve() / "sd-full.ckpt", options.dir.resolve() / "work"
    remove(work)
    work.mkdir()
    try:
        warm_up(source)
        cases = make_cases(options.program, source, work)
        samples = take_samples(cases, work / "log", runs=options.runs, slow_runs=options.slow_runs)
    finally:
        remove(work)
    print(format_table(cases, samples, floor="read and write"))
    print()
    print(format_ratios(QUESTIONS, samples))


if __name__ == "__main__":
    main()
