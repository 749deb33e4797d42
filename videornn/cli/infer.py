"""The command `videornn infer`: videos, long videos and streams; prints results as they come, and writes files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Optional

import typer

from videornn.errors import UserError
from videornn.system.console import fail
from videornn.system.files import check_output_file, make_folder


def infer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; nothing else is needed.")],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Videos, folders, lists, globs; live: URLs, /dev/video0, pipes, - (stdin)."),
    ],
    topk: Annotated[int, typer.Option(min=1, help="Classes to print per video.")] = 5,
    json_file: Annotated[
        Optional[Path], typer.Option("--json", help="Write the results as JSON ('-': to the screen, and nothing else).")
    ] = None,
    csv_file: Annotated[Optional[Path], typer.Option("--csv", help="Write the results as CSV.")] = None,
    window: Annotated[
        Optional[float],
        typer.Option(metavar="S", help="Slide a window of S seconds over long videos; of a stream, by default one clip."),
    ] = None,
    stride: Annotated[
        Optional[float], typer.Option(metavar="S", help="Seconds from window to window; by default half a window.")
    ] = None,
    smooth: Annotated[
        Optional[float],
        typer.Option(metavar="S", help="Average scores over S seconds, drop flickers; by default half a window, 0 is off."),
    ] = None,
    threshold: Annotated[
        Optional[float], typer.Option(metavar="P", help="Below this score, 0..1, the label is none; by default 0.3.")
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Write NAME_timeline.csv and .png of every video (--window).")
    ] = None,
    overlay: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Write NAME_overlay.mp4: labels drawn in, sound kept.")
    ] = None,
) -> None:
    """Say what happens in videos. Exit code 0: all are done; 2: some failed, their rows say why; 130: interrupted.

    Ctrl-C is how a single stream ends (0).
    """
    _check_ranges({"--window": window, "--stride": stride, "--smooth": smooth}, threshold)
    check_output_file(None if str(json_file) == "-" else json_file, "--json")
    check_output_file(csv_file, "--csv")
    from videornn.distributed.signals import sigterm_as_ctrl_c
    from videornn.system.workers import GeneratorWorker, start_server

    with sigterm_as_ctrl_c() as signals, GeneratorWorker() as worker:
        if window is not None:
            start_server("videornn.inference.sliding")  # takes as long as the imports here
        from videornn.data.video.stream import is_live
        from videornn.system.urls import without_secrets

        slides = window is not None or any(is_live(path) for path in paths)
        given = {"--stride": stride, "--smooth": smooth, "--threshold": threshold, "--out": out}
        for option, value in given.items():
            if value is not None and not slides:
                raise UserError(f"{option} {value} is for sliding windows: give --window S too, the seconds of a window")
        make_folder(out)
        make_folder(overlay, "--overlay")
        from videornn.cli.infer_job import InferOptions, Job
        from videornn.cli.infer_screen import Screen
        from videornn.inference.output import ResultFiles
        from videornn.inference.predictor import find_videos, load_predictor
        from videornn.inference.timeline import THRESHOLD

        predictor = load_predictor(checkpoint, topk=topk)
        files = find_videos(paths)
        if overlay is not None and (streams := [without_secrets(file) for file in files if is_live(file)]):
            raise UserError(f"--overlay draws into files; {streams[0]} is a stream")
        options = InferOptions(window, stride, smooth, THRESHOLD if threshold is None else threshold, out, overlay)
        screen = Screen([*map(without_secrets, files)], predictor.class_names, quiet=str(json_file) == "-")
        written = ResultFiles(json_file, csv_file, segments=slides)
        job = Job(predictor, files, options, screen, worker, written)
        interrupted = False
        try:
            job.slide() if slides else job.score_whole()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            written.write(job.rows)
    failed = sum("error" in row for row in job.rows)
    if interrupted:
        fail(f"interrupted; {job.num_done} of {len(files)} videos are done", 128 + signals[-1])
    if failed:
        fail(f"{failed} of {len(job.rows)} videos failed")


def _check_ranges(seconds: dict[str, float | None], threshold: float | None) -> None:
    for option, value in seconds.items():
        if value is not None and not (0 <= value < math.inf and (value > 0 or option == "--smooth")):
            raise UserError(f"{option} {value:g}: give seconds{'' if option == '--smooth' else ' above 0'}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: a score lies in 0..1")
