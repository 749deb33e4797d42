"""One reading of a file's clock: the order and the times of its frames, the same for everybody who reads the file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from videornn.data.prepare.reencode import Encoding, reencode
from videornn.data.prepare.verify import inspect_video
from videornn.data.video.clock import MISSING, RunningClock, average_rate, read_clock, told_rate
from videornn.data.video.decoders import open_video
from videornn.data.video.stream import VideoStream

TICK = Fraction(1, 100)
HOUR = 360_000  # ticks


def clock(pts: list[int], dts: list[int] | None = None, *, longest: float = 10.0, keys: tuple[int, ...] = (0,), hidden=()):
    """(packets in order, ticks from the first) of packets four ticks apart, or None."""
    numbers = np.arange(len(pts))
    found = read_clock(
        np.array(pts),
        np.array(pts if dts is None else dts),
        np.isin(numbers, keys),
        ~np.isin(numbers, hidden),
        tick=TICK,
        longest=longest,
        announced=Fraction(25),
    )
    return found and tuple(part.tolist() for part in found)


def test_frames_are_shown_in_the_order_of_their_timestamps_counted_from_the_first() -> None:
    assert clock([104, 116, 108, 112], [96, 100, 104, 108]) == ([0, 2, 3, 1], [0, 4, 8, 12])
    assert clock([104, 116, 108, 112], [MISSING, MISSING, 104, 108]) == ([0, 2, 3, 1], [0, 4, 8, 12])
    assert clock([104, 108, 112, 116], hidden=[0, 1]) == ([2, 3], [0, 4])


def test_a_clock_that_starts_again_goes_on_after_the_frames_before() -> None:
    twice = [0, 4, 8, 12, 0, 4, 8, 12]
    assert clock(twice, keys=(0, 4)) == (list(range(8)), list(range(0, 32, 4)))
    b_frames, decoded = [0, 12, 4, 8, 1, 13, 5, 9], [-8, -4, 0, 4, -7, -3, 1, 5]
    assert clock(b_frames, decoded) == ([0, 2, 3, 1, 4, 6, 7, 5], list(range(0, 32, 4)))
    assert clock([0, 4, 8, 12, 11, 15, 19], keys=(0, 4)) == (list(range(7)), list(range(0, 28, 4)))  # a little: a key frame
    assert clock([100, 104, 108, 200, 204], keys=(0, 3)) == (list(range(5)), [0, 4, 8, 100, 104])  # only a pause


def test_a_frame_is_held_in_a_file_and_a_stream_jumps() -> None:
    held = [0, 4, 8, HOUR, HOUR + 4]
    assert clock(held, longest=30 * 3600.0) == (list(range(5)), held)
    assert clock(held) == (list(range(5)), [0, 4, 8, 12, 16])
    assert clock([0, 4, 1004, 1008])[1] == [0, 4, 1004, 1008] and clock([0, 4, 1005, 1009])[1] == [0, 4, 8, 12]
    wall_clock = 170_000_000_000
    assert clock([0, *range(wall_clock, wall_clock + 12, 4)], longest=30 * 3600.0)[1] == [0, 4, 8, 12]
    assert clock([wall_clock, 4, 8, 12])[1] == [0, 4, 8, 12]
    assert clock([0, 2**62, -(2**62), 5])[1] == [0, 4, 8, 12]  # no gap tells: the rate that is announced


def test_no_order_is_made_up_where_timestamps_are_missing_or_shared() -> None:
    assert clock([0, MISSING, 8]) is None and clock([0, 4, 4, 8]) is None and clock([]) is None
    assert clock([MISSING, 4, 8], hidden=[0]) == ([1, 2], [0, 4])


def test_a_rate_is_never_zero() -> None:
    assert average_rate(40, Fraction(39, 25)) == 25
    assert average_rate(30, 29 * Fraction(1001, 30000)) == Fraction(30000, 1001)
    assert average_rate(5, Fraction(4 * 3600)) == Fraction(1, 3600)
    assert float(average_rate(100, Fraction(99 * 1501, 2))) == pytest.approx(2 / 1501)
    assert (told_rate(Fraction(30000, 1001)), told_rate(Fraction(1, 3600)), told_rate(0)) == (29.97, 0.0002778, 0.0)


def test_a_running_clock_says_the_same() -> None:
    def times(stamps: list[float | None], longest: float = 10.0) -> list[float]:
        running = RunningClock(0.04, longest)
        return [round(running.time(stamp), 6) for stamp in stamps]

    assert times([7.0, 7.04, 7.5, None, 7.58]) == [0.0, 0.04, 0.5, 0.54, 0.58]
    assert times([7.0, 7.04, 0.5, 0.54]) == times([7.0, 7.04, 4000.0, 4000.04]) == [0.0, 0.04, 0.08, 0.12]
    assert times([0.0, 0.04, 300.0], 30 * 3600.0) == [0.0, 0.04, 300.0]
    assert times([1.0, 1.04, 1.03, 1.12]) == [0.0, 0.04, 0.08, 0.12]  # a timestamp that is a little early


# Files ---------------------------------------------------------------------------------------------------


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.fixture(scope="module")
def odd_clocks(make_video, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[int], np.ndarray]]:
    """Name -> a file, the frames that it shows, and when."""
    folder = tmp_path_factory.mktemp("clocks")
    one = make_video(folder / "one.ts", 30, bf="2")
    slower = make_video(folder / "slower.ts", 20, fps=1000, times=list(range(0, 1660, 83)), bf="2")  # never at the same time
    later = make_video(folder / "later.ts", 20, times=list(range(90_000, 90_020)), bf="2")
    steady, held = np.arange(50) / 25, [*range(20), *range(7500, 7520)]
    halves = np.concatenate([np.arange(30) / 25, 1.2 + 0.083 * np.arange(20)])
    wall_clock = [0, *range(25 * 1_700_000_000, 25 * 1_700_000_000 + 29)]
    both = [*range(30), *range(20)]
    return {
        "starts_again.ts": (joined(folder / "starts_again.ts", one, slower), both, halves),
        "jumps.ts": (joined(folder / "jumps.ts", one, later), both, steady),
        "jumps_back.ts": (joined(folder / "jumps_back.ts", later, one), [*range(20), *range(30)], steady),
        "held.mp4": (make_video(folder / "held.mp4", 40, times=held, bf="2"), list(range(40)), np.array(held) / 25),
        "held.mkv": (make_video(folder / "held.mkv", 40, times=held, bf="2"), list(range(40)), np.array(held) / 25),
        "wall_clock.mkv": (make_video(folder / "wall_clock.mkv", 30, times=wall_clock, bf="2"), both[:30], steady[:30]),
        "hourly.mp4": (
            make_video(folder / "hourly.mp4", 4, fps=1, times=[0, 3600, 7200, 10800]),
            both[:4],
            3600.0 * np.arange(4),
        ),
    }


ODD_CLOCKS = ["starts_again.ts", "jumps.ts", "jumps_back.ts", "held.mp4", "held.mkv", "wall_clock.mkv", "hourly.mp4"]


@pytest.mark.parametrize("name", ODD_CLOCKS)
def test_all_readers_tell_the_same_frames_at_the_same_times(
    odd_clocks, read_frame_numbers, tmp_path: Path, name: str
) -> None:
    path, numbers, times = odd_clocks[name]
    with VideoStream(str(path)) as stream:
        seen = [(frame.time, torch.from_numpy(frame.picture().copy())) for frame in stream.frames()]
    assert read_frame_numbers([picture for _, picture in seen]) == numbers and stream.num_damaged == 0
    np.testing.assert_allclose([at for at, _ in seen], times, atol=0.0011)
    reencode(str(path), tmp_path / "out.mp4", Encoding(crf=10))
    for file in (path, tmp_path / "out.mp4"):
        with open_video(file) as video:
            assert read_frame_numbers(video.frames_at(torch.arange(video.num_frames))) == numbers
            np.testing.assert_allclose(video.times, times, atol=0.0011)
            assert float(video.fps) == pytest.approx((len(times) - 1) / times[-1], rel=1e-3)
            assert (stream.fps, stream.end) == (
                pytest.approx(float(video.fps), rel=1e-3),
                pytest.approx(video.duration, abs=0.002),
            )
    for full in (False, True):
        report = inspect_video(str(path), full=full)
        assert (report.status, report.num_frames) == ("ok", len(numbers)), report
        assert report.fps == pytest.approx((len(times) - 1) / times[-1], rel=2e-3)


@pytest.mark.parametrize(("name", "seconds"), [("held.mp4", 300.8), ("held.mkv", 300.8), ("hourly.mp4", 14400.0)])
def test_the_last_frame_is_held_as_long_as_most(odd_clocks, name: str, seconds: float) -> None:
    with open_video(odd_clocks[name][0]) as video:
        assert video.duration == pytest.approx(seconds, abs=0.002)


def test_only_frames_that_somebody_wants_are_decoded_where_the_clock_starts_again(make_video, tmp_path: Path) -> None:
    options = {"bf": "3", "b-pyramid": "none", "b_strategy": "0"}
    part = make_video(tmp_path / "a.ts", 40, **options)
    path = joined(tmp_path / "twice.ts", part, part)
    with VideoStream(str(path)) as stream:
        everything = {round(frame.time, 3): frame.picture().copy() for frame in stream.frames()}
    wanted_times = [0.02 + 0.32 * k for k in range(10)]
    with VideoStream(str(path)) as stream:
        wanted = lambda start, end: any(start <= t < end for t in wanted_times)  # noqa: E731
        some = {round(frame.time, 3): frame.picture().copy() for frame in stream.frames(wanted)}
    assert len(everything) == 80 and len(some) < 60
    assert all(np.array_equal(some[round(0.32 * k, 3)], everything[round(0.32 * k, 3)]) for k in range(10))
