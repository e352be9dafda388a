"""Run the examples in the docstrings of the public API: ``python -m tests.support.examples``.

Each name gets a folder of its own, as somebody has it who tries its example. Prints one JSON
object: by name, how many lines were tried, and what was wrong.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from diffusers import AutoencoderKL

import vaeconv
from vaeconv.publish.release.config import SourceTable

FIXTURES = Path(__file__).parents[2] / "fixtures"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\n---\n# My VAE\n"
RELEASE = """
[source]
checkpoint = "fixtures/tiny-kl.ckpt"
scaling_factor = 0.18215
[output]
original = "vae-ema-pruned"
[verify]
device = "cpu"
"""


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_examples() -> dict[str, tuple[int, str]]:
    """Try every public name."""
    public = {name: getattr(vaeconv, name) for name in vaeconv.__all__ if name != "__version__"}
    scope = {**public, "AutoencoderKL": AutoencoderKL, "SourceTable": SourceTable, "Path": Path}
    found = {}
    for name, one in public.items():
        (example,) = doctest.DocTestFinder(recurse=False).find(one, name, globs=dict(scope))
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, _inside(folder):
            shutil.copytree(FIXTURES, "fixtures")
            shutil.copytree(FIXTURES / "tiny-diffusers", "release-files")
            Path("release-files", "README.md").write_text(CARD)
            Path("release.toml").write_text(RELEASE)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", vaeconv.VaeconvWarning)
                doctest.DocTestRunner().run(example, out=said.write)
        found[name] = len(example.examples), said.getvalue()
    return found


if __name__ == "__main__":
    print(json.dumps(run_examples()))
