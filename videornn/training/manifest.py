"""Write manifest.json of a run folder: for every start of the run, which code, machine, command and data it used."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import torch

from videornn.system.files import write_text
from videornn.system.text_files import read_json
from videornn.system.workers import num_cores

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("videornn", "torch", "torchvision", "pytorchvideo", "av", "numpy", "decord", "torchcodec")
MAX_BYTES = 1 << 26  # of a manifest; an entry takes a few kB
GIT_SECONDS = 10
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set when a git hook of any repository runs us


def append_manifest(path: Path, entry: dict[str, Any]) -> str | None:
    """Add the entry of a start to a manifest, replacing the file atomically.

    Args:
        entry: the result of describe_start; plain JSON values.

    Returns:
        None, or a sentence if the file at path was no manifest: it is kept under another name and a new one begun.
    """
    entries, remark = [], None
    if path.is_file():
        try:
            entries = _read(path)
        except (ValueError, RecursionError) as error:
            aside = _free_name(path)
            os.replace(path, aside)
            remark = f"{path} was damaged ({error}) and is {aside.name} now; a new one begins"
    write_text(path, json.dumps([*entries, entry], indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return remark


def describe_start(
    *, command: Sequence[str], training: dict[str, Any], data: dict[str, Any], start: dict[str, Any]
) -> dict[str, Any]:
    """Make one entry of a manifest: what the caller passes, and the code and machine of this process (rank 0's).

    Args:
        command: the command line, as a list of words.
        training: ranks and nodes, device, precision, seed, effective batch and its parts, learning rate given and used.
        data: per list, how many videos are used and how many are missing; classes without a video.
        start: the step after which training continues, and the checkpoint it comes from.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "code": describe_code(PACKAGE),
        "versions": package_versions(),
        "machine": _machine(),
        "training": training,
        "data": data,
        "start": start,
    }


def describe_code(package: Path) -> dict[str, Any]:
    """Return the commit of a package's own repository, and whether its files differ from it; None for both without one."""
    top = _git(package, "rev-parse", "--show-toplevel")
    # an installed package can lie inside another repository, in its .venv
    if top is None or Path(top).resolve() != package.parent:
        return {"commit": None, "dirty": None}
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command in a folder; None if it fails or there is no git."""
    environment = {key: value for key, value in os.environ.items() if key not in GIT_PLACES}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # read only
    try:
        finished = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def package_versions() -> dict[str, str | None]:
    """Return versions by name, None for packages not installed, from metadata: importing some decoders can crash."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions | {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }  # metadata leaves out torch's +cu or +cpu


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "memory_gb": _memory_gb(),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def _read(path: Path) -> list[Any]:
    entries = read_json(path, max_bytes=MAX_BYTES)
    if not isinstance(entries, list):
        raise ValueError("it is not a list")
    return entries


def _free_name(path: Path) -> Path:
    """Return manifest.damaged-1.json, or the next free name."""
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())
