"""Find out which files and folders are videos, and where under a folder the videos of an official list are."""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from videornn.data.annotations.packed_paths import PackedPaths, PathPacker
from videornn.errors import UserError

# suffixes of the formats that FFmpeg reads videos of (containers.FORMATS); not .gif, a preview beside frames
VIDEO_SUFFIXES = frozenset(
    [
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mj2", ".f4v", ".ismv", ".mkv", ".mk3d", ".webm", ".flv"),
        *(".avi", ".divx", ".xvid", ".wmv", ".asf", ".wtv", ".ogv", ".ogm", ".rm", ".rmvb", ".mxf", ".gxf", ".nut", ".dv"),
        *(".mpg", ".mpeg", ".m1v", ".m2v", ".mpv", ".m2p", ".vob", ".evo", ".mod"),  # .mod, .tod: of camcorders
        *(".ts", ".mts", ".m2ts", ".m2t", ".tod", ".trp"),
        *(".h264", ".264", ".hevc", ".h265", ".265", ".ivf", ".obu", ".y4m", ".mjpeg", ".mjpg"),
    ]
)
FRAME_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp"])
# folders that systems put beside the files of their users: thumbnails, trash, snapshots
SYSTEM_NAMES = frozenset(
    [
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx", "$recycle.bin"),
        *("system volume information", "lost+found", "thumbs.db", "desktop.ini"),
    ]
)
MAX_KINDS = 8  # kinds of files named in a remark


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden."""
    return name[0] == "." or name.casefold() in SYSTEM_NAMES


def is_frame(name: str) -> bool:
    """Return whether a file of this name may be a frame of a video that is a folder: a picture with a number."""
    return os.path.splitext(name)[1].lower() in FRAME_SUFFIXES and any(character.isdecimal() for character in name)


def scan_videos(
    folder: str | Path, left_out: Counter[str] | None = None, on_name: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Yield the paths of all videos under a folder, relative to it, in no order; links are followed, hidden names skipped.

    A folder of images, without videos and folders, is a video too, one of frames, if there are numbers in their names.

    Args:
        left_out: receives the number of files that belong to no video, by suffix, and of hidden files with a video's suffix.
        on_name: called for every file and folder met.
    """
    left_out = Counter() if left_out is None else left_out
    waiting = [""]
    linked: set[str] = set()
    while waiting:
        here = waiting.pop()
        images, numbered, videos, below = Counter[str](), False, False, []
        for entry in _entries(os.path.join(folder, here)):
            on_name()
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_hidden(entry.name):
                left_out[f"hidden {suffix}"] += suffix in VIDEO_SUFFIXES
            elif suffix in VIDEO_SUFFIXES and not entry.is_dir(follow_symlinks=False):
                videos = True
                yield os.path.join(here, entry.name)
            elif suffix in FRAME_SUFFIXES:
                images[suffix] += 1
                numbered = numbered or is_frame(entry.name)
            elif not entry.is_dir():
                left_out[suffix or entry.name] += 1
            elif not (entry.is_symlink() and _leads_back(entry.path, linked)):
                below.append(os.path.join(here, entry.name))
        if numbered and here and not videos and not below:
            yield here
        else:
            left_out.update(images)
        waiting += below


def counted(left_out: Counter[str]) -> str:
    """Format counts as `12 .mtsx, 3 .txt`, the most first; empty if there are none."""
    kinds = [f"{count} {kind}" for kind, count in sorted(left_out.items(), key=lambda item: (-item[1], item[0])) if count]
    return ", ".join(kinds[:MAX_KINDS] + ([f"{len(kinds) - MAX_KINDS} other kinds"] if len(kinds) > MAX_KINDS else []))


def fault_of_file(path: str) -> tuple[Literal["missing", "no_video", "empty", "undecodable"], str] | None:
    """Return why nothing can be read at a path, as a kind and in words; None if there is a file that is not empty."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "missing", "no such file"
    except OSError as error:  # a folder that may not be entered, a dead disk, a name that is too long
        return "undecodable", f"cannot be opened ({str(error.strerror).lower()})"
    if not stat.S_ISREG(status.st_mode):
        return "no_video", f"is {'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'}, not a video file"
    return ("empty", "is empty (0 bytes)") if status.st_size == 0 else None


def stem(path: str) -> str:
    """Return the name of a video without folders and suffix; a folder of frames has no suffix."""
    name, suffix = os.path.splitext(os.path.basename(path))
    return name if suffix.lower() in VIDEO_SUFFIXES else name + suffix


class FileIndex:
    """An index of the videos under a folder by a key of their names; the folder is read once, and no file is opened.

    Args:
        folder: where to look.
        key: maps a name (a stem) to what it has in common with its row in a list.
        on_name: called for every file and folder met.
    """

    def __init__(self, folder: str, key: Callable[[str], str] = str, on_name: Callable[[], None] = lambda: None) -> None:
        if not os.path.isdir(folder):
            raise UserError(f"data.root {folder} is not a folder")
        packer, hashes = PathPacker(), array("q")
        for path in scan_videos(folder, on_name=on_name):
            packer.append(path)
            hashes.append(hash(key(stem(path))))
        self.paths: PackedPaths = packer.pack()
        # 64 bits: two different names among a million share a hash once in ten million runs
        self._order = np.argsort(np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)).astype(np.int32)
        self._hashes = np.array(hashes, np.int64)[self._order]

    def find(self, hashes: np.ndarray, folder_of: Callable[[int], str]) -> tuple[np.ndarray, int]:
        """Find the positions in paths of the rows of a list.

        Args:
            hashes: int64 [N], hash() of the keys of the rows.
            folder_of: name of the folder whose file is preferred for a row that has several.

        Returns:
            int64 [N], -1 where there is no file; and how many rows have several files.
        """
        first = np.searchsorted(self._hashes, hashes, "left")
        count = np.searchsorted(self._hashes, hashes, "right") - first
        found = np.full(len(hashes), -1, np.int64)
        found[count > 0] = self._order[first[count > 0]]
        several = np.flatnonzero(count > 1)
        for row in several.tolist():
            same = self._order[first[row] : first[row] + count[row]].tolist()
            found[row] = min(same, key=lambda index: _preference(self.paths[index], folder_of(row)))
        return found, len(several)


def _preference(path: str, folder: str) -> tuple[bool, bool, str]:
    *folders, _ = Path(path).parts
    # the public copy of Kinetics-400 brings sound copies of corrupt files in a folder of this name
    replacement = any(name.startswith("replacement") for name in folders)
    return not replacement, not (folders and folders[-1] == folder), path


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries  # one by one: a flat folder of all of Kinetics has more entries than fit into memory here
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from error


def _leads_back(link: str, linked: set[str]) -> bool:
    """Return whether a link leads to a folder above it or to one that another link led to; remember where it leads."""
    target = os.path.realpath(link)
    back = target in linked or (os.path.realpath(os.path.dirname(link)) + os.sep).startswith(target + os.sep)
    linked.add(target)
    return back
