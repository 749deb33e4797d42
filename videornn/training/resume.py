"""Check that a resumed run will reach the weights that it would have had without the stop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from videornn.config import Config, EvalConfig, config_from_dict
from videornn.data.annotations.labels import class_key
from videornn.data.annotations.table import VideoTable
from videornn.errors import UserError

# settings that may differ when a run is resumed: they change speed, memory or output, not the weights
FREE_ON_RESUME = (
    "device",
    "data.labels",
    "data.max_bad_share",
    "data.max_frame_pixels",
    "data.num_workers",
    "data.root",
    "data.test",
    "data.timeout",
    "data.train",
    "data.val",
    "model.recompute_blocks",
    "train.accept_other_data",
    "train.elastic",
    "train.keep",
    "train.log_every",
    "train.max_skipped",
    "train.nonfinite",
    "train.save_every",
    "train.timeout",
    "train.val_every",
    "test.",
)
# settings that our errors advise for a run that cannot go on as it is: the same training, but for bits or statistics
REMEDIES = (
    "data.decoder",
    "train.accumulate",
    "train.bn_clips",
    "train.clip_norm",
    "train.compile",
    "train.deterministic",
    "train.precision",
)


def check_resumable(config: Config, saved: dict[str, Any], path: Path, *, num_videos: int, num_ranks: int) -> list[str]:
    """Compare the config of a resumed run with the checkpoint it continues from.

    Returns:
        Remarks for people about allowed differences.

    Raises:
        UserError: the run would end with other weights: another setting, another number of videos, or of ranks without
            train.elastic.
    """
    if "meters" not in saved:
        raise UserError(
            f"--resume: {path} was written by another version of videornn, or by convert; a new run can start from its "
            f"weights: model.init={path}"
        )
    before = _flatten(config_from_dict(saved["config"], str(path)).model_dump(mode="json"))
    now = _flatten(config.model_dump(mode="json"))
    changed = {
        key: f"{key} is {now[key]!r} now and was {before.get(key)!r}"
        for key in now
        if now[key] != before.get(key) and not key.startswith(FREE_ON_RESUME)
    }
    for key, difference in changed.items():
        if key not in REMEDIES:
            raise UserError(
                f"--resume: {difference} in {path}; use the same value, or another --out for a new run, which can "
                f"start from these weights: model.init={path}"
            )
    remarks = [f"{difference}: the weights will not be, bit for bit, those without this" for difference in changed.values()]
    if num_videos != saved["num_videos"]:
        raise UserError(
            f"--resume: {config.data.train} has {num_videos} videos now and had {saved['num_videos']} in {path}; bring back "
            f"the others, or use another --out for a new run, which can start from these weights: model.init={path}"
        )
    if num_ranks == saved["num_ranks"]:
        return remarks
    if not config.train.elastic:
        raise UserError(
            f"--resume: there are {num_ranks} ranks now and were {saved['num_ranks']} in {path}, and batch norm takes its "
            f"statistics of each rank's clips; use {saved['num_ranks']}, or train.elastic=true to go on with others"
        )
    return [
        *remarks,
        f"{num_ranks} ranks now, {saved['num_ranks']} before: the same samples, other statistics of batch norm",
    ]


def describe_run(config: Config, data: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return what must be the same on all ranks of a run, in plain values; data is the result of describe_data."""
    videos = hashlib.sha256(data["paths"].numpy())
    videos.update(data["labels"].numpy())
    return {
        "seed": config.seed,
        "network": config.model.model_dump(exclude={"init"}),
        "train settings": config.train.model_dump(),
        "classes": class_names,
        "videos": videos.hexdigest(),
        "validation videos": data["val"],
    }


def describe_data(train: VideoTable, val: VideoTable | None, views: EvalConfig) -> dict[str, Any]:
    """Describe the data of a run as its checkpoints keep them, beside its class names, for check_same_data.

    paths, labels: fingerprint of the training videos; val: a digest of the validation videos and their views.
    """
    return {**train.fingerprint(), "val": None if val is None else _digest(val, views)}


def check_same_data(
    saved: dict[str, Any], path: Path, *, train: VideoTable, class_names: tuple[str, ...], data: dict[str, Any], accept: bool
) -> list[str]:
    """Compare the data of a run with those of the checkpoint it continues from, if that tells them (new ones do).

    Args:
        data: the result of describe_data now.
        accept: allow other videos, labels and renamed classes; classes with other numbers are never allowed.

    Returns:
        Remarks for people about allowed differences.

    Raises:
        UserError: tells what differs, with the first example, and the way out.
    """
    names_before, before = saved["class_names"], saved.get("data", data)
    _check_numbers(class_names, names_before, path)
    differences = [*_renamed(class_names, names_before), *_other_videos(train, data, before, class_names)]
    if differences and not accept:
        raise UserError(
            f"--resume: {train.source} is not what {path} was trained on: {'; '.join(differences)}; bring back what was, or "
            f"give train.accept_other_data=true to go on with what is there now"
        )
    remarks = [f"other data than {path} was trained on, as accepted: {'; '.join(differences)}"] if differences else []
    if before["val"] != data["val"] and saved["best_top1"] >= 0:
        what = "there is no data.val any more" if data["val"] is None else "data.val has other videos, labels or views now"
        remarks.append(f"{what}: the best top-1 so far, {saved['best_top1']:.2f} %, does not count for best.pt any more")
    return remarks


def _check_numbers(names: tuple[str, ...], before: list[str], path: Path) -> None:
    """Raise UserError if a remaining class has another number: the network would call it by another's name."""
    numbers = {class_key(name): number for number, name in enumerate(before)}
    places = [(name, number, numbers.get(class_key(name), number)) for number, name in enumerate(names)]
    moved = [place for place in places if place[1] != place[2]] if list(names) != before else []
    if moved:
        name, now, then = moved[0]
        raise UserError(
            f"--resume: {len(moved)} of {len(names)} classes have other numbers than in {path}, the first {name!r}: {now} "
            f"now, {then} before, so that the network would call each by another's name; bring back the order of the names "
            f"(data.labels, labels.txt or folders), or use another --out for a new run"
        )


def _renamed(names: tuple[str, ...], before: list[str]) -> Iterator[str]:
    """Say in words which classes were renamed."""
    pairs = enumerate(zip(names, before, strict=True))
    new = [(number, now, then) for number, (now, then) in pairs if class_key(now) != class_key(then)]
    if new:
        number, now, then = new[0]
        yield f"{len(new)} classes have other names, the first number {number}: {now!r} now, {then!r} before"


def _other_videos(
    table: VideoTable, data: dict[str, Tensor], data_before: dict[str, Tensor], class_names: tuple[str, ...]
) -> Iterator[str]:
    """Say in words how equally many videos differ from those before: in paths, order or labels."""
    paths, before, labels, labels_before = (
        what[name].numpy() for name in ("paths", "labels") for what in (data, data_before)
    )
    rows = rows_before = np.arange(len(paths))
    if not np.array_equal(paths, before):
        others = np.flatnonzero(~np.isin(paths, before))
        if len(others):
            yield f"{len(others)} of {len(paths)} videos are others, the first {table.paths[others[0]]}"
        else:
            first = np.flatnonzero(paths != before)[0]
            yield f"the {len(paths)} videos are in another order, from {table.paths[first]} on"
        _, rows, rows_before = np.intersect1d(paths, before, return_indices=True)
    wrong = np.flatnonzero(labels[rows] != labels_before[rows_before])
    if len(wrong):
        first = wrong[rows[wrong].argmin()]
        now, then = (class_names[label] for label in (labels[rows[first]], labels_before[rows_before[first]]))
        yield (
            f"{len(wrong)} of {len(paths)} videos have other labels, the first {table.paths[rows[first]]}: {now!r} now, "
            f"{then!r} before"
        )


def _digest(table: VideoTable, views: EvalConfig) -> str:
    digest = hashlib.sha256(f"{views.short_side} {views.crop_size}".encode())
    for values in table.fingerprint().values():
        digest.update(values.numpy().data)
    return digest.hexdigest()


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
