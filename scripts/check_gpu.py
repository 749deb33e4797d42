"""Check videornn on this machine's GPU: numbers of kernels, steps and runs, each with its limit.

    python scripts/check_gpu.py [--minutes 10] [--out runs/check_gpu] [--only step attention]

It needs no data set and no internet: clips are drawn on the spot. Sections run one after the other, each in its own process,
so that one that crashes, hangs or fills the GPU does not affect the others; each has its share of the minutes, and unused
time goes to later ones. A section ends with one JSON object on a line, also in OUT/check_gpu.jsonl; at the end comes a table
in Markdown, also in OUT/check_gpu.md. The verdict of a section is

    pass     every number that has a limit is within it
    fail     some are not, or the section raised an error
    number   there is no limit to compare with
    cut      its time ended before it could show anything

The exit code is 0 if no section fails, 1 if one does, 2 without a GPU. --device cpu --minutes 2 runs the sections on toy
networks, as the tests do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import gpu_sections.kernels as kernels
import gpu_sections.runs as runs
import gpu_sections.steps as steps
import gpu_sections.versions as versions
from gpu_sections.scope import Row, Scope

# by name, in the order of running: the function of a section, and its share of the time
SECTIONS: dict[str, tuple[Callable[[Scope], Iterator[Row]], float]] = {
    "versions": (versions.versions, 1),
    "step": (steps.step, 4),
    "waits": (steps.waits, 1),
    "cuda tests": (runs.cuda_tests, 6),
    "attention": (kernels.attention, 2.5),
    "profile": (steps.profile, 2),
    "losses": (steps.losses, 2),
    "convolutions": (kernels.convolutions, 4),
    "norms and pools": (kernels.norms_and_pools, 1),
    "resume": (runs.resume, 3),
    "compiled step": (steps.compiled_step, 4),
    "test": (runs.test, 2),
}
GRACE = 20.0  # seconds that a section over its time has to finish its row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all sections together")
    parser.add_argument("--out", type=Path, default=Path("runs/check_gpu"))
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks no driver, which would make forks unusable
    # a parent that has not touched the GPU can fork, and sections then start without importing anything again
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    if options.device == "cuda" and not _in_child(context, _has_gpu):
        print("no GPU: PyTorch finds none here (`videornn doctor` says why); --device cpu --minutes 2 shows the sections")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    names, results = [name for name in SECTIONS if name in options.only], []
    with open(options.out / "check_gpu.jsonl", "w", encoding="utf-8") as file:
        for number, name in enumerate(names):
            function, weight = SECTIONS[name]
            share = weight / sum(SECTIONS[later][1] for later in names[number:])
            scope = Scope(options.device, time.monotonic() + share * (end - time.monotonic()), options.out)
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(_run_section(context, name, function, scope))
            line = json.dumps(results[-1])
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
    table = markdown(results)
    (options.out / "check_gpu.md").write_text(table, encoding="utf-8")
    print(table)
    return int(any(result["verdict"] == "fail" for result in results))


def _run_section(context, name: str, function: Callable[[Scope], Iterator[Row]], scope: Scope) -> dict:
    """Collect the rows of a section until it ends, fails, dies or is over its time."""
    start = time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_section, args=(function, scope, sender))
    process.start()
    sender.close()
    rows, error = [], "was cut off: its time was over"
    try:
        while receiver.poll(max(0.0, scope.deadline + GRACE - time.monotonic())):
            kind, value = receiver.recv()
            if kind == "row":
                rows.append(value)
            else:
                error = value
                break
    except EOFError:
        process.join(5)
        error = f"its process died (exit code {process.exitcode})"
    _kill_with_children(process)
    return {
        "section": name,
        "verdict": verdict(rows, error),
        "seconds": round(time.monotonic() - start, 1),
        "rows": rows,
        **({"error": error} if error else {}),
    }


def verdict(rows: list[Row], error: str) -> str:
    """Return pass, fail, number or cut, from the rows of a section and its error ("" for none)."""
    cut = error.startswith("was cut off")
    limited = [row["ok"] for row in rows if "ok" in row]
    if not all(limited) or (error and not cut):
        return "fail"
    if limited:
        return "pass"
    return "number" if rows else "cut"


def _section(function: Callable[[Scope], Iterator[Row]], scope: Scope, sender: Connection) -> None:
    """Send the rows of a section from its process, then its error or ""."""
    try:
        if hasattr(os, "setpgid"):
            os.setpgid(0, 0)  # so that commands it starts can be ended with it
        scope.start()
        for row in function(scope):
            sender.send(("row", row))
            if scope.is_over():
                sender.send(("end", "was cut off: its time was over"))
                return
        sender.send(("end", ""))
    except BaseException as error:  # any error belongs in the report, and the next section must run
        traceback.print_exc()
        sender.send(("end", f"{type(error).__name__}: {str(error)[:500]}"))


def _kill_with_children(process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):  # on Windows; gone; not yet in a group of its own
        process.kill()
    process.join()


def _in_child(context, function: Callable[[], bool]) -> bool:
    process = context.Process(target=_exit_code, args=(function,))
    process.start()
    process.join()
    return process.exitcode == 0


def _exit_code(function: Callable[[], bool]) -> None:
    sys.exit(0 if function() else 1)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def markdown(results: list[dict]) -> str:
    """Return a table of the sections, then one of the rows of each."""
    lines = ["| section | verdict | seconds | remark |", "|---|---|---|---|"]
    for result in results:
        wrong = [row["what"] for row in result["rows"] if row.get("ok") is False]
        remark = "; ".join(
            [*([result["error"]] if "error" in result else []), *([f"not ok: {', '.join(wrong)}"] if wrong else [])]
        )
        lines.append(f"| {result['section']} | {result['verdict']} | {result['seconds']} | {_cell(remark)} |")
    for result in results:
        lines += ["", f"**{result['section']}**", ""]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in result["rows"]:
            groups.setdefault(tuple(row), []).append(row)
        for columns, rows in groups.items():
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows] + [""]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "", True: "yes", False: "no"}[value]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
