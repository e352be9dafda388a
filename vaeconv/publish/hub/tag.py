"""A tag on a commit, and on no other."""

from __future__ import annotations

from vaeconv.errors import HubError
from vaeconv.publish.hub.repository import Remote
from vaeconv.publish.hub.session import is_lost, status_of


def check_tag(remote: Remote, tag: str, oid: str | None) -> None:
    """Refuse, before anything is done, a tag that stands on another commit than it would.

    Args:
        remote: The repository.
        tag: The tag.
        oid: The commit that it would stand on; None for one that is not made yet.

    Raises:
        HubError: It stands elsewhere.
    """
    present = remote.find_tag(tag)
    if present is not None and present != oid:
        raise _misplaced(remote, tag, present)


def put_tag(remote: Remote, tag: str, oid: str) -> None:
    """Put a tag on a commit; one that stands elsewhere is left.

    Raises:
        HubError: It stands elsewhere.
    """
    present = remote.find_tag(tag)
    if present is None:
        try:
            remote.make_tag(tag, oid)
        except Exception as error:
            if not is_lost(error) and status_of(error) != 409:
                raise
            present = remote.find_tag(tag)
            if present is None:
                raise
        else:
            return
    if present != oid:
        raise _misplaced(remote, tag, present)


def _misplaced(remote: Remote, tag: str, present: str) -> HubError:
    return HubError(
        f"the tag {tag} stands on another commit, {present}",
        where=remote.repo_id,
        hint="choose another tag, or remove that one: hf repo tag delete",
    )
