"""Check whether a network uses motion, by training and testing it on shuffled and on single frames of the same videos.

    python scripts/frame_order_control.py configs/quickstart.yaml [key=value ...] [--out runs/frame_order]

For each control (data.frame_order shuffled, single; `--all` adds time) it trains the config's network from scratch, tests
it on the config's test videos, and prints top-1 beside chance; the last line is JSON. A control near chance shows that the
class is not in single frames or in their unordered set; the network on frames in order must be far above it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from videornn.config import load_config
from videornn.data.annotations.load import load_videos
from videornn.evaluation.evaluate import evaluate
from videornn.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/frame_order"))
    parser.add_argument("--all", action="store_true", help="train with the right order too")
    arguments = parser.parse_args()
    result = {}
    for order in ("shuffled", "single", "time") if arguments.all else ("shuffled", "single"):
        config = load_config(arguments.config, [*arguments.overrides, f"data.frame_order={order}"])
        last = train(config, arguments.out / order, resume=True)
        metrics, _ = evaluate(last, [], None, lambda done, total: None)
        section = config.data
        table = load_videos(section.train, root=section.root, labels=section.labels, split="train", fold=section.fold)
        classes = len(table.class_names)
        result[order] = round(metrics["video_top1"], 2)
        result["chance"] = round(100 / classes, 2)
        print(f"frames {order}: top-1 {result[order]} % (chance {result['chance']} %)", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
