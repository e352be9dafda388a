"""The environment that all tests share."""

from __future__ import annotations

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
    os.environ["HF_HUB_DISABLE_SYMLINKS_WARNING"] = "1"  # on Windows, and where that is acted
    if hasattr(time, "tzset"):
        time.tzset()
os.umask(0o022)
# Where tests run in the background of a shell, Ctrl-C is ignored, and is in what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Small convolutions on many threads that share few cores mostly wait for each other. torch reads
# it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from skipping_what_is_lacking()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from skipping_what_is_lacking()
