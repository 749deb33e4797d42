"""Precise batch norm: statistics for the current weights, instead of running averages over changing weights.

Wu & Johnson 2021, section 3, arXiv:2105.07576.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from videornn.distributed import ranks
from videornn.models.forward import Precision, autocast

with warnings.catch_warnings():  # fvcore scripts functions as it is imported, which torch says is out of date
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats


@torch.no_grad()
def update_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], *, num_batches: int, precision: Precision = "fp32"
) -> None:
    """Replace running means and variances by those of the next num_batches batches of every rank, all ranks together.

    Meanwhile norms normalise by their batch, as in training; dropout and dropped paths are off, as in evaluation. Frozen
    norms, weights, counters of batches, random states and modes do not change. Variances of synchronised norms are too
    small by a share of at most 1 / n, where n is the number of values of a channel in a rank's batch.

    Args:
        model: the network itself, without DistributedDataParallel or torch.compile around it.
        batches: clips float [B, 3, T, H, W], normalised, on the model's device; B is the same on every rank.
        precision: fp32, or bf16 or fp16 for autocast.

    Raises:
        ValueError: num_batches is below 1.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches must be at least 1, got {num_batches}")
    was_training = model.training
    norms = get_bn_modules(model.train())
    before = [(norm.running_mean, norm.running_var, norm.num_batches_tracked.clone()) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
    with autocast(next(model.parameters()).device, precision):
        update_bn_stats(model, batches, num_batches)
    for norm, (mean, variance, counter) in zip(norms, before, strict=True):
        # fvcore replaces the tensors, which a compiled network would not see
        norm.running_mean, norm.running_var = mean.copy_(norm.running_mean), variance.copy_(norm.running_var)
        norm.num_batches_tracked.copy_(counter)
    model.load_state_dict(statistics_of_all_ranks(model), strict=False)
    model.train(was_training)


@torch.no_grad()
def statistics_of_all_ranks(model: nn.Module) -> dict[str, Tensor]:
    """Compute running means and variances, by name, of all ranks together, which count equally; collective.

    Values that are equal on all ranks keep their bits.
    """
    means, variances = (
        {name: buffer for name, buffer in model.named_buffers() if name.endswith(end)}
        for end in ("running_mean", "running_var")
    )
    mean, variance = (torch.cat(list(found.values())).double() for found in (means, variances))
    total = ranks.sum_over_ranks(mean.clone()) / ranks.num_ranks()
    spread = ranks.sum_over_ranks(variance + (mean - total).square()) / ranks.num_ranks()
    sizes = [len(buffer) for buffer in means.values()]
    averages = zip([*means.items(), *variances.items()], [*total.split(sizes), *spread.split(sizes)], strict=True)
    return {name: average.to(buffer.dtype) for (name, buffer), average in averages}
