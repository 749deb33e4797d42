"""The command line: parse, call one library function, print. What a user can cause is one sentence and exit code 2.

Library modules are imported inside the commands, because torch takes seconds to import and `--help` should not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from videornn.errors import UserError

if TYPE_CHECKING:
    from videornn.data.prepare import Prepared

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Make and look after data sets.")
app.add_typer(data_app, name="data")

MAX_BAD_LINES = 20  # bad videos named on the screen

Overrides = Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]

Source = Annotated[str, typer.Argument(help="A list of `path label` lines, or a folder with one folder per class.")]
Root = Annotated[Optional[str], typer.Option(help="What list paths are relative to; by default the folder of the list.")]
Labels = Annotated[Optional[str], typer.Option(help="Class names, one a line; by default labels.txt beside the list.")]
Variant = Literal["disposable", "fastdecode", "dense"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
Workers = Annotated[Optional[int], typer.Option(help="Processes; by default one per core.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; the recipes are in configs/.")],
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="Run folder; by default runs/ and the config's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
) -> None:
    """Train a network."""
    from videornn.config import load_config
    from videornn.train import Interrupted
    from videornn.train import train as run

    out = out or Path("runs") / config.stem
    try:
        last = run(load_config(config, overrides), out, resume=resume)
    except Interrupted as stop:
        _fail(f"{stop}; add --resume to the same command to go on", stop.exit_code)
    if _is_main():
        _say(f"the run is in {out}, its last checkpoint is {last}")


@app.command()
def test(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, RUN/checkpoints/best.pt or last.pt.")],
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for the results; by default RUN/test.")] = None,
) -> None:
    """Evaluate a checkpoint over several views of every video."""
    from videornn.evaluate import evaluate

    with _ProgressBar("test") as bar:
        result, folder = evaluate(checkpoint, overrides or [], out, bar.update)
    if _is_main():
        views = f"{result['num_clips']} clips x {result['num_crops']} crops"
        _say(f"video top-1 {result['video_top1']:.2f} %  top-5 {result['video_top5']:.2f} %  ({views}, averaged)")
        _say(f"clip  top-1 {result['clip_top1']:.2f} %  top-5 {result['clip_top5']:.2f} %  (every view by itself)")
        missing = f" ({result['num_missing']} more are listed but not there)" if result["num_missing"] else ""
        _say(f"{result['num_scored']} of {result['num_videos']} videos scored{missing}; results in {folder}")


@app.command()
def infer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Videos, folders, lists or globs.")],
    topk: Annotated[int, typer.Option(min=1, help="Classes to print per video.")] = 5,
    json_file: Annotated[
        Optional[Path], typer.Option("--json", help="Write the results as JSON ('-': to the screen).")
    ] = None,
    csv_file: Annotated[Optional[Path], typer.Option("--csv", help="Write the results as CSV.")] = None,
) -> None:
    """Say what happens in videos."""
    from videornn.predict import find_videos, load_predictor, write_predictions_csv

    predictor = load_predictor(checkpoint, topk=topk)
    results, failed = [], 0
    for path in find_videos(paths):
        result = {"path": path}
        try:
            result["predictions"] = [{"class": name, "score": round(score, 6)} for name, score in predictor(path)]
        except UserError as error:
            failed += 1
            result["error"] = str(error)
            _complain(str(error))
        else:
            if str(json_file) != "-":
                _say(f"{path}  " + "  ".join(f"{p['class']} {100 * p['score']:.1f} %" for p in result["predictions"]))
        results.append(result)
    if json_file is not None:
        text = json.dumps(results, indent=2) + "\n"
        sys.stdout.write(text) if str(json_file) == "-" else json_file.write_text(text, encoding="utf-8")
    if csv_file is not None:
        write_predictions_csv(csv_file, results)
    if failed:
        _fail(f"{failed} of {len(results)} videos failed")


@app.command()
def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a network with attention blocks.")],
    video: Annotated[str, typer.Argument(help="The video to look at.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    query: Annotated[
        Optional[list[str]],
        typer.Option(metavar="T,Y,X", help="Query point: frame of the clip, and place as shares 0..1 of height and width."),
    ] = None,
) -> None:
    """Draw what the attention blocks look at."""
    from videornn.explain import explain as run
    from videornn.explain import parse_query

    for picture in run(checkpoint, video, out, [parse_query(text) for text in query or []]):
        _say(f"wrote {picture}")


@app.command()
def info(
    source: Annotated[Path, typer.Argument(metavar="CONFIG|CHECKPOINT", help="What to describe.")],
    overrides: Overrides = None,
) -> None:
    """Print a network stage by stage, with sizes, parameters and FLOPs."""
    from videornn.info import describe

    Console().print(describe(source, overrides or []))


@app.command()
def config(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved config, every setting with its meaning."""
    from videornn.config import config_to_yaml, load_config

    sys.stdout.write(config_to_yaml(load_config(path, overrides), comments=True))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FOREIGN", help="Weights of torchvision, PyTorchVideo, SlowFast, caffe2 or MMAction2.")
    ],
    out: Annotated[Path, typer.Argument(help="The checkpoint to write.")],
    overrides: Overrides = None,
    labels: Annotated[Optional[Path], typer.Option(help="File with one class name a line, by id.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep what fits, be it ever so little.")] = False,
) -> None:
    """Make a checkpoint of public weights, for test, infer and model.init."""
    from videornn.convert import convert as run

    _say(str(run(source, out, overrides, labels=labels, force=force)))
    _say(f"wrote {out}")


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    num_train: Annotated[int, typer.Option(help="Training videos per class.")] = 40,
    num_val: Annotated[int, typer.Option(help="Validation videos per class.")] = 4,
    num_test: Annotated[int, typer.Option(help="Test videos per class.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same labels and masks.")] = 0,
) -> None:
    """Make the embedded data set: videos of two objects whose classes differ in motion alone."""
    from videornn.data.synthetic import make_synthetic

    with _ProgressBar("videos") as bar:
        try:
            make_synthetic(out, num_train=num_train, num_val=num_val, num_test=num_test, seed=seed, progress=bar.update)
        except ValueError as error:
            raise UserError(str(error)) from error
    _say(f"the data set is in {out}: lists train.txt, val.txt, test.txt, class names labels.txt, masks beside the videos")


@data_app.command()
def bench(
    config: Annotated[Path, typer.Argument(help="A YAML file; the recipes are in configs/.")],
    overrides: Overrides = None,
    num_clips: Annotated[int, typer.Option(min=8, help="Training clips to time.")] = 64,
) -> None:
    """Say what a training clip costs, stage by stage, and whether this machine can feed the network."""
    from videornn.bench import bench_loading
    from videornn.config import load_config

    with _ProgressBar("clips") as bar:
        report = bench_loading(load_config(config, overrides), num_clips=num_clips, on_progress=bar.update)
    total = sum(report.stages.values())
    for stage, seconds in report.stages.items():
        _say(f"{stage:10s} {1e3 * seconds:8.2f} ms a clip  {100 * seconds / total:5.1f} %")
    _say(f"one core   {report.core_rate:8.1f} clips/s")
    _say(f"loader     {report.loader_rate:8.1f} clips/s with data.num_workers={report.num_workers}")
    _say(f"network    {report.model_rate:8.1f} clips/s in training on {report.device}")
    if report.num_bad:
        _say(f"{report.num_bad} of {num_clips} videos could not be decoded; `videornn data verify` tells which and why")
    _say(report.advice())


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
    from videornn.data.lists import make_lists

    report = make_lists(source, out, root=root, labels=labels, split=split, fold=fold, val_share=val_share)
    Console().print(report.table())
    for remark in report.remarks:
        _say(remark)
    _say("wrote " + ", ".join(map(str, report.files)))


@data_app.command(
    help="Find the videos of a list that are missing, empty, truncated, damaged or no videos.",
    epilog="Exit code 0: all are sound; 1: some are not; 2: wrong input.",
)
def verify(
    source: Source,
    root: Root = None,
    labels: Labels = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every frame, not only the first, middle and last.")] = False,
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(help="Longest time for one video, in seconds.")] = 60.0,
    out: Annotated[Optional[Path], typer.Option(metavar="FILE.csv", help="Report with a row for every video.")] = None,
) -> None:
    from videornn.data.annotations import load_videos
    from videornn.data.verify import MEANINGS, count_statuses, verify_videos, write_reports

    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    table = load_videos(source, root=root, labels=labels)
    paths = [table.path(index) for index in range(len(table))]
    with _ProgressBar("videos") as bar, _interruptible("no report was written"):
        reports = verify_videos(paths, full=full, num_workers=workers, timeout_seconds=timeout, progress=bar.update)
    if out is not None:
        write_reports(out, reports)
    bad = [report for report in reports if report.status != "ok"]
    _say_bad([f"{report.path}: {report.reason}" for report in bad], out)
    _print_counts({MEANINGS[status]: count for status, count in count_statuses(reports).items()})
    if bad:
        _fail(f"{len(bad)} of {len(reports)} videos are not sound", 1)


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
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(help="Longest time for one video, in seconds.")] = 3600.0,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Do the I-th of N parts (I from 1), one a machine.")] = "1/1",
    quality: Annotated[int, typer.Option(help="Videos whose PSNR and SSIM against the source are measured.")] = 4,
) -> None:
    from videornn.data.prepare import parse_shard, prepare_videos
    from videornn.data.reencode import Encoding

    encoding = Encoding(short_side, temporal_stride, variant, crf, preset)
    with _ProgressBar("videos") as bar, _interruptible("what is encoded stays; the same command goes on"):
        prepared = prepare_videos(
            source,
            out,
            encoding,
            root=root,
            labels=labels,
            shard=parse_shard(shard),
            num_workers=workers,
            timeout_seconds=timeout,
            num_measured=quality,
            progress=bar.update,
        )
    _say_prepared(prepared)


def _say_prepared(prepared: Prepared) -> None:
    from videornn.data.verify import MEANINGS, count_statuses

    good = [row for row in prepared.rows if row.status == "ok"]
    bad = [row for row in prepared.rows if row.status != "ok"]
    _say_bad([f"{row.path}: {row.reason}" for row in bad], prepared.report)
    meanings = {**MEANINGS, "ok": "prepared"}
    _print_counts({meanings[status]: count for status, count in count_statuses(prepared.rows).items()})
    sized = [(row.output_bytes, row.source_bytes) for row in good if row.output_bytes and row.source_bytes]
    if sized:
        new, old = (sum(sizes) for sizes in zip(*sized, strict=True))
        _say(f"bytes: {new / 1e6:,.1f} of {old / 1e6:,.1f} MB ({new / old:.3f}x)")
    measured = [row for row in good if row.mean_psnr is not None]
    if measured:
        psnr, ssim = (sum(getattr(row, f"mean_{key}") for row in measured) / len(measured) for key in ("psnr", "ssim"))
        worst_psnr, worst_ssim = (min(getattr(row, f"worst_{key}") for row in measured) for key in ("psnr", "ssim"))
        _say(
            f"quality of {len(measured)} videos, luma against the scaled source: PSNR {psnr:.2f} dB (worst frame "
            f"{worst_psnr:.2f}), SSIM {ssim:.4f} (worst frame {worst_ssim:.4f})"
        )
    if prepared.list_file:
        _say(f"the list is {prepared.list_file}, the report {prepared.report}")
    elif prepared.missing_shards:
        _say(f"the report is {prepared.report}; the list comes with the last shard, missing: {prepared.missing_shards}")
    if bad:
        _fail(f"{len(bad)} of {len(prepared.rows)} videos could not be prepared and are not in the list", 1)


@contextmanager
def _interruptible(outcome: str) -> Iterator[None]:
    """Ctrl-C says what became of the work, with the exit code of shells."""
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"interrupted; {outcome}", 130)


def _say_bad(lines: list[str], report: Path | None) -> None:
    for line in lines[:MAX_BAD_LINES]:
        _complain(line)
    if len(lines) > MAX_BAD_LINES:
        where = f"{report} names them" if report else "--out FILE.csv names them"
        _complain(f"... and {len(lines) - MAX_BAD_LINES} more; {where}")


def _print_counts(counts: dict[str, int]) -> None:
    table = Table("videos", "")
    table.columns[0].justify = "right"
    for meaning, count in counts.items():
        table.add_row(f"{count:,}", meaning)
    Console().print(table)


class _ProgressBar:
    """A bar with an ETA on a terminal; a plain line now and then elsewhere; nothing on ranks other than 0."""

    def __init__(self, name: str) -> None:
        self._name = name
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console) if console.is_terminal and _is_main() else None
        self._task = self._bar.add_task(name, total=None) if self._bar else None
        self._tenths = 0

    def update(self, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif _is_main() and 10 * done // max(total, 1) > self._tenths:
            self._tenths = 10 * done // max(total, 1)
            print(f"{self._name} {done}/{total}", file=sys.stderr, flush=True)

    def __enter__(self) -> _ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()


def _is_main() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str) -> None:
    print(f"videornn: {text}", file=sys.stderr, flush=True)


def _fail(text: str, code: int = 2) -> None:
    _complain(text)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; a UserError becomes one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
