"""One training, or one test, at a time in its folder, also after kill -9."""

from __future__ import annotations

import errno
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videornn.console import say
from videornn.data.files import make_folder
from videornn.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def run_lock(folder: Path, *, wait_seconds: float = 30.0) -> Iterator[str | None]:
    """Hold the run folder, which is made if need be, against other processes; for rank 0 alone.

    A POSIX record lock on folder/.lock: the system releases it at the death of the process, whatever the cause, and forked
    loader workers do not inherit it. It is the process's: it neither keeps out a second run_lock of the same process, nor
    outlasts any closing of the file there, so that nothing else may open it.

    Args:
        wait_seconds: how long to wait for another process, which may be about to die.

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
        yield _take(descriptor, folder, wait_seconds)
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, wait_seconds: float) -> str | None:
    """Lock the file and write down who holds it."""
    give_up = time.monotonic() + wait_seconds
    told = False
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
        if time.monotonic() >= give_up:
            raise UserError(f"{folder}: {holder} is at work in it; wait for its end, stop it, or choose another --out")
        if not told:
            say(f"{folder} is in use by {holder}; waiting up to {wait_seconds:.0f} s for its end")
            told = True
        time.sleep(0.1)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    return None
