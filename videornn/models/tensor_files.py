"""Files of tensors: those of torch.save, and pickles of numpy arrays. Nothing that a file holds is ever run."""

from __future__ import annotations

import codecs
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videornn.errors import UserError

# where projects keep the state dict
WRAPPERS = ("state_dict", "model_state", "model", "blobs")
# what caffe2 keeps for its optimiser
NO_WEIGHTS = r".*_momentum|lr|model_iter"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors and numeric arrays of a network in a file, by name, on the CPU; optimiser states are left behind.

    Raises:
        UserError: the file is missing or damaged, or holds more than tensors, arrays and plain types.
    """
    content = _read(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str) or re.fullmatch(NO_WEIGHTS, name):
            continue
        if isinstance(value, Tensor):
            found[name] = value.detach()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            found[name] = torch.from_numpy(value.astype(np.float32))
    return found


def _read(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    with path.open("rb") as file:
        head = file.read(64)
    try:
        # zip, or the number that torch before 1.6 began its files with
        if head.startswith(b"PK") and (record := damaged_record(path)):
            raise UserError(f"{path} is damaged: its record {record} fails its checksum; nothing of it was loaded")
        if head.startswith(b"PK") or torch.serialization.MAGIC_NUMBER.to_bytes(10, "little") in head:
            return _read_torch(path)
        with path.open("rb") as file:
            return _NumpyUnpickler(file, encoding="latin1").load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} holds more than tensors and plain types ({error}); nothing of it was run. If you trust it, load it "
            f"where it was made and save the bare state dict: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # unpicklers meet damage with nearly any exception
        raise UserError(f"{path} is damaged, cut short, or neither a file of torch.save nor a pickle of arrays") from error


def damaged_record(path: Path) -> str | None:
    """The first record of a torch.save archive whose bytes are not as they were written; torch.load does not look."""
    with zipfile.ZipFile(path) as archive:
        record = archive.testzip()
    return None if record is None else record.partition("/")[2]


class _Refused(Exception):
    """A file asks for something that is not needed for tensors; the message names it."""


# what pickles of numpy arrays call, under the module names of numpy 1 and 2
_NUMPY = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": np.empty(0).__reduce__()[0] for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": np.float64(0).__reduce__()[0] for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": np.empty(0).__reduce_ex__(5)[0] for core in ("core", "_core")},
}
_CONTAINERS = {"collections.OrderedDict": OrderedDict, "_codecs.encode": codecs.encode}


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return (_NUMPY | _CONTAINERS)[f"{module}.{name}"]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _read_torch(path: Path) -> object:
    dtypes = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    with torch.serialization.safe_globals([*((value, name) for name, value in _NUMPY.items()), *dtypes]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            raise _Refused(refused[1]) if refused else error from error
