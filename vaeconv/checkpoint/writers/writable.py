"""Check before the work that an output can be written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def check_output(
    target: Path,
    sources: Sequence[Path],
    *,
    overwrite: bool,
    hint: str = "--overwrite replaces it",
) -> None:
    """Refuse an output that must not be written, before anything is opened for writing.

    Args:
        target: The file or folder to write.
        sources: Local files that will be read.
        overwrite: Replace an existing output.
        hint: What to say of an output that is there.

    Raises:
        OutputError: It is one of the sources (by whatever spelling), contains one or lies in one,
            is a symbolic link or a folder without a name, or its folder does not exist.
        OutputExistsError: It is there.
    """
    if target.name in ("", ".."):
        raise OutputError(
            "is not the name of a folder", where=str(target), hint="name a folder in it"
        )
    try:
        parent_exists = target.parent.is_dir()
        is_link, exists = target.is_symlink(), target.exists()
        overlaps = [(_overlap(source, target), source) for source in sources if source.exists()]
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written: {error}", where=str(target)) from error
    if not parent_exists:
        raise no_folder(target, target.parent)
    for overlap, source in overlaps:
        if overlap:
            raise OutputError(
                f"{overlap} ({source})", where=str(target), hint="write to another place"
            )
    if is_link:
        raise OutputError(
            "is a symbolic link", where=str(target), hint="name the place that it points to"
        )
    if exists and not overwrite and not is_empty_folder(target):
        raise OutputExistsError("exists", where=str(target), hint=hint)


def _overlap(source: Path, target: Path) -> str | None:
    """Say how an output and an input are one place, or one within the other; None if neither.

    A new file in the input's folder is neither.
    """
    if target.exists():
        if source.samefile(target):
            return "is the input itself"
        above = {*source.absolute().parents, *source.resolve().parents}
        if target.is_dir() and any(folder.samefile(target) for folder in above):
            return "contains the input"
        if source.is_dir() and source.resolve() in target.resolve().parents:
            return "lies in the input"
    return None


def is_empty_folder(path: Path) -> bool:
    """Tell whether a folder is there with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


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
