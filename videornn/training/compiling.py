"""Use torch.compile in training: one graph for every shape of a batch, and a clear error where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from videornn.errors import UserError

NO_COMPILER = ("No working C++ compiler", "Failed to find C compiler")  # messages of torch.compile and of Triton


def compiled(model: nn.Module) -> nn.Module:
    """Compile the network, which happens at its first batch of every shape; call it inside graphs_of.

    By default torch fixes the first shape only and compiles later ones for any sizes, so that a resumed run with another
    first shape would have other graphs. For our networks that makes as many graphs, and takes longer.
    """
    network = torch.compile(model, dynamic=False)
    assert isinstance(network, nn.Module)
    return network


@contextmanager
def graphs_of(num_shapes: int) -> Iterator[None]:
    """Make room for the graphs of this many shapes, beside those that torch makes for other reasons.

    Beyond its limit of 8 graphs per function, torch continues without compiling and says so only in its log.

    Raises:
        UserError: there are still too many graphs, or no compiler.
    """
    from torch._dynamo import config  # takes seconds to import
    from torch._dynamo.exc import FailOnRecompileLimitHit

    # the names of torch 2.7 and later, or 2.6
    limit, fail = "recompile_limit", "fail_on_recompile_limit_hit"
    if not hasattr(config, limit):
        limit, fail = "cache_size_limit", "fail_on_cache_limit_hit"
    num_graphs = getattr(config, limit) + num_shapes
    try:
        # a user who tells torch to suppress errors has chosen to go on uncompiled
        with config.patch({limit: num_graphs, fail: not config.suppress_errors}):
            yield
    except FailOnRecompileLimitHit as error:
        raise UserError(
            f"train.compile: torch {torch.__version__} wants more than {num_graphs} graphs of one function for {num_shapes} "
            f"shapes of batches, as it does after other networks in the same process; begin a new one with --resume, or "
            f"leave it out (TORCH_LOGS=recompiles tells the reasons)"
        ) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_COMPILER):
            raise
        raise UserError(
            "train.compile needs a C++ compiler, and torch finds none: install g++ (or name one in CXX), or leave it out"
        ) from error
