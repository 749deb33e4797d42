"""Compute maps of attention blocks over one clip: what all points attend to, and what single points attend to.

All maps are in multiples of an even spread: 1 is the weight of a place if a point spreads its weight evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from videornn.explain.clip_places import Places, Query, grid_places
from videornn.models.nonlocal_block import AttentionBlock, NonLocal, PairwiseNonLocal
from videornn.models.resnet3d import STAGES

NUM_CHOSEN_QUERIES = 2
APART = 0.25  # between chosen points, in shares of the frame


@dataclass(frozen=True)
class BlockMaps:
    """Maps of one block, each float [t, h, w] on the grid of its keys, which lie at `places` of the clip.

    unary: the weights that all queries share, or None. maps: for each query, the weights that differ between queries. A
    softmax of the sum of two terms (NL) also has the softmax of either term alone: unary_term, and pairwise_terms for each
    query.
    """

    places: Places
    unary: Tensor | None
    queries: list[Query]
    maps: list[Tensor]
    unary_term: Tensor | None = None
    pairwise_terms: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Observed:
    """The record of one pass of a clip: logits [K], input and output [1, C, T, H, W] of blocks, places of every stage."""

    logits: Tensor
    blocks: dict[str, tuple[Tensor, Tensor]]
    places: dict[str, Places]


def attention_blocks(model: nn.Module) -> dict[str, AttentionBlock]:
    """Return the attention blocks of a network by name, in the order of its layers."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AttentionBlock)}


@torch.no_grad()
def observe(model: nn.Module, clip: Tensor) -> Observed:
    """Run a clip, float [1, 3, T, H, W], through a ResNet3d in eval mode."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    places: dict[str, Places] = {}
    frames, height, width = clip.shape[2:]

    def locate(stage: str, grid: tuple[int, ...]) -> None:
        halved = stage != "res2" and not isinstance(model.temporal_pool, nn.Identity)
        places[stage] = grid_places((frames, height, width), grid, temporal_pool=halved)

    hooks = [
        block.register_forward_hook(lambda _, inputs, output, name=name: seen.__setitem__(name, (inputs[0], output)))
        for name, block in attention_blocks(model).items()
    ] + [
        getattr(model, stage).register_forward_hook(
            lambda _, inputs, output, stage=stage: locate(stage, tuple(output.shape[2:]))
        )
        for stage in STAGES
    ]
    try:
        return Observed(model(clip)[0].float(), seen, places)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def block_maps(block: AttentionBlock, x: Tensor, places: Places, queries: list[Query]) -> BlockMaps:
    """Compute the maps of a block for input x [1, C, T', H', W'], which lies at places of the clip, for these queries."""
    pooled, key_places = block.key_pool(x), places_of_keys(block, places)
    key_grid = key_places.grid
    map_rows, unary = block.map_rows(x, pooled), block.unary_weights(x, pooled)
    unary = unary if unary is None else _spread_groups(block, unary, key_grid)
    if map_rows is None:
        return BlockMaps(key_places, unary, [], [])
    maps, pairwise_terms, unary_term = [], [], None
    for query in queries:
        cell = places.cell(query)
        group, position = _group_and_position(block, cell, places.grid)
        row = torch.tensor([position], device=x.device)
        maps.append(_of_group(block, map_rows(row)[group, 0], cell, key_grid))
        if has_split(block):
            pairwise, unary_logits = block.split(x, row)
            pairwise_terms.append(_of_group(block, pairwise[group, 0].softmax(0), cell, key_grid))
            unary_term = _spread_groups(block, unary_logits.softmax(1), key_grid)
    return BlockMaps(key_places, unary, queries, maps, unary_term, tuple(pairwise_terms))


def places_of_keys(block: AttentionBlock, places: Places) -> Places:
    """Return the places of the keys of a block whose input lies at places."""
    return places if isinstance(block.key_pool, nn.Identity) else places.pooled(block.key_pool.kernel_size)


def has_split(block: AttentionBlock) -> TypeGuard[NonLocal]:
    """Return whether the block has one softmax of a sum of a pairwise and a unary term: NL, also Gaussian or own mask."""
    return isinstance(block, NonLocal) and not isinstance(block, PairwiseNonLocal)


def strongest_points(x: Tensor, output: Tensor, places: Places, count: int = NUM_CHOSEN_QUERIES) -> list[Query]:
    """Find the points to which a block adds most, over all frames, APART from each other in height and width.

    For a block that adds nothing, they are the points with the strongest input.

    Args:
        x, output: of the block, [1, C, T', H', W'], which lie at places of the clip.
    """
    strength = (output - x)[0].float().norm(dim=0).cpu()  # [T', H', W']
    if not strength.any():
        strength = x[0].float().norm(dim=0).cpu()
    grid = strength.shape
    rows, columns = torch.meshgrid(torch.arange(grid[1]), torch.arange(grid[2]), indexing="ij")
    free = torch.ones(grid[1:], dtype=torch.bool)
    queries: list[Query] = []
    while len(queries) < count and free.any():
        best = int(strength.masked_fill(~free, -torch.inf).argmax())
        step, row, column = best // (grid[1] * grid[2]), best // grid[2] % grid[1], best % grid[2]
        queries.append(places.query((step, row, column)))
        free &= ((rows - row) / grid[1]) ** 2 + ((columns - column) / grid[2]) ** 2 > APART**2
    return queries


def _group_and_position(block: AttentionBlock, cell: tuple[int, int, int], grid: tuple[int, ...]) -> tuple[int, int]:
    """Return the group of positions that see each other to which a cell (t, y, x) belongs, and its index in the group."""
    frame, place = cell[0], cell[1] * grid[2] + cell[2]
    if block.axes == "space":
        return frame, place
    return (place, frame) if block.axes == "time" else (0, frame * grid[1] * grid[2] + place)


def _of_group(block: AttentionBlock, weights: Tensor, cell: tuple[int, int, int], key_grid: tuple[int, ...]) -> Tensor:
    """Put weights [M] of the group of a cell onto the whole grid [t, h, w]; zero where the query cannot look."""
    heat = torch.zeros(key_grid, device=weights.device)
    weights = over_even(weights.float())
    if block.axes == "space":
        heat[cell[0]] = weights.reshape(key_grid[1:])
    elif block.axes == "time":
        heat[:, cell[1], cell[2]] = weights
    else:
        heat = weights.reshape(key_grid)
    return heat.cpu()


def _spread_groups(block: AttentionBlock, weights: Tensor, key_grid: tuple[int, ...]) -> Tensor:
    """Put weights [groups, M] of all groups onto the whole grid [t, h, w]."""
    weights = over_even(weights.float())
    return (weights.T if block.axes == "time" else weights).reshape(key_grid).cpu()


def over_even(weights: Tensor) -> Tensor:
    """Divide weights [..., M] by their mean strength; without a softmax they can be negative."""
    return weights / weights.abs().mean(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
