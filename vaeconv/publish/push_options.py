"""How to push, and whether a repository can have such a name, branch or tag."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaeconv.checkpoint.hub_environment import check_environment
from vaeconv.errors import UsageError
from vaeconv.option_checks import Range, check_fields

# The rules of git check-ref-format.
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[./-]|[./]$|/\.|\.lock(/|$)|^@?$")
TYPES = ("model", "dataset", "space")
CARDS = ("merge", "replace")
_MOST_SECONDS = 1e8  # three years; threads cannot wait for much more


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How to push.

    Attributes:
        revision: The branch; made where it is not there.
        private: Whether a repository that is made is private; None for the namespace's default.
        create_pr: Open a pull request instead of a commit to the branch.
        tag: Tag the commit.
        message: Of the commit; None for one that names the files.
        repo_type: ``model``.
        include: Patterns of paths to publish.
        exclude: Patterns of paths to leave out.
        follow_symlinks: Whether what links lead to is published where that is outside the folder.
        card: ``merge`` keeps what people wrote on the card that is published, or stops where that
            and the card here contradict each other; ``replace`` publishes the card here.
        parity: Whether every file of weights must be in a parity report that passed.
        allow_zeros: Let weights pass that are zero where no training leaves zeros.
        reports: Parity reports; none means those in the folder.
        sign: A private key (PEM) to sign the files with, which needs the extra ``sign``.
        verify: Download what was published, and compare hashes.
        timeout: Seconds for everything.
        on_progress: Called with what is being done, and how much of it is done of how much; 0 of 0
            for uploads, which the Hub's client shows on a terminal. None to show nothing at all.
    """

    revision: str = "main"
    private: bool | None = None
    create_pr: bool = False
    tag: str | None = None
    message: str | None = None
    repo_type: str = "model"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_symlinks: bool = False
    card: str = "merge"
    parity: bool = True
    allow_zeros: bool = False
    reports: tuple[Path, ...] = ()
    sign: Path | None = None
    verify: bool = False
    timeout: float = 3600.0
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, repo_type=TYPES, card=CARDS, timeout=Range(0, is_open=True, most=_MOST_SECONDS)
        )


def check_options(repo_id: str, options: PushOptions) -> None:
    """Check that a repository's name and the options are possible.

    Raises:
        UsageError: They are not.
    """
    check_environment()
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        is_named = repo_id.count("/") == 1 and all(repo_id.split("/"))
    except HFValidationError:
        is_named = False
    if not is_named:
        raise UsageError(f"{repo_id} is not owner/name")
    if options.tag and options.tag == options.revision:
        raise UsageError(
            f"the tag {options.tag} would have the branch's name", hint="choose another tag"
        )
    for name in filter(None, (options.tag, options.revision)):
        if not is_ref(name):
            raise UsageError(f"{name} is no name that git allows for a branch or tag")
    if options.create_pr and (options.revision != "main" or options.tag):
        raise UsageError(
            "--create-pr goes with neither --revision nor --tag",
            hint="a pull request goes to main, and gets its tag once it is merged",
        )


def is_ref(name: str) -> bool:
    """Whether git allows it as a name (``git check-ref-format``)."""
    return not _NO_REF.search(name)
