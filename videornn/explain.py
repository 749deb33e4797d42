"""What the attention blocks look at: unary and pairwise maps of one clip, drawn on its frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videornn.data.dataset import load_views
from videornn.data.loader import view_spec
from videornn.engine import to_model_input
from videornn.errors import UserError
from videornn.models.nonlocal_block import AttentionBlock
from videornn.plots import plot_attention
from videornn.trained import load_trained

NUM_CHOSEN_QUERIES = 2


@dataclass(frozen=True)
class Query:
    """A query point: frame of the clip, and place in it as shares of height and width in 0..1."""

    frame: int
    y: float
    x: float


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one block over the T frames of a clip, in multiples of the uniform weight (1 = as if spread evenly).

    unary: float [t, h, w], or None if the block has no weights that all queries share; pairwise: for each query float
    [t, h, w], none if the block has no weights that differ between queries. t, h, w is the grid of key positions.
    """

    block: str
    unary: Tensor | None
    queries: list[Query]
    pairwise: list[Tensor]


def parse_query(text: str) -> Query:
    """A query point written as T,Y,X; raises UserError if it is not one."""
    parts = text.split(",")
    try:
        frame, y, x = int(parts[0]), float(parts[1]), float(parts[2])
    except (ValueError, IndexError) as error:
        raise UserError(
            f"--query {text!r} is not T,Y,X: a frame number and two shares of 0..1, such as 4,0.5,0.5"
        ) from error
    if len(parts) != 3 or frame < 0 or not (0 <= y < 1 and 0 <= x < 1):
        raise UserError(f"--query {text!r}: T counts from 0, and Y and X are shares in 0..1 (1 left out)")
    return Query(frame, y, x)


def explain(checkpoint: str | Path, video: str, out: Path, queries: list[Query]) -> list[Path]:
    """Draw one picture per attention block for the middle clip (centre crop) of a video.

    Args:
        queries: points whose pairwise maps are drawn; if empty, the points of the middle frame with the sharpest maps.

    Returns:
        The pictures, in the order of the blocks.

    Raises:
        UserError: the checkpoint or video cannot be read, the network has no attention block, a query is outside the clip.
    """
    trained = load_trained(checkpoint)
    config, model, class_names = trained.config, trained.model, trained.class_names
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, AttentionBlock)}
    if not blocks:
        raise UserError(f"{checkpoint}: this network has no attention block to look at (model.attention.kind is none)")
    one_view = config.test.model_copy(update={"num_clips": 1, "num_crops": 1})
    spec, data = view_spec(config.data, one_view), config.data
    clip = load_views(video, spec, decoder=data.decoder, timeout=data.timeout)  # uint8 [1, 3, T, H, W]
    for query in queries:
        if query.frame >= clip.shape[2]:
            raise UserError(f"--query frame {query.frame} is outside the clip, which has frames 0 to {clip.shape[2] - 1}")
    inputs, logits = block_inputs(model, blocks, to_model_input(clip, trained.mean, trained.std))
    score, best = logits.softmax(dim=1)[0].max(dim=0)
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, block in blocks.items():
        maps = attention_maps(name, block, inputs[name], clip.shape[2], queries)
        title = f"{Path(video).name}: {class_names[int(best)]} ({100 * float(score):.0f} %)"
        picture = out / f"{Path(video).stem}_{name.removesuffix('.attention')}.png"
        plot_attention(picture, clip[0].permute(1, 2, 3, 0), maps, title)
        pictures.append(picture)
    return pictures


@torch.inference_mode()
def block_inputs(model: nn.Module, blocks: dict[str, nn.Module], clips: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What goes into each of these blocks for clips [B, 3, T, H, W], by name, and the logits [B, K]."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_pre_hook(lambda module, arguments, name=name: inputs.__setitem__(name, arguments[0]))
        for name, block in blocks.items()
    ]
    try:
        return inputs, model(clips)
    finally:
        for hook in hooks:
            hook.remove()


def attention_maps(name: str, block: AttentionBlock, x: Tensor, num_frames: int, queries: list[Query]) -> AttentionMaps:
    """Maps of one block for its input x [1, C, T', H', W'] of a clip of num_frames frames."""
    pairwise, unary = block.attention(x)  # [groups, N, M], [groups, M]
    grid, key_grid = x.shape[2:], block.attention_grid(x)
    if unary is not None:
        groups_last = unary.T if block.axes == "time" else unary
        unary = groups_last.reshape(key_grid).cpu() * unary.shape[1]
    if pairwise is None:
        return AttentionMaps(name, unary, [], [])
    queries = queries or _sharpest_queries(block, pairwise.abs(), grid, num_frames)
    cells = [(q.frame * grid[0] // num_frames, int(q.y * grid[1]), int(q.x * grid[2])) for q in queries]
    return AttentionMaps(name, unary, queries, [_map_of(block, pairwise, cell, grid, key_grid) for cell in cells])


def _map_of(
    block: AttentionBlock, pairwise: Tensor, cell: tuple[int, int, int], grid: tuple[int, ...], key_grid: tuple[int, ...]
) -> Tensor:
    """What the query in a cell (t, y, x) of the grid attends to, [t, h, w]; zero where it cannot look."""
    frame, place = cell[0], cell[1] * grid[2] + cell[2]
    heat = torch.zeros(key_grid, device=pairwise.device)
    if block.axes == "space":
        heat[frame] = pairwise[frame, place].reshape(key_grid[1:]).float()
    elif block.axes == "time":
        heat[:, cell[1], cell[2]] = pairwise[place, frame].float()
    else:
        heat = pairwise[0, frame * grid[1] * grid[2] + place].reshape(key_grid)
    return heat.cpu() * pairwise.shape[2]


def _sharpest_queries(block: AttentionBlock, pairwise: Tensor, grid: tuple[int, ...], num_frames: int) -> list[Query]:
    """Points of the middle frame whose maps [groups, N, M] are furthest from uniform, a quarter of the frame apart."""
    shares = pairwise / pairwise.sum(dim=2, keepdim=True).clamp_min(1e-12)
    sharpness = -torch.special.entr(shares).sum(dim=2)  # minus the entropy
    sharpness = (sharpness.T if block.axes == "time" else sharpness).reshape(grid)[grid[0] // 2]  # [H', W']
    rows, columns = torch.meshgrid(torch.arange(grid[1]), torch.arange(grid[2]), indexing="ij")
    free = torch.ones(grid[1:], dtype=torch.bool)
    queries: list[Query] = []
    while len(queries) < NUM_CHOSEN_QUERIES and free.any():
        row, column = divmod(int(sharpness.cpu().masked_fill(~free, -torch.inf).argmax()), grid[2])
        # the frame in the middle of the block's time step
        frame = (grid[0] // 2 * num_frames + num_frames // 2) // grid[0]
        queries.append(Query(frame, (row + 0.5) / grid[1], (column + 0.5) / grid[2]))
        free &= ((rows - row) / grid[1]) ** 2 + ((columns - column) / grid[2]) ** 2 > 0.25**2
    return queries
