"""Steps of the action in action.yml: the folders of its caches, the command, the caches' keys.

Inputs come as environment variables that begin with ``IN_``, so that no value is ever read by a
shell. Called with the name of a step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10, where vaeconv brings this one
    import tomli as tomllib

_RELEASE = "release"
_FOLDER = "release"  # what [output] has for folder where it does not say
_NO_CACHE = re.compile(r"[\x00-\x1f*?\[\]{}!#~]")  # means something else to actions/cache


def main() -> int:
    """Run the step that the command line names."""
    steps = {"places": find_places, "run": run, "keys": make_keys}
    return steps[sys.argv[1]]()


def find_places() -> int:
    """Tell which folders are cached: the metric networks', and the release's work folder."""
    place = _work_folder() if _words()[:1] == [_RELEASE] else None
    if place and _NO_CACHE.search(str(place)):
        print("::notice title=vaeconv::the work folder is not cached: its name is a pattern")
        place = None
    prefix = f"vaeconv-work-{_digest([str(place)])}-" if place else ""
    # What an earlier step of this job wrote is newer than what a cache has.
    is_new = str(bool(place and not os.path.exists(place))).lower()  # noqa: PTH110 - any name
    _tell(**{
        "networks": str(_networks_folder()), "work": str(place or ""), "prefix": prefix,
        "is-new": is_new,
    })  # fmt: skip
    return 0


def run() -> int:
    """Run the command; what it writes for the job (outputs, summary) is this step's."""
    words = _words()
    if not words:
        return _refuse("the input command is empty")
    env = {name: value for name, value in os.environ.items() if not name.startswith("IN_")}
    is_dry = _input("DRY_RUN") == "true"
    if words[0] == _RELEASE:
        tag = _input("TAG")
        words += [f"--tag={tag}"] if tag else []
        if is_dry and not (tag or _tag(env)):
            env["VAECONV_TAG"] = "dry-run"  # a pull request has none
    words += ["--dry-run"] if is_dry else []
    if _input("TOKEN"):
        env["HF_TOKEN"] = _input("TOKEN")
    with TemporaryDirectory(dir=os.environ.get("RUNNER_TEMP")) as room:
        if _input("SIGNING_KEY"):
            key = Path(room) / "key.pem"  # in a folder that is its owner's alone
            key.write_text(_input("SIGNING_KEY").rstrip() + "\n")
            words.append(f"--sign={key}")
        if words[0] == _RELEASE:
            words += ["--", _release_file()]
        entry = Path(sys.executable).with_name("vaeconv")
        return subprocess.run([entry, *words], env=env, check=False).returncode


def make_keys() -> int:
    """Tell the key of each cache, which names its content; empty where there is nothing to keep."""
    installed = (f"{one.metadata['Name']} {one.version}" for one in distributions())
    keys = {"pip": _digest(installed)}
    for name in ("networks", "work"):
        folder = Path(_input(name.upper())) if _input(name.upper()) else None
        files = sorted(one for one in folder.rglob("*") if one.is_file()) if folder else []
        keys[name] = _digest(_content(one, folder) for one in files if folder) if files else ""
    _tell(**{
        name: f"{_input(f'{name.upper()}_PREFIX')}{key}" if key else ""
        for name, key in keys.items()
    })  # fmt: skip
    return 0


def _content(file: Path, folder: Path) -> str:
    """Describe a file, without reading all of it; of a release's state what it hashed."""
    name = str(file.relative_to(folder))
    if file.name != "state.json":
        return f"{name} {file.stat().st_size}"
    text = file.read_text(errors="replace")
    try:  # facts, such as whether a push was new, differ where nothing was done
        steps = json.loads(text).items()
        return f"{name} {[(step, one['inputs'], one['outputs']) for step, one in steps]}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{name} {text}"


def _input(name: str) -> str:
    return os.environ.get(f"IN_{name}", "")


def _release_file() -> str:
    return _input("RELEASE_FILE") or "release.toml"


def _words() -> list[str]:
    """Split the command as a shell would, and expand nothing."""
    try:
        return shlex.split(_input("COMMAND"))
    except ValueError as error:
        raise SystemExit(_refuse(f"the input command cannot be read: {error}")) from error


def _refuse(what: str) -> int:
    print(f"::error title=vaeconv::{what}")
    return 2


def _tag(environ: Mapping[str, str]) -> str:
    """The tag that vaeconv would find by itself."""
    is_tag = environ.get("GITHUB_REF_TYPE") == "tag"
    return environ.get("VAECONV_TAG") or (is_tag and environ.get("GITHUB_REF_NAME")) or ""


def _work_folder() -> Path | None:
    """The folder that a release file names; None where it cannot be read."""
    file = Path(_release_file())
    try:
        if not file.is_file():  # a pipe would be waited for
            return None
        tables: Any = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        folder = str(tables.get("output", {}).get("folder", _FOLDER))
    except (OSError, ValueError, AttributeError, RecursionError):  # vaeconv says what is wrong
        return None
    # The tag is text: what looks like a variable in it is none.
    tag = _input("TAG") or _tag(os.environ)
    filled = os.path.expandvars(os.path.expanduser(folder)).replace("{tag}", tag)  # noqa: PTH111
    place = Path(os.path.normpath((file.parent / filled).absolute()))
    holds_more = place in (file.absolute(), *file.absolute().parents)
    return None if "\0" in filled or holds_more else place


def _networks_folder() -> Path:
    """Where torch keeps what it downloads, without importing it."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch = os.environ.get("TORCH_HOME") or f"{caches}/torch"
    return Path(torch).expanduser().absolute() / "hub" / "checkpoints"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="replace")).hexdigest()[:16]


def _tell(**outputs: str) -> None:
    """Write outputs of the step, whatever is in the values."""
    end = uuid.uuid4().hex
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
        file.writelines(f"{name}<<{end}\n{value}\n{end}\n" for name, value in outputs.items())


if __name__ == "__main__":
    sys.exit(main())
