"""``vaeconv card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import CardJob
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc


@declare
def card(
    folder: Annotated[Path, Doc("Folder that is published: weights, config, manifest.", "DIR")],
    options: CardJob,
    sink: Sink,
) -> None:
    """Write the model card of a release from what the other commands reported.

    Of a card that is there, the generated parts are made anew, and what people wrote stays.

    Examples:

        vaeconv card out/ --meta card.toml

        vaeconv card out/ --meta card.toml --eval coco.json --eval laion.json --parity parity.json

        vaeconv card out/ --check --eval coco.json
    """
    from vaeconv.cli.following import NOTHING, after_card
    from vaeconv.cli.render.card import card_document, card_lines, show_check
    from vaeconv.common.notes import warning
    from vaeconv.publish.card.card import (
        CardInputs,
        card_title,
        check_folder,
        make_card,
        write_card,
    )
    from vaeconv.publish.card.check import check_card
    from vaeconv.publish.card.meta import CardMeta, read_meta
    from vaeconv.publish.documents import read_document
    from vaeconv.publish.sbom import write_sbom

    options.refuse_idle(json=sink.json)
    evaluations = tuple(read_document(path, "eval") for path in options.evaluation)
    if options.check:
        show_check(folder, check_card(folder, evaluations), sink)
        return
    check_folder(folder)
    inputs = CardInputs(
        folder,
        meta=read_meta(options.meta) if options.meta else CardMeta(),
        evaluations=evaluations,
        parity=read_document(options.parity, "verify") if options.parity else None,
        pictures=options.pictures,
        template=options.template,
    )
    text = make_card(inputs)
    written, problems = [], []
    if not options.dry_run:
        written, problems = [write_card(inputs)], check_card(folder, evaluations)
        if options.sbom:
            written.append(write_sbom(folder, inputs.meta, card_title(inputs)))
    notes = [warning(f"push refuses this card: {problem}") for problem in problems]
    then = NOTHING if problems or options.dry_run else after_card(folder, inputs.meta)
    sink.show(
        "card",
        lambda: card_document(folder, text, written, problems, dry_run=options.dry_run),
        lambda: card_lines(text, written, shown=options.show, dry_run=options.dry_run),
        notes=notes,
        then=then,
    )
