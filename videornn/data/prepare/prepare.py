"""Re-encode the videos of a list in many processes or on many machines; a killed run loses no finished video.

OUT holds the videos under their relative names, a list and labels.txt for training, a report with a row per video, and
prepare.json, which says how they were encoded. A video is written as a whole or not at all, so a run continues where an
earlier one was stopped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from videornn.data.annotations.labels import format_labels, load_labels
from videornn.data.annotations.load import VideoTable, load_videos
from videornn.data.annotations.plain import format_list
from videornn.data.prepare.reencode import Encoded, Encoding, measure_quality, read_encoded, reencode
from videornn.data.prepare.verify import Status, VideoFault, check_workers, inspect_video, status_of
from videornn.data.video.errors import errors_of_video
from videornn.data.video.pictures import MAX_FRAME_PIXELS
from videornn.errors import DecodeError, UserError
from videornn.system.files import differing_parameters, make_folder, write_table, write_text
from videornn.system.text_files import read_rows
from videornn.system.workers import Lost, num_cores, run_parallel

RECORD = "prepare.json"  # in OUT
FORMAT = 2  # raise it whenever the same parameters no longer give the same files


@dataclass(frozen=True)
class PreparedVideo:
    """A row of the report: a source, its output (relative to OUT), and the result; None stands for unknown."""

    path: str
    output: str
    status: Status
    reason: str = ""
    num_frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    source_bytes: int | None = None
    output_bytes: int | None = None
    mean_psnr: float | None = None
    worst_psnr: float | None = None
    mean_ssim: float | None = None
    worst_ssim: float | None = None


@dataclass(frozen=True)
class Prepared:
    """The result of a run: rows in the order of the list, its report, the list of all sound videos, remarks on the source.

    list_file is None if no video is sound, or while shards are missing.
    """

    rows: list[PreparedVideo]
    report: Path
    list_file: Path | None
    missing_shards: list[int]
    remarks: list[str]


@dataclass(frozen=True)
class _Job:
    path: str
    output: str
    measure: bool = False


def prepare_videos(
    source: str,
    out: Path,
    encoding: Encoding,
    *,
    root: str | None = None,
    labels: str | None = None,
    shard: tuple[int, int] = (1, 1),
    max_pixels: int = MAX_FRAME_PIXELS,
    num_workers: int | None = None,
    timeout_seconds: float | None = None,
    num_measured: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Re-encode every video of a list or folder (see load_videos) into out.

    Args:
        shard: (i, n) does the i-th of n equal parts, i from 1; the last one to finish writes the list.
        max_pixels: width x height that a frame of a source may have.
        num_workers: processes, one per available core unless given.
        timeout_seconds: longest time for one video.
        num_measured: number of videos, evenly over the list, whose PSNR and SSIM are measured.
        on_progress: called with the number of videos done and the total.

    Raises:
        UserError: wrong input, out holds videos encoded otherwise, or out cannot be written.
    """
    check_workers(num_workers, timeout_seconds)
    _check_numbers(encoding, shard, num_measured)
    table = load_videos(source, root=root, labels=labels)
    base = Path(source) if os.path.isdir(source) else Path(source).parent if root is None else Path(root).expanduser()
    _check_place(source, base, out)
    outputs = _output_names(table, base)
    _claim(out, encoding, table)
    name = Path(source).resolve().name if os.path.isdir(source) else Path(source).stem
    jobs = [_Job(path, output) for path, output in outputs.items()][shard[0] - 1 :: shard[1]]
    for number in range(min(num_measured, len(jobs))):
        place = number * len(jobs) // num_measured if num_measured < len(jobs) else number
        jobs[place] = replace(jobs[place], measure=True)
    work = partial(_prepare_video, out=out, encoding=encoding, max_pixels=max_pixels)
    rows: dict[int, PreparedVideo] = {}
    for index, row in run_parallel(work, jobs, num_workers=num_workers or num_cores(), timeout_seconds=timeout_seconds):
        job = jobs[index]
        rows[index] = PreparedVideo(job.path, job.output, row.kind, row.reason) if isinstance(row, Lost) else row
        if on_progress:
            on_progress(len(rows), len(jobs))
    ordered = [rows[index] for index in range(len(jobs))]
    report = _report_path(out, name, *shard)
    write_table(report, [field.name for field in fields(PreparedVideo)], map(astuple, ordered))
    missing = [part for part in range(1, shard[1] + 1) if not _report_path(out, name, part, shard[1]).is_file()]
    list_file = None if missing else _write_list(out, name, shard[1], table, outputs)
    return Prepared(ordered, report, list_file, missing, table.remarks())


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "i/n" to (i, n); raises UserError."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text!r} is not i/n with i from 1 to n, such as 2/8")
    return int(part), int(parts)


def _check_numbers(encoding: Encoding, shard: tuple[int, int], num_measured: int) -> None:
    if encoding.short_side < 16 or encoding.short_side % 2:
        raise UserError(f"--short-side must be an even number from 16 on, got {encoding.short_side}")
    if encoding.temporal_stride < 1:
        raise UserError(f"--temporal-stride must be at least 1, got {encoding.temporal_stride}")
    if not 0 <= encoding.crf <= 51:
        raise UserError(f"--crf must be in 0 (lossless) to 51, got {encoding.crf}")
    if num_measured < 0:
        raise UserError(f"--quality must not be negative, got {num_measured}")
    assert 1 <= shard[0] <= shard[1]


def _check_place(source: str, base: Path, out: Path) -> None:
    there, place = base.resolve(), out.resolve()
    if place in (there, Path(source).resolve().parent if not os.path.isdir(source) else there):
        raise UserError(f"{out} is where the source is; choose another folder for the prepared videos")
    if os.path.isdir(source) and there in place.parents:
        raise UserError(f"{out} lies in {source}, where it would count as a class; choose a folder outside")


def _output_names(table: VideoTable, base: Path) -> dict[str, str]:
    """Return the relative mp4 name of every video, in the order of the table; the suffix stays where names would clash."""
    folder = os.path.abspath(base)
    relative = {}
    for index in range(len(table)):
        path = table.path(index)
        if path in relative:
            continue
        name = os.path.relpath(os.path.abspath(path), folder)
        if name.startswith(os.pardir + os.sep):
            place = os.path.commonpath([os.path.dirname(os.path.abspath(table.path(index))) for index in range(len(table))])
            raise UserError(f"{path} lies outside {base}; give a folder that all videos lie in, as --root {place} is")
        relative[path] = Path(name).as_posix()
    stems = Counter(os.path.splitext(name)[0] for name in relative.values())
    outputs: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path, name in relative.items():
        stem, suffix = os.path.splitext(name)
        output = f"{stem}.mp4" if stems[stem] == 1 or suffix == ".mp4" else f"{name}.mp4"
        if output in taken:
            raise UserError(f"{path} and {taken[output]} would both become {output}; rename one of them")
        outputs[path], taken[output] = output, path
    return outputs


def _claim(out: Path, encoding: Encoding, table: VideoTable) -> None:
    """Make OUT and record the encoding and the classes in it; a different record there is an error."""
    parameters = {"format": FORMAT, **asdict(encoding)}
    record, names = out / RECORD, out / "labels.txt"
    if record.exists() and (described := differing_parameters(record, parameters)):
        raise UserError(f"{out} holds videos prepared with {described}: choose another folder or remove this one")
    if table.class_names and names.exists() and load_labels(names) != table.class_names:
        raise UserError(f"{names} has other classes than {table.source}: choose another folder")
    make_folder(out, "OUT")
    try:
        if not record.exists():
            write_text(record, json.dumps(parameters, indent=2) + "\n")
        if table.class_names and not names.exists():
            write_text(names, format_labels(table.class_names))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror})") from error


def _prepare_video(job: _Job, *, out: Path, encoding: Encoding, max_pixels: int) -> PreparedVideo:
    """Encode the video in a worker unless that is done; never raises because of the video."""
    torch.set_num_threads(1)  # there is a process per core
    target = out / job.output
    try:
        with errors_of_video(job.path):
            encoded, remark = _already_encoded(job.path, target), ""
            if encoded is None:
                encoded, remark = _encode_anew(job.path, target, encoding, max_pixels)
            # the source of a file made earlier may be gone
            measures = job.measure and os.path.exists(job.path)
            quality = measure_quality(job.path, target, encoding, max_pixels) if measures else None
    except DecodeError as error:
        reason = str(error).removeprefix(f"{job.path}: ")
        return PreparedVideo(job.path, job.output, status_of(error), reason, source_bytes=_size(job.path))
    sizes = {"source_bytes": _size(job.path), "output_bytes": _size(target)}
    numbers = {key: round(value, 4) for key, value in asdict(quality).items()} if quality else {}
    return PreparedVideo(job.path, job.output, "ok", remark, **asdict(encoded), **sizes, **numbers)


def _already_encoded(path: str, target: Path) -> Encoded | None:
    """Read what an earlier run made of a video; None if there is nothing or the source is newer."""
    try:
        is_there = target.exists() and _changed(target) >= _changed(path)
        return read_encoded(target) if is_there else None
    except VideoFault:
        return None


def _changed(path: str | Path) -> int:
    """Return when a file was last written, in nanoseconds; 0 if it is gone."""
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


def _encode_anew(path: str, target: Path, encoding: Encoding, max_pixels: int) -> tuple[Encoded, str]:
    """Encode a video; return what it has become and what is odd about the source."""
    report = inspect_video(path, max_pixels=max_pixels)
    if report.status != "ok":
        raise VideoFault(report.status, report.reason)
    if os.path.isdir(path):
        raise VideoFault("no_video", "is a folder of frames, which need no preparing: train on it as it is")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be made ({error.strerror})") from error
    source_changed = _changed(path)
    encoded = reencode(path, target, encoding, max_pixels)
    if _changed(target) < source_changed:  # the source's clock is ahead of ours: the file would seem old in every run
        os.utime(target, ns=(source_changed, source_changed))
    return encoded, report.reason


def _size(path: str | Path) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None


def _report_path(out: Path, name: str, part: int, num_parts: int) -> Path:
    return out / (f"{name}.report.csv" if num_parts == 1 else f"{name}.report-{part}-of-{num_parts}.csv")


def _write_list(out: Path, name: str, num_parts: int, table: VideoTable, outputs: dict[str, str]) -> Path | None:
    """Write the list of the videos that are sound by the reports of all shards, in the order of the source."""
    sound: set[str] = set()
    for part in range(1, num_parts + 1):
        report = read_rows(_report_path(out, name, part, num_parts), ("output", "status"))
        sound |= {row["output"] for row in report if row["status"] == "ok"}
    listed = ((outputs[table.path(index)], label) for index, label in enumerate(table.labels.tolist()))
    rows = [(output, label) for output, label in listed if output in sound]
    if not rows:
        return None
    write_text(out / f"{name}.txt", "".join(format_list(rows, table.class_names)))
    return out / f"{name}.txt"
