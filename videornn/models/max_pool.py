"""A max-pool that keeps little for the backward pass and gives the same bits every time, on GPUs too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeanMaxPool(nn.Module):
    """A max-pool over 1, 2 or 3 dimensions that keeps its input for the backward pass and nothing else, in its dtype.

    torch's own also keeps int64 indices, which at (1, 2, 2) are as large as a bfloat16 input. In 3 dimensions it runs in
    float32 under autocast on the CPU, and on a GPU its gradient differs in bits from run to run, up to torch 2.11 at least.
    This one is therefore made of 2D max-pools, over space and then over time. As in torch's, the first of equal values gets
    the gradient.

    Args:
        kernel_size: one size per dimension.
        stride: likewise; None: as the kernel.
        padding: likewise; None: none.
    """

    def __init__(
        self, kernel_size: Sequence[int], stride: Sequence[int] | None = None, padding: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.kernel_size = tuple(kernel_size)
        self.stride = self.kernel_size if stride is None else tuple(stride)
        self.padding = (0,) * len(self.kernel_size) if padding is None else tuple(padding)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, W], [B, C, H, W] or [B, C, T, H, W]
        axes = list(zip(self.kernel_size, self.stride, self.padding, strict=True))
        if x.ndim == 3:
            return _pool(x.unsqueeze(2), (1, 1, 0), *axes).squeeze(2)
        if x.ndim == 4:
            return _pool(x, *axes)
        batch, channels, frames = x.shape[:3]
        if axes[1:] != [(1, 1, 0)] * 2:
            if x.stride(1) == 1:  # channels last; a view in both cases
                x = _pool(x.transpose(1, 2).flatten(0, 1), *axes[1:]).unflatten(0, (batch, frames)).transpose(1, 2)
            else:
                x = _pool(x.flatten(1, 2), *axes[1:]).unflatten(1, (channels, frames))
        if axes[0] != (1, 1, 0):
            x = _pool(x.flatten(3), axes[0], (1, 1, 0)).unflatten(3, x.shape[3:])
        return x

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _pool(x: Tensor, of_rows: tuple[int, int, int], of_columns: tuple[int, int, int]) -> Tensor:
    """Pool x [B, C, H, W]; of_rows and of_columns are kernel, stride and padding of H and of W."""
    kernel, stride, padding = zip(of_rows, of_columns, strict=True)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the compiler chooses by itself what to keep
        return _LeanMaxPool2d.apply(x, kernel, stride, padding)
    return torch.max_pool2d(x, kernel, stride, padding)


class _LeanMaxPool2d(torch.autograd.Function):
    """The pool as one autograd node: activation checkpointing would take the host three times as long as the pool itself."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = kernel, stride, padding
        return torch.max_pool2d(x, kernel, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        _, indices = torch.ops.aten.max_pool2d_with_indices(x, *ctx.window)
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.window, (1, 1), False, indices)
        return grad, None, None, None
