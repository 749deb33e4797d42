"""Which of several processes died or hangs: every rank reports where it is, and reads where the others are.

A collective fails on the ranks that are well, and its error names none: "Connection closed by peer", "Timed out waiting".
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

# in the order in which a rank goes through them once `step` steps are done
Doing = Literal["starting", "validating", "saving", "loading", "computing"]
ORDER = {doing: place for place, doing in enumerate(get_args(Doing))}

REPORT_SECONDS = 2.0  # between two reports of a rank, or less if the timeout is short
MISSED_REPORTS = 3  # so many that did not come are a rank that is gone
MAX_NAMED = 4  # ranks in one sentence


@dataclass(frozen=True)
class Report:
    """Where a rank is. beat: grows while the process lives; ended: None, "" (well), or why it ended."""

    host: str
    pid: int
    step: int
    doing: Doing
    beat: int
    ended: str | None = None
    by_user: bool = False  # it ended with a UserError

    @property
    def place(self) -> tuple[int, int]:
        """Grows on the way through a run."""
        return self.step, ORDER[self.doing]


@dataclass(frozen=True)
class Seen:
    """A rank's report as another saw it; heard, moved: when its beat and its place changed last, by the other's clock."""

    report: Report
    heard: float
    moved: float

    def update(self, report: Report, now: float) -> Seen:
        """The same after the next look."""
        heard = now if report.beat != self.report.beat else self.heard
        return Seen(report, heard, now if report.place != self.report.place else self.moved)


def silent_ranks(seen: list[Seen], now: float, seconds: float) -> list[int]:
    """Ranks that did not end and were not heard of for so long: they died, are stopped, or their host is cut off."""
    return [rank for rank, one in enumerate(seen) if one.report.ended is None and now - one.heard > seconds]


def hanging_ranks(seen: list[Seen], now: float, seconds: float) -> list[int]:
    """Ranks that are behind and did not move for so long, while the foremost wait for them for as long."""
    live = {rank: one for rank, one in enumerate(seen) if one.report.ended is None}
    foremost = max((one.report.place for one in live.values()), default=(0, 0))
    if not any(one.report.place == foremost and now - one.moved > seconds for one in live.values()):
        return []
    return [rank for rank, one in live.items() if one.report.place < foremost and now - one.moved > seconds]


def sentence_about(seen: list[Seen], now: float, seconds: float) -> str:
    """Who is to blame: ranks that ended with a reason, else ranks silent, else ranks hanging for so many seconds."""
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
    """Whether an error is that of a collective or of the store, as it comes when another rank is gone."""
    # gloo raises a plain RuntimeError, which names its source file unless another operation has timed out before
    marks = ("/gloo/", "Application timeout caused pair closure")
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(m in str(error) for m in marks))


class RankWatch:
    """Reports where this rank is, sees where the others are, and makes their loss one sentence.

    As a context it turns the error of a collective into RankFailure, or into the UserError that another rank ended with.
    A main thread that waits for a GPU does not see that error: then the thread of the watch says the sentence and ends the
    process, before the watchdog of NCCL would without a name. A lone process watches nobody.

    Args:
        patience_seconds: how long a rank may be silent or hang before the thread ends this process.
        report_seconds: time between two reports; a rank that misses MISSED_REPORTS of them is gone.
    """

    def __init__(self, patience_seconds: float, report_seconds: float = REPORT_SECONDS) -> None:
        self._rank, self._num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._patience, self._report_seconds = patience_seconds, report_seconds
        self._silence = MISSED_REPORTS * report_seconds
        self._place: tuple[int, Doing] = (0, "starting")  # one attribute, for the thread reads it at any time
        self._beat = 0
        self._seen: list[Seen] = []
        self._failing = False  # the main thread knows that a rank is lost
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)

    def at(self, step: int, doing: Doing) -> None:
        """This rank has done so many steps and begins something; costs nothing."""
        self._place = (step, doing)

    def __enter__(self) -> RankWatch:
        if self._num_ranks > 1:
            token = [uuid.uuid4().hex]
            dist.broadcast_object_list(token)  # the lives of an elastic run share a store, and must not read each other
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
        """Why a collective failed. A rank that died is noticed by its silence, which takes a few seconds."""
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
        if unseen > self._silence:  # not even this rank's own report comes back
            return f"the first node is gone: its torchrun at {store_address()} has not been heard of for {unseen:.0f} s"
        return sentence_about(self._seen, now, self._silence if seconds is None else seconds)

    def _end(self, reason: str, by_user: bool = False) -> None:
        """The last report, which stays in the store when this process is gone."""
        self._leaving.set()
        self._thread.join(STORE_SECONDS)
        with suppress(dist.DistError):  # whoever kept the store is gone, and so are its readers
            self._write(reason, by_user)

    def _watch(self) -> None:
        parent = os.getppid()
        while not self._leaving.wait(self._report_seconds):
            if os.getppid() != parent:  # torchrun was killed: nobody would stop this rank, or start it again
                os.kill(os.getpid(), signal.SIGTERM)
                parent = os.getppid()
            with suppress(dist.DistError):  # if that lasts, the silence of all ranks tells
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
