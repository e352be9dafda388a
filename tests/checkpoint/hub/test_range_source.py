from __future__ import annotations

import email.utils
import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.range_hub import Content, RangeHub, point_client_at
from vaeconv.checkpoint import system
from vaeconv.checkpoint.hub.failures import Retry
from vaeconv.checkpoint.hub.range_source import RangeSource
from vaeconv.checkpoint.hub.sparse_file import Intervals
from vaeconv.checkpoint.source import read_bytes
from vaeconv.errors import HubError, MalformedCheckpointError, OutputError

REPO = "owner/model"
PATH = "model.ckpt"
FAST = Retry(first_delay=0.001, longest_delay=0.05, read=2.0)
KIB, MIB = 1 << 10, 1 << 20

Open = Callable[..., RangeSource]
Start = Callable[..., RangeHub]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a Hub that has one file, and point the client at it."""
    from huggingface_hub import close_session

    hubs: list[RangeHub] = []

    def run(content: Content, *, cdn: bool = False) -> RangeHub:
        hub = RangeHub({REPO: {PATH: content}}, cdn=cdn).__enter__()
        hubs.append(hub)
        point_client_at(hub, tmp_path / "home", monkeypatch)
        return hub

    yield run
    close_session()
    for hub in hubs:
        hub.__exit__()


@pytest.fixture
def opened() -> Iterator[Open]:
    """Make sources for that file, and close them."""
    sources: list[RangeSource] = []

    def make(hub: RangeHub, content: Content, **options: object) -> RangeSource:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        given = {"name": "hf://owner/model/model.ckpt", "retry": FAST, **options}
        url = f"{hub.endpoint}/{REPO}/resolve/main/{PATH}"
        sources.append(RangeSource(url, size=size, etag=hub.etag(content), **given))  # type: ignore[arg-type]
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sparse(path: Path, size: int, marks: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in marks.items():
            file.seek(offset)
            file.write(data)
    return path


# What is fetched


@pytest.mark.parametrize("cdn", [False, True])
def test_only_the_needed_bytes_travel(
    tmp_path: Path, start: Start, opened: Open, cdn: bool
) -> None:
    size, middle = 1 << 30, 512 * MIB + 12345
    path = sparse(tmp_path / "big", size, {0: b"head", middle: b"middle", size - 4: b"tail"})
    hub = start(path, cdn=cdn)
    seen: list[int] = []
    source = opened(hub, path, on_progress=seen.append)
    assert read_bytes(source, size - 4, 4) == b"tail"
    assert read_bytes(source, 0, 4) == b"head"
    assert read_bytes(source, middle, 6) == b"middle"
    # Read-ahead, also before the end of the file: the same places cost nothing more.
    read_bytes(source, size - 60 * KIB, 60 * KIB)
    read_bytes(source, 100, 60 * KIB)
    assert sum(seen) == hub.bytes_served == 3 * 64 * KIB
    assert len(hub.requests) == (4 if cdn else 3)
    assert len(hub.asked(host="cdn")) == (3 if cdn else 0)


def test_neighbours_are_joined_and_what_is_here_is_left_out(start: Start, opened: Open) -> None:
    content = noise(2 * MIB)
    hub = start(content)
    source = opened(hub, content)
    read_bytes(source, 0, 10)
    source.prefetch(
        [(300 * KIB, 310 * KIB), (0, 70 * KIB), (100 * KIB, 200 * KIB), (1 * MIB, 1 * MIB)]
    )
    source.prefetch([(305 * KIB, 308 * KIB), (5, 5)])
    ranges = [request.headers["range"] for request in hub.asked(on="resolve")]
    assert ranges == ["bytes=0-65535", f"bytes=65536-{310 * KIB - 1}"]
    assert bytes(read_bytes(source, 0, 310 * KIB)) == content[: 310 * KIB]
    assert len(hub.requests) == 2


def test_distant_ranges_are_asked_for_apart(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    source = opened(hub, content)
    source.prefetch([(0, 10), (10 + 128 * KIB, 20 + 128 * KIB), (600 * KIB, 600 * KIB + 10)])
    assert hub.bytes_served == 20 + 128 * KIB + 10


def test_big_ranges_come_in_parallel_pieces(start: Start, opened: Open) -> None:
    content = noise(72 * MIB)
    hub = start(content)
    hub.misbehave(delay=0.3)
    seen: list[int] = []
    source = opened(hub, content, on_progress=seen.append)
    source.prefetch([(1, len(content))])
    assert len(hub.requests) == 5
    assert 3 <= hub.peak_in_flight <= 5
    assert sum(seen) == len(content) - 1
    assert bytes(read_bytes(source, 1, len(content) - 1)) == content[1:]
    assert len(hub.requests) == 5


def test_no_more_than_eight_in_flight(start: Start, opened: Open) -> None:
    content = noise(8 * MIB)
    hub = start(content)
    hub.misbehave(delay=0.3)
    source = opened(hub, content)
    source.prefetch([(n * 512 * KIB, n * 512 * KIB + 10) for n in range(16)])
    assert len(hub.requests) == 16
    assert 5 <= hub.peak_in_flight <= 8


def test_threads_that_miss_the_same_bytes_fetch_them_once(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(delay=0.1)
    source = opened(hub, content)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: bytes(read_bytes(source, n * 100, 50)), range(8)))
    assert found == [content[n * 100 : n * 100 + 50] for n in range(8)]
    assert len(hub.requests) == 1


def test_empty_file_and_reads_past_the_end(start: Start, opened: Open) -> None:
    hub = start(b"")
    source = opened(hub, b"")
    assert read_bytes(source, 0, 0) == b""
    source.prefetch([(0, 100)])
    with pytest.raises(MalformedCheckpointError, match="1 bytes too early"):
        source.read_into(0, memoryview(bytearray(1)))
    assert not hub.requests


# A network that fails


def test_cut_bodies_are_resumed_where_they_broke(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(cut=100 * KIB, times=7)
    source = opened(hub, content)
    source.prefetch([(0, MIB)])
    assert bytes(read_bytes(source, 0, MIB)) == content
    assert hub.bytes_served == MIB  # not a byte twice
    assert len(hub.requests) == 8


def test_cuts_without_progress_end_after_five_tries(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(cut=KIB)
    with pytest.raises(HubError) as caught:
        read_bytes(opened(hub, content), 0, MIB)
    assert len(hub.requests) == 5
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(start: Start, opened: Open, status: int) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(status=status, times=2, headers={"Retry-After": "0"})
    assert bytes(read_bytes(opened(hub, content), 0, KIB)) == content
    assert len(hub.requests) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_lasting_failures_end_after_five_tries(start: Start, opened: Open, status: int) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(status=status)
    with pytest.raises(HubError, match=f"HTTP {status}"):
        read_bytes(opened(hub, content), 0, KIB)
    assert len(hub.requests) == 5


def test_retry_after_is_honoured_and_capped(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(status=503, times=1, headers={"Retry-After": "86400"})
    began = time.monotonic()
    read_bytes(opened(hub, content, retry=replace(FAST, longest_delay=0.3)), 0, KIB)
    assert 0.3 <= time.monotonic() - began < 3600  # and not a day


def test_delays() -> None:
    retry = Retry()
    assert retry.tries == 5
    assert [retry.delay(1, value) for value in ("7", "86400", " 3 ")] == [7, 60, 3]
    assert 0.35 <= retry.delay(1) <= 0.65
    assert 2.8 <= retry.delay(4, "soon") <= 5.2
    assert retry.delay(20) == 60
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert 0 < retry.delay(1, date) <= 20
    past = email.utils.formatdate(time.time() - 2000, usegmt=True)
    assert retry.delay(1, past) == 0


def test_closed_port(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.endpoint = "http://127.0.0.1:9"
    with pytest.raises(HubError, match="cannot be reached"):
        read_bytes(opened(hub, content), 0, KIB)


def test_a_silent_server_is_given_up(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(delay=60.0)
    began = time.monotonic()
    with pytest.raises(HubError, match="cannot be reached"):
        read_bytes(opened(hub, content, retry=replace(FAST, tries=2, read=0.2)), 0, KIB)
    assert time.monotonic() - began < 30


def test_a_trickle_is_given_up(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(pause=0.01)
    began = time.monotonic()
    with pytest.raises(HubError, match="stalled"):
        read_bytes(opened(hub, content, retry=replace(FAST, tries=2, stall=0.2)), 0, KIB)
    assert time.monotonic() - began < 60  # the whole takes hours


def test_one_fatal_answer_stops_the_other_requests(start: Start, opened: Open) -> None:
    content = noise(12 * MIB)
    hub = start(content)
    hub.misbehave(delay=0.05, status=403, after=3, times=1)
    hub.misbehave(delay=0.05)
    source = opened(hub, content)
    with pytest.raises(HubError, match="access denied"):
        source.prefetch([(n * 300 * KIB, n * 300 * KIB + 10) for n in range(40)])
    assert len(hub.requests) < 30


# A file that changes, and servers that are odd


@pytest.mark.parametrize("cdn", [False, True])
def test_another_etag_is_an_error(start: Start, opened: Open, cdn: bool) -> None:
    content = noise(MIB)
    hub = start(content, cdn=cdn)
    hub.misbehave(host="cdn" if cdn else "hub", after=1, headers={"ETag": '"other"'})
    source = opened(hub, content)
    read_bytes(source, 0, 10)
    with pytest.raises(MalformedCheckpointError, match="changed on the server"):
        read_bytes(source, MIB - 10, 10)


def test_the_etag_of_the_first_answer_must_be_the_announced_one(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(headers={"ETag": '"other"'})
    with pytest.raises(MalformedCheckpointError, match="changed on the server"):
        read_bytes(opened(hub, content), 0, 10)


def test_a_redirect_to_another_file_is_an_error(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content, cdn=True)
    hub.misbehave(host="hub", headers={"X-Linked-ETag": '"other"'})
    with pytest.raises(MalformedCheckpointError, match="changed on the server"):
        read_bytes(opened(hub, content), 0, 10)


@pytest.mark.parametrize("body", [noise(KIB), noise(2 * MIB)])
def test_another_length_is_an_error(start: Start, opened: Open, body: bytes) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(body=body)  # shorter: 416 for the end of the file
    with pytest.raises(MalformedCheckpointError, match="changed on the server"):
        read_bytes(opened(hub, content), MIB - 10, 10)


def test_weak_etags_are_the_same_file(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(headers={"ETag": f'W/"{hub.etag(content)}"'})
    source = opened(hub, content)
    assert bytes(read_bytes(source, 0, 10)) == content[:10]
    assert bytes(read_bytes(source, MIB - 10, 10)) == content[-10:]


def test_a_server_without_ranges_sends_the_whole_file_once(
    start: Start, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    content = noise(3 * MIB)
    hub = start(content)
    hub.misbehave(ignore_range=True)
    source = opened(hub, content)
    with caplog.at_level(logging.WARNING):
        assert bytes(read_bytes(source, MIB, 10)) == content[MIB : MIB + 10]
        source.prefetch([(0, 3 * MIB)])
        assert bytes(read_bytes(source, 0, 3 * MIB)) == content
    assert hub.bytes_served == 3 * MIB
    assert len(hub.requests) == 1
    assert [record.message for record in caplog.records if record.name.startswith("vaeconv")] == [
        "hf://owner/model/model.ckpt: the server does not send parts of files, "
        "so all of its 3 MB are fetched"
    ]


def test_many_requests_to_a_server_without_ranges_share_one_body(
    start: Start, opened: Open
) -> None:
    content = noise(4 * MIB)
    hub = start(content)
    hub.misbehave(ignore_range=True, delay=0.1)
    seen: list[int] = []
    source = opened(hub, content, on_progress=seen.append)
    source.prefetch([(n * MIB, n * MIB + 10) for n in range(4)])
    assert sum(seen) == 4 * MIB
    assert bytes(read_bytes(source, 0, 4 * MIB)) == content


def test_a_cut_body_without_ranges_is_asked_for_again(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(ignore_range=True, cut=300 * KIB, times=1)
    hub.misbehave(ignore_range=True)
    assert bytes(read_bytes(opened(hub, content), 0, MIB)) == content


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": f"bytes 5-{KIB + 4}/{MIB}"},
        {"Content-Range": f"bytes 0-{MIB - 1}/{MIB}"},
        {"Content-Range": "junk"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_wrong_answers_are_refused(start: Start, opened: Open, headers: dict[str, str]) -> None:
    content = noise(MIB)
    hub = start(content)
    hub.misbehave(headers=headers)
    with pytest.raises(HubError, match="download"):
        read_bytes(opened(hub, content), 0, KIB)


def test_circles_end(start: Start, opened: Open) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(status=302, headers={"Location": f"/{REPO}/resolve/main/{PATH}"})
    with pytest.raises(HubError, match="circles"):
        read_bytes(opened(hub, content), 0, KIB)


def test_expired_links_are_renewed(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content, cdn=True)
    source = opened(hub, content)
    read_bytes(source, 0, 10)
    read_bytes(source, 300 * KIB, 10)
    assert len(hub.asked(host="hub")) == 1  # the link is kept
    hub.expire_links()
    assert bytes(read_bytes(source, MIB - 10, 10)) == content[-10:]
    assert len(hub.asked(host="hub")) == 2


def test_many_requests_at_once_survive_an_expired_link(start: Start, opened: Open) -> None:
    content = noise(8 * MIB)
    hub = start(content, cdn=True)
    source = opened(hub, content)
    read_bytes(source, 0, 10)
    hub.expire_links()
    hub.misbehave(host="cdn", delay=0.02)
    ranges = [(n * 200 * KIB, n * 200 * KIB + 10) for n in range(1, 41)]
    source.prefetch(ranges)
    assert all(bytes(read_bytes(source, a, b - a)) == content[a:b] for a, b in ranges)
    assert len(hub.asked(host="hub")) <= 1 + 8  # each of those in flight, not each of all


def test_the_token_stays_on_the_hub(start: Start, opened: Open) -> None:
    content = noise(MIB)
    hub = start(content, cdn=True)
    hub.tokens[REPO] = "hf_secret"
    source = opened(hub, content, headers={"authorization": "Bearer hf_secret", "User-Agent": "x"})
    read_bytes(source, 0, 10)
    read_bytes(source, MIB - 10, 10)
    hub.expire_links()
    read_bytes(source, 500 * KIB, 10)
    at_hub, at_cdn = hub.asked(host="hub"), hub.asked(host="cdn")
    assert {request.headers.get("authorization") for request in at_hub} == {"Bearer hf_secret"}
    assert len(at_cdn) == 4
    assert not any("authorization" in request.headers for request in at_cdn)
    assert not any("hf_secret" in str(request) for request in at_cdn)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "RepoNotFound", "hf auth login"),
        (401, "", "hf auth login"),
        (403, "GatedRepo", "accept its terms"),
        (403, "", "access denied"),
        (404, "RepoNotFound", "no such repository"),
        (404, "EntryNotFound", "no such file"),
        (404, "RevisionNotFound", "no such revision"),
        (418, "", "HTTP 418"),
    ],
)
def test_refusals_are_one_line_with_a_remedy(
    start: Start, opened: Open, status: int, code: str, says: str
) -> None:
    content = noise(KIB)
    hub = start(content)
    hub.misbehave(status=status, headers={"X-Error-Code": code})
    with pytest.raises(HubError, match=says) as caught:
        read_bytes(opened(hub, content), 0, KIB)
    assert len(hub.requests) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("hf://owner/model/model.ckpt: ")


# The temporary file


def test_it_is_sparse_unlinked_and_closed(
    tmp_path: Path, start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    path = sparse(tmp_path / "big", 1 << 30, {})
    hub = start(path)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    source = opened(hub, path)
    read_bytes(source, 0, 10)
    status = os.fstat(source._file._file.fileno())
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 < MIB
    assert not list(place.iterdir())
    source.check_unchanged()
    source.close()
    source.close()


def test_a_full_disk_is_no_network_error(
    start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(KIB)
    hub = start(content)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(system, "write_at", full)
    with pytest.raises(OutputError, match="No space left"):
        read_bytes(opened(hub, content), 0, KIB)
    assert len(hub.requests) == 1


def test_a_temporary_folder_that_is_missing_is_no_bug(
    tmp_path: Path, start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match="TMPDIR"):
        opened(start(b"x"), b"x")


def test_interval_sets_agree_with_plain_sets() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        intervals, plain = Intervals(), set[int]()
        for _ in range(12):
            low = rng.randrange(60)
            high = rng.randrange(low, 61)
            intervals.add(low, high)
            plain |= set(range(low, high))
            start = rng.randrange(60)
            end = rng.randrange(start, 61)
            gaps = intervals.gaps(start, end)
            assert [n for a, b in gaps for n in range(a, b)] == [
                n for n in range(start, end) if n not in plain
            ]
            assert all(a < b for a, b in gaps)
            assert all(left[1] < right[0] for left, right in pairwise(gaps))


def test_reading_and_prefetching_at_once(start: Start, opened: Open) -> None:
    content = noise(4 * MIB)
    hub = start(content)
    source = opened(hub, content)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            low = rng.randrange(4 * MIB - 1000)
            if bytes(read_bytes(source, low, 1000)) != content[low : low + 1000]:
                wrong.append(low)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    source.prefetch([(0, 2 * MIB)])
    for thread in threads:
        thread.join()
    assert not wrong
    assert hub.bytes_served <= 4 * MIB
