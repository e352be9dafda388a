"""The command line; here is only how it begins and ends, so that it can be stopped from the start.

The commands are in modules of their names, and what brings them together in ``group``.
"""

from __future__ import annotations

import gc
import os

try:
    from vaeconv.cli.stopping import stop_on_signals
except KeyboardInterrupt:
    os.write(2, b"error: interrupted; nothing is left half-written\n")
    os._exit(130)

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from vaeconv.cli.group import app as app


def __getattr__(name: str) -> object:
    if name == "app":
        from vaeconv.cli.group import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line."""
    stop_on_signals()
    import warnings

    from vaeconv.common.notes import VaeconvWarning

    warnings.simplefilter("ignore", VaeconvWarning)  # notes are printed
    # One short run makes no garbage worth collecting, and the system frees memory faster than
    # the interpreter does on its way out: together a fifth of the start-up time. Commands that run
    # for long switch it on again.
    gc.disable()
    from vaeconv.cli.streams import finish_streams, prepare_streams

    prepare_streams()
    from vaeconv.cli.group import app

    code = 1
    try:
        app(prog_name="vaeconv")
    except SystemExit as exit_request:
        code = exit_request.code if isinstance(exit_request.code, int) else 1
    code = finish_streams(code)
    os._exit(code)
