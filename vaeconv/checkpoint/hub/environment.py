"""Checks of the environment variables that the Hub's client reads, before it is used.

The client reads these variables when it is imported or sends its first request, and fails in its
own ways where they are wrong.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from vaeconv.errors import UsageError

_PROXIES = ("http", "https", "socks4", "socks5", "socks5h")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def check_environment() -> None:
    """Check the variables that the client reads: numbers, addresses, certificates, the token.

    Raises:
        UsageError: One cannot be what it says.
    """
    try:
        from huggingface_hub import constants, get_token
    except ValueError as error:
        raise UsageError(
            f"an environment variable of the Hub's client is wrong ({error})",
            hint="look at those that begin with HF_",
        ) from error
    _check_address("HF_ENDPOINT", constants.ENDPOINT, ("http", "https"))
    for name, address in getproxies().items():
        if name in ("http", "https", "all"):
            whole = address if "://" in address else f"http://{address}"
            _check_address(f"{name.upper()}_PROXY", whole, _PROXIES)
    for name in _CERTIFICATES:
        place = os.environ.get(name)
        if place and not Path(place).exists():
            raise UsageError(f"{name} names {place}, which does not exist", hint="unset it")
    if not (get_token() or "").isascii():
        raise UsageError("the Hub token contains characters that no token has",
                         hint="set HF_TOKEN again, or log in again")  # fmt: skip


def _check_address(name: str, address: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise UsageError(f"{name} is {address!r}, which is not a URL")
