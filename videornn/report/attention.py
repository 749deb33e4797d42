"""What the network looks at in a few of the test's videos: maps of its attention blocks, and Grad-CAM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from videornn.checkpoints.trained import Trained, load_trained
from videornn.errors import UserError
from videornn.explain import explain
from videornn.report.examples import Group
from videornn.report.render import to_webp
from videornn.report.run_results import Prediction, RunResults

MAX_BYTES = 2_000_000  # of all pictures together
MAX_WIDTH = 1400


def look(run: RunResults, groups: list[Group], say: Callable[[str], None]) -> dict[str, Any]:
    """Draw the maps of the first video of each group that can be read, by the checkpoint that was tested."""
    if not any(group.videos for group in groups):
        return {"why_not": "The videos are taken from the test, which is not there."}
    if not _checkpoints(run):
        return {"why_not": "Drawing the maps needs the checkpoint, which is gone (checkpoints/best.pt or last.pt)."}
    try:
        trained = _tested_network(run)
    except UserError as error:  # a damaged checkpoint is no reason to lose the rest of the page
        return {"why_not": f"There are no maps: {error}."}
    sheets, room, num_left_out = [], MAX_BYTES, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups):
            for video, path in _explain_first(trained, group.videos, Path(folder) / str(number), say):
                with Image.open(path) as image:
                    webp, (width, height) = to_webp(image, max_width=MAX_WIDTH), image.size
                if len(webp) > room:
                    num_left_out += 1
                    continue
                room -= len(webp)
                name = path.stem.removeprefix(Path(video.path).stem).strip("_- ") or path.stem
                sheet = {"name": name, "video": video, "file": Path(video.path).name}
                sheets.append(sheet | {"webp": webp, "width": width, "height": height})
    return {"sheets": sheets, "num_left_out": num_left_out}


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
