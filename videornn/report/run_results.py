"""What a run folder holds, read for its report: whatever is not there yet is empty or None."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from videornn.config import Config, load_config
from videornn.errors import UserError
from videornn.system.text_files import json_lines, read_json, read_rows

LARGEST = 1e100  # of the numbers of a run; with larger ones pictures of them cannot be reckoned

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Sheet(TypedDict, total=False):
    """A JSON object of a run folder: what the page tells of it is of its type, and may be missing; the rest is as it is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")


class Numbers(Sheet, total=False):
    """metrics.json of a test; percentages may be NaN."""

    video_top1: float
    video_top5: float
    clip_top1: float
    mean_class_top1: float
    ece: float
    num_videos: Count
    num_scored: Count
    num_missing: Count
    num_clips: Count
    num_crops: Count
    step: Count


class Code(Sheet, total=False):
    commit: str | None
    dirty: bool | None


class Gpu(Sheet, total=False):
    name: str


class Machine(Sheet, total=False):
    cpu: str
    cores: Count
    gpus: list[Gpu]


class Training(Sheet, total=False):
    ranks: Count
    device: str
    precision: str
    batch_size: Count
    seed: Count


class ListCounts(Sheet, total=False):
    used: Count
    missing: Count


class Data(Sheet, total=False):
    train: ListCounts
    val: ListCounts
    test: ListCounts


class Begun(Sheet, total=False):
    step: Count


class Start(Sheet, total=False):
    """An entry of manifest.json."""

    time: str
    command: list[str]
    code: Code
    versions: dict[str, str | None]
    machine: Machine
    training: Training
    data: Data
    start: Begun


@dataclass(frozen=True)
class Prediction:
    """What the network said of a test video: the best class and its score in 0..1; label_score is that of its label."""

    path: str
    label: str
    prediction: str
    score: float
    label_score: float | None = None

    @property
    def right(self) -> bool:
        """Whether the best class is the label."""
        return self.prediction == self.label


@dataclass(frozen=True)
class TestResults:
    """The test folder: metrics.json, predictions.csv, class names by id, bad_videos.csv, a picture if it is there."""

    numbers: Numbers
    predictions: list[Prediction]
    class_names: tuple[str, ...]
    bad: list[dict[str, str]]
    reliability: Path | None

    def confusion(self) -> np.ndarray:
        """Counts int64 [K, K] of the predictions: rows are labels, columns are predictions."""
        ids = {name: index for index, name in enumerate(self.class_names)}
        counts = np.zeros((len(ids), len(ids)), np.int64)
        for video in self.predictions:
            counts[ids[video.label], ids[video.prediction]] += 1
        return counts


@dataclass(frozen=True)
class RunResults:
    """A run folder.

    starts: the entries of manifest.json; train, val: the records of metrics.jsonl of these kinds, steps ascending;
    bad: the rows of bad_videos.csv.
    """

    folder: Path
    config: Config
    starts: list[Start]
    train: list[dict[str, float]]
    val: list[dict[str, float]]
    bad: list[dict[str, str]]
    test: TestResults | None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def best_val(self) -> dict[str, float] | None:
        """The record of the best validation; of several, the last, as best.pt is."""
        return max(reversed(self.val), key=lambda record: record.get("top1", -1.0), default=None)


def read_run(run: Path) -> RunResults:
    """Everything of a run folder but its checkpoints and pictures.

    Raises:
        UserError: this is no run folder (and which one may be meant), nothing is logged yet, or a file of it is damaged.
    """
    _check_run_folder(run)
    records = _read_records(run / "metrics.jsonl")
    train, val = ([record for record in records if record["kind"] == kind] for kind in ("train", "val"))
    if not train and not val:
        raise UserError(f"{run / 'metrics.jsonl'} has no numbers yet; a report needs at least one logged step of training")
    starts = _read_json(run / "manifest.json", list[Start]) if (run / "manifest.json").exists() else []
    return RunResults(
        folder=run,
        config=load_config(run / "config.yaml"),
        starts=starts,
        train=train,
        val=val,
        bad=_read_bad(run),
        test=_read_test(run / "test"),
    )


def _check_run_folder(run: Path) -> None:
    if not run.exists():
        raise UserError(f"{run} does not exist; give the folder of a run, such as runs/NAME")
    if (run / "config.yaml").exists():
        return
    what = "is not a run folder" if run.is_dir() else "is a file, not a run folder"
    above = next((folder for folder in run.absolute().parents[:2] if (folder / "config.yaml").is_file()), None)
    if above is not None:
        raise UserError(f"{run} {what}; give the run's folder: {above}")
    raise UserError(f"{run} {what}: it has no config.yaml; give the folder that `videornn train` wrote")


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Records in the order of their steps; a last line that a kill cut short is no record."""
    records: list[dict[str, Any]] = []
    for _, record in json_lines(path, _is_record) if path.exists() else ():
        if records and record["step"] < records[-1]["step"]:  # steps that a resumed run does again
            records = [earlier for earlier in records if earlier["step"] < record["step"]]
        records.append(record)
    return records


def _is_record(record: dict[str, Any]) -> bool:
    if not isinstance(record.get("kind"), str):
        return False
    numbers = [value for key, value in record.items() if key != "kind"]
    if not all(type(value) in (int, float) and (abs(value) < LARGEST or not _finite(value)) for value in numbers):
        return False
    return isinstance(record.get("step"), int) and record["step"] >= 0 and _finite(record.get("epoch", 0))


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _read_test(folder: Path) -> TestResults | None:
    if not (folder / "metrics.json").exists() or not (folder / "predictions.csv").exists():
        return None
    path = folder / "predictions.csv"
    # a video that could not be scored may have a row without a prediction
    rows = [row for row in read_rows(path, ("path", "label", "prediction", "score")) if row["prediction"]]
    predictions = [
        Prediction(
            path=row["path"],
            label=row["label"],
            prediction=row["prediction"],
            score=_score(path, row["score"]),
            label_score=_score(path, row["label_score"]) if row.get("label_score") else None,
        )
        for row in rows
    ]
    classes = folder / "per_class.csv"
    names = [row["class"] for row in read_rows(classes, ("class",)) if row["class"]] if classes.exists() else []
    met = sorted({name for video in predictions for name in (video.label, video.prediction)} - set(names))
    picture = folder / "reliability.png"
    return TestResults(
        numbers=_read_json(folder / "metrics.json", Numbers),
        predictions=predictions,
        class_names=tuple(dict.fromkeys([*names, *met])),
        bad=_read_bad(folder),
        reliability=picture if picture.exists() else None,
    )


def _score(path: Path, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise UserError(f"{path} is damaged ({text[:30]!r} is no score in 0..1); run `videornn test` again")
    return score


def _read_bad(folder: Path) -> list[dict[str, str]]:
    path = folder / "bad_videos.csv"
    return read_rows(path, ("path", "reason")) if path.exists() else []


def _read_json(path: Path, kind: Any) -> Any:
    """The content of a file, of a kind as above."""
    way_out = "move it away to get a report without it"
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"{path} is damaged ({place}: {first['msg'].lower()}); {way_out}") from None
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); {way_out}") from error
