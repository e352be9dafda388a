"""Which tests are left to ``make test-all``: each of them takes ten seconds, or is one of many."""

from __future__ import annotations

import pytest

SLOW = (
    "tests/checkpoint/test_layout_out.py::test_more_records_than_short_fields_count[65534]",
    "tests/checkpoint/test_layout_out.py::test_more_records_than_short_fields_count[65536]",
    "tests/checkpoint/test_mutants.py::test_mutants_convert_or_are_refused[torch legacy]",
    "tests/evaluate/test_evaluation.py::test_the_whole_inception_runs_from_the_command_line",
    "tests/evaluate/test_resume.py::test_a_run_that_is_killed_again_and_again",
    "tests/publish/test_loopback_hub.py::test_what_runs_against_the_real_hub_passes_here",
    "tests/publish/test_release.py::test_from_a_step_does_it_and_what_follows_again",
    # Of thirteen places to be killed at, the others stay.
    *(
        f"tests/publish/test_release.py::test_killed_anywhere_it_finishes_with_one_commit[{number}]"
        for number in (1, 2, 3, 5, 6, 8, 9, 11, 12)
    ),
    "tests/checkpoint/test_unpickle.py::test_malformed[4e304e304e304e304e304e30-complex]",
    "tests/checkpoint/test_unpickle.py::test_malformed[5d5d5d5d5d5d5d5d5d5d5d5d-complex]",
    "tests/test_corpus.py::test_malformed[pickle_dup_bomb]",
    "tests/test_corpus.py::test_malformed[pickle_many_prefixes]",
    "tests/test_corpus.py::test_malformed[pickle_nested_tuples]",
    "tests/test_corpus.py::test_malformed[st_json_many_lists]",
    "tests/test_corpus.py::test_malformed[tensor_aliased_bomb]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
