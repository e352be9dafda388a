"""Which files of a folder are a release, and which are never published."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vaeconv.errors import CheckpointNotFoundError

# Names of what lies in folders and belongs to nobody's release; upper and lower case are alike.
_NEVER = tuple(
    """
    .* *.vaeconv-* *.parts
    *~ ~$* #*# *.sw[m-p] *.bak *.orig *.rej *.tmp *.temp *.lock *.old *.save *.sav
    *_backup_[0-9]* *_base_[0-9]* *_local_[0-9]* *_remote_[0-9]* untitled*.ipynb
    thumbs.db ehthumbs.db desktop.ini __macosx $recycle.bin
    *.part *.part[0-9]* *.partial *.filepart *.crdownload *.opdownload *.download *.downloading
    *.incomplete *.unconfirmed *.aria2 *.aria2__temp *.!qb
    __pycache__ *.pyc *.pyo *.egg-info node_modules venv
    wandb lightning_logs mlruns runs events.out.tfevents.* nohup.out *.log
    core core.[0-9]* vgcore.* *.core *.dmp *.stackdump
    id_rsa* id_dsa* id_ecdsa* id_ed25519* *.pem *.key *.p12 *.pfx *.ppk *.jks *.keystore *.kdbx
    token token.txt *.token hf_token* hf-token* my_token* api_key* apikey* private_key*
    credentials credentials.* credentials_* *_credentials *_credentials.* netrc _netrc kaggle.json
    env env.* *.env secret secrets secret.* secrets.* *.secret *.secrets client_secret*
    service-account*.json service_account*.json password password.* passwords passwords.*
    htpasswd *.htpasswd *.ovpn kubeconfig *.kubeconfig
    """.split()
)
# Hidden names that are the repository's own.
_ALLOWED = (".gitattributes", ".eval_results")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Selection(NamedTuple):
    """Files of a folder that would be published.

    Attributes:
        files: Each file with its path in the repository, in order of the paths.
        left_out: Paths that are never published; a folder ends in a slash.
        problems: What cannot be published, and was not left out.
        unused: Patterns that no file matches.
    """

    files: list[tuple[Path, str]]
    left_out: list[str]
    problems: list[str]
    unused: Sequence[str] = ()


def is_never_published(path: str) -> bool:
    """Tell if a file of that path is never published: hidden, a leftover, a key."""
    return any(
        part not in _ALLOWED and any(fnmatchcase(part.lower(), one) for one in _NEVER)
        for part in path.split("/")
    )


def select_files(
    folder: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_symlinks: bool = False,
) -> Selection:
    """Select the files of a release.

    Args:
        folder: The release.
        include: Patterns of paths to publish; none means all.
        exclude: Patterns of paths to leave out.
        follow_symlinks: Publish what links lead to, also outside the folder.

    Raises:
        CheckpointNotFoundError: It is not a folder.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError("no such folder", where=str(folder))
    selection = Selection([], [], [])
    root = Path(os.path.realpath(folder))
    unused = dict.fromkeys([*include, *exclude])
    for local, path, problem in _walk(folder, "", (root,), follow_symlinks=follow_symlinks):
        inside = path.rstrip("/")
        for pattern in [one for one in unused if fnmatchcase(inside, one)]:
            del unused[pattern]
        if (include and not _matches(inside, include)) or _matches(inside, exclude):
            continue
        if problem:
            selection.problems.append(f"{path} {problem}")
        elif is_never_published(inside):
            selection.left_out.append(path)
        else:
            selection.files.append((local, path))
    selection.files.sort(key=lambda one: one[1])
    return selection._replace(unused=list(unused))


def _walk(
    folder: Path, above: str, open_folders: tuple[Path, ...], *, follow_symlinks: bool
) -> Iterator[tuple[Path, str, str]]:
    """Give every file with its path, and what keeps it from being published.

    Args:
        folder: Where.
        above: Its path in the repository, with a slash at the end; empty for the release.
        open_folders: The folders that this one lies in as they really are, the release first.
        follow_symlinks: Publish what links lead to, also outside the folder.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield folder, above, f"cannot be read: {error.strerror}"
        return
    for local in entries:
        path = above + local.name
        if is_never_published(local.name):
            is_folder = local.is_dir() and not local.is_symlink()
            yield local, path + "/" * is_folder, ""
            continue
        real = Path(os.path.realpath(local))
        if local.is_symlink():
            problem = _link_problem(real, open_folders, follow_symlinks=follow_symlinks)
            if problem:
                yield local, path, problem
                continue
        try:
            mode = local.stat().st_mode
        except OSError as error:
            yield local, path, f"cannot be read: {error.strerror}"
            continue
        if stat.S_ISDIR(mode):
            inner = (*open_folders, real)
            yield from _walk(local, f"{path}/", inner, follow_symlinks=follow_symlinks)
        elif stat.S_ISREG(mode):
            yield local, path, "" if os.access(local, os.R_OK) else "cannot be read: no permission"
        else:
            yield (
                local,
                path,
                f"is not a file: it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}",
            )


def _link_problem(
    real: Path, open_folders: tuple[Path, ...], *, follow_symlinks: bool
) -> str | None:
    if not real.exists():
        return "is a link that leads to nothing"
    if real in open_folders:
        return "is a link that leads to a folder it lies in"
    root = open_folders[0]
    if root in real.parents:
        inside = real.relative_to(root).as_posix()
        return f"is a link to {inside}, which is never published" * is_never_published(inside)
    if not follow_symlinks:
        return f"is a link that leads out of the folder, to {real}; --follow-symlinks publishes it"
    if is_never_published(real.name):
        return f"is a link to {real}, which is never published"
    return None


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
