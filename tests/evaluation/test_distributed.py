"""Several processes find what one finds, and each picture is measured once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.runs import (
    KL,
    RAW,
    SIZE,
    Document,
    assert_results_near,
    environment,
    measure,
    run_eval,
    shrink_inception,
    spec,
    start,
    torchrun,
    variables_of,
)
from tests.evaluation.test_partial_results import ALL, DAMAGED, cut, lines_of
from tests.support.closeness import assert_near, near_metric
from vaeconv.errors import InputError, OutputError, UsageError
from vaeconv.evaluation import partial_results as shards
from vaeconv.evaluation.distributed import World, join_world, read_world
from vaeconv.evaluation.frechet import moments_of
from vaeconv.evaluation.metrics import METRICS
from vaeconv.evaluation.partial_results import ShardWriter


@pytest.fixture(autouse=True)
def small(small_inception: None) -> None:
    """All of these are run with it."""


def assert_equal(found: Document, expected: Document) -> None:
    for part in ("models", "per_picture", "pictures"):
        assert_results_near(found[part], expected[part])
    assert found["per_picture"]["names"] == expected["per_picture"]["names"]
    assert [list(model["metrics"]) for model in found["models"]] == [
        list(model["metrics"]) for model in expected["models"]
    ]


# --- one against two ---


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, networks: dict[str, Path]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two models, five pictures and one that is damaged, every metric, in two processes."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "002a.png").write_text("damaged")
    args = ("tests.evaluation.runs", "eval", RAW, KL, "--name", "raw", "--name", "half",
            "--images", folder / "photos", "--out", folder / "eval.json", "--size", SIZE,
            "--latent-stats", "--expect-world-size", 2, "--device", "cpu")  # fmt: skip
    return folder, torchrun(2, *args, **variables_of(networks))


@pytest.fixture(scope="module")
def one(
    tmp_path_factory: pytest.TempPathFactory,
    two: tuple[Path, subprocess.CompletedProcess[str]],
    networks: dict[str, Path],
) -> Document:
    """The same in one process."""
    parts = tmp_path_factory.mktemp("one") / "parts"
    models = [spec(RAW, name="raw"), spec(KL, name="half")]
    with pytest.MonkeyPatch.context() as patch:
        shrink_inception(patch.setattr)
        return measure(models, two[0] / "photos", parts, metrics=METRICS, weights=networks,
                       latent_stats=True)  # fmt: skip


def test_two_processes_find_what_one_finds(
    two: tuple[Path, subprocess.CompletedProcess[str]], one: Document
) -> None:
    folder, done = two
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "eval.json").read_text())
    assert (found["processes"], one["processes"]) == (2, 1)
    assert found["models"][0]["metrics"]["rfid"] > 1e-3
    assert_equal(found, one)
    assert found["pictures"]["skipped"] == {DAMAGED: 1}


def test_each_picture_is_measured_by_one_process(
    two: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    shards = lines_of(two[0] / "eval.json.parts")
    assert {name: [record["at"] for record in lines] for name, lines in shards.items()} == {
        "shard-0000-0000.jsonl": [0, 2, 4],
        "shard-0001-0000.jsonl": [1, 3, 5],
    }


def test_only_the_first_process_speaks(
    two: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = two[1]
    assert done.stdout.count("rFID") == 1
    assert done.stdout.count("latents of raw") == 1
    assert done.stderr.count(f"1 file is not used: 1 {DAMAGED}") == 1
    assert done.stderr.count("other weights of inception") == 1


def test_what_two_began_one_ends(
    tmp_path: Path,
    two: tuple[Path, subprocess.CompletedProcess[str]],
    one: Document,
    networks: dict[str, Path],
) -> None:
    folder = two[0]
    parts = tmp_path / "parts"
    # The command calls its protocol custom, as the tests' own is called.
    shutil.copytree(folder / "eval.json.parts", parts)
    cut(parts / "shard-0000-0000.jsonl", -7)
    cut(parts / "shard-0001-0000.f32", -1)
    models = [spec(RAW, name="raw"), spec(KL, name="half")]
    found = measure(models, folder / "photos", parts, metrics=METRICS, weights=networks,
                    latent_stats=True)  # fmt: skip
    assert [record["at"] for record in lines_of(parts)["shard-0000-0001.jsonl"]] == [4, 5]
    assert found["processes"] == 1
    assert_equal(found, one)


# --- what processes tell each other ---


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]


def rank_of_two(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}


@pytest.fixture(scope="module")
def ranked(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, networks: dict[str, Path]
) -> tuple[Path, list[dict[str, Any]], Document]:
    """What each of two processes found, and what one does."""
    folder = tmp_path_factory.mktemp("ranked")
    given = {
        "photos": str(photos),
        "nets": {name: str(path) for name, path in networks.items()},
        "ports": free_ports(6),
    }
    (folder / "given.json").write_text(json.dumps(given))
    with pytest.MonkeyPatch.context() as patch:
        shrink_inception(patch.setattr)
        whole = measure([KL], photos, folder / "begun", metrics=ALL, weights=networks)
    lines = (folder / "begun" / "shard-0000-0000.jsonl").read_bytes().splitlines()
    cut(folder / "begun" / "shard-0000-0000.jsonl", len(lines[0]) + len(lines[1]) + 20)
    started = [
        start(
            folder, module="tests.evaluation.ranked", MASTER_ADDR="127.0.0.1", **rank_of_two(rank)
        )
        for rank in range(2)
    ]
    try:
        complaints = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], complaints
    return folder, [json.loads((folder / f"found-{at}.json").read_text()) for at in (0, 1)], whole


Ranked = tuple[Path, list[dict[str, Any]], Document]


def test_ranks_know_each_other(ranked: Ranked) -> None:
    first, second = ranked[1]
    assert (first["ranks"], second["ranks"]) == ([0, 2, 0], [1, 2, 1])
    assert (first["first"], second["first"]) == (True, False)
    assert first["gather"] == second["gather"] == [{"rank": 0}, {"rank": 1}]
    assert first["share"] == [[], [0], [0, 2, 4]]
    assert second["share"] == [[], [], [1, 3]]


def test_moments_add_up(ranked: Ranked) -> None:
    rows = np.random.default_rng(5).normal(size=(7, 3)) * 1e3
    for found in ranked[1]:
        assert found["number"] == 7
        assert_near(found["total"], rows.sum(axis=0), "fp64")
        assert_near(found["outer"], rows.T @ rows, "fp64")


def test_turns_and_failures_are_shared(ranked: Ranked) -> None:
    first, second = ranked[1]
    assert (first["turn"], second["turn"]) == ([10, [0]], [11, [1]])
    assert first["failure"] == [3, "here: no good; do otherwise"]
    assert second["failure"] == [3, "here: no good"]


def test_what_one_began_two_end(ranked: Ranked) -> None:
    folder, (first, second), whole = ranked
    assert_equal(first["resumed"], whole)
    assert second["resumed"] is None
    begun = lines_of(folder / "begun")
    assert [record["at"] for record in begun["shard-0000-0001.jsonl"]] == [2, 4]
    assert [record["at"] for record in begun["shard-0001-0000.jsonl"]] == [3]


def test_more_processes_than_pictures(ranked: Ranked) -> None:
    folder, (first, second), whole = ranked
    single = first["one picture"]
    assert single["pictures"]["number"] == 1
    psnr = single["models"][0]["metrics"]["psnr"]
    assert psnr["mean"] == near_metric("psnr", whole["per_picture"]["models"][0]["psnr"][0])
    assert (psnr["std"], psnr["number"]) == (0, 1)
    assert second["one picture"] is None
    assert lines_of(folder / "single")["shard-0001-0000.jsonl"] == []


def test_a_refusal_is_that_of_all(ranked: Ranked) -> None:
    for found in ranked[1]:
        assert found["refused"][0] == 2
        assert "another run" in found["refused"][1]
        assert found["unread"][0] == 3


def test_what_stopped_in_two_ends_in_one(
    tmp_path: Path, ranked: Ranked, photos: Path, networks: dict[str, Path]
) -> None:
    folder, found, whole = ranked
    assert [one["stopped"] for one in found] == [True, True]
    parts = tmp_path / "parts"
    shutil.copytree(folder / "stopped", parts)
    held = [[record["at"] for record in lines] for lines in lines_of(parts).values()]
    assert held == [[0], [1]]
    assert_equal(measure([KL], photos, parts, metrics=ALL, weights=networks), whole)
    assert [record["at"] for record in lines_of(parts)["shard-0000-0001.jsonl"]] == [2, 3, 4]


# --- alone ---


def test_alone_everything_is_one_s_own() -> None:
    world = World()
    assert world.is_first
    assert world.share([3, 1, 2]) == [3, 1, 2]
    assert world.gather("x") == ["x"]
    assert world.first_then_others(lambda: 5) == 5
    moments = moments_of(np.eye(3))
    assert world.merge(moments) is moments
    with pytest.raises(InputError, match="plain"):
        world.first_then_others(raise_plain)


def raise_plain() -> None:
    raise InputError("plain")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 13])
def test_shares_are_a_partition(world_size: int, count: int) -> None:
    shares = [World(rank, world_size).share(range(count)) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_an_unexpected_number_of_processes_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    out = tmp_path / "eval.json"
    args = (KL, "--images", photos, "--out", out, "--limit", 1)
    result = run_eval(*args, "--expect-world-size", 2)
    assert result.exit_code == 2
    assert "processes that run: 1; expected: 2" in result.stderr
    assert "torchrun" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert run_eval(*args, "--expect-world-size", 1).exit_code == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="processes that run: 3"):
        join_world(2)


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets a launcher's variables, and no others of them."""

    def launch(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        (dict.fromkeys(VARIABLES, ""), (0, 1, 0)),
        (dict.fromkeys(VARIABLES, "  "), (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4, 0)),
    ],
)
def test_an_empty_variable_is_not_set(
    launched: Callable[..., None], variables: dict[str, str], expected: tuple[int, ...]
) -> None:
    launched(**variables)
    assert read_world() == expected


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1', which is no whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, and there is one process at least"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"RANK": "1.5"}, "RANK is '1.5', which is no whole number"),
        ({"RANK": "\u0663"}, "RANK is '\u0663', which is no whole number"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', which is no whole number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
            "LOCAL_RANK is 2, but WORLD_SIZE is 2",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT is not"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "x"},
            "MASTER_PORT is 'x', which is no whole number",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "70000"},
            "MASTER_PORT is 70000, which is no port",
        ),
    ],
)
def test_garbage_in_a_variable_is_wrong_usage_that_names_it(
    launched: Callable[..., None], variables: dict[str, str], said: str
) -> None:
    launched(**variables)
    with pytest.raises(UsageError, match=re.escape(said)):
        join_world()


def test_a_run_does_not_go_on_beside_another(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a launcher was killed, and what it started still measures."""
    monkeypatch.setattr(shards, "_PATIENCE", 0.2)
    whole = measure([KL], photos, tmp_path / "parts")
    cut(tmp_path / "parts" / "shard-0000-0000.jsonl", -3)
    other = ShardWriter(tmp_path / "parts", 1, 0)
    with pytest.raises(OutputError, match="another run is measuring into it"):
        measure([KL], photos, tmp_path / "parts")
    with pytest.raises(OutputError, match="another run is measuring into it"):
        measure([KL], photos, tmp_path / "parts", restart=True)
    other.close()
    assert_equal(measure([KL], photos, tmp_path / "parts"), whole)


def test_a_process_ends_with_its_launcher(tmp_path: Path) -> None:
    """Python that starts Python that watches its parent, which is then killed."""
    inner = (
        "import time, os; from vaeconv.evaluation.distributed import _stop_with_launcher;"
        "_stop_with_launcher(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    outer = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
    outer += "time.sleep(60)"
    for launcher, ends in (("torchrun", True), ("", False)):
        process = subprocess.Popen(
            [sys.executable, "-c", outer, inner],
            env=environment(TORCHELASTIC_RUN_ID=launcher),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
        deadline = time.monotonic() + (20 if ends else 2)
        while time.monotonic() < deadline and is_running(worker):
            time.sleep(0.05)
        assert is_running(worker) is not ends
        if not ends:
            os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def is_running(process: int) -> bool:
    """Whether a process is there and is no zombie, which nobody may have waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_process_refuses(tmp_path: Path, photos: Path) -> None:
    """As a launcher starts them; none waits for another."""
    args = ("eval", KL, "--images", photos, "--out", tmp_path / "eval.json", "--json")
    started = [
        start(*args, "--expect-world-size", 4, module="vaeconv", **rank_of_two(rank))
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 2
        assert json.loads(said)["error"]["what"] == "processes that run: 2; expected: 4"
