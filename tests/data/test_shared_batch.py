"""Batches on their way from a worker to the training process, whatever room /dev/shm has."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from helpers import batches_of

from videornn.data.annotations.load import load_videos
from videornn.data.dataset import BadVideo, Sample
from videornn.data.shared_batch import Batch, LostBatch, SentBatch, collate
from videornn.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory without a name")
# without workers, then with two, and after each of them an empty line
LOAD = """
import hashlib, sys
from videornn.config import DataConfig, EvalConfig
from videornn.data.annotations.load import load_videos
from videornn.data.loader import build_test_loader, view_spec

sys.stderr = sys.stdout
for num_workers in (0, 2):
    section = DataConfig(num_frames=4, num_workers=num_workers)
    spec = view_spec(section, EvalConfig(num_clips=2, num_crops=3, crop_size=128, short_side=128))
    for batch in build_test_loader(section, load_videos(sys.argv[1]), spec, batch_size=5):
        print(batch.clips.numel(), batch.valid.tolist(), hashlib.sha256(batch.clips.numpy().tobytes()).hexdigest())
    print()
"""


@pytest.fixture
def groups() -> list[list[Sample]]:
    """Two videos of two clips, channels last in memory as decoders leave them, and a bad one met on the way."""
    clips = torch.arange(4 * 3 * 2 * 5 * 7).remainder(251).to(torch.uint8).reshape(4, 2, 5, 7, 3).movedim(-1, 1)
    samples = [Sample(clip, number, 10 + number, number != 3) for number, clip in enumerate(clips)]
    samples[2] = Sample(clips[2], 2, 12, True, (BadVideo("a.mp4", "a.mp4: is empty"),))
    return [samples[:2], samples[2:]]


def _sent(groups: list[list[Sample]], monkeypatch: pytest.MonkeyPatch) -> SentBatch:
    """What arrives of a batch that a worker sends."""
    monkeypatch.setattr("videornn.data.shared_batch.get_worker_info", lambda: "a worker")
    return pickle.loads(ForkingPickler.dumps(collate(groups)))


def test_a_batch_arrives_as_it_was_sent(groups: list[list[Sample]], monkeypatch: pytest.MonkeyPatch) -> None:
    here = collate(groups)
    arrived = [_sent(groups, monkeypatch).open() for _ in range(3)]
    for batch in arrived:
        for name in ("clips", "labels", "indices", "valid"):
            mine, theirs = getattr(batch, name), getattr(here, name)
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype and mine.stride() == theirs.stride()
        assert batch.bad == here.bad == [BadVideo("a.mp4", "a.mp4: is empty")]
    arrived[0].clips.zero_()  # it is nobody else's
    assert torch.equal(arrived[1].clips, here.clips)


def test_a_batch_on_its_way_is_pinned_as_one_that_has_arrived(
    groups: list[list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "pin_memory", lambda self: ("pinned", self.clips))
    word, clips = _sent(groups, monkeypatch).pin_memory()
    assert word == "pinned" and torch.equal(clips, collate(groups).open().clips)


def test_a_batch_of_a_worker_that_is_gone_is_lost(groups: list[list[Sample]], monkeypatch: pytest.MonkeyPatch) -> None:
    sent = _sent(groups, monkeypatch)
    sent.open()
    with pytest.raises(LostBatch, match="a loader worker ended before its batch was taken"):
        sent.open()  # its memory is no longer held ready


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="other workers would have memory")
def test_no_memory_for_a_batch_is_a_sentence(
    groups: list[list[Sample]], motion_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(UserError, match=r"^a loader worker cannot have memory for a batch of 0 MB \(Cannot allocate"):
        batches_of(load_videos(str(motion_set / "train.txt")), 1, num_workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("filler", ["true", "head -c 9m /dev/zero > /dev/shm/other 2> /dev/null"])
def test_batches_come_where_dev_shm_is_too_small_or_full(motion_set: Path, filler: str) -> None:
    """/dev/shm of 4 MB in a namespace of its own, and batches of 6 MB."""
    mount = "mount -t tmpfs -o size=4m none /dev/shm &&"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        allowed = subprocess.run([*unshare, f"{mount} true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no file system can be mounted here")
    program = [sys.executable, "-c", LOAD, str(motion_set / "train.txt")]
    command = [*unshare, f'{mount} ({filler}; "$@")', "sh", *program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = [part.splitlines() for part in finished.stdout.split("\n\n")[:2]]
    batches = [[line for line in lines if line.startswith(f"{5 * 6 * 3 * 4 * 128**2} [True, True,")] for lines in said]
    assert batches[0] == batches[1] and len(batches[0]) == 4
    warned = [any("/dev/shm does not take the locks" in line for line in lines) for lines in said]
    assert warned == [False, filler != "true"]
