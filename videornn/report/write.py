"""The report of a run, from its sections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from videornn.errors import UserError
from videornn.report.attention import attention_section
from videornn.report.data_summary import data_section
from videornn.report.examples import choose_examples, examples_section
from videornn.report.markup import Markup, join, tag
from videornn.report.overview import head
from videornn.report.run_results import RunResults, read_run
from videornn.report.settings import settings_section
from videornn.report.style import STYLE
from videornn.report.testing import testing_section
from videornn.report.training import training_section
from videornn.system.files import check_output_file, write_text

# nothing may be fetched and no script may run, whatever a class or a file is called
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CONTENTS = {
    "test": "Test",
    "examples": "Videos",
    "attention": "Attention",
    "training": "Training",
    "data": "Data",
    "settings": "Settings",
}


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
    groups = choose_examples(run.test.predictions if run.test else [])
    looks = [examples_section(run, groups, say), attention_section(run, groups, say)] if run.test else []
    contents = [
        tag("a", name, href=f"#{anchor}")
        for anchor, name in CONTENTS.items()
        if run.test or anchor not in ("examples", "attention")
    ]
    made = f"Made by videornn on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC."
    body = tag(
        "body",
        head(run),
        tag("nav", contents, aria_label="Contents"),
        tag("main", testing_section(run), looks, training_section(run), data_section(run, say), settings_section(run)),
        tag("footer", tag("p", made)),
    )
    meta = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run.name}: videornn report"),
        tag("style", Markup(STYLE)),
    ]
    return join([Markup("<!DOCTYPE html>\n"), tag("html", tag("head", meta), body, lang="en"), "\n"])
