import json
import re
import shutil
from pathlib import Path

import pytest

from videornn.errors import UserError
from videornn.system.console import SafeConsole
from videornn.training.logger import RunLogger

# what ends TensorBoard's thread when there is no room
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

NUMBERS = {
    "epoch": 0.5,
    "loss": 2.0,
    "top1": 10.0,
    "lr": 0.1,
    "clips_per_second": 3.0,
    "data_wait": 0.1,
    "mfu": 0.4,
    "memory_gb": 1.5,
}


def _steps(folder: Path) -> list[tuple[str, int]]:
    return [
        (record["kind"], record["step"]) for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ]


def _line(step: int, kind: str = "train") -> str:
    return json.dumps({"kind": kind, "step": step, "loss": 1.5}) + "\n"


@pytest.mark.parametrize(
    "torn",
    [
        "",
        '{"kind": "train", "st',
        '{"kind": "train", "step": 5}',
        "\0\0\0\0\n",
        "\0\0",
        '{"kind": "val"}\n',
        "5\n",
        "[" * 100_000 + "\n",
    ],
)
def test_a_resumed_run_keeps_the_lines_of_the_steps_it_does_not_do_again(torn: str, tmp_path: Path) -> None:
    kept = _line(2) + _line(4) + _line(4, "val")
    for first_step, expected in ((4, kept), (5, kept), (3, _line(2)), (0, "")):
        (tmp_path / "metrics.jsonl").write_text(kept + (_line(6) if first_step < 5 else "") + torn)
        RunLogger(tmp_path, num_steps=9, first_step=first_step).close()
        assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_each_line_is_in_the_file_once_it_is_logged(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, num_steps=9)
    for step in (1, 2):
        logger.log("train", step, **NUMBERS)
        assert _steps(tmp_path)[-1] == ("train", step)
    logger.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"kind": "train", "step": 1, **NUMBERS}


def test_a_full_disk_is_a_sentence_and_half_a_line_goes_when_the_run_goes_on(tmp_path: Path, room_for_files) -> None:
    logger = RunLogger(tmp_path, num_steps=9)
    logger.log("train", 1, **NUMBERS)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with (
        room_for_files(size + 20),
        pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large; .*--resume"),
    ):
        logger.log("train", 2, **NUMBERS)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size + 20  # 20 bytes of a line
    with room_for_files(size + 20):
        logger.close()
    resumed = RunLogger(tmp_path, num_steps=9, first_step=1)
    resumed.log("train", 2, **NUMBERS)
    resumed.close()
    assert _steps(tmp_path) == [("train", 1), ("train", 2)]


@pytest.mark.parametrize("room", [10, 2000])
def test_a_run_goes_on_when_only_tensorboard_finds_no_room(
    room: int, tmp_path: Path, room_for_files, capsys: pytest.CaptureFixture[str]
) -> None:
    if room == 10:  # not even for the start of its file
        with room_for_files(room):
            logger = RunLogger(tmp_path, num_steps=9)
    else:
        logger = RunLogger(tmp_path, num_steps=9)
    with room_for_files(max(room, 2500)):
        for step in range(1, 11):
            logger.log("train", step, **NUMBERS)
        logger.close()
    assert _steps(tmp_path) == [("train", step) for step in range(1, 11)]
    assert capsys.readouterr().out.count("TensorBoard's file is given up (File too large)") == 1


def test_a_share_of_the_machine_that_cannot_be_is_not_printed_as_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger(tmp_path, num_steps=9)
    logger.log("train", 1, **NUMBERS)
    logger.log("train", 2, **NUMBERS | {"mfu": 2.39})
    logger.close()
    lines = capsys.readouterr().out.splitlines()
    assert "mfu 40 %  1.5 GB" in lines[0] and "mfu > 100 % (rate measured on a busy machine)  1.5 GB" in lines[1]


@pytest.mark.parametrize(("columns", "shown"), [(80, "98.7 clips/s"), (120, "1.5 GB"), (20, "")])
def test_on_a_terminal_the_bar_moves_with_every_step_and_what_does_not_fit_is_left_out(
    columns: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SafeConsole, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(columns))
    logger = RunLogger(tmp_path, num_steps=806)
    logger.log("train", 10, **NUMBERS | {"clips_per_second": 98.7})
    logger.advance(13)
    logger.close()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).splitlines()
    last = [line.rstrip() for line in lines if line.strip()][-1]
    assert max(map(len, lines)) <= columns
    assert columns == 20 or ("13/806 eta" in last and last.endswith(shown) and "…" not in last)


@pytest.mark.parametrize("fate", ["removed", "moved", "replaced", "a file"])
def test_a_run_folder_that_goes_away_is_noticed_at_the_next_line(fate: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    logger = RunLogger(run, num_steps=9)
    logger.log("train", 1, **NUMBERS)
    logger.check_place()
    run.rename(tmp_path / "moved")
    if fate == "removed":
        shutil.rmtree(tmp_path / "moved")
    if fate == "replaced":
        run.mkdir()
        (run / "metrics.jsonl").write_text("of another run")
    if fate == "a file":
        run.touch()
    with pytest.raises(UserError, match=r"run was removed, moved or replaced .*--out with its new place and --resume"):
        logger.log("train", 2, **NUMBERS)
    logger.close()
    if fate == "moved":
        assert _steps(tmp_path / "moved") == [("train", 1)]
    if fate == "replaced":
        assert (run / "metrics.jsonl").read_text() == "of another run"
