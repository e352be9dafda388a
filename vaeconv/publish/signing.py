"""Sign a release with OpenSSF model signing, and check a signature; needs the extra ``sign``.

The signature is a bundle in the folder itself, over every file but the card, which the Hub and
people edit, and the signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaeconv.errors import CheckFailedError, InputError, MissingDependencyError, OutputError
from vaeconv.publish.card import CARD

SIGNATURE = "model.sig"
# What the Hub adds to a repository, and its client to a download.
_IGNORED = (SIGNATURE, CARD, ".gitattributes", ".cache", ".git")


def sign_folder(folder: Path, private_key: Path) -> Path:
    """Sign a folder with an elliptic-curve key in PEM.

    Returns:
        The signature.

    Raises:
        InputError: The key cannot be used.
        MissingDependencyError: model-signing is not installed.
        OutputError: The folder cannot be read, or the signature not written.
    """
    hashing, signing, _ = _import()
    if not folder.is_dir():
        raise OutputError("is not a folder", where=str(folder))
    if not private_key.is_file():
        raise InputError("no such key", where=str(private_key))
    target = folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:
        raise InputError(
            f"not a key to sign with ({type(error).__name__})",
            where=str(private_key),
            hint="openssl ecparam -genkey -name prime256v1 -noout -out key.pem makes one",
        ) from error
    try:
        config.set_hashing_config(_hashing(hashing, folder)).sign(folder, target)
    except OSError as error:
        raise OutputError(f"cannot be signed: {error}", where=str(folder)) from error
    return target


def verify_signature(folder: Path, public_key: Path, signature: Path | None = None) -> None:
    """Check that a folder is what was signed.

    Args:
        folder: The release, or a download of it.
        public_key: In PEM.
        signature: The bundle; by default the one in the folder.

    Raises:
        CheckFailedError: It is not: a file differs, is missing or new, or another key signed.
        InputError: There is no signature or no such key.
        MissingDependencyError: model-signing is not installed.
    """
    hashing, _, verifying = _import()
    bundle = signature or folder / SIGNATURE
    for path, what in ((folder, "folder"), (bundle, "signature"), (public_key, "key")):
        if not path.exists():
            raise InputError(f"no such {what}", where=str(path))
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(
            f"not a key to check with ({type(error).__name__})", where=str(public_key)
        ) from error
    try:
        config.set_hashing_config(_hashing(hashing, folder)).verify(folder, bundle)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckFailedError(
            f"the signature does not fit: {reason}", where=str(folder)
        ) from error


def _hashing(hashing: Any, folder: Path) -> Any:
    ignored = [folder / name for name in _IGNORED]
    return hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=True)


def _import() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need model-signing: {error}", hint="pip install 'vaeconv[sign]'"
        ) from error
    return hashing, signing, verifying
