"""Every file that a command reads, with something else in its place: one sentence that names it, and exit code 2."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.config import config_to_yaml, load_config
from videornn.evaluation.unfinished import MAGIC

QUICKSTART = ROOT / "configs/quickstart.yaml"
SECONDS = 100  # that nothing here takes, however busy the machine is, unless it hangs
MEMORY = 4 << 30  # bytes that nothing here takes, unless it reads all of a file that is far larger


def _put_nothing(path: Path) -> None:
    pass


def _put_much(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(100 << 30)  # which take no room


def _put_unreadable(path: Path) -> None:
    path.write_bytes(b"whatever")
    path.chmod(0)


WRONG: dict[str, Callable[[Path], object]] = {
    "missing": _put_nothing,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    "UTF-16": lambda path: path.write_text("größer\n", encoding="utf-16"),
    "Latin-1": lambda path: path.write_text("größer\n", encoding="latin-1"),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "100 GB": _put_much,
    "unreadable": _put_unreadable,
}


@dataclass(frozen=True)
class Read:
    """A file that a command reads: the command, with {places}; the file; what is the wrong type inside of it.

    fine: what may lie there, without an error; skip: what is sound here and would take long, or is no matter of the command.
    """

    command: str
    file: str
    wrong: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    fine: frozenset[str] = frozenset()
    skip: tuple[str, ...] = ()
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.command} reads {self.file}"


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def _another_png(path: Path) -> None:
    """A picture that says to be of 144 million pixels, more than Pillow opens without a warning."""
    Image.new("L", (8, 8)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 12_000, 12_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


CONFIG = {"a list": text("- a\n"), "a checkpoint": lambda path: save_checkpoint(path, {"model": {}})}
LIST = {"JSON": text('{"a": [1]}'), "binary lines": text("a\0b 1\n")}
LABELS = {"JSON of numbers": text("[1, 2]"), "JSON of lists": text('{"a": [1]}'), "deep JSON": text("[" * 100_000)}
CHECKPOINT = {
    "a bare dictionary": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "no config": lambda path: save_checkpoint(path, {"model": {}}),
    "a config of another type": lambda path: save_checkpoint(path, {"model": {}, "config": 5, "class_names": [], "step": 0}),
}
WEIGHTS = {"a list": lambda path: torch.save([1, 2], path), "text": lambda path: torch.save({"a": "b"}, path)}
SCORES = {"other arrays": lambda path: np.savez(path, a=np.zeros(3)), "objects": lambda path: np.savez(path, logits=[{}, 1])}
VIDEO = {"a picture": lambda path: Image.new("RGB", (8, 8)).save(path, "PNG")}
KEPT = {
    "another header": lambda path: path.write_bytes(MAGIC + b"[]\n"),
    "deep JSON": lambda path: path.write_bytes(MAGIC + b"[" * 100_000 + b"\n"),
}
JSON = {"text": text("good day"), "deep JSON": text("[" * 100_000), "a number": text("9" * 5000)}
RECORD = {**JSON, "a list": text("[1]")}
METRICS = {
    "text": text('{"video_top1": "high"}'),
    "a list": text("[1]"),
    "huge": text('{"step": ' + "9" * 400 + "}"),
    **JSON,
}
MANIFEST = {
    "an object": text("{}"),
    "a number for a start": text("[{}, 5]"),
    "text for a step": text('[{"start": {"step": "a"}}]'),
}
MANIFEST |= {
    "a list for a GPU": text('[{"machine": {"gpus": [[1]]}}]'),
    "text for a count": text('[{"data": {"val": {"used": "1"}}}]'),
}
TABLE = {"other columns": text("a,b\n1,2\n"), "zero bytes": text("path,label\0\n")}
PREDICTIONS = {"a word for a score": text("path,label,prediction,score\na,b,c,high\n"), **TABLE}
PREDICTIONS |= {"nan for a score": text("path,label,prediction,score\na,b,c,nan\n")}
COUNTS = {"a class without a row": text("label,a,b\na,1,2\n"), "no counts": text("label,a\na,-1\n"), **TABLE}
SOUND = '{"kind": "train", "step": 1, "epoch": 1.0, "loss": 2.0}\n'  # of the last line, a kill may have left a part
LINES = {
    "text for a step": text('{"kind": "train", "step": "1"}\n' + SOUND),
    "text for a number": text('{"kind": "train", "step": 1, "loss": "low"}\n' + SOUND),
    "infinite epochs": text('{"kind": "train", "step": 1, "epoch": Infinity}\n' + SOUND),
    "a list": text("[1]\n" + SOUND),
    "deep JSON": text("[" * 100_000 + "\n" + SOUND),
}
PNG = {"another picture": lambda path: Image.new("RGB", (8, 8)).save(path, "JPEG"), "a huge picture": _another_png}
OPTIONAL = frozenset({"missing"})
STREAMS = ("pipe", "device")  # which infer waits for
NO_LOCK = {"folder", "unreadable", *STREAMS}
MAPPED = ("100 GB",)  # which takes addresses alone, and no memory

READS = [
    Read("config {config}", "{config}", CONFIG, frozenset({"empty"})),
    Read("info {config}", "{config}", CONFIG, skip=("empty",)),
    Read("train {config} --out {tmp}/out", "{config}", CONFIG, skip=("empty",)),
    Read("train {config} --out {tmp}/out", "{set}/train.txt", LIST),
    Read("train {config} --out {tmp}/out", "{set}/val.txt", LIST),
    Read("train {config} --out {tmp}/out data.labels={set}/labels.txt", "{set}/labels.txt", LABELS),
    Read("train {config} --out {tmp}/out model.init={init}", "{init}", WEIGHTS, skip=MAPPED),
    # the checkpoint before stands in for it
    Read("train {config} --out {run} --resume", "{run}/checkpoints/last.pt", CHECKPOINT, frozenset(WRONG), slow=True),
    *(
        Read("train {config} --out {run} --resume", f"{{run}}/{name}", wrong, frozenset(fine), slow=True)
        for name, wrong, fine in (
            ("metrics.jsonl", LINES, {"missing", "empty", "Latin-1", *LINES} - {"text for a step", "a list", "deep JSON"}),
            ("manifest.json", JSON, {*WRONG, *JSON} - {"folder", "unreadable", "pipe", "device"}),
            ("config.yaml", {}, {*WRONG} - {"folder", "pipe", "device"}),
        )
    ),
    Read("data bench {config} --num-clips 8", "{set}/train.txt", LIST),
    Read("test {checkpoint}", "{checkpoint}", CHECKPOINT),
    Read("test {checkpoint}", "{set}/test.txt", LIST),
    Read("test --scores {scores}", "{scores}", SCORES),
    Read("infer {checkpoint} {video}", "{checkpoint}", CHECKPOINT),
    Read("infer {checkpoint} {video}", "{video}", VIDEO, frozenset(VIDEO), skip=STREAMS, slow=True),
    Read("infer {checkpoint} {set}/test.txt", "{set}/test.txt", LIST, skip=STREAMS, slow=True),
    Read("explain {checkpoint} {video} --out {tmp}/out", "{checkpoint}", CHECKPOINT),
    Read("explain {checkpoint} {video} --out {tmp}/out", "{video}", VIDEO, frozenset(VIDEO), slow=True),
    Read("export {checkpoint} --format torch", "{checkpoint}", CHECKPOINT),
    Read("info {checkpoint}", "{checkpoint}", CHECKPOINT),
    Read("convert {init} {tmp}/out.pt", "{init}", WEIGHTS, skip=MAPPED),
    Read("convert {init} {tmp}/out.pt --labels {set}/labels.txt", "{set}/labels.txt", LABELS),
    Read("demo {checkpoint} --port 0", "{checkpoint}", skip=tuple({*WRONG} - {"missing", "empty", "pipe"}), slow=True),
    Read("train {config} --out {run} --resume", "{run}/.lock", {}, frozenset(WRONG) - NO_LOCK, slow=True),
    Read("test {checkpoint}", "{run}/test/.lock", {}, frozenset(WRONG) - NO_LOCK, slow=True),
    # scores that are kept are not needed: a test begins anew
    Read(
        "test {checkpoint}",
        "{run}/test/unfinished/rank_0.scores",
        KEPT,
        frozenset({*WRONG, *KEPT}) - {"folder", "unreadable"},
        slow=True,
    ),
    Read("data list {set}/train.txt --out {tmp}/out", "{set}/train.txt", LIST),
    Read("data list {set}/train.txt --out {tmp}/out --labels {set}/labels.txt", "{set}/labels.txt", LABELS),
    Read("data verify {set}/train.txt", "{set}/train.txt", LIST),
    Read("data prepare {set}/train.txt {tmp}/out", "{set}/train.txt", LIST),
    Read("data prepare {set}/train.txt {prepared}", "{prepared}/prepare.json", RECORD, skip=("missing",)),
    Read("data prepare {set}/train.txt {prepared}", "{prepared}/labels.txt", LABELS, skip=("missing",)),
    # the first of two parts counts as not there
    Read(
        "data prepare {set}/two.txt {prepared} --shard 2/2 --workers 1 --quality 0",
        "{prepared}/two.report-1-of-2.csv",
        TABLE,
        frozenset({"missing", "folder", *STREAMS}),
        skip=("folder", "device", "random bytes", "UTF-16", "Latin-1"),
        slow=True,
    ),
    Read("data synthetic {set} --num-train 1 --num-val 1 --num-test 1", "{set}/synthetic.json", RECORD, skip=("missing",)),
    Read("data synthetic {tmp}/out", "{tmp}/out/synthetic.partial.json", RECORD, skip=("missing",)),
    Read("report {run}", "{run}/config.yaml", CONFIG, frozenset({"empty"})),
    Read("report {run}", "{run}/metrics.jsonl", LINES),
    Read("report {run}", "{run}/manifest.json", MANIFEST, OPTIONAL),
    Read("report {run}", "{run}/test/metrics.json", METRICS, OPTIONAL),
    Read("report {run}", "{run}/test/predictions.csv", PREDICTIONS, OPTIONAL),
    Read("report {run}", "{run}/test/confusion.csv", COUNTS, OPTIONAL),
    Read("report {run}", "{run}/test/bad_videos.csv", TABLE, OPTIONAL),
    Read("report {run}", "{run}/bad_videos.csv", TABLE, OPTIONAL),
]
# the page says in the place of each that it is not there, or damaged
READS += [
    Read("report {run}", f"{{run}}/{name}", wrong, frozenset({*WRONG, *wrong}), slow=True)
    for name, wrong in (("test/reliability.png", PNG), ("checkpoints/best.pt", CHECKPOINT))
]


@pytest.fixture(scope="module")
def tested_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run after its test."""
    from videornn.evaluation.evaluate import evaluate

    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("tested") / "run"))
    evaluate(run / "checkpoints/best.pt", [], None, lambda done, total: None)
    (run / "bad_videos.csv").write_text("path,reason\n")
    return run


@pytest.fixture(scope="module")
def lists(motion_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of the synthetic set, and what else lies beside them, with links to its videos."""
    folder = tmp_path_factory.mktemp("lists") / "set"
    folder.mkdir()
    for path in motion_set.iterdir():
        shutil.copy(path, folder) if path.is_file() else (folder / path.name).symlink_to(path)
    (folder / "two.txt").write_text("".join((folder / "val.txt").read_text().splitlines(keepends=True)[:2]))
    return folder


@contextmanager
def bounds() -> Iterator[None]:
    """Neither for ever nor with all memory; and warnings, which nobody asked for, are errors."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else None

    def give_up(*_: object) -> None:
        raise TimeoutError(f"nothing came back for {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def _replace(path: Path, put: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    put(path)


@pytest.mark.parametrize(
    "read", [pytest.param(read, marks=pytest.mark.slow) if read.slow else read for read in READS], ids=str
)
def test_whatever_lies_in_the_place_of_a_file_is_one_sentence(
    read: Read, tested_run: Path, lists: Path, tiny_settings: list[str], videornn, without_root_rights, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("videornn.report.write.animate", lambda *_: {"why_not": ""})  # videos are not the point here
    monkeypatch.setattr("videornn.report.attention._explain_first", lambda *_: [])
    settings = [re.sub("=/.*/", "=SET/", setting) for setting in tiny_settings]
    config, failures = config_to_yaml(load_config(QUICKSTART, settings)), []
    for name, put in (WRONG | read.wrong).items():
        if name in read.skip:
            continue
        root = tmp_path / name.replace(" ", "_")
        root.mkdir()
        # another name of a file is as good as a copy, unless a command goes on in it
        copy = shutil.copy2 if "--resume" in read.command else os.link
        run, made = (
            Path(shutil.copytree(folder, root / folder.name, symlinks=True, copy_function=copy))
            for folder in (tested_run, lists)
        )
        places = {"tmp": root, "run": run, "set": made, "checkpoint": run / "checkpoints/last.pt"}
        places |= {"config": root / "run.yaml", "scores": run / "test/scores.npz", "init": root / "weights.pth"}
        places |= {"video": root / "video.mp4", "prepared": root / "prepared"}
        places["config"].write_text(config.replace("SET/", f"{made}/"))
        path = Path(read.file.format(**places))
        _replace(path, put)
        arguments = read.command.format(**places).split()
        if arguments[0] == "test" and "--scores" not in arguments:
            arguments.append(f"data.test={made}/test.txt")
        with bounds(), without_root_rights():
            try:
                code, _, err = videornn(*arguments)
            except BaseException as error:
                failures.append(f"{name}: {type(error).__name__}: {str(error)[:150]}")
                continue
        fine, err = name in read.fine, re.sub(r"(?m)^\w+ \d+/\d+\n", "", err)  # how far it is
        if code != (0 if fine else 2):
            failures.append(f"{name}: exit code {code}: {err[:300]}")
        elif not fine and (
            err.count("\n") > 1 + (read.command[:5] == "infer") or not err.startswith("videornn: ") or path.name not in err
        ):
            failures.append(f"{name}: {err[:300]}")
    assert not failures, "\n".join(failures)
