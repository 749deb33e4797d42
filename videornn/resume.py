"""Whether a run can go on from a checkpoint to the weights it would have had without the stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videornn.config import Config, config_from_dict
from videornn.errors import UserError

# settings that may differ when a run is resumed: they change speed or output, not the weights
FREE_ON_RESUME = (
    "device",
    "data.num_workers",
    "data.root",
    "data.test",
    "data.timeout",
    "data.train",
    "data.val",
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


def check_resumable(config: Config, saved: dict[str, Any], path: Path, *, num_videos: int, num_ranks: int) -> list[str]:
    """Compare what a run is to be now with the checkpoint it goes on from.

    Returns:
        Remarks for people about what differs and may.

    Raises:
        UserError: the run would not end with the weights it would have had: another setting, another number of videos, or
            of ranks without train.elastic.
    """
    if "meters" not in saved:
        raise UserError(
            f"--resume: {path} was written by another version of videornn, or by convert; a new run can start from its "
            f"weights: model.init={path}"
        )
    before = _flatten(config_from_dict(saved["config"], str(path)).model_dump(mode="json"))
    now = _flatten(config.model_dump(mode="json"))
    changed = [key for key in now if now[key] != before.get(key) and not key.startswith(FREE_ON_RESUME)]
    if changed:
        raise UserError(
            f"--resume: {changed[0]} is {now[changed[0]]!r} now and was {before.get(changed[0])!r} in {path}; use the same "
            f"value, or another --out for a new run"
        )
    if num_videos != saved["num_videos"]:
        raise UserError(
            f"--resume: {config.data.train} has {num_videos} videos now and had {saved['num_videos']} in {path}; bring back "
            f"the others, or use another --out for a new run"
        )
    if num_ranks == saved["num_ranks"]:
        return []
    if not config.train.elastic:
        raise UserError(
            f"--resume: there are {num_ranks} ranks now and were {saved['num_ranks']} in {path}, and batch norm takes its "
            f"statistics of each rank's clips; use {saved['num_ranks']}, or train.elastic=true to go on with others"
        )
    return [f"{num_ranks} ranks now, {saved['num_ranks']} before: the same samples, other statistics of batch norm"]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
