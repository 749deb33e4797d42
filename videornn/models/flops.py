"""Count the multiply-adds of a network the way papers of this field do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # fvcore scripts functions as it is imported, which torch says is out of date
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis


def forward_flops(model: nn.Module, clip_size: Sequence[int]) -> float:
    """Count the multiply-adds of the forward pass of one clip.

    Args:
        model: the bare network, neither compiled nor parallel; it is left as it was.
        clip_size: T, H, W.
    """
    return flops_by_module(model, _empty_clip(model, clip_size))[""]


def training_flops(model: nn.Module, clip_size: Sequence[int]) -> float:
    """Count the FLOPs of a training step per clip; a multiply-add counts as two.

    Every part of the network takes part up to three times: in the forward pass, the gradient of the weights and the
    gradient of the input. Frozen parts compute no gradient of weights, and none of the input where all before them is
    frozen too. Arguments as in forward_flops.
    """
    flops = flops_by_module(model, _empty_clip(model, clip_size))
    total, trainable_before = 0.0, False
    for name, part in model.named_children():
        trainable = any(parameter.requires_grad for parameter in part.parameters())
        trainable_before = trainable_before or trainable
        total += 2 * flops[name] * (1 + trainable + trainable_before)
    return total


def _empty_clip(model: nn.Module, clip_size: Sequence[int]) -> Tensor:
    return torch.zeros(1, 3, *clip_size, device=next(model.parameters()).device)


@torch.no_grad()
def flops_by_module(model: nn.Module, clip: Tensor) -> dict[str, float]:
    """Count the multiply-adds of every module with fvcore, by name ("" is the whole), as papers of this field do."""
    training = {module: module.training for module in model.modules()}  # frozen norms differ from the rest
    try:
        analysis = FlopCountAnalysis(model.eval(), clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):  # no search for kernels that run once
            return dict(analysis.by_module())
    finally:
        for module, mode in training.items():
            module.training = mode


def _attention_flops(inputs: list, outputs: list) -> int:
    """Count the multiply-adds of softmax(q k^T) v; fvcore does not know the fused operator."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])  # [B, heads, N or M, D]
    return queries[0] * queries[1] * queries[2] * keys[2] * (queries[3] + values[3])
