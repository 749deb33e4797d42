"""Measure what attention blocks look at, on the embedded sets, whose masks are known.

    python scripts/measure_disentanglement.py runs/context/checkpoints/best.pt [CHECKPOINT ...] [SET] [--out DIR]

It takes the middle clip of every test video of a set of `videornn data synthetic` (by default that of the first checkpoint's
data.test) and measures for each block how much of the maps of points on objects falls on the object itself, on its
counterpart, on any object and on outlines: as a share, in multiples of that of an even map, with 95 % intervals over videos;
and the same for networks of the same config with new weights. For NL, the maps of its two terms are measured as well. It
writes disentanglement.md, .csv, .json and .png, and sheets of a few videos; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from videornn.checkpoints.trained import Trained, load_trained
from videornn.data.annotations.load import load_videos
from videornn.data.synthetic.make import TASKS, load_masks, mask_path
from videornn.errors import UserError
from videornn.explain import explain, load_clip
from videornn.explain.attention_maps import attention_blocks, observe
from videornn.explain.job import Clip, cut_masks
from videornn.explain.object_shares import RELATIONS, block_shares, has_shares, numbers_of, point_on, ratio_interval
from videornn.models import build_model
from videornn.system.console import ProgressBar, complain
from videornn.system.files import make_folder, replacing, write_table, write_text
from videornn.system.text_files import read_json
from videornn.training.precise_bn import update_batch_norm

NUM_NEW = 3  # networks with new weights, and batches and clips per batch for the statistics of their norms
NORM_BATCHES, NORM_CLIPS = 4, 8
LEAST = 0.01  # smallest ratio that is plotted
COLORS = {"pairwise": "tab:blue", "unary": "tab:orange", "attention": "tab:green"}
MEANING = {
    "own_object": "the object that a point lies on, in all frames",
    "own_object_other_moments": "the same without the moment of the point; empty if objects are seen at one moment only",
    "own_kind": "the object and its partner",
    "partner": "the one thing of the object's colour that is seen in the other part",
    "other_colour": "the thing of the other colour that is seen in the other part (compare with partner)",
    "asked_to_cue": "of points on the object of the cue's colour: the cue",
    "other_to_cue": "of points on the object of the other colour: the cue (compare with asked_to_cue)",
    "other_object": "the other object, of another colour; in this set nothing else is of an object's kind",
    "objects": "any object",
    "outlines": "pixels of the clip at the edge of an object, one on either side",
    "effective_keys": "no object, but the share of the places that a map in effect covers (perplexity)",
}
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="CHECKPOINT", help="checkpoints; the folder of the set may follow"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/disentanglement"))
    parser.add_argument("--videos", type=int, default=10**9, help="at most so many of the test videos, spread over the list")
    parser.add_argument("--examples", type=int, default=2, help="so many of them as sheets")
    try:
        print(json.dumps(measure(parser.parse_args())))
    except UserError as error:
        complain(str(error))
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> Row:
    """Compute and write the document of all numbers; raises UserError."""
    out, paths, folder = arguments.out, arguments.paths, None
    if len(paths) > 1 and paths[-1].is_dir():
        *paths, folder = paths
    networks = [load_trained(path) for path in paths]
    folder = folder or Path(networks[0].config.data.test or "").parent
    record = read_json(folder / "synthetic.json") if (folder / "synthetic.json").is_file() else None
    if not isinstance(record, dict) or (task := str(record.get("task", "motion"))) not in RELATIONS:
        raise UserError(f"{folder} is no set of `videornn data synthetic`; give the folder of one after the checkpoints")
    table = load_videos(str(folder / "test.txt"))
    for path, trained in zip(paths, networks, strict=True):
        _check(path, trained, folder, table.class_names)
    if arguments.videos < 1 or arguments.examples < 0:
        raise UserError(f"--videos {arguments.videos} --examples {arguments.examples}: at least 1 and at least 0")
    make_folder(out)
    chosen = [table[index] for index in _spread(len(table), arguments.videos)]
    # videos of one number show the same scene, except for its shapes
    scenes = np.unique([path if task == "motion" else Path(path).stem[-4:] for path, _ in chosen], return_inverse=True)[1]
    document: Row = {"set": str(folder), "task": task, "num_videos": len(chosen), "checkpoints": {}, "top1": {}, "rows": []}
    for path, trained in zip(paths, networks, strict=True):
        name = _name(path)
        name = name if name not in document["top1"] else f"{name} {len(document['top1']) + 1}"
        document["checkpoints"][name] = str(path)
        labels = [trained.class_names.index(table.class_names[label]) for _, label in chosen]
        document["top1"][name], found = of_network(trained, [path for path, _ in chosen], labels, task, name)
        names = {"network": name, "kind": trained.config.model.attention.kind}
        document["rows"] += [names | key_of | summary(values, scenes) for key_of, values in found]
        for video in [chosen[index][0] for index in _spread(len(chosen), arguments.examples)]:
            points = map(point_on, read_clip(trained, video, task)[1][:2])
            explain(trained, video, out / "sheets" / name, [point for point in points if point], movies=False)
    lines = markdown(document)
    print("\n".join(lines), flush=True)
    try:
        write_text(out / "disentanglement.md", "\n".join(lines) + "\n")
        write_table(out / "disentanglement.csv", list(document["rows"][0]), [row.values() for row in document["rows"]])
        write_text(out / "disentanglement.json", json.dumps(document, indent=2) + "\n")
        with replacing(out / "disentanglement.png") as temporary:
            plot(temporary, document)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return document


def _name(path: Path) -> str:
    """Name a checkpoint by its run, which in the folder of an ablation is the row and the seed."""
    run = path.parts[:-2] if path.parent.name == "checkpoints" else ()
    if len(run) > 1 and re.fullmatch(r"seed\d+", run[-1]):
        return f"{run[-2]} {run[-1]}"
    return run[-1] if run else path.stem


def of_network(
    trained: Trained, paths: list[str], labels: list[int], task: str, name: str
) -> tuple[float, list[tuple[Row, np.ndarray]]]:
    """Compute top-1, and the numbers of every map [V, 1 + NUM_NEW, 2]: for the network and new ones, and for even maps."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    models = [
        trained.model,
        *new_networks(trained, [paths[index] for index in _spread(len(paths), NORM_BATCHES * NORM_CLIPS)]),
    ]
    num_right = 0
    with ProgressBar(name) as bar:
        for number, (path, label) in enumerate(zip(paths, labels, strict=True), start=1):
            clip, masks = read_clip(trained, path, task)
            inputs = trained.normalize(clip.views)
            for model in models:
                seen = observe(model, inputs)
                trained.check_finite(seen.logits, f"{path}: ")
                num_right += model is trained.model and int(seen.logits.argmax()) == label
                for block, module in attention_blocks(model).items():
                    places = seen.places[block.split(".")[0]]
                    for which, shares in block_shares(module, seen.blocks[block][0], places, masks).items():
                        for falls_on, pair in numbers_of(shares, task).items():
                            found.setdefault((block.removesuffix(".attention"), which, falls_on), []).append(pair)
            bar.update(number, len(paths))
    keys = ("block", "map", "falls_on")
    shape = (len(paths), len(models), 2)
    rows = [(dict(zip(keys, key, strict=True)), np.reshape(pairs, shape)) for key, pairs in found.items()]
    return 100 * num_right / len(paths), rows


def read_clip(trained: Trained, path: str, task: str) -> tuple[Clip, Tensor]:
    """Read the middle clip of a video and its masks, float [L, T, S, S]; raises UserError."""
    clip = load_clip(trained, path)
    try:
        masks = load_masks(mask_path(path), clip.num_frames)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: its masks cannot be read ({error}); draw the set again") from error
    return clip, cut_masks(trained, clip, masks, len(TASKS[task].palette) // 3 - 1)


def new_networks(trained: Trained, paths: list[str]) -> list[nn.Module]:
    """Build networks of the same config with new weights, whose norms have the statistics of clips of the videos."""
    views = torch.cat([load_clip(trained, path).views for path in paths])
    batches = [trained.normalize(part) for part in views.split(NORM_CLIPS)]
    models = []
    for seed in range(NUM_NEW):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(build_model(trained.config.model).to(trained.device).eval())
        update_batch_norm(models[-1], batches, num_batches=len(batches))
    return models


def summary(values: np.ndarray, scenes: np.ndarray) -> Row:
    """Average a number [V, 1 + NUM_NEW, 2] over videos, with ratios to an even map; None for objects in no clip."""
    in_clip = np.isfinite(values).all(axis=(1, 2))
    share, new, even = values[in_clip, 0, 0], values[in_clip, 1:, 0].mean(axis=1), values[in_clip, 0, 1]
    numbers: Row = dict.fromkeys(("num_videos", "share", "even", "ratio", "low", "high", "new_share", "new_ratio"))
    if in_clip.any():
        ratios = (*ratio_interval(share, even, scenes[in_clip]), ratio_interval(new, even, scenes[in_clip])[0])
        numbers |= {"share": share.mean(), "even": even.mean(), "new_share": new.mean()}
        numbers |= dict(zip(("ratio", "low", "high", "new_ratio"), ratios, strict=True))
    rounded = {
        key: round(float(value), 6) if value is not None and math.isfinite(value) else None for key, value in numbers.items()
    }
    return rounded | {"num_videos": int(in_clip.sum())}


def markdown(document: Row) -> list[str]:
    """Return the lines of the Markdown file: a table for each block."""
    about = (
        f"{document['num_videos']} test videos of {document['set']} (`--task {document['task']}`), the middle clip of each. "
        "How much of the weight of the maps of points on objects falls on what: mean over the points of an object, over "
        "objects, over videos; x: in multiples of what an even map gives [95 % interval over the videos]; new: of the same "
        f"network with new weights, mean of {NUM_NEW}. What lies between places counts for the nearest; the features of a "
        "place are made of more than that, so weight beside an object can be about it too."
    )
    lines = ["# What attention looks at", "", about]
    for network, kind, block in dict.fromkeys((row["network"], row["kind"], row["block"]) for row in document["rows"]):
        rows = [row for row in document["rows"] if (row["network"], row["block"]) == (network, block)]
        maps = dict.fromkeys(row["map"] for row in rows)
        lines += ["", f"## `{network}`: {kind} after {block}; {document['top1'][network]:.1f} % of the clips recognised", ""]
        lines += [
            _line(["falls on", "even map", *(cell for name in maps for cell in (name, "new"))]),
            "|---|---:|" + "---:|---:|" * len(maps),
        ]
        for falls_on in dict.fromkeys(row["falls_on"] for row in rows):
            of_maps = [row for row in rows if row["falls_on"] == falls_on]
            even = of_maps[0]["even"]
            lines.append(
                _line(
                    [
                        falls_on,
                        "" if even is None else f"{100 * even:.1f} %",
                        *(cell for row in of_maps for cell in _cells(row)),
                    ]
                )
            )
    known = dict.fromkeys(row["falls_on"] for row in document["rows"])
    return [*lines, "", *(f"- `{falls_on}`: {MEANING[falls_on]}" for falls_on in known)]


def plot(path: Path, document: Row) -> None:
    """Plot a panel for every number: the ratio of each map to an even map, and that of the map with new weights."""
    rows = [row for row in document["rows"] if row["ratio"] is not None]
    known = list(dict.fromkeys(row["falls_on"] for row in rows))
    maps = list(dict.fromkeys(f"{row['network']}, {row['block']}: {row['map']}" for row in rows))
    columns = -(-len(known) // 2)
    figure = Figure(figsize=(2.6 + 2 * columns, 1.6 + 0.5 * len(maps)), layout="constrained")
    panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for row in rows:
        panel, place = panels[known.index(row["falls_on"])], maps.index(f"{row['network']}, {row['block']}: {row['map']}")
        ratio, low, high, new = (max(row[key], LEAST) for key in ("ratio", "low", "high", "new_ratio"))
        panel.plot([new], [place], "x", color="tab:gray")
        reach = [[max(ratio - low, 0)], [max(high - ratio, 0)]]
        panel.errorbar([ratio], [place], xerr=reach, fmt="o", color=COLORS[row["map"].split()[0]], capsize=3)
    for panel, falls_on in zip(panels, known, strict=False):
        panel.set_title(falls_on.replace("_", " "), fontsize=9)
        panel.axvline(1, color="black", linewidth=1)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(known) :]:
        panel.set_visible(False)
    panels[0].set(xscale="log", ylim=(len(maps) - 0.5, -0.5))
    panels[0].xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}x")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panels[0].minorticks_off()
    panels[0].set_yticks(range(len(maps)), maps)
    figure.suptitle("weight in multiples of an even map, with 95 % intervals; crosses: new weights", fontsize=10)
    figure.savefig(path, dpi=110, format="png")


def _check(path: Path, trained: Trained, folder: Path, classes: tuple[str, ...]) -> None:
    """Raise UserError for a network whose maps cannot be measured on a set."""
    blocks, kind = attention_blocks(trained.model).values(), trained.config.model.attention.kind
    if not blocks:
        raise UserError(f"{path} has no attention blocks, so there is nothing to measure")
    if not all(map(has_shares, blocks)):
        raise UserError(
            f"{path} has {kind} blocks, whose weights come from no softmax and are no shares that could be measured"
        )
    if set(trained.class_names) != set(classes):
        names = ", ".join(trained.class_names[:3])
        raise UserError(
            f"{path} knows {len(trained.class_names)} classes ({names}, ...), and not those of {folder}: give its set"
        )


def _spread(length: int, count: int) -> list[int]:
    """Return at most count of length indices, spread evenly."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def _cells(row: Row) -> tuple[str, str]:
    """Format the ratios of a map and of maps with new weights."""
    if row["ratio"] is None:
        return "", ""
    return (
        f"{100 * row['share']:.1f} %, {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]",
        f"{row['new_ratio']:.2f}x",
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
