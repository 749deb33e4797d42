"""Checkpoints: dictionaries of tensors and plain Python types, written atomically with a checksum, read with weights_only.

The file is the zip archive that torch.save writes, with a SHA-256 of all its bytes as the archive's comment. torch.load
itself compares no checksum: if one of 22 % of the bits of a small checkpoint flips, it silently loads something else. The
CRC-32 of the archive's records leaves out the archive's own directory.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision
from torch import nn

from videornn.errors import UserError
from videornn.models.pickles import Refused
from videornn.models.tensor_files import Repacked, check_archive, damaged_record
from videornn.system.files import is_file, replacing, sync_folder, telling_if_full

FORMAT = "videornn-1"
SEAL = b"videornn sha256 "  # followed by 64 hexadecimal digits
SEAL_LENGTH = len(SEAL) + 64
ARCHIVE_END = b"PK\5\6"  # starts the last 22 bytes of a zip archive without a comment; the comment's length ends them
# what every user of a network takes from its checkpoint; keys, or entries, are text
NETWORK_PARTS: dict[str, type] = {"model": dict, "config": dict, "class_names": list, "step": int}


def archived(content: dict[str, Any]) -> memoryview:
    """Serialise a checkpoint to the bytes of its file up to the checksum, a copy of its content; waits for the device."""
    file = io.BytesIO()
    torch.save({"format": FORMAT, "versions": _versions(), **content}, file)
    file.seek(-2, os.SEEK_END)
    file.write(SEAL_LENGTH.to_bytes(2, "little"))
    return file.getbuffer()


def save_checkpoint(path: Path, content: dict[str, Any] | memoryview, *, training: bool = False) -> None:
    """Write a checkpoint, of a training run or not, replacing the file at path atomically.

    Args:
        content: the content to save, or the result of archived.

    Raises:
        UserError: the disk, or the quota, is full; the file at path is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = content if isinstance(content, memoryview) else archived(content)
    with telling_if_full(path, archive.nbytes, training=training):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(archive)
            file.write(SEAL + hashlib.sha256(archive).hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of videornn onto the CPU.

    Raises:
        UserError: the file is missing, is not a checkpoint, is damaged in any byte, or holds anything but tensors and plain
            types.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"checkpoint {path} is a folder; give a file, such as RUN/checkpoints/best.pt")
    if not is_file(path):
        raise UserError(f"checkpoint {path} does not exist; training writes RUN/checkpoints/last.pt")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by you")
    if reason := damage(path):
        raise UserError(
            f"{path} is not a checkpoint of videornn, or no longer as it was written: {reason}; nothing of it was loaded"
        )
    try:
        check_archive(path)  # even with weights_only, a pickle can crash torch.load: nested deep, or with huge numbers
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage can raise nearly any exception
        reason = f" ({error})" if isinstance(error, (Refused, Repacked)) else ""
        raise UserError(f"{path} is not a checkpoint of videornn{reason}; nothing of it was loaded") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of videornn (no format {FORMAT!r}); `videornn convert` makes one of public weights"
        )
    return content


def load_network(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint for the network in it, and check that model, config, class_names and step have their types.

    Raises:
        UserError: as load_checkpoint, and if one of them is missing or wrong.
    """
    content = load_checkpoint(path)
    for name, kind in NETWORK_PARTS.items():
        part = content.get(name)
        if not isinstance(part, kind) or (
            isinstance(part, dict | list) and not all(isinstance(entry, str) for entry in part)
        ):
            what = "is missing" if part is None else f"is no {kind.__name__} as it was written"
            raise UserError(f"{path} is no checkpoint of a network: its {name} {what}; `videornn train` writes such")
    return content


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file; None if every byte is as it was written.

    A file without our checksum (of an older version, or of torch.save) is sound if the CRC-32 of its records are right.
    """
    if not path.is_file():
        return "there is no such file"
    try:
        with open(path, "rb") as file:
            sealed = _sealed_as_written(file)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None if sealed else _damage_of_archive(path, no_seal=sealed is None)


def load_model(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint read from path into a network; raises UserError if they do not fit exactly."""
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights are not those of the network that its config describes; another version of videornn wrote "
            f"it. A new training can start from what fits: model.init={path}"
        ) from error


def content_bytes(content: Any) -> int:
    """Return the size of the tensors in nested dictionaries and lists, or of an archive."""
    if isinstance(content, memoryview):
        return content.nbytes
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return sum(map(content_bytes, parts))


def _sealed_as_written(file: BinaryIO) -> bool | None:
    """Return whether the bytes of a file match the checksum at its end; None for an archive without any comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - SEAL_LENGTH, 0))
    end = file.read()
    if end.startswith(SEAL):
        return end == SEAL + _sha256(file, size - SEAL_LENGTH)
    # a comment that was cut off still has its length
    return None if end[-22:-18] == ARCHIVE_END and end[-2:] == b"\0\0" else False


def _sha256(file: BinaryIO, num_bytes: int) -> bytes:
    """Return the hexadecimal SHA-256 of the first num_bytes of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes > 0 and (part := file.read(min(num_bytes, 1 << 20))):
        digest.update(part)
        num_bytes -= len(part)
    return digest.hexdigest().encode()


def _damage_of_archive(path: Path, *, no_seal: bool) -> str | None:
    try:
        if not zipfile.is_zipfile(path):
            return "it is cut short, or no checkpoint at all"
        record = damaged_record(path)
    except Repacked as error:
        return str(error)
    except Exception:  # damage makes zipfile raise nearly any exception
        return "its list of records is damaged"
    if record is not None:
        return f"record {record} fails its checksum"
    return None if no_seal else "it fails its SHA-256"


def _versions() -> dict[str, str]:
    # str(): torch.__version__ is a str subclass that weights_only refuses
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
