"""Pushes over what is there: an older release, a card that people edited, rights that lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.publish.pushes import (
    FP16,
    NUMBERS,
    PLAIN,
    TOKEN,
    TOKENS,
    make_release,
    run_push,
    sha256_of,
    state_of,
)
from tests.support.loopback_hub import Account, Call, LoopbackHub, Status
from vaeconv.errors import CheckFailedError, HubError
from vaeconv.publish.card.front_matter import split_card
from vaeconv.publish.card.merge import merge_cards
from vaeconv.publish.card.sections import Section
from vaeconv.publish.hub.push import push
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.stale import loaded_file, twofold_problems, weights_of, winning_files

pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")

MORE: dict[str, str | Account] = {
    "hf_fineToken": Account("user", only=None, scopes={"user": ["repo.content.read"]}),
    "hf_fineWriter": Account("user", scopes={"user": ["repo.content.read", "repo.write"]}),
    "hf_fineOther": Account("user", scopes={"user/other": ["repo.write"]}),
    "hf_member": Account("user", orgs=("lab",)),
}


@pytest.fixture(scope="module")
def loopback(loopback: LoopbackHub) -> LoopbackHub:
    loopback.tokens.update({name: who for name, who in MORE.items() if isinstance(who, Account)})
    return loopback


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


@pytest.fixture
def repo_id() -> str:
    return f"user/over-{next(NUMBERS)}"


# --- an older release ---


def old_weights(folder: Path, shape: str) -> dict[str, bytes]:
    """Weights of another autoencoder, as save_pretrained left them, now or earlier."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    torch.nn.init.constant_(model.encoder.conv_in.bias, 7.0)
    out = folder.parent / "old"
    variant = "fp16" if "fp16" in shape else None
    model.save_pretrained(
        out,
        variant=variant,
        safe_serialization="bin" not in shape,
        max_shard_size="40KB" if "shards" in shape else "1GB",
    )
    files = {one.name: one.read_bytes() for one in out.iterdir() if one.name != "config.json"}
    if "legacy" in shape:
        for name in list(files):
            if name.endswith(".index.fp16.json"):
                files[name.replace(".index.fp16.json", ".fp16.index.json")] = files.pop(name)
    return files


SHAPES = ["shards", "fp16 shards", "fp16 legacy shards", "bin", "bin shards", "fp16 bin"]


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("shape", SHAPES)
def test_what_users_load_after_a_push_is_what_was_pushed(
    hub: LoopbackHub, release: Path, repo_id: str, shape: str
) -> None:
    from diffusers import AutoencoderKL

    old = old_weights(release, shape)
    repo = hub.create_repo(repo_id, {**old, "theirs.ckpt": b"theirs", "notes.txt": b"theirs"})
    options = PushOptions()
    before = state_of(hub)
    dry = push(release, repo_id, options, dry_run=True)
    assert set(dry.deleted) == set(old) - {PLAIN, FP16} and state_of(hub) == before
    done = push(release, repo_id, PushOptions(verify=True))
    assert done.deleted == dry.deleted and done.is_verified
    assert set(repo.files()) & set(old) <= {PLAIN, FP16}
    assert {"theirs.ckpt", "notes.txt"} <= set(repo.files())
    assert repo.commit_count() == 2, "in the same commit"
    expected = float(np.abs(load_file(release / PLAIN)["encoder.conv_in.bias"].astype("d")).sum())
    variants: tuple[dict[str, Any], ...] = ({}, {"variant": "fp16"})
    for number, wanted in enumerate(variants):
        cache = release.parent / f"cache-{number}"
        model = AutoencoderKL.from_pretrained(repo_id, cache_dir=cache, **wanted)
        found = float(model.state_dict()["encoder.conv_in.bias"].double().abs().sum())
        assert found == pytest.approx(expected, rel=1e-2)
    again = push(release, repo_id, options)
    assert (again.is_new, again.deleted) == (False, ())


def test_variants_that_are_not_pushed_stay_and_are_named(
    hub: LoopbackHub, release: Path, repo_id: str
) -> None:
    repo = hub.create_repo(repo_id, {FP16: b"old", f"vae/{PLAIN}": b"old"})
    done = push(release, repo_id, PushOptions(exclude=(FP16,)))
    assert done.deleted == () and set(repo.files()) >= {FP16, f"vae/{PLAIN}"}
    assert f"{FP16} stays, of an earlier push" in done.notes


def test_an_older_release_s_documents(hub: LoopbackHub, release: Path, repo_id: str) -> None:
    push(release, repo_id)
    repo = hub.repo(repo_id)
    old = {"outputs": {PLAIN: {"sha256": "0" * 64}}, "source": {"name": "x"}}
    fits = {"outputs": {PLAIN: {"sha256": sha256_of(release / PLAIN)}}, "source": {"name": "x"}}
    side = {"label": "A", "name": "x", "files": [{"name": "x", "sha256": "0" * 64}]}
    documents = {
        "x.vaeconv.json": old,
        "y.vaeconv.json": fits,
        "gone.vaeconv.json": {"outputs": {"gone.ckpt": {"sha256": "0" * 64}}, "source": {}},
        "parity-old.json": {"command": "verify", "sides": [side]},
        "eval.json": {"command": "eval", "models": [{"sha256": ["0" * 64]}]},
        "sbom.cdx.json": {"components": [{"bom-ref": f"file:{PLAIN}", "name": PLAIN,
                                          "hashes": [{"content": "0" * 64}]}]},
        "parity-of-mine.json": [1, 2],
        "evaluation.json": {"mine": 1},
    }  # fmt: skip
    hub.move_head(repo_id, {name: json.dumps(one).encode() for name, one in documents.items()})
    done = push(release, repo_id)
    assert set(done.deleted) == {
        "x.vaeconv.json", "gone.vaeconv.json", "parity-old.json", "eval.json", "sbom.cdx.json"
    }  # fmt: skip
    assert (done.is_new, done.changed) == (True, ())
    assert {"y.vaeconv.json", "parity-of-mine.json", "evaluation.json"} <= set(repo.files())
    assert repo.commit().title.startswith("Remove ")


def test_a_pull_request_that_deletes(hub: LoopbackHub, release: Path, repo_id: str) -> None:
    repo = hub.create_repo(repo_id, {"diffusion_pytorch_model.bin": b"old"})
    done = push(release, repo_id, PushOptions(create_pr=True))
    assert done.deleted == ("diffusion_pytorch_model.bin",)
    assert "diffusion_pytorch_model.bin" not in repo.files("refs/pr/1")
    assert "diffusion_pytorch_model.bin" in repo.files()
    assert not push(release, repo_id, PushOptions(create_pr=True)).is_new


def test_verify_sees_what_somebody_put_in_front(
    hub: LoopbackHub, release: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaeconv.publish.hub import stale

    hub.create_repo(repo_id, {f"{PLAIN}.index.json": b"{}"})
    monkeypatch.setattr(stale, "winning_files", lambda *_: [])
    with pytest.raises(CheckFailedError, match=r"diffusers loads .*index\.json, which was not"):
        push(release, repo_id, PushOptions(verify=True))


def test_a_folder_with_shards_and_the_whole(release: Path) -> None:
    save_file(load_file(release / PLAIN), release / PLAIN)
    paths = [PLAIN, f"{PLAIN}.index.json", "diffusion_pytorch_model-00001-of-00001.safetensors"]
    assert [f"{PLAIN} is there beside" in one for one in twofold_problems(paths)] == [True]
    assert list(twofold_problems([PLAIN, FP16, "diffusion_pytorch_model.bin"])) == []


def test_names_of_weights() -> None:
    stem = "diffusion_pytorch_model"
    for variant, names in {
        None: [f"{stem}.safetensors", f"{stem}.bin", f"{stem}.safetensors.index.json",
               f"{stem}-00001-of-00002.safetensors", f"{stem}.bin.index.json",
               "diffusion_flax_model.msgpack", "model.flashpack"],
        "fp16": [f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json",
                 f"{stem}.safetensors.fp16.index.json", f"{stem}-00001-of-00002.fp16.safetensors",
                 f"{stem}.fp16-00001-of-00002.safetensors", f"{stem}.fp16.bin"],
        "v1.0": [f"{stem}.v1.0.safetensors", f"{stem}.safetensors.index.v1.0.json"],
    }.items():  # fmt: skip
        for name in names:
            assert weights_of(f"vae/{name}") == ("vae/", variant), name
            assert weights_of(name) == ("", variant), name
    for name in (
        "model.safetensors",
        f"{stem}.ckpt",
        "config.json",
        f"my_{stem}.bin",
        f"{stem}.json",
    ):
        assert weights_of(name) is None, name
    assert winning_files([f"vae/{PLAIN}"], [PLAIN, f"vae/{stem}.bin"]) == [f"vae/{stem}.bin"]
    plain = weights_of(PLAIN)
    assert plain
    assert loaded_file(plain, [PLAIN, f"{stem}.bin"], safetensors=False) == f"{stem}.bin"


# --- a card that people edited ---

HERE = "---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- vae\n---\n\n{about}\n\n{usage}\n"
HERE = HERE.format(about=Section("about", "# Tiny").marked, usage=Section("usage", "Use.").marked)
THERE = (
    "---\nextra_gated_prompt: agree  # ours\nlicense: mit\nwidget: [{text: x}]\ntags: [mine]\n"
    "---\n\n# By hand\n\nWords of people.\n"
)


def test_the_hub_s_words_and_keys_stay(hub: LoopbackHub, release: Path, repo_id: str) -> None:
    (release / "README.md").write_text(HERE)
    repo = hub.create_repo(repo_id, {"README.md": THERE.encode()})
    done = push(release, repo_id)
    card = split_card(repo.files()["README.md"].decode())
    assert card.front == {
        "extra_gated_prompt": "agree", "license": "mit", "widget": [{"text": "x"}],
        "tags": ["mine", "vae"], "library_name": "diffusers",
    }  # fmt: skip
    assert "# By hand\n\nWords of people." in card.body and "Use." in card.body
    assert any("keeps extra_gated_prompt, widget" in note for note in done.notes)
    assert (release / "README.md").read_text() == HERE, "the folder is left"
    assert not push(release, repo_id).is_new, "and again nothing changes"


CONFLICTS = {
    "license": (HERE, THERE.replace("mit", "openrail"), "license is 'openrail' on the Hub"),
    "license_name": (HERE.replace("license: mit", "license: other\nlicense_name: a"),
                     THERE.replace("license: mit", "license: other\nlicense_name: b"),
                     "license_name is 'b' on the Hub and 'a' here"),
    "words": (f"{HERE}\nMine.\n", THERE, "the card on the Hub says '# By hand'"),
    "broken": (HERE, "---\na: [\n---\n", "cannot be merged"),
    "no text": (HERE, "\udcff", "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFLICTS)
def test_cards_that_contradict_each_other_stop_it(
    hub: LoopbackHub, release: Path, repo_id: str, kind: str
) -> None:
    here, there, said = CONFLICTS[kind]
    (release / "LICENSE").write_text("a license")
    (release / "README.md").write_text(here)
    hub.create_repo(repo_id, {"README.md": there.encode(errors="surrogateescape")})
    before = state_of(hub)
    for dry_run in (True, False):
        with pytest.raises(CheckFailedError, match=said) as caught:
            push(release, repo_id, dry_run=dry_run)
        assert "--card replace" in caught.value.text
    assert state_of(hub) == before and hub.asked("PUT") == []
    push(release, repo_id, PushOptions(card="replace"))
    assert hub.repo(repo_id).files()["README.md"].decode() == here


def test_merging() -> None:
    mine = f"{HERE}\nMine.\n"
    same = merge_cards(mine, HERE, "there")
    assert same.text == mine, "what is only here is published"
    assert merge_cards(HERE, mine, "there").text.endswith("\nMine.\n")
    kept = merge_cards(HERE, THERE.replace("tags: [mine]", "library_name: diffusers\ntags: [vae]"),
                       "there").text  # fmt: skip
    assert "agree  # ours" in kept, "front matter that stays is not written anew"
    ours, theirs = (
        text.replace("license: mit", f"license: mit\nbase_model: {base}")
        for text, base in ((HERE, "a/b"), (THERE, "c/d"))
    )
    moved = merge_cards(ours, theirs, "there")
    assert any("base_model was 'c/d' on the Hub, and is 'a/b' now" in one for one in moved.notes)
    for text in ("\ufeff" + THERE.replace("\n", "\r\n"), "\n" + THERE, "<!-- c -->\n" + THERE):
        assert "Words of people." in merge_cards(HERE, text, "there").text
        assert split_card(merge_cards(HERE, text, "there").text).is_first
    edited = HERE.replace("Use.", "Use it so.")
    assert merge_cards(HERE, edited, "there").text == HERE, "in marked sections we have the say"


def test_a_card_that_nobody_edited_is_replaced(
    hub: LoopbackHub, release: Path, repo_id: str
) -> None:
    card = release / "README.md"
    for text in (f"{HERE}\nMine.\n", f"{HERE}\nMine, in other words.\n", HERE):
        card.write_text(text)
        push(release, repo_id)
        assert hub.repo(repo_id).files()["README.md"].decode() == text
    # What was merged holds words of people, and is no card of a folder.
    hub.move_head(repo_id, {"README.md": f"{HERE}\nTheirs.\n".encode()})
    card.write_text(HERE.replace("Use.", "Use it."))
    push(release, repo_id)
    card.write_text(f"{HERE}\nMine.\n")
    with pytest.raises(CheckFailedError, match=r"the card on the Hub says 'Theirs\.'"):
        push(release, repo_id)


def test_an_edit_between_the_look_and_the_commit(
    hub: LoopbackHub, release: Path, repo_id: str
) -> None:
    (release / "README.md").write_text(HERE)
    hub.create_repo(repo_id, {"README.md": THERE.encode()})
    edited = THERE.replace("Words", "More words").encode()
    hub.add_rule(
        Call(lambda: hub.move_head(repo_id, {"README.md": edited})),
        method="POST",
        path="/preupload/",
    )
    with pytest.raises(HubError, match="somebody else pushed"):
        push(release, repo_id)
    assert hub.repo(repo_id).files()["README.md"] == edited
    push(release, repo_id)
    assert b"More words of people" in hub.repo(repo_id).files()["README.md"]


# --- rights, and what a dry run says ---


def dry(hub: LoopbackHub, release: Path, repo_id: str, *args: object, **env: Any) -> Any:
    return run_push(hub.env(release.parent / "home", **env), release, repo_id, "--dry-run", *args)


def test_a_dry_run_says_what_would_be_made(hub: LoopbackHub, release: Path, repo_id: str) -> None:
    hub.others.add(f"datasets/{repo_id}")
    (release / ".env").write_text("X=1")
    done = dry(hub, release, repo_id, "--private")
    assert done.returncode == 0, done.stderr
    assert "the repository would be created, private" in done.stdout
    assert "note: there is a dataset of that name" in done.stderr
    assert "note: left out, as never published: .env" in done.stderr
    assert repo_id not in hub.repos
    hub.create_repo(repo_id, {PLAIN: b"old", "diffusion_pytorch_model.bin": b"old"})
    done = dry(hub, release, repo_id)
    assert "the repository is there, public" in done.stdout
    assert f"  {PLAIN} (replaces another)\n" in done.stdout
    assert "diffusion_pytorch_model.bin (would be deleted: of an older release)" in done.stdout
    told = json.loads(dry(hub, release, repo_id, "--json").stdout)
    assert told["replaced"] == [PLAIN] and told["deleted"] == ["diffusion_pytorch_model.bin"]
    assert (told["creates"], told["is_private"], told["left_out"]) == (False, False, [".env"])


RIGHTS = [
    (None, "user", ["no token is set", "hf auth login"]),
    ("hf_wrong", "user", ["wrong, has expired or was revoked (401)"]),
    ("hf_readingSecretToken", "user", ["may only read"]),
    ("hf_readingSecretToken", "lab", ["2 reasons", "may only read", "not a member of it"]),
    ("hf_fineToken", "user", ["the token may not write in user: it is fine-grained"]),
    ("hf_fineOther", "user", ["the token may not write in user: it is fine-grained"]),
    (TOKEN, "lab", ["user is not lab, and not a member of it"]),
    ("hf_member", "lab", []),
    ("hf_fineWriter", "user", []),
]


@pytest.mark.parametrize(("token", "namespace", "said"), RIGHTS)
def test_rights_are_looked_at(
    hub: LoopbackHub, release: Path, token: str | None, namespace: str, said: list[str]
) -> None:
    repo_id = f"{namespace}/rights-{next(NUMBERS)}"
    done = dry(hub, release, repo_id, token=token)
    assert done.returncode == (6 if said else 0), done.stderr
    assert all(part in done.stderr for part in said), done.stderr
    assert "more" not in done.stderr and hub.asked("POST") == []


def test_states_of_a_repository(hub: LoopbackHub, release: Path, repo_id: str) -> None:
    repo = hub.create_repo(repo_id)
    with pytest.raises(HubError, match="it is public, and was to be private"):
        push(release, repo_id, PushOptions(private=True))
    repo.private = True
    done = push(release, repo_id, PushOptions(private=False))
    assert any("is private, and stays so" in note for note in done.notes) and repo.private
    info = {"id": repo_id, "sha": repo.head(), "private": True, "gated": "auto", "siblings": []}
    body = json.dumps({**info, "disabled": True}).encode()
    hub.add_rule(Status(200, body=body), path=f"/api/models/{repo_id}$")
    with pytest.raises(HubError, match="disabled by the Hub"):
        push(release, repo_id)
    hub.add_rule(Status(200, body=json.dumps(info).encode()), path=f"/api/models/{repo_id}$")
    assert any("is gated" in note for note in push(release, repo_id, dry_run=True).notes)


def test_a_hub_that_does_not_say_whose_token_it_is(
    hub: LoopbackHub, release: Path, repo_id: str
) -> None:
    hub.add_rule(Status(429), path="whoami", times=100)
    done = push(release, repo_id)
    assert done.is_new and any("rights are not checked" in note for note in done.notes)
    assert TOKENS and done.creates


def test_a_tag_with_the_name_of_the_branch(release: Path) -> None:
    from vaeconv.errors import UsageError

    with pytest.raises(UsageError, match="the branch's name"):
        push(release, "user/x", PushOptions(tag="main"))


MINE = f"{HERE}\n```\ncode\n  indented\n```\nx\ny\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [("  indented", "      indented"), ("x\ny\n", "y\nx\n"), ("x\ny\n", "x\nz\ny\ny2\n")],
)
def test_an_edit_that_moves_lines_is_not_lost(before: str, after: str) -> None:
    theirs = MINE.replace(before, after)
    assert theirs != MINE
    try:
        merged = merge_cards(MINE, theirs, "there")
    except CheckFailedError as error:
        assert "edited on the Hub" in str(error)
    else:
        assert after in merged.text and merged.notes


def test_lines_and_keys_that_differ_are_told() -> None:
    doubled = MINE.replace("x\ny\n", "x\ny\n\nx\n")
    assert merge_cards(MINE, doubled, "there").text.endswith("x\ny\n\nx\n")
    shorter = MINE.replace("x\ny\n", "x\n")
    assert "adds 1 line" in " ".join(merge_cards(MINE, shorter, "there").notes)
    tagged = [MINE.replace("license: mit", f"license: mit\npipeline_tag: {one}-to-image")
              for one in ("image", "text")]  # fmt: skip
    assert "pipeline_tag stays 'text-to-image' as on the Hub" in " ".join(
        merge_cards(*tagged, "there").notes
    )
