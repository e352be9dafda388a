"""Against the real Hub, where ``VAECONV_TEST_HUB=1`` and a token that may write are given.

Everything happens in two private repositories of the token's owner, which are removed at the end.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.publish.hub.test_originals import FILE, make_both

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("VAECONV_TEST_HUB") != "1",
        reason="for the real Hub set VAECONV_TEST_HUB=1 and HF_TOKEN",
    ),
    pytest.mark.filterwarnings("ignore"),  # of diffusers and the client about each other
]


@pytest.fixture(scope="module")
def ids() -> Iterator[tuple[str, str]]:
    from huggingface_hub import HfApi

    api = HfApi()
    name = f"{api.whoami()['name']}/vaeconv-test-{secrets.token_hex(4)}"
    found = name, f"{name}-original"
    yield found
    for repo_id in found:
        api.delete_repo(repo_id, missing_ok=True)


def run(*args: object, code: int = 0) -> Any:
    entry = Path(sys.executable).with_name("vaeconv")
    done = subprocess.run(
        [entry, *map(str, args), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_both_layouts_there_and_back(ids: tuple[str, str], tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    release = make_both(tmp_path / "release")
    command = ["push", release / "out", ids[0], "--original", ids[1], release / FILE]
    assert run(*command, "--dry-run")["changed"]
    done = run(*command, "--private", "--tag", "v1", "--verify")
    for repo_id, one in zip(ids, (done, done["original"]), strict=True):
        assert (one["is_new"], one["is_verified"], one["tag"]) == (True, True, "v1")
        info = api.model_info(repo_id)
        assert (info.private, info.sha) == (True, one["oid"])
        # The first is the Hub's own.
        assert len(api.list_repo_commits(repo_id)) == 2
        (tag,) = api.list_repo_refs(repo_id).tags
        assert tag.target_commit == one["oid"]
    again = run(*command, "--tag", "v1")
    assert (again["is_new"], again["original"]["is_new"]) == (False, False)

    shutil.copytree(release / "out", tmp_path / "other")
    with (tmp_path / "other/README.md").open("a") as card:
        card.write("\nAnother line.\n")
    pull = run("push", tmp_path / "other", ids[0], "--create-pr")
    assert pull["url"].endswith("/discussions/1")
    same = run("push", tmp_path / "other", ids[0], "--create-pr")
    assert (same["is_new"], same["url"]) == (False, pull["url"])

    from diffusers import AutoencoderKL

    model, notes = AutoencoderKL.from_pretrained(
        ids[0], revision="v1", cache_dir=tmp_path / "cache", output_loading_info=True
    )
    assert not any(notes[key] for key in ("missing_keys", "unexpected_keys"))
    assert model.config.latent_channels == 4
