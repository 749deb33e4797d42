"""Read files of tensors: those of torch.save, and pickles of numpy arrays. Nothing in a file is ever run."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videornn.errors import UserError
from videornn.models.pickles import Array, Refused, Unpickler

# keys under which projects keep the state dict
WRAPPERS = ("state_dict", "model_state", "model", "blobs")
# names of what caffe2 keeps for its optimiser
NO_WEIGHTS = r".*_momentum|lr|model_iter"
OLD_TORCH = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # the beginning of files of torch before 1.6
LOCAL_HEADER_BYTES = 30  # of a record in a zip archive, at least


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors and numeric arrays of a network from a file, by name, on the CPU; optimiser states are left out.

    Raises:
        UserError: the file is missing or damaged, or holds more than tensors, arrays and plain types.
    """
    return tensors_of(read_content(path))


def tensors_of(content: object) -> dict[str, Tensor]:
    """Pick the tensors of a network from the result of read_content."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str) or re.fullmatch(NO_WEIGHTS, name):
            continue
        if isinstance(value, Tensor):
            found[name] = value.detach()
        elif isinstance(value, Array) and value.values is not None and value.values.dtype.kind in "fiu":
            found[name] = torch.from_numpy(value.values.astype(np.float32))
    return found


def read_content(path: Path) -> object:
    """Read everything in a file, with tensors on the CPU; raises UserError as read_tensors does."""
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    with path.open("rb") as file:
        head = file.read(64)
    try:
        if head.startswith(b"PK"):
            if record := damaged_record(path):
                raise UserError(f"{path} is damaged: its record {record} fails its checksum; nothing of it was loaded")
            return read_archive(path)
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return _read_old_torch(content) if OLD_TORCH in head else Unpickler(content, len(content)).load()
    except (UserError, OSError):
        raise
    except Refused as error:
        raise UserError(
            f"{path} holds more than tensors and plain types ({error}); nothing of it was run. If you trust it, load it "
            f"where it was made and save the bare state dict: torch.save(model.state_dict(), ...)"
        ) from error
    except Repacked as error:
        raise UserError(f"{path}: {error}; nothing of it was loaded") from error
    except Exception as error:  # damage can raise nearly any exception
        raise UserError(f"{path} is damaged, cut short, or neither a file of torch.save nor a pickle of arrays") from error


class Repacked(ValueError):
    """Raised for a zip archive that torch.save or np.savez did not write; the message says why."""


@contextmanager
def stored_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive written by torch.save or np.savez: no record is compressed, repeated or part of another one.

    In any other archive, a few bytes can stand for more than fits into memory.

    Raises:
        Repacked: it is another kind of archive.
        Exception: nearly any, if the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records, end = archive.infolist(), 0
        if not _has_one_directory(path, archive):
            raise Repacked("it is two archives in one, of which one reader sees the first and one the second")
        if len({name.lower() for name in archive.namelist()}) < len(records):  # some readers ignore case
            raise Repacked("two of its records have one name")
        for record in sorted(records, key=lambda record: record.header_offset):
            if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
                raise Repacked("its records are compressed, which neither torch.save nor np.savez does")
            if record.header_offset < end:
                raise Repacked("its records overlap")
            end = record.header_offset + LOCAL_HEADER_BYTES + record.file_size
        if end > path.stat().st_size:
            raise Repacked("its records are larger than the file")
        yield archive


def _has_one_directory(path: Path, archive: zipfile.ZipFile) -> bool:
    """Return whether the end of an archive names the position at which zipfile found its list of records.

    zipfile looks for the list right before the end; torch and others look where the end, or a second one for large
    archives, says it is.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - len(archive.comment)
        start = file.seek(max(size - 98, 0))
        ends = file.read(size - start).rjust(98)
    second, locator, first = ends[:56], ends[56:76], ends[76:]
    (place,) = struct.unpack("<L", first[16:20])
    if not locator.startswith(b"PK\6\7"):
        return first.startswith(b"PK\5\6") and place == archive.start_dir
    (place_of_second,), (large_place,) = struct.unpack("<Q", locator[8:16]), struct.unpack("<Q", second[48:56])
    sound = first.startswith(b"PK\5\6") and second.startswith(b"PK\6\6") and place_of_second == size - 98
    return sound and large_place == archive.start_dir and place in (large_place, 2**32 - 1)


def damaged_record(path: Path) -> str | None:
    """Find the first record of a torch.save archive whose bytes are not as they were written; None if all are."""
    with stored_archive(path) as archive:
        record = archive.testzip()
    return None if record is None else record.partition("/")[2]


def read_archive(path: Path) -> Any:
    """Read an archive of torch.save: plain types, and tensors on the CPU.

    Raises:
        Refused: there is more in it.
        Repacked: it is another kind of archive.
        Exception: nearly any, if the file is damaged.
    """

    def read(record: str, num_bytes: int) -> Tensor:
        storage = torch.empty(num_bytes, dtype=torch.uint8)
        storage.numpy().data[:] = archive.read(record)
        return storage

    with stored_archive(path) as archive:
        return _unpickled(archive, path, read)


def check_archive(path: Path) -> None:
    """Raise what read_archive would raise for an archive, without reading the values of its tensors."""

    def look(record: str, num_bytes: int) -> Tensor:
        return torch.empty(archive.getinfo(record).file_size, dtype=torch.uint8, device="meta")

    with stored_archive(path) as archive:
        _unpickled(archive, path, look)


def _unpickled(archive: zipfile.ZipFile, path: Path, load: Callable[[str, int], Tensor]) -> Any:
    """Unpickle an archive; load returns the bytes of a storage, given the name of its record and their number."""
    storages: dict[str, Tensor] = {}
    (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
    top, content = name.removesuffix("data.pkl"), archive.read(name)

    def load_storage(key: str, num_bytes: int) -> Tensor:
        if key not in storages:
            storages[key] = load(f"{top}data/{key}", num_bytes)
        return storages[key]

    if f"{top}byteorder" in archive.namelist() and archive.read(f"{top}byteorder") != b"little":
        raise Refused("numbers with their high byte first")
    return Unpickler(io.BytesIO(content), path.stat().st_size, load_storage).load()


def _read_old_torch(content: mmap) -> Any:
    """Read a file of torch before 1.6: pickles, of which the fourth is the content, then the bytes of its storages."""
    storages: dict[str, Tensor] = {}

    def load_storage(key: str, num_bytes: int) -> Tensor:
        if key not in storages:
            storages[key] = torch.empty(num_bytes, dtype=torch.uint8)
        return storages[key]

    unpickler = Unpickler(content, len(content), load_storage)
    _magic, _version, _system, found, keys = (unpickler.load() for _ in range(5))
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        content.read(8)  # the number of elements
        storages[key].numpy().data[:] = content.read(storages[key].nbytes)
    return found
