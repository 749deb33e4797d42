"""What the test says: confusion, the share of each class that is right, calibration."""

from __future__ import annotations

import numpy as np

from videornn.errors import UserError
from videornn.report.charts import bar
from videornn.report.markup import Markup, data_uri, join, percent, plural, scroll, section, table, tag
from videornn.report.pictures import read_png, to_webp
from videornn.report.run_results import RunResults, TestResults

MAX_MATRIX = 30  # classes of a matrix whose counts can be read
MAX_BARS = 40  # classes that all have a bar; of more, the hardest are shown and the others folded away
MAX_PAIRS = 15


def testing_section(run: RunResults) -> Markup:
    """The test folder as pictures and tables; without one, how to get it."""
    if run.test is None:
        command = f"videornn test {run.folder / 'checkpoints' / 'best.pt'}"
        return section(
            "test",
            "Test",
            tag("p", "There is no test of this run yet. This command makes one; then make the report again:"),
            tag("pre", command),
        )
    test, confusion = run.test, run.test.confusion()
    return section(
        "test",
        "Test",
        tag("p", _views(test)),
        tag("h3", "What is taken for what"),
        _matrix(test.class_names, confusion) if len(test.class_names) <= MAX_MATRIX else None,
        _confused_pairs(test.class_names, confusion),
        tag("h3", "Class by class"),
        _class_bars(test.class_names, confusion),
        _calibration(test),
        _all_numbers(test),
    )


def _views(test: TestResults) -> str:
    clips, crops = test.numbers.get("num_clips"), test.numbers.get("num_crops")
    step = test.numbers.get("step")
    of = f" of the checkpoint of step {step:,}" if step is not None else ""
    if clips is None or crops is None:
        return f"The test{of}."
    return (
        f"The test{of} sees every video {plural(clips * crops, 'time')}: {plural(clips, 'clip')} over its length, "
        f"{plural(crops, 'crop')} of each. A video's scores are averaged over these views."
    )


def _matrix(names: tuple[str, ...], confusion: np.ndarray) -> Markup:
    """Counts with a colour that is the share of the class: right ones on the diagonal, mistakes beside it."""
    totals = confusion.sum(axis=1).clip(1)
    rows = []
    for label, name in enumerate(names):
        cells = []
        for prediction, count in enumerate(confusion[label].tolist()):
            share = count / totals[label]
            kind = ("right" if label == prediction else "wrong") + (" strong" if share > 0.75 else "")
            said = f"{plural(count, 'video')} of {name} taken for {names[prediction]}"
            shade = f"--share:{share:.2f}"
            cells.append(
                tag("td", count, class_=kind, style=shade, title=said) if count else _empty_cell(label == prediction)
            )
        rows.append(tag("tr", tag("th", name, scope="row"), cells))
    heads = [tag("th", tag("span", name), scope="col") for name in names]
    corner = tag("td", tag("span", "is \N{DOWNWARDS ARROW} taken for \N{RIGHTWARDS ARROW}"), class_="corner")
    legend = tag(
        "p",
        "A row is what the videos of a class are taken for. ",
        tag("i", class_="key main"),
        "right, ",
        tag("i", class_="key second"),
        "mistakes; the stronger the colour, the larger the share of the class.",
        class_="hint",
    )
    head = tag("thead", tag("tr", corner, heads))
    return join([legend, scroll(tag("table", head, tag("tbody", rows), class_="matrix"))])


def _empty_cell(diagonal: bool) -> Markup:
    return tag("td", class_="diagonal" if diagonal else None)


def _confused_pairs(names: tuple[str, ...], confusion: np.ndarray) -> Markup:
    """The mistakes made most often, by count and then by share of the class."""
    totals = confusion.sum(axis=1).clip(1)
    mistakes = confusion - np.diag(confusion.diagonal())
    pairs = sorted(np.argwhere(mistakes).tolist(), key=lambda pair: (-mistakes[tuple(pair)], totals[pair[0]], pair))
    if not pairs:
        return tag("p", f"No mistake in {plural(int(confusion.sum()), 'video')}.")
    rows = []
    for label, prediction in pairs[:MAX_PAIRS]:
        count, total = int(mistakes[label, prediction]), int(totals[label])
        rows.append([names[label], names[prediction], bar(count / total, f"{count} of {total}", "second")])
    more = f" The {MAX_PAIRS} most frequent of {plural(len(pairs), 'pair')} of classes:" if len(pairs) > MAX_PAIRS else ""
    wrong, videos = int(mistakes.sum()), plural(int(confusion.sum()), "video")
    sentence = tag("p", f"{plural(wrong, 'mistake')} in {videos}.{more}")
    return join([sentence, table(["is", "taken for", "share of the class"], rows, class_="pairs")])


def _class_bars(names: tuple[str, ...], confusion: np.ndarray) -> Markup:
    """Share of each class that is right, hardest first, with counts and the share that is right of what it is said to be."""
    totals, said = confusion.sum(axis=1), confusion.sum(axis=0)
    right = confusion.diagonal()
    recall = right / totals.clip(1)
    order = [index for index in np.lexsort((-totals, recall)).tolist() if totals[index]]
    rows = []
    for index in order:
        precision = percent(100 * right[index] / said[index] if said[index] else None, 0)
        text = f"{percent(100 * recall[index], 0)} ({right[index]} of {totals[index]})"
        rows.append([names[index], bar(recall[index], text), precision])
    header = ["class", "right of its videos (recall)", "of those called so (precision)"]
    without = len(names) - len(order)
    note = tag("p", f"{plural(without, 'class')} without a test video left out.", class_="hint") if without else None
    if len(rows) <= MAX_BARS:
        return join([note, table(header, rows, class_="bars recall")])
    hardest = table(header, rows[: MAX_BARS // 2], class_="bars recall")
    entries = [tag("li", tag("span", name, class_="name"), strip) for name, strip, _ in rows]
    folded = tag("details", tag("summary", f"All {plural(len(rows), 'class')}"), tag("ol", entries, class_="columns"))
    return join([note, tag("p", f"The {MAX_BARS // 2} hardest of {plural(len(rows), 'class')}."), hardest, folded])


def _calibration(test: TestResults) -> Markup | None:
    if test.reliability is None:
        return None
    hint = "Of the videos that are given a score of 80 %, 80 % should be right: on the diagonal, scores mean what they say."
    if "ece" in test.numbers:
        hint += f" They are off by {percent(test.numbers['ece'])} on average (expected calibration error)."
    heading = join([tag("h3", "Are the scores honest?"), tag("p", hint)])
    try:
        image = read_png(test.reliability)
    except (UserError, OSError) as error:  # a damaged picture is no reason to lose the rest of the page
        return join([heading, tag("p", f"There is no diagram: {error}.")])
    picture = tag(
        "img",
        src=data_uri(to_webp(image, max_width=900), "webp"),
        alt="Reliability diagram",
        width=image.width,
        height=image.height,
    )
    return join([heading, tag("div", picture, class_="plate small")])


def _all_numbers(test: TestResults) -> Markup:
    plain = {key: value for key, value in test.numbers.items() if isinstance(value, (int, float, str))}
    rows = [[tag("code", key), f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in plain.items()]
    return tag("details", tag("summary", "All numbers of test/metrics.json"), table(["number", "value"], rows))
