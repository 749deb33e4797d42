"""Count the bad videos of a training run over all ranks, and tell when they exceed data.max_bad_share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videornn.data.dataset import BadVideo, TooManyBad
from videornn.distributed import ranks
from videornn.evaluation.results import write_bad_videos


class BadShare:
    """A watch on the bad videos of a run, so that all ranks end after the same step when there are too many.

    Exchanging the videos of all ranks takes time. So each rank tells at every step only how many it has met that the others
    may not know of (num_new), and they exchange when the largest such number makes it possible that the share is passed.

    Args:
        bad: by path; the run goes on filling it; the same on all ranks now.
        table: the CSV file that they are written to.
    """

    def __init__(self, bad: dict[str, BadVideo], table: Path, num_videos: int, max_share: float) -> None:
        self._bad = bad
        self._table = table
        self._num_videos = num_videos
        self._max_share = max_share
        self._num_known = len(bad)

    @property
    def num_new(self) -> int:
        """Number of videos that the other ranks may not know of."""
        return len(self._bad) - self._num_known

    def may_be_passed(self, largest_new: int) -> bool:
        """Return whether the share may be passed if no rank has more new videos; the same on all ranks."""
        return self._is_passed(self._num_known + ranks.num_ranks() * largest_new)

    def exchange(self) -> TooManyBad | None:
        """Exchange the bad videos of all ranks and write them down; return the error to end with if there are too many."""
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
        """Write down the bad videos even if this rank's loader alone raises inside because there are too many."""
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
