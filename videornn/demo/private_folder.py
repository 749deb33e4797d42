"""A folder for uploads, removed with its process or, if that was killed, when the user's next one starts.

A lock tells whether the process lives, because the system releases it however the process ends. A process id could by then
belong to another process, or mean nothing where containers share the temporary folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":  # what a killed process leaves stays
    fcntl = None
else:
    import fcntl

PREFIX = "videornn-demo-"


class PrivateFolder:
    """A folder inside the temporary one, with mode 0700; making it removes those left by killed processes of this user."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if (lock := _hold(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        for _ in range(3):  # another process that starts now can take a folder that is not yet held for a leftover
            self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            self.path = Path(self._folder.name)
            self._lock = _hold(self.path)
            if self._lock is not None:
                break

    def remove(self) -> None:
        self._folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _hold(folder: Path) -> int | None:
    """Return a descriptor that holds a private folder of this user until it is closed; None if it cannot be held.

    In that case it is already held, is gone, belongs to another user, is a link, or its disk has no locks (and it stays).
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(descriptor)
        private = held.st_uid == os.geteuid() and stat.S_IMODE(held.st_mode) == 0o700
        if private and os.path.samestat(held, os.lstat(folder)):
            return descriptor
    os.close(descriptor)
    return None
