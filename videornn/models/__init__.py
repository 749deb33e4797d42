"""Networks and attention blocks; knows nothing of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from videornn.errors import UserError
from videornn.models import nonlocal_block as blocks
from videornn.models.resnet3d import ResNet3d

if TYPE_CHECKING:
    from videornn.config import AttentionConfig, ModelConfig

ATTENTION_KINDS = {
    "nl": blocks.NonLocal,
    "nl_gaussian": blocks.GaussianNonLocal,
    "nl_dot_product": blocks.DotProductNonLocal,
    "nl_concatenation": blocks.ConcatenationNonLocal,
    "pairwise": blocks.PairwiseNonLocal,
    "unary": blocks.UnaryNonLocal,
    "gc": blocks.GlobalContext,
    "dnl": blocks.DisentangledNonLocal,
    # between nl and dnl, whose weights have the same names
    "nl_add": blocks.AddedNonLocal,
    "nl_own_mask": blocks.OwnMaskNonLocal,
}


def build_model(section: ModelConfig) -> ResNet3d:
    """Build the network of a config's model section: [B, 3, T, H, W] float -> logits [B, num_classes].

    Raises:
        UserError: num_classes is not set, there is no such depth, the attention block or one of its places is
            impossible, or the network is too large for this machine.
    """
    if section.num_classes is None:
        raise UserError("model.num_classes is not set, and no class names or training list tell it; set it")
    try:
        return ResNet3d(
            section.name,
            section.depth,
            num_classes=section.num_classes,
            width=section.width,
            dropout=section.dropout,
            drop_path=section.drop_path,
            zero_init_residual=section.zero_init_residual,
            attention=_attention(section.attention),
            places=section.attention.places,
            recompute_blocks=section.recompute_blocks,
        )
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    except (RuntimeError, MemoryError, OverflowError) as error:  # of allocations
        size = f"width {section.width}, {section.num_classes} classes"
        raise UserError(f"model: a network of this size ({size}) does not fit into memory") from error


def _attention(section: AttentionConfig) -> Callable[[int], nn.Module] | None:
    """Return the function that builds a config's attention block for a number of channels."""
    if section.kind == "none":
        return None
    block = partial(ATTENTION_KINDS[section.kind], key_pool=section.key_pool, axes=section.axes)
    if section.kind == "gc":
        if section.gate != "norm" or section.temperature is not None or section.scale != "paper":
            raise ValueError(
                "attention.kind gc has neither gate nor scale nor temperature; leave gate: norm, scale: paper and "
                "temperature: null"
            )
        return block
    return partial(block, gate=section.gate, scale=section.scale, temperature=section.temperature)


__all__ = ["ResNet3d", "build_model"]
