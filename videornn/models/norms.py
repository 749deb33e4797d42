"""Batch norm with statistics of part of a batch, of all ranks, or frozen; and frozen parts of a network.

Norms change their class in place and keep parameters, buffers and names, so checkpoints move freely between the kinds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from videornn.errors import UserError
from videornn.models.batch_norm import BatchNorm3d
from videornn.models.nonlocal_block import AttentionBlock
from videornn.models.resnet3d import STAGES
from videornn.models.softmax_attention import at_least_float32
from videornn.schema import BatchNormKind


def set_batch_norm(model: nn.Module, kind: BatchNormKind, bn_clips: int | None, device: torch.device) -> nn.Module:
    """Change the batch norms of a network to this kind, in place, and return it; call `freeze_parts` afterwards.

    Args:
        kind: statistics of the clips of this rank (batch), of all ranks (sync), or fixed statistics and weights (frozen),
            except in attention blocks, whose norms stay as they were.
        bn_clips: clips that share statistics, see `SubBatchNorm`; None: all that go through at once. Only for batch.
        device: the one to train on.
    """
    norms = _norms(model)
    if kind == "sync" and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if kind == "sync":
        for norm in norms:
            norm.__class__ = SyncBatchNormOnCpu
    elif kind == "frozen":
        in_attention = {norm for block in model.modules() if isinstance(block, AttentionBlock) for norm in _norms(block)}
        for norm in norms:
            if norm not in in_attention:
                _freeze_(norm)
    elif bn_clips is not None:
        for norm in norms:
            norm.__class__ = SubBatchNorm
            assert isinstance(norm, SubBatchNorm)
            norm.num_clips = bn_clips
    return model


def freeze_parts(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze parts of a network: no gradients, no new statistics, no dropped paths. model.train() does not undo it.

    Any part may be frozen; gradients pass through it to the parts before. The attention blocks of a frozen stage go on
    learning, because they are often new there, unless "attention" is frozen too.

    Args:
        names: any of "stem", "res2", ..., "res5" and "attention", which stands for all attention blocks.

    Raises:
        ValueError: no such part.
    """
    blocks = [module for module in model.modules() if isinstance(module, AttentionBlock)]
    in_attention = {module for block in blocks for module in block.modules()}
    parts = {name: set(getattr(model, name).modules()) - in_attention for name in ("stem", *STAGES)}
    parts["attention"] = in_attention
    for name in names:
        if name not in parts:
            raise ValueError(f"there is no part {name!r} to freeze; there are {', '.join(parts)}")
        for module in parts[name]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, _BatchNorm):
                _freeze_(module)
            elif isinstance(module, StochasticDepth):
                module.p = 0.0


class SubBatchNorm(BatchNorm3d):
    """Batch norm of groups of num_clips successive clips, as if each group were the batch.

    The running statistics are those of all groups together, as nn.BatchNorm3d would compute them on the whole batch.
    """

    def __init__(self, num_features: int, num_clips: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.num_clips = num_clips

    def normalize(self, x: Tensor) -> Tensor:  # [B, C, ...]
        if not self.training:
            return super().normalize(x)
        if len(x) % self.num_clips:
            raise UserError(
                f"batch norm over groups of {self.num_clips} clips cannot divide the {len(x)} that a rank has at once; "
                f"set train.bn_clips to a divisor of {len(x)}, or to null"
            )
        outputs, means, variances = [], [], []
        for group in x.split(self.num_clips):
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            # with momentum 1 these become the statistics of the group
            outputs.append(nn.functional.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(variance)
        self._count(torch.stack(means), torch.stack(variances), x.numel() // x.shape[1])
        return torch.cat(outputs)

    def _count(self, means: Tensor, variances: Tensor, num_values: int) -> None:
        """Update the running statistics from the groups' means and unbiased variances [groups, C]."""
        per_group = num_values / len(means)
        biased = variances.mean(0) * ((per_group - 1) / per_group) + means.var(0, correction=0)
        _track_(self, means.mean(0), biased, num_values)


class SyncBatchNormOnCpu(BatchNorm3d):
    """Batch norm over the clips of all ranks, for processes on CPUs, where torch's own does not run."""

    def normalize(self, x: Tensor) -> Tensor:  # [B, C, ...]
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().normalize(x)
        features = at_least_float32(x)
        dims = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(features, dims, correction=0)
        # moments in float64, because a mean far above the deviation loses digits in float32
        count = torch.full_like(mean, x.numel() // x.shape[1], dtype=torch.float64)
        moments = torch.stack([count, count * mean, count * (variance + mean.double().square())])
        count, mean, square = _SumOverRanks.apply(moments)
        mean, square = mean / count, square / count
        variance = square - mean.square()
        _track_(self, mean, variance, count)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        shape = [1, -1] + [1] * (x.ndim - 2)
        return (features * scale.to(features.dtype).view(shape) + shift.to(features.dtype).view(shape)).to(x.dtype)


class FrozenBatchNorm(BatchNorm3d):
    """Batch norm that normalises with its running statistics in training too, and does not update them."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor, and of its gradient, over all ranks; torch.distributed.nn's is deprecated since torch 2.15."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _SumOverRanks.apply(gradient)


@torch.no_grad()
def _track_(norm: BatchNorm3d, mean: Tensor, biased_variance: Tensor, num_values: int | Tensor) -> None:
    """Update the running statistics with a batch as torch does, with the unbiased variance."""
    variance = biased_variance * (num_values / (num_values - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), norm.momentum)
    norm.num_batches_tracked.add_(1)


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]


def _freeze_(norm: _BatchNorm) -> None:
    norm.__class__ = FrozenBatchNorm
    norm.requires_grad_(False).eval()
