"""Ranks that die, hang, stop together, or come twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import PROCESSES
from torch import nn

from videornn.distributed import signals
from videornn.distributed.ranks import (
    MOST_STEPS,
    StopVote,
    data_parallel,
    gather_objects,
    process_group,
    rank,
    sum_over_ranks,
)
from videornn.distributed.signals import caught_signals
from videornn.distributed.store import meet
from videornn.distributed.watch import RankWatch, Report, Seen, hanging_ranks, sentence_about, silent_ranks
from videornn.errors import RankFailure, UserError
from videornn.system.console import complain


def _walk(watch: RankWatch, at_step_3: Callable, faulty: int) -> str:
    """Ten steps of a collective; the faulty rank does something else at step 3."""
    for step in range(10):
        watch.at(step, "loading")
        if step == 3:
            while any(one.report.step < 3 for one in watch._seen):  # until every rank's report says so
                time.sleep(0.01)
            if rank() == faulty:
                at_step_3()
        watch.at(step, "computing")
        sum_over_ranks(torch.ones(1))
    return "done"


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleep() -> None:
    time.sleep(600)


def _user_error() -> None:
    raise UserError("list.txt:3: no label", "list.txt:4: no path")


def _bug() -> None:
    raise MemoryError("9 GB")


@pytest.mark.parametrize(("num_ranks", "faulty"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_the_other_ranks_name_one_that_was_killed(start_ranks, num_ranks: int, faulty: int) -> None:
    ranks = start_ranks(num_ranks, _walk, _kill, faulty, timeout=12.0)
    for number, result in enumerate(ranks.results()):
        if number == faulty:
            assert result == "exit code -9"
        else:
            assert result.startswith(f"RankFailure: rank {faulty} (") and f"process {ranks.pid(faulty)})" in result
            silence = re.search(r"has not been heard of since step \d, (\d+) s ago", result)
            assert int(silence[1]) < 11  # the closed connection tells, not the timeout


@pytest.mark.parametrize(("num_ranks", "faulty"), [(2, 0), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_stopped_rank_takes_the_others_down_within_the_timeout_and_is_named(
    start_ranks, num_ranks: int, faulty: int
) -> None:
    ranks = start_ranks(num_ranks, _walk, _stop, faulty)
    others = [number for number in range(num_ranks) if number != faulty]
    for result in map(ranks.result, others):
        assert result.startswith(f"RankFailure: rank {faulty} (") and "has not been heard of since step 3" in result
    assert ranks.processes[faulty].is_alive()


def test_a_rank_that_lives_but_does_not_go_on_is_named_by_what_it_is_at(start_ranks) -> None:
    ranks = start_ranks(2, _walk, _sleep, 1)
    assert f"rank 1 ({os.uname().nodename}, process {ranks.pid(1)}) has been loading after step 3 for" in ranks.result(0)


def test_a_user_error_of_one_rank_is_that_of_all(start_ranks) -> None:
    results = start_ranks(3, _walk, _user_error, 1, timeout=6.0).results()
    assert results == ["UserError: list.txt:3: no label | list.txt:4: no path"] * 3


def test_another_error_of_one_rank_is_told_by_the_others(start_ranks) -> None:
    ranks = start_ranks(2, _walk, _bug, 1, timeout=6.0)
    assert "rank 1 (" in ranks.result(0) and "ended after step 3: MemoryError: 9 GB" in ranks.result(0)


def _sleep_beside_a_stopped_rank(watch: RankWatch) -> None:
    watch.at(7, "computing")
    if rank() == 1:
        _stop()
    time.sleep(600)  # as a main thread that waits for its GPU


@pytest.mark.slow
def test_a_rank_whose_main_thread_cannot_see_the_loss_is_ended_by_its_watch(start_ranks) -> None:
    ranks = start_ranks(3, _sleep_beside_a_stopped_rank)
    assert [ranks.result(0), ranks.result(2)] == [f"exit code {RankFailure.exit_code}"] * 2
    assert ranks.said().count("videornn: rank 1 (") == 1  # the first one said it, the other was quiet


def _go_on_alone(watch: RankWatch) -> str:
    if rank() == 1:
        return "early"
    time.sleep(3)  # more than the three reports that a rank may miss
    return "late"


@pytest.mark.slow
def test_a_rank_that_is_done_early_is_not_missed(start_ranks) -> None:
    assert start_ranks(2, _go_on_alone, timeout=8.0).results() == ["late", "early"]


def _steps_until_signal(watch: RankWatch, signalled: dict[int, int], num_steps: int) -> str:
    """Which step a run of num_steps stops after, and for which signal; rank r gets SIGUSR1 in its step signalled[r]."""
    vote = StopVote(seconds=0)
    with caught_signals() as received:
        for step in range(1, num_steps + 1):
            if signalled.get(rank()) == step:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01 * rank())
            number = vote.decide(received[0] if received else 0, 10 * step + rank())
            if number:
                return f"{number} after {step}, {vote.largest}"
    return f"{vote.drain()} at the end, {step}, {vote.largest}"


@pytest.mark.parametrize(
    ("signalled", "end"),
    [
        ({1: 4}, "10 after 5, 42"),  # one step later, on all ranks
        ({0: 6, 2: 4}, "10 after 5, 42"),
        ({}, "0 at the end, 8, 82"),
        ({2: 8}, "10 at the end, 8, 82"),  # the run is complete then
    ],
)
def test_all_ranks_stop_after_the_same_step(start_ranks, signalled: dict[int, int], end: str) -> None:
    assert signal.SIGUSR1 == 10 and start_ranks(3, _steps_until_signal, signalled, 8, timeout=300.0).results() == [end] * 3


def _votes(watch: RankWatch, seconds: float) -> list[int]:
    """In which of 40 steps exchanges begin, and after which all stop; rank 1 is slower, and has a signal from step 20 on."""
    vote, begun = StopVote(seconds), []
    for step in range(1, 41):
        time.sleep(0.001 + 0.01 * rank())
        stop = vote.decide(15 if rank() == 1 and step >= 20 else 0)
        if vote._pending is not None:
            begun.append(step)
        if stop:
            return [*begun, step]
    return [vote.drain()]


def test_exchanges_are_rare_and_begin_and_end_in_the_same_steps_on_all_ranks(start_ranks) -> None:
    steps, others = (json.loads(result) for result in start_ranks(2, _votes, 0.08, timeout=300.0).results())
    assert steps == others
    *begun, last, stop = steps
    assert len(begun) < 15 and 20 <= last <= 20 + MOST_STEPS + 1 and stop == last + 1


def _say(watch: RankWatch) -> None:
    complain("the same")
    complain(f"of rank {rank()}")
    complain(f"a loss as rank {rank()} sees it", topic="loss")
    dist.barrier()


def test_what_several_ranks_have_to_say_is_said_once(start_ranks) -> None:
    ranks = start_ranks(3, _say, timeout=300.0)
    ranks.results()
    lines = ranks.said().splitlines()
    assert lines.count("videornn: the same") == 1 and sum("a loss as rank" in line for line in lines) == 1
    assert sorted(line for line in lines if "of rank" in line) == [f"videornn: of rank {number}" for number in range(3)]


def _gather(watch: RankWatch) -> str:
    return f"{gather_objects({'rank': rank()})} {sum_over_ranks(torch.tensor([rank() + 1.0])).item()}"


def test_objects_and_sums_reach_every_rank(start_ranks) -> None:
    assert start_ranks(2, _gather, timeout=300.0).results() == ["[{'rank': 0}, {'rank': 1}] 3.0"] * 2


def _network_of_rank(watch: RankWatch) -> list:
    """A weight, how many gradients it has, and count and mean of a norm, after a step before which ranks differ in all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.5), nn.Linear(1, 1))
        norm, weight = model[0], model[1].weight
        with torch.no_grad():
            weight.fill_(rank() + 1)
            norm.num_batches_tracked.fill_(10 * rank())
            norm.running_mean.fill_(4 * rank())
        parallel = data_parallel(model, torch.device("cpu"), static_graph=True)
        parallel(torch.tensor([[2.0], [4.0]])).sub(rank()).square().sum().backward()
    gradients = gather_objects(weight.grad.item())
    return [weight.item(), len(set(gradients)), norm.num_batches_tracked.item(), norm.running_mean.item()]


@pytest.mark.slow
def test_ranks_share_weights_and_gradients_and_each_keeps_its_buffers_without_a_word(start_ranks) -> None:
    ranks = start_ranks(2, _network_of_rank, timeout=300.0)
    assert [json.loads(result) for result in ranks.results()] == [[1.0, 1, 1, 1.5], [1.0, 1, 11, 3.5]]
    assert ranks.said() == ""


def _meet_and_tell(settings: dict[str, str], folder: Path) -> None:
    os.environ.update(settings)
    store = meet(20.0)
    used = store.check(["used"])
    store.set(settings["RANK"], "here")
    (folder / settings["RANK"]).write_text(f"{store.get('0').decode()} {store.get('1').decode()} {used}")
    store.set("used", "")


def test_ranks_that_are_started_again_do_not_read_what_those_before_wrote(tmp_path: Path) -> None:
    """The first life is cut short: rank 1 has asked and rank 0 never came."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for life in ([1], [0, 1], [0, 1]):
        ranks = [
            PROCESSES.Process(target=_meet_and_tell, args=(settings | {"RANK": str(number)}, tmp_path)) for number in life
        ]
        for process in ranks:
            process.start()
        if life == [1]:
            assert store.get("videornn/meet/ask/1")
            ranks[0].kill()
        for process in ranks:
            process.join(300)
        if life != [1]:
            assert [(tmp_path / str(number)).read_text() for number in life] == ["here here False"] * 2


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RankFailure, match=r"of 3 ranks, these did not come within 1 s: 1, 2"):
        meet(1.0)


def test_ranks_that_cannot_join_are_told_about_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    with (
        pytest.raises(RankFailure, match=r"rank 1 cannot join the others .* set GLOO_SOCKET_IFNAME"),
        process_group(torch.device("cpu"), 0.5),
    ):
        pass


def test_a_plain_process_votes_for_itself_and_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(torch.device("cpu")) as watch:
        watch.at(3, "loading")
        vote = StopVote()
        assert [vote.decide(0), vote.decide(15), vote.drain()] == [0, 15, 0]
        assert gather_objects("x") == ["x"]


def test_copies_of_a_signal_count_once_and_a_second_one_does_what_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_before = []
    before = {number: signal.signal(number, lambda n, _: seen_before.append(n)) for number in signals.STOP_SIGNALS}
    try:
        with caught_signals() as received:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.raise_signal(number)
            assert received == [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1] and seen_before == []
            monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
            signal.raise_signal(signal.SIGINT)
            assert seen_before == [signal.SIGINT] and len(received) == 3
        signal.raise_signal(signal.SIGTERM)
        assert seen_before == [signal.SIGINT, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seen(step: int, doing: str, heard: float, moved: float, ended: str | None = None) -> Seen:
    return Seen(Report("node", 7, step, doing, 1, ended), heard, moved)


def test_blame_goes_to_reasons_then_to_silence_then_to_who_is_behind() -> None:
    computing, behind = _seen(5, "computing", 99, 90), _seen(5, "saving", 99, 80)
    assert sentence_about([computing, behind], 100, 6) == "rank 1 (node, process 7) has been saving after step 5 for 20 s"
    silent = _seen(4, "loading", 88, 80)
    told = sentence_about([behind, silent, computing], 100, 6)
    assert told == "rank 1 (node, process 7) has not been heard of since step 4, 12 s ago"
    told = sentence_about([silent, computing, _seen(3, "saving", 70, 70, "OSError: disk full")], 100, 6)
    assert told == "rank 2 (node, process 7) ended after step 3: OSError: disk full"
    assert "no rank is silent or behind" in sentence_about([computing, computing], 100, 6)
    assert sentence_about([silent] * 64, 100, 6).endswith("; and 60 more ranks")


def test_a_rank_that_ended_well_is_neither_silent_nor_hanging_nor_ahead() -> None:
    ended, working = _seen(9, "saving", 0, 0, ""), _seen(8, "saving", 99, 80)
    assert silent_ranks([ended, working], 100, 6) == [] and hanging_ranks([ended, working], 100, 6) == []


def test_a_slow_rank_hangs_only_if_another_waits_for_it_for_as_long() -> None:
    slow = _seen(5, "loading", 99, 10)
    assert hanging_ranks([slow, _seen(5, "computing", 99, 60)], 100, 30) == [0]
    assert hanging_ranks([slow, _seen(5, "computing", 99, 80)], 100, 30) == []


def test_what_is_seen_of_a_rank_is_timed_by_the_clock_of_who_sees_it() -> None:
    seen = Seen(Report("node", 7, 5, "loading", beat=1), heard=10, moved=10)
    seen = seen.update(Report("node", 7, 5, "loading", beat=2), now=20)
    assert (seen.heard, seen.moved) == (20, 10)
    seen = seen.update(Report("node", 7, 5, "computing", beat=2), now=30)
    assert (seen.heard, seen.moved) == (20, 30)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="only Linux tells how a process was started")
def test_cores_are_shared_unless_the_user_chose_a_number_of_threads() -> None:
    """The middle process is torchrun, which sets OMP_NUM_THREADS=1 if it is not set."""
    rank_code = (
        "import torch; from videornn.distributed.ranks import _use_all_cores as u; u(); print(torch.get_num_threads())"
    )
    torchrun = (
        "import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1'); os.environ['LOCAL_WORLD_SIZE'] = '1';"
        f"subprocess.run([sys.executable, '-c', {rank_code!r}], check=True)"
    )
    unset = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = [
        subprocess.Popen([sys.executable, "-c", torchrun], env=environment, stdout=subprocess.PIPE, text=True)
        for environment in (unset, unset | {"OMP_NUM_THREADS": "1"})
    ]
    threads = [int(process.communicate(timeout=300)[0]) for process in started]
    assert threads == [len(os.sched_getaffinity(0)), 1]
