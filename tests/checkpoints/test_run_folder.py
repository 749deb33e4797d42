import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.checkpoints.run_folder import load_newest, results_folder, save_best, save_last
from videornn.errors import UserError


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _steps(folder: Path) -> list[int]:
    return [torch.load(path, weights_only=True)["step"] for path in sorted(folder.glob("step_*.pt"))]


def _no_links(source: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


def _spoil(path: Path) -> None:
    """Overwrite a part of the file in place, and so of every name that it has."""
    with open(path, "r+b") as file:
        file.seek(300)
        file.write(b"\xff" * 50)


def test_the_newest_step_files_stay_and_last_is_a_name_of_the_newest(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        saved = save_last(tmp_path, {"step": step}, step, keep=3, best=step == 200)
    assert saved == tmp_path / "step_00000400.pt" and saved.samefile(tmp_path / "last.pt")
    assert _names(tmp_path) == ["best.pt", "last.pt", "step_00000200.pt", "step_00000300.pt", "step_00000400.pt"]
    assert _steps(tmp_path) == [200, 300, 400]
    save_last(tmp_path, {"step": 400, "again": True}, 400, keep=1)
    assert _names(tmp_path) == ["best.pt", "last.pt", "step_00000400.pt"]
    content, path, remarks = load_newest(tmp_path)
    assert content["again"] and path.name == "last.pt" and remarks == []
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 200
    assert save_best(tmp_path, {"step": 450}) == tmp_path / "best.pt"
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 450 and load_newest(tmp_path)[0]["step"] == 400


def test_where_there_are_no_hard_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    for step in (1, 2):
        save_last(tmp_path, {"step": step}, step, keep=1, best=True)
    assert _names(tmp_path) == ["best.pt", "last.pt", "step_00000002.pt"]
    for name in ("best.pt", "last.pt"):
        assert not (tmp_path / name).samefile(tmp_path / "step_00000002.pt")
        assert (tmp_path / name).read_bytes() == (tmp_path / "step_00000002.pt").read_bytes()


def test_what_killed_processes_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        ".last.pt.17.tmp",
        f".step_00000003.pt.{os.getpid()}.tmp",
        "step_mine.pt",
        "notes.tmp",
        "step_00000001.txt",
    ):
        (tmp_path / name).write_text("kept?")
    save_last(tmp_path, {"step": 5}, 5, keep=1)
    assert _names(tmp_path) == ["last.pt", "notes.tmp", "step_00000001.txt", "step_00000005.pt", "step_mine.pt"]


def test_a_damaged_last_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (200, 300, 400):
        save_last(tmp_path, {"step": step, "weights": torch.zeros(500)}, step, keep=3)
    _spoil(tmp_path / "last.pt")  # and step 400, the same file
    content, path, remarks = load_newest(tmp_path)
    assert content["step"] == 300 and path == tmp_path / "step_00000300.pt"
    assert len(remarks) == 1 and remarks[0].startswith("last.pt is damaged (")
    assert remarks[0].endswith("; going on from step_00000300.pt")
    (tmp_path / "step_00000300.pt").write_bytes(b"")
    content, path, remarks = load_newest(tmp_path)
    assert content["step"] == 200 and remarks[1] == (
        "step_00000300.pt is damaged (it is cut short, or no checkpoint at all); going on from step_00000200.pt"
    )
    # the life that went on from 200 leaves nothing of the one that had come to 400
    save_last(tmp_path, {"step": 250}, 250, keep=3)
    assert _names(tmp_path) == ["last.pt", "step_00000200.pt", "step_00000250.pt"]
    assert load_newest(tmp_path)[0]["step"] == 250


def test_no_sound_checkpoint_is_an_error_and_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None and load_newest(tmp_path / "not there") is None
    save_best(tmp_path, {"step": 1})  # of a run that was killed before its first save_last: it starts anew
    assert load_newest(tmp_path) is None
    save_last(tmp_path, {"step": 2, "weights": torch.zeros(500)}, 2, keep=1)
    _spoil(tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"no checkpoint in .* is sound: last\.pt \(.*\); start anew in another --out"):
        load_newest(tmp_path)


def test_killed_before_last_got_its_name_the_run_goes_on_from_what_there_is(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step_00000010.pt", {"step": 10})
    content, _, remarks = load_newest(tmp_path)
    assert content["step"] == 10 and remarks == ["last.pt is missing; going on from step_00000010.pt"]


def test_a_full_disk_leaves_last_as_it_was_and_the_next_save_works(tmp_path: Path, room_for_files) -> None:
    save_last(tmp_path, {"step": 1}, 1, keep=1)
    with (
        room_for_files(100_000),
        pytest.raises(UserError, match=r"step_00000002\.pt cannot be written.*last\.pt stands as it was"),
    ):
        save_last(tmp_path, {"step": 2, "weights": torch.zeros(100_000)}, 2, keep=1)
    assert _names(tmp_path) == ["last.pt", "step_00000001.pt"] and load_newest(tmp_path)[0]["step"] == 1
    save_last(tmp_path, {"step": 2, "weights": torch.zeros(100_000)}, 2, keep=1)
    assert load_newest(tmp_path)[0]["step"] == 2


FILL_A_DISK = """
import json, os, sys
from pathlib import Path
import torch
from videornn.errors import UserError
from videornn.checkpoints.run_folder import load_newest, save_last

folder, said = Path(sys.argv[1]), ""
for step in range(1, 9):
    try:
        save_last(folder, {"step": step, "weights": torch.full((step * 100_000,), float(step))}, step, keep=2)
    except UserError as error:
        said = str(error)
        break
content, path, remarks = load_newest(folder)
weights = content["weights"].unique().tolist()
print(json.dumps([step, said, content["step"], weights, path.name, remarks, sorted(os.listdir(folder))]))
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 4 MB in memory, in a namespace of its own; checkpoints of 0.4, 0.8, 1.2 ... MB, two of them kept."""
    mount = f'mount -t tmpfs -o size=4m none "{tmp_path}" &&'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        allowed = subprocess.run([*unshare, f"{mount} true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no file system can be mounted here")
    command = [*unshare, f'{mount} "$0" -c "$1" "{tmp_path}"', sys.executable, FILL_A_DISK]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    # steps 3 and 4 take 2.8 MB, of which 2 is gone when 5 is due, with its 2 MB
    step, said, loaded, weights, name, remarks, names = json.loads(finished.stdout)
    assert (step, loaded, weights, name, remarks) == (5, 4, [4.0], "last.pt", [])
    assert "step_00000005.pt cannot be written: No space left on device (it takes about 2.0 MB, 1." in said
    assert names == ["last.pt", "step_00000003.pt", "step_00000004.pt"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_instant_leaves_a_sound_checkpoint(tmp_path: Path) -> None:
    """25 processes or more that save 5 MB again and again, each killed after another random time.

    There are more, and the times grow, until enough of them were killed in the middle of a file and enough got further.
    """
    rng, done_before, in_mid_write = random.Random(0), 0, 0
    for life in range(1000):
        if life >= 25 and done_before > 3 and in_mid_write > 3:
            break
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            gc.freeze()  # what decoders and filters of this process have left would be waited for, for ever
            for step in range(done_before + 1, done_before + 1000):
                os.write(writer, f"begin {step}\n".encode())
                weights = torch.from_numpy(np.full(1_250_000, step, np.float32))  # OpenMP hangs in forked processes
                save_last(tmp_path, {"step": step, "weights": weights}, step, keep=2, best=step % 3 == 0)
                os.write(writer, f"done {step}\n".encode())
            os._exit(0)
        os.close(writer)
        time.sleep(rng.uniform(0, 0.2) * (1 + life // 25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as lines:
            announced = [(word, int(step)) for word, step in map(str.split, lines)]
        in_mid_write += any(file.suffix == ".tmp" for file in tmp_path.iterdir())
        found = load_newest(tmp_path)
        finished = [done_before, *(step for word, step in announced if word == "done")]
        if found is None:
            assert finished == [0], life
            continue
        content, path, remarks = found
        begun = announced[-1][1] if announced else done_before
        assert finished[-1] <= content["step"] <= begun, life
        assert (content["weights"] == content["step"]).all() and len(content["weights"]) == 1_250_000
        # only a kill before the first last.pt has another file stand in
        assert (path.name == "last.pt" and remarks == []) or finished == [0]
        done_before = content["step"]
    assert done_before > 3 and in_mid_write > 3, (done_before, in_mid_write)
    save_last(tmp_path, {"step": 10**6}, 10**6, keep=1)
    assert set(_names(tmp_path)) - {"best.pt"} == {"last.pt", "step_01000000.pt"}


def test_a_full_disk_leaves_last_as_it_was_also_where_it_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for_files
) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    save_last(tmp_path, {"step": 1}, 1, keep=1)
    copyfile = shutil.copyfile

    def copy_on_full_disk(source: Path, target: Path) -> None:
        with room_for_files(10):
            copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_on_full_disk)
    with pytest.raises(UserError, match=r"last\.pt cannot be written: File too large.*last\.pt stands as it was"):
        save_last(tmp_path, {"step": 2}, 2, keep=1)
    assert load_newest(tmp_path)[0]["step"] == 1


def test_results_go_into_the_run_of_a_checkpoint_or_beside_a_file_that_is_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "run/checkpoints/best.pt").touch()
    (tmp_path / "mine.pt").symlink_to(tmp_path / "run/checkpoints/best.pt")
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for given, folder in {
        "run/checkpoints/best.pt": "run/test",
        "latest/checkpoints/best.pt": "latest/test",
        "c2d.pt": "c2d_test",  # as convert wrote it, and not ../test
        "mine.pt": "mine_test",
        "checkpoints/c2d.pt": "checkpoints/c2d_test",  # a folder of this name, but of no run
    }.items():
        assert results_folder(given) == tmp_path / folder == results_folder(tmp_path / given)
    monkeypatch.chdir(tmp_path / "run/checkpoints")
    assert results_folder("best.pt") == tmp_path / "run/test" == results_folder("../checkpoints/best.pt")
