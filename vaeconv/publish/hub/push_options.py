"""Options of a push, and checks of names of repositories, branches and tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vaeconv.checkpoint.hub.client import check_environment
from vaeconv.common import option_docs as docs
from vaeconv.common.option_checks import Range, check_fields
from vaeconv.common.option_docs import Doc
from vaeconv.errors import UsageError

# The rules of git check-ref-format.
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[./-]|[./]$|/\.|\.lock(/|$)|^@?$")
TYPES = ("model", "dataset", "space")
CARDS = ("merge", "replace")
_MOST_SECONDS = 1e8  # three years; threads cannot wait for much more


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """Options of a push; each says what it does.

    Attributes:
        on_progress: Called with what is being done, and how much of it is done of how much; 0 of 0
            for uploads, which the Hub's client shows on a terminal. None to show nothing at all.

    Example:
        >>> PushOptions(tag="v1.0", private=True).tag
        'v1.0'
    """

    revision: Annotated[
        str, Doc("Branch to publish to; it is made if it does not exist yet.", "BRANCH")
    ] = "main"
    private: Annotated[
        bool | None,
        Doc(
            "Create the repository as private (or public) if it does not exist yet; by default as "
            "its owner's settings say.",
            flags=("--private/--no-private",),
        ),
    ] = None
    create_pr: Annotated[
        bool,
        Doc(
            "Open a pull request instead of a commit to the branch.",
            flags=("--create-pr/--no-create-pr",),
        ),
    ] = False
    tag: Annotated[str | None, Doc("Tag for the commit, such as v1.0.", "NAME")] = None
    message: Annotated[
        str | None,
        Doc(
            "Message of the commit; by default one that names the files.",
            "TEXT",
            flags=("--commit-message",),
        ),
    ] = None
    repo_type: Annotated[str, docs.choice("Type of the repository", "TYPE", TYPES)] = "model"
    include: Annotated[
        tuple[str, ...], Doc("Pattern of paths to publish, and no others; repeatable.", "GLOB")
    ] = ()
    exclude: Annotated[
        tuple[str, ...], Doc("Pattern of paths to leave out; repeatable.", "GLOB")
    ] = ()
    follow_symlinks: Annotated[
        bool,
        Doc(
            "Publish the targets of links that lead out of the folder, as links in the Hub's cache "
            "do.",
        ),
    ] = False
    card: Annotated[
        str,
        Doc(
            "How to treat a card that people edited on the Hub: merge keeps their words and "
            "stops at a contradiction, replace publishes the card of the folder.",
            "merge|replace",
            choices=CARDS,
        ),
    ] = "merge"
    allow_zeros: docs.AllowZeros = False
    parity: Annotated[
        bool,
        Doc(
            "Require every file of weights to be in a report of vaeconv verify that passed.",
            panel=docs.CHECKS,
        ),
    ] = True
    reports: Annotated[
        tuple[Path, ...],
        Doc(
            "Parity report; by default parity*.json in the folder. Repeatable.",
            "FILE",
            docs.CHECKS,
            flags=("--report",),
        ),
    ] = ()
    sign: Annotated[
        Path | None,
        Doc(
            "Private key in PEM to sign the files with (pip install 'vaeconv[sign]').",
            "KEY",
            docs.CHECKS,
        ),
    ] = None
    verify: Annotated[
        bool, Doc("Download what was published, and compare it.", panel=docs.CHECKS)
    ] = False
    timeout: Annotated[
        float,
        Doc(
            "Give up after this many seconds in total.",
            "SECONDS",
            docs.CHECKS,
            least=1,
            rule=Range(0, is_open=True, most=_MOST_SECONDS),
        ),
    ] = 3600
    on_progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def check_options(repo_id: str, options: PushOptions) -> None:
    """Check that a repository's name and the options are possible.

    Raises:
        UsageError: They are not.
    """
    check_environment()
    if not is_repo_id(repo_id) or repo_id.count("/") != 1:
        is_path = bool(repo_id) and Path(repo_id).exists()
        hint = "the folder comes first, then the repository" if is_path else None
        raise UsageError(f"{repo_id} is not owner/name", hint=hint)
    if options.tag and options.tag == options.revision:
        raise UsageError(
            f"the tag {options.tag} would have the branch's name", hint="choose another tag"
        )
    for name in filter(None, (options.tag, options.revision)):
        if not is_ref(name):
            raise UsageError(f"{name} is not a name that git allows for a branch or tag")
    if options.create_pr and (options.revision != "main" or options.tag):
        raise UsageError(
            "--create-pr goes with neither --revision nor --tag",
            hint="a pull request goes to main, and gets its tag once it is merged",
        )


def is_repo_id(name: str) -> bool:
    """Tell if the Hub allows it as the name of a repository, with an owner or without."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return all(name.split("/"))


def is_ref(name: str) -> bool:
    """Tell if git allows it as a name (``git check-ref-format``)."""
    return not _NO_REF.search(name)
