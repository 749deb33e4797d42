"""What the test says: confusion, the share of each class that is right, calibration."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from videornn.errors import UserError
from videornn.evaluation.metrics import most_confused
from videornn.report.render import to_webp
from videornn.report.run_results import EvalResults
from videornn.system.text_files import read_bytes

MAX_PNG_BYTES = 50_000_000


def count_test(test: EvalResults) -> dict[str, Any]:
    """Count mistakes, most frequent first, as (label, prediction, count, videos of the label), and classes, hardest first,
    as (name, right, videos of it, videos that are called so)."""
    names, counts = test.class_names, test.confusion
    right, totals, called = (column.tolist() for column in (counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)))
    classes = [one for one in zip(names, right, totals, called, strict=True) if one[2]]
    return {
        "counts": list(zip(names, counts.tolist(), strict=True)),
        "mistakes": [(names[a], names[b], count, totals[a]) for a, b, count in most_confused(counts)],
        "classes": sorted(classes, key=lambda one: (one[1] / one[2], -one[2])),
        "num_videos": sum(totals),
        "num_wrong": sum(totals) - sum(right),
        "diagram": read_diagram(test.reliability) if test.reliability else None,
    }


def read_diagram(path: Path) -> dict[str, Any]:
    """Read a PNG of the run folder; a damaged one is no reason to lose the rest of the page, and gives why it is missing."""
    try:
        content = BytesIO(read_bytes(path, max_bytes=MAX_PNG_BYTES))
    except (UserError, OSError) as error:
        return {"why_not": str(error)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of pictures of a hundred million pixels, and such as a test does not write
            with Image.open(content, formats=("PNG",)) as image:
                return {"webp": to_webp(image, max_width=900), "width": image.width, "height": image.height}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        return {"why_not": f"{path} is no picture, or damaged ({type(error).__name__})"}
