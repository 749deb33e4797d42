"""The attention family: non-local blocks, their two halves, disentangled non-local and global context blocks.

All share one shell, as Yin et al. 2020 (arXiv:2006.06668) draw them: z = x + BN(W_z y), and differ in y, the weighted
sum of the values. No block builds its map of N x M weights, except for `attention`, which is for looking at it.

Letters: B batch, C channels, D inner width, N query positions, M key positions (N, or fewer if keys are pooled); i runs
over queries, j over keys. query, key and value are the theta, phi and g of the papers. With axes "space" or "time" a
position sees only its own frame or its own place in all frames, and B counts all such groups of all clips.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videornn.models.batch_norm import BatchNorm3d
from videornn.models.max_pool import LeanMaxPool
from videornn.models.recompute import recompute, without_autocast
from videornn.models.softmax_attention import at_least_float32, softmax_attention
from videornn.schema import Axes, Gate, Scale

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONV: dict[int, type[_Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: BatchNorm3d}

ALL = slice(None)
ALIGNMENT = 8  # fused kernels want the width of rows to be a multiple of this many channels
TINY = 1e-12  # floor of a mean square: whitened features of a clip that is the same everywhere are zero
MapRows = Callable[[Tensor | slice], Tensor]  # indices of queries -> their rows [B, R, M] of the map


class AttentionBlock(nn.Module):
    """The shell of every block: values, and what becomes of their weighted sum; subclasses define the weights.

        gate "norm":    z_i = x_i + BN(W_z y_i), values D wide; the gain of BN starts at zero (Wang et al. 2018, eq. 6)
        gate "scalar":  z_i = x_i + y_i, values C wide, without bias; what differs between queries in y_i is multiplied
                        by a scalar that starts at zero (the public 2D code of Yin et al. 2020)

    With "norm" a block put into a trained network starts as the identity. The scalar leaves the unary half open.

    Args:
        channels: C of input and output.
        inner_channels: D; C / 2 by default.
        ndim: 1, 2 or 3: inputs are [B, C, T], [B, C, H, W] or [B, C, T, H, W].
        key_pool: max-pooling kernel and stride of what keys, values and the unary map see; None keeps all positions.
        axes: the positions that see each other: all, those of the same frame, or those of the same place (ndim 3 only).
        gate: see above.
        scale: of the logits of the pairwise softmax, "paper" or "learnt", see NonLocal.
        temperature: tau, which divides these logits; None takes the block's own, and 1 with a learnt scale.

    Raises:
        ValueError: a size is below 1, key_pool does not have ndim entries, axes does not go with ndim or key_pool, or a
            temperature or a learnt scale is given to a block without such a softmax.
    """

    own_temperature: float | None = None
    scales: tuple[Scale, ...] = ("paper",)
    has_queries = True
    value: nn.Module
    out: nn.Module
    norm: nn.Module

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        *,
        ndim: int = 3,
        key_pool: tuple[int, ...] | None = None,
        axes: Axes = "spacetime",
        gate: Gate = "norm",
        scale: Scale = "paper",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        inner_channels = channels // 2 if inner_channels is None else inner_channels
        _check(channels, inner_channels, ndim, key_pool, axes)
        if temperature is not None and (self.own_temperature is None or temperature <= 0):
            why = "has no temperature" if self.own_temperature is None else "needs one above 0"
            raise ValueError(f"temperature {temperature}: {type(self).__name__} {why}")
        if scale not in self.scales:
            raise ValueError(f"scale {scale!r}: {type(self).__name__} has {' or '.join(map(repr, self.scales))}")
        self.has_learnt_scale = scale == "learnt"
        own_temperature = 1.0 if self.has_learnt_scale else self.own_temperature
        self.temperature = own_temperature if temperature is None else temperature
        self.axes = axes
        conv = _CONV[ndim]
        self.key_pool = nn.Identity() if key_pool is None else LeanMaxPool(key_pool)
        if gate == "norm":
            self.value = conv(channels, inner_channels, 1)
            self.out = conv(inner_channels, channels, 1)
            self.norm = _BATCH_NORM[ndim](channels)
        else:
            self.value = conv(channels, channels, 1, bias=False)
            self.out = nn.Identity()
            self.norm = nn.Identity()
        self.gain = Gain() if gate == "scalar" and self.has_queries else nn.Identity()
        self.add_projections(channels, inner_channels, conv)
        self.reset_parameters()

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        """Create the layers that the weights are computed by; conv is the convolution class of ndim dimensions."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise convolutions: N(0, 0.01), bias 0; the gain of the norm, or the scalar: 0."""
        for module in self.modules():
            if isinstance(module, _Conv):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.norm, _BatchNorm):
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self._to_grid(self.attend(x, self.key_pool(x)), x)
        if x.device.type != "cpu":
            return x + self._gated(y, x)
        # BN would keep W_z y, which is twice as large as y and cheap to recompute; with a GPU that would cost host time
        return x + recompute(lambda y: self._gated(y, x), y, self.norm)

    def _gated(self, y: Tensor, x: Tensor) -> Tensor:
        return self.norm(_spread(self.out(y), x))

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Compute y [B, N, D], or [B, 1, D] where it is the same for all queries."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Compute the weights that forward uses for this input, for looking at them, without gradient.

        Returns:
            Weights that differ between queries [B, N, M] (None if the block has none), and weights that all queries
            share [B, M] (None if there are none). The M keys lie on the grid `attention_grid(x)`.
        """
        with torch.no_grad():
            pooled = self.key_pool(x)
            rows = self.map_rows(x, pooled)
            return rows and rows(ALL), self.unary_weights(x, pooled)

    def map_rows(self, x: Tensor, pooled: Tensor) -> MapRows | None:
        """Return a function that computes the query-dependent weights of given queries: a whole map can be too large."""

    def unary_weights(self, x: Tensor, pooled: Tensor) -> Tensor | None:
        """Compute the weights [B, M] that all queries share."""

    @torch.no_grad()
    def attention_grid(self, x: Tensor) -> tuple[int, ...]:
        """Return the sizes (T, H, W) of the grid of key positions for this input."""
        return tuple(self.key_pool(x[:1]).shape[2:])

    def positions(self, features: Tensor) -> Tensor:
        """Rearrange [B, D, T, H, W] to [groups, positions, D]; the positions of a group see each other."""
        if self.axes == "space":
            features = features.transpose(1, 2).flatten(0, 1)  # [B * T, D, H, W]
        elif self.axes == "time":
            return features.permute(0, 3, 4, 2, 1).flatten(0, 2)  # one copy, in the layout that fused attention wants
        return features.flatten(2).transpose(1, 2)

    def _to_grid(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo `positions`: [groups, positions, D] -> [B, D, T, H, W]; one position per group gives sizes of 1 instead."""
        y = y.transpose(1, 2)  # [groups, D, positions]
        one = y.shape[2] == 1
        if self.axes == "spacetime":
            return y.unflatten(2, [1 if one else size for size in x.shape[2:]])
        batch, _, frames, height, width = x.shape
        if self.axes == "space":
            return y.unflatten(2, (1, 1) if one else (height, width)).unflatten(0, (batch, frames)).transpose(1, 2)
        return y.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)


class NonLocal(AttentionBlock):
    """Non-local block, embedded Gaussian: w_ij = softmax_j(q_i . k_j / (sqrt(D) tau)), tau = 1.

    Wang et al. 2018, eq. 3, arXiv:1711.07971, with the square root of its code.

    With a learnt scale, keys are embedded as queries are (W_k is W_q), both are divided by their root mean square over
    channels at each position, and a scalar s, which starts at 1 and is not decayed, multiplies the logits. The logits are
    then s sqrt(D) / tau times the cosine of two positions: a position attends to those that are like it, and the deviation
    of the logits stays near s, however wide the block is and however its weights grow.
    """

    own_temperature = 1.0
    scales: tuple[Scale, ...] = ("paper", "learnt")
    temperature: float
    unit: nn.Module
    sharpness: nn.Module
    whiten: nn.Module

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.add_queries_and_keys(channels, inner_channels, conv, bias=True)
        self.whiten = nn.Identity()

    def add_queries_and_keys(self, channels: int, inner_channels: int, conv: type[_Conv], *, bias: bool) -> None:
        self.query = conv(channels, inner_channels, 1, bias=bias)
        if self.has_learnt_scale:
            self.unit, self.sharpness = UnitRows(), Gain(1.0)
        else:
            self.key = conv(channels, inner_channels, 1, bias=bias)
            self.unit = self.sharpness = nn.Identity()
        self.scale = 1.0 / (inner_channels**0.5 * self.temperature)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        query, key = self.queries_and_keys(x, pooled)
        return self.gain(softmax_attention(query, key, self.positions(self.value(pooled)), self.scale))

    def map_rows(self, x: Tensor, pooled: Tensor) -> MapRows:
        query, key = self.queries_and_keys(x, pooled)
        return lambda rows: torch.softmax(_logits(query[:, rows], key, self.scale), dim=2)

    def queries_and_keys(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Compute q [B, N, D] and k [B, M, D]."""
        to_key = self.query if self.has_learnt_scale else self.key
        query, key = self.positions(self.query(x)), self.positions(to_key(pooled))
        # scale the keys, because there can be fewer of them
        return self.unit(self.whiten(query)).to(query.dtype), self.sharpness(self.unit(self.whiten(key))).to(key.dtype)

    @torch.no_grad()
    def split(self, x: Tensor, rows: Tensor | slice = ALL) -> tuple[Tensor, Tensor]:
        """Compute whitened pairwise [B, N, M] and unary [B, M] logits; the softmax of their sum is what `attention` returns.

        They are (q_i - mu_q) . (k_j - mu_k) and mu_q . k_j, scaled; q_i . k_j has two more terms, which do not depend on j
        and cancel. Yin et al. 2020, section 3.1. Pairwise logits are of the queries in rows only.
        """
        query, key = self.queries_and_keys(x, self.key_pool(x))
        mean = at_least_float32(query).mean(dim=1, keepdim=True)
        whiten = Whiten()
        return _logits(whiten(query)[:, rows], whiten(key), self.scale), _logits(mean, key, self.scale)[:, 0]


class GaussianNonLocal(NonLocal):
    """Non-local block, Gaussian: w_ij = softmax_j(x_i . x_j / tau), tau = 1. Wang et al. 2018, eq. 2."""

    scales = ("paper",)

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.scale = 1.0 / self.temperature

    def queries_and_keys(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.positions(x), self.positions(pooled)


class DotProductNonLocal(AttentionBlock):
    """Non-local block, dot product: w_ij = q_i . k_j / M. Wang et al. 2018, eq. 4."""

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.query = conv(channels, inner_channels, 1)
        self.key = conv(channels, inner_channels, 1)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        # without a softmax the product is associative, and q (k^T v) needs no map; dividing first keeps the sum small
        key, value = self.positions(self.key(pooled)), self.positions(self.value(pooled))
        return self.gain(self.positions(self.query(x)) @ ((key / key.shape[1]).transpose(1, 2) @ value))

    def map_rows(self, x: Tensor, pooled: Tensor) -> MapRows:
        query, key = self.positions(self.query(x)), self.positions(self.key(pooled))
        return lambda rows: _logits(query[:, rows], key, 1 / key.shape[1])


class ConcatenationNonLocal(AttentionBlock):
    """Non-local block, concatenation: w_ij = ReLU(w_f . [q_i, k_j]) / M. Wang et al. 2018, eq. 5."""

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.query = conv(channels, inner_channels, 1)
        self.key = conv(channels, inner_channels, 1)
        self.concat = nn.Linear(2 * inner_channels, 1, bias=False)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():  # ONNX has no searchsorted
            return self.gain(self.map_rows(x, pooled)(ALL).to(x.dtype) @ self.positions(self.value(pooled)))
        # ReLU(a_i + b_j) is zero but for the keys with b_j > -a_i. With the keys in falling order of b these are the first
        # ones, and sum_j (a_i + b_j) v_j over them is a_i times a running sum of v, plus a running sum of b v: no map
        a, b = self._logits(x, pooled)
        b, order = b.sort(dim=1, descending=True)
        value = at_least_float32(self.positions(self.value(pooled)))
        value = value.gather(1, order.unsqueeze(2).expand_as(value)) / b.shape[1]
        count = torch.searchsorted(-b, a).unsqueeze(2).expand(-1, -1, value.shape[2])  # keys with b_j > -a_i
        sum_v, sum_bv = _running_sum(value), _running_sum(b.unsqueeze(2) * value)
        y = a.unsqueeze(2) * sum_v.gather(1, count) + sum_bv.gather(1, count)
        return self.gain(y.to(x.dtype))

    def map_rows(self, x: Tensor, pooled: Tensor) -> MapRows:
        a, b = self._logits(x, pooled)
        return lambda rows: torch.relu(a[:, rows].unsqueeze(2) + b.unsqueeze(1)) / b.shape[1]

    def _logits(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a [B, N] and b [B, M], the shares of query and key in w_f . [q_i, k_j]."""
        query, key = self.positions(self.query(x)), self.positions(self.key(pooled))
        of_query, of_key = at_least_float32(self.concat.weight).T.chunk(2)  # [D, 1]: onnxruntime gets vectors wrong here
        with without_autocast(x.device):
            return (at_least_float32(query) @ of_query)[..., 0], (at_least_float32(key) @ of_key)[..., 0]


class PairwiseNonLocal(NonLocal):
    """The whitened pairwise half alone: w_ij = softmax_j((q_i - mu_q) . (k_j - mu_k) / (sqrt(D) tau)), tau = 0.05.

    mu_q and mu_k are the means over positions, per channel and group; whitening is this subtraction and nothing else.
    Yin et al. 2020, section 3.2 (NL_p). A bias of q or k would cancel, so there is none.
    """

    own_temperature = 0.05

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.add_queries_and_keys(channels, inner_channels, conv, bias=False)
        self.whiten = Whiten()


class UnaryNonLocal(AttentionBlock):
    """The unary half alone: w_j = softmax_j(m_j), m_j = W_m x_j, the same for all queries.

    Yin et al. 2020, section 3.2 (NL_u); with gate "scalar" the simplified block of Cao et al. 2019, eq. 2,
    arXiv:1904.11492 (SNL). A bias of W_m would cancel, so there is none.
    """

    has_queries = False

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.mask = conv(channels, 1, 1, bias=False)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        return _weighted_sum(self.unary_weights(x, pooled), self.positions(self.value(pooled)))

    def unary_weights(self, x: Tensor, pooled: Tensor) -> Tensor:
        return _weights_of_mask(self, self.mask, pooled)


class GlobalContext(UnaryNonLocal):
    """Global context block: z_i = x_i + W_2 ReLU(LN(W_1 sum_j w_j x_j)), w_j = softmax_j(m_j), D = C / 16.

    W_2 starts at zero, so a block put into a trained network starts as the identity. Cao et al. 2019, section 3.3,
    arXiv:1904.11492. Arguments as of AttentionBlock; it has neither gate nor temperature.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        *,
        ndim: int = 3,
        key_pool: tuple[int, ...] | None = None,
        axes: Axes = "spacetime",
    ) -> None:
        inner_channels = max(channels // 16, 1) if inner_channels is None else inner_channels
        super().__init__(channels, inner_channels, ndim=ndim, key_pool=key_pool, axes=axes)
        self.value = self.out = self.norm = nn.Identity()  # the context is a sum of x itself; the bottleneck gates it
        first, last = nn.Linear(channels, inner_channels), nn.Linear(inner_channels, channels)
        self.bottleneck = nn.Sequential(first, nn.LayerNorm(inner_channels), nn.ReLU(inplace=True), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        return self.bottleneck(super().attend(x, pooled))


class DisentangledNonLocal(PairwiseNonLocal):
    """Disentangled non-local block: a whitened pairwise and a unary softmax, added, over one shared value.

        w_ij = softmax_j((q_i - mu_q) . (k_j - mu_k) / (sqrt(D) tau)) + softmax_j(m_j), m_j = W_m x_j, tau = 0.05

    The weights of a query sum to 2. Yin et al. 2020, section 3.2.
    """

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        super().add_projections(channels, inner_channels, conv)
        self.mask = conv(channels, 1, 1, bias=False)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        query, key = self.queries_and_keys(x, pooled)
        value = self.positions(self.value(pooled))
        pairwise = softmax_attention(query, key, value, self.scale)
        return self.gain(pairwise) + _weighted_sum(self.unary_weights(x, pooled), value)

    def unary_weights(self, x: Tensor, pooled: Tensor) -> Tensor:
        return _weights_of_mask(self, self.mask, pooled)


class AddedNonLocal(PairwiseNonLocal):
    """NL with its two terms added rather than multiplied: the first of the two changes that lead from NL to DNL.

        w_ij = softmax_j((q_i - mu_q) . (k_j - mu_k) / (sqrt(D) tau)) + softmax_j(mu_q . k_j / (sqrt(D) tau)), tau = 1

    Its terms are those of NonLocal.split, scale and biases included; both still come from one W_k. Yin et al. 2020,
    section 3.2.
    """

    own_temperature = 1.0
    scales = ("paper",)

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.add_queries_and_keys(channels, inner_channels, conv, bias=True)
        self.whiten = Whiten()

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        query, key = self.positions(self.query(x)), self.positions(self.key(pooled))
        value = self.positions(self.value(pooled))
        whitened_query, whitened_key = (self.whiten(part).to(value.dtype) for part in (query, key))
        pairwise = softmax_attention(whitened_query, whitened_key, value, self.scale)
        return self.gain(pairwise) + _weighted_sum(self._of_mean_query(query, key), value)

    def unary_weights(self, x: Tensor, pooled: Tensor) -> Tensor:
        return self._of_mean_query(self.positions(self.query(x)), self.positions(self.key(pooled)))

    def _of_mean_query(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute the row [B, M] of a query that is the mean of all queries."""
        mean = at_least_float32(query).mean(dim=1, keepdim=True)
        return torch.softmax(_logits(mean, key, self.scale)[:, 0], dim=1)


class OwnMaskNonLocal(NonLocal):
    """NL with its unary term from a W_m of its own: the second of the two changes that lead from NL to DNL.

        w_ij = softmax_j((q_i - mu_q) . (k_j - mu_k) / (sqrt(D) tau) + m_j), m_j = W_m x_j, tau = 1

    The terms still multiply, in one softmax. Biases would cancel, so there are none. Yin et al. 2020, section 3.2.
    """

    scales = ("paper",)

    def add_projections(self, channels: int, inner_channels: int, conv: type[_Conv]) -> None:
        self.add_queries_and_keys(channels, inner_channels, conv, bias=False)
        self.whiten = Whiten()
        self.mask = conv(channels, 1, 1, bias=False)

    def attend(self, x: Tensor, pooled: Tensor) -> Tensor:
        query, key = self._with_mask(x, pooled)
        return self.gain(softmax_attention(query, key, self.positions(self.value(pooled)), self.scale))

    def map_rows(self, x: Tensor, pooled: Tensor) -> MapRows:
        query, key = self._with_mask(x, pooled)
        return lambda rows: torch.softmax(_logits(query[:, rows], key, self.scale), dim=2)

    @torch.no_grad()
    def split(self, x: Tensor, rows: Tensor | slice = ALL) -> tuple[Tensor, Tensor]:
        pooled = self.key_pool(x)
        query, key = self.queries_and_keys(x, pooled)
        return _logits(query[:, rows], key, self.scale), at_least_float32(self.positions(self.mask(pooled)))[..., 0]

    def _with_mask(self, x: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Compute q and k with one more channel, whose product is m_j, and zero channels as fused kernels need them."""
        query, key = self.queries_and_keys(x, pooled)
        more = ALIGNMENT - key.shape[2] % ALIGNMENT
        key = torch.cat([key, self.positions(self.mask(pooled))], dim=2)
        pad = torch.nn.functional.pad
        return pad(query, (0, more), value=1 / self.scale), pad(key, (0, more - 1))


def _weights_of_mask(block: AttentionBlock, mask: _Conv, pooled: Tensor) -> Tensor:
    """softmax_j(m_j) [B, M]."""
    with without_autocast(pooled.device):
        logits = block.positions(mask(pooled.to(mask.weight.dtype)))[..., 0]
    return torch.softmax(at_least_float32(logits), dim=1)


class Gain(nn.Module):
    """A learnt scalar."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Whiten(nn.Module):
    """Features [B, N, D] minus their mean over positions, in float32."""

    def forward(self, features: Tensor) -> Tensor:
        return features - at_least_float32(features).mean(dim=1, keepdim=True)


class UnitRows(nn.Module):
    """Features [B, N, D] divided by their root mean square over D, in float32."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(at_least_float32(features), features.shape[2:], eps=TINY)


def _spread(y: Tensor, x: Tensor) -> Tensor:
    """Return y, expanded to each position of x and in the memory layout of x if y is the same for all positions."""
    if torch.onnx.is_in_onnx_export():  # ONNX has no copy, and no layout
        return y.expand_as(x)
    return y if y.shape == x.shape else torch.empty_like(x, dtype=y.dtype).copy_(y)


def _logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Compute the whole map q_i . k_j * scale [B, N, M], for looking at it."""
    with without_autocast(query.device):
        return at_least_float32(query) @ at_least_float32(key).transpose(1, 2) * scale


def _weighted_sum(weights: Tensor, value: Tensor) -> Tensor:
    """Sum values [B, M, D] with weights [B, M] to [B, 1, D]: one sum for all queries."""
    return weights.to(value.dtype).unsqueeze(1) @ value


def _running_sum(x: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ..., M rows of x [B, M, D], as [B, M + 1, D]."""
    return torch.nn.functional.pad(x.cumsum(dim=1), (0, 0, 1, 0))


def _check(channels: int, inner_channels: int, ndim: int, key_pool: tuple[int, ...] | None, axes: str) -> None:
    if channels < 1 or inner_channels < 1:
        raise ValueError(f"channels and inner_channels must be at least 1, got {channels} and {inner_channels}")
    if ndim not in _CONV:
        raise ValueError(f"ndim must be 1, 2 or 3, got {ndim}")
    if key_pool is not None and len(key_pool) != ndim:
        raise ValueError(f"key_pool {key_pool} must have {ndim} entries, one per axis, or be None")
    if axes != "spacetime" and ndim != 3:
        raise ValueError(f"axes {axes!r} needs ndim 3, got {ndim}")
    # the axis that tells groups apart must not be pooled, or the queries of a group would lose its keys
    apart = {"spacetime": (), "space": (0,), "time": (1, 2)}[axes]
    if key_pool is not None and any(key_pool[axis] != 1 for axis in apart):
        kept = "time" if axes == "space" else "space"
        raise ValueError(f"key_pool {tuple(key_pool)} pools {kept}, which axes {axes!r} keeps apart; use None, or 1 there")
