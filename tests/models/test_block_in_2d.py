"""The disentangled block of pictures (ndim 2, gate "scalar") is that of the public 2D code of Yin et al. 2020.

The formula is written anew from its tensors, the way that code computes it: features [B, channels, positions], 1 x 1
convolutions as matrices, with the biases of q, k and the mask that it has and ours has not, for they cancel.
"""

import math

import pytest
import torch
from torch import Tensor

from videornn.models.nonlocal_block import DisentangledNonLocal

C, D, TEMPERATURE = 8, 6, 0.5
NAMES = {  # ours -> those of the formula
    "query.weight": "query",
    "key.weight": "key",
    "value.weight": "value",
    "mask.weight": "mask",
    "gain.weight": "gamma",
}


def _public_block(x: Tensor, weights: dict[str, Tensor], *, pool: bool) -> Tensor:
    """x + gamma softmax(whitened q^T k / sqrt(D) / tau) v + softmax(mask) v of pictures [B, C, H, W]."""
    queries_from = x.flatten(2)
    if pool:  # 2 x 2 maxima; an odd row or column is left out
        height, width = (size // 2 for size in x.shape[2:])
        x = torch.stack([x[..., i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)]).amax(0)
    keys_from = x.flatten(2)

    query = torch.einsum("dc,bcn->bdn", weights["query"], queries_from) + weights["query_bias"][:, None]
    key = torch.einsum("dc,bcm->bdm", weights["key"], keys_from) + weights["key_bias"][:, None]
    value = torch.einsum("ec,bcm->bem", weights["value"], keys_from)
    query = query - query.mean(2, keepdim=True)
    key = key - key.mean(2, keepdim=True)
    similarity = torch.einsum("bdn,bdm->bnm", query, key) / math.sqrt(D) / TEMPERATURE
    pairwise = torch.einsum("bnm,bem->ben", similarity.softmax(2), value)

    mask = torch.einsum("c,bcm->bm", weights["mask"], keys_from) + weights["mask_bias"]
    unary = torch.einsum("bm,bem->be", mask.softmax(1), value)
    return queries_from + weights["gamma"] * pairwise + unary[..., None]


@pytest.mark.parametrize("pool", [False, True])
def test_the_block_of_pictures_is_that_of_the_public_code_in_values_and_gradients(pool: bool) -> None:
    torch.manual_seed(0)
    shapes = {"query": (D, C), "key": (D, C), "value": (C, C), "mask": (C,), "gamma": (1,)}
    shapes |= {"query_bias": (D,), "key_bias": (D,), "mask_bias": (1,)}
    weights = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    x = torch.randn(2, C, 7, 5, dtype=torch.float64, requires_grad=True)

    block = DisentangledNonLocal(
        C, D, ndim=2, key_pool=(2, 2) if pool else None, gate="scalar", temperature=TEMPERATURE
    ).double()
    ours = {NAMES[name]: parameter for name, parameter in block.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(weights[name].reshape(parameter.shape))

    z, public = block(x), _public_block(x, weights, pool=pool).unflatten(2, (7, 5))
    torch.testing.assert_close(z, public, rtol=1e-10, atol=1e-10)
    down = torch.randn_like(z)
    mine = torch.autograd.grad((z * down).sum(), [x, *ours.values()])
    biases = [weights[name] for name in weights if name.endswith("_bias")]
    theirs = torch.autograd.grad((public * down).sum(), [x, *(weights[name] for name in ours), *biases])
    for name, a, b in zip(["x", *ours], mine, theirs, strict=False):
        assert b.abs().sum() > 0, name
        torch.testing.assert_close(
            a.reshape(b.shape), b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    for bias in theirs[len(mine) :]:
        torch.testing.assert_close(bias, torch.zeros_like(bias), rtol=0, atol=1e-9)
