"""Files of tensors, changed in many ways, for the reader of pickles: `python tests/mutated_pickles.py 100000 [SEED]`."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import sys
import tempfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

from videornn.errors import UserError
from videornn.models.tensor_files import read_tensors

MORE_BYTES = 2**30  # of memory that reading files of a few KB may set aside
# opcodes that make, copy, call, build or put aside something
OPCODES = b"().0123NIJKMLCB\x8a\x8b\x8e\x96cR\x93\x81bqrhjt\x85\x86\x87}u]ael\x8f\x90Q\x94s"


def whole_files() -> list[bytes]:
    """One file of every kind: torch.save's archive, what torch wrote before 1.6, pickles of three protocols."""
    tensors = OrderedDict(weight=torch.arange(6.0).view(2, 3).t(), half=torch.ones(3, dtype=torch.bfloat16))
    tensors["bytes"] = torch.ones(4, dtype=torch.uint16)
    meta = {"epoch": 1, "top1": np.float64(0.7), "history": np.arange(3), "steps": Counter([1, 1]), "set": {1, 2}}
    arrays = {
        "a": np.ones((2, 3), np.float32),
        "b": np.zeros(0, np.int64),
        "c": np.arange(3, dtype=">i2"),
        "lr": np.float32(1),
    }
    files = []
    for old in (False, True):
        file = io.BytesIO()
        torch.save({"state_dict": tensors, "meta": meta}, file, _use_new_zipfile_serialization=not old)
        files.append(file.getvalue())
    return files + [pickle.dumps({"blobs": arrays, "meta": meta}, protocol) for protocol in (2, 4, 5)]


def with_pickle(archive: bytes, change) -> bytes:
    """An archive whose data.pkl is changed, with checksums that are right."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(changed, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return changed.getvalue()


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a stretch taken out, put in twice or moved, or opcodes put in."""
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        end = min(end, start + rng.choice([1, 4, 40]))
        part, place = content[start:end], rng.randrange(len(content) + 1)
        new = rng.choice(
            [rng.randbytes(len(part)), bytes([rng.choice(OPCODES)]), bytes(rng.choices(OPCODES, k=4)), b"", part * 2]
        )
        content = content[:start] + new + content[end:]
        if rng.random() < 0.3:
            content = content[:place] + part + content[place:]
    return content


def read_mutants(number: int, seed: int = 0) -> Counter[str]:
    """Read so many changed files; counts how it ended. Raises whatever is not a UserError."""
    rng, files, ends = random.Random(seed), whole_files(), Counter()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        for _ in range(number):
            whole = rng.choice(files)
            zipped = whole.startswith(b"PK") and rng.random() < 0.8
            path.write_bytes(with_pickle(whole, lambda content: mutated(content, rng)) if zipped else mutated(whole, rng))
            try:
                read_tensors(path)
                ends["read"] += 1
            except UserError as error:
                ends[str(error).replace(os.fspath(path), "").strip(" :").partition(" (")[0][:60]] += 1
    return ends


if __name__ == "__main__":
    print(read_mutants(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0))
