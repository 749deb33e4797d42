"""Workers crash and hang, and the run goes on. This file imports no torch, so that its workers start at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from videornn.errors import UserError
from videornn.system import workers
from videornn.system.files import replacing
from videornn.system.workers import GeneratorWorker, Lost, WorkerLost, run_parallel


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


def count(start: int, bad: str = "") -> Iterator[tuple[int, int]]:
    """Numbers with the process that they are of, up to what is bad at the third."""
    for number in range(start, start + 4):
        if number == start + 2 and bad:
            {"refuse": refuse, "crash": lambda _: os._exit(9), "hang": lambda _: time.sleep(600)}[bad](number)
        yield number, os.getpid()


def refuse(number: int) -> int:
    raise UserError(f"{number} is refused")


def keep(number: int) -> int:
    """The process, which keeps much for good at the first item, as after a video of millions of packets."""
    if number == 0:
        keep.kept = b"x" * 10**8
    return os.getpid()


def keep_in_turn(number: int) -> Iterator[int]:
    yield keep(number)
    yield keep(number + 1)


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


def test_generators_run_one_after_the_other_in_one_process() -> None:
    with GeneratorWorker(60) as worker:
        first, second = list(worker.iterate(count, 0)), list(worker.iterate(count, 10))
        with pytest.raises(UserError, match="22 is refused"):
            list(worker.iterate(count, 20, "refuse"))
        third = list(worker.iterate(count, 30))
    assert [number for number, _ in first + second + third] == [0, 1, 2, 3, 10, 11, 12, 13, 30, 31, 32, 33]
    (process,) = {process for _, process in first + second + third}
    assert process != os.getpid()


@pytest.mark.parametrize(("bad", "message"), [("crash", r"ended \(exit code 9\)"), ("hang", "took longer than 1 s")])
def test_a_generator_that_costs_the_process_has_given_what_came_before_and_the_next_has_a_new_one(
    bad: str, message: str
) -> None:
    with GeneratorWorker(60) as worker:
        seen = []
        with pytest.raises(WorkerLost, match=message):
            for item in worker.iterate(count, 0, bad):
                seen.append(item)
                if len(seen) == 2:
                    worker.timeout_seconds = 1
        assert [number for number, _ in seen] == [0, 1]
        worker.timeout_seconds = 60
        assert {process for _, process in worker.iterate(count, 5)} != {process for _, process in seen}


def test_a_generator_that_nobody_follows_to_its_end_does_not_get_into_the_way_of_the_next() -> None:
    with GeneratorWorker(60) as worker:
        items = worker.iterate(count, 0)
        assert next(items)[0] == 0
        items.close()
        assert [number for number, _ in worker.iterate(count, 5)] == [5, 6, 7, 8]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_worker_that_keeps_much_memory_gives_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GROWN_BYTES", 5 * 10**7)
    processes = dict(run_parallel(keep, range(4), num_workers=1))
    assert processes[0] != processes[1] == processes[2] == processes[3]
    with GeneratorWorker(60) as worker:
        first, second, third = (list(worker.iterate(keep_in_turn, number)) for number in (0, 1, 2))
    assert len(set(first)) == 1 and len({*second, *third}) == 1 and first[0] != second[0]


def test_workers_start_where_no_server_of_them_can(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # sockets have names of 107 bytes at most
    folder.mkdir()
    program = (
        "from videornn.system.workers import run_parallel\n"
        "if __name__ == '__main__': print(dict(run_parallel(len, ['a', 'bc'], num_workers=2)))"
    )
    (tmp_path / "script.py").write_text(program)
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) in {("{0: 1, 1: 2}\n", ""), ("{1: 2, 0: 1}\n", "")}
