"""softmax(q k^T) v without its N x M map, forward and backward, by the fastest way on the device.

That is torch's scaled_dot_product_attention where it has a good kernel for the sizes, and matrix products elsewhere: these
build the map for a chunk of queries at a time, and again in the backward pass (scripts/benchmark_attention.py and
check_gpu.py time both). On the CPU the backward pass of the fused operator uses no more cores than there are clips. On CUDA
the flash and cuDNN kernels take half precision and widths up to 256; the kernel for the rest is 2 to 4 times slower than
products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# entries of the map that exist at a time: on the CPU 8 MB of float32; less is slower there, more is not faster
CHUNK_ENTRIES = {"cpu": 2**21, "cuda": 2**22}
MAX_FUSED_WIDTH = 256  # of the fast kernels of CUDA
# the largest CUDA grid along the batch, which counts every place of every clip if axes is "time"
MAX_BATCH = 65535


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute sum_j softmax_j(q_i . k_j * scale) v_j, with logits and softmax in float32 (or float64) for any dtype.

    Args:
        query: [B, N, D].
        key: [B, M, D].
        value: [B, M, E].

    Returns:
        [B, N, E] in the dtype of value.
    """
    if _by_products(query):
        # an autograd function is one operator, whose multiplications could not be counted
        attend = _ChunkedAttention.apply if torch.is_grad_enabled() else _ChunkedAttention.forward
        return attend(query, key, value, scale)
    # not asked when a graph is made on the CPU, for export say: the answer would fix its batch size
    if not (query.device.type == "cpu" and torch.compiler.is_compiling()) and len(query) > MAX_BATCH:
        parts = zip(query.split(MAX_BATCH), key.split(MAX_BATCH), value.split(MAX_BATCH), strict=True)
        return torch.cat([softmax_attention(*part, scale) for part in parts])
    # the fused kernels take four dimensions only, [B, heads, N, D]
    query, key, value = (_rows_in_one_piece(x).unsqueeze(1) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)


def _by_products(query: Tensor) -> bool:
    if query.device.type == "cuda":
        return query.shape[2] > MAX_FUSED_WIDTH or query.dtype in (torch.float32, torch.float64)
    return query.device.type == "cpu" and torch.is_grad_enabled()


class _ChunkedAttention(torch.autograd.Function):
    """Attention that keeps queries, keys and values only; the map of a chunk of queries lives for one turn of a loop.

    Logits are products in float32: bfloat16 products would round them, an error of 2 % of a row. The other products stay
    in bfloat16, in which the CPU is fastest, but on the CPU not in float16, in which it is slowest.
    """

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = value.new_empty(*query.shape[:2], value.shape[2])
        with torch.autocast(query.device.type, enabled=False):
            keys_t, values = _transposed(key), _not_half(value)
            for rows in _chunks(query, key):
                weights = _weights(query[:, rows], keys_t, scale)
                output[:, rows] = weights.to(values.dtype) @ values
        return output

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        query, key, value, ctx.scale = inputs
        ctx.save_for_backward(query, key, value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        with torch.autocast(query.device.type, enabled=False):
            keys_t, keys, values_t = _transposed(key), _not_half(key), _not_half(value).transpose(1, 2)
            grad_key, grad_value = torch.zeros_like(at_least_float32(key)), torch.zeros_like(at_least_float32(value))
            for rows in _chunks(query, key):
                queries, grads = _not_half(query[:, rows]), _not_half(grad[:, rows])
                weights = _weights(query[:, rows], keys_t, ctx.scale)
                grad_value += weights.to(grads.dtype).transpose(1, 2) @ grads
                # gradient of the softmax: p (dp - sum_j p dp)
                grad_weights = at_least_float32(grads @ values_t)
                row_sums = torch.linalg.vecdot(weights, grad_weights).unsqueeze(2)
                grad_logits = grad_weights.sub_(row_sums).mul_(weights).mul_(ctx.scale).to(queries.dtype)
                grad_query[:, rows] = grad_logits @ keys
                grad_key += grad_logits.transpose(1, 2) @ queries
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _rows_in_one_piece(x: Tensor) -> Tensor:
    # fused kernels refuse other rows, as of features that are not channels last, and torch's fallback builds the map
    return x if x.stride(2) == 1 else x.contiguous()


def _transposed(key: Tensor) -> Tensor:
    # contiguous: products with a strided matrix of several clips are a fifth slower
    return at_least_float32(key).transpose(1, 2).contiguous()


def _weights(queries: Tensor, keys_t: Tensor, scale: float) -> Tensor:
    return torch.softmax((at_least_float32(queries) * scale) @ keys_t, dim=2)


def _chunks(query: Tensor, key: Tensor) -> list[slice]:
    num_rows = max(1, CHUNK_ENTRIES[query.device.type] // (key.shape[0] * key.shape[1]))
    return [slice(start, start + num_rows) for start in range(0, query.shape[1], num_rows)]


def at_least_float32(x: Tensor) -> Tensor:
    """Convert x to float32 unless it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _not_half(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 and x.device.type == "cpu" else x
