"""``vaeconv card``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vaeconv.cli.declare import declare
from vaeconv.cli.sink import Sink
from vaeconv.effects import Rule, refuse_idle
from vaeconv.option_docs import Doc


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """What a card is made of; each option says what it is."""

    evaluation: Annotated[
        tuple[Path, ...],
        Doc(
            "Result of vaeconv eval, one for each set of images; repeatable.",
            "FILE",
            flags=("--eval",),
        ),
    ] = ()
    parity: Annotated[Path | None, Doc("Report of vaeconv verify.", "FILE")] = None
    pictures: Annotated[
        Path | None,
        Doc(
            "Folder of side-by-side images, as vaeconv compare writes them, inside the published "
            "folder.",
            "DIR",
        ),
    ] = None
    meta: Annotated[
        Path | None,
        Doc(
            "Facts that people know: title, repo_id, license, base_model, summary, training, …",
            "FILE.toml",
        ),
    ] = None
    template: Annotated[
        Path | None, Doc("jinja2 template to use in place of the shipped one.", "FILE")
    ] = None
    sbom: Annotated[bool, Doc("Also write a bill of materials: sbom.cdx.json, in CycloneDX.")] = (
        False
    )
    check: Annotated[
        bool,
        Doc(
            "Write nothing; end with exit code 4 if the card that is there has broken front "
            "matter, dead links, or numbers that differ from --eval."
        ),
    ] = False
    show: Annotated[bool, Doc("Print the card on the terminal.", flags=("--print",))] = False
    dry_run: Annotated[bool, Doc("Write nothing, and print the text of the card.")] = False

    def refuse_idle(self, *, json: bool) -> None:
        """Refuse options that have no effect together."""
        why = "--check reads the card that is there, and writes nothing"
        given = {
            "parity": self.parity, "pictures": self.pictures, "meta": self.meta,
            "template": self.template, "sbom": self.sbom, "print": self.show,
            "dry-run": self.dry_run,
        }  # fmt: skip
        rules = [Rule(f"--{name}", bool(one), not self.check, why) for name, one in given.items()]
        refuse_idle(
            [*rules, Rule("--print", self.show, not json, "--json has the text in its document")]
        )


@declare
def card(
    folder: Annotated[Path, Doc("Folder that is published: weights, config, manifest.", "DIR")],
    options: CardOptions,
    sink: Sink,
) -> None:
    """Write the model card of a release from what the other commands reported.

    Of a card that is there, the generated parts are made anew, and what people wrote stays.

    Examples:

        vaeconv card out/ --meta card.toml

        vaeconv card out/ --meta card.toml --eval coco.json --eval laion.json --parity parity.json

        vaeconv card out/ --check --eval coco.json
    """
    from vaeconv.publish.card import CardInputs, card_title, make_card, write_card
    from vaeconv.publish.checking import check_card
    from vaeconv.publish.documents import read_document
    from vaeconv.publish.meta import CardMeta, read_meta
    from vaeconv.publish.sbom import write_sbom

    options.refuse_idle(json=sink.json)
    evaluations = tuple(read_document(path, "eval") for path in options.evaluation)
    if options.check:
        _show_check(folder, check_card(folder, evaluations), sink)
        return
    inputs = CardInputs(
        folder,
        meta=read_meta(options.meta) if options.meta else CardMeta(),
        evaluations=evaluations,
        parity=read_document(options.parity, "verify") if options.parity else None,
        pictures=options.pictures,
        template=options.template,
    )
    text = make_card(inputs)
    written = [] if options.dry_run else [write_card(inputs)]
    problems = [] if options.dry_run else check_card(folder, evaluations)
    if options.sbom and not options.dry_run:
        written.append(write_sbom(folder, inputs.meta, card_title(inputs)))
    facts: dict[str, Any] = {
        "path": str(folder / "README.md"),
        "written": [str(path) for path in written],
        "dry_run": options.dry_run,
        "text": text,
        "problems": problems,
    }

    def tell() -> list[str]:
        if options.show:
            from rich.console import Console
            from rich.markdown import Markdown

            Console().print(Markdown(text.split("\n---\n", 1)[-1]))
        elif options.dry_run:
            sys.stdout.write(text)
        return [] if options.show else [f"wrote {path}" for path in written]

    notes = [f"warning: {problem}, so push refuses this card" for problem in problems]
    sink.show("card", lambda: facts, tell, notes=notes)


def _show_check(folder: Path, problems: Sequence[str], sink: Sink) -> None:
    from vaeconv.errors import CheckFailedError, counted

    failure, lines = None, [f"{folder / 'README.md'} is in order"]
    if problems:
        what, details = counted("not in order", problems)
        failure = CheckFailedError(
            what,
            where=str(folder / "README.md"),
            hint="mend it, or write it anew with vaeconv card --meta FILE.toml",
            details=() if sink.is_shown else details,  # else the lines list them
        )
        lines = [f"  {problem}" for problem in problems]
    sink.show("card", lambda: {"problems": problems}, lambda: lines, failure=failure)
