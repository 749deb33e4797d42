"""Code shared by the examples of segmentation and detection: blocks by name, one training for all, and the numbers."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videornn.errors import UserError
from videornn.models import ATTENTION_KINDS

BLOCKS = {"none": None, **ATTENTION_KINDS, "dnl_learnt": partial(ATTENTION_KINDS["dnl"], scale="learnt")}
TEST = 2**31  # seed of the test pictures, which no run uses
DRAWN_TESTS = 200
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_block(name: str, channels: int) -> nn.Module:
    """Build the block for pictures, which begins as the identity."""
    build = BLOCKS[name]
    return nn.Identity() if build is None else build(channels, ndim=2)


def add_options(parser: argparse.ArgumentParser, *, steps: int, size: int, batch: int) -> None:
    """Add the options of both examples, with defaults for the drawn pictures."""
    at_least_one = partial(_whole_number, at_least=1)
    parser.add_argument("--block", nargs="+", choices=BLOCKS, default=["none", "dnl"], help="trained in turn")
    parser.add_argument("--seeds", type=at_least_one, default=1, metavar="N")
    parser.add_argument("--steps", type=at_least_one, default=steps)
    parser.add_argument("--batch", type=partial(_whole_number, at_least=2), default=batch, help="pictures a step")
    parser.add_argument("--size", type=partial(_whole_number, at_least=32), default=size, help="side of pictures, pixels")
    parser.add_argument("--num-test", type=at_least_one, help=f"test pictures; by default {DRAWN_TESTS} drawn ones, or all")
    parser.add_argument("--lr", type=_learning_rate, default=1e-3)
    parser.add_argument("--root", help="the folder of a data set that is here; nothing is ever downloaded")


def _whole_number(text: str, at_least: int) -> int:
    if (number := int(text)) < at_least:
        raise argparse.ArgumentTypeError(f"{number} is below {at_least}")
    return number


def _learning_rate(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def train(network: nn.Module, loss_of: Callable[[int], Tensor], arguments: argparse.Namespace, name: str) -> None:
    """Train with AdamW, the learning rate warmed up and then falling to zero along a cosine.

    Args:
        loss_of: returns the loss of a step.
        name: printed with the loss.
    """
    warm_up = max(arguments.steps // 20, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / arguments.steps))
    )
    network.train()
    start, recent = time.monotonic(), []
    for step in range(arguments.steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % max(arguments.steps // 10, 1) == 0:
            seconds = time.monotonic() - start
            print(f"{name}: step {step + 1}, loss {statistics.mean(recent):.3f}, {seconds:.0f} s", flush=True)
            recent.clear()


def on_device(value: Any) -> Any:
    """Move tensors, and lists, tuples and dicts of them, to the device of the network."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, dict):
        return {key: on_device(part) for key, part in value.items()}
    return [on_device(part) for part in value]


def batches(read: Callable[[int], tuple], count: int, size: int) -> Iterator[list[tuple]]:
    """Yield samples 0 to count - 1, size at a time."""
    for first in range(0, count, size):
        yield [read(index) for index in range(first, min(first + size, count))]


def compare(run: Callable[[str, int], dict[str, float]], arguments: argparse.Namespace, measure: str) -> None:
    """Run every block with every seed, print its numbers, and finally all of them as a line of JSON.

    Args:
        run: trains and tests (block, seed) -> numbers in per cent.
        measure: the number to average and compare with `none`.
    """
    results: dict[str, list[dict[str, float]]] = {block: [] for block in dict.fromkeys(arguments.block)}
    for seed in range(arguments.seeds):
        for block, numbers in results.items():
            found = {name: round(number, 2) for name, number in run(block, seed).items()}
            numbers.append(found)
            print(
                f"{block}, seed {seed}: " + ", ".join(f"{name} {number:.2f} %" for name, number in found.items()), flush=True
            )
    document = {}
    for block, numbers in results.items():
        of_seeds = [found[measure] for found in numbers]
        document[block] = {"seeds": numbers, f"{measure}_mean": round(statistics.mean(of_seeds), 2)}
        if block != "none" and "none" in results:
            differences = [ours - found[measure] for ours, found in zip(of_seeds, results["none"], strict=True)]
            document[block]["better_than_none"] = [round(difference, 2) for difference in differences]
            document[block]["better_than_none_mean"] = round(statistics.mean(differences), 2)
    print(json.dumps(document))


def need_root(arguments: argparse.Namespace) -> str:
    """Return the folder of the data set; raises UserError if none is given."""
    if arguments.root is None:
        raise UserError(f"--data {arguments.data} needs --root FOLDER, where it lies; nothing is downloaded")
    return arguments.root
