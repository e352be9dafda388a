"""Options of commands beside those of the library: inputs, outputs, rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vaeconv.cli.declare import documented
from vaeconv.common.option_docs import (
    EXPERT,
    PROBE,
    AllowZeros,
    Device,
    Doc,
    Download,
    DryRun,
    Salvage,
    SourcePrefix,
    Variant,
)
from vaeconv.weights.idle_options import Rule, refuse_idle

if TYPE_CHECKING:
    from vaeconv.models.open_model import ModelOptions

# What a shell completes; the release's own list is imported with all of its work.
_STEPS = ("convert", "prune", "verify", "eval", "compare", "card", "push")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Options that hold for every model; each says what it does."""

    source_prefix: SourcePrefix = None
    allow_zeros: AllowZeros = False
    salvage: Salvage = False
    download: Download = False

    def options(self, on_fetch: Callable[[int], None] | None = None) -> ModelOptions:
        """Make the library's options of it."""
        from vaeconv.models.open_model import ModelOptions

        return ModelOptions(**asdict(self), on_fetch=on_fetch)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardJob:
    """Sources of a card, and its form; each option says what it is."""

    evaluation: Annotated[
        tuple[Path, ...],
        Doc(
            "Result of vaeconv eval, one for each set of images; repeatable.",
            "FILE",
            flags=("--eval",),
        ),
    ] = ()
    parity: Annotated[Path | None, Doc("Report of vaeconv verify.", "FILE")] = None
    pictures: Annotated[
        Path | None,
        Doc(
            "Folder of side-by-side images, as vaeconv compare writes them, inside the published "
            "folder.",
            "DIR",
        ),
    ] = None
    meta: Annotated[
        Path | None,
        Doc(
            "Facts that people know: title, repo_id, license, base_model, summary, training, …",
            "FILE.toml",
        ),
    ] = None
    template: Annotated[
        Path | None, Doc("Template (jinja2) to use in place of the shipped one.", "FILE")
    ] = None
    sbom: Annotated[bool, Doc("Also write a bill of materials: sbom.cdx.json, in CycloneDX.")] = (
        False
    )
    check: Annotated[
        bool,
        Doc(
            "Write nothing; end with exit code 4 if the card that is there has broken front "
            "matter, dead links, or numbers that differ from --eval."
        ),
    ] = False
    show: Annotated[bool, Doc("Print the card on the terminal.", flags=("--print",))] = False
    dry_run: Annotated[bool, Doc("Write nothing, and print the text of the card.")] = False

    def refuse_idle(self, *, json: bool) -> None:
        """Refuse options that have no effect together."""
        why = "--check reads the card that is there, and writes nothing"
        rules = _rules(self, ("evaluation", "check"), not self.check, why)
        why = "--json has the text in its document"
        refuse_idle([*rules, Rule("--print", self.show, not json, why)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseJob:
    """Which steps of which release; each option says what it does."""

    file: Annotated[
        Path, Doc("Release file: what to release, and its gates.", "FILE.toml", is_argument=True)
    ] = Path("release.toml")
    first: Annotated[
        str | None,
        Doc(
            "Do this step and those after it again, even if they are done.",
            "STEP",
            flags=("--from",),
            suggested=_STEPS,
        ),
    ] = None
    last: Annotated[
        str | None, Doc("Stop after this step.", "STEP", flags=("--until",), suggested=_STEPS)
    ] = None
    init: Annotated[
        bool, Doc("Write a release file with every key, its meaning and its default.")
    ] = False
    tag: Annotated[
        str | None,
        Doc(
            "Tag of this release: stands for {tag} in the release file, and tags both commits if "
            "no value has {tag}. By default VAECONV_TAG, or the tag of the CI job (GitHub, "
            "GitLab), which only fill in {tag}.",
            "TAG",
        ),
    ] = None
    sign: Annotated[
        Path | None,
        Doc(
            "Private key in PEM to sign what is published with (pip install 'vaeconv[sign]').",
            "KEY",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Doc(
            "Look at everything that is needed, here and on the Hub, print which steps would run "
            "and which repositories would be created, and do nothing. Needs no token; without one "
            "notes say what is not checked."
        ),
    ] = False

    def refuse_idle(self) -> None:
        """Refuse options that have no effect together."""
        refuse_idle(
            _rules(self, ("file", "init", "tag"), not self.init, "--init only writes the file")
        )


def _rules(job: CardJob | ReleaseJob, but: Sequence[str], works: bool, why: str) -> list[Rule]:
    """Make the rule of every option of a job but some."""
    return [
        Rule(field.flags[0], getattr(job, field.name) != field.default, works, why)
        for field in documented(type(job))
        if field.name not in but
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyJob:
    """Other models of a verification; each option says what it is."""

    drop_in_for: Annotated[
        str | None,
        Doc(
            "Model that A must be able to stand in for: encoder, posterior moments, channels and "
            "scaling are the same, and the decoder may differ.",
            "BASE",
        ),
    ] = None
    variant_a: Annotated[
        Variant, Doc("Variant of a diffusers folder A, such as fp16.", "NAME", EXPERT)
    ] = None
    variant_b: Annotated[
        Variant, Doc("Variant of a diffusers folder B, such as fp16.", "NAME", EXPERT)
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneJob:
    """How the command prunes; each option says it."""

    out_dir: Annotated[
        Path | None,
        Doc("Folder, which must exist, to prune several checkpoints into.", "DIR"),
    ] = None
    dry_run: DryRun = False
    probe: Annotated[
        bool,
        Doc(
            "First decode a latent in fp16 and fp32, report the largest activation, and set "
            "force_upcast in a folder's config accordingly. Imports torch.",
            panel=PROBE,
        ),
    ] = False
    device: Device = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushJob:
    """Publications beside the folder; each option says what it is."""

    original: Annotated[
        tuple[str, Path] | None,
        Doc(
            "CompVis file to publish as well, with the repository of its own that it goes to; "
            "each card leads to the other.",
            "REPO_ID FILE",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        Doc(
            "Check the folder, the token and the repository, print what would be added, replaced "
            "and deleted, and change nothing."
        ),
    ] = False
