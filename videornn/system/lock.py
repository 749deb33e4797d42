"""Allow one training run, or one test, at a time in a folder, even after kill -9."""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from videornn.errors import UserError
from videornn.system.console import say
from videornn.system.files import make_folder

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

HERE_SECONDS = 30.0  # to wait for a process of this host, which may be about to end
# ... and of another host: if that died, the file system keeps its lock until it gives up on the host, by default after
# 90 s on a Linux NFSv4 server (a lease) and 225 s on Lustre (2.25 times its timeout)
ELSEWHERE_SECONDS = 240.0
TELL_SECONDS = 60.0  # between two messages about it

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def run_lock(
    folder: Path, *, wait_seconds: float | None = None, on_wait: Callable[[], None] = lambda: None
) -> Iterator[str | None]:
    """Lock the run folder, made if necessary, against other processes; only for rank 0.

    It is a POSIX record lock on folder/.lock: the system releases it when the process ends for any reason, and forked loader
    workers do not inherit it. It belongs to the process: it does not exclude a second run_lock of the same process, and is
    lost when that process closes the file anywhere, so nothing else may open it.

    Args:
        wait_seconds: how long to wait for another process; by default HERE_SECONDS or ELSEWHERE_SECONDS, by its host.
        on_wait: called ten times a second while waiting.

    Yields:
        None, or a sentence if the folder's file system has no locks and the folder is not held.

    Raises:
        UserError: another process still holds it, or nothing can be written there.
    """
    make_folder(folder)
    if fcntl is None:
        yield "this system has no locks: see to it yourself that no other process works in the same folder"
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{folder / '.lock'} is a pipe or a device, not a file; remove it")
        yield _take(descriptor, folder, wait_seconds, on_wait)
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, wait_seconds: float | None, on_wait: Callable[[], None]) -> str | None:
    """Lock the file and write into it who holds it."""
    begun, next_word = time.monotonic(), 0.0
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NO_LOCKS:
                return f"{folder} is on a file system without locks: see to it that no other process works in it"
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
        here, waited = holder.endswith(f" on {platform.node()}"), time.monotonic() - begun
        limit = wait_seconds if wait_seconds is not None else HERE_SECONDS if here else ELSEWHERE_SECONDS
        if waited >= limit:
            gone = "" if here else f"; if its host is dead and will not come back, remove {folder / '.lock'}"
            raise UserError(f"{folder}: {holder} is at work in it; wait for its end, stop it, or choose another --out{gone}")
        if waited >= next_word:
            why = "" if here else ", or for the file system to release its lock if its host has died (NFS: 90 s)"
            say(f"{folder} is in use by {holder}; waiting up to {limit - waited:.0f} s for its end{why}")
            next_word += TELL_SECONDS
        on_wait()
        time.sleep(0.1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    os.fsync(descriptor)  # NFS would delay it for half a minute, and other hosts must see who holds the folder
    return None
