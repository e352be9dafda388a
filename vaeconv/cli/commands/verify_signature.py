"""``vaeconv verify-signature``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc


@declare
def verify_signature(
    folder: Annotated[Path, Doc("Folder to check: a release, or a download of it.", "DIR")],
    key: Annotated[Path, Doc("The signer's public key, in PEM.", "FILE", flags=("--key",))],
    *,
    signature: Annotated[
        Path | None, Doc("Signature to check against; by default DIR/model.sig.", "FILE")
    ] = None,
    sink: Sink,
) -> None:
    """Check that a folder is what its publisher signed; end with exit code 4 where it is not.

    The card is not covered: people and the Hub edit it.

    Examples:

        vaeconv verify-signature out/ --key publisher.pub
    """
    from vaeconv.publish.signing import verify_signature as run

    run(folder, key, signature)
    sink.show(
        "verify-signature",
        lambda: {"folder": str(folder)},
        lambda: [f"{folder} is what the key's owner signed"],
    )
