"""The store that torchrun (or rank 0) keeps for all ranks, used for what must not go through a process group.

torch is imported inside functions: the command line uses this module before it needs torch.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from videornn.errors import RankFailure

if TYPE_CHECKING:
    import torch.distributed as dist

STORE_SECONDS = 5.0  # the longest that the store may take to answer


def several_ranks() -> bool:
    """Return whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def store_address() -> str:
    """Return HOST:PORT of the store."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def open_store(prefix: str, timeout_seconds: float = STORE_SECONDS) -> dist.Store:
    """Open a new connection to the store, with separate keys; raises dist.DistError if there is no store."""
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
    )
    return dist.PrefixStore(f"videornn/{prefix}", store)


def meet(timeout_seconds: float) -> dist.Store:
    """Open torchrun's store with keys that no earlier start of this run has used.

    When torchrun restarts the ranks, it keeps its store, with the addresses of the old ranks, to which gloo would connect.
    TORCHELASTIC_RESTART_COUNT does not tell starts apart, because each node counts by itself. So rank 0 makes up a name for
    this start, and sends it in answer to the keys by which the other ranks ask, each of which is used once.

    Raises:
        RankFailure: a rank did not come in time.
    """
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, word = open_store("meet", timeout_seconds), uuid.uuid4().hex
    if rank > 0:
        store.set(f"ask/{rank}", word)
        life = store.get(f"answer/{word}").decode()
        store.set(f"came/{life}/{rank}", "")
    else:
        life, missing = word, set(range(1, num_ranks))
        deadline = time.monotonic() + timeout_seconds
        while missing:
            for other in sorted(missing):
                if store.check([f"ask/{other}"]):
                    store.set(f"answer/{store.get(f'ask/{other}').decode()}", life)
            missing = {other for other in missing if not store.check([f"came/{life}/{other}"])}
            if missing and time.monotonic() > deadline:
                names = ", ".join(map(str, sorted(missing)))
                raise RankFailure(f"of {num_ranks} ranks, these did not come within {timeout_seconds:g} s: {names}")
            time.sleep(0.02)
    return open_store(f"life/{life}", timeout_seconds)


def first_to_say(topic: str) -> bool:
    """Return whether this rank is the first of all to say this; each start of an elastic run says it again."""
    if not several_ranks():
        return True
    import torch.distributed as dist

    try:
        store = open_store(f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
        return store.add(topic, 1) == 1
    except dist.DistError:
        return True  # better twice than never
