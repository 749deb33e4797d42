"""Compare the attention blocks of the DNL paper on any recipe and data, over several seeds, with intervals.

    python scripts/ablate_attention.py CONFIG [key=value ...] --out DIR [--seeds 5] [--rows none nl ...]
        [--jobs N] [--gpus 0 1 ...] [--init-from-baseline [--baseline CONFIG]]

A row is CONFIG with another attention block at the places that it names, trained and tested by `videornn train` and
`videornn test` once for each seed. Finished runs are not repeated and interrupted ones are continued: give the same command
again after Ctrl-C, which stops all runs after their step and saves them, after a kill or a failure, or to add rows or seeds.
--gpus gives each run its own GPU, or several (--gpus 0,1,2,3 4,5,6,7); --jobs is the number of runs that share each of
these, or the CPU. The results are ablation.md, .csv, .json and .png in DIR.

Rows of one seed share the data, its order, clips and crops, the recipe, dropout, the views of the test, and the initial
weights of all but the attention blocks, which begin as the identity (gate: norm): losses of the first step are equal. A
{seed} in model.init is replaced by the number of the seed: what a block learns depends on the features below it, and many
seeds on the features of one run tell nothing about other runs. With --init-from-baseline all rows start from the trained
network without blocks of the same seed (trained by --baseline, or by CONFIG itself) and are then trained by CONFIG, `none`
as well, so that no row has fewer steps.

The test comes last in a run: choose recipes by data.val. The checkpoint tested is best.pt, chosen by data.val; or last.pt if
data.test is missing or the same as data.val, because then the test itself would have chosen best.pt.

On Kinetics the same command makes the paper's table, nine rows of five seeds (lists and folder are yours):
    python scripts/ablate_attention.py configs/kinetics400/slow_r50_8x8_nl_in1k.yaml data.train=LIST data.val=LIST \\
        data.root=FOLDER model.init=resnet50.pth --out runs/kinetics --gpus 0,1,2,3,4,5,6,7
Estimated, not measured: 118 epochs of 234,643 clips are 28 million clips, which at 250 to 400 clips/s of an H100 (64 G
multiply-adds a clip) take 20 to 30 GPU hours, and 45 runs 900 to 1,400; a run keeps 1 GB of checkpoints. No number of the
paper for this table could be verified, so none is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation_results import add_maps, read_maps, read_test, summarize, top1_text, write_results
from ablation_runs import Job, run_all
from ablation_steps import Cost, measure_steps, sizes

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.config import Config, load_config, override_config
from videornn.distributed.signals import Interrupted
from videornn.errors import UserError
from videornn.models import build_model
from videornn.models.weights import load_weights
from videornn.system.console import complain, say
from videornn.system.files import make_folder, write_text
from videornn.system.lock import run_lock
from videornn.system.memory import is_lack_of_memory
from videornn.system.text_files import read_json
from videornn.training.preflight import load_training_data
from videornn.training.resume import FREE_ON_RESUME

# row -> its settings of model.attention, and the weights that it gives the values
ROWS = {
    "none": ({"kind": "none"}, "no block"),
    "nl": ({"kind": "nl"}, "softmax(q k / sqrt D): its two terms multiplied"),
    "pairwise": ({"kind": "pairwise"}, "softmax(whitened q k / (sqrt D tau))"),
    "unary": ({"kind": "unary"}, "softmax(W_m x)"),
    "nl_add": ({"kind": "nl_add"}, "NL, mul -> add: softmax(pairwise) + softmax(unary)"),
    "nl_own_mask": ({"kind": "nl_own_mask"}, "NL, W_k -> W_m: softmax(pairwise + W_m x)"),
    "dnl": ({"kind": "dnl"}, "softmax(whitened q k / (sqrt D tau)) + softmax(W_m x)"),
    "gc": ({"kind": "gc", "gate": "norm"}, "softmax(W_m x) of x itself, then a bottleneck"),
    "dnl_learnt": ({"kind": "dnl", "scale": "learnt"}, "DNL, q and k of one embedding and one length, a learnt scale"),
}
BASELINE = "baseline"
SET_BY_ROWS = ("model.attention.kind=", "model.attention.scale=", "model.attention.temperature=")
# settings that may differ between starts of an ablation: they change speed and output, not weights or what is tested
FREE = ("test.batch_size", *(key for key in FREE_ON_RESUME if not key.startswith(("test", "data.test", "data.val"))))
NOTES = [
    "Top-1: mean and standard deviation over the seeds.",
    "Differences are paired, video by video and seed by seed. Their 95 % interval is that of a bootstrap that draws videos "
    "and seeds anew, 10,000 times: what another seed, or another test set of this kind, might have given.",
    "p: McNemar's exact test of each seed by itself, the smallest and the largest (ablation.json has all). It says whether "
    "two trained networks differ, not whether two blocks do: networks of two seeds of one block can differ as well.",
    "Multiply-adds: of the forward pass of one clip of training size.",
    "Maps: the share of the places that one in effect covers (1: all alike), and how much those of two points differ (0: "
    "not at all), on a training clip at the last step; the least and the most of the seeds.",
]


def main() -> int:
    arguments = _arguments()
    try:
        _check(arguments)
        make_folder(arguments.out)
        with run_lock(arguments.out) as unlocked:
            if unlocked:
                say(unlocked)
            ablate(arguments)
    except UserError as error:
        complain(str(error))
        return 2
    except Interrupted as stop:
        complain(f"{stop}; the same command goes on")
        return stop.exit_code
    except KeyboardInterrupt:
        complain("stopped; the same command goes on")
        return 130
    return 0


def ablate(arguments: argparse.Namespace) -> None:
    """Train and test all rows, compare them, and write the results.

    Raises:
        UserError: wrong input, or a run that failed.
        Interrupted: a signal; what is done so far is compared and written.
    """
    config = load_config(arguments.config, arguments.overrides)
    if config.data.test is None and config.data.val is None:
        raise UserError("there is nothing to test on: give data.test=LIST_OR_FOLDER")
    _, config = load_training_data(config)  # says what is missing, and counts the classes
    configs = {row: override_config(config, _settings(row)) for row in arguments.rows}
    costs = sizes(configs)  # also finds places that the network does not have
    checkpoint = arguments.checkpoint or _checkpoint(config)
    _remember(arguments, config, checkpoint)
    jobs = _jobs(arguments, config, checkpoint)
    slots = [gpus for gpus in arguments.gpus or [None] for _ in range(arguments.jobs)]
    baselines = ", and the baselines" if arguments.init_from_baseline else ""
    say(
        f"{len(jobs)} runs: {len(arguments.rows)} rows of {arguments.seeds} seeds{baselines}; "
        f"{sum(job.done for job in jobs)} are done, {len(slots)} at a time"
    )
    stop, failed = run_all(jobs, slots)
    device = None
    if arguments.step_rounds and all(job.done for job in jobs):
        costs, device = _with_steps(arguments, configs, costs)
    document = _document(arguments, config, jobs, costs, checkpoint, device)
    for name, row in document["rows"].items():
        say(f"{name:12s} {top1_text(row, arguments.seeds)}")
    if document["rows"]:
        say(*(f"wrote {path}" for path in write_results(arguments.out, document)))
    num_done = sum(job.done for job in jobs)
    if stop:
        raise Interrupted(stop, f"with {num_done} of {len(jobs)} runs done")
    if failed:
        names = ", ".join(job.name for job in failed)
        raise UserError(f"{num_done} of {len(jobs)} runs are done; failed: {names}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from the config's on")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on each device")
    parser.add_argument("--gpus", nargs="+", metavar="GPU", help="numbers; those with commas between are of one run")
    parser.add_argument("--init-from-baseline", action="store_true", help="start from trained networks without blocks")
    parser.add_argument("--baseline", type=Path, metavar="CONFIG", help="how those are trained; by default as the rows")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="which one of a run is tested (see above)")
    parser.add_argument("--step-rounds", type=int, default=10, help="training steps that are timed at the end; 0: none")
    parser.add_argument("--step-clips", type=int, help="clips of such a step; by default those that a run has at once")
    return parser.parse_intermixed_args()


def _check(arguments: argparse.Namespace) -> None:
    """Raise UserError for errors that argparse lets through, and sort the rows."""
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        raise UserError(f"--rows {unknown[0]}: there is no such row; there are {', '.join(ROWS)}")
    arguments.rows = [row for row in ROWS if row in arguments.rows]
    for option, least in (("seeds", 1), ("jobs", 1), ("step_clips", 1), ("step_rounds", 0)):
        if (value := getattr(arguments, option)) is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')} {value}: give {least} or more")
    if taken := [text for text in arguments.overrides if text.startswith(SET_BY_ROWS)]:
        raise UserError(f"{taken[0]}: kind, scale and temperature of the blocks are what the rows differ in; see --rows")
    if odd := [gpus for gpus in arguments.gpus or () if not all(gpu.isdecimal() for gpu in gpus.split(","))]:
        raise UserError(f"--gpus {odd[0]}: give numbers of GPUs, such as 0 1, or 0,1 2,3")
    if arguments.baseline and not arguments.init_from_baseline:
        raise UserError(f"--baseline {arguments.baseline}: needs --init-from-baseline")


def _settings(row: str) -> list[str]:
    """Return the settings of a row; scale and temperature are those of the kind unless the row sets them."""
    settings = {"scale": "paper", "temperature": "null", **ROWS[row][0]}
    return [f"model.attention.{key}={value}" for key, value in settings.items()]


def _checkpoint(config: Config) -> str:
    """Return the checkpoint that was not chosen by the test videos."""
    return "best" if config.data.test is not None and config.data.val not in (None, config.data.test) else "last"


def _remember(arguments: argparse.Namespace, config: Config, checkpoint: str) -> None:
    """Record what the runs of a folder have in common; raises UserError if existing ones differ."""
    common = {
        **dict(_flat(config.model_dump(mode="json"))),
        "--init-from-baseline": arguments.init_from_baseline,
        "--baseline": arguments.baseline and str(arguments.baseline),
        "--checkpoint": checkpoint,
    }
    record = arguments.out / "settings.json"
    if not record.is_file():
        write_text(record, json.dumps(common, indent=2) + "\n")
    before = read_json(record)
    for key, value in common.items():
        if before.get(key) != value and not key.startswith(FREE):
            raise UserError(
                f"{arguments.out} holds runs with {key} {before.get(key)}, not {value}: give that, or choose another --out"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield values by dotted key."""
    for key, value in values.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


def _jobs(arguments: argparse.Namespace, config: Config, checkpoint: str) -> list[Job]:
    """List all runs, seed by seed, so that early ones can be compared; make the weights that they start from."""
    jobs, runs = [], arguments.out / "runs"
    for seed in range(config.seed, config.seed + arguments.seeds):
        folder, baseline = f"seed{seed}", None
        start = _common_weights(arguments.out / f"init/seed{seed}.pt", config, seed)

        def settings(row: str, start: Path, seed: int = seed) -> list[str]:
            return [*arguments.overrides, f"seed={seed}", *_settings(row), f"model.init={start}"]

        if arguments.init_from_baseline:
            recipe = arguments.baseline or arguments.config
            baseline = Job(BASELINE, seed, runs / BASELINE / folder, recipe, settings("none", start), checkpoint)
            start = baseline.tested
            jobs.append(baseline)
        jobs += [
            Job(row, seed, runs / row / folder, arguments.config, settings(row, start), checkpoint, baseline)
            for row in arguments.rows
        ]
    return jobs


def _common_weights(path: Path, config: Config, seed: int) -> Path:
    """Make a file of the weights that all rows of a seed start from: those of model.init, and new ones for the rest."""
    if not path.is_file():
        config = override_config(config, [*_settings("none"), f"seed={seed}"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(config.model)
        if config.model.init:
            own = config.model.init.replace("{seed}", str(seed))
            say(*load_weights(model, own, inflation=config.model.inflation).lines())
        content = {"model": model.state_dict(), "step": 0, "config": config.model_dump(mode="json"), "class_names": []}
        save_checkpoint(path, content)
    return path


def _with_steps(
    arguments: argparse.Namespace, configs: dict[str, Config], costs: dict[str, Cost]
) -> tuple[dict[str, Cost], dict[str, Any] | None]:
    """Add time and memory of a step to the costs, and say where they were measured; kept in steps.json for the next time."""
    section, gpus = next(iter(configs.values())).train, (arguments.gpus or [""])[0]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[0]
    at_once = max(section.batch_size // (section.accumulate * (gpus.count(",") + 1)), 1)
    asked = {
        "clips": arguments.step_clips or at_once,
        "rounds": arguments.step_rounds,
        "precision": section.precision,
        "rows": list(configs),
    }
    record = arguments.out / "steps.json"
    kept = read_json(record) if record.is_file() else {}
    if kept.get("asked") != asked:
        say(f"timing {asked['rounds']} training steps of {asked['clips']} clips of every row")
        try:
            steps, device = measure_steps(configs, num_clips=asked["clips"], rounds=asked["rounds"])
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            complain(f"steps of {asked['clips']} clips need more memory than there is, so none is timed: lower --step-clips")
            return costs, None
        kept = {"asked": asked, "device": device, "steps": steps}
        write_text(record, json.dumps(kept, indent=2) + "\n")
    timed = {row: replace(cost, step_ms=kept["steps"][row][0], step_mb=kept["steps"][row][1]) for row, cost in costs.items()}
    return timed, {**asked, "device": kept["device"]}


def _document(
    arguments: argparse.Namespace,
    config: Config,
    jobs: list[Job],
    costs: dict[str, Cost],
    checkpoint: str,
    step: dict[str, Any] | None,
) -> dict[str, Any]:
    """Collect the content of the result files in plain values."""
    tests: dict[str, dict[int, Any]] = {}
    maps: dict[str, dict[int, Any]] = {}
    for row in (BASELINE, *arguments.rows):
        runs = {job.seed: job.folder for job in jobs if job.row == row and job.done}
        if runs:
            tests[row] = {seed: read_test(folder / "test") for seed, folder in runs.items()}
            maps[row] = {seed: read_maps(folder) for seed, folder in runs.items()}
    numbers = summarize(tests, costs)
    add_maps(numbers["rows"], maps)
    notes = list(NOTES)
    if arguments.seeds == 1:
        notes.append("With one seed all intervals are over videos alone: another seed can lie outside of them.")
    if step:
        notes.append(
            f"Step: median time of a training step of {step['clips']} clips in {step['precision']}, and the most that it "
            f"holds beyond weights, momentum and clips; {step['device']}, rows taking turns in one process after all runs."
        )
    if config.data.test in (None, config.data.val):
        notes.append("The test videos are those of the validation, so that last.pt is tested and not best.pt.")
    if numbers["num_left_out"]:
        notes.append(f"{numbers['num_left_out']} videos that not all runs could score are left out of all numbers.")
    if BASELINE in tests:
        notes.append("baseline: the network that the rows start from, as it was trained.")
    return {
        "title": f"{arguments.config.name}: {numbers['num_videos']} test videos, {arguments.seeds} seeds",
        "about": _about(arguments, config, checkpoint, numbers["num_videos"]),
        "config": str(arguments.config),
        "overrides": arguments.overrides,
        "init_from_baseline": arguments.init_from_baseline,
        "checkpoint": checkpoint,
        "seeds": list(range(config.seed, config.seed + arguments.seeds)),
        "step": step,
        "formulas": {BASELINE: "no block, before", **{row: formula for row, (_, formula) in ROWS.items()}},
        "notes": notes,
        **numbers,
    }


def _about(arguments: argparse.Namespace, config: Config, checkpoint: str, num_videos: int) -> str:
    """Write a paragraph on what the rows have in common."""
    attention, test = config.model.attention, config.test
    places = ", ".join(
        f"{stage} {at if at == 'all' else ' and '.join(map(str, at))}" for stage, at in attention.places.items()
    )
    start = "trained network without blocks" if arguments.init_from_baseline else "initial weights"
    start += f" (`{config.model.init}`)" if config.model.init else ""
    return (
        f"`{arguments.config.name}`{''.join(f' `{text}`' for text in arguments.overrides)}. {config.model.name} "
        f"r{config.model.depth}, blocks after {places}, keys pooled {attention.key_pool}, axes {attention.axes}, gate "
        f"{attention.gate}; {config.train.epochs} epochs, {arguments.seeds} seeds. All rows of a seed start from the same "
        f"{start} and see the same clips in the same order. {num_videos} videos of `{config.data.test or config.data.val}`, "
        f"{config.model.num_classes} classes, {test.num_clips} x {test.num_crops} views, {checkpoint}.pt."
    )


if __name__ == "__main__":
    sys.exit(main())
