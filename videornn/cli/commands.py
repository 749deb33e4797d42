"""The command line: parse, call one library function, print. User errors end in one sentence and exit code 2.

Library modules are imported inside the commands, because torch takes seconds to import and `--help` should not.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Optional

import typer

from videornn import __version__
from videornn.cli.data import Overrides, data_app
from videornn.cli.infer import infer
from videornn.distributed.signals import Interrupted
from videornn.distributed.store import several_ranks
from videornn.errors import RankFailure, Remark, UserError
from videornn.system.console import ProgressBar, SafeConsole, complain, fail, is_main, say
from videornn.system.files import DISK_FULL
from videornn.tools import ExportFormat

SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)+=")  # a key before its value; a file name may hold = too, after a folder

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")


def _say_version(asked: bool) -> None:
    if asked:
        say(f"videornn {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Train, test, run and explain video action recognition networks with disentangled non-local blocks."""


WIDTH = 120  # at which long lines are wrapped
# system errors whose message and file name say enough
OUT_OF_REACH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
}


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; the recipes are in configs/.")],
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="Run folder; by default runs/ and the config's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
) -> None:
    """Train a network."""
    from videornn.config import load_config

    settings = load_config(config, overrides)  # before torch is imported, which takes seconds
    from videornn.training.train import train as run

    out = out or Path("runs") / config.stem
    try:
        last = run(settings, out, resume=resume)
    except Interrupted as stop:
        fail(f"{stop}; add --resume to the same command to go on", stop.exit_code)
    if is_main():
        say(f"the run is in {out}, its last checkpoint is {last}")


@app.command()
def test(
    source: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="RUN/checkpoints/best.pt or last.pt.")],
    more: Overrides = None,
    of_scores: Annotated[bool, typer.Option("--scores", help="Do as the command scores.", hidden=True)] = False,
    out: Annotated[Optional[Path], typer.Option(help="Folder for the results; by default RUN/test or NAME_test.")] = None,
) -> None:
    """Evaluate a checkpoint over several views of every video; stopped or killed, the same command goes on."""
    from videornn.config import check_overrides

    if of_scores:
        scores([source, *(more or [])], out)
        return
    if source.endswith(".npz"):
        raise UserError(f"{source} is named like the scores of a test: give `videornn scores` to take those")
    check_overrides(more or [])  # before torch is imported, which takes seconds
    from videornn.evaluation.evaluate import evaluate
    from videornn.evaluation.results import describe

    try:
        with ProgressBar("test") as bar:
            result, folder = evaluate(source, more or [], out, bar.update)
    except Interrupted as stop:
        fail(f"{stop}; the same command goes on", stop.exit_code)
    if is_main():
        say(*describe(result), f"results in {folder}")


@app.command()
def scores(
    files: Annotated[
        list[str], typer.Argument(metavar="SCORES... [KEY=VALUE]...", help="scores.npz of tests, and settings to change.")
    ],
    out: Annotated[Optional[Path], typer.Option(help="Folder for the results; by default nothing is written.")] = None,
) -> None:
    """Make the results of a test again from its scores, or of several networks averaged; needs no network."""
    from videornn.config import check_overrides

    settings = [word for word in files if SETTING.match(word)]
    check_overrides(settings)
    from videornn.evaluation.results import describe, rescore

    if is_main():
        lines = describe(rescore([word for word in files if word not in settings], settings, out))
        say(*lines, "nothing is written without --out" if out is None else f"results in {out}")


app.command()(infer)


@app.command()
def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    video: Annotated[str, typer.Argument(help="The video to look at.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures, movies and numbers.")],
    query: Annotated[
        Optional[list[str]],
        typer.Option(metavar="T,Y,X", help="Query point: frame of the clip, and place as shares 0..1 of height and width."),
    ] = None,
    start: Annotated[Optional[float], typer.Option(help="Second at which the clip starts.")] = None,
    stage: Annotated[
        Optional[str], typer.Option(help="Of Grad-CAM: res2 to res5; by default the deepest that is not too coarse.")
    ] = None,
    class_name: Annotated[Optional[str], typer.Option("--class", help="Of Grad-CAM; by default the predicted one.")] = None,
) -> None:
    """Draw what a network looks at: the maps of its attention blocks, and Grad-CAM."""
    from videornn.checkpoints.trained import load_trained
    from videornn.explain import explain as run
    from videornn.explain import number_lines, parse_query

    queries = [parse_query(text) for text in query or []]
    written = run(load_trained(checkpoint), video, out, queries, start=start, stage=stage, class_name=class_name)
    for line in number_lines(written[-1]):
        say(line)
    for path in written:
        say(f"wrote {path}")


@app.command()
def demo(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    host: Annotated[str, typer.Option(help="Address to listen at; the default is for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes any that is free.")] = 7860,
    max_mb: Annotated[int, typer.Option(min=1, help="Largest video that is taken, in MB.")] = 200,
    window: Annotated[
        Optional[float], typer.Option(metavar="S", help="Seconds of a window of the timeline; by default those of a clip.")
    ] = None,
) -> None:
    """Serve a page to drop videos on."""
    from videornn.demo import serve

    if window is not None and not 0 < window < math.inf:
        raise UserError(f"--window {window:g}: give seconds above 0")
    serve(checkpoint, host=host, port=port, max_megabytes=max_mb, window=window)


@app.command()
def info(
    source: Annotated[Path, typer.Argument(metavar="CONFIG|CHECKPOINT", help="What to describe.")],
    overrides: Overrides = None,
) -> None:
    """Print a network stage by stage, with sizes, parameters and FLOPs."""
    from videornn.config import check_overrides, load_config

    if source.suffix in (".pt", ".pth"):
        check_overrides(overrides or [])
    else:
        load_config(source, overrides)
    from videornn.tools.info import describe

    SafeConsole().print(describe(source, overrides or []))


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
    force: Annotated[bool, typer.Option("--force", help="Keep whatever fits, however little.")] = False,
) -> None:
    """Make a checkpoint of public weights, for test, infer and model.init."""
    from videornn.config import check_overrides

    check_overrides(overrides or [])
    from videornn.tools.convert import convert as run

    say(*run(source, out, overrides, labels=labels, force=force).lines(), f"wrote {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[Optional[Path], typer.Option(help="The file to write; by default RUN/report.html.")] = None,
) -> None:
    """Write a run as one HTML page: curves, test, videos to look at, attention, data, settings."""
    from videornn.report import write_report

    page = write_report(run, out, say)
    say(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    format: Annotated[
        ExportFormat,
        typer.Option(help="onnx: for onnxruntime, OpenVINO, TensorRT; torch: torch.export's program."),
    ],
    out: Annotated[
        Optional[Path], typer.Option(help="The file to write; by default beside the checkpoint, .onnx or .pt2.")
    ] = None,
) -> None:
    """Write a network as one file that runs without videornn, and check that it computes the same."""
    from videornn.tools.export import export as run

    done = run(checkpoint, format, out)
    say(f"clips uint8 [B, {', '.join(map(str, done.clip_shape))}], RGB -> logits float32 [B, {done.num_classes}]")
    say(f"logits differ from PyTorch's by at most {done.difference:.1e} (the largest is {done.largest:.3g})")
    say(f"wrote {done.path}: {done.num_bytes / 1e6:.1f} MB in {done.seconds:.0f} s")


@app.command(epilog="Exit code 0: training can work here; 1: it cannot.")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for a report.")] = False,
) -> None:
    """Look at this installation: versions, GPUs, decoders, memory, and what is wrong with them."""
    from videornn.tools.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            say(*wrap(finding.text, WIDTH, initial_indent=f"{finding.topic:19s}", subsequent_indent=" " * 19))
            if finding.advice:
                say(*wrap(finding.advice, WIDTH, initial_indent=f"{'':16s}-> ", subsequent_indent=" " * 19))
    if as_json:
        say(*json.dumps([asdict(finding) for finding in findings], indent=2).splitlines())
    if broken := [finding.topic for finding in findings if finding.fatal]:
        fail(f"nothing can be trained here: see {', '.join(broken)} above", 1)


def main() -> None:
    """Run the command line; errors become one sentence and exit code 2, a lost rank exit code 3."""
    code = _run()
    if code and several_ranks():
        # without cleaning up: destructors of a process group wait for ranks that may be gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _show_warning(
    otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *place: object, **more: object
) -> None:
    """Show our own remarks as plain sentences, without the source line of the warning."""
    if issubclass(category, Remark):
        complain(str(message))
    else:
        otherwise(message, category, *place, **more)


def _run() -> int:
    """Run the command line and return its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            app()
    except UserError as error:
        complain(*map(str, error.args))
        return 2
    except OSError as error:  # not foreseen by commands: folders that may not be entered, names too long, dead disks
        full = error.errno in DISK_FULL
        if not full and (error.filename is None or error.errno not in OUT_OF_REACH):
            raise
        name = "what it writes" if error.filename is None else os.fsdecode(error.filename)
        complain(f"{name}: {str(error.strerror).lower()}{'; make room, then give the same command again' if full else ''}")
        return 2
    except RankFailure as error:
        complain(str(error), topic=RankFailure.topic)
        return RankFailure.exit_code
    except SystemExit as stop:  # typer ends with it, also on success
        return int(stop.code or 0)
    return 0
