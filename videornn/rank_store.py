"""The store that torchrun (or rank 0) keeps for all ranks; here for what must not go through a process group.

torch is imported inside functions: the command line uses this module before it needs torch.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

STORE_SECONDS = 5.0  # that the store may take to answer


def several_ranks() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def store_address() -> str:
    """HOST:PORT of the store."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def open_store(prefix: str) -> dist.Store:
    """A connection of its own to the store, with keys of its own; raises dist.DistError if nobody keeps one."""
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=STORE_SECONDS),
    )
    return dist.PrefixStore(f"videornn/{prefix}", store)


def first_to_say(topic: str) -> bool:
    """Whether this rank is the first of all that wants to say this; each life of an elastic run says it anew."""
    if not several_ranks():
        return True
    import torch.distributed as dist

    try:
        store = open_store(f"said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
        return store.add(topic, 1) == 1
    except dist.DistError:
        return True  # rather twice than never
