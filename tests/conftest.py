"""Tiny videos and a tiny trained run that many tests share; everything is made here, nothing is downloaded."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import torch
from filelock import FileLock  # a requirement of torch

if TYPE_CHECKING:
    from ranks import Ranks

# several processes of tests keep the cores busy by themselves; threads of theirs would wait for each other
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
if NUM_THREADS == 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
# whoever runs the tests in the background has Ctrl-C ignored, and the commands that tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def write_video(
    path: Path,
    num_frames: int,
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str | None = None,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """A video whose frame i is grey of brightness 16 + 3 i, plus a bright square that moves; size is (width, height).

    times: when each frame appears, in 1 / fps seconds; by default one after the other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = codec or ("mpeg4" if path.suffix == ".avi" else "libx264")
        quality = {"qp": "4", "qmin": "2", "qmax": "2"} if codec in ("libx264", "mpeg4", "mpeg2video") else {}
        stream = container.add_stream(codec, rate=fps, options={**quality, **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(num_frames):
            picture = np.full((size[1], size[0], 3), 16 + 3 * index, np.uint8)
            picture[8:16, (3 * index) % (size[0] - 8) :][:, :8] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        # run by root, SVT-AV1 makes whoever encodes a real-time process, which starves all others from then on
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def frame_numbers(frames: torch.Tensor) -> list[int]:
    """Which frames of a write_video these are, read from the brightness of the lower half."""
    return [round((float(frame[frame.shape[0] // 2 :].float().mean()) - 16) / 3) for frame in frames]


@pytest.fixture(scope="session")
def make_video():
    return write_video


@pytest.fixture(scope="session")
def read_frame_numbers():
    return frame_numbers


def made_once(name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the first process of tests to need it makes for all of them."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            made = tmp_path_factory.mktemp("made") / name
            make(made)
            made.rename(shared / name)
    return shared / name


@pytest.fixture(scope="session")
def motion_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set of 2 training, 1 validation and 1 test video for each of 10 classes; not to be changed."""
    from videornn.data.synthetic.make import make_synthetic

    return made_once("motion", partial(make_synthetic, num_train=2, num_val=1, num_test=1, num_workers=1), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_settings(motion_set: Path) -> list[str]:
    """Overrides of configs/quickstart.yaml that make a run of seconds."""
    return [
        f"data.train={motion_set}/train.txt",
        f"data.val={motion_set}/val.txt",
        f"data.test={motion_set}/test.txt",
        "data.num_frames=4",
        "data.crop_size=32",
        "data.short_side=[32,40]",
        "data.num_workers=0",
        "model.width=8",
        "train.epochs=2",
        "train.batch_size=8",
        "train.log_every=1",
        "test.num_clips=2",
        "test.crop_size=32",
        "test.short_side=32",
    ]


@pytest.fixture(scope="session")
def tiny_run(motion_set: Path, tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training of two epochs, which tests add to."""
    from videornn.config import load_config
    from videornn.training.train import train

    config = load_config(Path(__file__).parents[1] / "configs/quickstart.yaml", tiny_settings)
    made = made_once("trained", partial(train, config), tmp_path_factory)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("run") / "tiny"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos; tests that need it are skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("real videos (shared/data beside the checkout) are not here")
    return SHARED


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium driven by playwright; tests that need it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium (chromium, chromium-browser, google-chrome) is here")
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def room_for_files():
    """A disk on which no file of this process can grow beyond so many bytes: writing fails as it does on a full one."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))  # Python ignores the signal that goes with it
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def without_root_rights():
    """A context in which root, too, may read only what its modes say; others do so anyway."""
    capabilities = (1 << 1) | (1 << 2)  # to write, and to read, whatever the modes of a file say

    @contextmanager
    def without() -> Iterator[None]:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            yield
            return
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version; this thread
        before = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, before) == 0
        now = (ctypes.c_uint32 * 6)(*before)
        now[0] &= ~capabilities
        assert libc.capset(header, now) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())

    return without


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Ranks(num_ranks, body, ...), all of them ended after the test."""
    from ranks import Ranks

    started = []

    def start(num_ranks: int, body: Callable, *arguments: object, timeout: float = 2.0) -> Ranks:
        started.append(Ranks(num_ranks, tmp_path, body, *arguments, timeout=timeout))
        return started[-1]

    yield start
    for ranks in started:
        ranks.end()


@pytest.fixture
def videornn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: (exit code, output, errors)."""
    from videornn.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["videornn", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training measures the machine some times, with matrices that grow until they take long."""
    monkeypatch.setattr("videornn.system.device.LONG_ENOUGH", 0.0)
