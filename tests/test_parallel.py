"""Workers crash and hang, and the run goes on. This file imports no torch, so that its workers start at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from videornn.data.files import replacing
from videornn.data.parallel import Lost, run_parallel
from videornn.errors import UserError


def square(number: int) -> int:
    return number * number


def crash_or_hang(number: int) -> int:
    """What a decoder can do to a process."""
    if number == 3:
        os._exit(9)
    if number == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 7:
        time.sleep(600)
    return square(number)


def refuse(number: int) -> int:
    raise UserError(f"{number} is refused")


def leave_temporary(folder: str) -> None:
    with replacing(Path(folder) / "a.txt") as temporary:
        temporary.touch()
        time.sleep(600)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_item_has_its_result_for_any_number_of_workers(num_workers: int) -> None:
    results = dict(run_parallel(square, range(10), num_workers=num_workers))
    assert results == {index: index**2 for index in range(10)}


def test_a_crash_and_a_hang_lose_their_item_and_no_other() -> None:
    results = dict(run_parallel(crash_or_hang, range(10), num_workers=2, timeout_seconds=2))
    lost = {index: result for index, result in results.items() if isinstance(result, Lost)}
    assert {index: result.kind for index, result in lost.items()} == {3: "crashed", 5: "crashed", 7: "timeout"}
    assert "exit code 9" in lost[3].reason and "SIGSEGV" in lost[5].reason and "2 s" in lost[7].reason
    assert {i: r for i, r in results.items() if i not in lost} == {i: i**2 for i in range(10) if i not in lost}


def test_what_the_function_raises_is_raised_here() -> None:
    with pytest.raises(UserError, match="0 is refused"):
        list(run_parallel(refuse, [0], num_workers=1))


def test_a_worker_that_is_ended_takes_its_temporary_files_away(tmp_path: Path) -> None:
    ((_, result),) = run_parallel(leave_temporary, [str(tmp_path)], num_workers=1, timeout_seconds=1)
    assert isinstance(result, Lost) and list(tmp_path.iterdir()) == []
