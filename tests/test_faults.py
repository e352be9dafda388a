"""What is left of an output when writing it fails, is stopped, or meets another run.

In every case it must be the old one or the complete new one, to the byte, with nothing beside it.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from typer.testing import CliRunner, Result

from tests.support.faults import Call, NoExchange, Watch
from tests.support.lacking import IS_POSIX, needs_no_root, open_can_be_replaced
from tests.support.slow import slow_row
from vaeconv.checkpoint import system
from vaeconv.checkpoint.source import FileSource
from vaeconv.checkpoint.writers import atomic
from vaeconv.cli import app
from vaeconv.errors import InputError
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions, CopyOptions

ROOT = Path(__file__).parents[1]
CKPT = ROOT / "fixtures" / "tiny-kl.ckpt"
ENTRY = Path(sys.executable).with_name("vaeconv")
WEIGHTS = "diffusion_pytorch_model.safetensors"

# What is in a folder: path to bytes, None for a folder.
Tree = dict[str, bytes | None]

every_form = pytest.mark.parametrize("form", ["out", "out.safetensors", "out.ckpt"])
with_and_without_old = pytest.mark.parametrize("old", [False, True], ids=["new", "replace"])

ERRORS = {
    "open": errno.EMFILE,
    "create": errno.ENOSPC,
    "mkdir": errno.ENOSPC,
    "pwrite": errno.ENOSPC,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "close": errno.EIO,
    "chmod": errno.EIO,
    "link": errno.EIO,
    "unlink": errno.EIO,
    "rmdir": errno.EIO,
    "replace": errno.EXDEV,
    "rename": errno.EXDEV,
}
TAKES_ROOM = {"create", "mkdir", "pwrite", "write", "fsync", "link"}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_entry(
    *args: str | Path, before: str = "pass", umask: int = -1
) -> subprocess.CompletedProcess[str]:
    """Run the installed entry point, after a Python statement in the same process."""
    start = f"import os, sys; {before}; os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", start, str(ENTRY), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        umask=umask,
        check=False,
    )


def snapshot(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def put(tree: Tree, folder: Path) -> None:
    for name, data in sorted(tree.items()):
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def without_strays(tree: Tree) -> Tree:
    return {name: data for name, data in tree.items() if not name.startswith(".vaeconv-")}


def without_empty_strays(tree: Tree) -> Tree:
    return {name: data for name, data in tree.items() if name in without_strays(tree) or data}


@functools.cache
def written(form: str, *options: str) -> Tree:
    """Give what an undisturbed run writes into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        result = run("convert", "-q", CKPT, Path(folder, form), *options)
        assert result.exit_code == 0, result.stderr
        return snapshot(Path(folder))


def largest(tree: Tree) -> bytes:
    return max((data for data in tree.values() if data is not None), key=len)


class Scene(NamedTuple):
    """An output to write, and perhaps an old one in its place.

    Attributes:
        place: The folder that the output is in, and nothing else.
        target: The output.
        old: What is in the folder before the run.
        new: What is in it after a good one.
    """

    place: Path
    target: Path
    old: Tree
    new: Tree

    @property
    def args(self) -> list[str]:
        return ["convert", "-q", str(CKPT), str(self.target), *["--overwrite"] * bool(self.old)]

    def assert_is(self, *, new: bool) -> None:
        found, expected = snapshot(self.place), self.new if new else self.old
        if not IS_POSIX:  # a file can be left whose descriptor nobody knew yet
            found = without_empty_strays(found)
        assert found.keys() == expected.keys()
        assert found == expected, [name for name in found if found[name] != expected[name]]


def make_scene(place: Path, form: str, *, old: bool) -> Scene:
    place.mkdir()
    before: Tree = {}
    after = written(form)
    if old:
        others: Tree = {"out/README.md": b"mine\n"} if form == "out" else {}
        before, after = {**written(form, "--ema"), **others}, {**after, **others}
        assert largest(before) != largest(after)
        put(before, place)
    return Scene(place, place / form, before, after)


def watch_run(scene: Scene, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> Result:
    with monkeypatch.context() as patch:
        watch.install(functools.partial(patch.setattr, raising=False))
        return run(*scene.args)


def trace(tmp_path: Path, form: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Give the calls of an undisturbed run; their paths are below ``tmp_path / "trace"``."""
    scene = make_scene(tmp_path / "trace", form, old=old)
    watch = Watch(scene.place)
    assert watch_run(scene, monkeypatch, watch).exit_code == 0
    scene.assert_is(new=True)
    return watch.calls


def assert_one_error(result: Result, code: int = 5) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert_one_line(result.stderr)


def assert_one_line(stderr: str) -> None:
    assert stderr.startswith("error: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert "internal error" not in stderr


def fail_each_call(
    tmp_path: Path, form: str, old: bool, ever: bool, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """Run until a run gets through, failing one call more each time; give the calls' names."""
    names: set[str] = set()
    for number in itertools.count(1):
        scene = make_scene(tmp_path / str(number), form, old=old)
        failed: list[int] = []

        def fail(count: int, call: Call, number: int = number, failed: list[int] = failed) -> None:
            locks = [path for path in call.paths if path and path.suffix == system.LOCK_ENDING]
            if locks and call.name in {"close", "unlink"}:
                return
            if call.name in ERRORS and (
                count == number or (ever and count > number and call.name in TAKES_ROOM)
            ):
                failed.append(count)
                raise OSError(ERRORS[call.name], os.strerror(ERRORS[call.name]))

        watch = Watch(scene.place, before=fail)
        result = watch_run(scene, monkeypatch, watch)
        if number > len(watch.calls):
            assert result.exit_code == 0
            scene.assert_is(new=True)
            return names
        if not failed:
            continue
        call = watch.calls[failed[0] - 1]
        names.add(call.name)
        is_done = any(call.puts(scene.target) for call in watch.calls[: failed[0] - 1])
        is_replaceable = form == "out" and call.name == "link"  # a file that stays is copied then
        is_tidying = call.name in {"unlink", "rmdir"} or (
            is_done and call.name == "open" and call.paths != (scene.place,)
        )
        if result.exit_code or not (is_tidying or is_replaceable):
            assert_one_error(result)
        if is_tidying:
            assert is_done
            assert without_strays(snapshot(scene.place)) == scene.new
            assert run(*scene.args, "--overwrite").exit_code == 0
        scene.assert_is(new=is_done or not result.exit_code)
        shutil.rmtree(scene.place)
    raise AssertionError


@every_form
@with_and_without_old
@pytest.mark.parametrize("ever", [False, True], ids=["once", "from-then-on"])
def test_any_failing_call_is_one_error_and_leaves_the_old_output_or_the_complete_new_one(
    form, old, ever, tmp_path, monkeypatch
):
    """New is the output from the one step on that puts it in place, and not before.

    Where only tidying up fails, the run may succeed; what it leaves, the next run removes.
    """
    names = fail_each_call(tmp_path, form, old, ever, monkeypatch)
    expected = {"create", "open", "pwrite", "fsync", "close"}
    if form == "out":
        expected |= {"mkdir", "write", "replace"}
        expected |= {"chmod", "link", "unlink", "rmdir"} if old else {"rename"}
    else:
        expected |= {"chmod", "replace"} if old else {"link"}
    assert names >= expected


def test_a_folder_is_safe_where_the_system_cannot_exchange_two_names(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "exchange", NoExchange())
    names = fail_each_call(tmp_path, "out", True, False, monkeypatch)
    assert "rename" in names


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("form", ["out.safetensors", "out.ckpt"])
def test_a_file_is_written_where_the_system_knows_no_hard_links(
    form, number, tmp_path, monkeypatch
):
    def fail(count: int, call: Call) -> None:
        if call.name == "link":
            raise OSError(number, os.strerror(number))

    scene = make_scene(tmp_path / "place", form, old=False)
    result = watch_run(scene, monkeypatch, Watch(scene.place, before=fail))
    assert result.exit_code == 0, result.stderr
    scene.assert_is(new=True)


@pytest.mark.parametrize("has_links", [True, False], ids=["link", "no-link"])
@every_form
def test_an_output_that_appears_during_the_run_is_not_replaced(
    form, has_links, tmp_path, monkeypatch
):
    scene = make_scene(tmp_path / "place", form, old=False)
    other = {name: data and b"other" for name, data in scene.new.items()}

    def appear(count: int, call: Call) -> None:
        if call.name == "pwrite" and not scene.target.exists():
            put(other, scene.place)
        if call.name == "link" and not has_links:
            raise PermissionError(errno.EPERM, "not permitted")

    result = watch_run(scene, monkeypatch, Watch(scene.place, before=appear))
    assert_one_error(result)
    assert snapshot(scene.place) == other


def test_short_writes_are_carried_on(tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "place", "out.ckpt", old=False)
    real = system.write_at
    monkeypatch.setattr(system, "write_at", lambda fd, data, at: real(fd, data[:4999], at))
    assert run(*scene.args).exit_code == 0
    scene.assert_is(new=True)


def test_a_manifest_that_cannot_be_written_is_one_error(tmp_path, monkeypatch):
    def fail(count: int, call: Call) -> None:
        if call.name == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scene = make_scene(tmp_path / "place", "out.safetensors", old=False)
    watch = Watch(scene.place, before=fail)
    with monkeypatch.context() as patch:
        watch.install(functools.partial(patch.setattr, raising=False))
        result = run(*scene.args, "--manifest")
    assert_one_error(result)
    assert "write" in {call.name for call in watch.calls}
    assert not [name for name in snapshot(scene.place) if name.startswith(".vaeconv-")]


def size_limits(form: str) -> list[int]:
    data = largest(written(form))
    if form == "out.ckpt":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            header = archive.infolist()[1].header_offset
    else:
        header = 8 + int.from_bytes(data[:8], "little")
    return [0, 1, header, len(data) // 2, len(data) - 1]


@every_form
@with_and_without_old
def test_a_file_size_limit_is_one_error(form, old, tmp_path):
    import resource  # noqa: F401 - by which the run is limited

    for limit in size_limits(form):
        scene = make_scene(tmp_path / str(limit), form, old=old)
        done = run_entry(
            *scene.args,
            before=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)",
        )
        assert (done.returncode, done.stdout) == (5, ""), done.stderr
        assert_one_line(done.stderr)
        assert "too large" in done.stderr
        scene.assert_is(new=False)


class Point(NamedTuple):
    """Where a run is stopped: before or after its call of that number."""

    number: int
    when: str


def choose_points(calls: Sequence[Call], target: Path, count: int) -> list[Point]:
    """Choose points over the whole run, those around the decisive step among them."""
    last = max(number for number, call in enumerate(calls, 1) if call.puts(target))
    points = [Point(n, when) for n in range(1, len(calls) + 1) for when in ("before", "after")]
    chosen = {Point(last, "before"), Point(last, "after")}
    chosen |= {points[i * (len(points) - 1) // (count - 3)] for i in range(count - 2)}
    return sorted(chosen)


def is_after_step(point: Point, calls: Sequence[Call], target: Path) -> bool:
    step = max(number for number, call in enumerate(calls, 1) if call.puts(target))
    return point.number > step or point == (step, "after")


def stop_at(
    name: str, point: Point, scene: Scene, *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.faults", name, point.when, str(point.number),
         str(scene.place), *options, *scene.args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


@every_form
@pytest.mark.parametrize("old", [slow_row(False, id="new"), pytest.param(True, id="replace")])
def test_a_killed_run_leaves_old_or_new_and_the_next_one_removes_its_debris(
    form, old, tmp_path, monkeypatch
):
    if not IS_POSIX and form == "out":
        pytest.skip("no two folders can be exchanged here; the next test is about that")
    calls = trace(tmp_path, form, old, monkeypatch)
    has_debris = False
    for index, point in enumerate(choose_points(calls, tmp_path / "trace" / form, 12)):
        scene = make_scene(tmp_path / str(index), form, old=old)
        done = stop_at("SIGKILL", point, scene)
        assert (done.returncode, done.stdout, done.stderr) == (-9, "", ""), point
        left = snapshot(scene.place)
        is_new = is_after_step(point, calls, tmp_path / "trace" / form)
        assert without_strays(left) == (scene.new if is_new else scene.old), point
        has_debris |= without_strays(left) != left
        assert run(*scene.args, "--overwrite").exit_code == 0
        scene.assert_is(new=True)
    assert has_debris


def test_a_folder_that_a_killed_run_had_put_aside_comes_back(tmp_path, monkeypatch):
    """Without an exchange there is a moment between two renames; even a failing run mends it."""
    import resource  # noqa: F401 - by which the run is limited

    monkeypatch.setattr(system, "exchange", NoExchange())
    calls = trace(tmp_path, "out", True, monkeypatch)
    target = tmp_path / "trace" / "out"
    (step,) = (number for number, call in enumerate(calls, 1) if call.puts(target))
    for place, is_failing in (("failing", True), ("good", False)):
        scene = make_scene(tmp_path / place, "out", old=True)
        assert stop_at("SIGKILL", Point(step, "before"), scene, "--no-exchange").returncode == -9
        assert not scene.target.exists()
        if is_failing:
            limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
            assert run_entry(*scene.args, before=limit).returncode == 5
        else:
            assert run(*scene.args).exit_code == 0
        scene.assert_is(new=not is_failing)


@every_form
@with_and_without_old
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_run_says_so_in_one_line_and_leaves_nothing_behind(
    form, old, name, code, tmp_path, monkeypatch
):
    calls = trace(tmp_path, form, old, monkeypatch)
    for index, point in enumerate(choose_points(calls, tmp_path / "trace" / form, 8)):
        scene = make_scene(tmp_path / str(index), form, old=old)
        done = stop_at(name, point, scene)
        assert (done.returncode, done.stdout) == (code, ""), f"{point}: {done.stderr}"
        assert_one_line(done.stderr)
        scene.assert_is(new=is_after_step(point, calls, tmp_path / "trace" / form))


@pytest.mark.parametrize("when", ["before", "after"])
@every_form
@with_and_without_old
def test_a_stop_at_any_call_leaves_nothing_behind(form, old, when, tmp_path, monkeypatch):
    """As above, at every point, by the exception that a signal's handler raises."""
    for number in itertools.count(1):
        place = tmp_path / str(number)
        scene = make_scene(place, form, old=old)

        def interrupt(count: int, call: Call, number: int = number) -> None:
            if count == number:
                raise KeyboardInterrupt

        watch = Watch(scene.place, **{when: interrupt})
        watch_run(scene, monkeypatch, watch)
        if number > len(watch.calls):
            break
        left = snapshot(place)
        if not IS_POSIX:
            left = without_empty_strays(left)
        assert left in (scene.old, scene.new), f"{watch.calls[number - 1]}: {list(left)}"
        shutil.rmtree(place, ignore_errors=not IS_POSIX)


@every_form
def test_a_missing_folder_is_one_error_that_names_it(form, tmp_path):
    result = run("convert", CKPT, tmp_path / "no" / "such" / form)
    assert_one_error(result)
    assert f"mkdir -p '{tmp_path}/no/such'" in result.stderr
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("is_dangling", [False, True], ids=["whole", "dangling"])
@every_form
def test_a_symbolic_link_is_not_followed_and_not_replaced(form, is_dangling, overwrite, tmp_path):
    scene = make_scene(tmp_path / "place", form, old=not is_dangling)
    link = tmp_path / f"link{scene.target.suffix}"
    link.symlink_to(scene.target)
    result = run("convert", CKPT, link, *overwrite)
    assert_one_error(result)
    assert "symbolic link" in result.stderr
    assert link.readlink() == scene.target
    scene.assert_is(new=False)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@every_form
def test_a_file_is_no_folder_and_a_folder_no_file(form, overwrite, tmp_path):
    target = tmp_path / form
    if form == "out":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = snapshot(tmp_path)
    assert_one_error(run("convert", CKPT, target, *overwrite))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "sub/..", "/"])
def test_a_folder_without_a_name_of_its_own_is_refused(name, tmp_path, monkeypatch):
    """It could only be replaced through its parent, and may hold the temporary itself."""
    place = tmp_path / "place"
    (place / "sub").mkdir(parents=True)
    monkeypatch.chdir(place)

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("something is being written")

    monkeypatch.setattr(atomic, "staged_folder", fail)
    monkeypatch.setattr("vaeconv.weights.output.staged_folder", fail)
    assert_one_error(run("convert", CKPT, name, "--overwrite"))
    assert snapshot(place) == {"sub": None}


@every_form
def test_a_name_may_be_as_long_as_the_system_allows_and_no_longer(form, tmp_path):
    suffix = Path(form).suffix
    longest = "n" * (255 - len(suffix)) + suffix
    for options in ([], ["--ema", "--overwrite"]):
        result = run("convert", "-q", CKPT, tmp_path / longest, *options)
        assert (result.exit_code, result.output) == (0, "")
    expected = written(form, "--ema")
    assert snapshot(tmp_path) == {
        name.replace(form, longest, 1): data for name, data in expected.items()
    }
    shutil.rmtree(tmp_path / longest) if form == "out" else (tmp_path / longest).unlink()
    result = run("convert", CKPT, tmp_path / f"n{longest}")
    assert_one_error(result)
    assert "File name too long" in result.stderr
    assert snapshot(tmp_path) == {}


@needs_no_root
@every_form
@with_and_without_old
def test_a_folder_that_may_not_be_written_is_one_error(form, old, tmp_path):
    scene = make_scene(tmp_path / "place", form, old=old)
    scene.place.chmod(0o555)
    try:
        assert_one_error(run(*scene.args))
    finally:
        scene.place.chmod(0o755)
    scene.assert_is(new=False)


@needs_no_root
@every_form
def test_an_input_that_may_not_be_read_is_one_error(form, tmp_path):
    source, place = tmp_path / "in.ckpt", tmp_path / "place"
    shutil.copy(CKPT, source)
    source.chmod(0)
    place.mkdir()
    assert_one_error(run("convert", source, place / form), 3)
    assert snapshot(place) == {}


SAME = ["path", "spelling", "link", "symlink", "symlink of the input"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("way", SAME)
@every_form
def test_the_input_is_never_the_output_by_whatever_name(form, way, overwrite, tmp_path):
    source = tmp_path / "in" / form
    source.parent.mkdir()
    put(written(form), source.parent)
    source, target = source, tmp_path / "in" / form
    if way == "spelling":
        target = tmp_path / "in" / ".." / "in" / form
    elif way.startswith("symlink"):
        target = tmp_path / f"link{source.suffix}"
        target.symlink_to(source)
    elif way == "link" and form == "out":
        source, target = source / WEIGHTS, source  # a folder has no second name
    elif way == "link":
        target = tmp_path / f"link{source.suffix}"
        target.hardlink_to(source)
    if way == "symlink of the input":
        source, target = target, source
    before = snapshot(tmp_path)
    result = run("convert", source, target, *overwrite)
    assert_one_error(result)
    assert "is the input" in result.stderr or "contains the input" in result.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("depth", ["", "a", "a/b"])
@pytest.mark.parametrize("by_link", [False, True], ids=["path", "symlink"])
def test_a_folder_that_contains_the_input_is_refused(depth, by_link, overwrite, tmp_path):
    target, source = tmp_path / "out", tmp_path / "out" / depth / "in.ckpt"
    source.parent.mkdir(parents=True)
    shutil.copy(CKPT, source)
    if by_link:
        (tmp_path / "link.ckpt").symlink_to(source)
        source = tmp_path / "link.ckpt"
    before = snapshot(tmp_path)
    result = run("convert", source, target, *overwrite)
    assert_one_error(result)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json/../" + WEIGHTS, "config.json"])
def test_files_of_the_input_folder_are_refused_as_output(name, overwrite, tmp_path):
    source = tmp_path / "in"
    put(written("out"), tmp_path)
    (tmp_path / "out").rename(source)
    name = name.replace("config.json/..", "../in")
    before = snapshot(tmp_path)
    code = 2 if name == "config.json" else 5  # the ending of no file that is written
    assert_one_error(run("convert", source, source / name, *overwrite), code)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["new.ckpt", "new"])
def test_a_new_output_beside_the_input_s_files_is_fine(name, tmp_path):
    put(written("out"), tmp_path)
    source = tmp_path / "out"
    before = snapshot(source)
    assert run("convert", source, source / name).exit_code == 0
    assert before.items() <= snapshot(source).items()


def test_a_dangling_link_as_input_is_an_error_of_the_input(tmp_path):
    scene = make_scene(tmp_path / "place", "out", old=True)
    source = tmp_path / "in.ckpt"
    source.symlink_to(tmp_path / "nothing")
    assert_one_error(run("convert", source, scene.target, "--overwrite"), 3)
    scene.assert_is(new=False)


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def touch(path: Path) -> None:
    """As if other bytes of the same size had been written where they were read already."""
    path.touch()


@pytest.mark.parametrize("change", [shrink, rewrite, touch])
@pytest.mark.parametrize("check", [True, False], ids=["check", "no-check"])
@pytest.mark.parametrize("moment", ["read", "write"])
@every_form
@with_and_without_old
def test_an_input_that_changes_during_the_run_is_an_error_and_no_output(
    form, old, moment, check, change, tmp_path, monkeypatch
):
    scene = make_scene(tmp_path / "place", form, old=old)
    source = tmp_path / "in.ckpt"
    shutil.copy(CKPT, source)
    os.utime(source, (1e9, 1e9))
    monkeypatch.setattr("vaeconv.weights.execute._PIECE", 64 << 10)
    changes: list[int] = []

    def change_once() -> None:
        if not changes:
            changes.append(1)
            change(source)

    read = FileSource.read_into

    def read_into(self: FileSource, offset: int, buffer: memoryview) -> None:
        if offset > CKPT.stat().st_size // 10 and len(buffer) > 1 << 12 and moment == "read":
            change_once()
        read(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", read_into)
    on_progress: Callable[[int, int], None] | None = None
    if moment == "write":
        on_progress = lambda count, total: change_once()  # noqa: E731
    options = ConvertOptions(overwrite=True, copy=CopyOptions(check, on_progress=on_progress))
    with pytest.raises(InputError) as error:
        convert(source, scene.target, options)
    assert changes
    assert str(source) in str(error.value)
    scene.assert_is(new=False)


@open_can_be_replaced
@every_form
def test_an_input_that_is_replaced_during_the_run_is_read_to_its_end(form, tmp_path):
    """The old file stays open, whatever has its name."""
    scene = make_scene(tmp_path / "place", form, old=False)
    source, other = tmp_path / CKPT.name, tmp_path / "other.ckpt"
    shutil.copy(CKPT, source)

    def replace(count: int, total: int) -> None:
        other.write_bytes(b"other")
        other.replace(source)

    convert(source, scene.target, ConvertOptions(copy=CopyOptions(on_progress=replace)))
    scene.assert_is(new=True)


@every_form
def test_progress_is_told_one_call_at_a_time(form, tmp_path):
    """Pieces are written by several threads; what counts them need not know that."""
    scene = make_scene(tmp_path / "place", form, old=False)
    running, overlaps, told = [0], [0], [0]

    def count(size: int, total: int) -> None:
        running[0] += 1
        overlaps[0] += running[0] > 1
        told[0] += size
        time.sleep(0.02)
        running[0] -= 1

    done = convert(CKPT, scene.target, ConvertOptions(copy=CopyOptions(on_progress=count)))
    assert told[0] == sum(
        written.size for written in done.written if written.path.suffix != ".json"
    )
    assert overlaps == [0]


@pytest.mark.parametrize("count", [2, 8])
@every_form
@with_and_without_old
def test_runs_at_once_on_one_output_leave_that_of_one_of_them(form, old, count, tmp_path):
    scene = make_scene(tmp_path / "place", form, old=old)
    other = {**scene.old, **written(form, "--ema")}
    running = [
        subprocess.Popen(
            [ENTRY, *scene.args, "--overwrite", *["--ema"] * (index % 2)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    codes = []
    for process in running:
        stdout, stderr = process.communicate(timeout=300)
        codes.append(process.returncode)
        assert (process.returncode in (0, 5), stdout) == (True, ""), stderr
        if process.returncode:
            assert_one_line(stderr)
        else:
            assert stderr == ""
    assert 0 in codes
    assert snapshot(scene.place) in (scene.new, other)


@every_form
def test_a_run_does_not_take_the_temporary_of_a_living_one_for_debris(form, tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "place", form, old=True)
    others: list[int] = []

    def run_another(count: int, call: Call) -> None:
        if call.name == "pwrite" and not others:
            others.append(run_entry(*scene.args, "--ema").returncode)

    result = watch_run(scene, monkeypatch, Watch(scene.place, before=run_another))
    assert (result.exit_code, others) == (0, [0]), result.stderr
    scene.assert_is(new=True)


def index_of(calls: Sequence[Call], name: str, matches: Callable[[Path], bool]) -> list[int]:
    return [
        index
        for index, call in enumerate(calls)
        if call.name == name and any(path is not None and matches(path) for path in call.paths)
    ]


@every_form
@with_and_without_old
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_end(
    form, old, tmp_path, monkeypatch
):
    calls = trace(tmp_path, form, old, monkeypatch)
    place = tmp_path / "trace"
    # An exchange that turns out not to be possible comes before two renames.
    *_, step = (index for index, call in enumerate(calls) if call.puts(place / form))
    staged = calls[step].paths[0]
    assert staged is not None
    synced = [call.paths[0] for call in calls[:step] if call.name == "fsync"]
    names = {path.name for path in synced if path}
    if form == "out":
        assert names >= {"config.json", "vaeconv.json"}
        assert any(name.startswith(".vaeconv-") for name in names - {staged.name})
        assert synced[-1] == staged or not IS_POSIX
    else:
        assert synced == [staged]
    for path in synced:
        assert path is not None
        last_write = max(
            index_of(calls, "pwrite", path.__eq__) + index_of(calls, "write", path.__eq__) + [-1]
        )
        assert last_write < min(index_of(calls, "fsync", path.__eq__))
    assert index_of(calls[step:], "fsync", place.__eq__) or not IS_POSIX
    assert not index_of(calls[step:], "pwrite", lambda path: True)


@every_form
@with_and_without_old
def test_a_system_without_locks_will_do(form, old, tmp_path, monkeypatch):
    def fail(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def fail_too(fd: int, operation: int, size: int) -> None:
        fail(fd, operation)

    locks = SimpleNamespace(flock=fail, locking=fail_too, LOCK_EX=2, LOCK_NB=4, LK_NBLCK=2)
    monkeypatch.setattr(system, "_fcntl" if system._fcntl else "_msvcrt", locks)
    scene = make_scene(tmp_path / "place", form, old=old)
    result = run(*scene.args)
    assert result.exit_code == 0, result.stderr
    scene.assert_is(new=True)


@every_form
def test_no_check_does_not_wait_for_the_disk(form, tmp_path, monkeypatch):
    scene = make_scene(tmp_path / "place", form, old=False)
    watch = Watch(scene.place)
    with monkeypatch.context() as patch:
        watch.install(functools.partial(patch.setattr, raising=False))
        assert run(*scene.args, "--no-check").exit_code == 0
    names = {call.name for call in watch.calls}
    assert "pwrite" in names
    assert "fsync" not in names
    assert scene.target.exists()


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
@every_form
def test_a_new_output_follows_the_umask(form, umask, tmp_path):
    scene = make_scene(tmp_path / "place", form, old=False)
    done = run_entry(*scene.args, umask=umask)
    assert done.returncode == 0, done.stderr
    assert modes(scene.place) == {
        name: oct((0o777 if data is None else 0o666) & ~umask) for name, data in scene.new.items()
    }


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664], ids=oct)
@every_form
def test_a_replaced_output_keeps_its_mode(form, mode, tmp_path):
    scene = make_scene(tmp_path / "place", form, old=True)
    if form == "out":
        mode |= 0o100
    scene.target.chmod(mode)
    done = run_entry(*scene.args, umask=0o022)
    assert done.returncode == 0, done.stderr
    assert modes(scene.place)[form] == oct(mode)
    scene.assert_is(new=True)


def test_the_hashes_in_a_manifest_are_those_of_the_files_beside_it(tmp_path):
    """So a mixed folder would also show to its readers."""
    import hashlib

    tree = written("out")
    outputs = json.loads(tree["out/vaeconv.json"] or b"")["outputs"]
    for name, entry in outputs.items():
        data = tree[f"out/{name}"]
        assert data is not None
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no space")
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 5), (errno.EOPNOTSUPP, 0)])
def test_space_is_taken_before_anything_is_copied(number, code, tmp_path, monkeypatch):
    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    if code:
        monkeypatch.setattr(system, "write_at", lambda *_: pytest.fail("it went on"))
    result = run("convert", CKPT, tmp_path / "out.safetensors")
    assert result.exit_code == code, result.output
    assert (tmp_path / "out.safetensors").exists() == (code == 0)
    assert len(list(tmp_path.iterdir())) == (code == 0)
