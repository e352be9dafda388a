"""The rooms of the package: who imports whom, what is imported late, and what is public."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import vaeconv
from vaeconv import errors

PACKAGE = Path(vaeconv.__file__).parent

# From the ground up; a module imports from lower floors, and within its own room. Rooms on one
# floor do not know each other. A new module gets its place here, or nobody may import it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("vaeconv.errors", "vaeconv._version"),
    ("vaeconv.common",),
    ("vaeconv.autoencoder", "vaeconv.checkpoint"),
    ("vaeconv.weights", "vaeconv.pages"),
    ("vaeconv.models",),
    ("vaeconv.parity", "vaeconv.evaluation"),
    ("vaeconv.training",),
    ("vaeconv.publish",),
    ("vaeconv.cli",),
    ("vaeconv.__main__", "vaeconv"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# What is not in the standard library, by room; other rooms have none of it.
EXTERNAL: dict[str, set[str]] = {
    "vaeconv.autoencoder": {"yaml"},
    "vaeconv.checkpoint": {"numpy", "huggingface_hub", "isal", "numkong", "torch", "tomli"},
    "vaeconv.pages": {"jinja2", "numpy", "PIL"},
    "vaeconv.models": {"torch", "diffusers", "numpy", "safetensors", "PIL"},
    "vaeconv.parity": {"torch", "numpy", "safetensors", "PIL"},
    "vaeconv.evaluation": {"torch", "numpy", "safetensors", "PIL", "matplotlib"},
    "vaeconv.training": {"torch", "numpy", "accelerate"},
    "vaeconv.publish": {"huggingface_hub", "jinja2", "yaml", "model_signing", "cryptography"},
    "vaeconv.cli": {"typer", "rich"},
}
# They cost more to import than most commands take to run.
LATE = {
    "torch", "diffusers", "numpy", "rich", "huggingface_hub", "yaml", "click", "PIL", "jinja2",
    "accelerate",
}  # fmt: skip
# Modules that are themselves imported late.
EARLY = {
    ("vaeconv.checkpoint.cast", "numpy"),
    ("vaeconv.models.compvis", "torch"),
    ("vaeconv.evaluation.inception", "torch"),
    ("vaeconv.evaluation.image_metrics", "torch"),
    ("vaeconv.models.half", "torch"),
    ("vaeconv.training.loss", "torch"),
    ("vaeconv.training.networks", "torch"),
}
RESOLVERS = {"vaeconv", "vaeconv.cli.group"}  # import parts of their own by name, as late as can be


class Import(NamedTuple):
    """One import statement.

    Attributes:
        importer: The module that it stands in.
        imported: The module that it names.
        line: Where.
        is_early: Whether it runs when the importer is imported.
    """

    importer: str
    imported: str
    line: int
    is_early: bool


def module_name(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, is_early: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Visit all nodes below, each with whether it runs at import."""
    yield node, is_early
    late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                inside = name == "body" and (late or is_type_checking(node))
                yield from walk(child, is_early and not inside)


def imports_of(path: Path, package: Path, modules: set[str]) -> Iterator[Import]:
    importer = module_name(path, package)
    for node, is_early in walk(ast.parse(path.read_text()), True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno, is_early)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
                above = here.split(".")[: len(here.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(importer, inner if inner in modules else base, node.lineno, is_early)


def calls_of_import(path: Path) -> Iterator[int]:
    for node, _ in walk(ast.parse(path.read_text()), True):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called.rpartition(".")[2] in {"import_module", "__import__"}:
            assert isinstance(node, ast.Call)
            yield node.lineno


def private_names(path: Path) -> Iterator[str]:
    """Names with an underscore that a module takes from what is not ours."""
    tree = ast.parse(path.read_text())
    foreign = set().union(*EXTERNAL.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in foreign:
            names = [*(node.module or "").split(".")[1:], *(alias.name for alias in node.names)]
            yield from (name for name in names if name.startswith("_"))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            name = node.args[1]
            if isinstance(name, ast.Constant) and re.match("_[a-z]", str(name.value)):
                yield str(name.value)


def room_of(module: str) -> str | None:
    """Return the room that a module is in; a package's own name is no room for what is in it."""
    if module in FLOOR:
        return module
    room = ".".join(module.split(".")[:2])
    return room if room in FLOOR else None


def complaint(found: Import) -> str | None:
    """Say what is wrong with an import, if anything."""
    root = found.imported.partition(".")[0]
    room = room_of(found.importer)
    if room is None:
        return "has no place in the table of rooms"
    if root == "vaeconv":
        target = room_of(found.imported)
        if target is None:
            return f"imports {found.imported}, which has no place in the table of rooms"
        if target != room and FLOOR[target] >= FLOOR[room]:
            return f"imports {found.imported}: {room} must not know {target}"
        return None
    if root in sys.stdlib_module_names:
        return None
    if root not in EXTERNAL.get(room, set()):
        return f"imports {root}, which {room} must not know"
    if root in LATE and found.is_early and (found.importer, root) not in EARLY:
        return f"imports {root} early"
    return None


def circles(package: Path) -> list[str]:
    """Find modules that import each other, at whatever time and by whatever way."""
    paths = {module_name(path, package): path for path in package.rglob("*.py")}
    graph = {
        module: {
            one.imported for one in imports_of(path, package, set(paths)) if one.imported in paths
        }
        for module, path in paths.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [f"{' -> '.join(reversed(error.args[1]))}: imports in a circle"]
    return []


def complaints(package: Path, paths: Sequence[Path] = ()) -> list[str]:
    """Look at these modules of a package, or at all of them."""
    everything = sorted(package.rglob("*.py"))
    modules = {module_name(path, package) for path in everything}
    found = []
    for path in paths or everything:
        importer = module_name(path, package)
        if room_of(importer) is None:
            found.append(f"{importer}: has no place in the table of rooms")
        for line in calls_of_import(path):
            if importer not in RESOLVERS:
                found.append(f"{importer}:{line}: imports by name")
        for statement in imports_of(path, package, modules):
            said = complaint(statement)
            if said:
                found.append(f"{importer}:{statement.line}: {said}")
    return found


def test_imports_go_down_only_and_costly_ones_come_late() -> None:
    assert complaints(PACKAGE) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(PACKAGE) == []


def test_nothing_private_of_others_is_used(tmp_path: Path) -> None:
    """What a library keeps to itself may be gone with its next version."""
    assert [name for path in PACKAGE.rglob("*.py") for name in private_names(path)] == []
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from huggingface_hub.utils._http import default_client_factory\n"
        "from huggingface_hub.utils import _runtime\n"
        "ignored = getattr(operation, '_should_ignore', False)\n"
    )
    assert list(private_names(planted)) == ["_http", "_runtime", "_should_ignore"]


def test_every_module_is_looked_at() -> None:
    modules = {module_name(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert {"vaeconv", "vaeconv.cli", "vaeconv.checkpoint.cast", "vaeconv.errors"} <= modules
    found = {
        statement
        for path in PACKAGE.rglob("*.py")
        for statement in imports_of(path, PACKAGE, modules)
    }
    edges = {(one.importer, one.imported) for one in found}
    assert ("vaeconv.weights.convert", "vaeconv.weights.plan") in edges
    assert ("vaeconv.checkpoint.cast", "numpy") in edges
    late = {one.imported for one in found if not one.is_early}
    assert {"yaml", "huggingface_hub", "rich.progress", "vaeconv.weights.convert"} <= late


def test_costly_modules_stay_out_when_all_is_imported() -> None:
    """The same as seen by Python: every module but the late one, in a fresh interpreter."""
    modules = sorted(
        name
        for name in (module_name(path, PACKAGE) for path in PACKAGE.rglob("*.py"))
        if name not in {"vaeconv.checkpoint.cast", "vaeconv.__main__"}
        and room_of(name)
        not in {f"vaeconv.{room}" for room in ("models", "parity", "evaluation", "training")}
    )
    code = f"import sys, {', '.join(modules)}; print(*sorted({LATE!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []


# --- the public names ---


def typed_homes() -> dict[str, str]:
    """Return what type checkers are told: each public name and the module that it is from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    return {
        alias.asname or alias.name: str(statement.module)
        for block in filter(is_type_checking, tree.body)
        for statement in ast.walk(block)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_public_names_are_those_that_type_checkers_see() -> None:
    homes = typed_homes()
    assert set(vaeconv.__all__) == {*homes, "__version__"}
    assert homes == vaeconv._HOMES
    assert vaeconv.__all__ == sorted(vaeconv.__all__)


@pytest.mark.parametrize("name", vaeconv.__all__)
def test_public_name_resolves_to_what_is_at_home(name: str) -> None:
    home = typed_homes().get(name, "vaeconv._version")
    found = getattr(vaeconv, name)
    assert found is getattr(import_module(home), name)
    assert getattr(found, "__module__", home) == home
    assert getattr(found, "__doc__", None)


def test_public_names_can_be_imported_all_at_once() -> None:
    code = "from vaeconv import *; print(*sorted(set(dir()) - {'__builtins__'}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert set(vaeconv.__all__) <= set(done.stdout.split())
    assert {n for n in done.stdout.split() if not n.startswith("_")} <= set(vaeconv.__all__)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        vaeconv.nonsense  # noqa: B018


# --- the errors ---

_NODE = re.compile(r"(?P<indent>(?:[│ ] {3})*)(?:[├└]── )?(?P<name>\w+Error) *(?P<code>\d+)?")


def drawn_tree(text: str) -> dict[str, tuple[str, int]]:
    """Read the tree in a docstring: each error, the one above it, and its exit code."""
    found: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in text.partition("The tree::\n")[2].splitlines():
        match = _NODE.match(line.removeprefix("    "))
        if not line.startswith("    ") or not match:
            if found and line.strip():
                break
            continue
        is_root = "──" not in match[0]
        del path[0 if is_root else len(match["indent"]) // 4 + 1 :]
        above = path[-1] if path else "Exception"
        inherited = found[above][1] if path else 1
        found[match["name"]] = (above, int(match["code"] or inherited))
        path.append(match["name"])
    return found


def raised_tree() -> dict[str, tuple[str, int]]:
    return {
        name: (value.__base__.__name__, value.exit_code)
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.VaeconvError)
        if value.__base__ is not None
    }


def test_error_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    assert drawn_tree(errors.__doc__) == raised_tree()


def test_errors_are_named_so_and_say_what_they_are() -> None:
    for name in raised_tree():
        assert name.endswith("Error")
        assert getattr(errors, name).__doc__


def test_exit_codes_are_those_of_the_families() -> None:
    """The second level has the codes; what is below has that of its family."""
    raised = raised_tree()
    families = {name: code for name, (above, code) in raised.items() if above == "VaeconvError"}
    assert sorted(families.values()) == [2, 3, 4, 5, 6, 7]
    for above, code in raised.values():
        assert above in {"Exception", "VaeconvError"} or code == raised[above][1]


# --- planted faults: each must turn a check red ---


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    target = tmp_path / "vaeconv"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


PLANTED = [
    ("checkpoint/types.py", "import vaeconv.autoencoder.keys", "must not know vaeconv.autoencoder"),
    (
        "checkpoint/types.py",
        "from vaeconv.weights.plan import Row",
        "must not know vaeconv.weights",
    ),
    ("checkpoint/types.py", "from ..autoencoder import keys", "must not know vaeconv.autoencoder"),
    ("checkpoint/types.py", "from ..weights import plan", "must not know vaeconv.weights"),
    ("checkpoint/types.py", "from vaeconv import weights", "must not know vaeconv.weights"),
    ("checkpoint/types.py", "from vaeconv import convert", "must not know vaeconv"),
    ("checkpoint/types.py", "import vaeconv", "must not know vaeconv"),
    ("checkpoint/types.py", "import numpy as np", "imports numpy early"),
    ("checkpoint/types.py", "if True:\n    import numpy.linalg", "imports numpy early"),
    ("checkpoint/types.py", "try:\n    import numpy\nexcept ImportError:\n    pass", "numpy early"),
    ("checkpoint/types.py", "class A:\n    import numpy", "imports numpy early"),
    ("checkpoint/types.py", "def f():\n    import diffusers", "imports diffusers"),
    ("checkpoint/types.py", "from huggingface_hub import HfApi", "imports huggingface_hub early"),
    ("checkpoint/types.py", "from typer import echo", "imports typer"),
    ("checkpoint/cast.py", "import torch", "imports torch"),
    ("checkpoint/cast.py", "def f():\n    __import__('torch')", "imports by name"),
    ("checkpoint/hub/new.py", "import vaeconv.weights.convert", "must not know vaeconv.weights"),
    ("common/notes.py", "import vaeconv.checkpoint.types", "must not know vaeconv.checkpoint"),
    ("autoencoder/keys.py", "def f():\n    import vaeconv.checkpoint.types", "must not know"),
    ("autoencoder/keys.py", "from vaeconv.checkpoint import types", "must not know"),
    ("autoencoder/config.py", "import yaml", "imports yaml early"),
    ("autoencoder/config.py", "import numpy", "imports numpy"),
    ("weights/plan.py", "def f():\n    from vaeconv.cli import app", "must not know vaeconv.cli"),
    ("weights/convert.py", "from vaeconv.models import load", "must not know vaeconv.models"),
    ("weights/convert.py", "import importlib\nimportlib.import_module('torch')", "by name"),
    ("weights/output.py", "import safetensors", "imports safetensors"),
    ("models/probe.py", "import vaeconv.parity.references", "must not know vaeconv.parity"),
    ("evaluation/page.py", "import vaeconv.parity.result", "must not know vaeconv.parity"),
    ("evaluation/models.py", "import vaeconv.training.base", "must not know vaeconv.training"),
    ("training/engine.py", "import accelerate", "imports accelerate early"),
    ("errors.py", "import vaeconv.weights.plan", "must not know vaeconv.weights"),
    ("cli/output.py", "import rich.progress", "imports rich early"),
    ("cli/declare.py", "import click", "imports click"),
    ("cli/declare.py", "def f():\n    import click", "imports click"),
    ("cli/commands/convert.py", "import torch", "imports torch"),
    ("helpers.py", "", "has no place in the table of rooms"),
    ("weights/detect.py", "import vaeconv.helpers", "no place in the table of rooms"),
    ("parity/__init__.py", "import torch", "imports torch early"),
    ("parity/__init__.py", "import vaeconv.publish.card.card", "must not know vaeconv.publish"),
]


def plant(package: Path, file: str, planted: str) -> Path:
    path = package / file
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n{planted}\n")
    return path


@pytest.mark.parametrize(("file", "planted", "said"), PLANTED)
def test_planted_import_is_found(copy: Path, file: str, planted: str, said: str) -> None:
    path = plant(copy, file, planted)
    found = complaints(copy, [path])
    assert len(found) == 1, found
    assert found[0].startswith(module_name(path, copy))
    assert said in found[0]


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("checkpoint/tensor.py", "def f():\n    import vaeconv.checkpoint.open"),
        ("weights/plan.py", "from vaeconv.weights.execute import copy_rows"),
    ],
)
def test_planted_circle_is_found(copy: Path, file: str, planted: str) -> None:
    assert circles(copy) == []
    path = plant(copy, file, planted)
    (found,) = circles(copy)
    assert module_name(path, copy) in found


def test_planted_import_is_found_among_all_modules(copy: Path) -> None:
    assert complaints(copy) == []
    plant(copy, "checkpoint/tensor.py", "import vaeconv.autoencoder.keys")
    plant(copy, "cli/new.py", "import torch")
    found = complaints(copy)
    assert len(found) == 2
    assert found[0].startswith("vaeconv.checkpoint.tensor:")
    assert found[1].startswith("vaeconv.cli.new:2: imports torch")


ALLOWED = [
    ("checkpoint/types.py", "def f():\n    import numpy"),
    (
        "checkpoint/types.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy",
    ),
    ("checkpoint/types.py", "from . import tensor"),
    ("checkpoint/types.py", "from ..errors import InputError"),
    ("parity/__init__.py", "def f():\n    import torch"),
    ("parity/decode.py", "from vaeconv.weights.convert import convert"),
    ("evaluation/metrics.py", "from vaeconv.models import images"),
    ("publish/release/new.py", "import vaeconv.evaluation, vaeconv.parity, vaeconv.weights.prune"),
    ("weights/prune.py", "from vaeconv.weights.prune_plan import Group"),
    ("cli/commands/push.py", "import typer\nfrom vaeconv.publish import card"),
]


@pytest.mark.parametrize(("file", "planted"), ALLOWED)
def test_allowed_import_is_not_complained_about(copy: Path, file: str, planted: str) -> None:
    path = plant(copy, file, planted)
    assert complaints(copy, [path]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    ├── HubError                      6  Hub or network\n", ""),
        ("HubError                      6", "HubError                      5"),
        ("    │   ├── EmaError", "    ├── EmaError"),
        ("    │   └── OutputExistsError", "    │   └── OutputExistError"),
        ("    ├── CheckFailedError              4", "    │   ├── CheckFailedError              4"),
    ],
)
def test_planted_difference_in_the_drawing_is_found(old: str, new: str) -> None:
    assert errors.__doc__ is not None
    assert errors.__doc__.count(old) == 1
    assert drawn_tree(errors.__doc__.replace(old, new)) != raised_tree()


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "cli" / "commands").glob("*.py")), ids=lambda path: path.stem
)
def test_a_command_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80, "what it prints goes to render/"
