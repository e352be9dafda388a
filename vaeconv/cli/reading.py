"""How the models of a command are read, where it takes several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from vaeconv.option_docs import AllowZeros, Download, Salvage, SourcePrefix
from vaeconv.parity.side import SideOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Options that hold for every model; each says what it does."""

    source_prefix: SourcePrefix = None
    allow_zeros: AllowZeros = False
    salvage: Salvage = False
    download: Download = False

    def options(self, on_fetch: Callable[[int], None] | None = None) -> SideOptions:
        """Make the library's options of it."""
        return SideOptions(**asdict(self), on_fetch=on_fetch)
