"""Our lists, videos and clip samplers in PyTorchVideo's own dataset, and its samplers on our videos."""

import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from pytorchvideo.data import LabeledVideoDataset
from pytorchvideo.data.clip_sampling import make_clip_sampler
from torch.utils.data import SequentialSampler

from videornn.data.for_pytorchvideo import FrameVideoHandler, labeled_video_paths
from videornn.data.sampling import MiddleClipSampler, SeededClipSampler
from videornn.data.video.decoders import open_video


def test_the_example_of_the_docs_runs(motion_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/synthetic").symlink_to(motion_set)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/coming_from.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    sample = names["sample"]
    frames, label = sample["video"], sample["label"]
    assert frames.shape[0] == 3 and frames.dtype == torch.float32 and 0 <= frames.min() < 50 < frames.max() <= 255
    lines = [line.split() for line in Path("data/synthetic/val.txt").read_text().splitlines()]
    assert (sample["video_name"], str(label)) in [(Path(path).name, name) for path, name in lines]


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_a_pass_gives_the_clips_of_every_video_and_passes_over_what_is_none(
    theirs: bool, make_video, tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, 50, fps=25)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "list.txt").write_text("a.mp4 3\nbad.mp4 4\nb.mp4 5\n")
    sampler = make_clip_sampler("constant_clips_per_video", Fraction(2, 5), 2) if theirs else MiddleClipSampler(0.4, 2)
    paths = labeled_video_paths(str(tmp_path / "list.txt"))
    dataset = LabeledVideoDataset(paths, sampler, video_sampler=SequentialSampler, decode_audio=False)
    dataset.video_path_handler = FrameVideoHandler()
    samples = list(dataset)
    found = [(sample["video_name"], sample["label"], sample["clip_index"]) for sample in samples]
    assert found == [("a.mp4", 3, 0), ("a.mp4", 3, 1), ("b.mp4", 5, 0), ("b.mp4", 5, 1)]
    # 1.6 s are free: middles of two halves at 0.4 and 1.2 s, beginnings at 0 and 0.8
    firsts = (0, 20) if theirs else (10, 30)
    frames = open_video(tmp_path / "a.mp4").frames_at(torch.arange(50)).permute(3, 0, 1, 2).float()
    for sample, first in zip(samples, firsts, strict=False):
        assert torch.equal(sample["video"], frames[:, first : first + 10])


def test_a_seeded_sampler_draws_what_pytorchvideos_does_from_that_seed_and_leaves_the_global_generator_alone() -> None:
    for seed in range(20):
        random.seed(seed)
        theirs = make_clip_sampler("random", Fraction(3, 2))(0, Fraction(171, 25), {})
        state = random.getstate()
        assert SeededClipSampler(Fraction(3, 2), seed)(0, Fraction(171, 25), {}) == theirs
        assert random.getstate() == state
    short = SeededClipSampler(2.0, 0)(0, Fraction(1), {})
    assert (short.clip_start_sec, short.clip_end_sec, short.is_last_clip) == (0, 2, True)


@pytest.mark.parametrize("num_clips", [1, 3, 10])
def test_middles_are_every_other_clip_of_twice_as_many_of_pytorchvideos(num_clips: int) -> None:
    for duration in (Fraction(171, 25), Fraction(1)):  # the second is shorter than a clip
        theirs = make_clip_sampler("constant_clips_per_video", Fraction(3, 2), 2 * num_clips)
        starts = [theirs(0, duration, {}).clip_start_sec for _ in range(2 * num_clips)]
        ours = MiddleClipSampler(Fraction(3, 2), num_clips)
        clips = [ours(0, duration, {}) for _ in range(2 * num_clips)]
        assert [clip.clip_start_sec for clip in clips] == starts[1::2] * 2
        assert [clip.is_last_clip for clip in clips] == ([False] * (num_clips - 1) + [True]) * 2
