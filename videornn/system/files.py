"""Write files as a whole or not at all, under a temporary name that is then moved; check places for results."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from videornn.errors import UserError
from videornn.system.text_files import cell_of, read_json

MAX_NAME_BYTES = 200  # file systems take 255
MAX_RECORD_BYTES = 1 << 16
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` if no error occurs.

    Raises:
        UserError: `path` is a device or a pipe, which no file may replace.
        OSError: an error of the disk, with the name of `path` instead of none or the temporary one.
    """
    _check_kind(path, str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or os.fsdecode(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))  # file names need not be UTF-8


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file with a header line, whose cells spreadsheets do not take for formulas; read_rows reads it."""
    text = StringIO(newline="")
    csv.writer(text).writerows([cell_of(cell) for cell in row] for row in (header, *rows))
    write_text(path, text.getvalue())


def append_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Add rows to a CSV file in the format of write_table; a new file gets a header line."""
    _check_kind(path, str(path))
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([cell_of(cell) for cell in row] for row in ([header, *rows] if new else rows))


def short_enough(name: str) -> str:
    """Cut a name so that with an ending such as _res4.2_attention.mp4 it is not too long for file systems."""
    return name.encode("utf-8", "surrogateescape")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def is_file(path: str | Path) -> bool:
    """Return whether there is a file; raises OSError if that cannot be told, as in a folder that may not be entered."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def differing_parameters(record: Path, parameters: dict[str, Any]) -> str:
    """Say how the parameters in a folder's JSON record differ from these; empty if they are the same.

    Raises:
        UserError: the record is damaged, or something else.
    """
    found = read_json(record, max_bytes=MAX_RECORD_BYTES)
    if not isinstance(found, dict):
        raise UserError(f"{record} does not say how what is beside it was made: choose another folder or remove this one")
    differing = [key for key in parameters if found.get(key) != parameters[key]]
    return ", ".join(f"{key} {str(found.get(key))[:100]} instead of {parameters[key]}" for key in differing)


def make_folder(folder: Path | None, option: str = "--out") -> None:
    """Make a folder for results, if one is given; raises UserError, before any work, if nothing can be written there."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {folder}: is a file; give the name of a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: the folder cannot be made ({error.strerror}); choose another one") from error
    _try_writing(folder, f"{option} {folder}")


def check_output_file(file: Path | None, option: str = "--out") -> None:
    """Raise UserError, before any work, if a file for results is given and cannot be written."""
    if file is None:
        return
    if file.is_dir():
        raise UserError(f"{option} {file}: is a folder; give the name of a file")
    if not file.parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {file.parent}")
    _check_kind(file, f"{option} {file}")
    _try_writing(file.parent, f"{option} {file}")


def _check_kind(path: Path, given: str) -> None:
    """Raise UserError for devices and the like: a file in the place of /dev/null would take it from everybody."""
    is_open_file = path.is_symlink() and os.readlink(path).startswith("/proc/")  # such as /dev/stdout
    if is_open_file or (path.exists() and not path.is_file() and not path.is_dir()):
        raise UserError(f"{given}: is a device or a pipe; give the name of a file")


def _try_writing(folder: Path, given: str) -> None:
    """Try to make a file without a name, because permissions do not tell of read-only disks, network shares or quotas."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{given}: nothing can be written in {folder} ({error.strerror}); choose another folder") from error


@contextmanager
def telling_if_full(path: Path, num_bytes: int, *, training: bool = False) -> Iterator[None]:
    """Turn a lack of room for num_bytes at path into a UserError that says what is left and how to go on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save can raise a RuntimeError while handling the first failure
        if (full := _disk_full(error)) is None:
            raise
        room = f", {_size(shutil.disk_usage(path.parent).free)} are free" if full == errno.ENOSPC else ""
        standing = next((file for file in (path, path.with_name("last.pt"))[: 1 + training] if file.is_file()), None)
        stands = f"{standing} stands as it was" if standing else "nothing of it was left behind"
        raise UserError(
            f"{path} cannot be written: {os.strerror(full)} (it takes about {_size(num_bytes)}"
            f"{room}); {stands}; make room, then give the same command {'with --resume' if training else 'again'}"
        ) from error


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk, so that they survive a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _disk_full(error: BaseException | None) -> int | None:
    """The number of the error behind an error that says that the disk is full, if there is one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error.errno
        error = error.__context__
    return None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:.1f} kB"
