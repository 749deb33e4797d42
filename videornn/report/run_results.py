"""What a run folder holds, read for its report: whatever is not there yet is empty or None."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from videornn.config import Config, load_config
from videornn.errors import UserError
from videornn.system.text_files import json_lines, read_cells, read_json, read_rows

LARGEST = 1e100  # of the numbers of a run; with larger ones pictures of them cannot be reckoned

Count = Annotated[int, Field(ge=0, lt=2**63)]
ListOf: Any = list  # of kinds that are made below, which checkers of types do not follow


def _sheet(**kinds: object) -> Any:
    """A JSON object, of which what the page tells is of these kinds, or missing; the rest is as it is."""
    return TypedDict("Sheet", kinds, total=False)  # type: ignore[operator]


LIST = _sheet(used=Count, missing=Count)
START = _sheet(  # an entry of manifest.json
    time=str,
    command=list[str],
    code=_sheet(commit=Optional[str], dirty=Optional[bool]),
    versions=dict[str, Optional[str]],
    machine=_sheet(cpu=str, cores=Count, gpus=ListOf[_sheet(name=str)]),
    training=_sheet(ranks=Count, device=str, precision=str, batch_size=Count, seed=Count),
    data=_sheet(train=LIST, val=LIST, test=LIST),
    start=_sheet(step=Count),
)
NUMBERS = _sheet(  # metrics.json of a test; percentages may be NaN
    **dict.fromkeys(("video_top1", "video_top5", "clip_top1", "mean_class_top1", "ece"), float),
    **dict.fromkeys(("num_videos", "num_scored", "num_missing", "num_clips", "num_crops", "step"), Count),
)


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
        """Tell whether the best class is the label."""
        return self.prediction == self.label


@dataclass(frozen=True)
class EvalResults:
    """The test folder; class names and counts int64 [K, K] (rows: labels) are those of confusion.csv."""

    numbers: dict[str, Any]
    predictions: list[Prediction]
    class_names: tuple[str, ...]
    confusion: Tensor
    bad: list[dict[str, str]]
    reliability: Path | None


@dataclass(frozen=True)
class RunResults:
    """A run folder: entries of manifest.json, records of metrics.jsonl by their steps, rows of bad_videos.csv, the test."""

    folder: Path
    config: Config
    starts: list[dict[str, Any]]
    train: list[dict[str, float]]
    val: list[dict[str, float]]
    bad: list[dict[str, str]]
    test: EvalResults | None

    def list_counts(self, split: str) -> dict[str, int]:
        """Tell what the last start noted of a list: how many of its videos are used and missing."""
        return dict(self.starts[-1].get("data", {}).get(split, {}) if self.starts else {})

    @property
    def best_val(self) -> dict[str, float] | None:
        """Find the record of the best validation; of several, the last, as best.pt is."""
        return max(reversed(self.val), key=lambda record: record.get("top1", -1.0), default=None)


def read_run(run: Path) -> RunResults:
    """Read everything of a run folder but its checkpoints and pictures.

    Raises:
        UserError: this is no run folder (and which one may be meant), nothing is logged yet, or a file of it is damaged.
    """
    _check_run_folder(run)
    records = _read_records(run / "metrics.jsonl")
    train, val = ([record for record in records if record["kind"] == kind] for kind in ("train", "val"))
    if not train and not val:
        raise UserError(f"{run / 'metrics.jsonl'} has no numbers yet; a report needs at least one logged step of training")
    starts = _read_json(run / "manifest.json", ListOf[START]) if (run / "manifest.json").exists() else []
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


def _read_test(folder: Path) -> EvalResults | None:
    path = folder / "predictions.csv"
    if not all((folder / name).exists() for name in ("metrics.json", path.name, "confusion.csv")):
        return None
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
    names, confusion = _read_confusion(folder / "confusion.csv")
    picture = folder / "reliability.png"
    return EvalResults(
        numbers=_read_json(folder / "metrics.json", NUMBERS),
        predictions=predictions,
        class_names=names,
        confusion=confusion,
        bad=_read_bad(folder),
        reliability=picture if picture.exists() else None,
    )


def _read_confusion(path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Class names and counts of a table that has a row and a column for each class."""
    (_, *names), *rows = [row for row in read_cells(path) if row] or [[""]]
    cells = [cell for _, *row in rows for cell in row]
    square = bool(names) and [row[0] for row in rows] == names and all(len(row) == 1 + len(names) for row in rows)
    if not square or not all(cell.isdecimal() and len(cell) < 16 for cell in cells):
        raise UserError(f"{path} is damaged (it is no table of counts by label and prediction); run `videornn test` again")
    return tuple(names), torch.tensor(list(map(int, cells))).view(len(names), len(names))


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
        content = read_json(path)
        TypeAdapter(kind).validate_python(content, strict=True)
        return content
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"{path} is damaged ({place}: {first['msg'].lower()}); {way_out}") from None
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); {way_out}") from error
