"""What would become of a repository, and whether the token may do it; nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from vaeconv.errors import HubError
from vaeconv.publish.hub_session import Deadline, ask
from vaeconv.publish.push_options import PushOptions
from vaeconv.publish.remote import Remote, with_remote

_WRITES = ("repo.write", "repo.content.write")  # permissions of a fine-grained token


class Destination(NamedTuple):
    """A repository that is to be pushed to.

    Attributes:
        repo_id: ``owner/name``.
        revision: The branch.
        exists: Whether the repository is there.
        private: Whether it is private, or would be; None for the default of the namespace.
        head: The commit that the branch is at; None where there is no such branch.
        tagged: The commit that the wanted tag stands on; None for none.
    """

    repo_id: str
    revision: str
    exists: bool
    private: bool | None
    head: str | None
    tagged: str | None

    def describe(self) -> str:
        """Say in a line what would become of it."""
        seen = {True: "private", False: "public", None: "as public as its owner's default is"}
        verb = "is there" if self.exists else "would be created"
        branch = "" if self.head or not self.exists else f"; the branch {self.revision} would be"
        return f"{self.repo_id} {verb}, {seen[self.private]}{branch}"


def look_at(repo_id: str, options: PushOptions, deadline: Deadline) -> Destination:
    """Look at a repository as a push would find it, with the token that a push would use.

    Raises:
        HubError: There is no token, it may not write there, or the Hub does not answer; the tag
            stands on a commit that is not the branch's.
    """
    return with_remote(repo_id, options, deadline, lambda remote: _look(remote, options))


def _look(remote: Remote, options: PushOptions) -> Destination:
    from huggingface_hub.errors import RepositoryNotFoundError

    # A job's identity is exchanged for a token of this repository, which has no owner to ask for.
    is_exchanged = "/" in os.environ.get("HF_OIDC_RESOURCE", "")
    if not is_exchanged:
        _check_token(remote)
    try:
        info = ask(
            lambda: remote.api.repo_info(remote.repo_id, repo_type=remote.repo_type),
            remote.deadline,
        )
    except RepositoryNotFoundError:
        if is_exchanged:
            raise
        return Destination(remote.repo_id, remote.revision, False, options.private, None, None)
    if options.private and info.private is False:
        raise HubError(
            "it is public, and was to be private",
            where=remote.repo_id,
            hint="change its visibility in its settings on the Hub, or leave private out",
        )
    head = remote.find_head()
    tagged = remote.find_tag(options.tag) if options.tag else None
    if tagged and tagged != head:
        raise HubError(
            f"the tag {options.tag} stands on another commit, {tagged}",
            where=remote.repo_id,
            hint="choose another tag, or remove that one: hf repo tag delete",
        )
    return Destination(remote.repo_id, remote.revision, True, bool(info.private), head, tagged)


def _check_token(remote: Remote) -> None:
    """Check that there is a token, and that it may write into the namespace.

    Raises:
        HubError: There is none, or it may not.
    """
    from huggingface_hub import get_token

    log_in = "log in with: hf auth login, or set HF_TOKEN"
    if not get_token():
        raise HubError("no token is set", where=remote.repo_id, hint=log_in)
    account: Mapping[str, Any] = ask(remote.api.whoami, remote.deadline)
    namespace = remote.repo_id.partition("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    groups = {one.get("name"): one.get("roleInOrg") for one in account.get("orgs") or ()}
    if token.get("role") == "read":
        what = f"the token of {account.get('name')} may only read"
    elif namespace != account.get("name") and namespace not in groups:
        what = f"{account.get('name')} is not {namespace}, and not a member of it"
    elif namespace != account.get("name") and groups[namespace] == "read":
        what = f"{account.get('name')} may only read in {namespace}"
    elif token.get("role") == "fineGrained" and not _may_write(token, remote.repo_id):
        what = f"the token may not write in {namespace}"
    else:
        return
    raise HubError(
        what, where=remote.repo_id, hint="use a token with write access to this namespace"
    )


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
