"""Non-local attention blocks for clips.

Letters: B batch, C channels, D inner width, N query positions (T*H*W), M key positions (N, or fewer if keys are pooled).
query, key and value are the theta, phi and g of the papers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class DisentangledNonLocal(nn.Module):
    """Disentangled non-local block: a whitened pairwise and a unary softmax, added, over one shared value.

        z_i = x_i + BN(W_z sum_j w_ij v_j)
        w_ij = softmax_j((q_i - mu_q)^T (k_j - mu_k) / (sqrt(D) tau)) + softmax_j(m_j)

    with mu_q, mu_k the means over positions, per channel and sample, and m_j = W_m x_j a logit of its own. The gain of
    the normalisation starts at zero, so a block put into a trained network starts as the identity.
    Yin et al. 2020, section 3, arXiv:2006.06668.

    Args:
        channels: C of input and output.
        inner_channels: D; C / 2 by default.
        ndim: 1, 2 or 3: inputs are [B, C, T], [B, C, H, W] or [B, C, T, H, W].
        key_pool: max-pooling kernel and stride of what keys, values and the unary map see; None keeps all positions.
        temperature: tau.

    Raises:
        ValueError: a size is below 1, or key_pool does not have ndim entries.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        *,
        ndim: int = 3,
        key_pool: tuple[int, ...] | None = None,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        inner_channels = channels // 2 if inner_channels is None else inner_channels
        if channels < 1 or inner_channels < 1:
            raise ValueError(f"channels and inner_channels must be at least 1, got {channels} and {inner_channels}")
        if ndim not in _CONV:
            raise ValueError(f"ndim must be 1, 2 or 3, got {ndim}")
        if key_pool is not None and len(key_pool) != ndim:
            raise ValueError(f"key_pool {key_pool} must have {ndim} entries, one per axis, or be None")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        conv = _CONV[ndim]
        self.key_pool = nn.Identity() if key_pool is None else _MAX_POOL[ndim](key_pool, key_pool, ceil_mode=True)
        self.query = conv(channels, inner_channels, 1)
        self.key = conv(channels, inner_channels, 1)
        self.value = conv(channels, inner_channels, 1)
        self.mask = conv(channels, 1, 1)
        self.out = conv(inner_channels, channels, 1)
        self.norm = _BATCH_NORM[ndim](channels)
        self.scale = 1.0 / (inner_channels**0.5 * temperature)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """query, key, value, mask, out: N(0, 0.01), bias 0; norm: weight 0, bias 0."""
        for conv in (self.query, self.key, self.value, self.mask, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.key_pool(x)
        query, key, value, mask = self._project(x, pooled)
        # one weighted sum [B, 1, D] serves every query: the unary map is never repeated N times
        unary = torch.softmax(_at_least_float32(mask), dim=1).to(value.dtype).unsqueeze(1) @ value
        pairwise = F.scaled_dot_product_attention(query, key, value, scale=self.scale)  # [B, N, D]
        y = (pairwise + unary).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, D, T, H, W]
        return x + self.norm(self.out(y))

    @torch.no_grad()
    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two softmax maps of this input, for looking at: pairwise [B, N, M] and unary [B, M].

        M counts the pooled positions, whose grid is `attention_grid(x)`. Memory is that of the full map.
        """
        query, key, _, mask = self._project(x, self.key_pool(x))
        affinity = _at_least_float32(query) @ _at_least_float32(key).transpose(1, 2) * self.scale
        return torch.softmax(affinity, dim=2), torch.softmax(_at_least_float32(mask), dim=1)

    def attention_grid(self, x: Tensor) -> tuple[int, ...]:
        """Sizes (T, H, W) of the grid of key positions for this input."""
        return tuple(self.key_pool(x[:1]).shape[2:])

    def _project(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whitened queries [B, N, D] and keys [B, M, D], values [B, M, D], unary logits [B, M]."""
        query = _whiten(self.query(x).flatten(2).transpose(1, 2))
        key = _whiten(self.key(pooled).flatten(2).transpose(1, 2))
        value = self.value(pooled).flatten(2).transpose(1, 2)
        return query, key, value, self.mask(pooled).flatten(1)


def _whiten(features: Tensor) -> Tensor:
    """Features [B, N, D] minus their mean over positions, taken in float32; the paper's whitening has no division."""
    centred = _at_least_float32(features)
    return (centred - centred.mean(dim=1, keepdim=True)).to(features.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
