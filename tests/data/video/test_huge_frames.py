"""Frames that are too large are refused before they are decoded, by every reader, and others cost the memory of one."""

import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIG, SMALL, plan_of
from PIL import Image

from videornn import config
from videornn.cli.data import data_app
from videornn.config import load_config
from videornn.data.annotations.load import load_videos
from videornn.data.dataset import ClipKey, load_views
from videornn.data.loader import build_loader, build_test_loader, plain_plan, view_spec
from videornn.data.prepare.prepare import prepare_videos
from videornn.data.prepare.reencode import Encoding
from videornn.data.prepare.verify import inspect_video
from videornn.data.transforms import TrainTransform, _crop, crop_views
from videornn.data.video import pyav
from videornn.data.video.decoders import open_video, why_not
from videornn.data.video.pictures import MAX_FRAME_PIXELS, TooLarge
from videornn.data.video.stream import VideoStream
from videornn.data.video.write import redraw_movie
from videornn.errors import DecodeError
from videornn.explain.job import load_clip
from videornn.inference.overlay import redraw_whole
from videornn.inference.predictor import load_predictor
from videornn.report.examples import _read_evenly
from videornn.tools.bench import _time_stages


@pytest.fixture(scope="module")
def large(make_video, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """76,800 pixels a frame."""
    return make_video(tmp_path_factory.mktemp("large") / "large.mp4", 10, size=(320, 240))


def _read(path: Path, reader: str, max_pixels: int) -> tuple[int, ...]:
    if reader == "stream":
        with VideoStream(str(path), max_pixels=max_pixels) as stream:
            return next(stream.frames()).picture().shape
    with open_video(path, reader, max_pixels=max_pixels) as video:
        return tuple(video.frames_at(torch.tensor([1]))[0].shape)


@pytest.mark.parametrize("reader", ["pyav", "stream", "decord", "torchcodec"])
def test_a_video_is_refused_from_one_pixel_too_many_on(large: Path, reader: str) -> None:
    if reader != "stream" and (reason := why_not(reader)):
        pytest.skip(reason)
    assert _read(large, reader, 320 * 240) == (240, 320, 3)
    sentence = r"large\.mp4: has frames of 320 x 240 pixels, more than data\.max_frame_pixels=76799"
    with pytest.raises(TooLarge, match=sentence):
        _read(large, reader, 320 * 240 - 1)


def test_pictures_of_a_folder_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for number, size in enumerate([(20, 10), (20, 11)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[:60])  # its size, and no more
    with open_video(tmp_path, max_pixels=200) as video:
        assert video.frames_at(torch.tensor([0])).shape == (1, 10, 20, 3)
        with pytest.raises(TooLarge, match=r"1\.png: has frames of 20 x 11 pixels"):
            video.frames_at(torch.tensor([1]))
    report = inspect_video(str(tmp_path), max_pixels=200)
    assert report.status == "too_large" and "20 x 11" in report.reason


def test_the_decoder_refuses_what_becomes_too_large_in_mid_stream(make_video, tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{number}.ts", 5, size=size) for number, size in enumerate([(64, 48), (640, 480)])]
    path = tmp_path / "grows.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert open_video(path).frames_at(torch.tensor([9])).shape == (1, 480, 640, 3)
    with open_video(path, max_pixels=2**16) as video:
        assert video.frames_at(torch.tensor([4])).shape == (1, 48, 64, 3)
        with pytest.raises(DecodeError, match=r"grows\.ts: "):
            video.frames_at(torch.tensor([9]))
    with VideoStream(str(path), max_pixels=2**16) as stream:
        assert {frame.picture().shape for frame in stream.frames()} == {(48, 64, 3)} and stream.num_damaged


def test_8k_is_taken_and_what_ffmpeg_barely_opens_is_not() -> None:
    assert 7680 * 4320 < 8192 * 4096 < MAX_FRAME_PIXELS < 16000 * 16000
    assert load_config(CONFIG).data.max_frame_pixels == MAX_FRAME_PIXELS


def test_the_setting_reaches_every_reader_and_the_video_is_named(
    large: Path, tiny_run: Path, motion_set: Path, tmp_path: Path
) -> None:
    sound = next((motion_set / "videos").rglob("*.mp4"))
    bound = "data.max_frame_pixels=65536"
    predictor = load_predictor(tiny_run / "checkpoints/last.pt", overrides=[bound, "data.num_workers=0"])
    trained, data = predictor.trained, predictor.trained.config.data
    reads = {
        "infer in Python": lambda: predictor(large),
        "infer": lambda: [_raise(prediction.error) for prediction in predictor.predict_many([large]) if prediction.error],
        "infer --window": lambda: list(predictor.windows(large, window=0.3)),
        "explain": lambda: load_clip(trained, str(large)),
        "report": lambda: _read_evenly(str(large), data),
        "overlay": lambda: list(redraw_movie(str(large), tmp_path / "a.mp4", lambda picture, _: picture, 2**16)),
        "overlay of a whole": lambda: list(redraw_whole(str(large), tmp_path / "a.mp4", ("a",), np.ones(1), 2**16)),
    }
    for name, read in reads.items():
        with pytest.raises(DecodeError, match=r"large\.mp4: has frames of 320 x 240 pixels"):
            pytest.fail(f"{name} read it: {read()}")
    first, second = predictor.predict_many([large, sound])
    assert "320 x 240" in first.error and second.scores is not None

    (tmp_path / "list.txt").write_text(f"{large} 0\n{sound} 1\n")
    table = load_videos(str(tmp_path / "list.txt"))
    section = SMALL.model_copy(update={"max_frame_pixels": 2**16, "num_workers": 0})
    (sample,) = build_loader(section, table, plan=plan_of(2, 2), seed=0).dataset[ClipKey(0, 0, 0, 4, 16)]
    assert sample.index == 1 and "320 x 240" in sample.bad[0].reason
    views = view_spec(section, config.EvalConfig(num_clips=1, num_crops=1, crop_size=16, short_side=16))
    (batch,) = build_test_loader(section, table, views, batch_size=2)
    assert batch.valid.tolist() == [False, True] and "320 x 240" in batch.bad[0].reason
    timed = load_config(CONFIG, [bound, "data.num_workers=0"])
    assert _time_stages(timed, table, torch.device("cpu"), 2, lambda done: None)[1] == 1


def _raise(reason: str) -> None:
    raise DecodeError(reason)


def test_verify_and_prepare_have_a_row_for_it(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text(f"{large} 0\n")
    run = partial(data_app, standalone_mode=False)
    told = []
    monkeypatch.setattr("videornn.cli.data.complain", told.append)
    # as workers do it, which this process is now
    for module in ("verify", "prepare"):
        monkeypatch.setattr(
            f"videornn.data.prepare.{module}.run_parallel", lambda work, jobs, **_: enumerate(map(work, jobs))
        )
    arguments = [str(tmp_path / "list.txt"), "--max-frame-pixels", "76799"]
    assert run(["verify", *arguments, "--full"]) == 1
    assert told == [f"{large}: has frames of 320 x 240 pixels, more than data.max_frame_pixels=76799 allows"]
    run(["verify", *arguments[:2], "76800"])
    for max_pixels, status in ((76799, "too_large"), (76800, "ok")):
        out = tmp_path / str(max_pixels)
        (row,) = prepare_videos(arguments[0], out, Encoding(), root=str(large.parent), max_pixels=max_pixels).rows
        assert row.status == status


@pytest.fixture
def frames_held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many whole frames there are whenever another one has been decoded."""
    convert, held, counts = pyav.to_picture, weakref.WeakValueDictionary(), []

    class Picture(np.ndarray):
        """An array that tells when it is gone."""

    def counted(*arguments: object) -> np.ndarray:
        picture = convert(*arguments).copy().view(Picture)
        held[len(counts)] = picture
        counts.append(len(held))
        return picture

    monkeypatch.setattr(pyav, "to_picture", counted)
    return counts


@pytest.mark.parametrize("num_frames", [3, 24])
def test_of_a_clip_memory_holds_one_whole_frame_at_a_time(large: Path, num_frames: int, frames_held: list[int]) -> None:
    section = SMALL.model_copy(update={"num_frames": num_frames, "clips_per_video": 3, "num_workers": 0})
    test = config.EvalConfig(num_clips=4, num_crops=3, crop_size=16, short_side=16)
    assert load_views(str(large), view_spec(section, test)).shape == (12, 3, num_frames, 16, 16)
    assert len(frames_held) <= 10 and max(frames_held) <= 2  # the one that is cut, and the one that takes its place
    frames_held.clear()
    (large.parent / "list.txt").write_text(f"{large} 0\n")
    table = load_videos(str(large.parent / "list.txt"))
    dataset = build_loader(section, table, plan=plain_plan(section, 1, 1, 3), seed=0).dataset
    assert len(dataset[ClipKey(0, 0, 0, num_frames, 16)]) == 3
    assert len(frames_held) <= 10 and max(frames_held) <= 2
    frames_held.clear()
    assert _read_evenly(str(large), section)[0].shape == (12, 132, 176, 3)
    assert len(frames_held) == 10 and max(frames_held) <= 2


@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("size", [(320, 240), (48, 64), (300, 16)])
def test_frames_cut_one_by_one_are_those_cut_together(
    make_video, tmp_path: Path, size: tuple[int, int], num_crops: int
) -> None:
    path = make_video(tmp_path / "a.mkv", 6, size=size, codec="ffv1")
    spec = view_spec(SMALL, config.EvalConfig(num_clips=3, num_crops=num_crops, crop_size=16, short_side=20))
    with open_video(path) as video:
        (indices,) = spec.choose(video)
        frames = video.frames_at(indices)
        first, second = torch.tensor([5, 0, 5]), torch.tensor([2, 2, 0])
        rows = video.cuts_at(torch.stack([first, second]), [lambda frame: frame, lambda frame: 255 - frame])
        assert torch.equal(rows, torch.stack([video.frames_at(first), 255 - video.frames_at(second)]))
    together = crop_views(frames, 16, 20, num_crops).unflatten(2, (3, -1)).permute(2, 0, 1, 3, 4, 5).flatten(0, 1)
    assert torch.equal(load_views(str(path), spec), together)
    for crop in ("scale_jitter", "resized"):
        transform = TrainTransform(16, crop, (16, 24), hflip=0.5, color_jitter=0.4, rand_augment=2, erasing=0.5)
        draws = [torch.Generator().manual_seed(7) for _ in range(2)]
        draw_box = transform._draw_scaled_square if crop == "scale_jitter" else transform._draw_resized_box
        crops = _crop(frames, draw_box(*frames.shape[1:3], draws[0]), 16).permute(0, 2, 3, 1)
        assert torch.equal(transform(frames, 0, draws[1])[0], transform.finish(crops, 0, draws[0])[0])
