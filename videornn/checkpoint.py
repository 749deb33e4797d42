"""Checkpoints: dictionaries of tensors and plain Python types, written atomically, read with weights_only."""

from __future__ import annotations

import os
import pickle
import platform
import zipfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from videornn.errors import UserError

FORMAT = "videornn-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that the file at path is at any instant either the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "versions": _versions(), **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of videornn onto the CPU.

    Raises:
        UserError: the file is missing, is not a checkpoint, is cut short, or holds anything but tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; training writes RUN/checkpoints/last.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of videornn, or is damaged; nothing of it was loaded") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of videornn (no format {FORMAT!r}); `videornn convert` makes one of public weights"
        )
    return content


def load_model(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Give a network the weights of a checkpoint read from path; raises UserError if they are not exactly its own."""
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights are not those of the network that its config describes; another version of videornn wrote "
            f"it. A new training can start from what fits: model.init={path}"
        ) from error


def _versions() -> dict[str, str]:
    # str(): torch.__version__ is a str subclass that weights_only refuses
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }
