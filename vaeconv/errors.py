"""Every error that vaeconv raises on purpose, and the exit code that it means.

The tree::

    VaeconvError                      1  (never raised itself)
    ├── UsageError                    2  options that do not fit together or the input
    ├── InputError                    3  bad or unsafe input
    │   ├── CheckpointNotFoundError      nothing is there, or it is not a file or folder
    │   ├── MalformedCheckpointError     the bytes contradict themselves
    │   ├── UnsafeCheckpointError        the pickle names what does harm elsewhere
    │   ├── NotACheckpointError          readable, but something else (LFS pointer, HTML, …)
    │   ├── UnsupportedModelError        a model that AutoencoderKL cannot express
    │   ├── UnmappedKeysError            missing, unexpected or wrongly shaped tensors
    │   ├── AmbiguousInputError          several answers; an option decides
    │   ├── EmaError                     EMA asked for, none there
    │   ├── ConfigMismatchError          a config that contradicts the tensors
    │   ├── NonFiniteError               NaN or infinity in the weights
    │   ├── ZeroWeightsError             zeros where no training leaves them
    │   └── DTypeOverflowError           a value does not fit the target dtype
    ├── CheckFailedError              4  a gate (parity, threshold) said no
    ├── OutputError                   5  the output cannot be written
    │   └── OutputExistsError            it is there already
    ├── HubError                      6  Hub or network
    └── MissingDependencyError        7  package, device or weights file missing

Each carries its facts as fields; the one line that a user sees is composed here once, as
``where: what; hint``: ``text`` on the command line, ``str`` in Python.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

# Controls, marks that reorder text, characters that nobody sees, halves of pairs.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)
_LINE_LIMIT = 600
_OPTION = re.compile(
    r"vaeconv [a-z][^;,]*"  # a command to run is left as it is
    r"|(?<![\w-])--(?P<no>no-)?(?P<name>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)"
)


def printable(text: str, keep: str = "") -> str:
    r"""Write out control characters, which could change what a terminal or a page shows.

    Args:
        text: From anywhere.
        keep: Controls that stay, such as line ends.

    Example:
        >>> print(printable("a\x1b[31m", keep="\n"))
        a\x1b[31m
    """
    return _CONTROL.sub(lambda one: one[0] if one[0] in keep else repr(one[0])[1:-1], text)


def one_line(text: str) -> str:
    """Make text from a file safe to print: one line, no control characters, bounded."""
    text = printable(text)
    return text if len(text) <= _LINE_LIMIT else text[: _LINE_LIMIT - 1] + "…"


def name_parameters(text: str) -> str:
    """Name parameters of Python in place of options of the command line.

    Example:
        >>> name_parameters("pass --scaling-factor, or --no-check")
        'pass scaling_factor, or check=False'
    """

    def rename(match: re.Match[str]) -> str:
        name = match["name"]
        return name.replace("-", "_") + ("=False" if match["no"] else "") if name else match[0]

    return _OPTION.sub(rename, text)


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Join names for a message: the first ``limit``, then how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def counted(what: str, problems: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Say what is wrong in one line: the problem itself, or how many there are.

    Args:
        what: What the problems are problems of.
        problems: All of them, at least one.

    Returns:
        The line, and the details that go with it: every problem where there are several.
    """
    if len(problems) == 1:
        return f"{what}: {problems[0]}", ()
    return f"{what}: {len(problems)} problems", problems


class VaeconvError(Exception):
    """Base of all errors that a user can cause.

    Args:
        what: Description of the error, as a clause without a full stop.
        where: File, entry or tensor that it was found in.
        hint: Advice on the error.
        details: All that is wrong, where that is more than a line says; each is a line of its own.

    Example:
        >>> try:
        ...     convert("nowhere.ckpt", "out")
        ... except VaeconvError as error:
        ...     print(error, error.exit_code)
        nowhere.ckpt: No such file or directory 3
    """

    exit_code = 1
    # Whether a command has already put this error into the document that it printed.
    is_reported = False

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint
        self.details = tuple(details)

    @property
    def text(self) -> str:
        """The line that a command prints; it names options as the command line does."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return one_line(f"{head}; {self.hint}" if self.hint else head)

    def __str__(self) -> str:
        lines = [self.text, *(f"  - {one_line(detail)}" for detail in self.details)]
        return name_parameters("\n".join(lines))


class UsageError(VaeconvError):
    """Options that do not fit together, or do not fit the input."""

    exit_code = 2


class InputError(VaeconvError):
    """The input is bad or unsafe."""

    exit_code = 3


class CheckpointNotFoundError(InputError):
    """There is nothing at the given place, or nothing that can be read as a file or folder."""


class MalformedCheckpointError(InputError):
    """The file's own numbers contradict each other, or its bytes fail their checksum."""


class UnsafeCheckpointError(InputError):
    """The pickle names functions or classes that do harm in an ordinary unpickler.

    Args:
        reasons: What each of the refused globals does, by dotted name, in order of appearance.
        where: The file and the pickle in it.
    """

    def __init__(self, reasons: Mapping[str, str], *, where: str | None = None) -> None:
        self.names = tuple(reasons)
        self.reasons = dict(reasons)
        said = [f"{name} ({why})" for name, why in reasons.items()]
        super().__init__(
            f"unsafe pickle: it refers to {listed(said, 5)}",
            where=where,
            hint="nothing was executed; if you trust the weights, --salvage reads them "
            "with inert placeholders in place of these",
        )


class NotACheckpointError(InputError):
    """The file is readable, but it is not a checkpoint; ``what`` says what it is."""


class UnsupportedModelError(InputError):
    """A model that is recognised but cannot be expressed as a diffusers ``AutoencoderKL``."""


class UnmappedKeysError(InputError):
    """The autoencoder's keys are not exactly those that its architecture needs.

    Args:
        missing: Names that should be there.
        unexpected: Names that should not.
        misshaped: ``name (found, expected)`` texts of tensors with a wrong shape.
        where: The file.
    """

    def __init__(
        self,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshaped: Sequence[str] = (),
        where: str | None = None,
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshaped = tuple(misshaped)
        parts = [
            f"{len(names)} {label}: {listed(names)}"
            for label, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("wrongly shaped", self.misshaped),
            )
            if names
        ]
        super().__init__(
            "the autoencoder's keys do not match (" + "; ".join(parts) + ")",
            where=where,
            hint=f"see all keys with: vaeconv inspect --keys {shlex.quote(where or 'FILE')}",
        )


class AmbiguousInputError(InputError):
    """The input allows several answers; the hint names the option that decides."""


class EmaError(InputError):
    """EMA weights were asked for and there are none that can be used."""


class ConfigMismatchError(InputError):
    """A config that came with the weights, or was given, contradicts the tensors."""


class NonFiniteError(InputError):
    """A tensor holds NaN or infinity."""


class ZeroWeightsError(InputError):
    """Weights are zero that no training leaves at zero, as after an unfinished download."""

    def __init__(self, what: str, *, where: str | None = None) -> None:
        hint = "download or copy it again, or pass --allow-zeros if they are intended"
        super().__init__(what, where=where, hint=hint)


class DTypeOverflowError(InputError):
    """A finite value is too large for the target dtype.

    Args:
        name: The tensor.
        value: Its largest magnitude.
        dtype: The target dtype.
    """

    def __init__(self, name: str, value: float, dtype: str, *, where: str | None = None) -> None:
        self.name = name
        self.value = value
        self.dtype = dtype
        super().__init__(
            f"tensor {name} does not fit {dtype}: its largest magnitude is {value:g}",
            where=where,
            hint="choose a wider --dtype, or pass --clamp to write the largest value that fits",
        )


class CheckFailedError(VaeconvError):
    """A gate, such as parity or a threshold, said no."""

    exit_code = 4


class OutputError(VaeconvError):
    """The output cannot be written."""

    exit_code = 5


class OutputExistsError(OutputError):
    """The output is there already and ``--overwrite`` was not given."""


class HubError(VaeconvError):
    """The Hub or the network failed."""

    exit_code = 6


class MissingDependencyError(VaeconvError):
    """An optional package, a device or a weights file is missing."""

    exit_code = 7


def raise_all(problems: Sequence[VaeconvError], *, where: str | None = None) -> None:
    """Raise what was found wrong: the error itself, or one that lists them all.

    Several errors have the class, and so the exit code, of the one whose code is the smallest: what
    must be mended first.

    Args:
        problems: The errors; none is no error.
        where: What they were found in.
    """
    if not problems:
        return
    known = list({one.text: one for one in problems}.values())
    if len(known) == 1:
        raise known[0]
    worst = min(known, key=lambda one: one.exit_code)
    kind = next(one for one in type(worst).__mro__ if one.__base__ is VaeconvError)
    details = [detail for one in known for detail in one.details or (one.text,)]
    raise kind(f"{len(details)} problems", where=where, details=details) from worst
