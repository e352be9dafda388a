"""Files of an older release in a repository, and those that would win over the new ones.

Which file diffusers loads is the order of ``ModelMixin.from_pretrained``: the index of shards, the
index by its older name, the single file, each in safetensors; then the single ``.bin``. With
``use_safetensors=False`` it is the index of ``.bin`` shards, then the single file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint.readers.folder import STEM
from vaeconv.errors import InputError
from vaeconv.publish.sbom import SBOM
from vaeconv.publish.signing import SIGNATURE, read_signed
from vaeconv.weights.manifest import MANIFEST

_SHARD = r"-\d{5}-of-\d{5}"
_VARIANT = r"(?:\.(?P<variant>(?!safetensors\.|bin\.|index\.).+?))?"
_FORMS = [
    re.compile(re.escape(STEM) + form)
    for form in (
        rf"{_VARIANT}{_SHARD}\.(?:safetensors|bin)",
        rf"{_SHARD}{_VARIANT}\.(?:safetensors|bin)",
        rf"\.(?:safetensors|bin)\.index{_VARIANT}\.json",
        rf"\.(?:safetensors|bin){_VARIANT}\.index\.json",
        rf"{_VARIANT}\.(?:safetensors|bin)",
    )
]
_OTHER_FORMS = ("diffusion_flax_model.msgpack", "model.flashpack")
_DOCUMENT = re.compile(
    rf"(?:.*\.)?{re.escape(MANIFEST)}|parity[^/]*\.json|eval[^/]*\.json|{re.escape(SBOM)}"
    rf"|{re.escape(SIGNATURE)}"
)
_MAX = 64 << 20  # bytes of a document that is looked at


class Weights(NamedTuple):
    """Weights of one variant in one folder, in whatever form.

    Attributes:
        folder: With a slash at the end; empty for the root.
        variant: Such as ``fp16``; None for the plain ones.
    """

    folder: str
    variant: str | None


def weights_of(path: str) -> Weights | None:
    """Tell which weights a file is, or leads to; None for another file."""
    folder, slash, name = path.rpartition("/")
    if name in _OTHER_FORMS:
        return Weights(folder + slash, None)
    for form in _FORMS:
        match = form.fullmatch(name)
        if match:
            return Weights(folder + slash, match["variant"])
    return None


def loaded_file(weights: Weights, paths: Collection[str], *, safetensors: bool) -> str | None:
    """Find the file that diffusers starts from; None where it finds none.

    Args:
        weights: Which.
        paths: All files of the repository.
        safetensors: False for ``use_safetensors=False``.
    """
    variant = f".{weights.variant}" if weights.variant else ""
    suffixes = ("safetensors", "bin") if safetensors else ("bin",)
    names = [
        f"{STEM}.{suffixes[0]}.index{variant}.json",
        f"{STEM}.{suffixes[0]}{variant}.index.json",
        *(f"{STEM}{variant}.{suffix}" for suffix in suffixes),
    ]
    return next((weights.folder + one for one in names if weights.folder + one in paths), None)


def twofold_problems(paths: Collection[str]) -> Iterator[str]:
    """Name weights that are there both in shards and as one file: diffusers loads the shards."""
    for weights in sorted({one for one in map(weights_of, paths) if one}, key=str):
        for safetensors in (True, False):
            first = loaded_file(weights, paths, safetensors=safetensors)
            if first and first.endswith(".json"):
                suffix = "safetensors" if ".safetensors." in first else "bin"
                variant = f".{weights.variant}" if weights.variant else ""
                single = f"{weights.folder}{STEM}{variant}.{suffix}"
                if single in paths:
                    yield f"{single} is there beside {first}, which diffusers loads in its place"


def winning_files(pushed: Collection[str], tree: Iterable[str]) -> list[str]:
    """List files that hold the weights that are pushed in another form.

    They are of an older release, and would be loaded in place of the new files, now or by who asks
    for that form.
    """
    wanted = {weights_of(path) for path in pushed} - {None}
    return sorted(path for path in tree if path not in pushed and weights_of(path) in wanted)


def other_variants(pushed: Collection[str], tree: Iterable[str]) -> list[str]:
    """List weights of variants that stay beside those that are pushed into their folder."""
    wanted = {one for one in map(weights_of, pushed) if one}
    folders = {one.folder for one in wanted}
    found = {path: weights_of(path) for path in tree}
    return sorted(
        path for path, one in found.items() if one and one.folder in folders and one not in wanted
    )


def find_outdated(
    pushed: Mapping[str, str], tree: Mapping[str, Any], fetch: Callable[[str], Path]
) -> list[str]:
    """List what an older release left, and what would win over the new files or contradict them.

    The latter are manifests, reports and signatures that no longer say what is true of the
    repository; what those say that are pushed was checked.

    Args:
        pushed: The sha256 of each file that is pushed, by its path.
        tree: The files of the repository, with what the client says of each.
        fetch: Downloads a file.
    """
    gone = winning_files(pushed, tree)
    sha256s: dict[str, str | None] = {
        path: one.lfs and one.lfs.sha256 for path, one in tree.items() if path not in gone
    }
    sha256s.update(pushed)
    found = []
    for path in sorted(tree.keys() - pushed.keys()):
        name = path.rpartition("/")[2]
        if not _DOCUMENT.fullmatch(name) or tree[path].size > _MAX:
            continue
        folder = path[: len(path) - len(name)]
        here = {
            one[len(folder) :]: sha256
            for one, sha256 in sha256s.items()
            if one.startswith(folder) and one != path
        }
        if not _fits(name, fetch(path), here):
            found.append(path)
    return sorted([*gone, *found])


def _fits(name: str, local: Path, hashes: Mapping[str, str | None]) -> bool:
    """Whether what a document says of files is so; one that is not ours says nothing."""
    try:
        if name == SIGNATURE:
            return _are_so(read_signed(local), hashes)
        document = json.loads(local.read_bytes())
        if name == SBOM:
            return _are_so(
                {
                    one["name"]: one["hashes"][0]["content"]
                    for one in document["components"]
                    if str(one.get("bom-ref")).startswith("file:") and one.get("hashes")
                },
                hashes,
            )
        if name.endswith(MANIFEST):
            outputs = document["outputs"]
            return _are_so({one: outputs[one].get("sha256") for one in outputs}, hashes)
        if document["command"] == "verify":
            told = {one["sha256"] for side in document["sides"] for one in side["files"]}
        elif document["command"] == "eval":
            told = {one for model in document["models"] for one in model["sha256"]}
        else:
            return True
        return bool(told & set(hashes.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InputError):
        return True


def _are_so(told: Mapping[str, Any], hashes: Mapping[str, str | None]) -> bool:
    return all(
        name in hashes and (None in (sha256, hashes[name]) or hashes[name] == sha256)
        for name, sha256 in told.items()
    )
