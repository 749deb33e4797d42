"""The commands of `videornn data`: lists, verification, preparation, timing, the embedded set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.table import Table

from videornn.data.prepare import Variant
from videornn.data.synthetic import TaskName
from videornn.errors import UserError
from videornn.system.console import ProgressBar, SafeConsole, complain, fail, say

if TYPE_CHECKING:
    from videornn.data.prepare.prepare import Prepared

data_app = typer.Typer(no_args_is_help=True, help="Make and look after data sets.")

MAX_BAD_LINES = 20  # bad videos named on the screen

Source = Annotated[str, typer.Argument(help="A list of `path label` lines, or a folder with one folder per class.")]
Root = Annotated[Optional[str], typer.Option(help="What list paths are relative to; by default the folder of the list.")]
Labels = Annotated[Optional[str], typer.Option(help="Class names, one a line; by default labels.txt beside the list.")]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
MaxPixels = Annotated[
    int, typer.Option("--max-frame-pixels", min=1, help="Largest width x height of a frame, as data.max_frame_pixels.")
]
Workers = Annotated[Optional[int], typer.Option(help="Processes; by default one per core.")]
Overrides = Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    num_train: Annotated[int, typer.Option(help="Training videos per class.")] = 40,
    num_val: Annotated[int, typer.Option(help="Validation videos per class.")] = 4,
    num_test: Annotated[int, typer.Option(help="Test videos per class.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same labels and masks.")] = 0,
    task: Annotated[TaskName, typer.Option(help="What tells the classes apart.")] = "motion",
) -> None:
    """Make an embedded data set: classes that differ in motion alone, or in the relation of things far apart."""
    from videornn.data.synthetic.make import make_synthetic

    with ProgressBar("videos") as bar:
        try:
            make_synthetic(
                out,
                num_train=num_train,
                num_val=num_val,
                num_test=num_test,
                seed=seed,
                task=task,
                on_progress=bar.update,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
    say(f"the data set is in {out}: lists train.txt, val.txt, test.txt, class names labels.txt, masks beside the videos")


@data_app.command()
def bench(
    config: Annotated[Path, typer.Argument(help="A YAML file; the recipes are in configs/.")],
    overrides: Overrides = None,
    num_clips: Annotated[int, typer.Option(min=8, help="Training clips to time.")] = 64,
    gpu_clips_per_second: Annotated[
        Optional[float],
        typer.Option(help="What a GPU takes in training: say how many cores feed it, with videos as they are and prepared."),
    ] = None,
) -> None:
    """Say what a training clip costs, stage by stage, and whether this machine can feed the network."""
    from videornn.config import load_config

    settings = load_config(config, overrides)  # before torch is imported, which takes seconds
    from videornn.tools.bench import bench_loading

    with ProgressBar("clips") as bar:
        report = bench_loading(settings, num_clips=num_clips, gpu_rate=gpu_clips_per_second, on_progress=bar.update)
    feeding = None if gpu_clips_per_second is None else report.feeding()
    total = sum(report.stages.values())
    for stage, seconds in report.stages.items():
        say(f"{stage:10s} {1 / seconds:9.1f} clips/s  {1e3 * seconds:8.2f} ms a clip  {100 * seconds / total:5.1f} %")
    say(f"one core   {report.core_rate:9.1f} clips/s  all but the transfer")
    if feeding is not None and "prepared" in feeding.core_rates:
        say(f"prepared   {feeding.core_rates['prepared']:9.1f} clips/s  of one core, as a few of them were prepared to see")
    elif feeding is not None:
        say("prepared   not timed: the videos are prepared already, or none of the few tried can be")
    say(f"loader     {report.loader_rate:9.1f} clips/s  with data.num_workers={report.num_workers}")
    given = "" if feeding is None else ", as given"
    say(f"network    {report.model_rate:9.1f} clips/s  in training on {report.device}{given}")
    if report.num_bad:
        say(f"{report.num_bad} of {num_clips} videos could not be decoded; `videornn data verify` tells which and why")
    if feeding is None:
        say(report.advice())
    else:
        say(feeding.advice(), json.dumps(feeding.numbers()))


@data_app.command("list")
def list_videos(
    source: Annotated[str, typer.Argument(help="A list, own or official, or a folder of class folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the lists.")],
    root: Annotated[Optional[str], typer.Option(help="Folder of the videos; by default that of the source.")] = None,
    labels: Annotated[Optional[str], typer.Option(help="File of class names; it sets the order of the ids.")] = None,
    split: Annotated[Optional[str], typer.Option(help="train, val or test, where the source has several.")] = None,
    fold: Annotated[int, typer.Option(min=1, max=3, help="Which official split of UCF101 or HMDB51.")] = 1,
    val_share: Annotated[
        Optional[float], typer.Option(help="Share of every class that goes to val.txt instead of train.txt.")
    ] = None,
) -> None:
    """Make `path label` lists and labels.txt of any source, and count found and missing videos per class."""
    from videornn.data.annotations.make_lists import make_lists

    report = make_lists(source, out, root=root, labels=labels, split=split, fold=fold, val_share=val_share)
    SafeConsole().print(report.table())
    for remark in report.remarks:
        say(remark)
    say("wrote " + ", ".join(map(str, report.files)))


@data_app.command(
    help="Find the videos of a list that are missing, empty, truncated, damaged or no videos.",
    epilog="Exit code 0: all are sound; 1: some are not; 2: wrong input.",
)
def verify(
    source: Source,
    root: Root = None,
    labels: Labels = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every frame, not only the first, middle and last.")] = False,
    max_pixels: MaxPixels = 8192 * 4352,
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(help="Longest time for one video, in seconds.")] = 60.0,
    out: Annotated[Optional[Path], typer.Option(metavar="FILE.csv", help="Report with a row for every video.")] = None,
) -> None:
    from videornn.data.prepare.verify import MEANINGS, count_statuses, find_sources, verify_videos, write_reports
    from videornn.system.files import check_output_file

    check_output_file(out)
    paths, remarks = find_sources(source, root=root, labels=labels)
    with ProgressBar("videos") as bar, _interruptible("no report was written"):
        reports = verify_videos(
            paths, full=full, max_pixels=max_pixels, num_workers=workers, timeout_seconds=timeout, on_progress=bar.update
        )
    if out is not None:
        write_reports(out, reports)
    odd = [report for report in reports if report.status == "ok" and report.reason]
    bad = [report for report in reports if report.status != "ok"]
    for remark in remarks:
        say(remark)
    for some in (odd, bad):
        _say_bad([f"{report.path}: {report.reason}" for report in some], out)
    _print_counts({MEANINGS[status]: count for status, count in count_statuses(reports).items()})
    if bad:
        fail(f"{len(bad)} of {len(reports)} videos are not sound", 1)


@data_app.command(
    help="Re-encode the videos of a list for fast random clips; the same command goes on where an earlier one stopped.",
    epilog="Exit code 0: all are prepared; 1: some are not, OUT/*.report*.csv says why; 2: wrong input.",
)
def prepare(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the videos, their list and the report.")],
    root: Root = None,
    labels: Labels = None,
    short_side: Annotated[int, typer.Option(help="Short side in pixels; smaller videos keep their size.")] = 256,
    temporal_stride: Annotated[int, typer.Option(help="The temporal_stride that clips will be read with.")] = 8,
    variant: Annotated[
        Variant,
        typer.Option(help="disposable: smallest; fastdecode: faster, larger; dense: a key frame every 32, for any decoder."),
    ] = "disposable",
    crf: Annotated[int, typer.Option(help="x264's rate factor: less is better and larger.")] = 22,
    preset: Annotated[Preset, typer.Option(help="x264's preset: slower is smaller.")] = "medium",
    max_pixels: MaxPixels = 8192 * 4352,
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(help="Longest time for one video, in seconds.")] = 3600.0,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Do the I-th of N parts (I from 1), one a machine.")] = "1/1",
    quality: Annotated[int, typer.Option(help="Videos whose PSNR and SSIM against the source are measured.")] = 4,
) -> None:
    from videornn.data.prepare.prepare import parse_shard, prepare_videos
    from videornn.data.prepare.reencode import Encoding

    encoding = Encoding(short_side, temporal_stride, variant, crf, preset)
    with ProgressBar("videos") as bar, _interruptible("what is encoded stays; the same command goes on"):
        prepared = prepare_videos(
            source,
            out,
            encoding,
            root=root,
            labels=labels,
            shard=parse_shard(shard),
            max_pixels=max_pixels,
            num_workers=workers,
            timeout_seconds=timeout,
            num_measured=quality,
            on_progress=bar.update,
        )
    _say_prepared(prepared)


def _say_prepared(prepared: Prepared) -> None:
    from videornn.data.prepare.verify import MEANINGS, count_statuses

    good = [row for row in prepared.rows if row.status == "ok"]
    bad = [row for row in prepared.rows if row.status != "ok"]
    for remark in prepared.remarks:
        say(remark)
    _say_bad([f"{row.path}: {row.reason}" for row in bad], prepared.report)
    meanings = {**MEANINGS, "ok": "prepared"}
    _print_counts({meanings[status]: count for status, count in count_statuses(prepared.rows).items()})
    sized = [(row.output_bytes, row.source_bytes) for row in good if row.output_bytes and row.source_bytes]
    if sized:
        new, old = (sum(sizes) for sizes in zip(*sized, strict=True))
        say(f"bytes: {new / 1e6:,.1f} of {old / 1e6:,.1f} MB ({new / old:.3f}x)")
    measured = [row for row in good if row.mean_psnr is not None]
    if measured:
        psnr, ssim = (sum(getattr(row, f"mean_{key}") for row in measured) / len(measured) for key in ("psnr", "ssim"))
        worst_psnr, worst_ssim = (min(getattr(row, f"worst_{key}") for row in measured) for key in ("psnr", "ssim"))
        say(
            f"quality of {len(measured)} videos, luma against the scaled source: PSNR {psnr:.2f} dB (worst frame "
            f"{worst_psnr:.2f}), SSIM {ssim:.4f} (worst frame {worst_ssim:.4f})"
        )
    if prepared.list_file:
        say(f"the list is {prepared.list_file}, the report {prepared.report}")
    elif prepared.missing_shards:
        say(f"the report is {prepared.report}; the list comes with the last shard, missing: {prepared.missing_shards}")
    if bad:
        fail(f"{len(bad)} of {len(prepared.rows)} videos could not be prepared and are not in the list", 1)


@contextmanager
def _interruptible(outcome: str) -> Iterator[None]:
    """Say on Ctrl-C what became of the work, and exit with the code that shells use."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"interrupted; {outcome}", 130)


def _say_bad(lines: list[str], report: Path | None) -> None:
    for line in lines[:MAX_BAD_LINES]:
        complain(line)
    if len(lines) > MAX_BAD_LINES:
        where = f"{report} names them" if report else "--out FILE.csv names them"
        complain(f"... and {len(lines) - MAX_BAD_LINES} more; {where}")


def _print_counts(counts: dict[str, int]) -> None:
    table = Table("videos", "")
    table.columns[0].justify = "right"
    for meaning, count in counts.items():
        table.add_row(f"{count:,}", meaning)
    SafeConsole().print(table)
