"""Run the runs of an ablation: find those done, start others on GPUs as these become free, stop them together."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from videornn.distributed.signals import caught_signals
from videornn.system.console import complain, say
from videornn.system.text_files import read_json

POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # of Linux's prctl: sets the signal that a process gets when its parent dies, even of SIGKILL
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Job:
    """A run of a row with a seed: its folder, its recipe and settings, the checkpoint of it that is tested, and the run
    that it starts from."""

    row: str
    seed: int
    folder: Path
    recipe: Path
    settings: list[str]
    checkpoint: str
    after: Job | None = None

    @property
    def name(self) -> str:
        """Name in lines for people."""
        return f"{self.row} seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether it is trained and tested: metrics.json is the last file of a test."""
        return (self.folder / "test/metrics.json").is_file()

    @property
    def tested(self) -> Path:
        """The checkpoint that is tested."""
        return self.folder / f"checkpoints/{self.checkpoint}.pt"

    @property
    def log(self) -> Path:
        """The file for what its commands print."""
        return self.folder.with_suffix(".log")


@dataclass
class _Running:
    """A run at work on some GPUs (None: whatever there is), and its remaining commands."""

    job: Job
    gpus: str | None
    commands: list[list[str]]
    process: subprocess.Popen | None = None
    start: float = field(default_factory=time.monotonic)


def run_all(jobs: list[Job], slots: list[str | None]) -> tuple[int, list[Job]]:
    """Do the runs not yet done, one at a time on each slot, which names GPUs or is None.

    A run that fails does not stop others, unless the first ones fail and none is done: then all would fail.

    Returns:
        The signal that stopped it, or 0, and the jobs that failed.
    """
    waiting, free, running = [job for job in jobs if not job.done], list(slots), list[_Running]()
    seconds: list[float] = []
    failed: list[Job] = []
    threads = max((os.cpu_count() or 1) // len(slots), 1)
    with caught_signals() as received:
        try:
            while not received:
                hopeless = failed and not any(job.done for job in jobs)
                while free and not hopeless and (job := _take_ready(waiting)):
                    running.append(_start(job, free.pop(0), threads))
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                for run in [run for run in running if run.process.poll() is not None]:
                    if run.process.returncode == 0 and run.commands:
                        _launch(run, threads)
                        continue
                    running.remove(run)
                    free.append(run.gpus)
                    if run.process.returncode == 0 and run.job.done:
                        seconds.append(time.monotonic() - run.start)
                        _say_finished(run.job, jobs, seconds, len(slots))
                    elif not received:
                        failed.append(run.job)
                        _say_failed(run)
            if running:
                _stop(running, received[0])
        finally:
            for run in running:  # left after a second Ctrl-C, or an error
                if run.process.poll() is None:
                    os.killpg(run.process.pid, signal.SIGKILL)
    return (received[0] if received else 0), failed


def _take_ready(waiting: list[Job]) -> Job | None:
    """Remove and return the first job that can start; one whose baseline is not done must wait."""
    for job in waiting:
        if job.after is None or job.after.done:
            waiting.remove(job)
            return job
    return None


def _start(job: Job, gpus: str | None, threads: int) -> _Running:
    """Start a run, or continue it: training first, which ends at once if it is complete."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    train = ["train", str(job.recipe), *job.settings, "--out", str(job.folder), "--resume"]
    free = [text for text in job.settings if text.startswith(("test.", "data.", "device="))]  # may have changed
    test = ["test", str(job.tested), *free, "--out", str(job.folder / "test")]
    run = _Running(job, gpus, [train, test])
    say(f"started  {job.name}{'' if gpus is None else f' on GPU {gpus}'}; its log is {job.log}")
    _launch(run, threads)
    return run


def _launch(run: _Running, threads: int) -> None:
    """Start the next command of a run, by torchrun if it has several GPUs."""
    command, environment, launcher = run.commands.pop(0), dict(os.environ), [sys.executable, "-m"]
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if run.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = run.gpus
        if "," in run.gpus:
            num_ranks = run.gpus.count(",") + 1
            launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}", "-m"]
    with open(run.job.log, "a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(['videornn', *command])}\n")
        log.flush()
        run.process = subprocess.Popen(
            [*launcher, "videornn", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
            preexec_fn=None if _LIBC is None else _stop_with_parent,
        )


def _stop_with_parent() -> None:
    """Have the new process, in which this runs, stop and save when this script is killed."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(running: list[_Running], number: int) -> None:
    """Pass a signal on, and wait until all runs have saved their state."""
    say(f"stopping {len(running)} runs, which save after their step; again, and they are killed")
    for run in running:
        with suppress(ProcessLookupError):
            run.process.send_signal(number)
    for run in running:
        run.process.wait()
    running.clear()


def _say_finished(job: Job, jobs: list[Job], seconds: list[float], num_slots: int) -> None:
    num_done = sum(job.done for job in jobs)
    eta = _clock(sum(seconds) / len(seconds) * (len(jobs) - num_done) / num_slots)
    top1 = read_json(job.folder / "test/metrics.json")["video_top1"]
    say(f"finished {job.name} in {_clock(seconds[-1])}: video top-1 {top1:.2f} %; {num_done} of {len(jobs)} done, eta {eta}")


def _say_failed(run: _Running) -> None:
    lines = run.job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    complain(f"{run.job.name} failed (exit code {run.process.returncode}): {lines[-1]} (more in {run.job.log})")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
