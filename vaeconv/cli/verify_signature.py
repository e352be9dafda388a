"""``vaeconv verify-signature``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import Json, Quiet, Verbose


def verify_signature(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A release, or a download of it.", show_default=False),
    ],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The signer's public key, PEM.", show_default=False),
    ],
    signature: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The signature; by default DIR/model.sig.", show_default=False
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check that a folder is what its publisher signed; end with exit code 4 where it is not.

    The card is not covered: people and the Hub edit it.

    Examples:

        vaeconv verify-signature out/ --key publisher.pub
    """  # fmt: skip
    from vaeconv.cli.render import print_json
    from vaeconv.errors import one_line
    from vaeconv.publish.signing import verify_signature as run

    run(folder, key, signature)
    if json:
        print_json("verify-signature", {"folder": str(folder)})
    elif not quiet:
        sys.stdout.write(one_line(f"{folder} is what the key's owner signed") + "\n")
