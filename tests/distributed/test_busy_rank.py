"""What rank 0 does for all, for longer than ranks wait for each other."""

import time
from collections.abc import Callable

import pytest

from videornn.distributed.ranks import from_busy_rank_0, rank
from videornn.distributed.watch import RankWatch
from videornn.errors import UserError

TIMEOUT = 2.0


def _busy_for(watch: RankWatch, seconds: float, end: Callable[[], str]) -> str:
    """What all ranks get of a function of rank 0 that is busy for so long."""

    def work(busy: Callable[[], None]) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            busy()
            time.sleep(0.01)
        return end()

    return from_busy_rank_0(work)


def _done() -> str:
    return f"of rank {rank()}"


def _wrong() -> str:
    raise UserError("list.txt:3: wrong", "list.txt:4: wrong")


def _stuck() -> str:
    time.sleep(600)
    return "never"


def test_what_rank_0_returns_reaches_all(start_ranks) -> None:
    assert start_ranks(3, _busy_for, 0.0, _done, timeout=300.0).results() == ["of rank 0"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "result"), [(_done, "of rank 0"), (_wrong, "UserError: list.txt:3: wrong | list.txt:4: wrong")]
)
def test_ranks_wait_for_a_busy_one_for_longer_than_the_timeout(start_ranks, end: Callable[[], str], result: str) -> None:
    assert start_ranks(2, _busy_for, 3 * TIMEOUT, end, timeout=TIMEOUT).results() == [result] * 2


@pytest.mark.slow
def test_a_rank_0_that_was_busy_and_is_stuck_is_waited_for_no_longer_than_the_timeout(start_ranks) -> None:
    begun = time.monotonic()
    ranks = start_ranks(2, _busy_for, TIMEOUT, _stuck, timeout=TIMEOUT)
    assert ranks.result(1).startswith("RankFailure: a collective failed") and time.monotonic() - begun < 60
