"""Compare the numbers of two runs, record by record of metrics.jsonl, after a change that must not alter results.

python scripts/compare_runs.py RUN_A RUN_B [--rtol 1e-4]

Records are matched by kind and step; loss, top-1, lr and all their other numbers must agree to --rtol, in the six digits
that a run writes. Numbers that depend on the clock or the machine (clips/s, waits, memory, ETA, MFU) are left out. The last
line is one JSON document; the exit code is 0 if the runs are equal, 1 if they differ, 2 for wrong input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videornn.errors import UserError
from videornn.system.text_files import NoFile, parse_json, read_bytes

CLOCK_WORDS = {"second", "seconds", "ms", "wait", "memory", "eta", "mfu"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One number of one record: its values, None where a run lacks it, and their difference."""

    step: int
    kind: str
    number: str
    a: Any
    b: Any

    @property
    def relative(self) -> float:
        """|a - b| over the larger of |a| and |b|; infinite if one is missing, no number, or alone in being finite."""
        if self.a == self.b or (self.a != self.a and self.b != self.b):  # NaN is not equal to itself
            return 0.0
        if not (_is_finite(self.a) and _is_finite(self.b)):
            return math.inf
        return abs(self.a - self.b) / max(abs(self.a), abs(self.b))


def read_records(run: Path) -> dict[tuple[int, str], Record]:
    """Read the records of a run folder by (step, kind), without numbers that depend on the clock.

    Raises:
        UserError: no run folder, a line that is no record, two records of one kind and step, or none at all.
    """
    path = run / "metrics.jsonl"
    try:
        lines = read_bytes(path).splitlines()
    except (NoFile, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no metrics.jsonl") from None
    records: dict[tuple[int, str], Record] = {}
    for number, line in enumerate(lines, 1):
        record = parse_json(line, f"{path}:{number}")
        try:
            key = int(record.pop("step")), str(record.pop("kind"))
        except (ValueError, AttributeError, TypeError, KeyError, OverflowError):
            shown = line[:60].decode(errors="replace")
            raise UserError(f"{path}:{number}: not a record with kind and step: {shown!r}") from None
        if key in records:
            raise UserError(f"{path}:{number}: a second {key[1]} record of step {key[0]}")
        records[key] = {name: value for name, value in record.items() if CLOCK_WORDS.isdisjoint(name.split("_"))}
    if not records:
        raise UserError(f"{path} has no records; has the run taken a step?")
    return records


def compare(a: dict[tuple[int, str], Record], b: dict[tuple[int, str], Record]) -> list[Difference]:
    """List every number that either run has, by step, equal or not."""
    compared = []
    for step, kind in sorted(a.keys() | b.keys()):
        ours, theirs = a.get((step, kind), {}), b.get((step, kind), {})
        compared += [Difference(step, kind, name, ours.get(name), theirs.get(name)) for name in ours | theirs]
    return compared


def report(compared: list[Difference], rtol: float) -> bool:
    """Print the first difference, a table and the JSON document; return True if the runs are equal."""
    first = next((difference for difference in compared if difference.relative > rtol), None)
    if first:
        print(f"first difference: {first.kind} step {first.step}, {first.number}: {_text(first.a)} and {_text(first.b)}")
    else:
        print(f"equal within {rtol:g}" if rtol else "equal")
    largest: dict[str, Difference] = {}
    for difference in compared:
        name = f"{difference.kind} {difference.number}"
        if name not in largest or difference.relative > largest[name].relative:
            largest[name] = difference
    print(f"{'number':24s} {'largest relative difference':>28s} {'at step':>9s}")
    for name, difference in largest.items():
        print(f"{name:24s} {difference.relative:28.3g} {difference.step if difference.relative else '-':>9}")
    document = {
        "equal": first is None,
        "rtol": rtol,
        "num_compared": len(compared),
        "first_difference": first and {"step": first.step, "kind": first.kind, "number": first.number},
        # null: missing, or finite in only one run
        "largest_relative_difference": {
            name: difference.relative if math.isfinite(difference.relative) else None for name, difference in largest.items()
        },
    }
    print(json.dumps(document))
    return first is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--rtol", type=float, default=0.0, help="largest relative difference that counts as equal")
    arguments = parser.parse_args()
    try:
        if not arguments.rtol >= 0:
            raise UserError(f"--rtol must be at least 0, got {arguments.rtol:g}")
        compared = compare(*(read_records(run) for run in arguments.runs))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if report(compared, arguments.rtol) else 1


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number within the range of floats: JSON integers have no limit."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def _text(value: Any) -> str:
    return "missing" if value is None else f"{value}"


if __name__ == "__main__":
    sys.exit(main())
