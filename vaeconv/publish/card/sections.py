"""The sections of a card that vaeconv writes, and how they are merged into one that is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from vaeconv.errors import InputError, UsageError, printable
from vaeconv.evaluation.tables import escape_markdown, make_tables, markdown_table
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.documents import read_document
from vaeconv.weights.output_names import is_utf8

_BEGIN, _END = "<!-- vaeconv:begin {name} -->", "<!-- vaeconv:end {name} -->"
_MARKED = re.compile(
    r"<!-- vaeconv:begin (?P<name>[\w-]+) -->\n.*?<!-- vaeconv:end (?P=name) -->", re.DOTALL
)
_PLACED = re.compile(f"(?P<before>\n*)(?:{_MARKED.pattern})(?P<after>\n*)", re.DOTALL)

_PICTURES = (".png", ".webp", ".jpg", ".jpeg")
_MAX_PICTURES = 12  # a card shows that many; the rest is in the folder
PROSE = ("about", "training", "limits")
_NAMED = ("gpu", "device", "torch", "diffusers")  # of the environment of a check


class Section(NamedTuple):
    """A part of the card that is written anew each time.

    Attributes:
        name: Of its markers.
        text: Markdown, without them.
        is_prose: Whether it is what people said in the file of facts: a card that has no place for
            it, or a run without that file, leaves the card's own words alone.
    """

    name: str
    text: str
    is_prose: bool = False

    @property
    def marked(self) -> str:
        """The text between its markers."""
        begin, end = _BEGIN.format(name=self.name), _END.format(name=self.name)
        return f"{begin}\n{without_markers(self.text.strip())}\n{end}"


def without_markers(text: str) -> str:
    """Make text from elsewhere safe to stand in a card: what looks like a marker is none."""
    return text.replace("<!-- vaeconv:", "&lt;!-- vaeconv:")


def find_sections(text: str) -> dict[str, str]:
    """Find the generated sections in a card, with their markers."""
    return {match["name"]: match[0] for match in _MARKED.finditer(text)}


def inner_text(marked: str) -> str:
    """Take the markers off a generated section."""
    return marked.partition("\n")[2].rpartition("\n")[0]


def merge_sections(text: str, sections: Sequence[Section]) -> str:
    """Write generated sections into a card, and leave what people wrote.

    A section that is there is replaced where it stands; a new one goes behind the one that it
    follows, or to the end; one that is no longer made is taken out.
    """
    wanted = {section.name: section.marked for section in sections}

    def replace(match: re.Match[str]) -> str:
        marked = wanted.pop(match["name"], None)
        if marked is None and match["name"] in PROSE:
            return match[0]
        if marked is not None:
            return f"{match['before']}{marked}{match['after']}"
        return "\n\n" if match["before"] and match["after"] else ""

    merged = _PLACED.sub(replace, text).strip("\n")
    before = ""
    for section in sections:
        if section.name not in wanted:
            before = _END.format(name=section.name)
        elif not section.is_prose:
            head, end, rest = merged.partition(before) if before else (merged, "", "")
            merged = f"{head}{end}\n\n{section.marked}{rest}"
            before = _END.format(name=section.name)
    return merged.strip("\n") + "\n"


def prose_sections(title: str, meta: CardMeta) -> list[Section]:
    """Write the sections in people's own words: the heading, training, limits."""
    texts = {"about": f"# {' '.join(title.split())}\n\n{meta.summary.strip()}"}
    facts = [f"| {_cell(name)} | {_cell(value)} |" for name, value in meta.facts.items()]
    table = "\n".join(["| | |", "|---|---|", *facts]) if facts else ""
    training = "\n\n".join(filter(None, (meta.training.strip(), table)))
    texts["training"] = f"## Training\n\n{training}" if training else ""
    texts["limits"] = f"## Limits\n\n{meta.limits.strip()}" if meta.limits.strip() else ""
    return [Section(name, texts[name], is_prose=True) for name in PROSE if texts[name]]


def usage_section(meta: CardMeta, variants: Sequence[str | None]) -> Section:
    """Write the section on use with diffusers."""
    lines = [
        "## Use with diffusers",
        "",
        "```python",
        "from diffusers import AutoencoderKL, StableDiffusionPipeline",
        "",
        f'vae = AutoencoderKL.from_pretrained("{meta.repo_id}")',
        f'pipe = StableDiffusionPipeline.from_pretrained("{meta.pipeline}", vae=vae)',
        "```",
        "",
    ]
    for variant in filter(None, variants):
        lines += [
            f'`AutoencoderKL.from_pretrained("{meta.repo_id}", variant="{variant}")` loads the '
            f"{variant} weights.",
            "",
        ]
    return Section("usage", "\n".join(lines))


def original_section(repo_id: str, file: str) -> Section:
    """Write the section on use in the CompVis layout: a file in a repository of its own."""
    is_safetensors = file.endswith((".safetensors", ".sft"))
    load = f'load_file("{file}")'
    if not is_safetensors:
        load = f'torch.load("{file}", map_location="cpu", weights_only=True)["state_dict"]'
    lines = [
        "## Use in the CompVis layout",
        "",
        "For the original code and for web UIs the weights are "
        f"[{file}](https://huggingface.co/{repo_id}/resolve/main/{quote(file)}) of "
        f"[{repo_id}](https://huggingface.co/{repo_id}):",
        "",
        "```python",
        "from safetensors.torch import load_file" if is_safetensors else "import torch",
        "",
        "# model: ldm.models.autoencoder.AutoencoderKL, made from its training config",
        f"model.load_state_dict({load}, strict=False)",
        "```",
    ]
    return Section("original", "\n".join(lines))


def evaluation_section(results: Sequence[Mapping[str, Any]], meta: CardMeta) -> Section:
    """The tables of the evaluations, one for each set of images."""
    lines = ["## Evaluation", ""]
    titles = list(meta.eval_titles)
    for table in make_tables(results):
        title = _cell(titles.pop(0)) if titles else escape_markdown(table.title)
        lines += [f"### {title}", "", *markdown_table(table), ""]
        lines += [f"_{escape_markdown(table.protocol)}_", ""]
    networks = sorted(
        {
            f"{_text(network['name'])} `{_text(network['sha256'][:16])}`"
            for result in results
            for network in result["nets"]
        }
    )
    if networks:
        lines += [f"Metric networks (sha256): {', '.join(networks)}.", ""]
    return Section("evaluation", "\n".join(lines))


def images_section(folder: Path, pictures: Path) -> Section:
    """Side-by-side reconstructions, by links relative to the card.

    Args:
        folder: The release.
        pictures: The folder of images in it; its report of ``vaeconv compare`` names the panels.

    Raises:
        InputError: There are no images, or one has a name that no link can have.
        UsageError: They lie elsewhere.
    """
    try:
        base = pictures.resolve().relative_to(folder.resolve())
    except ValueError as error:
        raise UsageError(
            "the images must lie inside the folder that is published",
            where=str(pictures),
            hint=f"vaeconv compare … --out {folder / 'assets'}",
        ) from error
    try:
        names = sorted(
            one.name
            for one in pictures.iterdir()
            if one.suffix.lower() in _PICTURES and one.stem != "sheet"
        )
    except OSError as error:
        raise InputError(f"not a folder of images ({error})", where=str(pictures)) from error
    for name in (".", *names):
        if not is_utf8(f"{base}/{name}"):
            raise InputError(
                "its name is not UTF-8",
                where=str(pictures / name),
                hint="rename it: no link and no repository can have it",
            )
    if not names:
        raise InputError("no images in it", where=str(pictures))
    lines = ["## Reconstructions", ""]
    report = pictures / "compare.json"
    order = read_document(report, "compare").get("order") if report.is_file() else None
    if order:
        lines += [f"From left to right: {_text(', '.join(order))}.", ""]
    for name in names[:_MAX_PICTURES]:
        title = _cell(Path(name).stem.replace("[", "").replace("]", ""))
        lines += [f"![{title}]({quote((base / name).as_posix())})", ""]
    return Section("pictures", "\n".join(lines))


def provenance_section(
    manifest: Mapping[str, Any] | None, parity: Mapping[str, Any] | None, version: str
) -> Section:
    """Write the section on the origin of the weights, and on what was proved of them."""
    rows: list[tuple[str, str]] = [("vaeconv", version)]
    if manifest:
        rows += _manifest_rows(manifest)
    if parity:
        rows += _parity_rows(parity)
    lines = ["## Provenance", "", "| | |", "|---|---|"]
    lines += [f"| {_text(name)} | {_text(value)} |" for name, value in rows]
    return Section("provenance", "\n".join(lines))


def _manifest_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, ema = manifest["source"], manifest.get("ema") or {}
    digest = source.get("sha256")
    rows = [("made from", source["name"] + (f", sha256 {digest}" if digest else ""))]
    if ema.get("ema"):
        rows.append(("EMA", f"{ema['ema']} tensors; {ema['raw']} raw"))
    scaling = manifest.get("scaling")
    if scaling:
        shift = scaling.get("shift_factor")
        text = f"{scaling['scaling_factor']:g}" + (f", shift {shift:g}" if shift else "")
        rows.append(("scaling factor", f"{text} ({scaling['from']})"))
    for name, output in sorted(manifest["outputs"].items()):
        dtype = output.get("dtype")
        cast = "" if dtype in (None, "keep") else f"{dtype}, "
        rows.append((name, f"{cast}sha256 {output['sha256']}"))
    for name, other in sorted(manifest.get("others", {}).items()):
        known = other.get("source")
        made = isinstance(known, dict) and known.get("name")
        rows.append(
            (name, f"made from {made}, not from the files above" if made else "origin unknown")
        )
    return rows


def _parity_rows(parity: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {side["label"]: side["name"].rstrip("/").rpartition("/")[2] for side in parity["sides"]}
    rows: list[tuple[str, str]] = []
    for key, verb, said in (
        ("same", "are", "the same autoencoder"),
        ("drop_in", "is a drop-in", "replacement"),
    ):
        comparison = parity.get(key)
        if not comparison:
            continue
        one, other = (names[side] for side in comparison["sides"])
        verdict = f"{one} and {other} {verb} {said}"
        if key == "drop_in":
            verdict = f"{one} {verb} {said} for {other}"
        if not comparison["ok"]:
            verdict = f"FAILED: {comparison['problems'][0]}"
        rows.append(("parity" if key == "same" else "drop-in", verdict))
        rows += [
            (f"{worst['kind']} {worst['dtype']}", f"largest difference {worst['max_abs']:.1e}")
            for worst in comparison["worst"]
            if key == "same" and worst["max_abs"] is not None
        ]
    environment = parity.get("environment") or {}
    computed = [f"{name} {environment[name]}" for name in _NAMED if environment.get(name)]
    return [*rows, *([("checked with", ", ".join(computed))] if computed else [])]


def _text(value: object) -> str:
    """Keep what a document of anybody's says from becoming markup."""
    return escape_markdown(printable(" ".join(str(value).split())))


def _cell(value: object) -> str:
    """Keep what people say of their model in one cell of a table; their markup stays."""
    return printable(" ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split()))
