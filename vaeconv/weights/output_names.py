"""Names of outputs: what a name stands for, and which names are mistakes.

A name is a promise of what is written. One that ends in something else than what can be written
is taken for a slip, as in ``x.safetensor`` or ``x.gguf``, and not for the name of a folder; a
trailing slash says that a folder is meant. Numbers and versions are parts of a name:
``sd-vae-1.5`` and ``out.v2`` end in nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from vaeconv.checkpoint.tree import is_folder
from vaeconv.common.option_checks import path_text
from vaeconv.errors import CheckpointNotFoundError, UsageError


class OutputKind(str, Enum):
    """Kind of output that a name stands for."""

    FOLDER = "diffusers folder"
    SAFETENSORS = "CompVis safetensors"
    TORCH_ZIP = "CompVis checkpoint"


KINDS = {
    ".safetensors": OutputKind.SAFETENSORS,
    ".sft": OutputKind.SAFETENSORS,
    ".ckpt": OutputKind.TORCH_ZIP,
    ".pt": OutputKind.TORCH_ZIP,
    ".pth": OutputKind.TORCH_ZIP,
    ".bin": OutputKind.TORCH_ZIP,
}
_INPUTS = (*KINDS, ".zip")  # what a checkpoint's own name can end in
_VERSION = re.compile(r"\.(?:[vV]?\d.*)?")  # .5, .v2, .0-beta
_LONGEST = 255  # bytes of a name, on the file systems that people have
_ARCHIVES = (".7z",)  # endings that begin with a digit all the same


def ending_of(name: str) -> str:
    """Tell what a name ends in, in lower case; empty where it is a version or nothing at all."""
    ending = Path(name).suffix.lower()
    return "" if _VERSION.fullmatch(ending) and ending not in _ARCHIVES else ending


def is_address(text: str) -> bool:
    """Tell if a name is an address and not a path."""
    return "://" in text


def no_path(text: str) -> str | None:
    """Tell why no file can have a path, in words that follow its name; None where one can."""
    if "\0" in text:
        return "holds a NUL character"
    parts = re.split(r"[\\/]", text)
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST for part in parts):
        return f"has a name of more than {_LONGEST} bytes"
    return None


def is_file(path: Path) -> bool:
    """Tell if a file exists; a name that is too long for one does not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def output_kind(output: str | os.PathLike[str]) -> tuple[OutputKind, Path]:
    """Tell the kind of an output by its name; a trailing slash always means a folder.

    Raises:
        UsageError: The name is empty, an address, or ends in what cannot be written.
    """
    text = path_text("output", output)
    path = Path(text)
    _check_name(text, path)
    if text.endswith(("/", os.sep)):
        return OutputKind.FOLDER, path
    ending = ending_of(path.name)
    if not ending or (ending not in KINDS and is_folder(path)):
        return OutputKind.FOLDER, path
    _check_ending(text, ending, KINDS, f"; for a folder of this name write {text}/")
    return KINDS[ending], path


def is_utf8(name: str) -> bool:
    """Tell if a name is text; Python has half a surrogate pair for each byte that is none."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def check_ending(path: str | os.PathLike[str], endings: Sequence[str], what: str) -> None:
    """Refuse a name that ends in something else than what is written there.

    Args:
        path: The output.
        endings: What it may end in, beside nothing; none at all for a folder.
        what: What is written there, for the message.

    Raises:
        UsageError: It ends in something else.
    """
    text = path_text(what, path)
    _check_name(text, Path(text))
    ending = ending_of(Path(text).name)
    if not endings and (text.endswith(("/", os.sep)) or is_folder(Path(text))):
        return
    if ending and ending not in endings:
        if not endings:
            raise UsageError(
                f"{what} is a folder, and {ending} ends the name of a file",
                where=text,
                hint=f"for a folder of this name write {text}/",
            )
        _check_ending(text, ending, endings, f", as it is {what}")


def _check_name(text: str, path: Path) -> None:
    if not text:
        raise UsageError("the output has no name")
    if is_address(text):
        raise UsageError(
            "an output is a local path, and this is an address",
            where=text,
            hint="IN comes before OUT; vaeconv push publishes a folder",
        )
    if path.name.lower() in KINDS:  # as "$UNSET.ckpt"
        raise UsageError("the output has no name, only an ending", where=text)


def _check_ending(text: str, ending: str, endings: Iterable[str], more: str) -> None:
    if ending in endings:
        return
    from difflib import get_close_matches

    meant = get_close_matches(ending.strip(), endings, 1)
    hint = (
        f"did you mean {text[: len(text) - len(ending)]}{meant[0]}?"
        if meant
        else f"write {' or '.join(endings)}"
    )
    own = text[len(text) - len(ending) :]
    raise UsageError(f"{own} is not an ending that vaeconv writes", where=text, hint=hint + more)


def batch_targets(sources: Sequence[str], folder: Path) -> list[tuple[str, str]]:
    """Name the output of each of several inputs: its own name, in a folder.

    Returns:
        Each input with its output: a folder for a folder, else a safetensors file.

    Raises:
        UsageError: Two would get one name, or one has no name.
    """
    taken: dict[str, str] = {}
    for source in sources:
        target = str(folder / _target_name(source))
        if source.endswith("/") or (not is_address(source) and is_folder(Path(source))):
            target = target.removesuffix(".safetensors") + "/"
        if target in taken:
            raise UsageError(
                f"{taken[target]} and {source} would both become {target}",
                hint="prune them one by one, each to a name of its own",
            )
        taken[target] = source
    return [(source, target) for target, source in taken.items()]


def _target_name(source: str) -> str:
    from vaeconv.checkpoint.hub.address import parse_location

    location = parse_location(source) if is_address(source) else None
    if location:
        name = (location.path or location.repo_id).rpartition("/")[2]
    else:
        path = Path(source)
        name = path.name if path.name not in ("", "..") else path.resolve().name
    if not name:
        raise UsageError("has no name to call its output by", where=source)
    ending = ending_of(name)
    stem = name[: len(name) - len(ending)] if ending in _INPUTS else name
    return f"{stem}.safetensors"


def check_order(sources: Iterable[str | os.PathLike[str]], target: Path) -> None:
    """Look at inputs before the output: where one isn't there and the output is, they are swapped.

    Raises:
        CheckpointNotFoundError: So it is.
    """
    for text in [os.fspath(source) for source in sources]:
        if text and not is_address(text) and not os.path.lexists(text) and os.path.lexists(target):
            raise CheckpointNotFoundError(
                "does not exist",
                where=text,
                hint=f"{target} does: IN comes before OUT, are they swapped?",
            )
