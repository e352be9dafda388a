"""The files of a release, and whether they may be published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.folder import CONFIG, STEM
from vaeconv.errors import CheckFailedError, InputError, OutputError, VaeconvError, counted
from vaeconv.publish.card.card import CARD
from vaeconv.publish.card.check import check_card
from vaeconv.publish.documents import parity_reports, read_manifest, read_parity
from vaeconv.publish.hub.push_options import PushOptions
from vaeconv.publish.hub.stale import twofold_problems
from vaeconv.publish.places import leak_problems, places_of
from vaeconv.publish.selection import Selection, is_never_published, select_files
from vaeconv.publish.signing import SIGNATURE, read_signed
from vaeconv.weights.detect import detect
from vaeconv.weights.idle_options import Rule, refuse_idle
from vaeconv.weights.output_names import KINDS, is_utf8
from vaeconv.weights.zeros import check_zeros

_PIECE = 1 << 20
_MB = 1_000_000
_WEIGHTS = tuple(KINDS)


class ReleaseFile(NamedTuple):
    """A file to publish.

    Attributes:
        path: Its path in the repository.
        local: The file.
        size: Size in bytes.
        sha256: Of its content: what the Hub knows a large file by.
        blob: Of its content as git has it (SHA-1): what the Hub knows a small file by.
    """

    path: str
    local: Path
    size: int
    sha256: str
    blob: str

    @property
    def is_weights(self) -> bool:
        """True if the file holds weights."""
        return self.path.endswith(_WEIGHTS)


def checked_files(
    folder: Path, options: PushOptions, *, remote: Collection[str] = ()
) -> list[ReleaseFile]:
    """List what is to be published, after checking that it may be.

    Args:
        folder: The release.
        options: What of it, and with which proof.
        remote: Paths that are published already, which its card may lead to as well.

    Raises:
        CheckFailedError: It may not.
        OutputError: There is nothing to publish.
        UsageError: A pattern matches nothing.
    """
    report = options.on_progress or (lambda step, done, total: None)
    # A signature that is there may be of what was here before; a new one is made, or found.
    exclude = (*options.exclude, *([SIGNATURE] if options.sign else []))
    selection = select_files(
        folder,
        include=options.include,
        exclude=exclude,
        follow_symlinks=options.follow_symlinks,
    )
    refuse_idle(
        Rule(f"--{option} {pattern}", pattern in selection.unused, False, "no file matches")
        for option, patterns in (("include", options.include), ("exclude", options.exclude))
        for pattern in patterns
    )
    files = hash_files(
        folder,
        selection,
        lambda done, total: report("hashing, MB", done // _MB, max(1, total // _MB)),
    )
    problems = [
        *selection.problems,
        *check_release(
            folder,
            files,
            reports=options.reports or parity_reports(folder),
            needs_parity=options.parity,
            allow_zeros=options.allow_zeros,
            remote=remote,
        ),
    ]
    if problems:
        what, details = counted("cannot be published as it is", problems)
        raise CheckFailedError(what, where=str(folder), details=details)
    return files


def hash_files(
    folder: Path, selection: Selection, on_progress: Callable[[int, int], None]
) -> list[ReleaseFile]:
    """Hash the files that were selected.

    Args:
        folder: The release.
        selection: What of it.
        on_progress: Called with the bytes that are hashed, and those that are to be.

    Raises:
        OutputError: There are none, or one cannot be read.
    """
    if not (selection.files or selection.problems):
        raise OutputError("there is nothing to publish", where=str(folder))
    total = sum(local.stat().st_size for local, _ in selection.files)
    found: list[ReleaseFile] = []

    def advance(done: int) -> None:
        on_progress(sum(file.size for file in found) + done, total)

    for local, path in selection.files:
        found.append(hash_file(local, path, advance))
    return found


def hash_file(local: Path, path: str, on_bytes: Callable[[int], None] | None = None) -> ReleaseFile:
    """Hash a file in both ways that the Hub knows files by.

    Args:
        local: The file.
        path: Its path in the repository.
        on_bytes: Called with the number of bytes so far.
    """
    size = local.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with local.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            blob.update(piece)
            if on_bytes:
                on_bytes(file.tell())
    return ReleaseFile(path, local, size, sha256.hexdigest(), blob.hexdigest())


def check_release(
    folder: Path,
    files: Sequence[ReleaseFile],
    *,
    reports: Sequence[Path],
    needs_parity: bool = True,
    remote: Collection[str] = (),
    allow_zeros: bool = False,
) -> list[str]:
    """List why a release may not be published; empty where it may.

    Args:
        folder: The release.
        files: What would be published.
        reports: Reports of ``vaeconv verify``; every file of weights must be in one that passed.
        needs_parity: Whether there must be such reports.
        remote: Paths that are published already, which the card may lead to as well.
        allow_zeros: Let weights pass that are zero where no training leaves zeros.
    """
    problems = [
        f"the name of {file.path!r} is not UTF-8" for file in files if not is_utf8(file.path)
    ]
    by_path = {file.path: file for file in files}
    problems += _weights_problems(folder, files, allow_zeros=allow_zeros)
    problems += twofold_problems(by_path)
    problems += _manifest_problems(folder, by_path)
    if CARD in by_path:
        found = check_card(folder, published={*by_path, *remote})
        problems += [f"{CARD}: {problem}" for problem in found]
    else:
        problems.append(f"there is no {CARD}: vaeconv card writes one")
    if SIGNATURE in by_path:
        problems += _signature_problems(by_path)
    places = places_of(folder)
    for file in files:
        problems += leak_problems(file.path, file.local, places)
    if needs_parity:
        problems += _parity_problems(files, reports)
    return problems


def _weights_problems(
    folder: Path, files: Sequence[ReleaseFile], *, allow_zeros: bool
) -> list[str]:
    """Open every file of weights, and the folder as diffusers would."""
    problems = []
    weights = [file for file in files if file.is_weights]
    if not weights:
        problems.append("there are no weights in it")
    for file in weights:
        try:
            with open_checkpoint(file.local) as checkpoint:
                if not file.path.startswith(STEM) or "-of-" not in file.path:
                    detect(checkpoint)
                if not allow_zeros:
                    check_zeros(list(checkpoint.tensors.values()), file.path)
        except VaeconvError as error:
            is_config = (error.where or "").endswith(CONFIG)
            problems.append(f"{CONFIG if is_config else file.path}: {error.what}")
    if any(file.path.startswith(STEM) for file in weights) and not (folder / CONFIG).is_file():
        problems.append(f"there is no {CONFIG} beside the weights")
    return problems


def _manifest_problems(folder: Path, files: Mapping[str, ReleaseFile]) -> list[str]:
    """Compare files with the hashes that were taken when they were written."""
    try:
        manifest = read_manifest(folder)
    except VaeconvError as error:
        return [error.text]
    problems = []
    manifest = manifest or {"outputs": {}}
    for name, entry in {**manifest["outputs"], **manifest.get("others", {})}.items():
        file = files.get(name)
        if is_never_published(name):
            problems.append(f"{name} is in the manifest, and a file of that name is not published")
        if file and entry.get("sha256") not in (None, file.sha256):
            problems.append(
                f"{name} is not what vaeconv wrote: its sha256 differs from the manifest's"
            )
    return problems


def _signature_problems(files: Mapping[str, ReleaseFile]) -> list[str]:
    """Tell whether a signature is about other files than these; who signed is not asked."""
    try:
        signed = read_signed(files[SIGNATURE].local)
    except InputError as error:
        return [error.text]
    changed = [
        name for name, sha256 in signed.items() if name not in files or files[name].sha256 != sha256
    ]
    return [
        f"{SIGNATURE} is about another {name}: remove it, or sign again with --sign"
        for name in changed
    ]


def _parity_problems(files: Sequence[ReleaseFile], reports: Sequence[Path]) -> list[str]:
    """Name weights that no report proves, and reports that failed."""
    if not reports:
        return ["there is no parity report: vaeconv verify --report DIR/parity.json writes one"]
    problems: list[str] = []
    proved: set[str] = set()
    for path in reports:
        try:
            report = read_parity(path)
        except VaeconvError as error:
            problems.append(f"{path.name} is not a parity report ({error})")
            continue
        if report.problems:
            problems += [f"{path.name} says: {one}" for one in report.problems]
        elif not report.has_decoded:
            problems.append(f"{path.name} compared weights only, and decoded nothing")
        else:
            proved |= report.sha256s
    problems += [
        f"{file.path} is in no parity report that passed: what was verified is another file"
        for file in files
        if file.is_weights and file.sha256 not in proved
    ]
    return problems
