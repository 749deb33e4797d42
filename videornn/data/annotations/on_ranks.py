"""Load lists in a job of several ranks: rank 0 reads them for all, and every rank checks that it has the videos.

Finding the videos of an official list, or of class folders, means reading all names of a data set: this takes minutes on a
network disk, and longer if 64 ranks do it at once.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace

from videornn.data.annotations.load import check_files, find_source, first_missing, load_videos
from videornn.data.annotations.table import VideoTable
from videornn.distributed import ranks
from videornn.errors import UserError
from videornn.schema import DataConfig
from videornn.system.console import say

TELL_SECONDS = 10.0  # between two messages about a search


def load_list(data: DataConfig, source: str, split: str) -> VideoTable:
    """Load the table of a source of data, the same on all ranks, with paths under each rank's own data.root; collective.

    Raises:
        UserError: as load_videos, on all ranks; or this rank does not have the list or folder.
    """
    path, root = find_source(source, root=data.root, split=split, fold=data.fold)

    def read(busy: Callable[[], None]) -> VideoTable:
        search = _Search(f"looking for the videos of {path} under {root}", busy)
        return load_videos(source, root=data.root, labels=data.labels, split=split, fold=data.fold, on_name=search.on_name)

    return replace(ranks.from_busy_rank_0(read), root=root)


def check_list(table: VideoTable) -> None:
    """Raise UserError if no video of a plain list exists, or one of a few that rank 0 found is missing here."""
    if ranks.rank() == 0 or not table.files_seen:
        check_files(table)
    elif missing := first_missing(table):
        raise UserError(
            f"rank {ranks.rank()} on {platform.node()} has no {missing}, which rank 0 has found: every node needs the "
            f"same videos; mount or copy {table.root} there"
        )


class _Search:
    """A search by rank 0, which tells the other ranks that it is alive, and people how far it is."""

    def __init__(self, doing: str, busy: Callable[[], None]) -> None:
        self._doing, self._busy = doing, busy
        self._num_names, self._next_word = 0, time.monotonic() + TELL_SECONDS

    def on_name(self) -> None:
        """Count a name met in the search; costs next to nothing."""
        self._num_names += 1
        self._busy()
        if time.monotonic() >= self._next_word:
            say(f"{self._doing}: {self._num_names:,} names so far")
            self._next_word = time.monotonic() + TELL_SECONDS
