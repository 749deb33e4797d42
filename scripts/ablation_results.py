"""Write the numbers of an ablation, from the tests of its runs, as JSON, CSV, Markdown and a picture of one document."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ablation_steps import Cost
from matplotlib.figure import Figure

from videornn.errors import UserError
from videornn.evaluation.paired import paired_difference
from videornn.system.files import replacing, write_table, write_text
from videornn.system.text_files import read_rows

BASES = ("none", "nl")  # the rows to compare others with
# numbers of the maps of a block, as `videornn train` logs them, and as they are printed
MAPS = {"effective_keys": "share of places", "query_dependence": "query dependence", "unary_effective_keys": "unary: share"}
Videos = dict[tuple[str, int], bool]  # a path, and how often it came before -> whether the network is right


def read_test(folder: Path) -> Videos:
    """Read from its predictions.csv which videos a test has right."""
    seen: dict[str, int] = {}
    right: Videos = {}
    for row in read_rows(folder / "predictions.csv", ("path", "correct")):
        path = row["path"]
        seen[path] = seen.get(path, -1) + 1
        right[path, seen[path]] = row["correct"] == "1"
    return right


def read_maps(run: Path) -> dict[str, float]:
    """Read the numbers of maps in the last line of a training log ("res3.0/effective_keys"); empty without blocks."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    last = next((record for record in map(json.loads, reversed(lines)) if record["kind"] == "train"), {})
    return {key: value for key, value in last.items() if key.partition("/")[2] in MAPS}


def add_maps(rows: dict[str, Any], maps: Mapping[str, Mapping[int, dict[str, float]]]) -> None:
    """Add the numbers of maps to the rows of summarize, in the order of their seeds; None for a seed without them.

    Args:
        maps: the results of read_maps, by row and seed.
    """
    for name, row in rows.items():
        of_seeds = [maps[name][seed] for seed in row["seeds"]]
        keys = dict.fromkeys(key for found in of_seeds for key in found)
        row["maps"] = {key: [found.get(key) for found in of_seeds] for key in keys}


def summarize(tests: Mapping[str, Mapping[int, Videos]], costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Compute the numbers of every row, by name, from its tests by seed, for all rows on the same videos.

    Raises:
        UserError: the tests have no video in common.
    """
    scored = [set(videos) for row in tests.values() for videos in row.values()]
    if not scored:
        return {"num_videos": 0, "num_left_out": 0, "rows": {}}
    videos = sorted(set.intersection(*scored))
    if not videos:
        raise UserError("the tests of these runs have no video in common: they were not made on the same list")
    right = {
        row: {seed: np.array([found[video] for video in videos]) for seed, found in sorted(of_row.items())}
        for row, of_row in tests.items()
        if of_row
    }
    rows = {}
    for row, of_row in right.items():
        top1 = {seed: 100 * float(found.mean()) for seed, found in of_row.items()}
        numbers: dict[str, Any] = {
            "seeds": list(top1),
            "top1": list(top1.values()),
            "top1_mean": statistics.mean(top1.values()),
            "top1_sd": statistics.stdev(top1.values()) if len(top1) > 1 else None,
        }
        for base in BASES:
            both = [seed for seed in of_row if seed in right.get(base, {})] if row != base else []
            pair = [np.stack([right[name][seed] for seed in both]) for name in (row, base)] if both else None
            numbers[f"to_{base}"] = pair and {"seeds": both, **asdict(paired_difference(*pair))}
        rows[row] = numbers | (asdict(costs[row]) if row in costs else {})
    return {"num_videos": len(videos), "num_left_out": len(set.union(*scored)) - len(videos), "rows": rows}


def write_results(out: Path, document: dict[str, Any]) -> list[Path]:
    """Write ablation.json, .csv, .md and .png into a folder."""
    paths = [out / f"ablation.{suffix}" for suffix in ("md", "csv", "json", "png")]
    write_text(paths[0], "\n".join(markdown(document)) + "\n")
    write_table(paths[1], *table(document))
    write_text(paths[2], json.dumps(document, indent=2) + "\n")
    with replacing(paths[3]) as temporary:
        plot(temporary, document)
    return paths


def table(document: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of the CSV file; missing values are empty cells."""
    numbers = ("mean", "low", "high", "p_least", "p_most")
    seeds = document["seeds"]
    header = ["row", "num_seeds", "top1_mean", "top1_sd", *(f"to_{base}_{name}" for base in BASES for name in numbers)]
    header += ["parameters", "flops", "step_ms", "step_mb", *(f"top1_seed{seed}" for seed in seeds)]
    rows = []
    for name, row in document["rows"].items():
        differences = [_with_range(row[f"to_{base}"]) for base in BASES]
        cells = [name, len(row["seeds"]), row["top1_mean"], row["top1_sd"]]
        cells += [difference and difference[number] for difference in differences for number in numbers]
        cells += [row.get(key) for key in ("parameters", "flops", "step_ms", "step_mb")]
        of_seed = dict(zip(row["seeds"], row["top1"], strict=True))
        rows.append([*cells, *(of_seed.get(seed) for seed in seeds)])
    return header, [["" if cell is None else cell for cell in row] for row in rows]


def markdown(document: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown file."""
    lines = ["# Attention rows", "", document["about"], ""]
    columns = ["row", "weights of the values", "top-1, %", *(f"to `{base}`, points [95 %]; p of seeds" for base in BASES)]
    columns += ["parameters, M", "multiply-adds, G", "step, ms", "step, MB"]
    lines += [_line(columns), "|---|---|" + "---:|" * (len(columns) - 2)]
    for name, row in document["rows"].items():
        cells = [f"`{name}`", document["formulas"][name], top1_text(row, len(document["seeds"]))]
        cells += [difference_text(row[f"to_{base}"]) for base in BASES]
        cells += [_number(row.get("parameters"), 1e6, ".4g"), _number(row.get("flops"), 1e9, ".4g")]
        cells += [_number(row.get("step_ms"), 1, ".1f"), _number(row.get("step_mb"), 1, ".0f")]
        lines.append(_line(cells))
    lines += ["", "Top-1 of each seed:", "", _line(["row", *map(str, document["seeds"])])]
    lines.append("|---|" + "---:|" * len(document["seeds"]))
    for name, row in document["rows"].items():
        of_seed = dict(zip(row["seeds"], row["top1"], strict=True))
        lines.append(_line([f"`{name}`", *(_number(of_seed.get(seed), 1, ".2f") for seed in document["seeds"])]))
    lines += _maps_table(document["rows"])
    return [*lines, "", *(f"- {note}" for note in document["notes"])]


def _maps_table(rows: dict[str, Any]) -> list[str]:
    """Return lines on the maps of every block, with the least and the most over seeds."""
    lines = []
    for name, row in rows.items():
        for block in dict.fromkeys(key.partition("/")[0] for key in row["maps"]):
            found = [row["maps"].get(f"{block}/{key}", []) for key in MAPS]
            lines.append(_line([f"`{name}`", block, *map(_range_text, found)]))
    if not lines:
        return []
    header = ["", "Maps at the end of training:", "", _line(["row", "block", *MAPS.values()])]
    return [*header, "|---|---|" + "---:|" * len(MAPS), *lines]


def _range_text(values: Sequence[float | None]) -> str:
    present = sorted(value for value in values if value is not None)
    if not present:
        return ""
    least, most = f"{present[0]:.3f}", f"{present[-1]:.3f}"
    return least if least == most else f"{least} to {most}"


def top1_text(row: dict[str, Any], num_seeds: int) -> str:
    """Format mean and standard deviation, with the number of seeds if some are missing."""
    spread = "" if row["top1_sd"] is None else f" ± {row['top1_sd']:.2f}"
    missing = f" ({len(row['seeds'])} of {num_seeds} seeds)" if len(row["seeds"]) < num_seeds else ""
    return f"{row['top1_mean']:.2f}{spread}{missing}"


def difference_text(difference: dict[str, Any] | None) -> str:
    """Format a paired difference with its interval, and the smallest and largest p-value of its seeds."""
    if difference is None:
        return ""
    least, most = (_p_value(p) for p in (min(difference["mcnemar"]), max(difference["mcnemar"])))
    p = least if least == most else f"{least} to {most}"
    return f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]; {p}"


def plot(path: Path, document: dict[str, Any]) -> None:
    """Plot top-1 of every row, seeds and mean, and beside it the differences to NL (or to none) with their intervals."""
    rows = document["rows"]
    base = next((base for base in reversed(BASES) if base in rows), None)
    figure = Figure(figsize=(11, 1.4 + 0.42 * max(len(rows), 1)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows.values()):
        left.plot(
            row["top1"], [place] * len(row["top1"]), "o", color="tab:blue", alpha=0.35, markersize=5, markeredgewidth=0
        )
        left.plot([row["top1_mean"]], [place], "|", color="black", markersize=16, markeredgewidth=2)
        difference = row[f"to_{base}"] if base else None
        if difference:
            low, mean, high = (difference[key] for key in ("low", "mean", "high"))
            color = "tab:gray" if low <= 0 <= high else "tab:green" if low > 0 else "tab:red"
            right.errorbar([mean], [place], xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3)
    left.set_yticks(range(len(rows)), list(rows))
    left.invert_yaxis()
    left.set_xlabel("video top-1, %: seeds (dots) and their mean")
    right.axvline(0, color="black", linewidth=1)
    right.set_xlabel(
        f"difference to {base}, points, and its 95 % interval; gray: 0 is in it"
        if base
        else "neither nl nor none is there to compare with"
    )
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(document["title"], fontsize=10)
    figure.savefig(path, dpi=110, format="png")


def _p_value(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _with_range(difference: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a paired difference with the smallest and the largest p-value of its seeds."""
    return difference and difference | {"p_least": min(difference["mcnemar"]), "p_most": max(difference["mcnemar"])}


def _number(value: float | None, unit: float, spec: str) -> str:
    return "" if value is None else format(value / unit, spec)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
