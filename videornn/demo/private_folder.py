"""A folder for what strangers send: it goes with its process or, if that was killed, when the user's next one starts.

A lock tells whether the process lives: the system frees it at any death. A process id can be somebody else's by then, or
mean nothing here, where containers share the temporary folder.
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
    """A folder in the temporary one, of mode 0700; making it removes those that killed processes of this user left."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if (lock := _hold(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        for _ in range(3):  # who starts at the same moment can take a folder that is not held yet for one that was left
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
    """A descriptor that holds a private folder of this user until it is closed; None where that cannot be.

    It is held already, is gone, is another user's, is a link, or its disk has no locks (then nobody will remove it).
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
