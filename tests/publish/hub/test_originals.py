"""``vaeconv push --original``: both layouts from one command, each card leading to the other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.publish.pushes import (
    NUMBERS,
    TOKENS,
    contents_of,
    run_here,
    state_of,
)
from tests.support.loopback_hub import Drop, LoopbackHub, Repository, Status
from vaeconv.errors import VaeconvError
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.report.document import report_document, write_report
from vaeconv.parity.verify import verify
from vaeconv.publish.card.card import CardInputs, write_card
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.card.sections import Section, find_sections
from vaeconv.publish.hub.originals import Original, push_both
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.places import hide_places
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions, PruneOptions
from vaeconv.weights.prune import prune

pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")
FILE = "vae-tiny-ema-pruned.safetensors"


def make_both(root: Path) -> Path:
    """Make a release: the folder, and the CompVis file beside it, proved by one report."""
    root.mkdir(exist_ok=True)
    out, file = root / "out", root / FILE
    prune(str(FIXTURES / "tiny-kl.ckpt"), file, PruneOptions(dtype="fp32", ema=True, manifest=True))
    convert(str(file), out, ConvertOptions())
    result = verify(str(file), out, VerifyOptions(device="cpu"))
    report = {"schema_version": 1, "command": "verify", **report_document(result)}
    write_report(out / "parity.json", hide_places(report))
    meta = CardMeta(title="Tiny", license="mit", repo_id="user/tiny", pipeline="user/pipeline",
                    summary="For tests.")  # fmt: skip
    write_card(CardInputs(out, meta))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both(tmp_path_factory.mktemp("made"))


@pytest.fixture
def release(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "release")
    return tmp_path / "release"


class Both:
    """The command, told two names that nobody has."""

    def __init__(self, hub: LoopbackHub, release: Path) -> None:
        self.hub, self.release = hub, release
        self.ids = f"user/both-{next(NUMBERS)}", f"user/both-{next(NUMBERS)}-original"

    def run(self, *args: object, code: int = 0) -> str:
        named = self.release / "out", self.ids[0], "--original", self.ids[1], self.release / FILE
        done = run_here("push", *named, *args)
        assert done.exit_code == code, done.stderr
        for token in TOKENS:
            assert token not in done.stdout + done.stderr
        if code:
            first, *details = done.stderr.splitlines()
            assert first.startswith("error: ") and done.stdout == ""
            assert all(line.startswith("  - ") for line in details)
        return done.stderr if code else done.stdout

    @property
    def repos(self) -> tuple[Repository, Repository]:
        first, second = (self.hub.repo(repo_id) for repo_id in self.ids)
        return first, second

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(
            self.hub.repo(repo_id).commit_count() if repo_id in self.hub.repos else 0
            for repo_id in self.ids
        )


@pytest.fixture
def both(hub: LoopbackHub, release: Path) -> Both:
    return Both(hub, release)


def test_both_layouts_by_one_command(both: Both) -> None:
    said = both.run("--tag", "v1", "--verify")
    assert both.counts == (1, 1)
    assert said.count("published ") == said.count("downloaded again, and equal") == 2
    first, second = (repo.files() for repo in both.repos)
    assert [repo.tags for repo in both.repos] == [{"v1": repo.head()} for repo in both.repos]
    assert first == contents_of(both.release / "out")
    assert second.keys() == {FILE, f"{FILE}.vaeconv.json", "parity.json", "README.md"}
    assert second[FILE] == (both.release / FILE).read_bytes()
    cards = [files["README.md"].decode() for files in (first, second)]
    link = f"https://huggingface.co/{both.ids[1]}/resolve/main/{FILE}"
    assert link in find_sections(cards[0])["original"]
    assert f"](https://huggingface.co/{both.ids[0]})" in find_sections(cards[1])["about"]
    # The words of the first are left, and what both say is said alike.
    assert "For tests." in cards[0] and "user/pipeline" in cards[0]
    for name in ("usage", "original"):
        assert find_sections(cards[0])[name] == find_sections(cards[1])[name]
    assert "# Tiny, CompVis layout\n" in cards[1]
    assert f"| {FILE} | fp32, sha256 " in find_sections(cards[1])["provenance"]
    assert "are the same autoencoder |" in find_sections(cards[1])["provenance"]
    assert list(find_sections(cards[0])) == ["about", "usage", "original", "provenance"]

    before = state_of(both.hub)
    assert both.run("--tag", "v1").count("nothing changed") == 2
    assert state_of(both.hub) == before


def test_json_tells_of_both(both: Both) -> None:
    told = json.loads(both.run("--json"))
    assert (told["repo_id"], told["original"]["repo_id"]) == both.ids
    assert FILE in told["original"]["changed"] and "config.json" in told["changed"]
    again = json.loads(both.run("--json"))
    assert (again["is_new"], again["original"]["is_new"]) == (False, False)


def test_a_dry_run_changes_nothing(both: Both) -> None:
    before = state_of(both.hub), contents_of(both.release)
    said = both.run("--dry-run")
    assert f"  {FILE}\n" in said and said.count("would publish") == 2
    assert (state_of(both.hub), contents_of(both.release)) == before


def test_what_people_wrote_on_both_cards_stays(both: Both) -> None:
    both.run()
    there = both.repos[1].files()["README.md"].decode()
    edited = (
        there.replace("<!-- vaeconv:begin original", "A word.\n\n<!-- vaeconv:begin original")
        + "\n[weights]("
        + FILE
        + ") [a](assets/a.txt)\n"
    )
    both.hub.move_head(both.ids[1], {"README.md": edited.encode(), "assets/a.txt": b"a"})
    both.run()
    # Nothing to say that is not said already: no commit, and theirs is still there.
    assert both.counts == (1, 2)
    card = both.release / "out/README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    add = both.release / f"{FILE}.vaeconv.json"
    manifest = json.loads(add.read_text())
    manifest["source"]["name"] = "another.ckpt"
    add.write_text(json.dumps(manifest))
    both.run()
    text = both.repos[1].files()["README.md"].decode()
    assert both.counts == (2, 3)
    assert (
        "A word." in text
        and f"[weights]({FILE}) [a](assets/a.txt)" in text
        and "another.ckpt" in text
    )
    assert "assets/a.txt" in both.repos[1].files()
    assert both.repos[0].files()["README.md"].decode().endswith("\nMine.\n")


def test_a_card_with_a_link_of_its_own_is_left(both: Both) -> None:
    card = both.release / "out/README.md"
    text = "---\nlibrary_name: diffusers\nlicense: mit\n---\n\n# Own\n\n"
    text += f"[CompVis](https://huggingface.co/{both.ids[1]})\n"
    card.write_text(text)
    both.run()
    assert both.repos[0].files()["README.md"].decode() == card.read_text() == text


def test_a_card_without_any_section_gets_the_link_at_its_end(both: Both) -> None:
    card = both.release / "out/README.md"
    text = "---\nlibrary_name: diffusers\nlicense: mit\n---\n\n# Own\n\nWords.\n"
    card.write_text(text)
    both.run()
    assert card.read_text().startswith(text)
    assert list(find_sections(card.read_text())) == ["original"]
    assert both.run().count("nothing changed") == 2


def push_here(both: Both, file: str = FILE, *, dry_run: bool = True, **options: Any) -> Any:
    original = Original(both.ids[1], both.release / file)
    out = both.release / "out"
    return push_both(out, both.ids[0], original, PushOptions(**options), dry_run=dry_run)


def test_another_file_is_led_to(both: Both) -> None:
    push_here(both, dry_run=False)
    other = "weights of mine.safetensors"
    shutil.copy(both.release / FILE, both.release / other)
    push_here(both, other, dry_run=False)
    for repo in both.repos:
        section = find_sections(repo.files()["README.md"].decode())["original"]
        assert "/resolve/main/weights%20of%20mine.safetensors)" in section and FILE not in section


@pytest.mark.parametrize("end", ["-2", ".5", "x"])
def test_a_link_to_a_repository_whose_name_begins_alike(both: Both, end: str) -> None:
    card = both.release / "out/README.md"
    text = "---\nlibrary_name: diffusers\nlicense: mit\n---\n\n# Own\n\n"
    card.write_text(f"{text}See https://huggingface.co/{both.ids[1]}{end}.\n")
    push_here(both, dry_run=False)
    assert list(find_sections(card.read_text())) == ["original"]
    card.write_text(f"{text}See https://huggingface.co/{both.ids[1]}.\n")
    push_here(both, dry_run=False)
    assert find_sections(card.read_text()) == {}


def test_a_card_without_a_heading(both: Both) -> None:
    card = both.release / "out/README.md"
    card.write_text("---\nlibrary_name: diffusers\nlicense: mit\n---\n\nWords.\n")
    push_here(both, dry_run=False)
    text = both.repos[1].files()["README.md"].decode()
    assert f"# {both.ids[0]}, CompVis layout\n" in text


def test_patterns_are_for_the_folder(both: Both) -> None:
    first, second = push_here(both, exclude=("*vaeconv.json",))
    assert "vaeconv.json" not in first.changed
    assert f"{FILE}.vaeconv.json" in second.changed


def test_reports_that_are_given_are_the_ones(both: Both) -> None:
    given = both.release / "given.json"
    shutil.copy(both.release / "out/parity.json", given)
    _, second = push_here(both, reports=(given,))
    assert "given.json" in second.changed and "parity.json" not in second.changed


def test_one_report_beside_the_file_proves_both(both: Both) -> None:
    (both.release / "out/parity.json").rename(both.release / "parity.json")
    first, second = push_here(both)
    assert "parity.json" in second.changed and "parity.json" not in first.changed


def test_what_was_measured_stands_on_both_cards(both: Both) -> None:
    card = both.release / "out/README.md"
    measured = Section("evaluation", "## Evaluation\n\n| PSNR | 24.5 |").marked
    card.write_text(f"{card.read_text()}\n{measured}\n")
    push_here(both, dry_run=False)
    for repo in both.repos:
        assert find_sections(repo.files()["README.md"].decode())["evaluation"] == measured


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("fault", [Status(503), Drop("done")], ids=["503", "lost"])
def test_a_fault_leaves_one_commit_each(both: Both, which: int, fault: Any) -> None:
    both.hub.add_rule(fault, method="POST", path=f"{both.ids[which]}/commit/")
    both.run("--tag", "v1")
    assert both.counts == (1, 1)


def test_a_refusal_of_the_second_is_finished_by_the_next(both: Both) -> None:
    both.hub.add_rule(Status(403), method="POST", path=f"{both.ids[1]}/commit/")
    assert both.ids[1] in both.run(code=6)
    assert both.counts == (1, 0)
    both.run()
    assert both.counts == (1, 1)


# --- what is refused before anything is published ---


def test_both_are_checked_before_anything(both: Both) -> None:
    data = bytearray((both.release / FILE).read_bytes())
    data[-1] ^= 1
    (both.release / FILE).write_bytes(data)
    before = contents_of(both.release / "out")
    assert "the manifest's" in both.run(code=4)
    assert both.counts == (0, 0)
    assert contents_of(both.release / "out") == before, "the card was changed"
    (both.release / f"{FILE}.vaeconv.json").unlink()
    assert "parity report" in both.run(code=4)
    both.run("--no-parity")
    assert both.counts == (1, 1)


def test_a_report_beside_the_file_is_found_and_published(both: Both) -> None:
    shutil.copy(both.release / "out/parity.json", both.release / "parity-file.json")
    (both.release / "parity-of-others.json").write_text("{}")
    both.run()
    assert "parity-file.json" in both.repos[1].files()
    assert "parity-of-others.json" not in both.repos[1].files()


def test_reports_of_one_name(both: Both) -> None:
    """One beside the file is called as the one in the folder; neither is touched."""
    beside = both.release / "parity.json"
    beside.write_text((both.release / "out/parity.json").read_text() + "\n")
    before = beside.read_text(), (both.release / "out/parity.json").read_text()
    both.run()
    assert (beside.read_text(), (both.release / "out/parity.json").read_text()) == before
    assert both.repos[1].files()["parity.json"].decode() == before[1]


@pytest.mark.parametrize(
    ("repo_id", "file", "said"),
    [
        ("user/tiny", FILE, "cannot go to one repository"),
        ("tiny", FILE, "tiny is not owner/name"),
        ("user/other", "gone.ckpt", "no such file"),
        ("user/other", "out/diffusion_pytorch_model.safetensors", "not in the CompVis layout"),
        ("user/other", "out/config.json", "config.json"),
    ],
)
def test_what_does_not_fit(release: Path, repo_id: str, file: str, said: str) -> None:
    with pytest.raises(VaeconvError, match=said):
        push_both(release / "out", "user/tiny", Original(repo_id, release / file), PushOptions())


def test_a_file_whose_name_is_not_utf_8_is_refused_first(both: Both) -> None:
    file = both.release / os.fsdecode(b"a\xff.safetensors")
    (both.release / FILE).rename(file)
    done = run_here("push", both.release / "out", both.ids[0], "--original", both.ids[1], file)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "its name is not UTF-8" in done.stderr and both.counts == (0, 0)
