"""What a run folder holds, read for its report: whatever is not there yet is empty or None."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videornn.config import Config, load_config
from videornn.errors import UserError


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

    numbers: dict[str, Any]
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
    starts: list[dict[str, Any]]
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
    if not records:
        raise UserError(f"{run / 'metrics.jsonl'} has no numbers yet; a report needs at least one logged step of training")
    starts = _read_json(run / "manifest.json", list) if (run / "manifest.json").is_file() else []
    return RunResults(
        folder=run,
        config=load_config(run / "config.yaml"),
        starts=[start for start in starts if isinstance(start, dict)],
        train=[record for record in records if record["kind"] == "train"],
        val=[record for record in records if record["kind"] == "val"],
        bad=_read_rows(run / "bad_videos.csv"),
        test=_read_test(run / "test"),
    )


def _check_run_folder(run: Path) -> None:
    if not run.exists():
        raise UserError(f"{run} does not exist; give the folder of a run, such as runs/NAME")
    if (run / "config.yaml").is_file():
        return
    what = "is not a run folder" if run.is_dir() else "is a file, not a run folder"
    above = next((folder for folder in run.absolute().parents[:2] if (folder / "config.yaml").is_file()), None)
    if above is not None:
        raise UserError(f"{run} {what}; give the run's folder: {above}")
    raise UserError(f"{run} {what}: it has no config.yaml; give the folder that `videornn train` wrote")


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Records in the order of their steps; a line that a kill cut short is no record."""
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int) or "kind" not in record:
            continue
        if records and record["step"] < records[-1]["step"]:  # steps that a resumed run does again
            records = [earlier for earlier in records if earlier["step"] < record["step"]]
        records.append(record)
    return records


def _read_test(folder: Path) -> TestResults | None:
    if not (folder / "metrics.json").is_file() or not (folder / "predictions.csv").is_file():
        return None
    try:
        # a video that could not be scored may have a row without a prediction
        predictions = [
            Prediction(
                path=row["path"],
                label=row["label"],
                prediction=row["prediction"],
                score=float(row["score"]),
                label_score=float(row["label_score"]) if row.get("label_score") else None,
            )
            for row in _read_rows(folder / "predictions.csv")
            if row["prediction"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'predictions.csv'} is damaged ({error!r}); run `videornn test` again") from error
    names = [row["class"] for row in _read_rows(folder / "per_class.csv") if row.get("class")]
    met = sorted({name for video in predictions for name in (video.label, video.prediction)} - set(names))
    picture = folder / "reliability.png"
    return TestResults(
        numbers=_read_json(folder / "metrics.json", dict),
        predictions=predictions,
        class_names=tuple(dict.fromkeys([*names, *met])),
        bad=_read_rows(folder / "bad_videos.csv"),
        reliability=picture if picture.is_file() else None,
    )


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); move it away to get a report without it") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged (it holds no {kind.__name__}); move it away to get a report without it")
    return content


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
