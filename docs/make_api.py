"""Write docs/api.md, the reference of what ``import vaeconv`` has, from its docstrings.

``make reference`` runs it, and a test tells where it was forgotten.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vaeconv

TARGET = Path(__file__).with_name("api.md")
_HEAD = """# From Python

The names that `import vaeconv` has; none is imported before it is used. An option of the command
line is a field of an options class, mostly of the same name without `--`; those that belong
together are a class of their own: `--atol` is in `limits=Limits(atol=…)`, `--size` in
`protocol=Protocol(size=…)`, `--scaling-factor` in `scaling=ScalingOptions(…)`, `--allow-zeros` in
`copy=CopyOptions(…)`. [The commands](cli.md) describe what each does. Sizes are numbers of bytes.
Errors are `VaeconvError`s with the exit code of the command line; warnings reach Python's
`warnings` as `VaeconvWarning`. `make reference` writes this page.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example):$", re.MULTILINE)


def make_api() -> str:
    """Write the page: functions first, then classes."""
    public = {name: getattr(vaeconv, name) for name in vaeconv.__all__ if name != "__version__"}
    functions = {name: one for name, one in public.items() if inspect.isfunction(one)}
    parts = [_HEAD]
    for name, one in {**functions, **public}.items():
        parts += [f"## {name}\n", *_page(name, one)]
    return "\n".join(parts).rstrip() + "\n"


def _page(name: str, one: Any) -> Iterator[str]:
    if inspect.isfunction(one):
        yield f"```python\n{name}{_signature(one)}\n```\n"
    text, *sections = _SECTION.split(inspect.getdoc(one) or "")
    yield f"{_marked(text.strip())}\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        body = inspect.cleandoc(body)
        if title == "Example":
            yield f"```pycon\n{body}\n```\n"
        elif title == "Returns":
            yield f"**Returns** {_marked(body)}\n"
        else:
            yield f"| {title} | |\n| --- | --- |"
            yield from (f"| `{entry}` | {said} |" for entry, said in _entries(body))
            yield ""
    if fields := _fields(one):
        yield f"**Fields** {', '.join(f'`{field}`' for field in fields)}\n"


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [
        f"    {one.replace(annotation=inspect.Parameter.empty)}"
        for one in signature.parameters.values()
    ]
    keyword = [one.kind is one.KEYWORD_ONLY for one in signature.parameters.values()]
    if True in keyword:
        parameters.insert(keyword.index(True), "    *")
    return "(\n" + ",\n".join(parameters) + ",\n)"


def _fields(one: Any) -> list[str]:
    """Name the fields of a class of options."""
    is_options = isinstance(one, type) and one.__name__.endswith("Options")
    return list(getattr(one, "__dataclass_fields__", None) or one._fields) if is_options else []


def _entries(body: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"\n(?=\S)", body):
        name, _, said = part.partition(":")
        yield name, _marked(" ".join(said.split())).replace("|", "\\|")


def _marked(text: str) -> str:
    """Turn the markup of docstrings into Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


if __name__ == "__main__":
    TARGET.write_text(make_api(), encoding="utf-8")
