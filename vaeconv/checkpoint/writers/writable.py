"""Check before the work that an output can be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vaeconv.errors import OutputError, OutputExistsError

_PROBE = 4096  # bytes: more than a file system keeps beside the name of a file


@contextmanager
def translated(target: Path) -> Iterator[None]:
    """Turn what the system says where it cannot write into an error for the user.

    Raises:
        OutputError: The block could not write.
    """
    try:
        yield
    except FileExistsError as error:
        raise OutputExistsError(
            "appeared while it was being written", where=str(target), hint="run again"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot be written: {reason}", where=str(target)) from error


def check_writable(target: Path, *, is_folder: bool = False) -> None:
    """Check that a file, or files in a folder, can be written when the work is done.

    Permissions do not tell of a full disk or of a file system that is read-only, so something is
    written: a file without a name, beside the target or in the folder.

    Raises:
        OutputError: It cannot be written, or something of another kind is there.
    """
    from tempfile import TemporaryFile

    with translated(target):
        exists = target.exists()
        if exists and not (target.is_dir() if is_folder else target.is_file()):
            kind = "folder" if is_folder else "file"
            raise OutputError(f"is not a {kind}", where=str(target), hint=f"name a {kind}")
        place = target if exists and is_folder else target.absolute().parent
        if not place.is_dir():
            raise no_folder(target, place)
        with TemporaryFile(dir=place, buffering=0) as probe:
            probe.write(bytes(_PROBE))


def no_folder(target: Path, place: Path) -> OutputError:
    """Return the error of an output whose folder is not there, with what to do about it."""
    hint = f"mkdir -p '{place}'"
    if target.parts[:1] and target.parts[0].startswith("~"):  # mkdir would make a folder of it
        hint = "the shell did not expand ~; write $HOME in its place, or leave the quotes out"
    return OutputError("its folder does not exist", where=str(target), hint=hint)


def make_folder(folder: Path) -> None:
    """Make the folder of an output, in a folder that is there; one that is there is taken.

    Raises:
        OutputError: It cannot be made, or written into.
    """
    check_writable(folder, is_folder=True)
    with translated(folder):
        folder.mkdir(exist_ok=True)
