"""Runs the tests as on other processors: ``python -m tests.support.processors`` (README says when).

First all tests with a change of the last places, which tells as well which of them compute, and
which cast or check by what may be missing; the files that hold those run in every other
configuration. So no list of them can rot. What does not
depend on each other is combined: a failure names its configuration, and its variables are enough to
run one test in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "support" / "processor"
JITTER = "VAECONV_TESTS_JITTER"
CONFIGURATIONS = {
    "other last places": {JITTER: "1"},
    "others again": {JITTER: "2"},
    "SSE, one thread": {
        "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1",
    },
    "AVX2, two threads": {
        "MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2",
    },
    "AVX-512 without oneDNN, three threads": {
        "MKL_CBWR": "AVX512", "VAECONV_TESTS_NO_ONEDNN": "1", "OMP_NUM_THREADS": "3",
    },
    "without numkong and isal": {"VAECONV_TESTS_BLOCK": "numkong,isal"},
    "without POSIX": {"VAECONV_TESTS_NO_POSIX": "1"},
}  # fmt: skip
# Which tests run, where it is not those that compute.
REPLACED, EVERYTHING = "without numkong and isal", "other last places"
APART = "without POSIX"  # is no processor: ``make test-portable``


def run(variables: dict[str, str], files: list[str], workers: str) -> bool:
    """Run files of tests with environment variables; True where they pass."""
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    # Threads that share cores wait for each other, and asleep they leave them to the others.
    patient = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "PYTHONPATH": path}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        workers,
        "-o",
        "faulthandler_timeout=600",
        *files,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **patient, **variables}, check=False
    )
    return done.returncode == 0


def files_of(records: Path) -> list[str]:
    """The files of the tests that left a record."""
    return sorted({path.name.split("::")[0].replace("|", "/") for path in records.iterdir()})


def main() -> None:
    """Run all configurations, or those that are named, and say which failed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("-n", default="2", metavar="WORKERS", help="processes at a time")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONFIGURATIONS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - CONFIGURATIONS.keys():
        parser.error(f"no such configuration: {', '.join(unknown)}")
    failed = []
    files = {"computes": ["tests"], "replaced": ["tests"]}
    with tempfile.TemporaryDirectory() as records:
        for kind in files:
            Path(records, kind).mkdir()
        for name in arguments.names or [one for one in CONFIGURATIONS if one != APART]:
            variables = CONFIGURATIONS[name]
            said = " ".join(f"{key}={value}" for key, value in variables.items())
            print(f"--- {name}: {said}", flush=True)
            recorded = {"VAECONV_TESTS_RECORD": records} if name == EVERYTHING else {}
            wanted = files["replaced" if name == REPLACED else "computes"]
            if not run(
                {**variables, **recorded}, ["tests"] if name == APART else wanted, arguments.n
            ):
                failed.append(f"{name} (PYTHONPATH={PLUGIN.relative_to(ROOT)} {said})")
            if recorded:
                files = {kind: files_of(Path(records, kind)) for kind in files}
                for kind, found in files.items():
                    print(f"--- {kind}: {len(found)} files of tests", flush=True)
    for one in failed:
        print(f"failed: {one}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
