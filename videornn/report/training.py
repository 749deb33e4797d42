"""How training went: the curves of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from videornn.report.charts import Series, line_chart
from videornn.report.markup import Markup, plural, section, tag
from videornn.report.run_results import RunResults


def training_section(run: RunResults) -> Markup:
    """Loss, accuracy, learning rate, speed and waiting over the epochs, with a line where a run was taken up again."""
    x_key, x_name = _x_axis([*run.train, *run.val])
    resumed = _resumed_at(run, x_key)

    def series(name: str, records: list[dict[str, Any]], key: str, role: str = "main", factor: float = 1.0) -> Series:
        points = [(record[x_key], factor * record[key]) for record in records if key in record]
        return Series(name, [x for x, _ in points], [y for _, y in points], role)

    def chart(title: str, lines: list[Series], **options: Any) -> Markup | None:
        there = any(line.x for line in lines)
        return line_chart(title, lines, x_name=x_name, marks=resumed, **options) if there else None

    loss = [series("training", run.train, "loss"), series("validation", run.val, "loss", "second")]
    top1 = [series("training", run.train, "top1"), series("validation", run.val, "top1", "second")]
    waiting = [series("share of the time", run.train, "data_wait", factor=100.0)]
    large = [
        chart("Loss", loss, log=True, size=(440, 270)),
        chart("Top-1", top1, unit=" %", top=100.0, size=(440, 270)),
    ]
    small = [
        chart("Learning rate", [series("learning rate", run.train, "lr")]),
        chart("Speed", [series("clips per second", run.train, "clips_per_second")]),
        chart("Waiting for data", waiting, unit=" %"),
    ]
    of_blocks = [
        chart(f"{title} of {place}", lines, **options)
        for place in _places(run.train)
        for title, lines, options in (
            (
                "Places in effect",
                [
                    series("pairwise", run.train, f"{place}/effective_keys", factor=100.0),
                    series("unary", run.train, f"{place}/unary_effective_keys", "second", factor=100.0),
                ],
                {"unit": " %", "top": 100.0},
            ),
            ("Deviation of the logits", [series("pairwise", run.train, f"{place}/logit_deviation")], {}),
            ("Change", [series("|z - x| / |x|", run.train, f"{place}/change")], {}),
        )
    ]
    return section(
        "training",
        "Training",
        tag("p", " ".join(_remarks(run, bool(resumed)))),
        tag("div", large, class_="charts two"),
        tag("div", small, class_="charts three"),
        tag("p", "Attention blocks, on one clip of every step that was logged:", class_="hint") if of_blocks else None,
        tag("div", of_blocks, class_="charts three") if of_blocks else None,
    )


def _places(records: list[dict[str, Any]]) -> list[str]:
    """Names of the attention blocks that a run has numbers of."""
    return sorted({key.removesuffix("/change") for record in records for key in record if key.endswith("/change")})


def _remarks(run: RunResults, resumed: bool) -> Iterable[str]:
    """Sentences on what the curves are of."""
    last = (run.train or run.val)[-1]
    planned = run.config.train.epochs
    epochs = last.get("epoch")
    if epochs is not None and epochs < planned - 0.01:
        yield f"So far {epochs:.4g} of {planned} epochs ({plural(last['step'], 'step')}): the run stopped early or goes on."
    else:
        yield f"{plural(planned, 'epoch')}, {plural(last['step'], 'step')}."
    if not run.val:
        yield "Nothing was validated in this time (data.val is not given, or its turn has not come)."
    elif run.train:
        yield "Training is measured on augmented clips while the network learns, validation on one centre view a video."
    if resumed:
        yield "Dotted lines: the run was stopped there and taken up again."


def _x_axis(records: list[dict[str, Any]]) -> tuple[str, str]:
    return ("epoch", "epoch") if all("epoch" in record for record in records) else ("step", "step")


def _resumed_at(run: RunResults, x_key: str) -> list[float]:
    """Where on the x axis the starts after the first went on."""
    steps = [start.get("start", {}).get("step", 0) for start in run.starts]
    records = run.train or run.val
    return [
        next((record[x_key] * step / record["step"] for record in records if record["step"] >= step), records[-1][x_key])
        for step in steps
        if step > 0
    ]
