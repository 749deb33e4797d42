"""Measure time and peak memory of what grows with a data set, at the size of Kinetics, on generated lists and scores.

python scripts/benchmark_scale.py [--videos 19761] [--classes 400] [--views 30] [--listed 650000] [--keep FOLDER]

Every line is a separate process: the end of `videornn test` after all views are scored, `videornn scores` of one network and
of two, the numbers of a validation in deterministic mode, `videornn report`, and the reading of a training list; first, for
comparison, a start of Python that only imports. The last line is one JSON document: seconds and peak MB by stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.checkpoints.trained import load_trained
from videornn.config import config_from_dict
from videornn.evaluation.evaluate import kept_scores, new_eval_job
from videornn.models import build_model

START = "import torch, videornn.evaluation.evaluate"
READING = "import sys; from videornn.data.annotations.load import load_videos; print(len(load_videos(sys.argv[1])))"
# as a validation does with the logits of the ranks; train.deterministic once took 25 GB here
VALIDATION = """
import sys, torch
from videornn.evaluation import metrics
torch.use_deterministic_algorithms(True)
num_videos, num_classes = map(int, sys.argv[1:])
print(metrics.summarize(torch.randn(num_videos, 1, num_classes), torch.arange(num_videos) % num_classes, "scores"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=19_761, help="videos of the test (Kinetics-400's validation)")
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--views", type=int, default=30, help="views of every video")
    parser.add_argument("--listed", type=int, default=650_000, help="rows of the training list")
    parser.add_argument("--keep", type=Path, help="folder for what is made; by default it is removed")
    arguments = parser.parse_args()
    with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments.videos, arguments.classes, arguments.views, arguments.listed)))


def measure(folder: Path, num_videos: int, num_classes: int, num_views: int, num_listed: int) -> dict[str, dict[str, float]]:
    """Measure seconds and peak memory in MB of every stage."""
    run = make_run(folder, num_videos, num_classes, num_listed)
    checkpoint = run / "checkpoints/last.pt"
    overrides = [f"test.num_clips={num_views}", "test.num_crops=1", "device=cpu"]
    keep_made_scores(checkpoint, overrides)
    scores = run / "test/scores.npz"
    stages = {
        "start": ["-c", START],
        "test, its end": ["-m", "videornn", "test", checkpoint, *overrides],
        "scores": ["-m", "videornn", "scores", scores, "--out", folder / "again"],
        "scores, two networks": ["-m", "videornn", "scores", scores, scores, "--out", folder / "two"],
        "validation": ["-c", VALIDATION, num_videos, num_classes],
        "report": ["-m", "videornn", "report", run],
        "reading a training list": ["-c", READING, folder / "train.txt"],
    }
    return {name: run_stage(name, list(map(str, command))) for name, command in stages.items()}


def make_run(folder: Path, num_videos: int, num_classes: int, num_listed: int) -> Path:
    """Make a run folder with the checkpoint of a small network, and lists; only one of the listed videos exists."""
    names = [f"class {index:03d}" for index in range(num_classes)]
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    for split, count in (("train", num_listed), ("test", num_videos)):
        with open(folder / f"{split}.txt", "w") as file:
            for row in range(count):
                label = row % num_classes
                video = f"videos/{split}/{names[label]}/{row:011x}_000012_000022.mp4"
                if row == 0:
                    (folder / video).parent.mkdir(parents=True)
                    (folder / video).touch()
                file.write(f"{video} {label}\n")
    run = folder / "run"
    config = config_from_dict(
        {
            "model": {"name": "slow", "depth": 10, "width": 4, "num_classes": num_classes},
            "data": {"train": str(folder / "train.txt"), "test": str(folder / "test.txt")},
        },
        "benchmark_scale.py",
    )
    content = {
        "model": build_model(config.model).state_dict(),
        "step": 1,
        "best_top1": 0.0,
        "config": config.model_dump(mode="json"),
        "class_names": names,
    }
    save_checkpoint(run / "checkpoints/last.pt", content)
    (run / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))  # JSON is YAML
    record = {"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0, "top1": 10.0, "lr": 0.1}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return run


def keep_made_scores(checkpoint: Path, overrides: list[str]) -> None:
    """Write what a test killed after its last video leaves behind; three of four views are right."""
    job = new_eval_job(load_trained(checkpoint, overrides), checkpoint, None)
    kept = kept_scores(job)
    kept.prepare_folder()
    generator = np.random.default_rng(0)
    with kept.appending(0) as file:
        for index, label in enumerate(job.table.labels.tolist()):
            logits = generator.standard_normal((job.num_views, len(job.trained.class_names)), np.float32)
            logits[:, label] += 4 * (generator.random(job.num_views) < 0.75)
            file.append(index, torch.from_numpy(logits))


def run_stage(name: str, arguments: list[str]) -> dict[str, float]:
    """Measure seconds and peak MB of one Python command; ends the benchmark if it fails."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name} ended with {process.returncode}: {said}")
    numbers = {"seconds": round(time.monotonic() - start, 1), "peak_mb": round(usage.ru_maxrss / 1024)}
    print(f"{name:30s} {numbers['seconds']:7.1f} s {numbers['peak_mb']:7d} MB", flush=True)
    return numbers


if __name__ == "__main__":
    main()
