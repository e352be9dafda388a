"""The Hub's rules for front matter, as far as they can be checked without asking it.

The licences are those that ``POST /api/validate-yaml`` named in July 2026, the tasks those of
``packages/tasks`` in huggingface.js.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from vaeconv.publish.hub.push_options import is_repo_id

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
    openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
    """.split()
)
_TASKS = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition
    biology depth-estimation document-question-answering feature-extraction fill-mask graph-ml
    image-classification image-feature-extraction image-segmentation image-text-to-image
    image-text-to-text image-text-to-video image-to-3d image-to-image image-to-text image-to-video
    keypoint-detection mask-generation multiple-choice object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering
    table-to-text tabular-classification tabular-regression tabular-to-text text-classification
    text-generation text-ranking text-retrieval text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video text2text-generation time-series-forecasting token-classification
    translation unconditional-image-generation video-classification video-text-to-text
    video-to-video visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification zero-shot-image-classification zero-shot-object-detection
    """.split()
)
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_TEXTS = (
    "license_name", "license_link", "library_name", "base_model_relation", "pipeline_tag",
    "thumbnail", "extra_gated_prompt", "extra_gated_heading", "extra_gated_description",
    "extra_gated_button_content",
)  # fmt: skip
_LISTS = ("tags", "datasets")
_TEXT_OR_LIST = ("license", "base_model", "language", "metrics")
_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_ADDRESS = re.compile(r"https?://[^\s/]+\S*")


def front_problems(
    front: Mapping[str, Any], *, published: Collection[str] | None = None
) -> list[str]:
    """List what the Hub refuses or ignores in front matter.

    Args:
        front: The front matter.
        published: Paths of the release, for a link to the licence; None where they are not known.
    """
    problems = [*_type_problems(front)]
    texts = {
        key: [one for one in _listed(front.get(key)) if isinstance(one, str)]
        for key in (*_TEXTS, *_LISTS, *_TEXT_OR_LIST)
    }
    for value in texts["license"]:
        if value not in LICENSES:
            problems.append(
                f"the license {value!r} is not one that the Hub knows{_meant(value, LICENSES)}; "
                "others are license: other, with license_name and license_link"
            )
    if "other" in texts["license"]:
        problems += _other_license(front, published)
    for value in texts["license_name"]:
        if not _LICENSE_NAME.fullmatch(value):
            problems.append(
                f"license_name {value!r} is not an identifier such as my-license-1.0: lower case, "
                "no spaces"
            )
    for value in texts["pipeline_tag"]:
        if value not in _TASKS:
            problems.append(
                f"the pipeline_tag {value!r} is not a task of the Hub{_meant(value, _TASKS)}"
            )
    for value in texts["base_model_relation"]:
        if value not in _RELATIONS:
            problems.append(
                f"base_model_relation {value!r} is none of {', '.join(_RELATIONS)}"
                f"{_meant(value, _RELATIONS)}"
            )
    for key in ("base_model", "datasets"):
        problems += [
            f"{key} {value!r} is not owner/name of a repository on the Hub"
            for value in texts[key]
            if not is_repo_id(value)
        ]
    for value in texts["language"]:
        if not _LANGUAGE.fullmatch(value):
            problems.append(f"the language {value!r} is not an ISO 639 code, such as en")
    for value in texts["thumbnail"]:
        if not _ADDRESS.fullmatch(value):
            problems.append(f"the thumbnail {value!r} is not a URL: https://…")
    problems += _index_problems(front.get("model-index"))
    return problems


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _type_problems(front: Mapping[str, Any]) -> Iterator[str]:
    for keys, takes_text, takes_list, kind in (
        (_LISTS, False, True, "a list of texts"),
        (_TEXTS, True, False, "a text"),
        (_TEXT_OR_LIST, True, True, "a text or a list of texts"),
    ):
        for key in keys:
            value = front.get(key)
            if value is None:
                continue
            if isinstance(value, list):
                odd = [one for one in value if not isinstance(one, str)]
                is_right = takes_list and not odd
            else:
                odd = [value]
                is_right = takes_text and isinstance(value, str)
            if is_right:
                continue
            # ``no`` is false to YAML, 1.0 a number, and 2024-01-01 a date.
            scalars = [str(one) for one in odd if not isinstance(one, str | list | dict)]
            quotes = f": put quotes around {', '.join(scalars)}" if scalars else ""
            yield f"{key} in the front matter is not {kind}{quotes}"


def _other_license(front: Mapping[str, Any], published: Collection[str] | None) -> Iterator[str]:
    if not front.get("license_name"):
        yield "license: other needs license_name"
    link = front.get("license_link")
    if isinstance(link, str) and link:
        if not _ADDRESS.fullmatch(link) and published is not None and link not in published:
            yield f"license_link {link!r} is neither a URL nor a file of the release"
    elif published is None or not any(
        path.upper().partition(".")[0] == "LICENSE" for path in published
    ):
        yield "license: other needs license_link, or a file LICENSE in the release"


def _meant(value: str, known: Collection[str]) -> str:
    words = re.sub(r"\b(the|licen[cs]e|version|v)\b|\bv(?=\d)", " ", value.lower())
    plain = re.sub(r"[\s_-]+", "-", words).strip("-.")
    found = [plain] if plain in known else get_close_matches(plain, sorted(known), 1, 0.7)
    return f": did you mean {found[0]}?" if found else ""


def _index_problems(index: Any) -> Iterator[str]:
    """Name what a list of results lacks."""
    if index is None:
        return
    if not isinstance(index, list):
        yield "model-index in the front matter is not a list"
        return
    for number, model in enumerate(index):
        place = f"model-index[{number}]"
        if not _has_text(model, "name"):
            yield f"{place} has no name"
        elif not isinstance(model.get("results"), list):
            yield f"{place} has no list of results"
        else:
            for at, result in enumerate(model["results"]):
                yield from _result_problems(f"{place}.results[{at}]", result)


def _result_problems(place: str, result: Any) -> Iterator[str]:
    if not isinstance(result, dict):
        yield f"{place} cannot be read"
        return
    for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        if not _has_text(result.get(part), key):
            yield f"{place}.{part} has no {key}"
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        yield f"{place} has no list of metrics"
        return
    for number, metric in enumerate(metrics):
        if not _has_text(metric, "type"):
            yield f"{place}.metrics[{number}] has no type"
        elif metric.get("value") is None:
            yield f"{place}.metrics[{number}] has no value"


def _has_text(table: Any, key: str) -> bool:
    return isinstance(table, dict) and isinstance(table.get(key), str)
