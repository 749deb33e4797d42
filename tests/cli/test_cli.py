"""What people type, right and wrong: exit codes, sentences, files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

from videornn import __version__, load_predictor

CONFIG = str(ROOT / "configs/quickstart.yaml")


MISSPELT = "train.lrr=1"


def test_a_wrong_setting_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("train: {lrr: 1}\n")
    commands = [
        *(["train", CONFIG, MISSPELT], ["info", CONFIG, MISSPELT], ["info", str(tmp_path / "wrong.yaml")]),
        *(["test", "best.pt", MISSPELT], ["scores", "a.npz", MISSPELT], ["test", "--scores", "a.npz", MISSPELT]),
        *(["config", CONFIG, MISSPELT], ["convert", "a.pth", "b.pt", MISSPELT], ["data", "bench", CONFIG, MISSPELT]),
    ]
    program = (
        "import sys\nfrom videornn.cli import main\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['videornn', *command]\n"
        "    try: main()\n    except SystemExit as end: assert end.code == 2, command\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("unknown key 'train.lrr'; did you mean 'train.lr'?") == len(commands)


def test_the_version_is_said(videornn) -> None:
    assert videornn("--version")[:2] == (0, f"videornn {__version__}\n")


def test_what_settings_of_a_checkpoint_demand_of_others_is_not_asked_before_it_is_read(videornn) -> None:
    """A warm-up of 300 epochs is too long for the default run, but perhaps not for that of the checkpoint."""
    code, _, err = videornn("test", "no.pt", "train.warmup_epochs=300")
    assert code == 2 and "checkpoint no.pt does not exist" in err


def test_help_starts_without_torch() -> None:
    program = (
        "import sys; sys.argv=['videornn','--help']\nfrom videornn.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program + "assert 'torch' not in sys.modules"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    for command in ("train", "test", "infer", "explain", "info", "config", "convert", "data"):
        assert command in finished.stdout


def test_a_checkout_can_be_used_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "videornn/data").mkdir(parents=True)  # a clone, with what the quickstart makes in it
    program = "import videornn, videornn.system.files; videornn.__version__"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_test_command_prints_and_writes_the_results(videornn, tiny_run: Path, motion_set: Path, tmp_path: Path) -> None:
    code, out, _ = videornn("test", tiny_run / "checkpoints/last.pt", "--out", tmp_path)
    assert code == 0 and "video top-1" in out and "clip  top-1" in out and "10 of 10 videos scored" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["path"] for row in rows] == [f"{motion_set}/{line.split()[0]}" for line in (motion_set / "test.txt").open()]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert metrics["video_top1"] == pytest.approx(100 * right / 10)
    assert (metrics["num_clips"], metrics["num_crops"], metrics["num_scored"], metrics["num_videos"]) == (2, 1, 10, 10)
    per_class = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    assert sum(float(row["top1"]) for row in per_class) == pytest.approx(100 * right)
    assert Image.open(tmp_path / "confusion.png").size[0] > 400


def test_files_that_cannot_be_written_are_refused_before_any_work(videornn, tmp_path: Path) -> None:
    for option in ("--json", "--csv"):
        code, _, err = videornn("infer", "no.pt", "a.mp4", option, tmp_path / "no/such/file")
        assert code == 2 and err == f"videornn: {option} {tmp_path}/no/such/file: there is no folder {tmp_path}/no/such\n"


def test_infer_writes_text_json_and_csv_and_agrees_with_python(
    videornn, tiny_run: Path, motion_set: Path, tmp_path: Path
) -> None:
    checkpoint, folder = tiny_run / "checkpoints/best.pt", motion_set / "videos/test"
    code, out, _ = videornn(
        "infer", checkpoint, folder, "--topk", 3, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"
    )
    assert code == 0 and len(out.splitlines()) == 10
    results = json.loads((tmp_path / "a.json").read_text())
    first = results[0]
    assert len(results) == 10 and len(first["predictions"]) == 3
    pairs = load_predictor(checkpoint, topk=3)(first["path"])
    assert [p["class"] for p in first["predictions"]] == [name for name, _ in pairs]
    assert sum(score for _, score in load_predictor(checkpoint, topk=10)(first["path"])) == pytest.approx(1, abs=1e-5)
    assert len(list(csv.DictReader((tmp_path / "a.csv").open()))) == 30
    code, out, _ = videornn("infer", checkpoint, str(folder / "part/*.mp4"), "--json", "-")
    assert code == 0 and len(json.loads(out)) == 1
    (tmp_path / "list.txt").write_text("".join(f"{result['path']}\n" for result in results[:2]))
    for source in (tmp_path / "list.txt", motion_set / "test.txt"):
        code, out, _ = videornn("infer", checkpoint, source, "--json", "-")
        expected = results[: len(source.read_text().splitlines())]
        assert code == 0 and {r["path"] for r in json.loads(out)} <= {r["path"] for r in results}
        assert len(json.loads(out)) == len(expected)


def test_a_broken_video_has_its_row_and_the_exit_code_says_so(
    videornn, tiny_run: Path, motion_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("this is text")
    good = next((motion_set / "videos/test").rglob("*.mp4"))
    code, out, err = videornn(
        "infer", tiny_run / "checkpoints/best.pt", tmp_path / "text.mp4", good, "--json", tmp_path / "a.json"
    )
    assert code == 2 and str(good) in out and "text.mp4: cannot be decoded" in err and "1 of 2 videos failed" in err
    rows = json.loads((tmp_path / "a.json").read_text())
    assert "cannot be decoded" in rows[0]["error"] and len(rows[1]["predictions"]) == 5


def test_explain_draws_a_sheet_and_a_movie_per_block(videornn, tiny_run: Path, motion_set: Path, tmp_path: Path) -> None:
    video = motion_set / "videos/test/approach/approach_0000.mp4"
    code, out, _ = videornn("explain", tiny_run / "checkpoints/best.pt", video, "--out", tmp_path, "--query", "1,0.5,0.2")
    assert code == 0
    names = [f"approach_0000_{name}.{kind}" for name in ("res3.0", "res4.0", "grad_cam") for kind in ("mp4", "png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "approach_0000_numbers.json"])
    assert all(str(tmp_path / name) in out for name in names) and "res3.0 (dnl): change" in out


@pytest.mark.slow
def test_info_counts_as_others_do(videornn) -> None:
    code, out, _ = videornn(
        "info",
        CONFIG,
        "model.depth=50",
        "model.width=64",
        "model.num_classes=400",
        "model.attention.kind=none",
        "data.num_frames=8",
        "data.crop_size=256",
        "data.short_side=[256,320]",
    )
    assert code == 0 and "32,454,096" in out
    assert "54.7" in out  # published: 54.52 to 54.75 GFLOPs for Slow R50 8x8 on 256 x 256


def test_info_and_config_describe_a_network(videornn, tiny_run: Path) -> None:
    code, out, _ = videornn("info", tiny_run / "checkpoints/last.pt")
    assert code == 0 and "dnl after all" in out
    code, out, _ = videornn("config", CONFIG, "train.lr=0.25")
    assert code == 0 and "lr: 0.25" in out and "# Peak learning rate" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/none.yaml"], "configs/none.yaml does not exist"),
        (["train", CONFIG, "train.lerning_rate=1"], "unknown key 'train.lerning_rate'"),
        (["train", CONFIG, "train.epochs=many"], "train.epochs: input should be a valid integer"),
        (["train", CONFIG, "data.train=none.txt"], "video list none.txt does not exist"),
        (["train", CONFIG, "data.train={bad}/range.txt", "data.labels={bad}/names.txt"], "range.txt:1: 'a.mp4 7': label 7"),
        (["train", CONFIG, "data.train={bad}/nolabel.txt"], "nolabel.txt:2: 'b.mp4': there is no label"),
        (["train", CONFIG, "data.train={bad}/folders"], "folders/empty has no video"),
        (["train", CONFIG, "device=cuda"], "torch sees no GPU"),
        (["test", "{bad}/names.txt"], "names.txt is not a checkpoint"),
        (["test", "{run}", "data.test={bad}/nolabel.txt"], "nolabel.txt:2"),
        (["test", "{run}", "model.depth=18"], "cannot be overridden"),
        (["test", "a.npz", "b.npz"], "a.npz is named like the scores of a test: give `videornn scores` to take those"),
        (["test", "{run}", "data.test={bad}/other"], "class 'walk' is not among the 10 classes of the network (same_right"),
        (["infer", "{run}", "nowhere.mp4"], "nowhere.mp4: no such file"),
        (["infer", "{run}", "{bad}/folders"], "folders has no video"),
        (["infer", "nowhere.pt", "a.mp4"], "checkpoint nowhere.pt does not exist"),
        (["explain", "{run}", "{bad}/names.txt", "--out", "{bad}/x"], "names.txt: cannot be decoded"),
        (["info", "nowhere.pt"], "nowhere.pt does not exist"),
        (["data", "synthetic", "{bad}/set", "--num-train", "0"], "num_train must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    videornn, tiny_run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "device=cuda" in arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    (tmp_path / "folders/empty").mkdir(parents=True)
    (tmp_path / "other/walk").mkdir(parents=True)
    (tmp_path / "other/walk/a.mp4").touch()
    (tmp_path / "range.txt").write_text("a.mp4 7\n")
    (tmp_path / "nolabel.txt").write_text("a.mp4 0\nb.mp4\n")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    if arguments[0] == "train":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    places = {"bad": tmp_path, "run": tiny_run / "checkpoints/last.pt"}
    code, _, err = videornn(*[argument.format(**places) for argument in arguments])
    assert code == 2
    assert err.startswith("videornn: ") and "Traceback" not in err
    # one sentence per file that failed, and for infer the count
    assert message in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{far}.yaml", "--out", "{tmp}/run"],
        ["train", CONFIG, "data.train={far}.txt", "--out", "{tmp}/run"],
        ["test", "{far}.pt"],
        ["test", "--scores", "{far}.npz"],
        ["infer", "{run}", "{far}.mp4"],
        ["infer", "{run}", "a.mp4", "--json", "{far}/r.json"],
        ["explain", "{run}", "{far}.mp4", "--out", "{tmp}/x"],
        ["report", "{far}"],
        ["convert", "{far}.pth", "{tmp}/x.pt"],
        ["export", "{run}", "--format", "onnx", "--out", "{far}/x.onnx"],
        ["data", "verify", "{far}.txt"],
        ["data", "list", "{far}.txt", "--out", "{tmp}/lists"],
        ["data", "synthetic", "{far}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace("{far}", "X"),
)
def test_what_the_system_does_not_let_us_look_at_is_one_sentence(
    videornn, tiny_run: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """As files in a folder that may not be entered, which root does not know; nobody can look at names of 300 letters."""
    places = {"far": tmp_path / (300 * "x"), "run": tiny_run / "checkpoints/last.pt", "tmp": tmp_path}
    code, _, err = videornn(*[argument.format(**places) for argument in arguments])
    assert code == 2 and 300 * "x" in err, err
    assert err.startswith("videornn: ") and "Traceback" not in err and len(err.splitlines()) <= 2


def test_a_remark_of_the_loader_is_a_sentence_and_not_a_line_of_a_program(
    videornn, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videornn.data.loader._refused_locks", lambda num_workers: "full\x1b[2J")
    code, _, err = videornn("test", tiny_run / "checkpoints/last.pt", "--out", tmp_path)
    assert code == 0 and err.startswith("videornn: /dev/shm does not take the locks of loader workers (full\\x1b[2J). For ")
    assert err.splitlines()[1] == "test 1/10"
