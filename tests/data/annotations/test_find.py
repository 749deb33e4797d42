"""Which files are videos: all that FFmpeg reads as such, none that systems hide; what is left out is counted."""

import os
from collections import Counter
from pathlib import Path

import pytest
from helpers import ROOT

from videornn.config import load_config
from videornn.data.annotations.find import counted
from videornn.data.annotations.load import load_videos
from videornn.data.video.decoders import open_video
from videornn.errors import UserError
from videornn.inference.predictor import find_videos
from videornn.training.preflight import load_training_data, remarks


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _paths(folder: Path) -> list[str]:
    table = load_videos(str(folder))
    return [os.path.relpath(table.path(row), folder) for row in range(len(table))]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((".MTS", "libx264"), (".m2ts", "libx264"), (".h264", "libx264"), (".vob", "mpeg2video"), (".mxf", "mpeg2video")),
        *((".m2v", "mpeg2video"), (".3gp", "mpeg4"), (".flv", "flv"), (".ASF", "msmpeg4")),
    ],
)
def test_files_of_cameras_and_recorders_are_videos(make_video, tmp_path: Path, suffix: str, codec: str) -> None:
    _touch(tmp_path, "videos/walk/notes.txt")
    make_video(tmp_path / f"a{suffix.lower()}", 12, codec=codec).rename(tmp_path / f"videos/walk/a{suffix}")
    assert _paths(tmp_path / "videos") == [f"walk/a{suffix}"]
    with open_video(str(tmp_path / f"videos/walk/a{suffix}")) as video:
        assert video.num_frames == 12


def test_what_systems_hide_is_neither_video_nor_class(tmp_path: Path) -> None:
    _touch(tmp_path, "walk/a.mp4", "walk/@eaDir/a.mp4/SYNOVIDEO.jpg", "walk/._a.mp4", "walk/.DS_Store", "walk/Thumbs.db")
    _touch(tmp_path, "@eaDir/walk/a.jpg", "#recycle/b.mp4", "__MACOSX/walk/._a.mp4", "$RECYCLE.BIN/x.mp4", ".DS_Store")
    table = load_videos(str(tmp_path))
    assert table.class_names == ("walk",) and _paths(tmp_path) == ["walk/a.mp4"]
    assert table.remarks() == [
        f"{tmp_path}: 1 hidden .mp4 are left out, as they are called like no video or are in no class folder"
    ]
    assert find_videos([str(tmp_path)]) == [f"{tmp_path}/walk/a.mp4"]


def test_a_folder_that_is_called_like_a_video_is_looked_into(tmp_path: Path) -> None:
    _touch(tmp_path, "walk/a.mp4/a.mp4", "walk/b.avi/1.jpg", "walk/c.mkv/notes.txt")
    assert _paths(tmp_path) == ["walk/a.mp4/a.mp4", "walk/b.avi"]


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _touch(tmp_path, "walk/a.mp4", "walk/b.mtsx", "walk/deep/C.MTSX", "walk/notes.txt", "walk/thumb.jpg", "run/b.mp4")
    _touch(tmp_path, "run/LICENSE", "run/frames/1.png", "run/frames/2.png", "stray.mp4", "readme.txt")
    assert len(load_videos(str(tmp_path))) == 3
    (remark,) = load_videos(str(tmp_path)).remarks()
    assert "2 .mtsx, 2 .txt, 1 .jpg, 1 .mp4, 1 LICENSE are left out" in remark
    assert len(find_videos([str(tmp_path)])) == 4
    assert f"folder {tmp_path}: 2 .mtsx, 2 .txt" in capsys.readouterr().err
    assert counted(Counter({f".{number:02d}": 20 - number for number in range(11)})).endswith(", 13 .07, 3 other kinds")


def test_pictures_without_numbers_in_their_names_are_no_frames(tmp_path: Path) -> None:
    _touch(tmp_path, "walk/a.mp4", "walk/thumbs/bird.jpg", "walk/thumbs/cat.jpg", "run/b/1.jpg", "run/test/confusion.png")
    assert _paths(tmp_path) == ["run/b", "walk/a.mp4"]
    (remark,) = load_videos(str(tmp_path)).remarks()
    assert "2 .jpg, 1 .png are left out" in remark
    with pytest.raises(UserError, match="thumbs has no video"):
        find_videos([str(tmp_path / "walk/thumbs")])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["walk/a.mtsx", "walk/b.mtsx"], "walk has no video: it holds 2 .mtsx$"),
        (["walk/1.jpg", "walk/2.jpg"], "walk has no video: it holds 2 .jpg; frames of a video are a folder within"),
        (["a/x.mp4", "walk/.hidden"], "walk has no video$"),
        (
            ["train/walk/a.mp4", "val/walk/b.mp4", "annotations/x.json"],
            r"holds splits, not classes \(train, val\): give .*/train$",
        ),
        (["train/a.mp4"], r"holds splits, not classes \(train\)"),
        (["test_videos/walk/a.mp4", "train_videos/walk/b.mp4"], r"splits, not classes .* give .*/train_videos$"),
        (["a.mp4", "b.mp4"], "has no class folders; .*: it holds videos itself; if it is one class of several, give /"),
        (["a.mp4", "labels.csv"], r"has no class folders; .*: is .*/labels\.csv its list\?$"),
    ],
)
def test_folders_without_videos_or_classes_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        load_videos(str(tmp_path))


def test_folders_a_level_too_high_and_a_single_class_are_remarked(tmp_path: Path) -> None:
    _touch(tmp_path, *[f"videos/{name}/{number}.mp4" for name in ("walk", "run") for number in range(3)])
    config = load_config(ROOT / "configs/quickstart.yaml", [f"data.train={tmp_path}", "data.val=null"])
    data, _ = load_training_data(config)
    high, single = remarks(config, data, 8)
    assert f"such as videos/run/0.mp4: its class is videos; if it should be run, give {tmp_path}/videos" in high
    assert "there is one class only, videos" in single
    _touch(tmp_path / "videos", "val/walk/9.mp4")
    assert "val is called like a split, and taken for a class" in load_videos(str(tmp_path / "videos")).remarks()[0]
    (tmp_path / "videos/val").rename(tmp_path / "videos/sit")
    assert load_videos(str(tmp_path / "videos")).remarks() == []
    _touch(tmp_path, "other/a.mp4")
    assert load_videos(str(tmp_path)).remarks() == []
