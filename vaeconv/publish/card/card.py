"""Write a model card from what the steps before it reported; nothing is typed twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.checkpoint.hub.client import check_environment
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.option_checks import path_text
from vaeconv.errors import CheckpointNotFoundError, InputError, UsageError, counted
from vaeconv.evaluation.metrics import COLUMNS
from vaeconv.publish.card.front_matter import dump_front, read_card
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.card.rules import front_problems
from vaeconv.publish.card.sections import (
    PROSE,
    Section,
    evaluation_section,
    images_section,
    merge_sections,
    original_section,
    prose_sections,
    provenance_section,
    usage_section,
    without_markers,
)
from vaeconv.publish.documents import read_manifest, variants_of
from vaeconv.weights.manifest import MANIFEST
from vaeconv.weights.output_names import KINDS

CARD = "README.md"
_TASK = "image-reconstruction"


class CardInputs(NamedTuple):
    """Facts that a model card is made of.

    Attributes:
        folder: The release: weights, manifest, and the card.
        meta: Facts that people state for the card.
        evaluations: Results of ``vaeconv eval``.
        parity: The report of ``vaeconv verify``; None for none.
        pictures: Folder of side-by-side images inside the release; None for none.
        template: A jinja2 template in place of the shipped one.

    Example:
        >>> CardInputs(Path("out"), meta=CardMeta(title="My VAE", license="mit")).meta.title
        'My VAE'
    """

    folder: Path
    meta: CardMeta = CardMeta()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, Any] | None = None
    pictures: Path | None = None
    template: Path | None = None


def check_folder(folder: Path) -> None:
    """Check that a folder is one to publish, before a card is written into it.

    Raises:
        InputError: It holds neither weights nor a manifest.
    """
    if folder.is_file():
        raise InputError("is a file, and a card is for a folder", where=str(folder))
    if folder.is_dir() and not any(
        one.name == MANIFEST or one.suffix.lower() in KINDS for one in folder.iterdir()
    ):
        raise InputError(
            "holds neither weights nor a manifest",
            where=str(folder),
            hint="name the folder that vaeconv convert or prune wrote",
        )


def make_card(inputs: CardInputs) -> str:
    """Write a card: a new one, or the one that is there with its generated parts made anew.

    Front matter of an existing card keeps what people put there; generated keys are replaced.

    Raises:
        InputError: The card that is there has broken front matter, or the template does not work.
        UsageError: The facts do not fit the evaluation, or these are no inputs of a card.

    Example:
        >>> from pathlib import Path
        >>> result = convert("fixtures/tiny-kl.ckpt", "out", ConvertOptions(overwrite=True))
        >>> text = make_card(CardInputs(Path("out"), meta=CardMeta(title="My VAE", license="mit")))
        >>> "license: mit" in text, "# My VAE" in text
        (True, True)
    """
    if not isinstance(inputs, CardInputs):
        raise UsageError(f"inputs is of type {type(inputs).__name__}; it must be CardInputs")
    inputs = inputs._replace(
        folder=Path(path_text("folder", inputs.folder)),
        pictures=inputs.pictures and Path(path_text("pictures", inputs.pictures)),
        template=inputs.template and Path(path_text("template", inputs.template)),
    )
    try:
        sections = _sections(inputs)
        made = _card_data(inputs)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"a report or manifest lacks what a card says ({type(error).__name__}: {error})",
            where=str(inputs.folder),
            hint="pass reports that vaeconv eval and vaeconv verify wrote",
        ) from error
    # What is no UTF-8 in a name that is only told is shown as an escape.
    return assemble_card(inputs, made, sections).encode("utf-8", "backslashreplace").decode()


def assemble_card(inputs: CardInputs, made: dict[str, Any], sections: Sequence[Section]) -> str:
    """Put front matter and sections into a new card, or into the one that is there.

    Raises:
        InputError: The card that is there has broken front matter, or the template does not work.
    """
    present = inputs.folder / CARD
    if not present.exists():
        return _new_card(inputs, made, sections)
    card = read_card(present)
    tags = [tag for front in (made, card.front) for tag in _listed(front.get("tags"))]
    # In the file's order, and what is new at the end.
    merged = {**card.front, **made, **({"tags": list(dict.fromkeys(tags))} if tags else {})}
    problems = front_problems(merged, published=names_in(inputs.folder))
    if problems:
        what, details = counted("its front matter is not valid for the Hub", problems)
        raise InputError(what, where=str(present), hint="fix it there", details=details)
    if not inputs.meta.summary:  # a heading alone replaces no summary
        sections = [one for one in sections if one.name != "about"]
    return f"{dump_front(merged)}\n{merge_sections(card.body, sections)}"


def names_in(folder: Path) -> list[str]:
    """List the files of a folder by their paths in it."""
    return [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def write_card(inputs: CardInputs) -> Path:
    """Write the card into the release.

    Raises:
        CheckpointNotFoundError: The folder does not exist.
        OutputError: It cannot be written.
    """
    if not inputs.folder.is_dir():
        raise CheckpointNotFoundError("no such folder", where=str(inputs.folder))
    target = inputs.folder / CARD
    replace_small_file(target, make_card(inputs).encode(), durable=True)
    return target


def _new_card(inputs: CardInputs, data: Mapping[str, Any], sections: Sequence[Section]) -> str:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    shipped = resources.files("vaeconv.publish.card").joinpath("templates/card.md.j2")
    source = read_text_file(inputs.template) if inputs.template else shipped.read_text("utf-8")
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    meta = replace(
        inputs.meta,
        summary=without_markers(inputs.meta.summary),
        training=without_markers(inputs.meta.training),
        limits=without_markers(inputs.meta.limits),
    )
    marked = {section.name: section.marked for section in sections}
    try:
        text = environment.from_string(source).render(
            card_data=dump_front(data).rstrip(),
            title=card_title(inputs),
            meta=meta,
            prose={name: marked[name] for name in PROSE if name in marked},
            sections=[section.marked for section in sections if not section.is_prose],
        )
    except MemoryError:
        raise
    except Exception as error:  # a template is code, which raises what it likes
        if not inputs.template:
            raise
        said = str(error) if isinstance(error, jinja2.TemplateError) else repr(error)
        raise InputError(
            f"the template does not work ({said})", where=str(inputs.template)
        ) from error
    return text.rstrip() + "\n"


def card_title(inputs: CardInputs) -> str:
    """Return the model's title, else the name of the repository or the folder."""
    meta = inputs.meta
    return meta.title or meta.repo_id.rpartition("/")[2] or inputs.folder.resolve().name


def _sections(inputs: CardInputs) -> list[Section]:
    meta = inputs.meta
    sections = prose_sections(card_title(inputs), meta)
    if meta.repo_id:
        sections.append(usage_section(meta, variants_of(inputs.folder)))
    if meta.original_repo_id and meta.original_file:
        sections.append(original_section(meta.original_repo_id, meta.original_file))
    if inputs.evaluations:
        sections.append(evaluation_section(inputs.evaluations, meta))
    if inputs.pictures:
        sections.append(images_section(inputs.folder, inputs.pictures))
    manifest = read_manifest(inputs.folder)
    if manifest or inputs.parity:
        sections.append(provenance_section(manifest, inputs.parity, __version__))
    return sections


def _card_data(inputs: CardInputs) -> dict[str, Any]:
    check_environment()
    from huggingface_hub import ModelCardData

    meta = inputs.meta
    results = _eval_results(inputs)
    data: Any = ModelCardData(
        library_name="diffusers",
        license=meta.license or None,
        license_name=meta.license_name or None,
        license_link=meta.license_link or None,
        base_model=meta.base_model or None,
        datasets=list(meta.datasets) or None,
        tags=list(meta.tags),
        eval_results=results or None,
        model_name=card_title(inputs) if results else None,
        inference=meta.inference,
        base_model_relation=meta.base_model_relation if meta.base_model else None,
    )
    made: dict[str, Any] = data.to_dict()
    problems = front_problems(made, published=names_in(inputs.folder))
    if problems:
        what, details = counted("the card's facts are not valid for the Hub", problems)
        raise UsageError(what, hint="correct the file of facts", details=details)
    return made


def _eval_results(inputs: CardInputs) -> list[Any]:
    """Make the model-index: every metric of this model, and none of the others it is beside."""
    from huggingface_hub import EvalResult

    found: list[Any] = []
    titles = list(inputs.meta.eval_titles)
    for result in inputs.evaluations:
        pictures, protocol = result["pictures"], result["protocol"]
        title = titles.pop(0) if titles else pictures["name"]
        model = _row_of(result, inputs.meta.model)
        for name, value in model["metrics"].items():
            mean = value if name == "rfid" else value["mean"]
            if mean is None:
                continue
            arguments = {"protocol": protocol["description"], "images": pictures["number"]}
            if name != "rfid":
                arguments["std"] = value["std"]
            found.append(
                EvalResult(
                    task_type=_TASK,
                    task_name="Image reconstruction",
                    dataset_type=pictures["name"],
                    dataset_name=title,
                    metric_type=name,
                    metric_name=metric_title(result, name),
                    metric_value=mean,
                    metric_args=arguments,
                )
            )
    return found


def metric_title(result: Mapping[str, Any], name: str) -> str:
    """Name a metric as a result's table does."""
    default = "rFID" if name == "rfid" else COLUMNS[name][0]
    return str(result.get("titles", {}).get(name, default))


def _row_of(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    models: list[Mapping[str, Any]] = result["models"]
    if not name and len(models) == 1:
        return models[0]
    for model in models:
        if model["name"] == name:
            return model
    known = ", ".join(model["name"] for model in models)
    raise UsageError(
        f"no row of the evaluation is called {name!r}; there are {known}",
        hint='name the row of this model in the file of facts: model = "…"',
    )
