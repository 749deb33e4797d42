"""Check whether a network uses the relation of cue and object, by testing it on the same videos with things left out.

    python scripts/context_control.py runs/context/checkpoints/best.pt data/context [--out runs/context_control]

For a network trained on `videornn data synthetic data/context --task context`, it draws the test videos of that set again
without the cue, the distractor, both of these, the object asked for, the other one, or both objects, and tests on each; then
on shuffled and on single frames of the set. The last line is JSON. A network that cannot relate the two parts finds the two
shapes that there are, and is right in 50 %; so is any network without cue and distractor. Without the objects it is right in
25 %; with only the object asked for, it is enough to recognise shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from videornn.data.synthetic.context_shapes import ASKED, CUE, DISTRACTOR, OTHER
from videornn.data.synthetic.make import make_synthetic
from videornn.errors import UserError
from videornn.evaluation.evaluate import evaluate
from videornn.system.console import complain
from videornn.system.text_files import read_json

LEFT_OUT = {
    "the cue": (CUE,),
    "the distractor": (DISTRACTOR,),
    "cue and distractor": (CUE, DISTRACTOR),
    "the object asked for": (ASKED,),
    "the other object": (OTHER,),
    "both objects": (ASKED, OTHER),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/context_control"))
    arguments = parser.parse_args()
    try:
        control(arguments)
    except UserError as error:
        complain(str(error))
        return 2
    return 0


def control(arguments: argparse.Namespace) -> None:
    """Test on the set as it is and with things left out; raises UserError if there is no such set or checkpoint."""
    record = arguments.set / "synthetic.json"
    made_with = read_json(record) if record.is_file() else {}
    if made_with.get("task") != "context":
        raise UserError(f"{arguments.set} is no set of `videornn data synthetic {arguments.set} --task context`; give one")
    counts = {"num_train": 1, "num_val": 1, "num_test": made_with["num_test"]}  # the same seed, so the same test videos
    tests = {"as they are": [f"data.test={arguments.set / 'test.txt'}"]}
    for name, without in LEFT_OUT.items():
        folder = arguments.out / f"without_{name.replace(' ', '_')}"
        make_synthetic(folder, **counts, seed=made_with["seed"], task="context", without=without)
        tests[f"without {name}"] = [f"data.test={folder / 'test.txt'}"]
    for order in ("shuffled", "single"):
        tests[f"frames {order}"] = [*tests["as they are"], f"data.frame_order={order}"]
    result = {}
    for name, overrides in tests.items():
        metrics, _ = evaluate(arguments.checkpoint, overrides, arguments.out / "test", lambda done, total: None)
        result[name] = round(metrics["video_top1"], 2)
        print(f"{name}: top-1 {result[name]} %", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
