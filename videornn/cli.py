"""The command line: parse, call one library function, print. What a user can cause is one sentence and exit code 2.

Library modules are imported inside the commands, because torch takes seconds to import and `--help` should not.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal, Optional

import typer
from rich.console import Console

from videornn.cli_data import Overrides, data_app
from videornn.console import ProgressBar, check_folder, complain, fail, is_main, say
from videornn.errors import RankFailure, UserError
from videornn.rank_store import several_ranks

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")

WIDTH = 120  # of long lines


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
        fail(f"{stop}; add --resume to the same command to go on", stop.exit_code)
    if is_main():
        say(f"the run is in {out}, its last checkpoint is {last}")


@app.command()
def test(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, RUN/checkpoints/best.pt or last.pt.")],
    overrides: Overrides = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder for the results; by default RUN/test.")] = None,
) -> None:
    """Evaluate a checkpoint over several views of every video."""
    from videornn.evaluate import evaluate

    with ProgressBar("test") as bar:
        result, folder = evaluate(checkpoint, overrides or [], out, bar.update)
    if is_main():
        views = f"{result['num_clips']} clips x {result['num_crops']} crops"
        say(f"video top-1 {result['video_top1']:.2f} %  top-5 {result['video_top5']:.2f} %  ({views}, averaged)")
        say(f"clip  top-1 {result['clip_top1']:.2f} %  top-5 {result['clip_top5']:.2f} %  (every view by itself)")
        missing = f" ({result['num_missing']} more are listed but not there)" if result["num_missing"] else ""
        say(f"{result['num_scored']} of {result['num_videos']} videos scored{missing}; results in {folder}")


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

    check_folder("--json", json_file)
    check_folder("--csv", csv_file)
    predictor = load_predictor(checkpoint, topk=topk)
    results, failed = [], 0
    for path in find_videos(paths):
        result = {"path": path}
        try:
            result["predictions"] = [{"class": name, "score": round(score, 6)} for name, score in predictor(path)]
        except UserError as error:
            failed += 1
            result["error"] = str(error)
            complain(str(error))
        else:
            if str(json_file) != "-":
                say(f"{path}  " + "  ".join(f"{p['class']} {100 * p['score']:.1f} %" for p in result["predictions"]))
        results.append(result)
    if json_file is not None:
        text = json.dumps(results, indent=2) + "\n"
        sys.stdout.write(text) if str(json_file) == "-" else json_file.write_text(text, encoding="utf-8")
    if csv_file is not None:
        write_predictions_csv(csv_file, results)
    if failed:
        fail(f"{failed} of {len(results)} videos failed")


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
        say(f"wrote {picture}")


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

    say(str(run(source, out, overrides, labels=labels, force=force)))
    say(f"wrote {out}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    format: Annotated[
        Literal["onnx", "torch"],
        typer.Option(help="onnx: for onnxruntime, OpenVINO, TensorRT; torch: torch.export's program."),
    ],
    out: Annotated[
        Optional[Path], typer.Option(help="The file to write; by default beside the checkpoint, .onnx or .pt2.")
    ] = None,
) -> None:
    """Write a network as one file that runs without videornn, and check that it computes the same."""
    from videornn.export import export as run

    check_folder("--out", out)
    done = run(checkpoint, format, out)
    say(f"clips uint8 [B, {', '.join(map(str, done.clip_shape))}], RGB -> logits float32 [B, {done.num_classes}]")
    say(f"logits differ from PyTorch's by at most {done.difference:.1e} (the largest is {done.largest:.3g})")
    say(f"wrote {done.path}: {done.num_bytes / 1e6:.1f} MB in {done.seconds:.0f} s")


@app.command(epilog="Exit code 0: training can work here; 1: it cannot.")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, for a report.")] = False,
) -> None:
    """Look at this installation: versions, GPUs, decoders, memory, and what is wrong with them."""
    from videornn.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            say(fill(finding.text, WIDTH, initial_indent=f"{finding.topic:19s}", subsequent_indent=" " * 19))
            if finding.advice:
                say(fill(finding.advice, WIDTH, initial_indent=f"{'':16s}-> ", subsequent_indent=" " * 19))
    if as_json:
        say(json.dumps([asdict(finding) for finding in findings], indent=2))
    if broken := [finding.topic for finding in findings if finding.fatal]:
        fail(f"nothing can be trained here: see {', '.join(broken)} above", 1)


def main() -> None:
    """Run the command line; what went wrong becomes one sentence and exit code 2, a lost rank exit code 3."""
    code = _run()
    if code and several_ranks():
        # without farewell: destructors of a process group wait for ranks that may be gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _run() -> int:
    """Run the command line and return its exit code."""
    try:
        app()
    except UserError as error:
        complain(str(error))
        return 2
    except RankFailure as error:
        complain(str(error), topic=RankFailure.topic)
        return RankFailure.exit_code
    except SystemExit as stop:  # what typer ends with, also when all is well
        return stop.code or 0
    return 0
