"""Check that a token may do what a push does, and tell what would become of a repository.

Everything here is asked before anything is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from vaeconv.errors import HubError
from vaeconv.publish.hub.push_options import TYPES, PushOptions
from vaeconv.publish.hub.repository import Remote, with_remote
from vaeconv.publish.hub.session import RESOURCE, Deadline, ask, status_of

_WRITES = ("repo.write", "repo.content.write")  # permissions of a fine-grained token
_LOG_IN = "log in with: hf auth login, or set HF_TOKEN"


class Destination(NamedTuple):
    """A repository that is to be pushed to.

    Attributes:
        repo_id: ``owner/name``.
        revision: The branch.
        exists: Whether the repository is there.
        private: Whether it is private, or would be; None for the default of the namespace.
        head: The commit that the branch is at; None where there is no such branch.
        tagged: The commit that the wanted tag stands on; None for none.
        notes: Notes and warnings for the user.
    """

    repo_id: str
    revision: str
    exists: bool
    private: bool | None
    head: str | None
    tagged: str | None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say in a line what would become of it."""
        verb = "is there" if self.exists else "would be created"
        branch = "" if self.head or not self.exists else f"; the branch {self.revision} would be"
        return f"{self.repo_id} {verb}, {visibility(self.private)}{branch}"


def visibility(private: bool | None) -> str:
    """Say who may see a repository."""
    seen = {True: "private", False: "public", None: "as public as its owner's default is"}
    return seen[private]


def look_at(
    repo_id: str, options: PushOptions, deadline: Deadline, *, needs_token: bool = True
) -> Destination:
    """Look at a repository as a push would find it, with the token that a push would use.

    Args:
        repo_id: The repository, ``owner/name``.
        options: How it would be pushed.
        deadline: What all requests together may take.
        needs_token: Whether it is an error that no token is set; a note where not.

    Raises:
        HubError: There is no token, it may not write there, or the Hub does not answer; the tag
            stands on a commit that is not the branch's.
    """

    def work(remote: Remote) -> Destination:
        found = look(remote, options, needs_token=needs_token)
        if options.tag:
            remote.check_tag(options.tag, found.tagged, found.head)
        return found

    return with_remote(repo_id, options, deadline, work)


def look(
    remote: Remote, options: PushOptions, *, namesakes: bool = False, needs_token: bool = True
) -> Destination:
    """Check the token, its rights and the repository.

    Args:
        remote: Where to.
        options: Options of the push.
        namesakes: Look also for repositories of that name and another type.
        needs_token: Whether it is an error that no token is set; a note where not.

    Raises:
        HubError: A push would be refused; every reason is named.
    """
    problems: list[str] = []
    notes: list[str] = []
    if not needs_token and not _is_exchanged() and not _has_token():
        notes.append(_NO_TOKEN)
    elif not _is_exchanged():
        account = _ask_account(remote)
        if account is None:
            notes.append("the Hub did not say whose token it is: rights are not checked")
        else:
            problems += _rights_problems(account, remote, options)
    hint = _WRITE_ACCESS if problems else None
    info = remote.info()
    private = options.private
    if info is not None:
        private = bool(getattr(info, "private", False))
        if getattr(info, "disabled", False):
            problems.append("it is disabled by the Hub")
        if options.private and not private:
            problems.append(
                "it is public, and was to be private: change that in its settings on the Hub, or "
                "leave the option out"
            )
        elif options.private is False and private:
            notes.append("the repository is private, and stays so")
        if getattr(info, "gated", False):
            notes.append("the repository is gated: who downloads it is asked first")
    elif namesakes:
        notes += _namesakes(remote)
    if problems:
        first, *others = problems
        what = f"a push would be refused for {len(problems)} reasons" if others else first
        details = problems if others else ()
        raise HubError(what, where=remote.repo_id, hint=hint, details=details)
    head = remote.find_head() if info is not None else None
    tagged = remote.find_tag(options.tag) if options.tag and info is not None else None
    return Destination(
        remote.repo_id, remote.revision, info is not None, private, head, tagged, tuple(notes)
    )


_NO_TOKEN = (
    "no token is set: whether it may be pushed to is not checked, and a private repository looks "
    "as if it did not exist; the release itself needs a token"
)
_WRITE_ACCESS = "use a token with write access to this namespace"


def _is_exchanged() -> bool:
    """Whether a job's identity is exchanged for a token, which has no owner to ask for."""
    return "/" in os.environ.get(RESOURCE, "")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _ask_account(remote: Remote) -> Mapping[str, Any] | None:
    """Ask whose the token is; None where the Hub has no time to say.

    Raises:
        HubError: There is no token, or the Hub does not accept it.
    """
    if not _has_token():
        raise HubError("no token is set", where=remote.repo_id, hint=_LOG_IN)
    try:
        found: Mapping[str, Any] = ask(remote.api.whoami, remote.deadline)
    except Exception as error:
        status = status_of(error)
        if status == 401:
            raise HubError(
                "the token is not accepted: it is wrong, has expired or was revoked (401)",
                where=remote.repo_id,
                hint=_LOG_IN,
            ) from error
        if status is None:
            raise
        return None
    return found


def _rights_problems(
    account: Mapping[str, Any], remote: Remote, options: PushOptions
) -> Iterator[str]:
    """Name what a token may not do, as far as the Hub tells."""
    name, namespace = account.get("name"), remote.repo_id.partition("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    roles = {one.get("name"): one.get("roleInOrg") for one in account.get("orgs") or ()}
    if token.get("role") == "read":
        yield f"the token of {name} may only read"
    if options.create_pr:  # which everybody may open
        return
    if token.get("role") == "fineGrained" and not _may_write(token, remote.repo_id):
        yield f"the token may not write in {namespace}: it is fine-grained, and for others"
    if namespace != name and namespace not in roles:
        yield f"{name} is not {namespace}, and not a member of it"
    elif namespace != name and roles[namespace] == "read":
        yield f"{name} may only read in {namespace}"


def _may_write(token: Mapping[str, Any], repo_id: str) -> bool:
    """Read the rights of a fine-grained token; one that does not list them is believed."""
    rights = token.get("fineGrained")
    if not isinstance(rights, Mapping) or not isinstance(rights.get("scoped"), list):
        return True
    names = {repo_id, repo_id.partition("/")[0]}
    return any(
        (scope.get("entity") or {}).get("name") in names
        and any(one in _WRITES for one in scope.get("permissions") or ())
        for scope in rights["scoped"]
    )


def _namesakes(remote: Remote) -> Iterator[str]:
    for kind in TYPES:
        if kind == remote.repo_type:
            continue
        if ask(partial(remote.api.repo_exists, remote.repo_id, repo_type=kind), remote.deadline):
            yield f"there is a {kind} of that name, which is another repository"
