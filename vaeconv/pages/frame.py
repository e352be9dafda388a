"""The frame of every page: its style, its policy, and names of strangers that stay text."""

from __future__ import annotations

import base64
from typing import Any

from vaeconv.errors import one_line


class DataUri(str):
    """An image as an address: made here, long, and nothing in it to escape."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def png_address(data: bytes) -> DataUri:
    """Make the address of a PNG that a page holds."""
    return DataUri("data:image/png;base64," + base64.b64encode(data).decode())


def render(package: str, template: str, **values: Any) -> str:
    """Write a page; whatever names hold, they stay text.

    Args:
        package: The package whose folder of templates has it.
        template: Its name; it extends ``frame.html.j2``.
        values: What it shows.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("vaeconv.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _printable(value: Any) -> Any:
    """Keep control characters and lone surrogates of names out of the page."""
    is_markup = hasattr(value, "__html__")
    return one_line(value) if isinstance(value, str) and not is_markup else value
