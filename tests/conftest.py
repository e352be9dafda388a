"""The environment that all tests share, and which are left to ``make test-all``.

Those take seconds each, or are one of many of their kind.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests.support.lacking import skipping_what_is_lacking

# What a shell, a CI job, a launcher or a user's settings say is no business of the tests; processes
# that they start inherit from here.
_FOREIGN = re.compile(
    r"(HF|HUGGING_?FACE(_HUB)?|ACTIONS|GITHUB|LC|VAECONV(?!_TESTS?_))_.*|.*_proxy|CI|LANG|LANGUAGE"
    r"|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR(_FORCE)?|TTY_(COMPATIBLE|INTERACTIVE)|(LOCAL_)?RANK"
    r"|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|SOURCE_DATE_EPOCH|XDG_CACHE_HOME|PYTHONWARNINGS",
    re.IGNORECASE,
)
_HOME = tempfile.TemporaryDirectory(prefix="vaeconv-home-")  # of caches and tokens; gone at the end
if os.environ.get("VAECONV_TEST_HUB") != "1":  # the tests that talk to the real Hub as somebody
    for _name in filter(_FOREIGN.fullmatch, list(os.environ)):
        del os.environ[_name]
    os.environ |= {"HF_HOME": _HOME.name, "TORCH_HOME": _HOME.name, "TZ": "UTC"}
    if hasattr(time, "tzset"):
        time.tzset()
os.umask(0o022)
# Where tests run in the background of a shell, Ctrl-C is ignored, and is in what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Small convolutions on many threads that share few cores mostly wait for each other. torch reads
# it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_OTHER_FAULTS = ("429", "500", "502", "504", "reset before", "reset after")
_OTHER_STAGES = ("create", "tree", "validate", "preupload", "batch", "complete", "verify", "refs",
                 "tag", "resolve", "download")  # fmt: skip

# By test, the parameters; none for all of it.
SLOW: dict[str, tuple[str, ...]] = {
    "tests/checkpoint/writers/test_layout.py::test_more_records_than_short_fields_count": (
        "65534", "65536",
    ),
    "tests/checkpoint/test_mutants.py::test_mutants_convert_or_are_refused": ("torch legacy",),
    "tests/checkpoint/unpickle/test_unpickle.py::test_malformed": (
        "4e304e304e304e304e304e30-complex", "5d5d5d5d5d5d5d5d5d5d5d5d-complex",
    ),
    "tests/cli/test_examples.py::test_it_runs": (
        "verify --ema --dtype fp16 last.ckpt ema.safetensors",
        "verify --family sdxl sdxl_vae.safetensors out/",
        "verify --report parity.json --html parity.html last.ckpt out/",
        "verify out/ --drop-in-for hf://stabilityai/sd-vae-ft-mse",
        "latents photos/ refs.safetensors --model out/",
        "verify --latents refs.safetensors last.ckpt out/",
        "finetune last.ckpt --ema --recipe ft-mse --data photos/ --out run/ --steps 1",
        "torchrun --nproc-per-node 8 -m vaeconv finetune out/ --data photos --out run --steps 9 "
        "--dry-run",
        "eval last.ckpt out/ --images val2017/ --out eval.json",
        "eval last.ckpt --raw-and-ema --images photos/ --out eval.json --html eval.html",
        "eval out/ --images hf://datasets/owner/name/val.zip --out eval.json",
        "eval --models models.toml --images val2017.zip --out eval.json --format markdown",
        "torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json",
        "compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/",
        "compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/",
        "release --until card",
    ),
    "tests/evaluation/test_evaluate.py::test_the_whole_inception_runs_from_the_command_line": (),
    "tests/evaluation/test_once_wrong.py::test_processes_join_again_and_again": (),
    "tests/evaluation/test_partial_results.py::test_a_run_that_is_killed_again_and_again": (),
    # The README's examples show the other answer.
    "tests/parity/test_verify_run.py::test_the_installed_entry_point": ("True-0",),
    "tests/publish/hub/test_loopback_hub.py::test_diffusers_loads_from_it": (),
    "tests/publish/hub/test_loopback_hub.py::test_what_runs_against_the_real_hub_passes_here": (),
    "tests/publish/hub/test_push_faults.py::test_a_trickle_ends_with_the_time_for_everything": (
        "look", "put",
    ),
    # Where it matters most, all faults stay.
    "tests/publish/hub/test_push_faults.py::test_any_single_fault_leaves_one_commit": tuple(
        map("-".join, itertools.product(_OTHER_STAGES, _OTHER_FAULTS))
    ),
    "tests/publish/release/test_release.py::test_a_change_redoes_what_depends_on_it": (
        "3", "5", "6", "9", "10",
    ),
    "tests/publish/release/test_release.py::test_from_a_step_does_it_and_what_follows_again": (),
    # Of thirteen places to be killed at, the others stay.
    "tests/publish/release/test_release.py::test_killed_anywhere_it_finishes_with_one_commit": (
        "1", "2", "3", "4", "5", "6", "8", "9", "11", "12",
    ),
    "tests/test_corpus.py::test_malformed": (
        "config_deep", "pickle_dup_bomb", "pickle_many_prefixes", "pickle_marks",
        "pickle_nested_lists", "pickle_nested_tuples", "st_json_many_lists", "tensor_aliased_bomb",
    ),
    "tests/test_ci_runs.py::test_a_job_on_the_hub_makes_the_release": (),
    "tests/test_ci_runs.py::test_a_signature_from_between_two_steps": (),
    "tests/test_ci_runs.py::test_the_action_installs_vaeconv": (),
    "tests/test_ci_runs.py::test_the_gate_of_each_change": (),
    "tests/test_faults.py::"
    "test_a_killed_run_leaves_old_or_new_and_the_next_one_removes_its_debris": (
        "new-out", "new-out.safetensors", "new-out.ckpt",
    ),
    "tests/training/test_processes.py::test_five_kills_and_the_same_end": ("0", "2"),
    "tests/weights/test_prune.py::test_a_stop_at_any_point_leaves_the_old_output_or_the_new": (
        "kill-after", "ctrl-c-after", "terminate-before",
    ),
}  # fmt: skip
_NODES = {
    f"{test}[{parameter}]" if parameter else test
    for test, parameters in SLOW.items()
    for parameter in parameters or ("",)
}


class _Unknown(pytest.Item):
    def runtest(self) -> None:
        pytest.fail(f"{self.name} (tests/conftest.py)", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from skipping_what_is_lacking()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from skipping_what_is_lacking()


@pytest.hookimpl(tryfirst=True)  # before -k and -m leave some out
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    found = {item.nodeid for item in items}
    # Files that are there in part, because a test of theirs was named, say nothing.
    whole = set() if any("::" in arg for arg in config.args) else {n.split("::")[0] for n in found}
    unknown = {
        node
        for node in _NODES - found
        if node.split("::")[0] in whole or not (config.rootpath / node.split("::")[0]).exists()
    }
    if unknown:  # as a test: an error here would not get out of a worker
        items.append(_Unknown.from_parent(session, name=f"SLOW names no test: {sorted(unknown)}"))
    for item in items:
        if item.nodeid in _NODES:
            item.add_marker(pytest.mark.slow)
