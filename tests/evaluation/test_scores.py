"""scores.npz: what is written is read, nothing else is, and ensembles are means of the same videos."""

from __future__ import annotations

import csv
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from videornn.data.dataset import BadVideo
from videornn.errors import UserError
from videornn.evaluation.results import rescore, summarize, write_results
from videornn.evaluation.scores import Scores, ensemble, load_scores, save_scores

NAMES = ("wave", 'éclair, "jump"', "sit_down")


def _scores(seed: int, num_views: int = 2, num_videos: int = 9) -> Scores:
    random = torch.Generator().manual_seed(seed)
    return Scores(
        logits=3 * torch.randn(num_videos, num_views, 3, generator=random),
        labels=torch.arange(num_videos) % 2,
        paths=tuple(f"vidéo {number}\udcff.mp4" for number in range(num_videos)),  # a name that is not UTF-8
        class_names=NAMES,
        bad=(BadVideo("bad\udcfe.mp4", "bad.mp4: cut short"),),
        num_missing=4,
        num_clips=num_views,
        num_crops=1,
        average="scores",
        step=7,
        checkpoint="run/best.pt",
    )


def _same(one: Scores, other: Scores) -> bool:
    plain = [replace(scores, logits=torch.empty(0), labels=torch.empty(0)).__dict__ for scores in (one, other)]
    for values in plain:
        values["logits"] = values["labels"] = None
    return plain[0] == plain[1] and torch.equal(one.logits, other.logits) and torch.equal(one.labels, other.labels)


def test_scores_come_back_with_every_path_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    scores = _scores(0)
    save_scores(tmp_path / "a.npz", scores)
    assert _same(load_scores(tmp_path / "a.npz"), scores)
    save_scores(tmp_path / "b.npz", load_scores(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:  # as other programs read it
        assert arrays["logits"].shape == (9, 2, 3) and arrays["paths"][0] == scores.paths[0]
    save_scores(tmp_path / "none.npz", replace(scores, bad=()))
    assert load_scores(tmp_path / "none.npz").bad == ()


def test_what_is_no_scores_file_is_one_sentence_and_runs_nothing(tmp_path: Path) -> None:
    save_scores(tmp_path / "good.npz", _scores(0))
    good = (tmp_path / "good.npz").read_bytes()
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)

    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "trapped",)

    def archive(**changed: object) -> bytes:
        text = io.BytesIO()
        np.savez(text, **{name: value for name, value in (arrays | changed).items() if value is not None})
        return text.getvalue()

    trap = np.array([Trap()] * 9, object)
    cases = {
        "cut short$": good[: len(good) // 2],
        "no .npz": b"",
        "no .npz archive": pickle.dumps(Trap()),
        "Bad CRC-32": good.replace(arrays["logits"].tobytes(), bytes(9 * 2 * 3 * 4)),
        "allow_pickle=False": archive(paths=trap),
        "step is not a file": archive(step=None),
        "format is 'x'": archive(format=np.array("x")),
        "logits are float64": archive(logits=arrays["logits"].astype(float)),
        "logits are float32 with 2 dim": archive(logits=arrays["logits"][0]),
        "do not belong together": archive(labels=arrays["labels"][1:]),
        "not finite": archive(logits=arrays["logits"] * np.float32("nan")),
        "labels of no class": archive(labels=arrays["labels"] + 2),
        "no way to average": archive(average=np.array("median")),
    }
    for message, content in cases.items():
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            load_scores(tmp_path / "bad.npz")
        assert "bad.npz is not the scores.npz of a test" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="do not exist"):
        load_scores(tmp_path / "none.npz")
    assert not (tmp_path / "trapped").exists()


def _other_order(scores: Scores) -> Scores:
    """The same videos from last to first, and classes in another order, one of them in another spelling."""
    order, classes = list(range(len(scores.labels)))[::-1], [2, 0, 1]
    return replace(
        scores,
        logits=scores.logits[order][..., classes],
        labels=torch.tensor([classes.index(int(scores.labels[row])) for row in order]),
        paths=tuple(scores.paths[row] for row in order),
        class_names=tuple(NAMES[index].replace("_", " ") for index in classes),
    )


def test_few_bytes_that_stand_for_many_are_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    save_scores(path, _scores(0))
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez_compressed(path, **arrays)
    with pytest.raises(UserError, match=r"scores\.npz is not .*: its records are compressed"):
        load_scores(path)
    for name in ("paths", "members", "bad", "format"):
        np.savez(path, **{other: values for other, values in arrays.items() if other != name})
        header = {"descr": "<U0", "fortran_order": False, "shape": (10**8,)}
        with zipfile.ZipFile(path, "a") as archive, archive.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(UserError, match=rf"scores\.npz is not .*: its {name} have no bytes"):
            load_scores(path)


@pytest.mark.parametrize("average", ["scores", "logits"])
def test_an_ensemble_is_the_mean_over_networks_whatever_the_order(average: str) -> None:
    one, two = _scores(1), _scores(2, num_views=5)
    both = ensemble([one, _other_order(two)], ["a", "b"], average)
    if average == "scores":
        expected = (one.logits.softmax(-1).mean(1) + two.logits.softmax(-1).mean(1)) / 2
    else:
        expected = ((one.logits.mean(1) + two.logits.mean(1)) / 2).softmax(-1)
    torch.testing.assert_close(both.video_scores, expected)
    assert both.paths == one.paths and torch.equal(both.labels, one.labels) and both.members == ("a", "b")
    result = summarize(both)
    assert "clip_top1" not in result and result["members"] == ["a", "b"]
    assert result["video_top1"] == pytest.approx(100 * float((expected.argmax(1) == one.labels).float().mean()))


def test_one_that_is_there_twice_gives_its_own_scores() -> None:
    one = _scores(1)
    twice = replace(one, paths=(*one.paths[:-1], one.paths[0]))  # a video that is listed twice is two videos
    both = ensemble([twice, _other_order(twice)], ["a", "b"], "logits")
    torch.testing.assert_close(both.logits[1:-1, 0], one.logits.mean(1)[1:-1])


def test_ensembles_of_other_videos_classes_or_labels_name_the_first_difference() -> None:
    one = _scores(1)
    cases = [
        (
            replace(one, paths=("new.mp4", *one.paths[1:])),
            r"not of the same videos: 1 only in a, the first vidéo 0.*; 1 only in b",
        ),
        (replace(one, class_names=("wave", "walk", "sit_down")), "not of the same classes: 1 only in a, the first éclair"),
        (replace(one, labels=one.labels.roll(1)), r"vidéo 1.* is 'éclair.*' in a and 'wave' in b"),
        (_scores(1, num_videos=7), "same videos: 2 only in a"),
    ]
    for other, message in cases:
        with pytest.raises(UserError, match=message):
            ensemble([one, other], ["a", "b"], "scores")


def test_results_are_made_of_the_scores_alone_and_made_again_alike(tmp_path: Path) -> None:
    scores = _scores(3)
    (tmp_path / "test").mkdir()
    result = write_results(tmp_path / "test", scores)
    names = ["metrics.json", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "reliability.png"]
    names += ["bad_videos.csv", "scores.npz"]
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == sorted(names)
    file = str(tmp_path / "test/scores.npz")
    assert rescore([file], [], tmp_path / "again") == result == json.loads((tmp_path / "test/metrics.json").read_text())
    for name in names:
        assert (tmp_path / "test" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert rescore([file], ["test.average=logits"], None)["average"] == "logits"
    assert (result["num_videos"], result["num_scored"], result["num_bad"], result["num_missing"]) == (10, 9, 1, 4)


def test_the_tables_say_which_videos_and_classes_are_wrong(tmp_path: Path) -> None:
    """Five videos of three classes, written out by hand."""
    chances = torch.tensor([[7, 2, 1], [3, 6, 1], [2, 5, 3], [1, 4, 5], [2, 3, 5]]) / 10
    five = replace(
        _scores(0, 1, 5), logits=chances.log()[:, None], labels=torch.tensor([0, 0, 0, 1, 1]), paths=tuple("abcde")
    )
    write_results(tmp_path, five)

    def table(name: str) -> list[list[str]]:
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    assert table("predictions.csv")[1:] == [
        ["a", "wave", "wave", "0.7000", "1", "0.7000", "1"],
        ["b", "wave", NAMES[1], "0.6000", "0", "0.3000", "2"],
        ["c", "wave", NAMES[1], "0.5000", "0", "0.2000", "3"],
        ["d", NAMES[1], "sit_down", "0.5000", "0", "0.4000", "2"],
        ["e", NAMES[1], "sit_down", "0.5000", "0", "0.3000", "2"],
    ]
    assert table("per_class.csv") == [
        ["class", "num_videos", "top1", "precision", "taken_for", "times_taken_for"],
        ["wave", "3", "33.33", "100.00", NAMES[1], "2"],
        [NAMES[1], "2", "0.00", "0.00", "sit_down", "2"],
        ["sit_down", "0", "nan", "0.00", "", "0"],
    ]
    assert table("confusion.csv") == [
        ["label", *NAMES],
        ["wave", "1", "2", "0"],
        [NAMES[1], "0", "0", "2"],
        ["sit_down"] + ["0"] * 3,
    ]


def test_the_command_line_rescores_and_averages_files(videornn, tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"  # = in a path is no setting
    folder.mkdir()
    for number in (1, 2):
        save_scores(folder / f"{number}.npz", _scores(number))
    code, out, _ = videornn("scores", folder / "1.npz")
    assert (
        code == 0
        and "clip  top-1" in out
        and "9 of 14 videos scored, 1 bad, 4 missing" in out
        and "nothing is written" in out
    )
    code, out, _ = videornn(
        "test", folder / "1.npz", folder / "2.npz", "test.average=logits", "--scores", "--out", tmp_path / "both"
    )
    assert code == 0 and "(2 networks, logits averaged)" in out and "clip" not in out
    assert json.loads((tmp_path / "both/metrics.json").read_text())["average"] == "logits"
    assert rescore([str(tmp_path / "both/scores.npz")], [], None)["video_loss"] > 0
    for arguments, message in [
        ([folder / "1.npz", "test.batch_size=4"], "test.batch_size=4: of scores that are there only test.average"),
        ([folder / "1.npz", "test.average=median"], "test.average"),
        ([folder / "3.npz"], "3.npz do not exist"),
        (["test.average=logits"], "at least one"),
        ([folder / "1.npz", "--out", folder / "1.npz"], "1.npz: is a file; give the name of a folder"),
    ]:
        code, _, err = videornn("test", "--scores", *arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1


def test_files_without_permission_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scores.npz").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may do everything
    with pytest.raises(UserError, match=r"scores\.npz may not be read"):
        load_scores(tmp_path / "scores.npz")
