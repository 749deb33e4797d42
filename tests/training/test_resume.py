"""What a run goes on with from its checkpoint: the same data, wherever they lie now, and nothing else without a word."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import CONFIG

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.config import load_config
from videornn.data.annotations.packed_paths import PathPacker
from videornn.data.annotations.table import VideoTable
from videornn.data.dataset import BadVideo
from videornn.distributed import ranks
from videornn.errors import UserError
from videornn.schema import EvalConfig
from videornn.training import train as job
from videornn.training.preflight import load_training_data
from videornn.training.resume import check_same_data, describe_data, describe_run
from videornn.training.run import new_run
from videornn.training.train import train

LAST = Path("run/checkpoints/last.pt")
NAMES = ("walk", "run", "wave", "jump")
ROWS = [(f"clips/{number}.mp4", number % 4) for number in range(40)]


def _table(rows: list[tuple[str, int]], root: str = "/data") -> VideoTable:
    packer = PathPacker()
    for path, _ in rows:
        packer.append(path)
    return VideoTable("train.txt", root, packer.pack(), torch.tensor([label for _, label in rows], dtype=torch.int32), NAMES)


def _resumed(
    table: VideoTable, val: VideoTable | None = None, *, names: tuple[str, ...] = NAMES, accept: bool = False, **views: int
) -> list[str]:
    """Remarks of a run with these data that goes on from one with ROWS, the first four of which it validated."""
    before = describe_data(_table(ROWS), _table(ROWS[:4]), EvalConfig())
    saved = {"class_names": list(NAMES), "data": before, "best_top1": 62.5}
    now = describe_data(table, val or _table(ROWS[:4]), EvalConfig(**views))
    return check_same_data(saved, LAST, train=table, class_names=names, data=now, accept=accept)


def _swapped(rows: list[tuple[str, int]], one: int, other: int) -> list[tuple[str, int]]:
    rows = list(rows)
    rows[one], rows[other] = rows[other], rows[one]
    return rows


def test_the_same_videos_in_another_place_are_the_same_data() -> None:
    assert _resumed(_table(ROWS)) == [] == _resumed(_table(ROWS, "/elsewhere"))
    absolute = [(f"/elsewhere/{path}", label) for path, label in ROWS]
    assert _resumed(_table(absolute, "/elsewhere")) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (_swapped(ROWS, 7, 30), r"the 40 videos are in another order, from clips/30\.mp4 on"),
        (
            [(path, (label + 1) % 4) for path, label in ROWS],
            r"40 of 40 videos have other labels, the first clips/0\.mp4: 'run' now, 'walk' before",
        ),
        (
            [*ROWS[:9], ("clips/9.mp4", 3), *ROWS[10:]],
            r"1 of 40 videos have other labels, the first clips/9\.mp4: 'jump' now, 'run' before",
        ),
        (
            [*ROWS[:37], ("other/1.mp4", 1), ("other/2.mp4", 2), ("other/3.mp4", 3)],
            r"3 of 40 videos are others, the first other/1\.mp4",
        ),
        (
            [(path, 3 - label) for path, label in _swapped(ROWS, 0, 1)],
            r"another order, from clips/1\.mp4 on; 40 of 40 videos have other labels, the first clips/1\.mp4: 'wave' now",
        ),
    ],
    ids=["reordered", "every label shifted", "one label", "others", "reordered and relabelled"],
)
def test_other_data_are_named_and_refused_unless_accepted(rows: list[tuple[str, int]], said: str) -> None:
    with pytest.raises(
        UserError, match=rf"train\.txt is not what run/checkpoints/last\.pt was trained on: .*{said}"
    ) as error:
        _resumed(_table(rows))
    assert "train.accept_other_data=true" in str(error.value)
    (remark,) = _resumed(_table(rows), accept=True)
    assert re.search(said, remark)


def test_permuted_class_names_are_never_accepted_and_renamed_ones_if_asked_for() -> None:
    for names in (("run", "walk", "wave", "jump"), ("Jump", "run", "wave", "walk"), ("walk", "wave", "jump", "new")):
        for accept in (False, True):
            with pytest.raises(UserError, match=r"of 4 classes have other numbers than in .*call each by another's name"):
                _resumed(_table(ROWS), names=names, accept=accept)
    assert _resumed(_table(ROWS), names=("Walk", "run", "wave", "jump")) == []
    renamed = ("walk", "jog", "wave", "jump")
    with pytest.raises(UserError, match="1 classes have other names, the first number 1: 'jog' now, 'run' before"):
        _resumed(_table(ROWS), names=renamed)
    assert "'jog' now" in _resumed(_table(ROWS), names=renamed, accept=True)[0]


def test_the_best_validation_of_other_videos_or_views_is_said_to_count_no_more() -> None:
    said = "the best top-1 so far, 62.50 %, does not count for best.pt any more"
    for remarks in (_resumed(_table(ROWS), _table(ROWS[4:8])), _resumed(_table(ROWS), crop_size=128)):
        assert remarks == [f"data.val has other videos, labels or views now: {said}"]
    saved = {
        "class_names": list(NAMES),
        "data": describe_data(_table(ROWS), _table(ROWS[:4]), EvalConfig()),
        "best_top1": 62.5,
    }
    now = describe_data(_table(ROWS), None, EvalConfig())
    remarks = check_same_data(saved, LAST, train=_table(ROWS), class_names=NAMES, data=now, accept=False)
    assert remarks == [f"there is no data.val any more: {said}"]


def test_a_checkpoint_of_before_tells_its_class_names_alone() -> None:
    table = _table(_swapped(ROWS, 0, 1))
    now = describe_data(table, None, EvalConfig())
    saved = {"class_names": list(NAMES), "best_top1": 62.5}
    assert check_same_data(saved, LAST, train=table, class_names=NAMES, data=now, accept=False) == []
    with pytest.raises(UserError, match="2 of 4 classes have other numbers"):
        check_same_data(saved, LAST, train=table, class_names=NAMES[::-1][2:] + NAMES[2:], data=now, accept=False)


def test_ranks_with_other_lists_or_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(CONFIG)
    described = [
        describe_run(config, describe_data(_table(ROWS), None, EvalConfig()), NAMES),
        describe_run(config, describe_data(_table(ROWS, "/on/another/node"), None, EvalConfig()), NAMES),
        describe_run(load_config(CONFIG, ["train.lr=3.0"]), describe_data(_table(ROWS[::-1]), None, EvalConfig()), NAMES),
    ]
    monkeypatch.setattr(ranks, "gather_objects", lambda values: described[:2])
    assert ranks.agreed(described[0], doing="train", needs="lists") is described[0]
    monkeypatch.setattr(ranks, "gather_objects", lambda values: described)
    with pytest.raises(UserError, match=r"rank 2 does not train the same as rank 0 \(different: train settings, videos\)"):
        ranks.agreed(described[0], doing="train", needs="lists")


def test_hashes_of_paths_do_not_depend_on_what_all_have_in_common_and_do_on_every_byte() -> None:
    paths = ["a/b/c.mp4", "a/b/cc.mp4", "a/b/c.mp", "é/\udcff.mp4", "", "x" * 3000, "a/b/d.mp4"]

    def hashes(paths: list[str], root: str = "") -> list[int]:
        packer = PathPacker()
        for path in paths:
            packer.append(path)
        return packer.pack().hashes(root).tolist()

    together = hashes(paths)
    assert len(set(together)) == len(paths) and together == [hashes([path])[0] for path in paths]
    assert hashes(paths[:3]) == together[:3]  # which begin alike
    assert hashes(["/r/a", "/r/b"], "/r") == hashes(["a", "b"]) != hashes(["/r/a", "/r/b"], "/other")
    assert hashes([]) == []


def test_the_fingerprint_of_a_large_set_takes_little_time_and_no_more_than_12_bytes_a_video() -> None:
    packer = PathPacker()
    for number in range(100_000):
        packer.append(f"train/some class name {number % 700:03d}/{number:011d}_000012_000022.mp4")
    table = VideoTable("list", "", packer.pack(), torch.zeros(len(packer), dtype=torch.int32))
    start = time.process_time()
    fingerprint = table.fingerprint()
    assert time.process_time() - start < 1.5  # 0.1 s where nobody else computes
    assert sum(values.nbytes for values in fingerprint.values()) == 12 * len(table)
    assert len(fingerprint["paths"].unique()) == len(table)


def test_a_run_whose_set_has_moved_goes_on_and_one_whose_list_changed_does_not(
    tiny_run: Path, tiny_settings: list[str], motion_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(motion_set, tmp_path / "moved")
    shutil.copytree(tiny_run, tmp_path / "run")
    settings = [setting.replace(str(motion_set), f"{tmp_path}/moved") for setting in tiny_settings]
    train(load_config(CONFIG, settings), tmp_path / "run", resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tiny_run / "metrics.jsonl").read_text()
    shutil.copy(tmp_path / "moved/test.txt", tmp_path / "moved/val.txt")
    train(load_config(CONFIG, settings), tmp_path / "run", resume=True)
    assert "data.val has other videos, labels or views now: the best top-1 so far" in capsys.readouterr().out
    lines = (tmp_path / "moved/train.txt").read_text().splitlines()
    (tmp_path / "moved/train.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match=rf"20 videos are in another order, from {lines[1].rsplit(' ', 1)[0]} on"):
        train(load_config(CONFIG, settings), tmp_path / "run", resume=True)


def test_a_run_that_another_process_began_while_this_one_waited_is_not_joined(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    @contextmanager
    def taken(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.pt").write_text("of the other process")
        yield None

    monkeypatch.setattr(job, "run_lock", taken)
    with pytest.raises(UserError, match=r"run already holds a run; add --resume to go on with it, or choose another --out"):
        train(load_config(CONFIG, tiny_settings), out)
    assert [file.name for file in out.iterdir()] == ["checkpoints"]


def test_a_checkpoint_that_went_away_meanwhile_is_no_reason_to_begin_without_model_init(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints/last.pt").write_text("soon gone")

    @contextmanager
    def emptied(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        (folder / "checkpoints/last.pt").unlink()
        yield None

    monkeypatch.setattr(job, "run_lock", emptied)
    with pytest.raises(UserError, match="its checkpoints are gone since a moment ago; give the same command again"):
        train(load_config(CONFIG, [*tiny_settings, "model.init=weights.pt"]), out, resume=True)


def test_bad_videos_are_saved_once_by_their_place_in_the_set(
    tiny_settings: list[str], motion_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(motion_set, tmp_path / "moved")
    runs = []
    for root in (motion_set, tmp_path / "moved"):
        settings = [setting.replace(str(motion_set), str(root)) for setting in tiny_settings]
        data, config = load_training_data(load_config(CONFIG, settings))
        runs.append(new_run(config, tmp_path / "run", data, torch.device("cpu"), load_init=False))
    first, moved = runs
    (tmp_path / "run").mkdir()
    path = first.data.train.path(3)
    first.bad = {path: BadVideo(path, "it is broken"), "/elsewhere/a.mp4": BadVideo("/elsewhere/a.mp4", "so is it")}
    monkeypatch.setattr(ranks, "gather_objects", lambda value: [value, value])  # a second rank knows the same
    first.save(last=True, best=False)
    first.saving.wait()
    saved = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["bad"] == [[first.data.train.paths[3], "it is broken"], ["/elsewhere/a.mp4", "so is it"]]
    monkeypatch.setattr(ranks, "rank", lambda: 1)  # every rank knows them
    moved.load(saved, tmp_path / "run/checkpoints/last.pt")
    there = moved.data.train.path(3)
    assert moved.bad == {there: BadVideo(there, "it is broken"), "/elsewhere/a.mp4": first.bad["/elsewhere/a.mp4"]}
