"""Networks and attention blocks; knows nothing of data."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from videornn.errors import UserError
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.models.resnet3d import ResNet3d

if TYPE_CHECKING:
    from videornn.config import ModelConfig


def build_model(section: ModelConfig) -> ResNet3d:
    """The network of a config's model section: [B, 3, T, H, W] float -> logits [B, num_classes].

    Raises:
        UserError: num_classes is not set, or an attention place does not exist at this depth.
    """
    if section.num_classes is None:
        raise UserError("model.num_classes is not set, and no class names or training list tell it; set it")
    attention = section.attention
    block = partial(DisentangledNonLocal, key_pool=attention.key_pool, temperature=attention.temperature)
    try:
        return ResNet3d(
            section.name,
            section.depth,
            num_classes=section.num_classes,
            width=section.width,
            dropout=section.dropout,
            zero_init_residual=section.zero_init_residual,
            attention=None if attention.kind == "none" else block,
            places=attention.places,
        )
    except ValueError as error:
        raise UserError(f"model.attention.places: {error}") from error


__all__ = ["DisentangledNonLocal", "ResNet3d", "build_model"]
