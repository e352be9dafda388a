"""Sign a release with OpenSSF model signing, and check a signature; needs the extra ``sign``.

The signature is a bundle in the folder itself, over every file but the card, which the Hub and
people edit, and the signature.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.source import FileSource, hash_bytes
from vaeconv.common.leftovers import scratch_folder
from vaeconv.errors import CheckFailedError, InputError, MissingDependencyError, OutputError
from vaeconv.publish.card.card import CARD

SIGNATURE = "model.sig"
# What the Hub adds to a repository, and its client to a download.
_IGNORED = (SIGNATURE, CARD, ".gitattributes", ".cache", ".git")
_IGNORED_HERE = (*_IGNORED, ".gitignore", ".github")  # model-signing ignores git's own files
_MISMATCH = "Signature mismatch"  # how model-signing says that the signature is good, and files not


def settle_signature(
    folder: Path,
    private_key: Path,
    target: Path,
    *,
    leave_out: Iterable[Path] = (),
    candidates: Iterable[Callable[[], Path | None]] = (),
) -> Path:
    """Find a signature that fits, or sign.

    Signatures of the same bytes differ, so that a new one would be a change where nothing changed.

    Args:
        folder: What is signed.
        private_key: An elliptic-curve key in PEM.
        target: Where a new signature goes.
        leave_out: Files in the folder that it does not cover.
        candidates: Each gives the path of a signature that may fit, or None.

    Returns:
        The signature.

    Raises:
        InputError: The key cannot be used.
        MissingDependencyError: model-signing is not installed.
        OutputError: The folder cannot be read, or the signature not written.
    """
    left = tuple(leave_out)
    with scratch_folder() as room:
        public = room / "key.pub"
        public.write_bytes(check_key(private_key))
        for candidate in candidates:
            found = candidate()
            if found and found.is_file():
                with suppress(CheckFailedError):
                    verify_signature(folder, public, found, leave_out=left)
                    return found
    return sign_folder(folder, private_key, target, leave_out=left)


def check_key(private_key: Path) -> bytes:
    """Check that a key can sign, before there is anything to sign.

    Returns:
        Its public half, in PEM.

    Raises:
        InputError: It is no private key on an elliptic curve in PEM, or is locked by a password.
        MissingDependencyError: model-signing is not installed.
    """
    _signer(private_key)
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(private_key.read_bytes(), None)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signer(private_key: Path) -> Any:
    """Make a signer of model-signing's with a key, which it reads."""
    _, signing, _ = _import()
    try:
        return signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:
        if not private_key.is_file():
            raise InputError("no such key", where=str(private_key)) from error
        raise InputError(
            f"not a key to sign with ({type(error).__name__})",
            where=str(private_key),
            hint="openssl ecparam -genkey -name prime256v1 -noout -out key.pem makes one",
        ) from error


def sign_folder(
    folder: Path,
    private_key: Path,
    target: Path | None = None,
    *,
    leave_out: Iterable[Path] = (),
) -> Path:
    """Sign a folder.

    Args:
        folder: What is signed.
        private_key: An elliptic-curve key in PEM.
        target: Where the signature goes; by default into the folder.
        leave_out: Files in it that the signature does not cover.

    Returns:
        The signature.

    Raises:
        InputError: The key cannot be used.
        MissingDependencyError: model-signing is not installed.
        OutputError: The folder cannot be read, or the signature not written.
    """
    if not folder.is_dir():
        raise OutputError("is not a folder", where=str(folder))
    target = target or folder / SIGNATURE
    signer = _signer(private_key)
    try:
        signer.set_hashing_config(_hashing(folder, leave_out)).sign(folder, target)
    except OSError as error:
        raise OutputError(f"cannot be signed: {error}", where=str(folder)) from error
    return target


def verify_signature(
    folder: Path,
    public_key: Path,
    signature: Path | None = None,
    *,
    leave_out: Iterable[Path] = (),
) -> None:
    """Check that a folder is what was signed.

    Args:
        folder: The release, or a download of it.
        public_key: In PEM.
        signature: The bundle; by default the one in the folder.
        leave_out: Files in the folder that it does not cover.

    Raises:
        CheckFailedError: It is not: a file differs, is missing or new, or another key signed.
        InputError: There is no signature or no such key.
        MissingDependencyError: model-signing is not installed.
    """
    _, _, verifying = _import()
    bundle = signature or folder / SIGNATURE
    for path, what in ((folder, "folder"), (bundle, "signature"), (public_key, "key")):
        if not path.exists():
            raise InputError(f"no such {what}", where=str(path))
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(
            "not the public half of a key",
            where=str(public_key),
            hint="openssl ec -in key.pem -pubout -out key.pub makes it of the private key",
        ) from error
    try:
        config.set_hashing_config(_hashing(folder, leave_out)).verify(folder, bundle)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _not_signed(folder, bundle, reason, leave_out) from error


def _not_signed(
    folder: Path, bundle: Path, reason: str, leave_out: Iterable[Path]
) -> CheckFailedError:
    """Say what is wrong: every file that differs, and whether the signature is another's."""
    try:
        signed = read_signed(bundle)
    except InputError as error:
        return CheckFailedError(f"the signature does not fit: {error.what}", where=str(folder))
    left = {path.absolute() for path in (*leave_out, bundle)}
    here = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in _IGNORED_HERE
        and path.absolute() not in left
    }
    found = {
        "changed": [
            name for name in signed if name in here and _sha256(here[name]) != signed[name]
        ],
        "missing": [name for name in signed if name not in here],
        "added": [name for name in here if name not in signed],
    }
    details = [f"{kind}: {name}" for kind, names in found.items() for name in names]
    counts = [f"{len(names)} {kind}" for kind, names in found.items() if names]
    if not (counts and reason.startswith(_MISMATCH)):
        details.insert(0, f"the signature is not by this key, or it is damaged: {reason}")
        counts.insert(0, "it is not by this key, or damaged")
    if len(details) == 1:
        return CheckFailedError(f"the signature does not fit: {details[0]}", where=str(folder))
    return CheckFailedError(
        f"the signature does not fit: {', '.join(counts)}", where=str(folder), details=details
    )


def _sha256(path: Path) -> str | None:
    with suppress(OSError, InputError), closing(FileSource(path)) as source:
        return hash_bytes(source)
    return None


def read_signed(signature: Path) -> dict[str, str]:
    """Read which files a signature is about, without checking it.

    Returns:
        The sha256 of each file, by its path.

    Raises:
        InputError: It is no signature of OpenSSF model signing.
    """
    try:
        bundle = json.loads(signature.read_bytes())
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        resources = statement["predicate"]["resources"]
        return {str(one["name"]): str(one["digest"]) for one in resources}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"not a signature ({error})", where=signature.name) from error


def _hashing(folder: Path, leave_out: Iterable[Path]) -> Any:
    hashing, _, _ = _import()
    ignored = [*(folder / name for name in _IGNORED), *leave_out]
    config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=True)
    # What is published is what a link leads to, and a download in the cache is links.
    return config.set_allow_symlinks(True)


def _import() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need model-signing: {error}", hint="pip install 'vaeconv[sign]'"
        ) from error
    return hashing, signing, verifying
