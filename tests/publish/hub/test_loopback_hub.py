"""The loopback Hub, judged by the real client: what it keeps, gives back, refuses and breaks."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.loopback_hub import (
    FOREVER,
    Account,
    Action,
    Call,
    Cut,
    Drop,
    Garbage,
    Hang,
    LoopbackHub,
    Repository,
    Request,
    Status,
    Trickle,
)
from tests.support.loopback_hub.client import Client, Failure, start
from tests.support.loopback_hub.repository import GIT_ATTRIBUTES, folders

FIXTURES = Path(__file__).parents[3] / "fixtures"
CARD = b"---\nlicense: mit\ntags:\n- vae\n---\n# A model\n"
FILES = {
    "README.md": CARD,
    "config.json": b'{"latent_channels": 4}',
    "pictures/grid.png": b"\x89PNG" * 500,
    "weights.safetensors": bytes(range(256)) * (3 << 12),  # 3 MiB: three parts
}
PUSH = """
ops = [hub.CommitOperationAdd(path, bytes.fromhex(content)) for path, content in files.items()]
info = api.create_commit(repo, ops, commit_message="Push", **options)
vars(info)
"""
TOKENS: dict[str, str | Account] = {
    "hf_test": Account("user", orgs=("lab",)),
    "hf_other": "other",
    "hf_read": Account("user", can_write=False),
}


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackHub, Client]]:
    folder = tmp_path_factory.mktemp("loopback")
    with (
        LoopbackHub(TOKENS) as hub,
        start(hub.env(folder / "home"), folder / "log.txt") as client,
    ):
        client.get("api.whoami()")  # nothing that is done once only is left to the tests
        yield hub, client


@pytest.fixture
def hub(loopback: tuple[LoopbackHub, Client]) -> Iterator[LoopbackHub]:
    hub = loopback[0]
    hub.requests.clear()
    yield hub
    hub.rules.clear()
    assert hub.unserved == []


@pytest.fixture
def client(loopback: tuple[LoopbackHub, Client], hub: LoopbackHub) -> Client:
    return loopback[1]


NUMBERS = itertools.count(1)


@pytest.fixture
def repo(hub: LoopbackHub) -> Repository:
    """A repository with nothing in it yet."""
    return hub.create_repo(f"user/model-{next(NUMBERS)}")


def told(
    repo: Repository | str, files: dict[str, bytes] | None = None, **options: Any
) -> dict[str, Any]:
    repo_id = repo if isinstance(repo, str) else repo.id
    contents = {path: content.hex() for path, content in (files or FILES).items()}
    return {"repo": repo_id, "files": contents, "options": options}


def push(
    client: Client, repo: Repository, files: dict[str, bytes] | None = None, **options: Any
) -> dict[str, Any]:
    info: dict[str, Any] = client.get(PUSH, **told(repo, files, **options))
    return info


def paths(requests: list[Request]) -> list[str]:
    """Short names of what was asked, in order."""
    names = ("preupload", "batch", "verify", "complete_multipart", "commit", "validate", "/lfs/")
    return [
        next((name.strip("/") for name in names if name in request.path), request.path)
        for request in requests
    ]


def kinds(failure: Failure | None) -> list[str]:
    return [] if failure is None else [failure.type, *kinds(failure.cause)]


# Who asks


def test_tokens_stand_for_accounts(hub: LoopbackHub, client: Client) -> None:
    me = client.get("api.whoami()")
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("user", ["lab"])
    assert client.get("api.whoami(token='hf_other')")["name"] == "other"
    assert [request.token for request in hub.asked(path="whoami")] == ["hf_test", "hf_other"]


def test_an_unknown_token_is_refused_everywhere(client: Client, repo: Repository) -> None:
    failure = client.fail("api.whoami(token='hf_wrong')")
    assert (failure.type, failure.status) == ("HfHubHTTPError", 401)
    assert "Invalid user token" in failure.message
    failure = client.fail("api.model_info(repo, token='hf_wrong')", repo=repo.id)
    assert (failure.type, failure.status) == ("HfHubHTTPError", 401)


def test_a_repository_is_made_once(hub: LoopbackHub, client: Client) -> None:
    url = client.get("api.create_repo('user/new', private=True)")
    assert url == f"{hub.endpoint}/user/new"
    assert (hub.repo("user/new").private, hub.repo("user/new").commit_count()) == (True, 0)
    failure = client.fail("api.create_repo('user/new')")
    assert (failure.type, failure.status) == ("HfHubHTTPError", 409)
    assert client.get("api.create_repo('user/new', exist_ok=True)") == url
    client.get("api.create_repo('lab/new')")
    assert not hub.repo("lab/new").private


@pytest.mark.parametrize(
    ("repo_id", "token"), [("other/new", "hf_test"), ("user/unmade", "hf_read")]
)
def test_a_repository_cant_be_made_without_rights(
    hub: LoopbackHub, client: Client, repo_id: str, token: str
) -> None:
    code = "api.create_repo(repo, token=token, exist_ok=True)"
    failure = client.fail(code, repo=repo_id, token=token)
    assert (failure.type, failure.status) == ("HfHubHTTPError", 403)
    assert "rights to create" in failure.message
    assert repo_id not in hub.repos
    hub.create_repo(repo_id)
    assert client.get(code, repo=repo_id, token=token).endswith(repo_id)
    del hub.repos[repo_id]


def test_a_private_repository_is_there_for_its_owner_only(hub: LoopbackHub, client: Client) -> None:
    hub.create_repo("user/secret", {"config.json": b"{}"}, private=True)
    seen = "api.file_exists('user/secret', 'config.json', token=token)"
    assert client.get(seen, token="hf_test") is True
    assert client.get(seen, token="hf_other") is False
    statuses = [
        client.fail("api.model_info('user/secret', token=token)", token=token).status
        for token in ("hf_other", False)
    ]
    assert statuses == [404, 401]


@pytest.mark.parametrize("token", ["hf_read", "hf_other"])
def test_only_who_has_rights_pushes(client: Client, repo: Repository, token: str) -> None:
    failure = client.fail(PUSH, **told(repo, token=token))
    assert (failure.type, failure.status) == ("HfHubHTTPError", 403)
    assert repo.commit_count() == 0


def test_a_trusted_job_gets_a_token_for_one_repository(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    hub.trust("id-token", repo.id)
    hub.create_repo("user/untrusted")
    enter = "os.environ.update(HF_OIDC_ID_TOKEN=id_token, HF_OIDC_RESOURCE=repo)"
    try:
        client.get(enter, id_token="forged", repo=repo.id)
        failure = client.fail("api.whoami()")
        assert (failure.type, failure.status) == ("BadRequestError", 400)
        assert hub.asked(path="whoami") == []
        client.get(enter, id_token="id-token", repo=repo.id)
        assert client.get("api.whoami()")["name"] == "user"
        push(client, repo)
        assert repo.files() == FILES
        assert client.fail(PUSH, **told("user/untrusted")).status == 403
        assert client.fail("api.create_repo('user/brand-new')").status == 401
        assert client.get("api.create_repo(repo, exist_ok=True)", repo=repo.id).endswith(repo.id)
    finally:
        client.get("del os.environ['HF_OIDC_ID_TOKEN'], os.environ['HF_OIDC_RESOURCE']")
    assert len(hub.asked("POST", "/oauth/token")) == 2
    tokens = {request.token for request in hub.asked(path="/commit/")}
    assert len(tokens) == 1 and tokens.pop().startswith("hf_jwt_")  # type: ignore[union-attr]


# What is pushed


def test_one_commit_holds_what_was_pushed(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    first = repo.head()
    info = push(client, repo, commit_description="At length")
    assert repo.files() == FILES
    assert (info["oid"], repo.commit_count()) == (repo.head(), 1)
    commit = repo.commits()[0]
    assert (commit.title, commit.message, commit.parent) == ("Push", "At length", first)
    assert {path for path, file in commit.files.items() if file.is_lfs} == {
        "pictures/grid.png",
        "weights.safetensors",
    }
    asked = paths(hub.requests)
    assert asked[:3] == ["validate", "preupload", "batch"]
    assert asked[-1] == "commit"
    # One upload of one part, and one of three; they may overlap.
    assert sorted(asked[3:-1]) == sorted(["lfs"] * 4 + ["verify"] * 2 + ["complete_multipart"])
    assert {request.token for request in hub.requests if request.host == "storage"} == {None}
    sent = sum(request.size for request in hub.asked("PUT", host="storage"))
    assert sent == sum(len(FILES[path]) for path in FILES if path.endswith(("png", "tensors")))


def test_the_same_again_is_no_commit(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    oid = push(client, repo)["oid"]
    hub.requests.clear()
    assert push(client, repo)["oid"] == oid
    assert repo.commit_count() == 1
    assert hub.asked("PUT") == hub.asked(path="/commit/") == []


def test_only_what_changed_is_sent(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    push(client, repo)
    hub.requests.clear()
    changed = {**FILES, "config.json": b"{}", "copy.safetensors": FILES["weights.safetensors"]}
    push(client, repo, changed)
    assert repo.files() == changed
    assert repo.commit_count() == 2
    assert hub.asked("PUT") == []  # the copy's content is there
    lines = [json.loads(line) for line in hub.asked(path="/commit/")[0].body.splitlines()]
    sent = [line["value"]["path"] for line in lines[1:]]
    assert sent == ["config.json", "copy.safetensors"]


def test_a_file_is_lfs_by_its_size_too(
    hub: LoopbackHub, client: Client, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "regular_limit", 10)
    files = {"ten.txt": b"0123456789", "eleven.txt": b"0123456789x", "empty.safetensors": b""}
    push(client, repo, files)
    assert repo.files() == files
    assert [name for name, file in repo.commit().files.items() if file.is_lfs] == ["eleven.txt"]


def test_files_and_folders_are_deleted(client: Client, repo: Repository) -> None:
    push(client, repo, {"a.txt": b"a", "b/c.txt": b"c", "b/d/e.txt": b"e", "bc.txt": b"bc"})
    code = (
        "gone = [hub.CommitOperationDelete(path) for path in paths]\n"
        "api.create_commit(repo, gone, commit_message='Delete').oid"
    )
    client.get(code, repo=repo.id, paths=["a.txt", "b/"])
    assert repo.files() == {"bc.txt": b"bc"}
    failure = client.fail(code, repo=repo.id, paths=["a.txt"])
    assert (failure.type, repo.commit_count()) == ("RemoteEntryNotFoundError", 2)


def test_a_head_that_moved_is_not_overwritten(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    seen = repo.head()
    theirs = hub.move_head(repo.id)
    failure = client.fail(PUSH, **told(repo, parent_commit=seen))
    assert (failure.type, failure.status) == ("HfHubHTTPError", 412)
    assert (repo.head(), repo.commit_count()) == (theirs, 1)
    assert push(client, repo, parent_commit=theirs)["oid"] == repo.head() != theirs


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        ("license: [mit", "Invalid YAML"),
        ("license: mit\nlicense: mit", "duplicated mapping key"),
        ("- license", "must be a mapping"),
        ("license: 3", '"license" must be a string'),
        ("tags: [1]", '"tags" must be a string or an array'),
        ("model-index:\n- results: []", '"model-index[0].name" is required'),
        (
            "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {name: n}",
            '"model-index[0].results[0].dataset.type" is required',
        ),
    ],
)
def test_a_card_with_bad_metadata_is_refused_first(
    hub: LoopbackHub, client: Client, repo: Repository, front: str, reason: str
) -> None:
    card = f"---\n{front}\n---\n# Title\n".encode()
    failure = client.fail(PUSH, **told(repo, {"README.md": card}))
    assert failure.type == "ValueError"
    assert "Invalid metadata in README.md" in failure.message
    assert reason in failure.message
    assert paths(hub.requests) == ["validate"]


def test_a_card_without_metadata_is_warned_of(client: Client, repo: Repository) -> None:
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    api._validate_yaml(card)\n"
        "[str(warning.message) for warning in seen]"
    )
    (message,) = client.get(code, card="# Title\n")
    assert "empty or missing yaml metadata" in message
    assert client.get(code, card=CARD.decode()) == []


def test_what_is_missing_has_a_type_of_its_own(client: Client, repo: Repository) -> None:
    failure = client.fail(PUSH, **told("user/nowhere"))
    assert (failure.type, failure.status) == ("RepositoryNotFoundError", 404)
    failure = client.fail("api.model_info('user/nowhere', token=False)")
    assert (failure.type, failure.status) == ("RepositoryNotFoundError", 401)
    failure = client.fail(PUSH, **told(repo, revision="nowhere"))
    assert (failure.type, failure.status) == ("RevisionNotFoundError", 404)
    failure = client.fail("api.hf_hub_download(repo, 'nowhere.txt')", repo=repo.id)
    assert (failure.type, failure.status) == ("RemoteEntryNotFoundError", 404)


def test_storage_takes_what_was_agreed_on_only(hub: LoopbackHub, repo: Repository) -> None:
    content, headers = b"weights", {"Authorization": "Bearer hf_test"}
    oid = hashlib.sha256(content).hexdigest()

    def ask(method: str, url: str, body: bytes) -> tuple[int, Any]:
        server, _, path = url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(server, timeout=5)
        connection.request(method, f"/{path}", body, headers)
        response = connection.getresponse()
        status, data = response.status, response.read()
        connection.close()
        return status, json.loads(data or b"{}")

    line = {"path": "w.safetensors", "algo": "sha256", "oid": oid, "size": len(content)}
    commit = "\n".join(
        json.dumps({"key": key, "value": value})
        for key, value in {"header": {"summary": "Push"}, "lfsFile": line}.items()
    ).encode()
    commit_url = f"{hub.endpoint}/api/models/{repo.id}/commit/main"
    status, said = ask("POST", commit_url, commit)
    assert (status, "does not exist" in said["error"]) == (400, True)
    batch = {
        "operation": "upload",
        "hash_algo": "sha256",
        "objects": [{"oid": oid, "size": len(content)}],
    }
    url = f"{hub.endpoint}/{repo.id}.git/info/lfs/objects/batch"
    actions = ask("POST", url, json.dumps(batch).encode())[1]["objects"][0]["actions"]
    href, verify = actions["upload"]["href"], actions["verify"]["href"]
    pointer = json.dumps(batch["objects"][0]).encode()
    assert ask("PUT", href, b"weightz")[0] == 400
    assert ask("PUT", href.partition("?")[0], content)[0] == 403
    assert ask("POST", verify, pointer)[0] == 404
    assert ask("PUT", href, content)[0] == ask("POST", verify, pointer)[0] == 200
    assert ask("POST", commit_url, commit)[0] == 200
    assert repo.files() == {"w.safetensors": content}


# Names


def test_branches_are_apart(client: Client, repo: Repository) -> None:
    push(client, repo, {"a.txt": b"a"})
    make = "api.create_branch(repo, branch='next/one', revision=start, exist_ok=there)"
    start = repo.commits()[-1].oid
    client.get(make, repo=repo.id, start=start[:7], there=False)
    assert repo.head("next/one") == start
    assert client.fail(make, repo=repo.id, start="main", there=False).status == 409
    client.get(make, repo=repo.id, start="main", there=True)
    assert repo.head("next/one") == start
    push(client, repo, {"b.txt": b"b"}, revision="next/one")
    assert (repo.files(), repo.files("next/one")) == ({"a.txt": b"a"}, {"b.txt": b"b"})
    client.get("api.delete_branch(repo, branch='next/one')", repo=repo.id)
    assert set(repo.branches) == {"main"}


@pytest.mark.parametrize("token", ["hf_test", "hf_other"])
def test_a_pull_request_leaves_the_branch_alone(
    hub: LoopbackHub, client: Client, repo: Repository, token: str
) -> None:
    head = repo.head()
    info = push(client, repo, create_pr=True, token=token)
    assert info["pr_url"] == f"{hub.endpoint}/{repo.id}/discussions/1"
    assert (repo.head(), repo.files()) == (head, {})
    assert repo.files("refs/pr/1") == FILES
    assert info["oid"] == repo.pulls[1]
    refs = client.get("vars(api.list_repo_refs(repo, include_pull_requests=True))", repo=repo.id)
    assert f"target_commit='{repo.pulls[1]}'" in str(refs["pull_requests"])
    push(client, repo, {"more.txt": b"more"}, revision="refs/pr/1")
    assert repo.files("refs/pr/1") == {**FILES, "more.txt": b"more"}
    hub.move_head(repo.id)
    push(client, repo, create_pr=True, parent_commit=head, token=token)
    assert repo.commit("refs/pr/2").parent == head != repo.head()


def test_a_tag_stays_where_it_is(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    oid = push(client, repo)["oid"]
    hub.move_head(repo.id)
    tag = "api.create_tag(repo, tag=tag, tag_message='1', revision=rev, exist_ok=there)"
    client.get(tag, repo=repo.id, tag="v1.0", rev=oid, there=False)
    assert (repo.tags, repo.tag_messages) == ({"v1.0": oid}, {"v1.0": "1"})
    failure = client.fail(tag, repo=repo.id, tag="v1.0", rev="main", there=False)
    assert (failure.type, failure.status) == ("HfHubHTTPError", 409)
    client.get(tag, repo=repo.id, tag="v1.0", rev="main", there=True)
    assert repo.head("v1.0") == oid != repo.head()
    failure = client.fail(tag, repo=repo.id, tag="v2", rev="nowhere", there=False)
    assert failure.type == "RevisionNotFoundError"
    failure = client.fail(tag, repo=repo.id, tag="a b", rev="main", there=False)
    assert failure.type == "BadRequestError"
    refs = "[(r.name, r.ref, r.target_commit) for r in api.list_repo_refs(repo).tags]"
    assert client.get(refs, repo=repo.id) == [["v1.0", "refs/tags/v1.0", oid]]
    client.get("api.delete_tag(repo, tag='v1.0')", repo=repo.id)
    assert repo.tags == {}


# What comes back


def test_lists_say_what_git_would(client: Client, repo: Repository, tmp_path: Path) -> None:
    files = {**FILES, "pictures.txt": b"", "pictures/a/b.txt": b"b"}  # sorted in a way of its own
    push(client, repo, files)
    listed = client.get(
        "[(f.path, getattr(f, 'size', None), getattr(f, 'blob_id', None) or f.tree_id)"
        " for f in api.list_repo_tree(repo, recursive=True)]",
        repo=repo.id,
    )
    sizes: dict[str, int | None] = {path: len(content) for path, content in files.items()}
    sizes |= {".gitattributes": len(GIT_ATTRIBUTES), "pictures": None, "pictures/a": None}
    assert {path: size for path, size, _ in listed} == sizes
    large = {
        path: [hashlib.sha256(FILES[path]).hexdigest(), len(FILES[path]), len(file.pointer)]
        for path, file in repo.commit().files.items()
        if file.is_lfs
    }
    lfs = "{f.path: (f.lfs.sha256, f.lfs.size, f.lfs.pointer_size) for f in found if f.lfs}"
    for found in (
        "[f for f in api.list_repo_tree(repo, recursive=True) if isinstance(f, hub.RepoFile)]",
        "api.get_paths_info(repo, api.list_repo_files(repo))",
    ):
        assert client.get(f"found = {found}\n{lfs}", repo=repo.id) == large
    info = "api.model_info(repo, files_metadata=True).siblings"
    lfs = "{f.rfilename: (f.lfs.sha256, f.lfs.size, f.lfs.pointer_size) for f in found if f.lfs}"
    assert client.get(f"found = {info}\n{lfs}", repo=repo.id) == large
    shallow = client.get("[f.path for f in api.list_repo_tree(repo)]", repo=repo.id)
    assert shallow == sorted(path for path in sizes if "/" not in path)
    inner = "[f.path for f in api.list_repo_tree(repo, 'pictures')]"
    assert client.get(inner, repo=repo.id) == ["pictures/a", "pictures/grid.png"]
    some = "[f.path for f in api.get_paths_info(repo, ['config.json', 'pictures', 'none'])]"
    assert client.get(some, repo=repo.id) == ["config.json", "pictures"]
    history = "[(c.commit_id, c.title) for c in api.list_repo_commits(repo)]"
    assert client.get(history, repo=repo.id) == [
        [commit.oid, commit.title] for commit in repo.commits()
    ]
    git = shutil.which("git")
    if not git:
        pytest.skip("no git to compare hashes with")
    subprocess.run([git, "init", "--quiet", tmp_path], check=True)
    for path, file in repo.commit().files.items():
        place = tmp_path / "work" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.pointer if file.is_lfs else file.content)
    (tmp_path / ".git/info/attributes").write_text("* -filter -text\n")
    at = [git, "-C", str(tmp_path), "--work-tree", str(tmp_path / "work")]
    subprocess.run([*at, "add", "."], check=True)
    tree = subprocess.run([*at, "write-tree"], check=True, capture_output=True, text=True).stdout
    assert folders(repo.commit().files)[""] == tree.strip()
    names = [*at, "ls-tree", "-rt", "--format=%(path) %(objectname)", tree.strip()]
    lines = subprocess.run(names, check=True, capture_output=True, text=True).stdout.splitlines()
    assert dict(line.split() for line in lines) == {path: oid for path, _, oid in listed}


def test_files_come_back_from_any_revision(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    oid = push(client, repo)["oid"]
    client.get("api.create_tag(repo, tag='v1', revision=oid)", repo=repo.id, oid=oid)
    hub.move_head(repo.id, dict.fromkeys(FILES, b"later"))
    fetch = "open(api.hf_hub_download(repo, path, revision=rev), 'rb').read().hex()"
    for path in FILES:
        at_tag = client.get(fetch, repo=repo.id, path=path, rev="v1")
        at_main = client.get(fetch, repo=repo.id, path=path, rev=None)
        assert (bytes.fromhex(at_tag), bytes.fromhex(at_main)) == (FILES[path], b"later")
    redirected = {r.path.rpartition("/")[2] for r in hub.requests if r.status == 302}
    assert redirected == {"grid.png", "weights.safetensors"}
    assert {r.token for r in hub.asked(host="storage")} == {None}


def test_a_snapshot_is_what_was_pushed(client: Client, repo: Repository) -> None:
    push(client, repo)
    folder = Path(client.get("api.snapshot_download(repo)", repo=repo.id))
    found = (path for path in folder.rglob("*") if path.is_file())
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    assert contents.pop(".gitattributes")
    assert contents == FILES
    assert folder.name == repo.head()


def test_existence_is_told(client: Client, repo: Repository) -> None:
    push(client, repo)
    exists = "[api.file_exists(repo, path) for path in paths]"
    names = ["config.json", "weights.safetensors", "config.yaml"]
    assert client.get(exists, repo=repo.id, paths=names) == [True, True, False]
    assert client.get("api.revision_exists(repo, 'main')", repo=repo.id) is True
    assert client.get("api.revision_exists(repo, 'v9')", repo=repo.id) is False
    assert client.get("api.repo_exists('user/nowhere')") is False


@pytest.mark.slow
def test_diffusers_loads_from_it(hub: LoopbackHub, repo: Repository, tmp_path: Path) -> None:
    folder = FIXTURES / "tiny-diffusers"
    hub.move_head(repo.id, {path.name: path.read_bytes() for path in folder.iterdir()})
    code = (
        "import sys, torch, diffusers\n"
        "there, here = map(diffusers.AutoencoderKL.from_pretrained, sys.argv[1:])\n"
        "pairs = zip(there.state_dict().items(), here.state_dict().items(), strict=True)\n"
        "assert all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)\n"
        "assert dict(there.config) | {'_name_or_path': ''} == "
        "dict(here.config) | {'_name_or_path': ''}\n"
    )
    command = [sys.executable, "-c", code, repo.id, str(folder)]
    done = subprocess.run(
        command, env=hub.env(tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.asked("GET", "/blob/", "storage")


# Faults


@pytest.mark.parametrize(
    ("header", "slept"),
    [
        (None, 1),
        ("1", 2),
        ("86400", 86401),
        ("Wed, 21 Oct 2037 07:28:00 GMT", 1),
        ("soon", 1),
    ],
)
def test_the_client_obeys_seconds_without_a_limit(
    hub: LoopbackHub, client: Client, repo: Repository, header: str | None, slept: float
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    hub.add_rule(Status(429, headers), path="/preupload/")
    outcome = client.run(PUSH, **told(repo))
    assert (outcome.failure, outcome.slept) == (None, [slept])
    assert [request.status for request in hub.asked(path="/preupload/")] == [429, 200]
    assert repo.commit_count() == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize(
    ("path", "tries"), [("/preupload/", 6), ("/batch", 6), ("/lfs/.*part=2", 6), ("/commit/", 1)]
)
def test_a_status_that_stays_ends_the_push(
    hub: LoopbackHub, client: Client, repo: Repository, path: str, tries: int, status: int
) -> None:
    hub.add_rule(Status(status), path=path, times=FOREVER)
    outcome = client.run(PUSH, **told(repo))
    wrapped = ["RuntimeError"] if "part" in path else []
    assert kinds(outcome.failure) == [*wrapped, "HfHubHTTPError", "HTTPStatusError"]
    innermost = outcome.failure.cause if wrapped else outcome.failure  # type: ignore[union-attr]
    assert innermost.status == status  # type: ignore[union-attr]
    assert len(hub.asked(path=path)) == tries
    assert outcome.slept == [1, 2, 4, 8, 8][: tries - 1]
    assert repo.commit_count() == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412])
def test_a_refusal_is_not_tried_again(
    hub: LoopbackHub, client: Client, repo: Repository, status: int
) -> None:
    hub.add_rule(Status(status, {"X-Error-Message": "No, thanks"}), path="/commit/", times=FOREVER)
    failure = client.fail(PUSH, **told(repo))
    assert failure.status == status
    assert "No, thanks" in failure.message
    assert len(hub.asked(path="/commit/")) == 1


BREAKS = (
    Drop("before"),
    Drop("middle"),
    Drop("middle", bytes=1),
    Drop("after"),
    Drop("done"),
    Drop("before", reset=False),
    Drop("after", reset=False),
    Drop("done", reset=False),
    Garbage(),
    Cut(0),  # of a body, which an upload's answer hasn't
)
STEPS = ("/lfs/.*part=2", "/complete_multipart", "/verify", "/batch")


@pytest.mark.parametrize(
    ("action", "path"),
    [pair for pair in itertools.product(BREAKS, STEPS) if pair != (Cut(0), STEPS[0])],
    ids=str,
)
def test_an_upload_survives_one_broken_connection(
    hub: LoopbackHub, client: Client, repo: Repository, action: Action, path: str
) -> None:
    rule = hub.add_rule(action, path=path)
    outcome = client.run(PUSH, **told(repo))
    assert (outcome.failure, outcome.slept) == (None, [1])
    assert rule.seen >= 2  # /verify is for another file too
    assert (repo.files(), repo.commit_count()) == (FILES, 1)


def test_an_upload_that_breaks_for_ever_fails(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    hub.add_rule(Drop("middle"), path="/lfs/.*part=2", times=FOREVER)
    outcome = client.run(PUSH, **told(repo))
    assert outcome.failure
    assert outcome.failure.type == "RuntimeError"
    assert "Error while uploading 'weights.safetensors'" in outcome.failure.message
    assert outcome.failure.cause
    assert {"NetworkError", "RemoteProtocolError"} & set(outcome.failure.cause.types)
    assert outcome.slept == [1, 2, 4, 8, 8]
    # Half of the second part, six times; the third was never begun.
    parts = [r for r in hub.asked("PUT", "part=") if "part=1" not in r.path]
    assert [(r.size, r.status) for r in parts] == [(512 << 10, 0)] * 6
    assert repo.commit_count() == 0


@pytest.mark.parametrize(
    ("action", "is_done"),
    [
        (Drop("before"), False),
        (Drop("middle"), False),
        (Drop("after"), False),
        (Drop("after", reset=False), False),
        (Garbage(), False),
        (Drop("done"), True),
        (Drop("done", reset=False), True),
        (Cut(10), True),
        (Cut(10, reset=True), True),
    ],
    ids=repr,
)
def test_a_commit_is_asked_for_once(
    hub: LoopbackHub, client: Client, repo: Repository, action: Action, is_done: bool
) -> None:
    hub.add_rule(action, path="/commit/", times=FOREVER)
    outcome = client.run(PUSH, **told(repo))
    assert outcome.failure
    assert "TransportError" in outcome.failure.types
    assert (outcome.slept, len(hub.asked(path="/commit/"))) == ([], 1)
    assert (repo.commit_count(), repo.files() == FILES) == (int(is_done), is_done)
    # Whatever was lost: the same again leaves one commit, and sends nothing twice.
    hub.rules.clear()
    hub.requests.clear()
    assert push(client, repo)["oid"] == repo.head()
    assert (repo.commit_count(), repo.files()) == (1, FILES)
    assert hub.asked("PUT") == []


def test_rules_step_in_where_they_say(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    hub.add_rule(Status(503), method="PUT", host="hub")  # whom nobody PUTs to
    late = hub.add_rule(Status(503), method="PUT", path="part=", after=1, times=2)
    shadowed = hub.add_rule(Status(500), method="PUT", path="part=1")
    outcome = client.run(PUSH, **told(repo))
    assert (outcome.failure, outcome.slept) == (None, [1, 2, 4])
    parts = [(r.path.rpartition("=")[2], r.status) for r in hub.asked(path="part=")]
    assert parts == [("1", 500), ("1", 503), ("1", 503), ("1", 200), ("2", 200), ("3", 200)]
    assert (late.seen, shadowed.seen) == (6, 2)
    assert repo.files() == FILES


def test_the_head_moves_in_between(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    hub.add_rule(Call(lambda: hub.move_head(repo.id)), path="/commit/")
    failure = client.fail(PUSH, **told(repo, parent_commit=repo.head()))
    assert failure.status == 412
    assert [commit.author for commit in repo.commits()] == ["somebody", "system"]


def test_the_answer_is_lost_and_the_head_moves_on(
    hub: LoopbackHub, client: Client, repo: Repository
) -> None:
    move = Call(after=lambda: hub.move_head(repo.id))
    hub.add_rule(move, Drop("done"), path="/commit/")
    failure = client.fail(PUSH, **told(repo))
    assert "TransportError" in failure.types
    assert [commit.author for commit in repo.commits()] == ["somebody", "user", "system"]


def test_a_silent_hub_is_waited_for(hub: LoopbackHub, client: Client, repo: Repository) -> None:
    silence = Hang()
    hub.add_rule(silence, path="/commit/")
    client.begin(PUSH, **told(repo))
    with pytest.raises(queue.Empty):
        client.end(timeout=1)  # it has no timeout of its own
    assert [request.status for request in hub.asked(path="/commit/")] == [0]
    silence.release.set()
    outcome = client.end()
    assert outcome.failure and outcome.failure.type == "RemoteProtocolError"
    assert repo.commit_count() == 0


SHORT = "hub.set_client_factory(lambda: httpx2.Client(timeout=0.3, follow_redirects=True))"
UNLIMITED = "hub.set_client_factory(hub.utils._http.default_client_factory)"


@pytest.mark.parametrize("when", ["after", "done"])
def test_a_timeout_ends_the_wait(
    hub: LoopbackHub, client: Client, repo: Repository, when: Any
) -> None:
    hub.add_rule(Hang(when), path="/commit/")
    client.get(SHORT)
    try:
        failure = client.fail(PUSH, **told(repo))
    finally:
        client.get(UNLIMITED)
    assert failure.type == "ReadTimeout"
    assert repo.commit_count() == (when == "done")


def test_bytes_that_trickle_in_evade_timeouts(hub: LoopbackHub, client: Client) -> None:
    hub.add_rule(Trickle(0.005), path="/whoami")
    client.get(SHORT)
    try:
        start = time.monotonic()
        assert client.get("api.whoami()")["name"] == "user"
        assert time.monotonic() - start > 1  # each byte in 0.3 s, all of them not
    finally:
        client.get(UNLIMITED)


def test_a_hub_that_stops_lets_go_of_those_who_wait(tmp_path: Path) -> None:
    with start({"PATH": "", "HF_HOME": str(tmp_path)}, tmp_path / "log.txt") as client:
        with LoopbackHub({"hf_test": "user"}) as hub:
            hub.add_rule(Hang(), path="/whoami")
            code = "hub.HfApi(endpoint=endpoint).whoami(token='hf_test')"
            client.begin(code, endpoint=hub.endpoint)
            deadline = time.monotonic() + 20
            while not hub.requests and time.monotonic() < deadline:
                time.sleep(0.01)
            assert hub.requests
        outcome = client.end(timeout=5)
        assert outcome.failure and outcome.failure.type == "RemoteProtocolError"
        assert client.fail(code, endpoint=hub.endpoint).type == "ConnectError"


@pytest.mark.parametrize("action", [Cut(1 << 20), Cut(1 << 20, reset=True)], ids=repr)
def test_a_download_goes_on_where_it_broke_off(
    hub: LoopbackHub, client: Client, repo: Repository, action: Cut
) -> None:
    push(client, repo)
    # It forgets what it got of a piece, of 10 MB otherwise.
    client.get("hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 18")
    hub.add_rule(action, path="/blob/", host="storage")
    hub.requests.clear()
    fetch = "open(api.hf_hub_download(repo, 'weights.safetensors'), 'rb').read().hex()"
    outcome = client.run(fetch, repo=repo.id)
    ranges = [r.headers.get("range") for r in hub.asked("GET", host="storage")]
    if action.reset:  # the client takes that for the end of the world
        assert outcome.failure and outcome.failure.type == "ReadError"
    else:
        assert outcome.failure is None
        assert bytes.fromhex(outcome.value) == FILES["weights.safetensors"]
        assert ranges == [None, f"bytes={1 << 20}-"]


def test_an_environment_leads_nowhere_else(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "elsewhere")
    env = hub.env(tmp_path)
    assert env["HF_TOKEN"] == "hf_test"
    assert (env["HF_ENDPOINT"], env["HF_HUB_DISABLE_XET"]) == (hub.endpoint, "1")
    assert "elsewhere" not in env.values()
    assert "HF_TOKEN" not in hub.env(tmp_path, token=None)
    assert hub.env(tmp_path, HF_TOKEN="hf_other")["HF_TOKEN"] == "hf_other"


def test_what_is_not_served_is_told(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
        connection.request("GET", "/api/models/user/name/xet-write-token/main")
        assert connection.getresponse().status == 404
        connection.close()
        assert [request.path for request in hub.unserved] == [
            "/api/models/user/name/xet-write-token/main"
        ]


def test_bugs_of_the_hub_fail_the_test() -> None:
    with pytest.raises(AssertionError, match="JSONDecodeError"), LoopbackHub() as hub:
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
        connection.request("POST", "/api/validate-yaml", b"not JSON")
        assert connection.getresponse().status == 501
        connection.close()


@pytest.mark.slow
def test_what_runs_against_the_real_hub_passes_here(hub: LoopbackHub, tmp_path: Path) -> None:
    """A test that nobody can run would rot."""
    env = hub.env(tmp_path, VAECONV_TEST_HUB="1", PYTHONPATH=str(FIXTURES.parent))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "tests/publish/hub/test_real_hub.py"]  # fmt: skip
    done = subprocess.run(
        command, cwd=FIXTURES.parent, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert hub.asked("DELETE", "/api/repos/delete")
