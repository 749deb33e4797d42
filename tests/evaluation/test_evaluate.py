"""A whole test: stopped, killed, on several ranks, short of memory; its files are the same byte for byte."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import av
import pytest
import torch
import torch.distributed as dist
from commands import PROCESSES, Command, CommandOnRanks

from videornn.data.batches import EvalBatches
from videornn.distributed.signals import Interrupted
from videornn.errors import UserError
from videornn.evaluation import evaluate as job
from videornn.evaluation.evaluate import evaluate
from videornn.evaluation.unfinished import KeptFile

PICTURES = ("confusion.png", "reliability.png")


@pytest.fixture(scope="module")
def arguments(tiny_run: Path, motion_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list:
    """Checkpoint and settings of a test of 5 videos, one of them broken."""
    folder = tmp_path_factory.mktemp("list")
    lines = [f"{motion_set}/{line}" for line in (motion_set / "test.txt").read_text().splitlines()[:5]]
    (folder / "broken.mp4").write_text("no video")
    lines[2] = f"{folder}/broken.mp4 {lines[2].split()[-1]}"
    (folder / "list.txt").write_text("\n".join(lines))
    settings = [f"data.test={folder}/list.txt", f"data.labels={motion_set}/labels.txt", "test.num_crops=3"]
    return [str(tiny_run / "checkpoints/last.pt"), settings]


@pytest.fixture(scope="module")
def undisturbed(arguments: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a test that nothing happens to."""
    torch.set_num_threads(2)
    out = tmp_path_factory.mktemp("undisturbed") / "test"
    evaluate(*arguments, out, _silent)
    return out


def _silent(done: int, total: int) -> None:
    pass


def _assert_same_files(ours: Path, theirs: Path, *, pictures: bool = True) -> None:
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names and len(names) == 9  # and .lock
    for name in names:
        if name != ".lock" and (pictures or name not in PICTURES):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_every_video_is_opened_once_for_all_its_views_and_they_go_through_in_parts(
    arguments: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, sizes = Counter(), []
    av_open, load_trained = av.open, job.load_trained

    def counting_open(path: str, *rest: object, **options: object) -> object:
        opened[str(path)] += 1
        return av_open(path, *rest, **options)

    def counting_load(*rest: object) -> object:
        trained = load_trained(*rest)
        trained.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return trained

    monkeypatch.setattr(av, "open", counting_open)
    monkeypatch.setattr(job, "load_trained", counting_load)
    checkpoint, settings = arguments
    settings = [*settings, "test.num_clips=10", "test.batch_size=8", "data.decoder=pyav"]
    result, _ = evaluate(checkpoint, settings, tmp_path / "test", _silent)
    videos = {path: count for path, count in opened.items() if "videos/test" in path}
    assert set(videos.values()) == {1} and len(videos) == result["num_scored"] == 4
    assert sizes == [8, 8, 8, 6] * 4  # 10 clips x 3 crops


@pytest.mark.parametrize("num_done", [0, 2, 4])
def test_a_test_that_died_goes_on_to_the_same_files(
    arguments: list, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_done: int, capsys
) -> None:
    """Death in the midst of writing a record, which leaves a part of it; with all done, before the results are written."""

    class Death(BaseException):
        pass

    append, count = KeptFile.append, []

    def dying(self: KeptFile, index: int, logits: torch.Tensor) -> None:
        if len(count) == num_done:
            self._file.write(b"torn")
            raise Death
        count.append(index)
        append(self, index, logits)

    def dead(*rest: object) -> None:
        raise Death

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(KeptFile, "append", dying)
        patch.setattr(job, "write_results", dead)
        evaluate(*arguments, tmp_path / "test", _silent)
    seen = []
    evaluate(*arguments, tmp_path / "test", lambda done, total: seen.append((done, total)))
    assert seen[0] == (num_done, 5) and seen[-1] == (5, 5)  # the broken one is tried again
    assert (f"going on: {num_done} of 5 videos are scored already" in capsys.readouterr().out) == (num_done > 0)
    _assert_same_files(tmp_path / "test", undisturbed)


def test_another_test_in_the_folder_begins_anew_and_says_why(arguments: list, tmp_path: Path, capsys) -> None:
    checkpoint, settings = arguments

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        evaluate(checkpoint, settings, tmp_path / "test", stop)
    capsys.readouterr()
    evaluate(checkpoint, [*settings, "test.num_crops=1", "train.precision=bf16"], tmp_path / "test", _silent)
    out = capsys.readouterr().out
    assert "test/unfinished are not of this test (different: precision, views): starting anew" in out
    assert "going on" not in out and not (tmp_path / "test/unfinished").exists()


def test_a_video_replaced_in_place_or_another_pyav_begins_a_test_anew(
    arguments: list, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, settings = arguments
    path = Path(settings[0].removeprefix("data.test=")).read_text().split()[0]
    changes = {
        "files": lambda: os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 10**6)),
        "PyAV": lambda: monkeypatch.setattr("av.__version__", "another"),
    }
    for name, change in changes.items():

        def stop(done: int, total: int) -> None:
            if done == 2:
                raise UserError("enough")

        for _ in range(2):  # the second time the scores are taken up
            with pytest.raises(UserError, match="enough"):
                evaluate(checkpoint, settings, tmp_path / "test", stop)
        assert "going on: 2 of 5" in capsys.readouterr().out
        change()
        with pytest.raises(UserError, match="enough"):
            evaluate(checkpoint, settings, tmp_path / "test", stop)
        assert f"(different: {name}): starting anew" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_a_video_with_a_sentence_and_its_exit_code(
    videornn, arguments: list, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    checkpoint, settings = arguments
    append = KeptFile.append

    def signalled(self: KeptFile, index: int, logits: torch.Tensor) -> None:
        append(self, index, logits)
        if index == 3:  # the third, after the broken one
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(KeptFile, "append", signalled)
        code, _, err = videornn("test", checkpoint, *settings, "--out", tmp_path / "test")
    assert code == 128 + number
    sentence = f"stopped by {number.name} with 3 of 5 videos scored, which are kept; the same command goes on"
    assert err.splitlines()[-1] == f"videornn: {sentence}"
    code, out, err = videornn("test", checkpoint, *settings, "--out", tmp_path / "test")
    assert code == 0 and "going on: 3 of 5" in out and "4 of 5 videos scored, 1 bad, 0 missing" in out
    assert err.splitlines()[0] == "test 3/5"
    _assert_same_files(tmp_path / "test", undisturbed)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_says_to_lower_the_batch_size_and_keeps_what_is_done(
    arguments: list, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, capsys
) -> None:
    predict, calls = job.predict_logits, []

    def no_memory(*rest: object, **options: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return predict(*rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job, "predict_logits", no_memory)
        with pytest.raises(UserError, match=r"with 6 views of 4 x 32 x 32 at once: lower test\.batch_size.*=3"):
            evaluate(*arguments, tmp_path / "test", _silent)
    checkpoint, settings = arguments
    evaluate(checkpoint, [*settings, "test.batch_size=3"], tmp_path / "test", _silent)
    assert "going on: 2 of 5" in capsys.readouterr().out
    ours, theirs = ((out / "predictions.csv").read_text() for out in (tmp_path / "test", undisturbed))
    assert ours == theirs


def test_outputs_that_are_not_finite_are_no_scores(arguments: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = job.predict_logits
    monkeypatch.setattr(job, "predict_logits", lambda *rest, **options: predict(*rest, **options) * float("inf"))
    with pytest.raises(UserError, match=r"\.mp4: the network's outputs are not finite in bf16; train\.precision=fp32"):
        evaluate(arguments[0], [*arguments[1], "train.precision=bf16"], tmp_path / "test", _silent)


def test_nothing_but_broken_videos_is_an_error_with_a_list_of_them(arguments: list, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match=r"none of the 1 videos can be decoded; the first: .*a\.mp4"):
        evaluate(arguments[0], [*arguments[1], f"data.test={tmp_path}/list.txt"], tmp_path / "test", _silent)
    assert "a.mp4" in (tmp_path / "test/bad_videos.csv").read_text()


def test_ranks_share_any_number_of_videos_evenly_and_without_repeats() -> None:
    for num_videos in range(12):
        indices = [3 * number + 1 for number in range(num_videos)]
        for num_ranks in range(1, 6):
            shares = [
                [i for batch in EvalBatches(indices, 1, rank=r, num_ranks=num_ranks) for i in batch]
                for r in range(num_ranks)
            ]
            assert sorted(index for share in shares for index in share) == indices
            assert max(map(len, shares)) == -(-num_videos // num_ranks)  # as many rounds as all ranks count on


def _be_rank(number: int, num_ranks: int, port: int, arguments: list, out: Path) -> None:
    os.environ.update(
        RANK=str(number),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    torch.set_num_threads(1)
    (out.parent / f"{number}.result").write_text(repr(evaluate(*arguments, out, _silent)[0]))


def _on_ranks(num_ranks: int, arguments: list, out: Path) -> list[str]:
    """What evaluate returns on each of several ranks; the test keeps their store, as torchrun does."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        PROCESSES.Process(target=_be_rank, args=(number, num_ranks, store.port, arguments, out))
        for number in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0] * num_ranks
    return [(out.parent / f"{number}.result").read_text() for number in range(num_ranks)]


def test_three_ranks_write_the_files_of_one(arguments: list, undisturbed: Path, tmp_path: Path) -> None:
    results = _on_ranks(3, arguments, tmp_path / "test")
    assert results[0] == results[1] == results[2]
    _assert_same_files(tmp_path / "test", undisturbed)


def test_more_ranks_than_videos_go_on_where_one_rank_was_stopped(arguments: list, tmp_path: Path) -> None:
    checkpoint, settings = arguments
    source = Path(settings[0].partition("=")[2])
    (tmp_path / "two.txt").write_text("\n".join(source.read_text().splitlines()[:2]))
    arguments = [checkpoint, [*settings, f"data.test={tmp_path}/two.txt"]]
    torch.set_num_threads(1)
    evaluate(*arguments, tmp_path / "alone", _silent)

    def stop(done: int, total: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="with 1 of 2 videos scored"):
        evaluate(*arguments, tmp_path / "test", stop)
    _on_ranks(3, arguments, tmp_path / "test")
    _assert_same_files(tmp_path / "test", tmp_path / "alone")


def _keep_some(left: int) -> None:
    """Have this process keep a few more scores and then wait to be killed, however slow or fast the machine is."""
    append, appended = KeptFile.append, Counter()

    def append_some(self: KeptFile, index: int, logits: torch.Tensor) -> None:
        append(self, index, logits)
        appended["scores"] += 1
        while appended["scores"] == left:
            time.sleep(60)

    KeptFile.append = append_some


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="what a killed process leaves is read from /proc")
def test_tests_killed_on_changing_numbers_of_ranks_end_with_the_same_files(
    arguments: list, motion_set: Path, tmp_path: Path
) -> None:
    """kill -9 of a process alone, then of two ranks, with a few more videos each time."""
    lines = [f"{motion_set}/{line}" for line in (motion_set / "test.txt").read_text().splitlines()]
    (tmp_path / "list.txt").write_text("\n".join(3 * lines))
    checkpoint, settings = arguments
    settings = [*settings, f"data.test={tmp_path}/list.txt", "test.num_clips=10"]
    torch.set_num_threads(1)
    evaluate(checkpoint, settings, tmp_path / "alone", _silent)
    command = ["test", checkpoint, *settings, "--out", tmp_path / "test"]
    folder, size = tmp_path / "test/unfinished", 0
    for num_ranks in (1, 2):
        ranks = CommandOnRanks(num_ranks, tmp_path / f"logs {num_ranks}", *command, before=partial(_keep_some, 5))
        while sum(path.stat().st_size for path in folder.glob("*")) < size + 5000:
            assert ranks.are_running(), ranks.said()
            time.sleep(0.005)
        ranks.kill()
        size = sum(path.stat().st_size for path in folder.glob("*"))
    last = Command(tmp_path / "log", *command)
    assert last.wait() == 0 and "of 30 videos are scored already" in last.said(), last.said()
    _assert_same_files(tmp_path / "test", tmp_path / "alone")
