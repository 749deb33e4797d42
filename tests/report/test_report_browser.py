"""The report in a real browser: nothing is fetched, nothing complains, animations run, and it fits a phone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from videornn.report import write_report


@pytest.fixture(scope="module")
def report(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tested run with long names and a wide sheet."""
    from videornn.evaluation.evaluate import evaluate

    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / "run_with_a_name_that_goes_on_and_on_and_on"))
    evaluate(run / "checkpoints/best.pt", [], None, lambda done, total: None)

    def explain(trained, video, out, queries, movies=True) -> list[Path]:
        out.mkdir(parents=True)
        Image.new("RGB", (1300, 500), "red").save(out / "res3.0.png")
        return [out / "res3.0.png"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("videornn.report.attention.explain", explain)
        return write_report(run, None)


def open_page(browser, report: Path, **options) -> tuple:
    """The page in a window of its own, what it asked the network for, and what it complained of."""
    page = browser.new_context(**options).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    return page, [url for url in requests if not url.startswith("data:") and url != report.as_uri()], complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400, 320])
def test_nothing_is_fetched_nothing_complains_and_nothing_is_wider_than_the_screen(
    browser, report: Path, width: int, scheme: str
) -> None:
    page, requests, complaints = open_page(browser, report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert (requests, complaints) == ([], [])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.context.close()


def test_animations_run_until_they_are_held_and_not_where_motion_is_unwanted(browser, report: Path) -> None:
    place = "getComputedStyle(document.querySelector('.clip img')).transform"
    page, _, _ = open_page(browser, report)
    assert page.evaluate("document.getAnimations().length") == 10  # one for each test video
    before = page.evaluate(place)
    deadline = time.monotonic() + 300
    while page.evaluate(place) == before:
        assert time.monotonic() < deadline, "the first animation stands still"
    page.get_by_label("hold the animations").check()
    assert page.evaluate("document.getAnimations().every(one => one.playState === 'paused')")
    page.context.close()
    page, _, _ = open_page(browser, report, reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
    page.context.close()


def test_a_frame_of_an_animation_fills_its_window_and_no_more(browser, report: Path) -> None:
    page, _, _ = open_page(browser, report, reduced_motion="reduce")
    sizes = page.evaluate(
        "[...document.querySelectorAll('.clip')].map(clip => [clip.clientWidth, clip.clientHeight,"
        " clip.firstChild.getBoundingClientRect().width, clip.firstChild.getBoundingClientRect().height,"
        " clip.firstChild.naturalWidth / 12 / clip.firstChild.naturalHeight])"
    )
    for width, height, strip_width, strip_height, aspect in sizes:
        assert strip_width == pytest.approx(12 * width, rel=0.02) and strip_height == pytest.approx(height, abs=1.0)
        assert width / height == pytest.approx(aspect, rel=0.03)
    page.context.close()


def test_it_prints_in_a_few_pages(browser, report: Path) -> None:
    page, _, _ = open_page(browser, report)
    printed = page.pdf(format="A4")
    assert 2 <= printed.count(b"/Type /Page\n") <= 9
    page.context.close()
