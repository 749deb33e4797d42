"""Measure how disentangled an attention block is for one clip, in a few numbers, without building whole maps.

Letters: w_ij is the weight that query i gives key j, as a share of all its weight: |w_ij| / sum_j |w_ij|; m_j is its mean
over queries, u_j are the unary weights; N queries, M keys. With axes "space" or "time" numbers are means over the groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from videornn.explain.attention_maps import has_split
from videornn.models.nonlocal_block import AttentionBlock, MapRows, NonLocal, OwnMaskNonLocal
from videornn.models.recompute import without_autocast

# of more queries than this, a random part counts (the same every time): a mean over 8,192 maps is exact enough
MAX_QUERIES = 8192
CHUNK_ENTRIES = 2**22  # of a map in memory at a time

MEANING = {
    "change": "length of what the block adds to its input over the length of that input, |z - x| / |x|",
    "query_dependence": "mean over queries i of half of sum_j |w_ij - m_j|: 0 if all queries attend to the same, near 1 if "
    "each attends to its own",
    "logit_deviation": "deviation over keys of the logits of the pairwise softmax, root mean square over queries",
    "effective_keys": "mean over queries of exp(-sum_j w_ij log w_ij) / M: the share of the places that a query in effect "
    "attends to",
    "unary_effective_keys": "exp(-sum_j u_j log u_j) / M: the share of the places that the unary map in effect covers",
    "overlap": "sum_j min(u_j, m_j), what unary and mean pairwise map have in common: 0 nothing, 1 everything",
    "pairwise_share": "share of the whitened pairwise term in the variance of the logits over keys; the rest, 1 - this, is "
    "the unary term's",
}


def block_numbers(block: AttentionBlock, x: Tensor, output: Tensor) -> dict[str, float]:
    """Compute the numbers of MEANING that this block has, from its input and output [1, C, T, H, W]."""
    numbers = numbers_on_device(block, x, output)
    return dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))


@torch.no_grad()
def numbers_on_device(block: AttentionBlock, x: Tensor, output: Tensor, max_queries: int | None = None) -> dict[str, Tensor]:
    """Compute the same as float32 scalars on the device, without waiting; of more than max_queries a random part counts."""
    pooled = block.key_pool(x)
    map_rows, unary = block.map_rows(x, pooled), block.unary_weights(x, pooled)
    numbers = {"change": change(x, output)}
    if map_rows is not None:
        # positions per group: all, or the axes that a group spans
        num_queries = {"spacetime": x[0, 0].numel(), "space": x[0, 0, 0].numel(), "time": x.shape[2]}[block.axes]
        mean_map, numbers["query_dependence"], numbers["effective_keys"] = map_numbers(
            map_rows, num_queries, x.device, MAX_QUERIES if max_queries is None else max_queries
        )
    if unary is not None:
        numbers["unary_effective_keys"] = effective_keys(unary).mean()
    if map_rows is not None and unary is not None:
        numbers["overlap"] = overlap(unary, mean_map)
    if isinstance(block, NonLocal):
        pairwise, of_unary = logit_variances(block, x)
        numbers["logit_deviation"] = (pairwise + of_unary).mean().sqrt()
        if has_split(block):
            numbers["pairwise_share"] = (pairwise / (pairwise + of_unary).clamp_min(1e-30)).mean()
    return {name: number.float() for name, number in numbers.items()}


def change(x: Tensor, output: Tensor) -> Tensor:
    """Compute |z - x| / |x| of input x and output z: how much the block changes its input."""
    return (output - x).float().norm() / x.float().norm().clamp_min(1e-12)


@torch.no_grad()
def map_numbers(
    map_rows: MapRows, num_queries: int, device: torch.device, max_queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean map m_j [groups, M], query dependence and share of effective keys of a map from its rows.

    Query dependence is mean_i (1/2) sum_j |w_ij - m_j|, the mean total variation distance from the mean map.
    """
    order = torch.randperm(num_queries, generator=torch.Generator().manual_seed(0))[:max_queries].to(device)
    totals = effective = distance = torch.zeros((), device=device)
    for shares in _chunks(map_rows, order):
        totals = totals + shares.sum(dim=1)
        effective = effective + effective_keys(shares).sum(dim=1)
    mean = totals / len(order)
    for shares in _chunks(map_rows, order):
        distance = distance + (shares - mean.unsqueeze(1)).abs().sum(dim=2).sum(dim=1) / 2
    return mean, (distance / len(order)).mean(), (effective / len(order)).mean()


def effective_keys(shares: Tensor) -> Tensor:
    """Compute exp(-sum_j w_j log w_j) / M of shares [..., M]: 1 if spread evenly, 1 / M if on one key."""
    return torch.special.entr(shares).sum(dim=-1).exp() / shares.shape[-1]


def overlap(unary: Tensor, mean_map: Tensor) -> Tensor:
    """Compute sum_j min(u_j, m_j) of unary weights and mean map [groups, M]."""
    return torch.minimum(unary, mean_map).sum(dim=1).mean()


@torch.no_grad()
def logit_variances(block: NonLocal, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute P and U [groups]: mean_i Var_j of the whitened pairwise logits, and Var_j of the unary ones (NonLocal.split).

    P + U is mean_i Var_j of the logits: whitened queries sum to zero, so the terms do not covary. For the same reason P is
    the sum over all entries of (Q^T Q) * (K^T K), whitened, divided by N M, and needs no map.
    """
    query, key = block.queries_and_keys(x, block.key_pool(x))
    query, key = query.float(), key.float()
    mean = query.mean(dim=1, keepdim=True)
    query, key = query - mean, key - key.mean(dim=1, keepdim=True)
    with without_autocast(x.device):
        products = (query.transpose(1, 2) @ query) * (key.transpose(1, 2) @ key)  # [groups, D, D]
        unary = (key @ mean.transpose(1, 2)).square().mean(dim=(1, 2))
    pairwise = products.sum(dim=(1, 2)) / (query.shape[1] * key.shape[1])
    if isinstance(block, OwnMaskNonLocal):  # its logits of the mask have no scale
        return pairwise * block.scale**2, block.split(x, slice(0))[1].var(dim=1, correction=0)
    return pairwise * block.scale**2, unary * block.scale**2


def _chunks(map_rows: MapRows, order: Tensor) -> Iterator[Tensor]:
    """Yield shares [groups, R, M] of the queries in order, R at a time; a query without any weight has even shares."""
    num_entries = map_rows(order[:1]).numel()
    for part in order.split(max(CHUNK_ENTRIES // num_entries, 1)):
        weights = map_rows(part).abs()
        total = weights.sum(dim=2, keepdim=True)
        yield torch.where(total > 0, weights / total, 1 / weights.shape[2])
