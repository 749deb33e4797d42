"""Find out which of several ranks died or hangs: every rank reports where it is and reads the others' reports.

A collective fails on the healthy ranks, and its error names none: "Connection closed by peer", "Timed out waiting".
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, get_args

import torch.distributed as dist

from videornn.distributed.store import STORE_SECONDS, first_to_say, open_store, store_address
from videornn.errors import RankFailure, UserError

# in the order in which a rank goes through them after `step` steps
Doing = Literal["starting", "validating", "saving", "loading", "computing"]
ORDER = {doing: place for place, doing in enumerate(get_args(Doing))}

REPORT_SECONDS = 2.0  # between two reports of a rank; less if the timeout is short
MISSED_REPORTS = 3  # after which a rank counts as gone
MAX_NAMED = 4  # ranks in one sentence


@dataclass(frozen=True)
class Report:
    """The report of a rank. beat: grows while the process lives; ended: None, "" (normally), or why it ended."""

    host: str
    pid: int
    step: int
    doing: Doing
    beat: int
    ended: str | None = None
    by_user: bool = False  # it ended with a UserError

    @property
    def place(self) -> tuple[int, int]:
        """Position in the run, which only grows."""
        return self.step, ORDER[self.doing]


@dataclass(frozen=True)
class Seen:
    """A rank's report as seen by another; heard, moved: when its beat and its place last changed, by the other's clock."""

    report: Report
    heard: float
    moved: float

    def update(self, report: Report, now: float) -> Seen:
        """Return the record after the next reading."""
        heard = now if report.beat != self.report.beat else self.heard
        return Seen(report, heard, now if report.place != self.report.place else self.moved)


def silent_ranks(seen: list[Seen], now: float, seconds: float) -> list[int]:
    """Return the ranks that did not end but are silent for this long: they died, are stopped, or their host is cut off."""
    return [rank for rank, one in enumerate(seen) if one.report.ended is None and now - one.heard > seconds]


def hanging_ranks(seen: list[Seen], now: float, seconds: float) -> list[int]:
    """Return the ranks that are behind and did not move for this long, while the foremost waited for as long."""
    live = {rank: one for rank, one in enumerate(seen) if one.report.ended is None}
    foremost = max((one.report.place for one in live.values()), default=(0, 0))
    if not any(one.report.place == foremost and now - one.moved > seconds for one in live.values()):
        return []
    return [rank for rank, one in live.items() if one.report.place < foremost and now - one.moved > seconds]


def sentence_about(seen: list[Seen], now: float, seconds: float) -> str:
    """Say which ranks are to blame: those that ended with a reason, else silent ones, else those hanging for this long."""
    ended = [rank for rank, one in enumerate(seen) if one.report.ended]
    silent, hanging = silent_ranks(seen, now, seconds), hanging_ranks(seen, now, seconds)
    phrases = []
    for rank in ended or silent or hanging:
        one = seen[rank]
        report, name = one.report, f"rank {rank} ({one.report.host}, process {one.report.pid})"
        if ended:
            phrases.append(f"{name} ended after step {report.step}: {report.ended}")
        elif silent:
            phrases.append(f"{name} has not been heard of since step {report.step}, {now - one.heard:.0f} s ago")
        else:
            phrases.append(f"{name} has been {report.doing} after step {report.step} for {now - one.moved:.0f} s")
    if not phrases:
        last = max((one.report for one in seen), key=lambda report: report.place)
        return f"a collective failed, but no rank is silent or behind: they are {last.doing} after step {last.step}"
    more = [f"and {len(phrases) - MAX_NAMED} more ranks"] if len(phrases) > MAX_NAMED else []
    return "; ".join(phrases[:MAX_NAMED] + more)


def is_lost_rank(error: BaseException | None) -> bool:
    """Return whether an error of a collective or the store is of the kind raised when another rank is gone."""
    # gloo raises a plain RuntimeError, which names its source file unless another operation timed out before
    marks = ("/gloo/", "Application timeout caused pair closure")
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(m in str(error) for m in marks))


class RankWatch:
    """A watch that reports where this rank is, follows the others, and turns their loss into one sentence.

    As a context it turns the error of a collective into RankFailure, or into the UserError that another rank ended with. A
    main thread that waits for a GPU does not see that error: then the watch's thread says the sentence and ends the process
    before the watchdog of NCCL does so without a name. A single process watches no other.

    Args:
        patience_seconds: how long a rank may be silent or hang before the thread ends this process.
        report_seconds: time between two reports; a rank that misses MISSED_REPORTS of them is gone.
    """

    def __init__(self, patience_seconds: float, report_seconds: float = REPORT_SECONDS) -> None:
        self._rank, self._num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._patience, self._report_seconds = patience_seconds, report_seconds
        self._silence = MISSED_REPORTS * report_seconds
        self._place: tuple[int, Doing] = (0, "starting")  # one attribute, because the thread reads it at any time
        self._beat = 0
        self._seen: list[Seen] = []
        self._failing = False  # the main thread knows that a rank is lost
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)

    def at(self, step: int, doing: Doing) -> None:
        """Record that this rank has done a number of steps and what it begins now; costs nothing."""
        self._place = (step, doing)

    def __enter__(self) -> RankWatch:
        if self._num_ranks > 1:
            token = [uuid.uuid4().hex]
            dist.broadcast_object_list(token)  # starts of an elastic run share a store, and must not read each other
            self._store = open_store(token[0])
            self._write()
            dist.barrier()  # now there is a report of every rank
            self._read()
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._num_ranks == 1:
            return
        if is_lost_rank(error):
            failure = self._failure()
            self._end("")
            raise failure from error
        self._end("" if error is None else f"{type(error).__name__}: {error}", isinstance(error, UserError))

    def _failure(self) -> UserError | RankFailure:
        """Find out why a collective failed; a rank that died is noticed by its silence, which takes a few seconds."""
        self._failing = True
        deadline = time.monotonic() + self._silence + self._report_seconds
        while True:
            now, seen = time.monotonic(), self._seen
            ended = [one.report for one in seen if one.report.ended]
            if ended or silent_ranks(seen, now, self._silence) or now > deadline:
                break
            time.sleep(self._report_seconds / 10)
        by_user = [report.ended.partition(": ")[2] for report in ended if report.ended and report.by_user]
        return UserError(*by_user[0].splitlines()) if by_user else RankFailure(self._sentence(now))

    def _sentence(self, now: float, seconds: float | None = None) -> str:
        unseen = now - self._seen[self._rank].heard
        if unseen > self._silence:  # not even our own report comes back
            return f"the first node is gone: its torchrun at {store_address()} has not been heard of for {unseen:.0f} s"
        return sentence_about(self._seen, now, self._silence if seconds is None else seconds)

    def _end(self, reason: str, by_user: bool = False) -> None:
        """Send the last report, which stays in the store when this process is gone."""
        self._leaving.set()
        self._thread.join(STORE_SECONDS)
        with suppress(dist.DistError):  # the process with the store is gone, and with it the readers
            self._write(reason, by_user)

    def _watch(self) -> None:
        parent = os.getppid()
        while not self._leaving.wait(self._report_seconds):
            if os.getppid() != parent:  # torchrun was killed: nothing would stop or restart this rank
                os.kill(os.getpid(), signal.SIGTERM)
                parent = os.getppid()
            with suppress(dist.DistError):  # if it lasts, the silence of all ranks shows it
                self._write()
                self._read()
            now = time.monotonic()
            hanging = hanging_ranks(self._seen, now, self._patience)
            lost = silent_ranks(self._seen, now, self._patience) or hanging
            if lost and self._rank not in hanging and not self._failing:
                if first_to_say(RankFailure.topic):
                    print(f"videornn: {self._sentence(now, self._patience)}", file=sys.stderr, flush=True)
                os._exit(RankFailure.exit_code)

    def _write(self, ended: str | None = None, by_user: bool = False) -> None:
        self._beat += 1
        report = Report(socket.gethostname(), os.getpid(), *self._place, self._beat, ended, by_user)
        self._store.set(str(self._rank), json.dumps(asdict(report)))

    def _read(self) -> None:
        texts = self._store.multi_get([str(rank) for rank in range(self._num_ranks)])
        reports, now = [Report(**json.loads(text)) for text in texts], time.monotonic()
        before = self._seen or [Seen(report, now, now) for report in reports]
        self._seen = [seen.update(report, now) for seen, report in zip(before, reports, strict=True)]
