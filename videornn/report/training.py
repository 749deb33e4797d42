"""How training went: the curves of metrics.jsonl."""

from __future__ import annotations

from typing import Any

from videornn.report.charts import Series, line_chart
from videornn.report.run_results import RunResults

LARGE = (440, 270)  # pixels
PERCENT: dict[str, Any] = {"unit": " %", "top": 100.0}


def curves(run: RunResults) -> dict[str, Any]:
    """Draw loss, accuracy, learning rate, speed and waiting over the epochs, and where a run was taken up again."""
    x_name = "epoch" if all("epoch" in record for record in (*run.train, *run.val)) else "step"
    resumed = _resumed_at(run, x_name)

    def draw(title: str, lines: dict[str, str], factor: float = 1.0, **options: Any) -> list[dict[str, Any]]:
        """A chart of keys of the records by the names of the lines; none if there are no numbers."""
        series = []
        for (name, key), role in zip(lines.items(), ("main", "second"), strict=False):
            records = run.val if name == "validation" else run.train
            points = [(record[x_name], factor * record[key]) for record in records if key in record]
            series.append(Series(name, [x for x, _ in points], [y for _, y in points], role))
        there = any(line.x for line in series)
        return [line_chart(title, series, x_name=x_name, marks=resumed, **options)] if there else []

    of_blocks = []
    for place in sorted({key.removesuffix("/change") for record in run.train for key in record if key.endswith("/change")}):
        in_effect = {"pairwise": f"{place}/effective_keys", "unary": f"{place}/unary_effective_keys"}
        of_blocks += draw(f"Places in effect of {place}", in_effect, 100.0, **PERCENT)
        of_blocks += draw(f"Deviation of the logits of {place}", {"pairwise": f"{place}/logit_deviation"})
        of_blocks += draw(f"Change of {place}", {"|z - x| / |x|": f"{place}/change"})
    return {
        "large": [
            *draw("Loss", {"training": "loss", "validation": "loss"}, log=True, size=LARGE),
            *draw("Top-1", {"training": "top1", "validation": "top1"}, size=LARGE, **PERCENT),
        ],
        "small": [
            *draw("Learning rate", {"learning rate": "lr"}),
            *draw("Speed", {"clips per second": "clips_per_second"}),
            *draw("Waiting for data", {"share of the time": "data_wait"}, 100.0, unit=" %"),
        ],
        "of_blocks": of_blocks,
        "resumed": bool(resumed),
    }


def _resumed_at(run: RunResults, x_name: str) -> list[float]:
    """Where on the x axis the starts after the first went on."""
    steps = [start.get("start", {}).get("step", 0) for start in run.starts]
    records = run.train or run.val
    return [
        next((record[x_name] * step / record["step"] for record in records if record["step"] >= step), records[-1][x_name])
        for step in steps
        if step > 0
    ]
