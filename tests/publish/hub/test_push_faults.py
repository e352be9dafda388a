"""Whatever fails once or for ever: never two commits, and never a push that has no end."""

from __future__ import annotations

import gc
import itertools
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.publish.pushes import (
    PLAIN,
    TOKEN,
    Pushes,
    contents_of,
    make_release,
    run_push,
    sent_paths,
    start_push,
    state_of,
    uploaded,
    wait_for,
)
from tests.support.loopback_hub import (
    FOREVER,
    Action,
    Call,
    Cut,
    Drop,
    Garbage,
    Hang,
    LoopbackHub,
    Status,
    Trickle,
)
from tests.support.slow import slow_row, some_slow
from vaeconv.errors import HubError
from vaeconv.publish.hub import session as hub_session
from vaeconv.publish.hub.session import Deadline

# The client's own, of how it uploads.
pytestmark = pytest.mark.filterwarnings(r"ignore:Use 'content=:DeprecationWarning")

# Which requests: method, path, host.
STAGES: dict[str, dict[str, str]] = {
    "look": {"method": "GET", "path": "/revision/main"},
    "create": {"method": "POST", "path": "/api/repos/create"},
    "tree": {"method": "GET", "path": "/tree/"},
    "validate": {"method": "POST", "path": "/validate-yaml"},
    "preupload": {"method": "POST", "path": "/preupload/"},
    "batch": {"method": "POST", "path": "/objects/batch"},
    "put": {"method": "PUT", "host": "storage"},
    "complete": {"method": "POST", "path": "/complete_multipart"},
    "verify": {"method": "POST", "path": "/objects/verify"},
    "commit": {"method": "POST", "path": "/commit/"},
    "refs": {"method": "GET", "path": "/refs"},
    "tag": {"method": "POST", "path": "/tag/"},
    "resolve": {"path": "/resolve/"},
    "download": {"method": "GET", "path": "/blob/", "host": "storage"},
}
FAULTS: dict[str, Action] = {
    "429": Status(429, {"Retry-After": "1"}),
    "500": Status(500, body=b"<html>oops"),
    "502": Status(502, body=b""),
    "503": Status(503, {"Retry-After": "1"}),
    "504": Status(504),
    "reset before": Drop("before"),
    "reset in the middle": Drop("middle"),
    "reset after": Drop("after"),
    "reset when done": Drop("done"),
    "cut": Cut(1),
    "garbage": Garbage(),
}


def assert_published(pushes: Pushes) -> None:
    """All is there, by one commit, with the tag on it, and nothing is left to do."""
    repo = pushes.repo
    assert repo.commit_count() == 1
    assert repo.files() == pushes.contents
    assert repo.tags == {"v1": repo.head()}
    before = state_of(pushes.hub)
    again = pushes.run(tag="v1", verify=True)
    assert (again.is_new, again.changed, again.oid) == (False, (), repo.head())
    assert state_of(pushes.hub) == before


def assert_one_line(error: HubError) -> None:
    text = str(error)
    assert "\n" not in text and "; " in text, "one line with a remedy"
    assert TOKEN not in text


# --- any fault, once and for ever ---


# These faults in these requests are left to make test-all: where it matters most, all faults stay.
OTHER_STAGES = (
    "create", "tree", "validate", "preupload", "batch", "complete", "verify", "refs", "tag",
    "resolve", "download",
)  # fmt: skip
OTHER_FAULTS = ("429", "500", "502", "504", "reset before", "reset after")


@pytest.mark.parametrize(
    ("stage", "fault"),
    some_slow(
        itertools.product(STAGES, FAULTS), list(itertools.product(OTHER_STAGES, OTHER_FAULTS))
    ),
)
def test_any_single_fault_leaves_one_commit(pushes: Pushes, stage: str, fault: str) -> None:
    rule = pushes.hub.add_rule(FAULTS[fault], **STAGES[stage])
    done = pushes.run(tag="v1", verify=True)
    assert rule.seen >= 1, "the fault did not happen"
    assert (done.is_new, done.is_verified, done.tag) == (True, True, "v1")
    assert done.oid == pushes.repo.head()
    assert_published(pushes)


@pytest.mark.parametrize("fault", ["429", "500", "reset in the middle", "reset when done", "cut"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_lasting_fault_is_one_line_and_the_next_push_finishes(
    pushes: Pushes, stage: str, fault: str
) -> None:
    rule = pushes.hub.add_rule(FAULTS[fault], times=FOREVER, **STAGES[stage])
    try:
        pushes.run(tag="v1", verify=True)
    except HubError as error:
        assert_one_line(error)
        assert error.exit_code == 6
    else:
        # What was done though no answer came: nothing more is needed than to look. And of what
        # lies in storage already, no verification is asked for.
        done_anyway = fault in ("reset when done", "cut")
        stages = ("create", "put", "complete", "commit", "tag") if done_anyway else ()
        assert stage in (*stages, "verify"), "it did not fail"
    assert 1 <= rule.seen < 60, "it tries without end"
    if pushes.repo_id in pushes.hub.repos:
        assert pushes.repo.commit_count() <= 1
    pushes.hub.rules.clear()
    pushes.run(tag="v1", verify=True)
    assert_published(pushes)


def test_a_port_that_nobody_listens_on(pushes: Pushes, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for address in ("http://127.0.0.1:9", "http://hub.invalid"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(HubError, match=r"no answer from the Hub .*check the network") as caught:
            pushes.run()
        assert_one_line(caught.value)
    assert pushes.slept


# --- lost answers ---


@pytest.mark.parametrize(
    "action", [Drop("done"), Cut(0), Cut(20), Hang("done")], ids=["drop", "cut", "late", "hang"]
)
def test_a_commit_whose_answer_is_lost_is_recognised(
    pushes: Pushes, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_session, "TIMEOUT", 0.5)
    pushes.hub.add_rule(action, times=FOREVER, **STAGES["commit"])
    done = pushes.run(tag="v1")
    assert len(pushes.hub.asked("POST", "/commit/")) == 1
    assert (done.is_new, done.oid) == (True, pushes.repo.head())
    pushes.hub.rules.clear()
    assert_published(pushes)


def test_a_lost_answer_on_another_branch(pushes: Pushes) -> None:
    pushes.hub.add_rule(Drop("done"), **STAGES["commit"])
    done = pushes.run(revision="next")
    assert done.oid == pushes.repo.head("next")
    assert (pushes.repo.commit_count("next"), pushes.repo.commit_count()) == (1, 0)


def test_a_lost_answer_and_a_hub_that_cannot_be_asked(pushes: Pushes) -> None:
    pushes.hub.add_rule(Drop("done"), **STAGES["commit"])
    pushes.hub.add_rule(Drop("after"), times=FOREVER, method="GET", path="/commits/")
    with pytest.raises(HubError, match="the answer to the commit was lost") as caught:
        pushes.run(tag="v1")
    assert_one_line(caught.value)
    assert pushes.repo.commit_count() == 1
    pushes.hub.rules.clear()
    pushes.run(tag="v1")
    assert_published(pushes)


def test_a_failed_commit_where_nobody_may_look(pushes: Pushes) -> None:
    """It may be tried again: it names its parent, and would be refused a second time."""
    pushes.hub.add_rule(Status(503), **STAGES["commit"])
    pushes.hub.add_rule(Status(403), times=FOREVER, method="GET", path="/commits/")
    assert pushes.run().is_new
    assert (pushes.repo.commit_count(), pushes.repo.files()) == (1, pushes.contents)


def test_a_lost_answer_and_somebody_on_top_of_it(pushes: Pushes) -> None:
    """The commit that is ours is the one that followed the head, not the head of now."""
    made: list[str] = []

    def push_on_top() -> None:
        made.append(pushes.repo.head())
        pushes.hub.move_head(pushes.repo_id, {"config.json": b"{}"})

    pushes.hub.add_rule(Call(after=push_on_top), Drop("done"), **STAGES["commit"])
    done = pushes.run(tag="v1")
    assert made
    assert (done.is_new, done.oid) == (True, made[0])
    assert pushes.repo.tags == {"v1": made[0]}
    assert pushes.repo.commit_count() == 2
    assert len(pushes.hub.asked("POST", "/commit/")) == 1


def test_a_pull_request_whose_answer_is_lost_is_recognised(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id)
    pushes.hub.add_rule(Drop("done"), **STAGES["commit"])
    done = pushes.run(create_pr=True)
    assert pushes.repo.pulls == {1: done.oid}
    assert (done.is_new, done.url) == (
        True,
        f"{pushes.hub.endpoint}/{pushes.repo_id}/discussions/1",
    )


def test_a_pull_request_that_was_not_made_is_not_asked_for_again(pushes: Pushes) -> None:
    """Without a parent to refuse it, a second try could make a second one."""
    pushes.hub.create_repo(pushes.repo_id)
    pushes.hub.add_rule(Drop("before"), times=FOREVER, **STAGES["commit"])
    with pytest.raises(HubError) as caught:
        pushes.run(create_pr=True)
    assert_one_line(caught.value)
    assert len(pushes.hub.asked("POST", "/commit/")) == 1
    pushes.hub.rules.clear()
    pushes.run(create_pr=True)
    assert len(pushes.repo.pulls) == 1


# --- somebody else ---


def test_what_somebody_else_pushed_meanwhile_is_left(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id, {"README.md": b"---\nlicense: mit\n---\nFirst\n"})
    theirs = {"README.md": b"---\nlicense: mit\n---\nTheirs\n"}
    pushes.hub.add_rule(
        Call(lambda: pushes.hub.move_head(pushes.repo_id, theirs)), **STAGES["commit"]
    )
    with pytest.raises(HubError, match=r"somebody else pushed .*\(412.*push again") as caught:
        pushes.run(tag="v1", card="replace")
    assert_one_line(caught.value)
    assert pushes.repo.files() == theirs
    assert (pushes.repo.commit_count(), pushes.repo.tags) == (2, {})
    assert len(pushes.hub.asked("POST", "/commit/")) == 1


def test_somebody_else_and_a_failing_hub_together(pushes: Pushes) -> None:
    """A commit that is tried again follows the same head as before."""
    pushes.hub.create_repo(pushes.repo_id, {"other.txt": b"first"})
    moved = Call(lambda: pushes.hub.move_head(pushes.repo_id))
    pushes.hub.add_rule(moved, Status(503), **STAGES["commit"])
    with pytest.raises(HubError, match="412"):
        pushes.run()
    assert set(pushes.repo.files()) == {"other.txt", "by-somebody-else.txt"}


def test_the_same_files_by_somebody_else_are_no_failure(pushes: Pushes) -> None:
    pushes.hub.create_repo(pushes.repo_id, {"other.txt": b"first"})
    pushes.hub.add_rule(
        Call(lambda: pushes.hub.move_head(pushes.repo_id, pushes.contents)), **STAGES["commit"]
    )
    pushes.run()
    assert pushes.repo.commit_count() == 2
    assert pushes.repo.commit().author == "somebody"


# --- waits that a server asks for ---


@pytest.mark.parametrize("stage", ["put", "commit", "look"])
@pytest.mark.parametrize(
    "asked",
    ["86400", "9" * 5000, "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "-5", "1e9", "", "3600.5"],
    ids=lambda asked: asked[:8],
)
@pytest.mark.parametrize("status", [429, 503])
def test_no_server_makes_it_wait_for_long(
    pushes: Pushes, stage: str, asked: str, status: int
) -> None:
    headers = {"Retry-After": asked, "RateLimit": '"api";r=0;t=86400'}
    pushes.hub.add_rule(Status(status, headers), times=2, **STAGES[stage])
    pushes.run(tag="v1")
    assert pushes.slept
    assert max(pushes.slept) <= hub_session.MAX_WAIT + 1
    assert (pushes.repo.commit_count(), pushes.repo.files()) == (1, pushes.contents)


def test_a_short_wait_is_obeyed(pushes: Pushes) -> None:
    pushes.hub.add_rule(Status(429, {"Retry-After": "17"}), **STAGES["put"])
    pushes.run()
    assert pushes.slept == [18.0]


# --- servers that are slow ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_silent_server_is_given_up(
    pushes: Pushes, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_session, "TIMEOUT", 0.2)
    pushes.hub.add_rule(Hang(), **STAGES[stage])
    pushes.run(tag="v1", verify=True, timeout=15.0)
    pushes.hub.rules.clear()
    monkeypatch.setattr(hub_session, "TIMEOUT", 20)
    assert_published(pushes)


def test_a_server_that_is_silent_for_ever(pushes: Pushes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "TIMEOUT", 0.1)
    pushes.hub.add_rule(Hang(), times=FOREVER)
    with pytest.raises(HubError, match="no answer from the Hub") as caught:
        pushes.run(timeout=15.0)
    assert_one_line(caught.value)
    assert 1 < len(pushes.hub.requests) < 20


def end_left_behind() -> None:
    """See threads that were left behind to their end, and what they held open."""
    for thread in threading.enumerate():
        if isinstance(thread, hub_session.Worker) and thread.is_left:
            thread.join(20)
    gc.collect()


# Connections of a thread that was left behind are closed when they are collected: here.
left_behind = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@left_behind
@pytest.mark.parametrize("stage", [slow_row("look"), slow_row("put"), "commit"])
def test_a_trickle_ends_with_the_time_for_everything(pushes: Pushes, stage: str) -> None:
    pushes.hub.add_rule(Trickle(0.2), times=FOREVER, **STAGES[stage])
    started = time.monotonic()
    with pytest.raises(HubError, match="not done within 1 seconds; run again"):
        pushes.run(timeout=1.0)
    assert time.monotonic() - started < 30
    end_left_behind()


@left_behind
@pytest.mark.parametrize("again", [False, True])
def test_no_request_is_begun_after_the_time(pushes: Pushes, again: bool) -> None:
    """The thread that was left behind makes no commit later."""
    from huggingface_hub import HfApi

    pushes.hub.create_repo(pushes.repo_id)
    gate = threading.Event()
    pushes.hub.add_rule(Call(lambda: gate.wait(20)), **STAGES["put"])
    started = threading.Timer(3, gate.set)
    started.start()
    with pytest.raises(HubError, match="not done within 1 seconds"):
        pushes.run(timeout=1.0)
    # For everybody else in this process the client is as ever, and so it is in the next push.
    pushes.hub.rules.clear()
    assert HfApi().model_info(pushes.repo_id).sha == pushes.repo.head()
    if again:
        pushes.hub.add_rule(Call(lambda: (gate.set(), time.sleep(1))), **STAGES["look"])
        assert pushes.run().is_new
    started.join()
    time.sleep(0.5)
    assert len(pushes.hub.asked("POST", f"/{pushes.repo_id}/commit/")) == again
    assert pushes.repo.commit_count() == again
    end_left_behind()


# --- runs that are stopped ---


def test_a_killed_push_is_finished_by_the_next(hub: LoopbackHub, tmp_path: Path) -> None:
    folder, hang = make_release(tmp_path / "release"), Hang()
    repo_id, env = "user/killed", hub.env(tmp_path / "home")
    hub.add_rule(hang, **STAGES["commit"])
    process = start_push(env, folder, repo_id)
    try:
        wait_for(lambda: hub.asked("POST", "/commit/"), process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert hub.repo(repo_id).commit_count() == 0
    assert uploaded(hub) > (folder / PLAIN).stat().st_size
    hub.requests.clear()
    done = run_push(env, folder, repo_id)
    assert done.returncode == 0, done.stderr
    assert uploaded(hub) == 0, "it was uploaded already"
    assert sorted(sent_paths(hub)) == sorted(contents_of(folder))
    assert hub.repo(repo_id).commit_count() == 1
    assert hub.repo(repo_id).files() == contents_of(folder)


def test_an_interrupted_push_ends_at_once(hub: LoopbackHub, tmp_path: Path) -> None:
    folder, repo_id = make_release(tmp_path / "release"), "user/interrupted"
    hub.add_rule(Hang(), **STAGES["preupload"])
    process = start_push(hub.env(tmp_path / "home"), folder, repo_id)
    try:
        wait_for(lambda: hub.asked("POST", "/preupload/"), process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.count("\n") == 1 and "interrupted" in errors, errors
    assert output == ""
    assert hub.repo(repo_id).commit_count() == 0


# --- what decides about trying again ---


class Refused(Exception):
    """An answer of the Hub, as the client's exceptions carry it."""

    def __init__(self, status: int, message: str | None = None) -> None:
        from types import SimpleNamespace

        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)
        self.server_message = message


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = error
    return outer


def no_answer() -> Exception:
    import httpx2

    return httpx2.ReadTimeout("nothing came")


def test_the_status_is_found_through_what_wraps_it() -> None:
    assert hub_session.status_of(Refused(403)) == 403
    assert hub_session.status_of(wrapped(wrapped(Refused(413)))) == 413
    assert hub_session.status_of(wrapped(no_answer())) is None
    assert hub_session.status_of(ValueError("x")) is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (no_answer(), True),
        (wrapped(no_answer()), True),
        (OSError("reset"), True),
        *((Refused(status), True) for status in (408, 412, 429, 500, 502, 503, 504)),
        *((Refused(status), False) for status in (400, 401, 403, 404, 409, 413, 422)),
        (wrapped(Refused(403)), False),
        (ValueError("Invalid metadata in README.md.\n- bad"), False),
    ],
    ids=repr,
)
def test_what_leaves_open_whether_it_was_done(error: Exception, lost: bool) -> None:
    assert hub_session.is_lost(error) is lost


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (no_answer(), 4),
        (wrapped(Refused(503)), 4),
        (OSError("no route"), 4),
        *((Refused(status), 4) for status in (408, 429, 500, 502, 503, 504)),
        *((Refused(status), 1) for status in (400, 401, 403, 404, 409, 412, 413, 501)),
        (HubError("the time is over"), 1),
        (ValueError("a mistake"), 1),
        (KeyError("a mistake"), 1),
    ],
    ids=repr,
)
def test_only_what_may_be_asked_again_is(
    error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(hub_session.time, "sleep", slept.append)
    asked = []

    def call() -> None:
        asked.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        hub_session.ask(call, hub_session.Deadline())
    assert caught.value is error
    assert len(asked) == tries
    assert slept == [*hub_session.WAITS][: tries - 1]


def test_asking_again_stops_with_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session.time, "sleep", lambda seconds: None)
    answers: list[Any] = [Refused(503), no_answer(), "found", "more"]

    def call() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert hub_session.ask(call, hub_session.Deadline()) == "found"
    assert answers == ["more"]


def test_asking_again_ends_with_the_time() -> None:
    def call() -> None:
        raise OSError("reset")

    with pytest.raises(HubError, match="not done within -1 seconds"):
        hub_session.ask(call, hub_session.Deadline(-1))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "rejects"),
        (401, "hf auth login"),
        (403, "write access"),
        (404, "no such repository"),
        (409, "choose another name"),
        (412, "somebody else"),
        (413, "leave it out with exclude"),
        (429, "fewer requests"),
        (500, "the Hub failed"),
        (503, "the Hub failed"),
    ],
)
def test_every_status_has_a_remedy(status: int, said: str) -> None:
    for error in (Refused(status, "because"), wrapped(Refused(status))):
        found = hub_session.explain(error, "user/name")
        assert said in str(found) and f"({status}" in str(found)
        assert found.where == "user/name" and found.hint
        assert "\n" not in str(found)
    if status < 500:
        assert "because" in str(hub_session.explain(Refused(status, "because"), "user/name"))


def test_a_refused_card_and_no_answer_are_told_apart() -> None:
    card = hub_session.explain(ValueError("Invalid metadata in README.md.\n- bad\n"), "user/name")
    assert "front matter: Invalid metadata in README.md. - bad; fix" in str(card)
    silence = hub_session.explain(no_answer(), "user/name")
    assert "no answer from the Hub (ReadTimeout); check the network" in str(silence)


def test_work_within_a_time() -> None:
    assert hub_session.within(Deadline(20), lambda: "done") == "done"
    assert hub_session.within(Deadline(20), lambda: None) is None
    with pytest.raises(KeyError, match="mine"):
        hub_session.within(Deadline(20), lambda: {}["mine"])
    gate = threading.Event()
    try:
        with pytest.raises(HubError, match="not done within 0 seconds"):
            hub_session.within(Deadline(0), lambda: gate.wait(30))
    finally:
        gate.set()


def test_the_client_is_as_it_was_afterwards(pushes: Pushes) -> None:
    from huggingface_hub.utils import get_session

    pushes.run()
    assert get_session().timeout.read != hub_session.TIMEOUT
    with pytest.raises(HubError, match="not done within 0 seconds"):
        pushes.run(timeout=1e-6)
    assert get_session().timeout.read != hub_session.TIMEOUT
    assert get_session().get(f"{pushes.hub.endpoint}/api/models/{pushes.repo_id}").is_success


def test_what_the_client_says_is_as_it_was_afterwards(pushes: Pushes) -> None:
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        pushes.run()
        assert logging.get_verbosity() == logging.INFO and not are_progress_bars_disabled()
        disable_progress_bars()
        pushes.run()
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
        logging.set_verbosity(before)
