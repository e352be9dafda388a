"""``vaeconv card``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import Json, Quiet, Verbose


def card(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="The folder that is published: weights, config, manifest.",
            show_default=False,
        ),
    ],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            show_default=False,
            help="A result of vaeconv eval, one for each set of pictures; repeatable.",
        ),
    ] = None,
    parity: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="A report of vaeconv verify."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Side-by-side pictures, as vaeconv compare writes them, inside DIR.",
        ),
    ] = None,
    meta: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            show_default=False,
            help="What people know: title, repo_id, license, base_model, summary, training, …",
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False, help="A jinja2 template instead of the shipped one."
        ),
    ] = None,
    sbom: Annotated[
        bool,
        typer.Option("--sbom", help="Write a bill of materials as well: sbom.cdx.json, CycloneDX."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Write nothing; end with exit code 4 where the card that is there has broken "
            "front matter, dead links, or numbers that differ from --eval.",
        ),
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the card on the terminal.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing, and print the card's text.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the model card of a release from what the other commands reported.

    Of a card that is there, the generated parts are made anew, and what people wrote stays.

    Examples:

        vaeconv card out/ --meta card.toml

        vaeconv card out/ --meta card.toml --eval coco.json --eval laion.json --parity parity.json

        vaeconv card out/ --check --eval coco.json
    """  # fmt: skip
    from vaeconv.cli.render import print_json, print_notes
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.errors import CheckFailedError, counted, one_line
    from vaeconv.publish.card import CardInputs, card_title, make_card, write_card
    from vaeconv.publish.checking import check_card
    from vaeconv.publish.documents import read_document
    from vaeconv.publish.meta import CardMeta, read_meta
    from vaeconv.publish.sbom import write_sbom

    why = "--check reads the card that is there, and writes nothing"
    refuse_idle(
        [
            *[Rule(f"--{name}", bool(given), not check, why)
              for name, given in (("parity", parity), ("pictures", pictures), ("meta", meta),
                                  ("template", template), ("sbom", sbom), ("print", show),
                                  ("dry-run", dry_run))],
            Rule("--print", show, not json, "--json has the text in its document"),
        ]
    )  # fmt: skip
    evaluations = tuple(read_document(path, "eval") for path in evaluation or ())
    if check:
        problems = check_card(folder, evaluations)
        failure = None
        if problems:
            what, details = counted("not in order", problems)
            failure = CheckFailedError(
                what,
                where=str(folder / "README.md"),
                hint="mend it, or write it anew with vaeconv card --meta FILE.toml",
                details=details,
            )
        if json:
            print_json("card", {"problems": problems}, failure)
        elif not quiet:
            sys.stdout.writelines(one_line(f"  {problem}") + "\n" for problem in problems)
            if failure:
                failure.details = ()  # they are listed
            else:
                sys.stdout.write(f"{one_line(str(folder / 'README.md'))} is in order\n")
        if failure:
            failure.is_reported = json
            raise failure
        return
    inputs = CardInputs(
        folder,
        meta=read_meta(meta) if meta else CardMeta(),
        evaluations=evaluations,
        parity=read_document(parity, "verify") if parity else None,
        pictures=pictures,
        template=template,
    )
    text = make_card(inputs)
    written = [] if dry_run else [write_card(inputs)]
    problems = [] if dry_run else check_card(folder, evaluations)
    if sbom and not dry_run:
        written.append(write_sbom(folder, inputs.meta, card_title(inputs)))
    if json:
        facts = {"path": str(folder / "README.md"), "written": [str(path) for path in written]}
        print_json("card", {**facts, "dry_run": dry_run, "text": text,
                            "problems": problems})  # fmt: skip
        return
    if not quiet:
        print_notes(f"warning: {problem}, so push refuses this card" for problem in problems)
    if show:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text.split("\n---\n", 1)[-1]))
    elif dry_run:
        sys.stdout.write(text)
    elif not quiet:
        sys.stdout.writelines(one_line(f"wrote {path}") + "\n" for path in written)
