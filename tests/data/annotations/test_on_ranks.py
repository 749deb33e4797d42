"""Lists that rank 0 reads for all ranks."""

import platform
from pathlib import Path

import numpy as np
import pytest
from helpers import CONFIG

from videornn.config import load_config
from videornn.data.annotations import find as video_files
from videornn.data.annotations import on_ranks
from videornn.data.annotations.load import load_videos
from videornn.data.annotations.table import VideoTable
from videornn.distributed.ranks import rank
from videornn.distributed.watch import RankWatch
from videornn.schema import DataConfig
from videornn.training.preflight import load_training_data

KINETICS = """label,youtube_id,time_start,time_end,split
waving,aaaaaaaaaaa,1,11,train
"air drumming",bbbbbbbbbbb,2,12,train
waving,ccccccccccc,3,13,train
waving,ddddddddddd,4,14,validate
"""
VIDEOS = [f"{letter * 11}_{start:06d}_{start + 10:06d}.mp4" for letter, start in {"a": 1, "b": 2, "d": 4}.items()]


def _files(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _kinetics(folder: Path) -> list[str]:
    """Settings of a training on a Kinetics list, of which one video is not there."""
    _files(folder / "videos/deep", VIDEOS)
    (folder / "k.csv").write_text(KINETICS)
    return [f"data.train={folder}/k.csv", f"data.val={folder}/k.csv", f"data.root={folder}/videos"]


def _rows(table: VideoTable) -> list[object]:
    """All that a table holds."""
    columns = [np.asarray(column).tolist() for column in (table.labels, table.missing_labels)]
    paths = [list(paths) for paths in (map(table.path, range(len(table))), table.missing)]
    return [table.source, *paths, *columns, table.class_names, table.files_seen, table.notes, table.remarks()]


def _load(watch: RankWatch, settings: list[str], of_rank_1: list[str]) -> str:
    """What a rank has of a training's lists, and how many folders it has looked into for that."""
    looked_into, entries = [], video_files._entries
    video_files._entries = lambda folder: looked_into.append(folder) or entries(folder)
    try:
        data, config = load_training_data(load_config(CONFIG, settings + (of_rank_1 if rank() == 1 else [])))
    finally:
        video_files._entries = entries
    return f"{len(looked_into)} {[_rows(data.train), _rows(data.val), data.class_names, config.model.num_classes]}"


def _load_each(watch: RankWatch, several: list[list[str]]) -> str:
    return "\n".join(_load(watch, settings, []) for settings in several)


def test_rank_0_alone_looks_for_videos_and_all_have_its_table(start_ranks, tmp_path: Path) -> None:
    folders = _files(tmp_path / "folders", ["wave/a.mp4", "wave/b.mp4", "bend/c.mp4"])
    plain = _files(tmp_path / "plain", ["a b.mp4", "c.mp4"]) / "list.txt"
    plain.write_text('"a b.mp4" 0\nc.mp4 1\nmissing.mp4 0\n')
    several = [_kinetics(tmp_path), *([f"data.train={source}", f"data.val={source}"] for source in (folders, plain))]
    ours, theirs = (result.splitlines() for result in start_ranks(2, _load_each, several, timeout=300.0).results())
    alone = _load_each(None, several).splitlines()
    assert ours == alone and [line.split(" ", 1)[0] for line in ours] == ["4", "4", "0"]  # for training and validation
    assert theirs == ["0 " + line.split(" ", 1)[1] for line in alone]


def test_wrong_lines_are_told_alike_by_all_ranks(start_ranks, tmp_path: Path) -> None:
    settings = _kinetics(tmp_path)
    (tmp_path / "k.csv").write_text(KINETICS + "waving,eeeeeeeeeee,soon,15,train\n" + "waving,f\n")
    results = start_ranks(2, _load, settings, [], timeout=300.0).results()
    first = f"{tmp_path}/k.csv:6: 'waving,eeeeeeeeeee,soon,15,train': 'soon' is not a time in seconds"
    second = f"{tmp_path}/k.csv:7: 'waving,f': there are 2 columns where the header has 5"
    assert results == [f"UserError: {first} | {second}"] * 2


def test_a_node_may_have_the_videos_elsewhere_but_it_must_have_them(start_ranks, tmp_path: Path) -> None:
    settings, there = _kinetics(tmp_path), _files(tmp_path / "local/deep", VIDEOS).parent
    of_rank_1 = [f"data.root={there}"]
    ours, theirs = start_ranks(2, _load, settings, of_rank_1, timeout=300.0).results()
    assert theirs == ours.replace("4 ", "0 ", 1).replace(f"{tmp_path}/videos", str(there))
    (there / "deep" / VIDEOS[1]).unlink()
    lost = f"rank 1 on {platform.node()} has no {there}/deep/{VIDEOS[1]}, which rank 0 has found"
    sentence = f"UserError: {lost}: every node needs the same videos; mount or copy {there} there"
    assert start_ranks(2, _load, settings, of_rank_1, timeout=60.0).results() == [sentence] * 2


def test_a_long_search_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _kinetics(tmp_path)
    source, root = f"{tmp_path}/k.csv", f"{tmp_path}/videos"
    monkeypatch.setattr(on_ranks, "TELL_SECONDS", 600.0)
    on_ranks.load_list(DataConfig(root=root), source, "train")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(on_ranks, "TELL_SECONDS", 0.0)
    on_ranks.load_list(DataConfig(root=root), source, "train")
    said = [f"looking for the videos of {source} under {root}: {number} names so far" for number in range(1, 5)]
    assert capsys.readouterr().out.splitlines() == said


SOURCES = {
    "k.csv": {"k.csv": KINETICS, VIDEOS[0]: ""},
    "something.json": {"something.json": '[{"id": "7", "template": "Moving [it]"}]', "7.webm": ""},
    "ucf": {
        "ucf/classInd.txt": "1 Wave\n",
        "ucf/trainlist01.txt": "Wave/v_Wave_g01_c01.avi 1\n",
        "Wave/v_Wave_g01_c01.avi": "",
    },
    "hmdb": {"hmdb/wave_test_split1.txt": "a.avi 1\n", "wave/a.avi": ""},
    "folders": {"folders/wave/a.mp4": "", "folders/bend/b.mp4": ""},
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_search_tells_each_name_that_it_meets(tmp_path: Path, name: str) -> None:
    for file, text in SOURCES[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    told = []
    root = None if name == "folders" else str(tmp_path)
    table = load_videos(str(tmp_path / name), root=root, split="train", on_name=lambda: told.append("a name"))
    searched = tmp_path / "folders" if name == "folders" else tmp_path
    below = sum(path.parent != tmp_path or name != "folders" for path in searched.rglob("*"))
    classes = 2 if name == "folders" else 0  # the class folders themselves are listed, not searched for
    assert len(table) and len(told) == below - classes
