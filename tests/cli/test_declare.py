"""Options of dataclasses become options of commands, and their values the dataclasses again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from vaeconv.cli import jobs
from vaeconv.cli.declare import declare, documented
from vaeconv.cli.group import COMMANDS, app
from vaeconv.common.option_checks import check_fields
from vaeconv.common.option_docs import Doc, byte_size, key_texts, with_dot
from vaeconv.errors import UsageError
from vaeconv.publish.release.steps import STEPS


class Part(str, Enum):
    UNET = "unet"
    VAE = "vae"


class Inner(NamedTuple):
    check: Annotated[bool, Doc("Check.")] = True
    on_progress: Callable[[int], None] | None = None


CHECKED, UNCHECKED = Inner(), Inner(check=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    size: Annotated[int | None, Doc("Size.", "SIZE", parse=byte_size)] = None
    prefix: Annotated[str | None, Doc("Prefix.", "PREFIX", parse=with_dot)] = None
    drop: Annotated[tuple[str, ...], Doc("Patterns.", "GLOB")] = ()
    keep: Annotated[frozenset[Part], Doc("Parts.")] = frozenset()
    metadata: Annotated[Mapping[str, str], Doc("Entries.", "K=V", parse=key_texts)] = field(
        default_factory=dict
    )
    keep_metadata: Annotated[bool, Doc("Drop them.", flags=(" /--no-metadata",))] = True
    place: Annotated[str | Path | None, Doc("Place.", "PATH")] = None
    pair: Annotated[tuple[str, Path] | None, Doc("Two.", "NAME PATH")] = None
    kind: Annotated[str, Doc("Kind: a or b.", "KIND", choices=("a", "b"))] = "a"
    inner: Inner = CHECKED
    hidden: Annotated[Inner, "no options of a command"] = UNCHECKED

    def __post_init__(self) -> None:
        check_fields(self)


def called(*args: str) -> dict[str, Any]:
    """Run a command that has these options, and give what its function was called with."""
    seen: dict[str, Any] = {}

    @declare
    def command(
        source: Annotated[str, Doc("Source.", "IN")],
        more: Annotated[str | None, Doc("More.", "[MORE]", is_argument=True)] = None,
        *,
        options: Options,
        limit: Annotated[int | None, Doc("Limit.", "N", least=1)] = None,
    ) -> None:
        seen.update(source=source, more=more, options=options, limit=limit)

    single = typer.Typer()
    single.command()(command)
    result = CliRunner().invoke(single, list(args), standalone_mode=False)
    if result.exception:
        raise result.exception
    return seen


def test_nothing_given_is_the_defaults() -> None:
    assert called("x") == {"source": "x", "more": None, "options": Options(), "limit": None}


def test_what_is_given_arrives() -> None:
    seen = called(
        "x", "y", "--size", "2KiB", "--prefix", "vae", "--drop", "a", "--drop", "b", "--keep",
        "vae", "--metadata", "k=v=w", "--no-metadata", "--place", "p", "--pair", "n", "q",
        "--kind", "b", "--no-check", "--limit", "3",
    )  # fmt: skip
    assert (seen["more"], seen["limit"]) == ("y", 3)
    assert seen["options"] == Options(
        size=2048, prefix="vae.", drop=("a", "b"), keep=frozenset({Part.VAE}),
        metadata={"k": "v=w"}, keep_metadata=False, place="p", pair=("n", Path("q")), kind="b",
        inner=Inner(check=False),
    )  # fmt: skip


@pytest.mark.parametrize("args", [("--kind", "c"), ("--size", "two"), ("--metadata", "k")])
def test_what_is_not_allowed_is_wrong_usage(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        called("x", *args)


def test_every_option_stands_alone() -> None:
    """Each help is a sentence, says more than the option's name, and begins with no pronoun."""
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        for parameter in group.get_command(None, name).params:
            said = parameter.help
            assert (said and said[0] != said[0].lower()) or said[0] in ".T", (name, parameter.name)
            assert said.rstrip().endswith((".", "…", ")")), (name, parameter.name, said)
            first = said.split()[0].rstrip(".")  # a pronoun or preposition needs the name
            assert first not in ("It", "Its", "Their", "Of", "For", "What", "Whether"), said


def test_an_option_is_declared_once() -> None:
    names = [one.name for one in documented(Options)]
    assert len(names) == len(set(names)) and "hidden" not in names and "check" in names


def test_the_help_of_all_says_what_the_help_of_each_begins_with() -> None:
    group: Any = typer.main.get_command(app)
    for name, said in COMMANDS.items():
        first = group.get_command(None, name).help.split("\n\n")[0]
        assert " ".join(first.split()) == said


def test_what_is_wrong_names_the_option() -> None:
    result = CliRunner().invoke(
        app, ["convert", "--dtype", "half", "--scaling-factor", "-1", "a.ckpt", "b"]
    )
    assert result.exit_code == 2
    assert "--dtype 'half' is not known" in result.stderr
    assert "--scaling-factor is -1.0; it must be above 0" in result.stderr


def test_what_is_completed_is_what_is_allowed() -> None:
    assert jobs._STEPS == tuple(STEPS)
    command: Any = typer.main.get_command(app)
    for name in COMMANDS:
        for option in command.get_command(None, name).params:
            assert option.param_type_name == "argument" or option.help, option.name
