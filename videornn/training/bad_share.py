"""The bad videos of a training run, over all ranks, and whether they are more than data.max_bad_share allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videornn.data.dataset import BadVideo, TooManyBad
from videornn.distributed import ranks
from videornn.evaluation.results import write_bad_videos


class BadShare:
    """Watches the bad videos that a run has met, so that all ranks end after the same step when they are too many.

    To ask all ranks which videos they mean takes time; so each tells every step how many it has met that the others may not
    know of (num_new), and all ask when the largest such number makes it possible that the share is passed.

    Args:
        bad: by path, as the run goes on to fill it; the same on all ranks now.
        table: where they are written, CSV.
    """

    def __init__(self, bad: dict[str, BadVideo], table: Path, num_videos: int, max_share: float) -> None:
        self._bad = bad
        self._table = table
        self._num_videos = num_videos
        self._max_share = max_share
        self._num_known = len(bad)

    @property
    def num_new(self) -> int:
        """Videos that the other ranks may not know of."""
        return len(self._bad) - self._num_known

    def may_be_passed(self, largest_new: int) -> bool:
        """Whether the share can be passed if no rank has more new videos; the same on all ranks."""
        return self._is_passed(self._num_known + ranks.num_ranks() * largest_new)

    def exchange(self) -> TooManyBad | None:
        """Tell all ranks the bad videos of all, and write them down; if they are too many, what to end with."""
        for others in ranks.gather_objects(self._bad):
            self._bad |= others
        self._num_known = len(self._bad)
        if ranks.rank() == 0:
            self._write()
        if not self._is_passed(self._num_known):
            return None
        return TooManyBad(self._bad.values(), self._num_videos, self._max_share)

    @contextmanager
    def listed(self) -> Iterator[None]:
        """Write down the bad videos also where the loader of this rank alone finds too many of them inside."""
        try:
            yield
        except TooManyBad as error:
            self._bad |= {video.path: video for video in error.bad}
            self._write()
            raise

    def _is_passed(self, num_bad: int) -> bool:
        return num_bad > self._max_share * self._num_videos

    def _write(self) -> None:
        if self._bad:
            write_bad_videos(self._table, sorted(self._bad.values(), key=lambda video: video.path))
