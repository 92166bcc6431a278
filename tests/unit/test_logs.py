"""Log lines with the stage and the step that they are about."""

import logging
import threading

import pytest

from rayexp import logs
from rayexp.errors import PermanentError, StageError, error_context


@pytest.fixture
def written(capsys):
    """Return a function that reads this process's lines on standard error. Restore the logger afterwards."""
    logger = logging.getLogger("rayexp")
    before = (logger.handlers, logger.propagate)
    yield lambda: capsys.readouterr().err.splitlines()
    logger.handlers, logger.propagate = before


log = logging.getLogger("rayexp.some.module")


def test_a_line_bears_the_innermost_place(written):
    logs.configure_worker_logging()
    log.warning("before")
    with error_context(lambda: "a/pretrain, step 3"):
        log.warning("a disk is %s", "slow")
        with logs.log_context(lambda: "a/pretrain, publishing"):
            log.warning("slower")
        log.error("full")
    log.warning("after")
    assert written() == [
        "WARNING before",
        "WARNING a/pretrain, step 3: a disk is slow",
        "WARNING a/pretrain, publishing: slower",
        "ERROR a/pretrain, step 3: full",
        "WARNING after",
    ]


def test_an_actor_that_was_told_no_place_names_its_call(written):
    logs.configure_worker_logging(lambda: "a/pretrain/grpo-ood-b1: generate")
    log.warning("slow")
    with logs.log_context(lambda: "a/pretrain/grpo-ood-b1, step 2"):
        log.warning("slow")
    assert written() == [
        "WARNING a/pretrain/grpo-ood-b1: generate: slow",
        "WARNING a/pretrain/grpo-ood-b1, step 2: slow",
    ]


def test_a_process_that_serves_many_trials_says_each_thing_once(written):
    for _ in range(3):
        logs.configure_worker_logging()
    log.info("of no interest")
    log.warning("once")
    assert written() == ["WARNING once"]


@pytest.mark.parametrize("error", [PermanentError, StageError, KeyError])
def test_a_place_is_left_when_its_block_fails(error):
    seen = []

    def fail():
        with error_context(lambda: "here"):
            seen.append(logs.current_location())
            raise error("why")

    with pytest.raises((PermanentError, StageError)):
        fail()
    assert [*seen, logs.current_location()] == ["here", ""]


def test_threads_have_places_of_their_own():
    seen = []
    with logs.log_context(lambda: "here"):
        thread = threading.Thread(target=lambda: seen.append(logs.current_location()))
        thread.start()
        thread.join()
    assert seen == [""]
