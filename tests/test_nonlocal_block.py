"""The block against loops written from the equation (Yin et al. 2020, section 3), in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from videornn.models.nonlocal_block import DisentangledNonLocal

CASES = [
    (3, (3, 4, 5), (1, 2, 2)),
    (3, (1, 3, 3), None),
    (3, (2, 4, 4), None),
    (2, (5, 3), (2, 2)),
    (1, (7,), None),
]


def _block(ndim: int, key_pool: tuple[int, ...] | None) -> DisentangledNonLocal:
    torch.manual_seed(0)
    block = DisentangledNonLocal(6, 4, ndim=ndim, key_pool=key_pool, temperature=0.5).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.eval()


def _conv(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of positions [P, C] as a matrix product."""
    return x @ layer.weight.flatten(1).T + layer.bias


def _loop(block: DisentangledNonLocal, x: Tensor, key_pool: tuple[int, ...] | None) -> Tensor:
    """z_i = x_i + BN(W_z sum_j w_ij v_j), one sample and one query position at a time."""
    pool = {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[x.ndim - 2]
    outputs = []
    for sample in x:
        keys_from = sample if key_pool is None else pool(sample[None], key_pool, key_pool, ceil_mode=True)[0]
        positions, key_positions = sample.flatten(1).T, keys_from.flatten(1).T
        query, key = _conv(block.query, positions), _conv(block.key, key_positions)
        value, mask = _conv(block.value, key_positions), _conv(block.mask, key_positions)
        query_mean, key_mean = query.mean(0), key.mean(0)
        rows = []
        for i in range(len(query)):
            logits = [(query[i] - query_mean) @ (key[j] - key_mean) / (math.sqrt(4) * 0.5) for j in range(len(key))]
            pairwise = [logit.exp() for logit in logits]
            unary = [mask[j, 0].exp() for j in range(len(key))]
            weights = [p / sum(pairwise) + u / sum(unary) for p, u in zip(pairwise, unary, strict=True)]
            rows.append(sum(weight * value[j] for j, weight in enumerate(weights)))
        out = _conv(block.out, torch.stack(rows))
        norm = block.norm
        out = (out - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        outputs.append(sample + out.T.reshape(sample.shape))
    return torch.stack(outputs)


@pytest.mark.parametrize(("ndim", "size", "key_pool"), CASES)
def test_values_and_gradients_equal_the_loop(ndim: int, size: tuple[int, ...], key_pool: tuple[int, ...] | None) -> None:
    block = _block(ndim, key_pool)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours, theirs = block(x), _loop(block, x, key_pool)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    inputs = [x, *block.parameters()]
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)


def test_gradcheck() -> None:
    block = _block(3, (1, 2, 2))
    x = torch.randn(1, 6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize(("ndim", "size", "key_pool"), CASES)
def test_attention_is_what_forward_uses(ndim: int, size: tuple[int, ...], key_pool: tuple[int, ...] | None) -> None:
    block = _block(ndim, key_pool)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    pairwise, unary = block.attention(x)
    torch.testing.assert_close(pairwise.sum(2), torch.ones_like(pairwise[..., 0]))
    torch.testing.assert_close(unary.sum(1), torch.ones_like(unary[:, 0]))
    assert math.prod(block.attention_grid(x)) == unary.shape[1]
    value = block.value(block.key_pool(x)).flatten(2).transpose(1, 2)
    y = ((pairwise + unary[:, None]).double() @ value).transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(x + block.norm(block.out(y)), block(x), rtol=1e-5, atol=1e-5)


def test_a_new_block_is_the_identity_and_every_parameter_gets_a_gradient_once_its_gain_is_not_zero() -> None:
    block = DisentangledNonLocal(8, key_pool=(1, 2, 2))
    x = torch.randn(2, 8, 2, 4, 4)
    assert torch.equal(block(x), x)
    nn.init.ones_(block.norm.weight)
    block(x).square().sum().backward()
    for name, parameter in block.named_parameters():
        # constants cancel in the whitening and in the softmax: these gradients are zero by the equation
        assert name in ("query.bias", "key.bias", "mask.bias") or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 0},
        {"channels": 4, "inner_channels": 0},
        {"channels": 4, "ndim": 4},
        {"channels": 4, "key_pool": (2, 2)},
        {"channels": 4, "temperature": 0.0},
    ],
)
def test_impossible_sizes_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"at least 1|ndim|key_pool|temperature"):
        DisentangledNonLocal(**arguments)
