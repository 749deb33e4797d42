"""What the network looks at in a few of the test's videos: maps of its attention blocks, and Grad-CAM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from videornn.checkpoints.trained import Trained, load_trained
from videornn.errors import UserError
from videornn.explain import explain
from videornn.report.examples import Group, prediction_line
from videornn.report.markup import Markup, data_uri, plural, scroll, section, tag
from videornn.report.pictures import to_webp
from videornn.report.run_results import Prediction, RunResults

MAX_BYTES = 2_000_000  # of all pictures together
MAX_WIDTH = 1400


def attention_section(run: RunResults, groups: list[Group], say: Callable[[str], None]) -> Markup:
    """Sheets of the first video of each group that can be read, by the checkpoint that was tested."""
    why_not = _why_not(run, groups)
    if why_not is not None:
        return section("attention", "What the network looks at", tag("p", why_not))
    try:
        trained = _tested_network(run)
    except UserError as error:  # a damaged checkpoint is no reason to lose the rest of the page
        return section("attention", "What the network looks at", tag("p", f"There are no maps: {error}."))
    figures, left_out, room = [], 0, MAX_BYTES
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups):
            for video, path in _explain_first(trained, group.videos, Path(folder) / str(number), say):
                with Image.open(path) as image:
                    picture, (width, height) = to_webp(image, max_width=MAX_WIDTH), image.size
                if len(picture) > room:
                    left_out += 1
                    continue
                room -= len(picture)
                figures.append(_sheet(picture, (width, height), path, video))
    hint = (
        "It glows where a block takes its information from. Unary: what all points of the clip look at. Pairwise: what the "
        "point marked + looks at. Grad-CAM: what speaks for the class. The score in a picture is that of its one clip."
    )
    more = (
        f"{plural(left_out, 'picture')} left out for the size of this page; `videornn explain` makes them."
        if left_out
        else None
    )
    none = "None of these videos can be read any more." if not figures else None
    notes = [tag("p", note, class_="hint") for note in (more, none) if note]
    return section("attention", "What the network looks at", tag("p", hint), figures, notes)


def _why_not(run: RunResults, groups: list[Group]) -> str | None:
    if not any(group.videos for group in groups):
        return "The videos are taken from the test, which is not there."
    if not _checkpoints(run):
        return "Drawing the maps needs the checkpoint, which is gone (checkpoints/best.pt or last.pt)."
    return None


def _checkpoints(run: RunResults) -> list[Path]:
    return [path for name in ("best.pt", "last.pt") if (path := run.folder / "checkpoints" / name).is_file()]


def _tested_network(run: RunResults) -> Trained:
    """The network of best.pt or last.pt: that of the step which was tested, if it is one of them."""
    networks = map(load_trained, _checkpoints(run))
    first = next(networks)
    step = run.test.numbers.get("step") if run.test else None
    return next((trained for trained in (first, *networks) if trained.step == step), first)


def _explain_first(
    trained: Trained, videos: list[Prediction], folder: Path, say: Callable[[str], None]
) -> list[tuple[Prediction, Path]]:
    """The pictures of the first video that can be read."""
    for video in videos:
        say(f"attention in {video.path}")
        try:
            written = explain(trained, video.path, folder, [], movies=False)
        except UserError as error:
            say(f"left out: {error}")
            continue
        return [(video, path) for path in written if path.suffix == ".png"]
    return []


def _sheet(picture: bytes, size: tuple[int, int], path: Path, video: Prediction) -> Markup:
    name = path.stem.removeprefix(Path(video.path).stem).strip("_- ") or path.stem
    image = tag("img", src=data_uri(picture, "webp"), alt=f"{name}: {video.label}", width=size[0], height=size[1])
    caption = tag("figcaption", tag("code", name), prediction_line(video), tag("span", Path(video.path).name, class_="path"))
    return tag("figure", caption, scroll(tag("div", image, class_="plate")), class_="sheet")
