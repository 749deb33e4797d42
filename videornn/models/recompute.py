"""Activation checkpointing that counts a batch once: less memory for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# the compiler takes no context; that of torch 2.6 updates statistics in both runs, that of 2.15 in the first alone. Where it
# is not known to, it is left to save memory by its own means
COMPILER_COUNTS_ONCE = torch.__version__ >= "2.15"  # compared as versions


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Tensor:
    """function(x), of which only x is kept for the backward pass; the rest is computed once more there.

    Outputs, gradients and buffers are those of function(x).

    Args:
        module: holds the batch norms that function runs, if it runs any.
    """
    if not torch.is_grad_enabled():
        return function(x)
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False) if COMPILER_COUNTS_ONCE else function(x)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _Uncounted(module)))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast turned off on a device; the meta device, on which shapes are tried, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _Uncounted:
    """Batch norms see this batch as before but do not count it again. Entered anew for every backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        not_kept = torch.tensor(0)  # some kinds of norm need a counter
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, not_kept

    def __exit__(self, *exception: object) -> None:
        for norm, (momentum, num_batches) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
