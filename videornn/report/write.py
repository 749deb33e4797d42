"""The report of a run, from its sections."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from videornn.config import Config, config_to_yaml
from videornn.errors import UserError
from videornn.report.attention import look
from videornn.report.data_summary import summarize_data
from videornn.report.examples import animate, choose_examples, common_folder
from videornn.report.overview import differences, start_line, what_was_trained
from videornn.report.render import render
from videornn.report.run_results import RunResults, read_run
from videornn.report.testing import count_test
from videornn.report.training import curves
from videornn.system.files import check_output_file, write_text


def write_report(run: Path, out: Path | None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write a run folder as one HTML file of about 5 MB at most, which needs neither network nor scripts.

    Args:
        out: by default report.html in the run folder.
        say: told what takes a while.

    Returns:
        The file.

    Raises:
        UserError: this is no run folder, a file of it is damaged, nothing is logged yet, or the file cannot be written.
    """
    out = run / "report.html" if out is None else out
    results = read_run(run)
    check_output_file(out)
    page = _page(results, say)
    try:
        write_text(out, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; give another file with --out") from error
    return out


def _page(run: RunResults, say: Callable[[str], None]) -> str:
    """The page; what page.html.j2 says of the run itself it takes from RunResults."""
    test, groups = run.test, choose_examples(run.test.predictions if run.test else [])
    shown = [video.path for group in groups for video in group.videos]
    if test:
        say(f"thumbnails of {len(shown)} videos")
    return render(
        "page.html.j2",
        name=run.folder.resolve().name,
        run=run,
        test=test,
        what=what_was_trained(run),
        starts=[start_line(start) for start in run.starts],
        command=shlex.join(run.starts[-1]["command"]) if run.starts and "command" in run.starts[-1] else None,
        tested=count_test(test) if test else None,
        groups=groups,
        folder=common_folder(groups),
        animations={path: animate(path, run.config.data) for path in shown},
        attention=look(run, groups, say) if test else None,
        curves=curves(run),
        data=summarize_data(run, say),
        settings=list(differences(run.config, Config())),
        config=config_to_yaml(run.config),
        time=datetime.now(timezone.utc),
    )
