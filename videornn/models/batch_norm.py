"""Batch norm of clips by the kernels that CUDA has for pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class BatchNorm3d(nn.BatchNorm3d):
    """nn.BatchNorm3d, so that libraries recognise it, for inputs [B, C, ...] of any dimension.

    On a GPU, clips in bfloat16 are normalised as pictures, which are views of them. The statistics are the same, but torch
    has channels-last kernels for pictures only, and does not use cuDNN's in this precision: clips would get its general
    kernels after a cast to float32, in which a Slow R50 spent half of its step (docs/gpu.md).
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        has_slow_kernels = x.is_cuda and x.dtype == torch.bfloat16 and x.ndim == 5
        return as_pictures(self.normalize, x) if has_slow_kernels else self.normalize(x)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise x as forward does, on any device and in any number of dimensions."""
        return super().forward(x)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def as_pictures(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply norm to clips [B, C, T, H, W] seen as pictures [B, C, T H, W]."""
    # no view to autograd, which would copy gradients if a ReLU changed a view in place; nothing else holds its memory
    return torch.ops.aten._unsafe_view.default(norm(x.flatten(2, 3)), x.shape)
