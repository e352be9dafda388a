"""``vaeconv push`` through the installed command, against a loopback Hub and its real client."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.publish.pushes import (
    CARD,
    FP16,
    NUMBERS,
    PLAIN,
    TOKEN,
    TOKENS,
    Pushes,
    contents_of,
    make_release,
    parity_of,
    run_here,
    run_push,
    sent_paths,
    state_of,
    uploaded,
    write_manifest,
    write_parity,
)
from tests.support.loopback_hub import FOREVER, Call, LoopbackHub, Repository, Status
from vaeconv.cli.render.push import push_lines
from vaeconv.errors import CheckFailedError, HubError, UsageError, one_line
from vaeconv.publish.files import checked_files
from vaeconv.publish.hub import push as pushing
from vaeconv.publish.hub import session as hub_session
from vaeconv.publish.hub.push import push_files
from vaeconv.publish.hub.push_options import PushOptions, is_ref

pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def push(hub: LoopbackHub, folder: Path, *args: object, code: int = 0, **env: Any) -> str:
    """Push, and return what was printed where it ends as it should."""
    done = run_push(hub.env(folder.parent / "home", **env), folder, *args)
    assert done.returncode == code, done.stderr
    for token in TOKENS:
        assert token not in done.stdout + done.stderr
    if code:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1 and "; " in done.stderr, done.stderr
        return done.stderr
    assert done.stderr == ""
    return done.stdout


def repo_of(hub: LoopbackHub) -> tuple[str, Repository]:
    repo_id = f"user/made-{next(NUMBERS)}"
    return repo_id, hub.create_repo(repo_id)


# --- what is published ---


LOAD = """
import sys, warnings
from diffusers import AutoencoderKL
for options in ({}, {"variant": "fp16"}):
    vae = AutoencoderKL.from_pretrained(sys.argv[1], **options)
    print(vae.config.latent_channels, vae.dtype, sum(p.numel() for p in vae.parameters()))
"""


def test_a_first_push_and_diffusers_after_it(hub: LoopbackHub, release: Path) -> None:
    out = push(hub, release, "user/first", "--private", "--tag", "v1.0", "--verify")
    repo = hub.repo("user/first")
    assert repo.private
    assert repo.files() == contents_of(release)
    assert (repo.commit_count(), repo.tags) == (1, {"v1.0": repo.head()})
    assert len(hub.asked("POST", "/commit/")) == 1
    assert {path for path, file in repo.commit().files.items() if file.is_lfs} == {
        PLAIN, FP16, "assets/one.png"
    }  # fmt: skip
    assert f"published 7 files to {repo.id}, branch main" in out
    assert f"commit {repo.head()}, tag v1.0" in out and "downloaded again, and equal" in out
    assert {r.token for r in hub.asked(path="^/api/models/")} == {TOKEN}

    env = hub.env(release.parent / "home")
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, repo.id], env=env, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    lines = loaded.stdout.splitlines()
    assert len(lines) == 2 and len(set(lines)) == 1 and lines[0].startswith("4 torch.float32 ")
    asked = [request.path for request in hub.asked(path="/resolve/")]
    assert any(PLAIN in path for path in asked) and any(FP16 in path for path in asked)

    before = state_of(hub)
    hub.requests.clear()
    out = push(hub, release, "user/first", "--private", "--tag", "v1.0", "--verify")
    assert "nothing changed: user/first has all 7 files" in out
    assert state_of(hub) == before
    assert hub.asked("PUT") == hub.asked(path="/commit/") == hub.asked("POST") == []


def test_json(hub: LoopbackHub, release: Path) -> None:
    repo_id, repo = repo_of(hub)
    before = repo.head()
    dry = json.loads(push(hub, release, repo_id, "--json", "--dry-run"))
    assert (dry["ok"], dry["dry_run"], dry["oid"], dry["is_new"]) == (True, True, None, False)
    assert sorted(dry["changed"]) == sorted(contents_of(release))
    assert repo.head() == before
    done = json.loads(push(hub, release, repo_id, "--json", "--tag", "v1"))
    assert (done["command"], done["oid"], done["tag"]) == ("push", repo.head(), "v1")
    assert (done["is_new"], done["unchanged"]) == (True, [])
    assert done["url"] == f"{hub.endpoint}/{repo_id}/commit/{repo.head()}"
    failed = run_push(
        hub.env(release.parent / "home", token="hf_wrong"), release, repo_id, "--json"
    )
    assert failed.returncode == 6
    assert json.loads(failed.stdout)["ok"] is False


def test_only_what_changed_is_sent(pushes: Pushes) -> None:
    pushes.run()
    pushes.hub.requests.clear()
    (pushes.folder / "config.json").write_text("{}")
    done = pushes.run(message="Mend the config")
    assert (done.changed, set(done.unchanged)) == (
        ("config.json",), set(pushes.contents) - {"config.json"}
    )  # fmt: skip
    assert sent_paths(pushes.hub) == ["config.json"] and uploaded(pushes.hub) == 0
    assert pushes.repo.commit().title == "Mend the config"
    assert pushes.repo.files() == {**pushes.contents, "config.json": b"{}"}


def test_same_size_and_other_content_is_changed(pushes: Pushes) -> None:
    pushes.run()
    for name in ("config.json", "weights.safetensors"):
        path = pushes.folder / name
        path.write_bytes(path.read_bytes()[::-1])
    assert pushes.run().changed == ("config.json", "weights.safetensors")


def test_what_else_is_there_stays(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id, {"theirs.txt": b"theirs"})
    pushes.run()
    assert pushes.repo.files() == {"theirs.txt": b"theirs", **pushes.contents}


def test_a_branch_is_made(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    main = pushes.repo.head()
    assert pushes.run(revision="v2", dry_run=True).oid is None
    assert set(pushes.repo.branches) == {"main"}
    done = pushes.run(revision="v2", tag="v2.0")
    assert pushes.repo.files("v2") == pushes.contents
    assert (pushes.repo.head(), pushes.repo.commit_count("v2")) == (main, 1)
    assert pushes.repo.tags == {"v2.0": pushes.repo.head("v2")} == {"v2.0": done.oid}


def test_a_branch_of_a_new_repository(pushes: Pushes) -> None:
    pushes.run(revision="v2")
    assert (pushes.repo.commit_count("v2"), pushes.repo.commit_count()) == (1, 0)


def test_a_pull_request(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    done = pushes.run(create_pr=True)
    assert pushes.repo.commit_count() == 0
    assert pushes.repo.pulls == {1: done.oid}
    assert pushes.repo.files("refs/pr/1") == pushes.contents
    assert done.url == f"{pushes.hub.endpoint}/{pushes.repo_id}/discussions/1"
    said = push_lines(done, dry_run=False, names=False)[0]
    assert said.startswith(f"opened a pull request to {pushes.repo_id} with ")


def test_a_pull_request_that_is_open_is_not_made_again(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    first = pushes.run(create_pr=True)
    (pushes.folder / "config.json").write_text("{}")
    second = pushes.run(create_pr=True)
    (pushes.folder / "config.json").write_bytes(pushes.contents["config.json"])
    again = pushes.run(create_pr=True)
    assert (again.is_new, again.oid, again.url) == (False, first.oid, first.url)
    assert pushes.repo.pulls == {1: first.oid, 2: second.oid}
    pushes.repo.closed.add(1)
    assert pushes.run(create_pr=True).is_new
    assert len(pushes.repo.pulls) == 3


def test_an_open_pull_request_among_many(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    pushes.repo.pulls.update(dict.fromkeys(range(1, 12), pushes.repo.head()))
    first = pushes.run(create_pr=True)
    assert first.url.endswith("/discussions/12")
    again = pushes.run(create_pr=True)
    assert (again.is_new, again.url) == (False, first.url)


def test_a_draft_is_an_open_pull_request(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    first = pushes.run(create_pr=True)
    told = {"num": 1, "title": "t", "author": {"name": "user"}, "status": "draft", "events": [],
            "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": True,
            "repo": {"name": pushes.repo_id, "type": "model"}, "filesWithConflicts": [],
            "changes": {"base": "refs/heads/main"}}  # fmt: skip
    pushes.hub.add_rule(Status(200, body=json.dumps(told).encode()), path="/discussions/1")
    assert pushes.run(create_pr=True).oid == first.oid
    assert len(pushes.repo.pulls) == 1


def test_a_pull_request_is_verified_where_it_is(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    assert pushes.run(create_pr=True, verify=True).is_verified
    assert {request.path.split("/")[4] for request in pushes.hub.asked("GET", "/resolve/")} == {
        pushes.repo.pulls[1]
    }


def test_a_commit_names_what_it_publishes(pushes: Pushes) -> None:
    pushes.run()
    assert pushes.repo.commit().title == "Publish README.md, config.json, one.png and 1 more"
    for name in ("config.json", "one.png"):
        (pushes.folder / name).write_bytes(b"{}")
    pushes.run()
    assert pushes.repo.commit().title == "Publish config.json, one.png"


def test_repositories_of_other_types(pushes: Pushes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request, and what a job's identity is exchanged for, names the type as well."""
    place = f"/api/datasets/{pushes.repo_id}"
    head = {"id": pushes.repo_id, "sha": "a" * 40}
    told = Status(200, body=json.dumps(head).encode())
    pushes.hub.add_rule(told, path=f"{place}(/revision/main)?$", times=2)
    pushes.hub.add_rule(Status(200, body=b"[]"), path=f"{place}/tree/")
    pushes.hub.trust("id-token", f"datasets/{pushes.repo_id}")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "id-token")
    monkeypatch.setenv("HF_OIDC_RESOURCE", "user/another")
    done = pushes.run(repo_type="dataset", dry_run=True)
    assert set(done.changed) == set(pushes.contents)
    asked = {request.path.partition("?")[0] for request in pushes.hub.asked("GET")}
    assert asked == {place, f"{place}/revision/main", f"{place}/tree/{'a' * 40}"}


def test_what_a_gitignore_would_leave_out(pushes: Pushes) -> None:
    """The client leaves it out and does not say so."""
    pushes.hub.create_repo(pushes.repo_id, {".gitignore": b"*.json\n"})
    before = pushes.repo.head()
    with pytest.raises(HubError, match=r"a line of \.gitignore keeps config\.json out"):
        pushes.run()
    assert pushes.repo.head() == before
    (pushes.folder / "config.json").unlink()
    pushes.run()
    assert pushes.repo.commit().files.keys() >= {"weights.safetensors", ".gitignore"}


def test_some_of_the_files(hub: LoopbackHub, release: Path) -> None:
    repo_id, repo = repo_of(hub)
    push(hub, release, repo_id, "--include", "*.json", "--include", "README.md",
         "--include", PLAIN, "--include", "assets/*", "--exclude", "parity*")  # fmt: skip
    assert set(repo.files()) == {"README.md", "config.json", "vaeconv.json", PLAIN,
                                 "assets/one.png"}  # fmt: skip


def test_a_dry_run_changes_nothing(pushes: Pushes) -> None:
    before = state_of(pushes.hub)
    done = pushes.run(dry_run=True, tag="v1", verify=True, private=True)
    assert (done.oid, done.is_new, done.is_verified) == (None, False, False)
    assert set(done.changed) == set(pushes.contents)
    assert state_of(pushes.hub) == before
    pushes.run()
    before = state_of(pushes.hub)
    assert pushes.run(dry_run=True).changed == ()
    (pushes.folder / "config.json").write_text("{}")
    assert pushes.run(dry_run=True, tag="v1").changed == ("config.json",)
    assert state_of(pushes.hub) == before


def test_verify_compares_what_comes_back(pushes: Pushes) -> None:
    def spoil() -> None:
        blobs = pushes.repo.lfs
        for sha256, content in blobs.items():
            blobs[sha256] = b"x" + content[1:]

    pushes.hub.add_rule(Call(after=spoil), method="POST", path="/commit/")

    # The files of the commit are kept by the Hub; storage gives what it holds.
    with pytest.raises(CheckFailedError, match="came back different from what was published"):
        pushes.run(verify=True)


def test_a_file_that_changes_under_way_is_not_published(pushes: Pushes) -> None:
    files = pushes.files
    (pushes.folder / "config.json").write_text("{}")
    with pytest.raises(CheckFailedError, match=r"config\.json: it changed after it was checked"):
        push_files(files, pushes.repo_id, PushOptions())
    (pushes.folder / "config.json").unlink()
    with pytest.raises(CheckFailedError, match=r"config\.json: it changed after it was checked"):
        push_files(files, pushes.repo_id, PushOptions())
    assert pushes.repo.commit_count() == 0


# --- tags ---


def test_a_tag_elsewhere_stops_it_before_anything(hub: LoopbackHub, release: Path) -> None:
    repo_id, repo = repo_of(hub)
    repo.tags["v1"] = elsewhere = repo.head()
    hub.move_head(repo_id)
    before = state_of(hub)
    said = push(hub, release, repo_id, "--tag", "v1", code=6)
    assert f"the tag v1 stands on another commit, {elsewhere}" in said
    assert state_of(hub) == before
    assert hub.asked("POST") == hub.asked("PUT") == []


def test_a_tag_elsewhere_though_all_files_are_there(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    pushes.repo.tags["v1"] = pushes.repo.head()
    pushes.run()
    with pytest.raises(HubError, match="stands on another commit"):
        pushes.run(tag="v1")
    assert pushes.run(tag="v2").tag == "v2"
    assert pushes.repo.tags["v2"] == pushes.repo.head()


def test_a_tag_that_begins_alike_is_another(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    pushes.repo.tags["v1.0"] = first = pushes.repo.head()
    assert pushes.run(tag="v1").tag == "v1"
    assert pushes.repo.tags == {"v1.0": first, "v1": pushes.repo.head()}


def test_a_tag_on_what_is_about_to_change(pushes: Pushes) -> None:
    """It would be left behind: this is said before anything is published."""
    pushes.run(tag="v1")
    (pushes.folder / "config.json").write_text("{}")
    before = state_of(pushes.hub)
    with pytest.raises(HubError, match="stands on another commit"):
        pushes.run(tag="v1")
    assert state_of(pushes.hub) == before


def test_a_tag_that_somebody_else_puts_meanwhile(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    first = pushes.repo.head()
    pushes.hub.add_rule(
        Call(lambda: pushes.repo.tags.update(v1=first)), method="POST", path="/tag/"
    )
    with pytest.raises(HubError, match=f"stands on another commit, {first}"):
        pushes.run(tag="v1")
    assert pushes.repo.tags == {"v1": first}


NAMES = [
    "no good", "a..b", "a~1", "a^", "x:y", "a?", "a*", "[a", "a\\b", "/a", "a/", "a//b", ".a", "a.",
    "a/.b", "a.lock", "a.lock/b", "a@{b", "@", "a\x7f", "a\tb",
    "v1.0", "a/b", "a@b", "ä", "v1.lockx", "refs/pr/1", "a-b", "a/-b", "{a", "a]", "%", "a/@",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_git_agrees_on_names(name: str) -> None:
    command = ["git", "check-ref-format", "--allow-onelevel", name]
    assert is_ref(name) == (subprocess.run(command, check=False).returncode == 0)


@pytest.mark.parametrize("options", [{"tag": "a b"}, {"revision": "a..b"}, {"tag": "-a"}])
def test_a_name_that_git_does_not_allow(release: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not a name that git allows"):
        pushing.push(release, "user/x", PushOptions(**options))


def test_a_name_that_the_hub_refuses(pushes: Pushes) -> None:
    with pytest.raises(HubError, match=r"rejects the request \(400: Invalid reference name"):
        pushes.run(tag="a,b")
    assert pushes.repo.commit_count() <= 1


# --- refusals of the Hub ---


@pytest.mark.parametrize(
    ("repo_id", "token", "said"),
    [
        ("user/x", "hf_wrongSecret", ("401", "hf auth login")),
        ("user/x", None, ("no token is set", "hf auth login")),
        ("other/x", TOKEN, ("is not other, and not a member", "write access")),
        ("user/x", "hf_readingSecretToken", ("may only read", "write access")),
    ],
)
def test_who_may_not_push(
    hub: LoopbackHub, release: Path, repo_id: str, token: str | None, said: tuple[str, str]
) -> None:
    before = state_of(hub)
    text = push(hub, release, repo_id, token=token, code=6)
    assert all(part in text for part in said) and repo_id in text
    assert token is None or token not in text
    assert state_of(hub) == before


def test_a_private_repository_of_somebody_else_is_none(pushes: Pushes) -> None:
    pushes.hub.create_repo("other/secret", private=True)
    pushes.repo_id = "other/secret"
    with pytest.raises(HubError, match="not a member of it"):
        pushes.run()
    assert pushes.hub.repo("other/secret").commit_count() == 0


@pytest.mark.parametrize(
    ("status", "path", "said"),
    [
        (401, "/commit/", "hf auth login"),
        (403, "/commit/", "write access"),
        (404, "/preupload/", "no such repository"),
        (409, "/tree/", "choose another name"),
        (413, "/lfs/", "leave it out with exclude"),
        (413, "/commit/", "leave it out with exclude"),
        (400, "/commit/", "the Hub rejects"),
        (403, "/lfs/", "write access"),
    ],
)
def test_a_refusal_is_not_asked_again(pushes: Pushes, status: int, path: str, said: str) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    rule = pushes.hub.add_rule(Status(status), times=FOREVER, path=path)
    with pytest.raises(HubError) as caught:
        pushes.run()
    assert said in str(caught.value) and str(status) in str(caught.value)
    assert caught.value.exit_code == 6 and caught.value.hint
    assert 1 <= rule.seen <= 4  # files and parts that are uploaded side by side
    assert pushes.repo.commit_count() == 0
    assert pushes.slept == []


def test_front_matter_that_the_hub_refuses(hub: LoopbackHub, release: Path) -> None:
    repo_id, repo = repo_of(hub)
    # A rule of the Hub that came after this version.
    said = {"errors": [{"message": '"metrics" must be known'}], "warnings": []}
    hub.add_rule(Status(400, body=json.dumps(said).encode()), path="/validate-yaml")
    text = push(hub, release, repo_id, code=6)
    assert "refuses the card's front matter" in text and '"metrics" must be' in text
    assert "fix README.md" in text
    assert repo.commit_count() == 0 and hub.asked("PUT") == []


def test_a_traceback_has_no_token(hub: LoopbackHub, release: Path) -> None:
    hub.add_rule(Status(403), path="/objects/batch", times=FOREVER)
    env = hub.env(release.parent / "home")
    done = run_push(env, release, "user/traced", "--verbose")
    assert done.returncode == 6
    assert "Traceback" in done.stderr
    assert TOKEN not in done.stdout + done.stderr and "ticket=" not in done.stderr


def test_tries_are_not_told_line_by_line(hub: LoopbackHub, release: Path) -> None:
    repo_id, repo = repo_of(hub)
    hub.add_rule(Status(503), method="PUT", host="storage")
    push(hub, release, repo_id)  # which asserts that nothing was said
    assert repo.commit_count() == 1


# --- options ---


@pytest.mark.parametrize(
    ("repo_id", "options", "said"),
    [
        ("name", {}, "is not owner/name"),
        ("a/b/c", {}, "is not owner/name"),
        ("/name", {}, "is not owner/name"),
        ("user/", {}, "is not owner/name"),
        ("user/a name", {}, "is not owner/name"),
        ("user/na--me", {}, "is not owner/name"),
        ("user/x", {"create_pr": True, "tag": "v1"}, "create_pr goes with neither"),
        ("user/x", {"create_pr": True, "revision": "v2"}, "create_pr goes with neither"),
        ("user/x", {"repo_type": "modle"}, "repo_type"),
    ],
)
def test_options_that_do_not_fit(
    hub: LoopbackHub, release: Path, repo_id: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        pushing.push(release, repo_id, PushOptions(**options))


def test_no_time_at_all(pushes: Pushes, tmp_path: Path) -> None:
    release = make_release(tmp_path / "whole")
    with pytest.raises(HubError, match="not done within 0 seconds"):
        pushing.push(release, pushes.repo_id, PushOptions(timeout=1e-6))
    assert pushes.repo_id not in pushes.hub.repos


# --- gates: nothing that fails here comes to the Hub ---


def damage_weights(folder: Path) -> None:
    (folder / PLAIN).write_bytes((folder / PLAIN).read_bytes()[:-100])
    write_manifest(folder)
    write_parity(folder)


def replace_weights(folder: Path) -> None:
    content = bytearray((folder / PLAIN).read_bytes())
    content[-1] ^= 1
    (folder / PLAIN).write_bytes(content)


def replace_and_prove(folder: Path) -> None:
    replace_weights(folder)
    write_parity(folder)


def change_config(folder: Path, content: str | None = None, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(content or json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(folder)


def weights_only(folder: Path) -> None:
    report = parity_of(folder / PLAIN, folder / FP16)
    report["same"]["decoded"] = False
    (folder / "parity.json").write_text(json.dumps(report))


def write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)


GATES: dict[str, tuple[Any, str]] = {
    "damaged weights": (damage_weights, PLAIN),
    "no weights": (
        lambda folder: [(folder / name).unlink() for name in (PLAIN, FP16)],
        "there are no weights",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no config.json"),
    "config is no JSON": (lambda folder: change_config(folder, "{"), "config.json: neither JSON"),
    "config contradicts": (lambda folder: change_config(folder, latent_channels=16), "config"),
    "config contradicts the depth": (
        lambda folder: change_config(folder, layers_per_block=2),
        "config",
    ),
    "other weights than written": (replace_and_prove, "is not what vaeconv wrote"),
    "no manifest that is one": (
        lambda folder: (folder / "vaeconv.json").write_text("[]"),
        "not a manifest",
    ),
    "no parity report": (
        lambda folder: (folder / "parity.json").unlink(),
        "there is no parity report",
    ),
    "parity failed": (
        lambda folder: write_parity(folder, ok=False, problems=["they differ"]),
        "parity.json says: they differ",
    ),
    "parity of other weights": (
        lambda folder: [replace_weights(folder), write_manifest(folder)],
        f"{PLAIN} is in no parity report that passed",
    ),
    "parity of weights only": (weights_only, "compared weights only"),
    "parity report of something else": (
        lambda folder: (folder / "parity.json").write_text('{"command": "eval"}'),
        "is not a parity report",
    ),
    "parity report without sides": (
        lambda folder: (folder / "parity.json").write_text('{"command": "verify", "ok": true}'),
        "is not a parity report",
    ),
    "no card": (lambda folder: (folder / "README.md").unlink(), "there is no README.md"),
    "card without front matter": (
        lambda folder: write_card(folder, "# Tiny\n"),
        "README.md: the card has no front matter",
    ),
    "card with a dead link": (
        lambda folder: write_card(folder, CARD + "![x](gone.png)\n"),
        "README.md: the link gone.png leads to nothing",
    ),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_closed(release: Path, gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, said = GATES[gate]
    spoil(release)
    monkeypatch.setattr(pushing, "push_files", lambda *_, **__: pytest.fail("it was pushed"))
    with pytest.raises(CheckFailedError, match="cannot be published as it is") as caught:
        pushing.push(release, "user/x")
    all_said = [caught.value.what, *caught.value.details]
    assert any(said in line for line in all_said), all_said
    assert caught.value.exit_code == 4
    result = run_here("push", release, "user/x")
    assert (result.exit_code, result.stdout) == (4, "")
    first, *others = result.stderr.splitlines()
    assert first.startswith("error: ") and "more" not in first
    assert others == [f"  - {one_line(problem)}" for problem in caught.value.details]


def test_without_parity(release: Path) -> None:
    (release / "parity.json").unlink()
    files = checked_files(release, PushOptions(parity=False))
    assert [file.path for file in files] == sorted(contents_of(release))


def test_a_report_from_elsewhere(release: Path, tmp_path: Path) -> None:
    report = (release / "parity.json").rename(tmp_path / "elsewhere.json")
    assert checked_files(release, PushOptions(reports=(report,)))


def test_closed_gates_ask_nothing(hub: LoopbackHub, release: Path) -> None:
    (release / "parity.json").unlink()
    done = run_push(hub.env(release.parent / "home"), release, "user/gated", "--tag", "v1")
    assert (done.returncode, hub.requests) == (4, [])
    assert "user/gated" not in hub.repos


# --- a CI job's identity ---


def test_a_job_s_identity_is_good_for_both_repositories(
    pushes: Pushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token from OIDC is for one repository; each push exchanges the identity for its own."""
    ids = [f"user/trusted-{next(NUMBERS)}" for _ in range(2)]
    for repo_id in ids:
        pushes.hub.create_repo(repo_id)
        pushes.hub.trust("id-token", repo_id)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "id-token")
    monkeypatch.setenv("HF_OIDC_RESOURCE", ids[0])
    for repo_id in ids:
        assert push_files(pushes.files, repo_id, PushOptions()).is_new
        assert pushes.hub.repo(repo_id).files() == pushes.contents
    assert os.environ["HF_OIDC_RESOURCE"] == ids[0]
    assert len(pushes.hub.asked("POST", "/oauth/token")) == 2

    with pytest.raises(HubError, match="rejects the request") as caught:
        push_files(pushes.files, "user/not-trusting", PushOptions())
    assert "id-token" not in str(caught.value)


def test_a_job_without_an_identity(pushes: Pushes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", pushes.repo_id)
    monkeypatch.delenv("HF_OIDC_ID_TOKEN", raising=False)
    with pytest.raises(HubError, match=r"no identity to show.*permission id-token: write"):
        pushes.run()


def test_an_identity_that_is_no_repository_s_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "user"):
        monkeypatch.setenv("HF_OIDC_RESOURCE", given)
        with hub_session.trusted_for("user/name", "model"):
            assert os.environ["HF_OIDC_RESOURCE"] == given


# --- on a terminal ---


@pytest.mark.parametrize("options", [[], ["--quiet"], ["--json"]])
def test_uploads_show_on_a_terminal_and_not_where_silence_is_asked_for(
    hub: LoopbackHub, release: Path, options: list[str]
) -> None:
    import fcntl
    import pty
    import termios

    repo_id, repo = repo_of(hub)
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [Path(sys.executable).with_name("vaeconv"), "push", release, repo_id, *options]
    env = hub.env(release.parent / "home", TERM="xterm")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=child) as process:
        os.close(child)
        said = b""
        with contextlib.suppress(OSError):  # what Linux says where the other end is closed
            while piece := os.read(parent, 65536):
                said += piece
    os.close(parent)
    assert (process.returncode, repo.commit_count()) == (0, 1)
    assert (b"LFS files: 100%" in said) == (not options), said
    assert not options or said == b""


def test_what_a_report_leaves_unproven_is_said(hub: LoopbackHub, release: Path) -> None:
    reason = "the scaling of A: its files state none"
    write_parity(release, unproven=[reason])
    for more in (["--dry-run"], []):
        done = run_push(hub.env(release.parent / "home"), release, "user/unproven", *more)
        assert done.returncode == 0
        assert f"note: parity.json could not prove {reason}\n" in done.stderr
    said = json.loads(push(hub, release, "user/unproven", "--json"))
    assert said["notes"] == [f"parity.json could not prove {reason}"]


def test_all_that_reports_say_is_listed(hub: LoopbackHub, release: Path) -> None:
    write_parity(release, ok=False, problems=["activation differs", "the weights differ"])
    done = run_push(hub.env(release.parent / "home"), release, "user/failed")
    assert done.returncode == 4
    for problem in ("activation differs", "the weights differ"):
        assert f"  - parity.json says: {problem}\n" in done.stderr
